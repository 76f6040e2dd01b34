"""Tables of vectors: a row per tile, or per point or polygon and image that shows it."""

import os
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import geopandas as gpd
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.console import Console

from terrafm_tg.errors import TerraFMError
from terrafm_tg.inference.engine import Spent, WindowSettings
from terrafm_tg.inference.images import Image
from terrafm_tg.inference.predictor import Encoder, take_own_gpu
from terrafm_tg.inference.products.footprints import tile_rows
from terrafm_tg.inference.use.places import read_places
from terrafm_tg.utils.files import atomic_write
from terrafm_tg.utils.parallel import run_units

from .places import PlaceWindow, embed_places, geometry_places, tile_places

_CHUNK = 64  # windows of a file of unfinished vectors


@dataclass(frozen=True)
class Rows:
    """A table in the making.

    Args:
        frame: All columns but the vectors; geometry in degrees.
        values: float32 (n, d), in the same order.
        names: Names of the vectors that lie one behind the other in a row: ``class``, ``mean``.
    """

    frame: gpd.GeoDataFrame
    values: NDArray[np.float32]
    names: tuple[str, ...]


def embed_table(
    images: Sequence[Image], encoder: Encoder, settings: WindowSettings,
    points: str | os.PathLike[str] | gpd.GeoDataFrame | None, pooling: str, folder: Path, console: Console,
    workers: int | None = None, scheduler: str | None = None, run: str = "",
) -> tuple[Rows, Spent]:  # fmt: skip
    """Computes the vectors of all tiles, or of places, and their rows.

    Args:
        images: The images.
        encoder: The model.
        settings: Of the windows.
        points: Places; tiles where None.
        pooling: ``class``, ``mean`` or ``both``.
        folder: Of unfinished work.
        console: To draw progress on.
        workers: Processes of this machine; 0 or None for this one.
        scheduler: Address of a Dask cluster.
        run: Name of the run: what another one left in the folder is not used.

    Raises:
        TerraFMError: If no image shows any of the places, or too much is damaged.
    """
    model = encoder.about()["model"]
    frame, jobs = (
        _tiles(images, settings.window, model) if points is None else _places(images, points, settings.window, model)
    )
    units = [(folder / f"{run}_{number:06d}.npz", chunk) for number, chunk in enumerate(_chunks(jobs))]
    left = [unit for unit in units if not unit[0].is_file()]
    work = partial(_unit, encoder=encoder, pooling=pooling, min_valid=settings.min_valid)
    spent, what = Spent(), "tiles" if points is None else "places"
    for _, one in run_units(
        work, left, workers=None if scheduler else workers or 0, scheduler=scheduler, progress=not console.quiet,
        title=f"Embedding {len(frame):,} {what}, {_CHUNK} at once",
    ):  # fmt: skip
        if one.damaged and not spent.damaged:
            warnings.warn(f"A window is left out: {one.damaged[0]}", stacklevel=3)
        spent.add(one)
        if len(spent.damaged) > settings.max_damaged * len(jobs):
            raise TerraFMError(
                f"{len(spent.damaged):,} of {len(jobs):,} windows cannot be read, first: {spent.damaged[0]} Get the "
                "images again, or allow more by `max_damaged`."
            )
    parts = [np.load(path, allow_pickle=False) for path, _ in units]
    rows = np.concatenate([part["rows"] for part in parts])
    if not len(rows):
        raise TerraFMError("No image shows anything of them: nothing is written.")
    if lost := len(frame) - len(rows):
        warnings.warn(f"{lost:,} of {len(frame):,} {what} show nothing (no data), and have no row.", stacklevel=3)
    values = np.concatenate([part["values"] for part in parts if len(part["rows"])])
    found = frame.iloc[rows].assign(
        sensors=np.concatenate([part["sensors"] for part in parts]),
        valid_share=np.concatenate([part["valid"] for part in parts]),
        cloud_share=np.concatenate([part["clouds"] for part in parts]),
    )
    names = ("class", "mean") if pooling == "both" else (pooling,)
    return Rows(found.reset_index(drop=True), values, names), spent


def _unit(
    unit: tuple[Path, list[tuple[Image, PlaceWindow]]], encoder: Encoder, pooling: str, min_valid: float
) -> Spent:
    """Computes the vectors of some windows and writes them."""
    path, jobs = unit
    take_own_gpu(encoder)
    spent = Spent()
    found = embed_places(jobs, encoder, pooling, min_valid, spent)
    start = time.perf_counter()
    shares: dict[int, list[float]] = {}
    for image, place in jobs:
        rows, columns = slice(place.top, place.top + place.height), slice(place.left, place.left + place.width)
        if (share := image.clouds(rows, columns)) is not None:
            shares.setdefault(place.row, []).append(share)
    clouds = [float(np.mean(shares[row])) if row in shares else np.nan for row in found.rows.tolist()]
    with atomic_write(path, sole_writer=True) as temporary, temporary.open("wb") as file:
        np.savez(
            file, rows=found.rows, values=found.values, sensors=np.array(found.sensors, str), valid=found.valid,
            clouds=np.array(clouds, np.float32),
        )  # fmt: skip
    spent.writing += time.perf_counter() - start
    return spent


def _chunks(jobs: Sequence[tuple[Image, PlaceWindow]]) -> Iterator[list[tuple[Image, PlaceWindow]]]:
    """Cuts windows into chunks, between rows."""
    chunk: list[tuple[Image, PlaceWindow]] = []
    for job in jobs:
        if len(chunk) >= _CHUNK and job[1].row != chunk[-1][1].row:
            yield chunk
            chunk = []
        chunk.append(job)
    if chunk:
        yield chunk


def _tiles(images: Sequence[Image], size: int, model: str) -> tuple[gpd.GeoDataFrame, list[tuple[Image, PlaceWindow]]]:
    """Lays tiles over all images."""
    frames, jobs = [], list[tuple[Image, PlaceWindow]]()
    for image in images:
        places = tile_places(image, size)
        frames.append(_frame(image, places, model))
        start = len(jobs)
        jobs += [(image, place._replace(row=start + place.row)) for place in places]
    return pd.concat(frames, ignore_index=True), jobs


def _places(
    images: Sequence[Image], points: str | os.PathLike[str] | gpd.GeoDataFrame, size: int, model: str
) -> tuple[gpd.GeoDataFrame, list[tuple[Image, PlaceWindow]]]:
    """Lays windows over points and polygons in all images that show them."""
    given = points if isinstance(points, gpd.GeoDataFrame) else read_places(Path(points))
    given = given.reset_index(drop=True)
    frames, jobs, start, seen = [], list[tuple[Image, PlaceWindow]](), 0, set[int]()
    for image in images:
        places = geometry_places(image, given.geometry.to_crs(image.crs), size)
        shown = list(dict.fromkeys(place.row for place in places))
        if not shown:
            continue
        seen.update(shown)
        numbers = {row: start + i for i, row in enumerate(shown)}
        first = {place.row: place for place in reversed(places)}
        own = given.iloc[shown].reset_index(drop=True)
        frame = _frame(image, [first[row] for row in shown], model).set_geometry(own.geometry.to_crs(4326))
        others = [name for name in own if name != own.geometry.name and name not in frame]
        frames.append(frame.join(own[others]).assign(place=shown))
        jobs += [(image, place._replace(row=numbers[place.row])) for place in places]
        start += len(shown)
    if not frames:
        raise TerraFMError(
            f"None of {len(given):,} places lies in an image: check their coordinates (longitude first)."
        )
    if unseen := len(given) - len(seen):
        warnings.warn(f"{unseen:,} of {len(given):,} places lie in no image.", stacklevel=4)
    return pd.concat(frames, ignore_index=True), jobs


def _frame(image: Image, places: Sequence[PlaceWindow], model: str) -> gpd.GeoDataFrame:
    """Makes the columns of an image's rows: Major-TOM's, and those of its sensors."""
    boxes = [(p.left, p.top, min(p.left + p.width, image.width), min(p.top + p.height, image.height)) for p in places]
    dates = {name: min(times) if times else None for name, times in image.dates.items()}
    optical = next((name for name in ("s2l2a", "s2l1c", "s1rtc") if name in image.products), "")
    when = dates.get(optical) or next(filter(None, dates.values()), None)
    epsg = int(image.crs.partition(":")[2])
    frame = tile_rows(epsg, image.transform, boxes, image.products[optical][0], when or "NaT", model)
    own = {f"date_{name}": pd.to_datetime(dates.get(name), utc=True) for name in image.products}
    own |= {f"product_{name}": "; ".join(names) for name, names in image.products.items()}
    return frame.assign(image=image.name, cloud_cover=image.cloud, **own)
