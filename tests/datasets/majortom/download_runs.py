"""A small source of Major-TOM, and downloads from a server of it."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from datasets.range_server import RangeServer
from datasets.tiny_files import product, write_major_tom
from terrafm_tg.datasets.majortom.download import Selection, download
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.utils.remote import RemoteReader

#: Cells of zone 33 from west to east; the last has no radar.
CELLS = [f"520U_{column}R" for column in range(93, 100)]
CLOUD = dict(zip(CELLS, (0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0), strict=True))
BULK = {"s1rtc": 1500, "s2l1c": 2500, "s2l2a": 3500}  # bytes of thumbnails, which are not fetched
EXTRAS = {"thumbnail", "cloud_mask", "B10"}


def _row(modality: str, cell: str, **changes) -> dict:
    """A product with all columns of a published one."""
    made = product(modality, cell, cloud_cover=0.0 if modality == "s1rtc" else CLOUD[cell], **changes)
    bulk = np.random.default_rng(BULK[modality]).bytes(BULK[modality])
    more = {"product_datetime": "2021-05-01 10:10:31", "thumbnail": bulk}
    mask = {} if modality == "s1rtc" else {"cloud_mask": made["bands"]["B01"]}
    return made | {"bands": more | made["bands"] | mask}


def write_source(root: Path) -> Path:
    """Seven cells in four files per product, two rows each."""
    rows = {m: [_row(m, cell) for cell in CELLS[: 6 if m == "s1rtc" else 7]] for m in FOLDERS}
    write_major_tom(root, rows)
    for path in root.glob("*/images/*"):  # statistics of small pictures would hold them twice more
        pq.write_table(pq.read_table(path), path, row_group_size=1, write_statistics=False)
    return root


def fetch(server: RangeServer, root: Path, selection: Selection | None = None, **settings) -> pd.DataFrame:
    settings = {"connections": 4, "progress": False} | settings
    return download(root, selection or Selection(), source=server.url, **settings)


@contextmanager
def impatient(**settings) -> Iterator[None]:
    """Downloads within it make failed requests again at once, and by other settings of the reader."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("terrafm_tg.utils.remote._FIRST", 0.01)
        patch.setattr("terrafm_tg.datasets.majortom.download.run.RemoteReader", partial(RemoteReader, **settings))
        yield


def needed(source: Path, modality: str, name: str, groups: list[int]) -> tuple[set[int], int]:
    """The bytes of a file that hold the needed columns of some rows, as PyArrow says, and those of its footer."""
    metadata = pq.read_metadata(source / FOLDERS[modality] / "images" / name)
    found: set[int] = set()
    for group in groups:
        for i in range(metadata.num_columns):
            chunk = metadata.row_group(group).column(i)
            if chunk.path_in_schema not in EXTRAS:
                start = chunk.dictionary_page_offset or chunk.data_page_offset
                found.update(range(start, start + chunk.total_compressed_size))
    return found, metadata.serialized_size


def pictures(root: Path) -> dict[tuple[str, str], dict[str, bytes]]:
    """All columns of the rows that the tables below a root list, by modality and cell."""
    rows = {}
    for modality, folder in FOLDERS.items():
        if (root / folder / "metadata.parquet").is_file():
            for entry in pq.read_table(root / folder / "metadata.parquet").to_pylist():
                file = root / folder / "images" / entry["parquet_url"].rpartition("/")[2]
                row = pq.ParquetFile(file).read_row_group(entry["parquet_row"]).to_pylist()[0]
                assert row["grid_cell"] == entry["grid_cell"]
                rows[modality, entry["grid_cell"]] = row
    return rows


def files(root: Path) -> dict[str, bytes]:
    """Every file of the local copy, without what is kept of the source."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for folder in FOLDERS.values()
        for path in sorted((root / folder).rglob("*"))
        if path.is_file()
    }
