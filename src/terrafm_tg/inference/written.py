"""Products of a run: maps or a table, with previews, what describes them, and the reduction they share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
from rich.console import Console

from terrafm_tg.utils.progress import with_bar

from .preview import write_preview
from .products import Reduction, write_cog
from .products.parquet import write_table
from .run import MapWork
from .table.rows import Rows

_ROWS = 1 << 14  # of a table at once


def write_maps(
    works: Sequence[MapWork], out: Path, kind: str, common: Mapping[str, Any], dtype: str, pca: int | Reduction | None,
    console: Console,
) -> list[Path]:  # fmt: skip
    """Writes the maps of a run, each whole or not at all; those that are there stay.

    Args:
        works: Finished maps.
        out: The file of a single one, or a folder.
        kind: ``cog`` or ``zarr``.
        common: What all are made of.
        dtype: Type of the stored numbers.
        pca: Principal components to keep, or an earlier reduction.
        console: To draw progress on.

    Returns:
        What was written.
    """
    reduction = Reduction.fit_maps([work.parts for work in works], dtype, pca)
    paths = []
    for work in with_bar(works, f"Writing {kind}", shown=not console.quiet):
        path = out if out.suffix else out / f"{work.image.name}.tif"
        write_cog(work.parts, path, reduction)
        write_preview(work.preview, path.with_suffix(".preview.tif"))
        paths.append(path)
    return paths


def write_rows(rows: Rows, out: Path, common: Mapping[str, Any], dtype: str, pca: int | Reduction | None) -> list[Path]:
    """Writes the table of a run as GeoParquet; arguments as of :func:`write_maps`."""
    path = out if out.suffix else out / "embeddings.parquet"
    width = rows.values.shape[1] // len(rows.names)
    columns = ["embedding"] if len(rows.names) == 1 else [f"embedding_{name}" for name in rows.names]

    def frames() -> Iterator[gpd.GeoDataFrame]:
        for start in range(0, len(rows.frame), _ROWS):
            part = slice(start, start + _ROWS)
            vectors = {name: list(rows.values[part, i * width : (i + 1) * width]) for i, name in enumerate(columns)}
            yield rows.frame.iloc[part].assign(**vectors)

    write_table(frames(), path, common, dtype, pca)
    return [path]
