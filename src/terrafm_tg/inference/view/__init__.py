"""The page of ``terrafm view``: maps and embeddings to look at and to search in, in one HTML file."""

from .page import Written, write_page

__all__ = ["Written", "write_page"]
