"""Runs a predictor over the windows of an image and writes the blended map part by part.

Each window is computed once: what it adds beyond its own part is carried to the next ones. The values of a part depend
on nothing but the image and the settings, so work that goes on after a kill ends in the same bytes. The next part is
read, and the last one written, while one is computed.
"""

import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from dataclasses import dataclass, field
from itertools import batched, groupby
from math import floor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terrafm_tg.errors import TerraFMError

from .images import Image
from .parts import MapParts
from .predictor import Predictor
from .windows import Window, WindowLayout

#: Told of each part's pixels before it is written: row and column of the part, and images by modality (C, h, w).
type Watch = Callable[[int, int, dict[str, NDArray[np.float32]]], object]
#: Pixels along each side of what is read and held at once, for few windows at a time and for many.
_PART, _LARGE, _FEW = 1024, 2048, 16
_LEAST = 0.25 - 1e-6  # of a value's pixels that lie in the image


@dataclass(frozen=True)
class WindowSettings:
    """Settings of the windows that images are run over by.

    Args:
        window: Edge of a window in pixels; 224 as in pretraining.
        overlap: Share of a window that the next one covers.
        stride: Pixels of a cell of the map; the predictor's cell where None.
        min_valid: Least share of a cell's pixels that a sensor must show to count there.
        max_damaged: Share of an image's parts that may be unreadable before the work stops.
    """

    window: int = 224
    overlap: float = 0.5
    stride: int | None = None
    min_valid: float = 0.5
    max_damaged: float = 0.1


@dataclass
class Spent:
    """Seconds spent, and the work done in them.

    Args:
        reading: Waiting for pixels.
        computing: In the predictor and blending.
        writing: Waiting for the disk.
        pixels: Of 10 m that were looked at.
        windows: That were computed.
        damaged: What could not be read, in words.
    """

    reading: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    pixels: int = 0
    windows: int = 0
    damaged: list[str] = field(default_factory=list)

    def add(self, other: "Spent") -> None:
        """Adds what another run spent."""
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)

    @property
    def bound(self) -> str:
        """Names the part that took longest."""
        spent = {"the model": self.computing, "reading": self.reading, "writing": self.writing}
        return max(spent, key=lambda name: spent[name])


class _Job(NamedTuple):
    """Windows that begin in a part; ``carry`` where only those that reach the row below are computed, for its sake."""

    row: int
    column: int
    windows: list[Window]
    carry: bool


class _Region(NamedTuple):
    """Pixels that the windows of a job show: where they begin, as they are, as they are prepared, and what is there."""

    top: int
    left: int
    images: dict[str, NDArray[np.float32]]
    prepared: dict[str, Tensor]
    valid: dict[str, Tensor]
    damage: list[str]


def layout_of(image: Image, predictor: Predictor, plan: WindowSettings) -> WindowLayout:
    """Lays windows over an image."""
    cell, stride = predictor.cell, plan.stride or predictor.cell
    step = cell * abs(image.transform.a)
    origin = floor(-image.transform.f / step + 1e-6), floor(image.transform.c / step + 1e-6)
    edge = _PART if predictor.batch_size <= _FEW else _LARGE
    return WindowLayout(image.shape, cell, stride, plan.window, plan.overlap, origin, max(edge, plan.window) // stride)


def predict_rows(
    image: Image,
    predictor: Predictor,
    layout: WindowLayout,
    parts: MapParts,
    plan: WindowSettings,
    rows: Sequence[int] | None = None,
    show: Callable[[int], object] = lambda pixels: None,
    watch: Watch | None = None,
) -> Spent:
    """Computes the parts of some rows that are not there yet.

    Args:
        image: The image.
        predictor: What is run.
        layout: From :func:`layout_of`.
        parts: Where parts are written.
        plan: The settings.
        rows: Rows of parts, one below the other; all where None.
        show: Told how many more pixels are done.
        watch: Given the pixels of each part.

    Raises:
        TerraFMError: If more of the image is damaged than the plan allows.
        RemoteError: If a server cannot be read.
    """
    down, across = parts.grid
    wanted = list(range(down) if rows is None else rows)
    todo = [row for row in wanted if not all(parts.has(row, column) for column in range(across))]
    jobs = _jobs(layout, parts, todo)
    show(sum(_area(layout, parts, row, column) for row in set(wanted) - set(todo) for column in range(across)))
    spent, flow = Spent(), _Sums(layout, parts, predictor.depth)

    def read(job: _Job) -> _Region:
        return _read(image, predictor, layout, parts, job)

    with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as writer:
        coming: Future[_Region] | None = None
        writing: Future[None] | None = None
        for number, job in enumerate(jobs):
            start = time.perf_counter()
            region = (coming or reader.submit(copy_context().run, read, job)).result()
            if number + 1 < len(jobs):
                coming = reader.submit(copy_context().run, read, jobs[number + 1])
            spent.reading += time.perf_counter() - start
            _tell(region.damage, spent, image, plan, down * across)
            start = time.perf_counter()
            sums, corner = flow.begin(job)
            spent.windows += _add(sums, corner, job.windows, region, predictor, layout, plan)
            values = flow.end(job, sums)
            spent.computing += time.perf_counter() - start
            if job.carry or parts.has(job.row, job.column):
                continue
            start = time.perf_counter()
            if writing is not None:
                writing.result()
            writing = writer.submit(_write, job, values, region, predictor, layout, parts, watch)
            spent.writing += time.perf_counter() - start
            spent.pixels += (area := _area(layout, parts, job.row, job.column))
            show(area)
        start = time.perf_counter()
        if writing is not None:
            writing.result()
        spent.writing += time.perf_counter() - start
    return spent


def _jobs(layout: WindowLayout, parts: MapParts, rows: Sequence[int]) -> list[_Job]:
    """Lists the work of some rows; before one whose upper neighbor is not among them, what that one adds to it."""
    jobs = []
    for row in rows:
        if row and row - 1 not in rows:
            border = parts.slices(row, 0)[0].start
            for column in range(parts.grid[1]):
                reaching = [w for w in layout.windows(row - 1, column) if layout.cells(w)[0].stop > border]
                jobs.append(_Job(row - 1, column, reaching, True))
        jobs += [_Job(row, column, layout.windows(row, column), False) for column in range(parts.grid[1])]
    return jobs


class _Sums:
    """Weighted sums of values, and of weights behind them; what reaches beyond a part waits for the next ones."""

    def __init__(self, layout: WindowLayout, parts: MapParts, depth: int) -> None:
        self.parts, self.reach, self.depth = parts, layout.reach, depth + 1
        self.row = -2  # above none
        self.above = self.below = np.zeros((self.reach, parts.width, self.depth), np.float32)
        self.right: NDArray[np.float32] | None = None

    def begin(self, job: _Job) -> tuple[NDArray[np.float32], tuple[int, int]]:
        """Returns the sums of a part and what lies right of and below it, with what came so far; and their corner."""
        rows, columns = self.parts.slices(job.row, job.column)
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        if job.column == 0:
            self.above = self.below if job.row == self.row + 1 else np.zeros_like(self.below)
            self.row, self.below, self.right = job.row, np.zeros_like(self.below), None
        sums = np.zeros((high + self.reach, wide + self.reach, self.depth), np.float32)
        sums[: self.reach, :wide] += self.above[:, columns]
        if self.right is not None:
            sums[:, : self.reach] += self.right
        return sums, (rows.start, columns.start)

    def end(self, job: _Job, sums: NDArray[np.float32]) -> NDArray[np.float32]:
        """Takes the sums with the part's windows added, and returns those of the part itself."""
        rows, columns = self.parts.slices(job.row, job.column)
        high, wide = rows.stop - rows.start, columns.stop - columns.start
        self.below[:, columns] = sums[high:, :wide]
        self.right = sums[:, wide:]
        return sums[:high, :wide]


def _read(image: Image, predictor: Predictor, layout: WindowLayout, parts: MapParts, job: _Job) -> _Region:
    """Reads and prepares what the windows of a job show, and its part."""
    shown = [layout.pixels(window) for window in job.windows]
    if not job.carry and not parts.has(job.row, job.column):
        shown.append(_pixels(layout, parts, job.row, job.column))
    if not shown:
        return _Region(0, 0, {}, {}, {}, [])
    rows, columns = (slice(min(s[i].start for s in shown), max(s[i].stop for s in shown)) for i in (0, 1))
    images, damage = image.read(rows, columns, predictor.names)
    valid = {name: torch.from_numpy(np.isfinite(x).any(axis=0)) for name, x in images.items()}
    prepared = predictor.prepare(images) if images else {}
    return _Region(rows.start, columns.start, images, prepared, valid, damage)


def _add(
    sums: NDArray[np.float32], corner: tuple[int, int], windows: Sequence[Window], region: _Region,
    predictor: Predictor, layout: WindowLayout, plan: WindowSettings,
) -> int:  # fmt: skip
    """Computes windows and adds them to sums; returns how many showed anything."""
    count = 0
    # Never of two rows of windows: the row above a part is computed for it again by itself, and to the same bits
    for _, line in groupby(windows, lambda window: (window.offset, window.row)):
        groups: dict[tuple[str, ...], list[tuple[Window, dict[str, Tensor], dict[str, Tensor]]]] = {}
        for window in line:
            images, present = _cut(window, region, layout, plan.min_valid)
            if images:
                groups.setdefault(tuple(images), []).append((window, images, present))
        for names, group in groups.items():
            for batch in batched(group, predictor.batch_size):
                pixels = {name: torch.stack([images[name] for _, images, _ in batch]) for name in names}
                present = {name: torch.stack([shown[name] for _, _, shown in batch]) for name in names}
                values = predictor.predict(pixels, present).cpu().numpy()
                some = torch.stack([*present.values()]).any(0).numpy()
                for (window, _, _), value, there in zip(batch, values, some, strict=True):
                    rows, columns = layout.cells(window)
                    place = (
                        slice(rows.start - corner[0], rows.stop - corner[0], rows.step),
                        slice(columns.start - corner[1], columns.stop - corner[1], columns.step),
                    )
                    weight = np.where(there, layout.weights(window), 0)[..., None]
                    sums[*place, :-1] += np.where(weight > 0, value * weight, 0)
                    sums[*place, -1:] += weight
                count += len(batch)
    return count


def _cut(
    window: Window, region: _Region, layout: WindowLayout, min_valid: float
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Cuts a window out of what was read: the modalities that show anything in it, and at which values.

    At the image's border a value is of the pixels that lie in the image, where these are a quarter at least.
    """
    rows, columns = layout.pixels(window)
    inside = [
        torch.arange(part.start, part.stop).ge(0).logical_and(torch.arange(part.start, part.stop) < size)
        for part, size in zip((rows, columns), layout.shape, strict=True)
    ]
    lines = [x.unflatten(0, (-1, layout.cell)).float().mean(1) for x in inside]
    share = lines[0][:, None] * lines[1]
    part = (
        slice(rows.start - region.top, rows.stop - region.top),
        slice(columns.start - region.left, columns.stop - region.left),
    )
    images, present = {}, {}
    for name, plane in region.valid.items():
        blocks = plane[part].unflatten(0, (-1, layout.cell)).unflatten(2, (-1, layout.cell))
        here = (blocks.float().mean((1, 3)) >= share * max(min_valid, 1e-9)) & (share >= _LEAST)
        if bool(here.any()):
            images[name], present[name] = region.prepared[name][:, *part], here
    return images, present


def _write(
    job: _Job, sums: NDArray[np.float32], region: _Region, predictor: Predictor, layout: WindowLayout, parts: MapParts,
    watch: Watch | None,
) -> None:  # fmt: skip
    """Divides sums by weights, and writes a part."""
    with np.errstate(invalid="ignore"):
        values = np.where(sums[..., -1:] > 0, sums[..., :-1] / sums[..., -1:], np.nan)
    if watch is not None:
        rows, columns = _pixels(layout, parts, job.row, job.column)
        top, left = rows.start - region.top, columns.start - region.left
        own = slice(top, top + rows.stop - rows.start), slice(left, left + columns.stop - columns.start)
        watch(job.row, job.column, {name: image[:, *own] for name, image in region.images.items()})
    parts.write(job.row, job.column, predictor.finish(values))


def _pixels(layout: WindowLayout, parts: MapParts, row: int, column: int) -> tuple[slice, slice]:
    """Returns the pixels that a part of the map lies over; the last may reach beyond the image."""
    rows, columns = parts.slices(row, column)
    n = layout.stride
    return slice(rows.start * n, rows.stop * n), slice(columns.start * n, columns.stop * n)


def _area(layout: WindowLayout, parts: MapParts, row: int, column: int) -> int:
    """Counts the pixels of the image that a part lies over."""
    return int(
        np.prod(
            [
                min(part.stop, size) - part.start
                for part, size in zip(_pixels(layout, parts, row, column), layout.shape, strict=True)
            ]
        )
    )


def _tell(damage: Sequence[str], spent: Spent, image: Image, plan: WindowSettings, count: int) -> None:
    """Counts what could not be read, says it once by name, and stops where it is too much."""
    for sentence in damage:
        if sentence not in spent.damaged:
            warnings.warn(f"A part of {image.name} is missing in the map: {sentence}", stacklevel=3)
        spent.damaged.append(sentence)
    if len(spent.damaged) > plan.max_damaged * count:
        raise TerraFMError(
            f"{len(spent.damaged):,} of {count:,} parts of {image.name} cannot be read (first: {spent.damaged[0]}): "
            "get the scene again, or allow more by `max_damaged`."
        )
