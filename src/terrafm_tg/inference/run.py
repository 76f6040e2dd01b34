"""A run over images: what is unfinished, how it is shared out, and what becomes of it when all is there."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import batched
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.devices import describe_device
from terrafm_tg.utils.parallel import run_units
from terrafm_tg.utils.progress import count_units

from .engine import Spent, WindowSettings, layout_of, predict_rows
from .images import BEFORE, Image
from .parts import MapParts
from .predictor import Predictor, take_own_gpu
from .preview import preview_parts, watch_into

#: Rows of parts of a large image that a worker is given at once: the row above is looked at again for each.
_ROWS = 4


@dataclass(frozen=True)
class MapWork:
    """A map to be made.

    Args:
        image: Of what.
        parts: The map in the making.
        preview: A small picture of the image, made on the way.
    """

    image: Image
    parts: MapParts
    preview: MapParts

    @property
    def finished(self) -> bool:
        """Tells whether all is there."""
        return self.parts.finished() and self.preview.finished()


def plan_maps(
    images: Sequence[Image], predictor: Predictor, settings: WindowSettings, folder: Path,
    about: Callable[[Image], dict[str, Any]], depth: int | None = None, dtype: str = "float32",
) -> list[MapWork]:  # fmt: skip
    """Plans a map of each image.

    Args:
        images: The images.
        predictor: What is run.
        settings: Of the windows.
        folder: Where unfinished maps lie.
        about: Tells what a map is made of, for its metadata.
        depth: Values of a pixel that the map keeps; those of the predictor where None.
        dtype: Their type.
    """
    works = []
    for image in images:
        layout = layout_of(image, predictor, settings)
        height, width = layout.size
        transform = tuple(image.transform * image.transform.scale(layout.stride))[:6]
        parts = MapParts(
            folder / image.name, image.name, image.crs, transform, height, width,
            predictor.depth if depth is None else depth, layout.part, dtype, about(image),
        )  # fmt: skip
        works.append(MapWork(image, parts, preview_parts(image, parts, layout, folder / f"{image.name}.preview")))
    return works


def run_maps(
    works: Sequence[MapWork], predictor: Predictor, settings: WindowSettings, console: Console,
    workers: int | None = None, scheduler: str | None = None, title: str = "Embedding",
) -> Spent:  # fmt: skip
    """Computes what is not there yet of all maps.

    Args:
        works: From :func:`plan_maps`.
        predictor: What is run.
        settings: Of the windows.
        console: To draw progress on.
        workers: Processes of this machine; 0 or None for this one.
        scheduler: Address of a Dask cluster.
        title: Of the progress.

    Raises:
        TerraFMError: If an image cannot be read, or settings are others than those of the work that is there.
    """
    for work in works:
        work.parts.begin()
        work.preview.begin()
    left = [work for work in works if not work.finished]
    total = Spent()
    if not left:
        return total
    _estimate(left, predictor, settings, console)
    if workers or scheduler:
        units = [(work, rows) for work in left for rows in batched(range(work.parts.grid[0]), _ROWS)]
        run = partial(_run_unit, predictor=predictor, settings=settings)
        for _, spent in run_units(
            run, units, workers=workers, scheduler=scheduler, title=title, progress=not console.quiet,
            describe=lambda unit: unit[0].image.name,
        ):  # fmt: skip
            total.add(spent)
        return total
    area = sum(work.image.height * work.image.width for work in left) / 1e4
    with count_units(f"{title} (km²)", round(area, 2), console) as show:
        for work in left:
            show(now=work.image.name)
            total.add(_run(work, None, predictor, settings, lambda pixels: show(advance=round(pixels / 1e4, 4))))
    return total


def _run_unit(unit: tuple[MapWork, tuple[int, ...]], predictor: Any, settings: WindowSettings) -> Spent:
    """Computes rows of parts in a worker, on a GPU of its own where there are several."""
    take_own_gpu(predictor)
    return _run(unit[0], unit[1], predictor, settings, lambda pixels: None)


def _run(
    work: MapWork, rows: Sequence[int] | None, predictor: Predictor, settings: WindowSettings,
    show: Callable[[int], object],
) -> Spent:  # fmt: skip
    layout = layout_of(work.image, predictor, settings)
    watch = watch_into(work.preview)
    return predict_rows(work.image, predictor, layout, work.parts, settings, rows, show, watch)


def _estimate(works: Sequence[MapWork], predictor: Predictor, settings: WindowSettings, console: Console) -> None:
    """Says how much there is to do, and how long it takes, by a batch of windows that show nothing."""
    windows, area = 0, 0.0
    for work in works:
        layout = layout_of(work.image, predictor, settings)
        down, across = work.parts.grid
        todo = [(r, c) for r in range(down) for c in range(across) if not work.parts.has(r, c)]
        windows += sum(len(layout.windows(*place)) for place in todo)
        area += work.image.height * work.image.width / 1e4 * len(todo) / (down * across)
    names = [name for name in next(iter(works)).image.products if name in predictor.names]
    channels = {name: len(get_modality(name.removesuffix(BEFORE)).bands) for name in names}
    images = {name: np.full((channels[name], settings.window, settings.window), np.nan, np.float32) for name in names}
    seconds = 0.0
    if images:
        prepared = predictor.prepare(images)
        here = torch.ones(settings.window // predictor.cell, settings.window // predictor.cell, dtype=torch.bool)
        size = min(predictor.batch_size, max(windows // 40, 1))  # to warm up and to time it costs a twentieth at most
        batch = (
            {name: x.expand(size, *x.shape) for name, x in prepared.items()},
            {name: here.expand(size, *here.shape) for name in prepared},
        )
        predictor.predict(*batch)
        start = time.perf_counter()
        predictor.predict(*batch).cpu()
        seconds = (time.perf_counter() - start) / size * windows
    device = getattr(predictor, "device", None)
    console.print(
        f"{len(works):,} image{'s' * (len(works) != 1)}, {area:,.1f} km², {windows:,} windows; about "
        f"{_in_words(seconds)} on {describe_device(device) if device is not None else 'this machine'}",
        highlight=False,
    )


def _in_words(seconds: float) -> str:
    """Says a time in the unit that suits it."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
