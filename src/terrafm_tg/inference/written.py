"""Products of a run: maps or a table, with previews, what describes them, and the reduction they share."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas as gpd
from rich.console import Console

from terrafm_tg.utils.progress import with_bar

from .preview import write_preview
from .products import (
    Reduction,
    write_card,
    write_cog,
    write_collection,
    write_item,
    write_table,
    write_table_item,
    write_zarr,
)
from .run import MapWork
from .table.rows import Rows

_ROWS = 1 << 14  # of a table at once
_WRITERS = {"cog": (write_cog, ".tif"), "zarr": (write_zarr, ".zarr")}


def write_maps(
    works: Sequence[MapWork], out: Path, kind: str, common: Mapping[str, Any], dtype: str, pca: int | Reduction | None,
    console: Console,
) -> list[Path]:  # fmt: skip
    """Writes the maps of a run, each whole or not at all; those whose STAC item is there are finished.

    Args:
        works: Finished maps.
        out: The file of a single one, or a folder.
        kind: ``cog`` or ``zarr``.
        common: What all are made of.
        dtype: Type of the stored numbers.
        pca: Principal components to keep, or an earlier reduction.
        console: To draw progress on.

    Returns:
        The maps, and the files that describe them.
    """
    reduction = Reduction.fit_maps([work.parts for work in works], dtype, pca)
    write, ending = _WRITERS[kind]
    folder, single = (out.parent, True) if out.suffix else (out, False)
    collection = None if single else out / "collection.json"
    paths, items = [], []
    for work in with_bar(works, f"Writing {kind}", shown=not console.quiet):
        name = out.stem if single else work.image.name
        path, item, preview = (folder / f"{name}{end}" for end in (ending, ".json", ".preview.tif"))
        if not item.is_file():
            write(work.parts, path, reduction)
            write_preview(work.preview, preview)
            write_item(work.parts, path, item, reduction, preview, collection)
        paths.append(path)
        items.append(item)
    return [*paths, *_described(items, folder, out, collection, common, reduction)]


def write_rows(rows: Rows, out: Path, common: Mapping[str, Any], dtype: str, pca: int | Reduction | None) -> list[Path]:
    """Writes the table of a run as GeoParquet; arguments as of :func:`write_maps`."""
    single = bool(out.suffix)
    folder, path = (out.parent, out) if single else (out, out / "embeddings.parquet")
    width = rows.values.shape[1] // len(rows.names)
    columns = ["embedding"] if len(rows.names) == 1 else [f"embedding_{name}" for name in rows.names]

    def frames() -> Iterator[gpd.GeoDataFrame]:
        for start in range(0, len(rows.frame), _ROWS):
            part = slice(start, start + _ROWS)
            vectors = {name: list(rows.values[part, i * width : (i + 1) * width]) for i, name in enumerate(columns)}
            yield rows.frame.iloc[part].assign(**vectors)

    reductions = write_table(frames(), path, common, dtype, pca)
    item, collection = path.with_suffix(".json"), None if single else out / "collection.json"
    write_table_item(path, item, common, reductions, collection)
    return [path, *_described([item], folder, out, collection, common, next(iter(reductions.values())))]


def _described(
    items: Sequence[Path], folder: Path, out: Path, collection: Path | None, common: Mapping[str, Any],
    reduction: Reduction,
) -> list[Path]:  # fmt: skip
    """Writes what belongs to all products: the PCA, and the model card and collection of a folder."""
    more = list(items)
    if reduction.components is not None:
        more.append(folder / (f"{out.stem}.pca.json" if collection is None else "pca.json"))
        reduction.save(more[-1])
    if collection is not None:  # last: with it the run is finished
        write_card(folder / "README.md", common, items)
        more += [folder / "README.md", *write_collection(items, collection, common)]
    return more
