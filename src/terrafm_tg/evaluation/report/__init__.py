"""The report of ``terrafm bench``: one HTML page and one Markdown file, from the table of results alone."""

from .published import counterparts, published_scores
from .write import write_report

__all__ = ["counterparts", "published_scores", "write_report"]
