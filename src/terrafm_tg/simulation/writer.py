"""Rendered cells on disk: Major-TOM's Parquet files, written row by row."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from shapely import box

from terrafm_tg.datasets.majortom.images import ProductRow

#: A part is closed after the row that exceeds this; published parts hold about 5.3 GB.
PART_BYTES = 256 * 2**20


class ProductWriter:
    """Writes one product's ``images/part_00001.parquet`` ... and, on leaving, its ``metadata.parquet``.

    Every row is a row group of its own, so that one cell can be read with one range request.

    Args:
        folder: Of the product, such as ``root/Core-S2L2A``; must not exist.
        part_bytes: Size from which a new part is begun.
    """

    def __init__(self, folder: Path, part_bytes: int = PART_BYTES) -> None:
        self.folder = folder
        self.part_bytes = part_bytes
        self._metadata: list[dict[str, Any]] = []
        self._part: pq.ParquetWriter | None = None
        self._parts = self._rows = self._bytes = 0

    def __enter__(self) -> Self:
        (self.folder / "images").mkdir(parents=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close_part()
        if kind is None and self._metadata:
            self._write_metadata()

    def add(self, row: ProductRow) -> None:
        """Append one product."""
        if self._part is None:
            self._parts, self._rows, self._bytes = self._parts + 1, 0, 0
            types = {k: pa.binary() if isinstance(v, bytes) else pa.string() for k, v in row.image.items()}
            self._part = pq.ParquetWriter(
                self.folder / self._url, pa.schema(types.items()), compression="NONE", write_statistics=False
            )
        self._part.write_table(pa.Table.from_pylist([row.image], schema=self._part.schema))
        self._metadata.append(row.metadata | {"parquet_url": self._url, "parquet_row": self._rows})
        self._rows += 1
        self._bytes += sum(map(len, row.image.values()))
        if self._bytes > self.part_bytes:
            self._close_part()

    @property
    def _url(self) -> str:
        return f"images/part_{self._parts:05d}.parquet"

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()
            self._part = None

    def _write_metadata(self) -> None:
        """Sentinel-2's table has footprints (GeoParquet), Sentinel-1's has none, as published."""
        table = pd.DataFrame(self._metadata)
        table["timestamp"] = table["timestamp"].astype("datetime64[us]")
        footprints = [box(*bounds) for bounds in table.pop("box")]
        path = self.folder / "metadata.parquet"
        if "orbit_state" in table:
            table.to_parquet(path, index=False)
        else:
            gpd.GeoDataFrame(table, geometry=footprints, crs="EPSG:4326").to_parquet(path, index=False)
