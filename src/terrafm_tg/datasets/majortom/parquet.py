"""Open Parquet files that no process inherits from another."""

import os
from collections import OrderedDict
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientError  # what fsspec[http] raises


class PartFiles:
    """The last few Parquet files that this process read; a forked or spawned worker opens its own.

    Args:
        limit: How many stay open.
    """

    def __init__(self, limit: int = 16) -> None:
        self.limit = limit
        self._files: OrderedDict[str, pq.ParquetFile] = OrderedDict()
        self._owner = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit, "_files": OrderedDict(), "_owner": -1}

    def read(self, path: str, group: int, columns: list[str]) -> dict[str, Any]:
        """Values of one row that is a row group of its own.

        Args:
            path: Local path, or a URL that fsspec opens (only the bytes of the columns travel).
            group: The row group.
            columns: Names in any case; those that the file lacks are absent from the result.

        Returns:
            Value by the name given.

        Raises:
            OSError: If the file or the row group cannot be read.
        """
        try:
            file = self._open(path)
            if group >= file.num_row_groups:
                raise OSError(f"it has {file.num_row_groups} row groups, no {group}")
            stored = {name.lower(): name for name in file.schema_arrow.names}
            found = {name: stored[name.lower()] for name in columns if name.lower() in stored}
            table = file.read_row_group(group, list(found.values()), use_threads=False)
            return {name: table.column(column)[0].as_py() for name, column in found.items()}
        # What damaged bytes lead to as well: names that are no text, row groups without a row.
        except (pa.ArrowException, ClientError, ValueError, LookupError) as error:
            raise OSError(str(error)) from error

    def _open(self, path: str) -> pq.ParquetFile:
        if self._owner != os.getpid():
            self._files, self._owner = OrderedDict(), os.getpid()
        if path not in self._files:
            if len(self._files) >= self.limit:
                self._files.popitem(last=False)
            remote = "://" in path
            # As published the parts have no checksums; those that `terrafm download` writes have one per page.
            self._files[path] = pq.ParquetFile(
                fsspec.open(path).open() if remote else path,
                pre_buffer=remote,
                page_checksum_verification=True,
            )
        self._files.move_to_end(path)
        return self._files[path]
