"""Downloads a subset of Major-TOM: its rows by range requests, into a local root of the published layout."""

from .catalog import SOURCE, WORLDCOVER
from .run import download
from .selection import Selection, read_cells

__all__ = ["SOURCE", "WORLDCOVER", "Selection", "download", "read_cells"]
