"""Own Sentinel scenes to Major-TOM's layout: a Parquet part per scene with a row per cell that it covers."""

import json
import math
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
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
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds
from shapely import box

from terrafm_tg.datasets.scenes.fetched import judge_catalog
from terrafm_tg.datasets.scenes.judged import find_judged
from terrafm_tg.datasets.scenes.pixels import read_scene
from terrafm_tg.datasets.scenes.remote import reading_with, remote_file
from terrafm_tg.datasets.scenes.scene import Scene, files_to_columns
from terrafm_tg.datasets.scenes.stac.catalog import StacScenes, is_catalog, open_stac, sign_blob
from terrafm_tg.datasets.scenes.stac.search import StacSearch
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import UNKNOWN, Settings, Verdict, offsets_by_name
from terrafm_tg.utils.arguments import NOT_NEGATIVE, SOME_SHARE, checked
from terrafm_tg.utils.files import atomic_write, files_below
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.parquet import read_table
from terrafm_tg.utils.remote import RemoteReader
from terrafm_tg.utils.trust import zip_above

from .grid import FULL_SIZE, GridCell
from .images import ProductRow, geotiff, optical_thumbnail, product_row, radar_thumbnail
from .pictures import cells_under, cut_fetched, picture_grid, picture_needs
from .rows import FOLDERS

#: Parts of own scenes begin so; their footer holds this key, with their rows of the metadata.
PREFIX, _KEY = "own_", b"terrafm"
_EXTRA = 60  # meters of B10, the one band of a product that the encoder does not read


@checked(min_valid=SOME_SHARE, workers=NOT_NEGATIVE, max_gb=NOT_NEGATIVE)
def grid_scenes(
    scenes: str | os.PathLike[str] | StacScenes,
    root: str | os.PathLike[str],
    min_valid: float = 0.9,
    folders: Mapping[str, str] | None = None,
    bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    unit: str | Mapping[str, str] | None = None,
    scale: float | Mapping[str, float] | None = None,
    offset: int | str | Mapping[str, int | str] | None = None,
    nodata: float | Mapping[str, float] | None = None,
    mask_clouds: bool = False,
    search: StacSearch | None = None,
    max_gb: float | None = None,
    cell_size: int = FULL_SIZE,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Cuts scenes into Major-TOM's cells and adds them to a Major-TOM root, or makes one.

    Takes scenes as :class:`~terrafm_tg.datasets.SentinelFolder` does, with the same settings. A part,
    ``images/own_<scene>.parquet``, is written atomically. Scenes whose part is there already, made
    from the same files with the same settings, are not read again. ``metadata.parquet`` is written last: rows that
    it has of other parts stay. Digital numbers stay as they are where the product's name tells the offset that they
    hold; otherwise the offset is taken off, and the name says N0000.

    Args:
        scenes: Folder with scenes, at any depth; or a STAC item, item collection, catalog or API, by path, address or
            name (``planetary-computer``, ``earth-search``), or an open one.
        root: The Major-TOM root to write: a new folder, or one that gets further cells.
        min_valid: Least share of a cell's picture that a scene must cover; above 0.75 no quarter is empty.
        folders: Folder below ``scenes`` by modality; usual names are looked for where None.
        bands: Bands of files in their order, for all modalities or by modality.
        unit: ``"dB"``, ``"linear"`` or ``"amplitude"`` (radar), ``"DN"`` or ``"reflectance"`` (optics), for all or by
            modality; where None, as files and pixels tell.
        scale: Digital numbers, or radar's unit, per stored number, for all or by modality; likewise.
        offset: The +1000 DN of baseline 04.00 in optical files: 0, 1000 or ``"detect"``, for all or by modality.
        nodata: Stored value that is missing, for all or by modality, besides what files declare and usual ones.
        mask_clouds: Count pixels as missing that the product's own mask (SCL, QA60, ...) calls cloud or its shadow.
        search: Conditions for items of a STAC catalog; of a folder's scenes only its box holds.
        max_gb: The most that may be fetched from servers, in GB.
        cell_size: Pixels of 10 m across a cell's picture, a multiple of 12; Major-TOM's is 1068.
        workers: Number of processes; 0 works in this one. By default one per core where there is much to do and
            nothing is fetched.
        scheduler: Address of a Dask cluster, instead of local processes.
        progress: Show a bar.

    Returns:
        One row per scene: ``modality``, ``product``, ``cells``, ``bytes``, ``kept`` (was there already) and
        ``damage``, why it was left out. Scenes that cannot be read are named in a warning; the rest goes on.

    Raises:
        TerraFMError: If there is no scene, a setting is wrong, evidence contradicts itself, or none can be read.
    """
    root = Path(root)
    if cell_size % 12 or not 24 <= cell_size <= FULL_SIZE:
        raise TerraFMError(f"`cell_size` must be a multiple of 12 from 24 to {FULL_SIZE}, got {cell_size}.")
    settings = Settings(unit, scale, "detect" if offset is None else offset, nodata, bands)
    reader = RemoteReader(budget=math.inf if max_gb is None else max_gb * 1e9, sign=sign_blob)
    with reading_with(reader):
        base, found = _found(scenes, settings, folders, search, cell_size)
        works = [_work(base, scene, verdict) for scene, verdict in found]
        return _grid_works(works, base, root, min_valid, cell_size, mask_clouds, workers, scheduler, progress, reader)


def _found(
    scenes: str | os.PathLike[str] | StacScenes, settings: Settings, folders: Mapping[str, str] | None,
    search: StacSearch | None, size: int,
) -> tuple[Path, list[tuple[Scene, Verdict]]]:  # fmt: skip
    """Finds and judges the scenes of a catalog or below a folder, whose root is returned, too."""

    def middle(scene: Scene) -> tuple[float, ...] | None:
        """Returns the inner half of the picture in the middle of what is wanted: it will be read anyway."""
        cells = cells_under(scene)
        if not cells:
            return scene.wanted
        cell, part = cells[len(cells) // 2], size // 4
        quarter = picture_grid(cell, size) * Affine.translation(part, part)
        return transform_bounds(cell.epsg, 4326, *array_bounds(size - 2 * part, size - 2 * part, quarter))

    if not isinstance(scenes, StacScenes) and is_catalog(scenes):
        scenes = open_stac(scenes, search)
    if isinstance(scenes, StacScenes):
        return scenes.root or Path(), judge_catalog(scenes, settings, middle)
    bbox = None if search is None or search.bbox is None else tuple(search.bbox)
    if search is not None and search != replace(StacSearch(), bbox=search.bbox):
        raise TerraFMError(f"{scenes} is a folder, of which only `bbox` chooses a part: leave other conditions out.")
    root, judged = find_judged(Path(scenes), settings, folders)
    return root, [(replace(scene, wanted=bbox), verdict) for scene, verdict in judged]


def _grid_works(
    works: list[tuple[Scene, Verdict]], scenes: Path, root: Path, min_valid: float, cell_size: int, cloudy: bool,
    workers: int | None, scheduler: str | None, progress: bool, reader: RemoteReader,
) -> pd.DataFrame:  # fmt: skip
    """Writes the parts of scenes and the metadata; see :func:`grid_scenes`."""
    names = Counter((scene.modality, scene.product) for scene, _ in works)
    if twice := next((name for name, count in names.items() if count > 1), None):
        raise TerraFMError(f"{scenes} has {names[twice]} scenes named {twice[1]}: give each a name of its own.")
    folder_of = {name: root / FOLDERS[name] for name in {scene.modality for scene, _ in works}}
    for folder in folder_of.values():
        (folder / "images").mkdir(parents=True, exist_ok=True)
    work = partial(_grid_scene, scenes=scenes, root=root, min_valid=min_valid, size=cell_size, cloudy=cloudy)
    results: list[dict[str, Any]] = [{}] * len(works)
    remote = any("://" in file for scene, _ in works for file in scene.files)
    try:
        if remote and not workers and scheduler is None:
            needs = [
                None if work(one, look=True)["kept"] else picture_needs(one[0], cell_size, cloudy) for one in works
            ]
            done: Iterable[tuple[int, dict[str, Any]]] = cut_fetched(work, works, needs, reader, progress)
        else:
            work = partial(_fetch_alone, work) if remote else work
            done = run_units(
                work, works, workers=workers, scheduler=scheduler, title="Gridding scenes", progress=progress
            )
        for i, result in done:
            results[i] = result
    finally:  # a budget or a server may end it: what was cut is there
        for name in sorted(folder_of):
            _write_metadata(folder_of[name])
    if damage := [result["damage"] for result in results if result["damage"]]:
        message = f"{len(damage)} of {len(works)} scenes are left out, first: {damage[0]} Get them again."
        if len(damage) == len(works):
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


def _work(folder: Path, scene: Scene, verdict: Verdict) -> tuple[Scene, Verdict]:
    """Gives a scene the name that its row will have, which tells the offset that its numbers hold.

    Raises:
        TerraFMError: If it has no place or no date, or its offset is not known.
    """
    what = f"{folder / scene.files[0]}"
    if scene.transform is None or scene.time is None:
        lost = "place on the ground" if scene.transform is None else "date in its name, tags or metadata"
        raise TerraFMError(f"{what} has no {lost}, which Major-TOM's rows need: use the folder itself for pretraining.")
    if verdict.unit != "DN":
        return scene, verdict
    if verdict.offset == UNKNOWN:
        raise TerraFMError(
            f"Whether {what} holds the +1000 DN of baseline 04.00 is not known: set `offset` to 0 or 1000."
        )
    if offsets_by_name([scene.product])[0] == verdict.offset:
        return scene, verdict
    name = re.sub(r"_N\d{4}(?=_|$)", "_N0000", scene.product)
    if name == scene.product or not name.startswith("S2"):
        level, time = scene.modality[2:].upper(), scene.time.strftime("%Y%m%dT%H%M%S")
        name = f"S2_MSI{level}_{time}_N0000_{re.sub(r'[^A-Za-z0-9-]+', '_', scene.product)}"
    return replace(scene, product=name), verdict


def _fetch_alone(work: Callable[..., dict[str, Any]], one: tuple[Scene, Verdict]) -> dict[str, Any]:
    """Cuts a scene on a server in a process of its own."""
    with reading_with(RemoteReader(sign=sign_blob)):
        return work(one)


def _grid_scene(
    work: tuple[Scene, Verdict], scenes: Path, root: Path, min_valid: float, size: int, cloudy: bool, look: bool = False
) -> dict[str, Any]:
    """Writes the part of one scene, unless it is there; returns its row of what :func:`grid_scenes` returns."""
    scene, verdict = work
    path = root / FOLDERS[scene.modality] / "images" / f"{PREFIX}{scene.product}.parquet"
    files = [[name, *_identity(scenes, name)] for name in scene.files]
    settings = {"verdict": verdict.to_json(), "min_valid": min_valid, "size": size, "product": scene.product}
    made_of = {"files": files, **settings, "sources": files_to_columns(scene)[1]} | ({"cloudy": True} if cloudy else {})
    footer = _footer(path)
    kept = footer.get("made_of") == made_of
    rows, damage = footer.get("rows", []), None
    if not kept and not look:
        try:
            rows = _write_part(path, _scene_rows(scenes, scene, verdict, min_valid, size, cloudy), made_of)
        except DamagedTileError as error:
            rows, damage = [], str(error)
    written = {"cells": len(rows), "bytes": path.stat().st_size if rows else 0}
    return {"modality": scene.modality, "product": scene.product, **written, "kept": kept, "damage": damage}


def _identity(root: Path, name: str) -> tuple[int, int | str]:
    """Returns the size and the time of change, or version, of a scene's file; of a zipped one or a store, of that."""
    if "://" in name:
        return remote_file(name).said
    path = root / name
    held = (zip_above(path) or path).stat()
    return held.st_size, held.st_mtime_ns


def _scene_rows(
    root: Path, scene: Scene, verdict: Verdict, min_valid: float, size: int, cloudy: bool
) -> Iterator[ProductRow]:
    """Cuts a scene into rows, one per cell that it covers, from the south west.

    Raises:
        DamagedTileError: If a file of the scene cannot be read.
    """
    modality = MODALITIES[scene.modality]
    radar = modality.unit == "dB"
    native = {band: res for band, res in zip(modality.bands, modality.resolutions, strict=True) if band in scene.bands}
    first = min(native, key=lambda band: native[band])
    native |= {band: _EXTRA for band in modality.extra if band in scene.bands}
    keep = offsets_by_name([scene.product])[0] == verdict.offset

    def read(cell: GridCell, bands: list[str]) -> dict[str, np.ndarray]:
        pixels = dict[str, np.ndarray]()
        for res in {native[band] for band in bands}:
            transform, side = picture_grid(cell, size, res), size * 10 // res
            some, crs = [band for band in bands if native[band] == res], CRS.from_epsg(cell.epsg)
            shape = side, side
            planes = read_scene(root, scene, verdict, some, crs, transform, shape, harmonize=not keep, cloudy=cloudy)
            pixels |= dict(zip(some, planes, strict=True))
        return pixels

    try:
        for cell in cells_under(scene):
            pixels = read(cell, [first])
            valid = float((pixels[first] > 0).mean())
            if valid < min_valid:
                continue
            pixels |= read(cell, [band for band in native if band != first])
            tiffs = {}
            for band, res in sorted(native.items()):
                nodata = modality.nodata if radar else None
                name = band.lower() if radar else band
                tiffs[name] = geotiff(pixels[band], cell.epsg, picture_grid(cell, size, res), nodata)
            more: dict[str, Any] = (
                {"orbit_state": scene.orbit_state} if radar else {"cloud_cover": scene.cloud_cover}
            ) | {"nodata": 100 * (1 - valid)}
            thumbnail = _thumbnail(pixels, first, verdict.offset if keep else 0, radar)
            yield product_row(scene.product, pd.Timestamp(scene.time), cell, size, thumbnail, tiffs, more)
    except (RasterioError, ValueError, OSError) as error:
        if isinstance(error, DamagedTileError):
            raise
        raise DamagedTileError(f"{scene.product} {scene.modality}", str(error).rstrip(".")) from error


def _thumbnail(pixels: dict[str, np.ndarray], first: str, offset: int, radar: bool) -> bytes:
    """Draws a cell, in gray where bands of the usual picture are absent."""
    shown = [pixels.get(band, pixels[first]) for band in (("VV", "VH") if radar else ("B04", "B03", "B02"))]
    shown = [x if x.shape == pixels[first].shape else pixels[first] for x in shown]
    outside = pixels[first] <= 0
    if radar:
        return radar_thumbnail(shown[0], shown[1], outside)
    return optical_thumbnail(shown[0], shown[1], shown[2], offset, outside)


def _write_metadata(folder: Path) -> None:
    """Writes a product's ``metadata.parquet`` anew: rows of parts that are not ours as they are, then ours.

    Raises:
        TerraFMError: If the one that is there cannot be read.
    """
    path = folder / "metadata.parquet"
    parts = (p for p in files_below(folder / "images", ".parquet", deep=False) if p.name.startswith(PREFIX))
    own = pd.DataFrame([row for part in parts for row in _footer(part)["rows"]])
    try:
        held = read_table(path).schema.metadata or {} if path.is_file() else None  # none that is larger than it may be
        before = None if held is None else (gpd if b"geo" in held else pd).read_parquet(path)
    except (pa.ArrowException, OSError, ValueError) as error:
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
