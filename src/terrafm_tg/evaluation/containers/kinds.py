"""Containers that could hold packed tiles, each written and read as its library has it.

All but Zarr, which has codecs of its own, hold the same compressed records.
"""

import abc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.parquet import PartFiles
from terrafm_tg.datasets.records import checksum, decode, encode
from terrafm_tg.datasets.shards import Record, ShardFiles, write_shard
from terrafm_tg.modalities import Modality

Groups = Mapping[int, np.ndarray]


class Container(abc.ABC):
    """One way to keep tiles.

    Args:
        folder: Where the files are.
    """

    #: In the table.
    title: str
    #: Package that must be installed.
    needs = "numpy"
    #: Whether a record can be read over HTTP without the rest of its file.
    ranges = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @abc.abstractmethod
    def write(self, modality: Modality, tiles: Sequence[Groups]) -> None:
        """Write the tiles of one modality."""

    @abc.abstractmethod
    def open(self, place: str) -> None:
        """Get ready to read from a folder or URL, which holds what was written to ``folder``."""

    @abc.abstractmethod
    def read(self, modality: Modality, number: int) -> Groups:
        """The native groups of one tile."""


class Shards(Container):
    """The store's own form: records of an Arrow IPC file read by their place, checksum compared."""

    title = "Arrow IPC by place, XXH3 (ours)"

    def write(self, modality: Modality, tiles: Sequence[Groups]) -> None:
        """One shard."""
        path = self.folder / f"{modality.name}.arrow"
        records = (Record("0U_0R", number % 4, groups) for number, groups in enumerate(tiles))
        write_shard(path, modality, records).to_parquet(self.folder / f"{modality.name}.places")

    def open(self, place: str) -> None:
        """The places are in memory, as the index of a store is."""
        self.files, self.place = ShardFiles(), place
        self.tables = {
            path.stem: pd.read_parquet(path).to_dict("list") for path in self.folder.glob("*.places")
        }

    def read(self, modality: Modality, number: int) -> Groups:
        """One read."""
        table = self.tables[modality.name]
        layout, quadrant = table["layout"][number], table["quadrant"][number]
        path = f"{self.place}/{modality.name}.arrow"
        data = self.files.read(path, table["start"][number], table["bytes"][number])
        if checksum(data, "0U_0R", quadrant, modality, layout) != table["xxh3"][number]:
            raise ValueError(f"the checksum of tile {number} is wrong")
        return decode(data, modality, layout)


class ArrowReader(Shards):
    """The same files through Arrow's reader, by record batch, from a memory map."""

    title = "Arrow IPC by record batch"

    def open(self, place: str) -> None:
        """Reads the footers."""
        super().open(place)
        names = [f"{name}.arrow" for name in self.tables]
        files = [
            fsspec.open(f"{place}/{name}").open() if "://" in place else pa.memory_map(f"{place}/{name}")
            for name in names
        ]
        self.readers = {Path(n).stem: pa.ipc.open_file(file) for n, file in zip(names, files, strict=True)}

    def read(self, modality: Modality, number: int) -> Groups:
        """One record batch."""
        batch = self.readers[modality.name].get_batch(number)
        data = memoryview(batch.column("data").buffers()[2])
        return decode(data, modality, self.tables[modality.name]["layout"][number])


class ParquetBlobs(Container):
    """A row group per tile with the same bytes."""

    title = "Parquet, record per row group"

    def write(self, modality: Modality, tiles: Sequence[Groups]) -> None:
        """One file; no second compression."""
        schema = pa.schema([("layout", pa.string()), ("data", pa.binary())])
        options: dict[str, Any] = {
            "compression": "none",
            "use_dictionary": False,
            "write_page_checksum": True,
        }
        with pq.ParquetWriter(self.folder / f"{modality.name}.parquet", schema, **options) as writer:
            for groups in tiles:
                data, layout = encode(groups, modality)
                writer.write_table(pa.table({"layout": [layout], "data": [data]}, schema))

    def open(self, place: str) -> None:
        """Reads no footer yet."""
        self.files, self.place = PartFiles(), place

    def read(self, modality: Modality, number: int) -> Groups:
        """One row group."""
        row = self.files.read(f"{self.place}/{modality.name}.parquet", number, ["layout", "data"])
        return decode(row["data"], modality, row["layout"])


class ZarrShards(Container):
    """Zarr v3: an array per group, a chunk per tile, 64 chunks per shard, Blosc and CRC-32C."""

    title = "Zarr v3, sharded"
    needs = "zarr"

    def write(self, modality: Modality, tiles: Sequence[Groups]) -> None:
        """An array (tiles, C, h, w) per resolution."""
        import zarr

        for resolution in modality.native:
            first, count = tiles[0][resolution], -(-len(tiles) // 64) * 64
            array = zarr.create_array(
                self.folder / f"{modality.name}_{resolution}", shape=(count, *first.shape), dtype=first.dtype,
                chunks=(1, *first.shape), shards=(64, *first.shape), filters=None,
                compressors=[zarr.codecs.BloscCodec(cname="lz4hc", clevel=1, shuffle="shuffle"),
                             zarr.codecs.Crc32cCodec()],
            )  # fmt: skip
            array[: len(tiles)] = np.stack([groups[resolution] for groups in tiles])

    def open(self, place: str) -> None:
        """Opens each array."""
        import zarr

        self.arrays = {path.name: zarr.open_array(f"{place}/{path.name}", mode="r")
                       for path in self.folder.iterdir()}  # fmt: skip

    def read(self, modality: Modality, number: int) -> Groups:
        """One chunk of each array."""
        return {r: np.asarray(self.arrays[f"{modality.name}_{r}"][number]) for r in modality.native}


class LitDataChunks(Container):
    """LitData's chunks of 64 MB with the same bytes."""

    title = "LitData, record per sample"
    needs = "litdata"
    ranges = False

    def write(self, modality: Modality, tiles: Sequence[Groups]) -> None:
        """As its writer does it in this process."""
        from litdata.streaming.writer import BinaryWriter

        writer = BinaryWriter(str(self.folder / modality.name), chunk_bytes="64MB")
        for number, groups in enumerate(tiles):
            data, layout = encode(groups, modality)
            writer[number] = {"layout": layout, "data": data}
        writer.done()
        writer.merge()

    def open(self, place: str) -> None:
        """A streaming dataset per modality."""
        from litdata import StreamingDataset

        self.sets = {path.name: StreamingDataset(f"{place}/{path.name}") for path in self.folder.iterdir()}

    def read(self, modality: Modality, number: int) -> Groups:
        """One sample."""
        row = self.sets[modality.name][number]
        return decode(row["data"], modality, row["layout"])


KINDS: tuple[type[Container], ...] = (Shards, ArrowReader, ParquetBlobs, ZarrShards, LitDataChunks)
