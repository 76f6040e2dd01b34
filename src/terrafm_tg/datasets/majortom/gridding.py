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
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import RasterioError
from rasterio.warp import transform_bounds
from shapely import box

from terrafm_tg.datasets.scenes.find import NamedScene, find_scenes
from terrafm_tg.datasets.scenes.pixels import read_band
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import OFFSET, offsets_by_name
from terrafm_tg.utils.arguments import NOT_NEGATIVE, SOME_SHARE, checked
from terrafm_tg.utils.files import atomic_write, files_below
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.trust import open_image

from . import grid
from .grid import FULL_SIZE, GridCell
from .images import ProductRow, geotiff, optical_thumbnail, product_row, radar_thumbnail
from .rows import FOLDERS

#: Parts of own scenes begin so; their footer holds this key, with their rows of the metadata.
PREFIX, _KEY = "own_", b"terrafm"
#: Meters that a picture's corner is a multiple of.
STEP = 20.0
_EXTRA = 60  # meters of B10, the one band of a product that the encoder does not read


@checked(min_valid=SOME_SHARE, workers=NOT_NEGATIVE)
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
    """Cuts scenes into Major-TOM's cells and adds them to a Major-TOM root, or makes one.

    A part, ``images/own_<scene>.parquet``, is written atomically. Scenes whose part is there already, made
    from the same files with the same settings, are not read again. ``metadata.parquet`` is written last: rows that
    it has of other parts stay. Digital numbers stay as they are, offset included; the product's name tells it.

    Args:
        scenes: Folder with scenes, at any depth.
        root: The Major-TOM root.
        min_valid: Least share of a cell's picture that a scene must cover; above 0.75 no quarter is empty.
        radar_unit: Unit of radar scenes: ``"linear"`` power, ``"dB"`` or ``"amplitude"``.
        baseline: Processing baseline of Sentinel-2 scenes that do not name it, such as ``"N0509"``.
        cell_size: Pixels of 10 m across a cell's picture, a multiple of 12; Major-TOM's is 1068.
        workers: Number of processes; 0 works in this one. By default one per core where there is much to do.
        scheduler: Address of a Dask cluster, instead of local processes.
        progress: Show a bar.

    Returns:
        One row per scene: ``modality``, ``product``, ``cells``, ``bytes``, ``kept`` (was there already) and
        ``damage``, why it was left out. Scenes that cannot be read are named in a warning; the rest goes on.

    Raises:
        TerraFMError: If there is no scene, a setting is wrong, a scene's unit is another, or none can be read.
    """
    scenes, root = Path(scenes), Path(root)
    if cell_size % 12 or not 24 <= cell_size <= FULL_SIZE:
        raise TerraFMError(f"`cell_size` must be a multiple of 12 from 24 to {FULL_SIZE}, got {cell_size}.")
    found = find_scenes(scenes, radar_unit, baseline)
    folders = {name: root / FOLDERS[name] for name in {scene.modality for scene in found}}
    for folder in folders.values():
        (folder / "images").mkdir(parents=True, exist_ok=True)
    work = partial(_grid_scene, root=root, min_valid=min_valid, size=cell_size)
    results: list[dict[str, Any]] = [{}] * len(found)
    for i, result in run_units(
        work, found, workers=workers, scheduler=scheduler, title="Gridding scenes", progress=progress
    ):
        results[i] = result
    for name in sorted(folders):
        _write_metadata(folders[name])
    if damage := [result["damage"] for result in results if result["damage"]]:
        message = f"{len(damage)} of {len(found)} scenes are left out, first: {damage[0]} Get them again."
        if len(damage) == len(found):
            raise TerraFMError(message)
        warnings.warn(message, stacklevel=2)
    return pd.DataFrame(results)


def gridding_summary(written: pd.DataFrame) -> str:
    """Sums up what :func:`grid_scenes` returned, as a table for people."""
    damaged = written.damage.notna()
    counts = {"scenes": 1, "cells": written.cells, "GB": written.bytes / 1e9, "there already": written.kept}
    counts |= {"damaged": damaged, "in no cell": (written.cells == 0) & ~damaged}
    titles = written.modality.map({name: modality.title for name, modality in MODALITIES.items()})
    table = pd.DataFrame(counts, written.index).groupby(titles, sort=False).sum()
    return table.rename_axis(None).to_string(float_format="%.2f")


def _grid_scene(scene: NamedScene, root: Path, min_valid: float, size: int) -> dict[str, Any]:
    """Writes the part of one scene, unless it is there; returns its row of what :func:`grid_scenes` returns."""
    path = root / FOLDERS[scene.modality] / "images" / f"{PREFIX}{scene.product}.parquet"
    files = [[band, file.name, file.stat().st_size] for band, file in scene.files]
    settings = {"unit": scene.unit, "min_valid": min_valid, "size": size, "product": scene.product}
    made_of = {"files": files, **settings}
    footer = _footer(path)
    kept = footer.get("made_of") == made_of
    rows, damage = footer.get("rows", []), None
    if not kept:
        try:
            rows = _write_part(path, _scene_rows(scene, min_valid, size), made_of)
        except DamagedTileError as error:
            rows, damage = [], str(error)
    written = {"cells": len(rows), "bytes": path.stat().st_size if rows else 0}
    return {"modality": scene.modality, "product": scene.product, **written, "kept": kept, "damage": damage}


def _scene_rows(scene: NamedScene, min_valid: float, size: int) -> Iterator[ProductRow]:
    """Cuts a scene into rows, one per cell that it covers, from the south west.

    Raises:
        DamagedTileError: If a file of the scene cannot be read.
        TerraFMError: If it is not geocoded, or its pixels are not of its unit.
    """
    modality, files = MODALITIES[scene.modality], dict(scene.files)
    radar, first = scene.unit != "DN", modality.native[10][0]
    native = dict(zip(modality.bands, modality.resolutions, strict=True))
    native |= {band: _EXTRA for band in modality.extra if band in files}

    def read(cell: GridCell, band: str) -> np.ndarray:
        transform, side = picture_grid(cell, size, native[band]), size * 10 // native[band]
        return read_band(files[band], modality, scene.unit, CRS.from_epsg(cell.epsg), transform, side)

    try:
        for cell in cells_under(files[first]):
            pixels = {first: read(cell, first)}
            valid = float((pixels[first] > 0).mean())
            if valid < min_valid:
                continue
            pixels |= {band: read(cell, band) for band in native if band != first}
            tiffs = {}
            for band, res in sorted(native.items()):
                nodata = modality.nodata if radar else None
                name = band.lower() if radar else band
                tiffs[name] = geotiff(pixels[band], cell.epsg, picture_grid(cell, size, res), nodata)
            more: dict[str, float | None] = {"orbit_state": None} if radar else {"cloud_cover": scene.cloud_cover}
            more["nodata"] = 100 * (1 - valid)
            thumbnail = _thumbnail(scene, pixels)
            yield product_row(scene.product, scene.time, cell, size, thumbnail, tiffs, more)
    except RasterioError as error:
        raise DamagedTileError(f"{scene.product} {scene.modality}", str(error).rstrip(".")) from error


def _thumbnail(scene: NamedScene, pixels: dict[str, np.ndarray]) -> bytes:
    if scene.unit != "DN":
        return radar_thumbnail(pixels["VV"], pixels["VH"], pixels["VV"] <= 0)
    offset = OFFSET if offsets_by_name(pd.Series([scene.product]))[0] else 0
    return optical_thumbnail(pixels["B04"], pixels["B03"], pixels["B02"], offset, pixels["B02"] == 0)


def cells_under(path: Path) -> list[GridCell]:
    """Lists the cells that the box around a file in latitude and longitude meets, each once, from the south west."""
    with open_image(path) as src:
        if src.crs is None or src.transform.is_identity:
            raise TerraFMError(
                f"{path} is not geocoded (radar in slant or ground range): correct it for terrain first, such as with "
                "ASF HyP3 or SNAP."
            )
        west, south, east, north = transform_bounds(src.crs, 4326, *src.bounds, densify_pts=21)
    return grid.cells_over(west, south, east, north)


def picture_grid(cell: GridCell, size: int, meters: int = 10) -> Affine:
    """The grid of a cell's picture: Major-TOM's, its corner moved to the nearest multiple of 20 m.

    So Sentinel-2's pixels of 10 and 20 m, which end on such multiples in each zone, and radar on the same raster are
    copied as they are, at most 10 m from where Major-TOM cuts. Major-TOM's own corners lie between pixels.
    """
    exact = cell.transform(size)
    return Affine(meters, 0.0, round(exact.c / STEP) * STEP, 0.0, -meters, round(exact.f / STEP) * STEP)


def _write_metadata(folder: Path) -> None:
    """Writes a product's ``metadata.parquet`` anew: rows of parts that are not ours as they are, then ours.

    Raises:
        TerraFMError: If the one that is there cannot be read.
    """
    path = folder / "metadata.parquet"
    parts = (p for p in files_below(folder / "images", ".parquet", deep=False) if p.name.startswith(PREFIX))
    own = pd.DataFrame([row for part in parts for row in _footer(part)["rows"]])
    try:
        held = pq.read_schema(path).metadata or {} if path.is_file() else None
        before = None if held is None else (gpd if b"geo" in held else pd).read_parquet(path)
    except (pa.ArrowException, OSError) as error:
        raise TerraFMError(f"{path} cannot be read ({error}): get it again, or move it away.") from error
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
        with atomic_write(path, sole_writer=True) as part:
            own.to_parquet(part, index=False)


def _footer(path: Path) -> dict[str, Any]:
    """The settings and rows that a part of ours names; empty where there is none."""
    if not path.is_file():
        return {}
    return json.loads((pq.read_metadata(path).metadata or {}).get(_KEY, b"{}"))


def _write_part(path: Path, rows: Iterator[ProductRow], made_of: dict[str, Any]) -> list[dict[str, Any]]:
    """Writes a part, one row per row group, and returns its rows of the metadata; no file where there is no row."""
    first = next(rows, None)
    if first is None:
        path.unlink(missing_ok=True)
        return []
    types = {name: pa.binary() if isinstance(v, bytes) else pa.string() for name, v in first.image.items()}
    schema, metadata = pa.schema(types.items()), list[dict[str, Any]]()
    with (
        atomic_write(path, sole_writer=True) as part,
        pq.ParquetWriter(part, schema, compression="NONE", write_statistics=False) as file,
    ):
        for number, row in enumerate(chain([first], rows)):
            file.write_table(pa.Table.from_pylist([row.image], schema=schema))
            place = {"parquet_url": f"images/{path.name}", "parquet_row": number}
            metadata.append(row.metadata | {"timestamp": row.metadata["timestamp"].isoformat()} | place)
        file.add_key_value_metadata({_KEY: json.dumps({"made_of": made_of, "rows": metadata})})
    return metadata
