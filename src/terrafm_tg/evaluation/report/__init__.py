"""The report of ``terrafm bench``: one HTML page and one Markdown file, from the table of results alone."""

from .page import write_bench_report
from .published import counterparts, published_scores

__all__ = ["counterparts", "published_scores", "write_bench_report"]
