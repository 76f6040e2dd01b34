"""The report of ``terrafm bench``: one HTML page and one Markdown file, from the table of results alone."""

from .published import counterparts, published_scores

__all__ = ["counterparts", "published_scores"]
