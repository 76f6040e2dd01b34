"""Downloads a subset of Major-TOM: its rows by range requests, into a local root of the published layout."""

from .run import download, download_summary
from .selection import Selection

__all__ = ["Selection", "download", "download_summary"]
