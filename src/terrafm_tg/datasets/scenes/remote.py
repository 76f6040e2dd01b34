"""Files of scenes on servers, opened once per process."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

from terrafm_tg.utils.remote import RemoteReader
from terrafm_tg.utils.remote_file import RemoteFile, Spool
from terrafm_tg.utils.trust import OpenFiles

from .stac.catalog import sign_blob

_OPEN = 64  # files: bands and masks of some scenes
_KEPT = 1 << 24  # bytes of a file that tiles were read of


class _Files(OpenFiles[RemoteFile]):
    """The last few files that this process read, by address; threads may share them."""

    def __init__(self, reader: RemoteReader | None = None, kept: float = _KEPT, limit: int = _OPEN) -> None:
        super().__init__(limit)
        self._reader, self.kept, self._lock, self.process = reader, kept, Lock(), os.getpid()
        self._spool = Spool()

    def _open(self, path: str) -> RemoteFile:
        if self._reader is None:
            self._reader = RemoteReader(retries=2, sign=sign_blob)
        return RemoteFile(self._reader, path, self.kept, self._spool)

    def get(self, url: str) -> RemoteFile:
        """Returns a file, whose head is fetched where it is new."""
        with self._lock:
            if url in self._files:
                return self.opened(url)
        file = self._open(url)  # outside of the lock: others are waiting for other servers
        with self._lock:
            self._files.setdefault(url, file)
            return self.opened(url)


_files = _Files()


def remote_file(url: str) -> RemoteFile:
    """Returns a file on a server, which the user named or a catalog that the user named.

    Raises:
        RemoteError: If its head cannot be read.
    """
    global _files
    if _files.process != os.getpid():  # connections are not inherited
        _files = _Files()
    return _files.get(url)


@contextmanager
def reading_with(reader: RemoteReader) -> Iterator[None]:
    """Reads all files in the block with one reader, such as one with a budget, and keeps all that it fetched."""
    global _files
    before, _files = _files, _Files(reader, float("inf"), 1 << 20)
    try:
        yield
    finally:
        _files = before
