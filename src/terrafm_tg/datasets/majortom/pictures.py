"""Pictures of cells that scenes show: which, on what grid, and the bytes on servers that they need."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import array_bounds
from rasterio.warp import transform_bounds
from rich.console import Console

from terrafm_tg.datasets.scenes.fetched import needed_spans
from terrafm_tg.datasets.scenes.scene import Scene
from terrafm_tg.datasets.scenes.stac.search import boxes_meet
from terrafm_tg.errors import TerraFMError
from terrafm_tg.radiometry import Verdict
from terrafm_tg.utils.progress import count_units
from terrafm_tg.utils.remote import OF_THE_FILE, RemoteReader
from terrafm_tg.utils.remote_file import RemoteFile, Span, fetch_together

from . import grid
from .grid import FULL_SIZE, GridCell

#: Meters that a picture's corner is a multiple of.
STEP = 20.0
#: A scene and the meaning of its numbers.
Work = tuple[Scene, Verdict]
#: Files on servers and the bytes of them that a scene's pictures need.
Needs = list[tuple[RemoteFile, list[Span]]]


def cells_under(scene: Scene) -> list[GridCell]:
    """Lists the cells that the box around a scene, and what is wanted of it, meet, each once, from the south west."""
    assert scene.transform is not None
    bounds = array_bounds(scene.height, scene.width, scene.transform)
    cells = grid.cells_over(*transform_bounds(scene.epsg, 4326, *bounds, densify_pts=21))
    if scene.wanted is None:
        return cells
    corners = {
        cell: list(zip(*cell.lonlat(FULL_SIZE, [(0, 0), (0, 1), (1, 0), (1, 1)]), strict=True)) for cell in cells
    }
    boxes = {cell: (min(lons), min(lats), max(lons), max(lats)) for cell, (lons, lats) in corners.items()}
    return [cell for cell in cells if boxes_meet(boxes[cell], list(scene.wanted))]


def picture_grid(cell: GridCell, size: int, meters: int = 10) -> Affine:
    """The grid of a cell's picture: Major-TOM's, its corner moved to the nearest multiple of 20 m.

    So Sentinel-2's pixels of 10 and 20 m, which end on such multiples in each zone, and radar on the same raster are
    copied as they are, at most 10 m from where Major-TOM cuts. Major-TOM's own corners lie between pixels.
    """
    exact = cell.transform(size)
    return Affine(meters, 0.0, round(exact.c / STEP) * STEP, 0.0, -meters, round(exact.f / STEP) * STEP)


def picture_needs(scene: Scene, size: int, cloudy: bool) -> Needs:
    """Finds the bytes on servers that the pictures of a scene need."""
    cells = cells_under(scene)
    boxes = [(CRS.from_epsg(c.epsg), array_bounds(size, size, picture_grid(c, size))) for c in cells]
    return needed_spans(scene, scene.masks if cloudy else (), boxes)


def cut_fetched(
    work: Callable[..., dict[str, Any]], works: Sequence[Work],
    needs: Sequence[Needs | None], reader: RemoteReader, progress: bool,
) -> Iterator[tuple[int, dict[str, Any]]]:  # fmt: skip
    """Cuts scenes on servers one after the other, the bytes of the next coming meanwhile.

    Raises:
        TerraFMError: If they do not fit the budget, or a server cannot be read.
    """
    console = Console(stderr=True, quiet=not progress)
    todo = sum(b - a for need in needs for file, spans in need or () for a, b in file.missing(spans))
    where = sorted({urlsplit(file.url).netloc for need in needs for file, _ in need or ()})
    if where:
        count = sum(need is not None for need in needs)
        console.print(f"{count:,} scenes, {todo / 1e9:,.3f} GB to fetch from {', '.join(where)}", highlight=False)
    if todo > reader.budget - reader.came:
        raise TerraFMError(
            f"The scenes need {todo / 1e9:,.3f} GB more, and `max_gb` is {reader.budget / 1e9:g}, of which "
            f"{reader.came / 1e9:,.3f} came already: choose a smaller box, fewer dates, or raise it."
        )
    with count_units("Fetching", todo, console, in_bytes=True) as show, ThreadPoolExecutor(1) as ahead:

        def begin(place: int) -> Future[None]:
            return ahead.submit(fetch_together, needs[place] or (), 16, lambda count: show(advance=count))

        coming = begin(0)
        for place, one in enumerate(works):
            with suppress(*OF_THE_FILE):  # said when it is read
                coming.result()
            if place + 1 < len(works):
                coming = begin(place + 1)
            yield place, work(one)
            for file, _ in needs[place] or ():
                file.forget()
