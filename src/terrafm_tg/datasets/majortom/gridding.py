"""Own Sentinel scenes to Major-TOM's layout: a Parquet part per scene with a row per cell that it covers."""

import json
import os
import warnings
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from rich.table import Table
from shapely import box

from terrafm_tg.datasets.scenes.find import Scene, find_scenes
from terrafm_tg.datasets.scenes.rows import scene_rows
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.utils.files import whole_file
from terrafm_tg.utils.parallel import run_units

from .cell import FULL_SIZE
from .files import Row
from .rows import FOLDERS

#: Parts of own scenes begin so; their footer holds this key, with their rows of the metadata.
PREFIX, _KEY = "own_", b"terrafm"


def grid_scenes(
    scenes: str | os.PathLike[str],
    root: str | os.PathLike[str],
    min_valid: float = 0.9,
    radar_unit: str | None = None,
    baseline: str | None = None,
    cell_size: int = FULL_SIZE,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Cut scenes into Major-TOM's cells and add them to a Major-TOM root, or make one.

    A part, ``images/own_<scene>.parquet``, appears whole or not at all. Scenes whose part is there already, made
    from the same files with the same settings, are not read again. ``metadata.parquet`` is written last: rows that
    it has of other parts stay. Digital numbers stay as they are, offset included; the product's name tells it.

    Args:
        scenes: Folder with scenes; see :func:`~.scenes.find_scenes`.
        root: The Major-TOM root.
        min_valid: Least share of a cell's picture that a scene must cover; above 0.75 no quarter is empty.
        radar_unit: What radar scenes hold: ``"linear"`` power, ``"dB"`` or ``"amplitude"``.
        baseline: Processing baseline of Sentinel-2 scenes that do not name it, such as ``"N0509"``.
        cell_size: Pixels of 10 m across a cell's picture, a multiple of 12; Major-TOM's is 1068.
        workers: Processes; 0 for this one, None for one per core where there is much to do.
        scheduler: Address of a Dask cluster instead.
        progress: Show a bar.

    Returns:
        One row per scene: ``modality``, ``product``, ``cells``, ``bytes``, ``kept`` (was there already) and
        ``damage``, why it was left out. Scenes that cannot be read are named in a warning; the rest goes on.

    Raises:
        TerraFMError: If there is no scene, a setting is wrong, a scene's unit is another, or none can be read.
    """
    scenes, root = Path(scenes), Path(root)
    if not 0 < min_valid <= 1:
        raise TerraFMError(f"`min_valid` must be above 0 and at most 1, got {min_valid:g}.")
    if cell_size % 12 or not 24 <= cell_size <= FULL_SIZE:
        raise TerraFMError(f"`cell_size` must be a multiple of 12 from 24 to {FULL_SIZE}, got {cell_size}.")
    found = find_scenes(scenes, radar_unit, baseline)
    folders = {name: root / FOLDERS[name] for name in {scene.modality for scene in found}}
    for folder in folders.values():
        (folder / "images").mkdir(parents=True, exist_ok=True)
    work = partial(grid_scene, root=root, min_valid=min_valid, size=cell_size)
    results: list[dict[str, Any]] = [{}] * len(found)
    for i, result in run_units(
        work, found, workers=workers, scheduler=scheduler, title="Gridding scenes", progress=progress
    ):
        results[i] = result
    for name in sorted(folders):
        write_metadata(folders[name])
    if damage := [result["damage"] for result in results if result["damage"]]:
        message = f"{len(damage)} of {len(found)} scenes are left out, first: {damage[0]} Get them again."
        if len(damage) == len(found):
            raise TerraFMError(message)
        warnings.warn(message, stacklevel=2)
    return pd.DataFrame(results)


def summary_table(written: pd.DataFrame) -> Table:
    """What :func:`grid_scenes` returned, for people."""
    table = Table()
    for column in ("", "scenes", "cells", "GB", "there already", "damaged", "in no cell"):
        table.add_column(column, justify="right" if column else "left")
    for name in (name for name in MODALITIES if name in set(written.modality)):
        own = written[written.modality == name]
        damaged = own.damage.notna()
        empty = int(((own.cells == 0) & ~damaged).sum())
        numbers = (
            len(own),
            own.cells.sum(),
            f"{own.bytes.sum() / 1e9:.2f}",
            own.kept.sum(),
            damaged.sum(),
            empty,
        )
        table.add_row(MODALITIES[name].title, *(str(number) for number in numbers))
    return table


def grid_scene(scene: Scene, root: Path, min_valid: float, size: int) -> dict[str, Any]:
    """Write the part of one scene, unless it is there; its row of what :func:`grid_scenes` returns."""
    path = root / FOLDERS[scene.modality] / "images" / f"{PREFIX}{scene.product}.parquet"
    files = [[band, file.name, file.stat().st_size] for band, file in scene.files]
    made_of = {
        "files": files,
        "unit": scene.unit,
        "min_valid": min_valid,
        "size": size,
        "product": scene.product,
    }
    footer = _footer(path)
    kept = footer.get("made_of") == made_of
    rows, damage = footer.get("rows", []), None
    if not kept:
        try:
            rows = _write_part(path, scene_rows(scene, min_valid, size), made_of)
        except DamagedTileError as error:
            rows, damage = [], str(error)
    held = path.stat().st_size if rows else 0
    return {
        "modality": scene.modality,
        "product": scene.product,
        "cells": len(rows),
        "bytes": held,
        "kept": kept,
        "damage": damage,
    }


def write_metadata(folder: Path) -> None:
    """Write a product's ``metadata.parquet`` anew: rows of parts that are not ours as they are, then ours.

    Args:
        folder: Such as ``root/Core-S2L2A``.

    Raises:
        TerraFMError: If the one that is there cannot be read.
    """
    path = folder / "metadata.parquet"
    own = pd.DataFrame([row for part in _parts(folder) for row in _footer(part)["rows"]])
    before = _read_metadata(path)
    if len(own):
        outlines = [box(*bounds) for bounds in own.pop("box")]
        own["timestamp"] = pd.to_datetime(own["timestamp"]).astype("datetime64[us]")
        if "cloud_cover" in own:
            own["cloud_cover"] = own["cloud_cover"].astype(float)
        # only Sentinel-2's published tables have outlines
        if "orbit_state" not in own and (before is None or isinstance(before, gpd.GeoDataFrame)):
            own = gpd.GeoDataFrame(own, geometry=outlines, crs="EPSG:4326")
    if before is not None:
        others = ~before["parquet_url"].str.rsplit("/", n=1).str[-1].str.startswith(PREFIX)
        own = pd.concat([before[others], own], ignore_index=True) if others.any() and len(own) else own
        own = own if len(own) else before[others]
    if len(own) or before is not None:
        with whole_file(path, alone=True) as part:
            own.to_parquet(part, index=False)


def _read_metadata(path: Path) -> pd.DataFrame | None:
    if not path.is_file():
        return None
    try:
        outlines = b"geo" in (pq.read_schema(path).metadata or {})
        return gpd.read_parquet(path) if outlines else pd.read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): get it again, or remove it.") from error


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "images").glob(f"{PREFIX}*.parquet"))


def _footer(path: Path) -> dict[str, Any]:
    """What a part of ours says of itself; nothing where there is none."""
    if not path.is_file():
        return {}
    return json.loads((pq.read_metadata(path).metadata or {}).get(_KEY, b"{}"))


def _write_part(path: Path, rows: Iterator[Row], made_of: dict[str, Any]) -> list[dict[str, Any]]:
    """Write a part, one row per row group, and return its rows of the metadata; no file where there is no row."""
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        return []
    types = {name: pa.binary() if isinstance(v, bytes) else pa.string() for name, v in first.image.items()}
    schema, metadata = pa.schema(types.items()), []
    with (
        whole_file(path, alone=True) as part,
        pq.ParquetWriter(part, schema, compression="NONE", write_statistics=False) as file,
    ):
        for number, row in enumerate(chain([first], rows)):
            file.write_table(pa.Table.from_pylist([row.image], schema=schema))
            metadata.append(row.metadata | {"parquet_url": f"images/{path.name}", "parquet_row": number})
        file.add_key_value_metadata({_KEY: json.dumps({"made_of": made_of, "rows": metadata})})
    return metadata
