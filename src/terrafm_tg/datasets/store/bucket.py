"""A packed store in an object store: each file is written on disk first, then uploaded, whole or not at all."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa

from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.index_file import NAME
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import files_below, write_text
from terrafm_tg.utils.object_store import is_object, list_objects, remove
from terrafm_tg.utils.remote import NotThereError, RemoteReader
from terrafm_tg.utils.trust import is_safe

from .folder import LOG, MARKER, SUM
from .plan import ShardPlan, write_planned

#: Ending of the list of a shard's records, which is there once the shard is: so that it is not read to go on behind it.
RECORDS = ".records"
_MOST = 1 << 32  # bytes of a file besides the shards


class Bucket:
    """A store's objects, and copies on disk of those that packing reads and replaces.

    Args:
        url: Of the store, ``s3://bucket/prefix`` or ``gs://bucket/prefix``.
        folder: An empty folder for the copies.
        others: Names of such files besides settings, index and checksum.

    Raises:
        TerraFMError: If that is no object store, there is something else, or it cannot be read.
    """

    def __init__(self, url: str, folder: Path, others: Iterable[str]) -> None:
        self.url, self.folder, self.reader = url.rstrip("/"), folder, RemoteReader()
        if not is_object(url):
            raise TerraFMError(f"{url} cannot be written: give a folder, or a place in a store of s3:// or gs://.")
        self.held = set(list_objects(self.url))
        if self.held and MARKER not in self.held:
            raise TerraFMError(f"{url} is no packed store and not empty: name another place, which may be absent.")
        wanted = {name for name in self.held if name in (MARKER, NAME, SUM, *others) or name.startswith(f"{LOG}/")}
        self._copied = set(filter(is_safe, wanted))
        for name in self._copied:
            (folder / name).parent.mkdir(exist_ok=True)
            self.reader.save(f"{self.url}/{name}", folder / name, _MOST)
        self._before = self._sums()

    def begin(self) -> None:
        """Uploads the settings, which tell that there is a store."""
        if MARKER not in self.held:
            self._upload(MARKER)

    def publish(self) -> None:
        """Uploads the index and what goes with it; either index is right while one takes the other's place."""
        line = self._sums()
        if line != self._before:
            write_text(self.folder / SUM, line + self._before)
            self._upload(SUM, NAME)
            write_text(self.folder / SUM, line)
            self._upload(SUM)
        names = {path.relative_to(self.folder).as_posix() for path in files_below(self.folder) if path.name[0] != "."}
        self._upload(*sorted(names - {MARKER, NAME, SUM}))
        for name in sorted(self._copied - names):  # of the log the oldest first
            remove(f"{self.url}/{name}")

    def clear_log(self) -> None:
        """Removes the log, the oldest part first."""
        for name in sorted(name for name in list_objects(self.url) if name.startswith(f"{LOG}/") and is_safe(name)):
            remove(f"{self.url}/{name}")

    def _sums(self) -> str:
        return (self.folder / SUM).read_text() if (self.folder / SUM).is_file() else ""

    def _upload(self, *names: str) -> None:
        for name in names:
            self.reader.upload(self.folder / name, f"{self.url}/{name}")

    def remove(self, shard: str) -> None:
        """Removes a shard that an index names, and the list of its records."""
        for name in self.held & {shard, str(Path(shard).with_suffix(RECORDS))}:
            if is_safe(name):
                remove(f"{self.url}/{name}")


def upload_planned(job: tuple[TileDataset, ShardPlan], url: str, quantized: bool) -> pd.DataFrame:
    """Writes a shard to an object store, in a worker process, unless an earlier run did; as :func:`write_planned`."""
    (tiles, shard), reader = job, RemoteReader()
    with tempfile.TemporaryDirectory(prefix="terrafm-pack-") as folder:
        path = Path(folder, shard.path)
        records = path.with_suffix(RECORDS)
        address = f"{url}/{shard.modality.name}/{records.name}"
        try:
            reader.save(address, records, _MOST)
        except NotThereError:
            table = write_planned(job, Path(folder), quantized)
            reader.upload(path, f"{url}/{shard.path}")
            with pa.OSFile(str(records), "wb") as sink:
                arrow = pa.Table.from_pandas(table)
                with pa.ipc.new_file(sink, arrow.schema) as writer:
                    writer.write_table(arrow)
            reader.upload(records, address)
            return table
        try:
            found = pa.ipc.open_file(pa.OSFile(str(records))).read_pandas()
            held = all(np.array_equal(found[c], tiles.table[c].astype(found[c].dtype)) for c in ("cell", "quadrant"))
        except (pa.ArrowException, OSError, ValueError, LookupError) as error:
            raise TerraFMError(f"{address} is damaged ({error}): remove it, and the shard is made again.") from error
    if not held:
        raise TerraFMError(f"{address} lists other tiles than its name says: pack the sources into a new place.")
    return found
