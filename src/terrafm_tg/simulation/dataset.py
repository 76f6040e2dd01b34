"""The simulated world: a made-up planet in the file formats of Major-TOM and ESA WorldCover.

It needs no download, and none of its pixels came from a satellite. It is there to try, to test and to
measure: a score on it says whether a method works at all, not how well it does on Earth.
"""

import json
import multiprocessing
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits
from torchgeo.datasets.utils import Sample

from terrafm_tg.datasets.index.build import build_index
from terrafm_tg.datasets.index.layers import SIMULATED
from terrafm_tg.datasets.majortom.dataset import MajorTOM
from terrafm_tg.datasets.majortom.grid import FULL_SIZE, GridCell
from terrafm_tg.datasets.majortom.images import ProductRow
from terrafm_tg.datasets.majortom.rows import FOLDERS
from terrafm_tg.datasets.tiles.index_file import NAME as INDEX
from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, checked
from terrafm_tg.utils.progress import with_bar

from .planet import Planet
from .writer import PART_BYTES, ProductWriter, WorldCoverWriter, encode_cell, write_climate, write_regions

_BEGUN = ".terrafm-simulate"  # in the folder of a world that is not complete
#: Changes when the same settings give other pixels than before.
VERSION = 4


@checked(cells=COUNT, seed=NOT_NEGATIVE, workers=NOT_NEGATIVE, part_bytes=COUNT)
def simulate(
    root: str | os.PathLike[str],
    cells: int = 700,
    cell_size: int = FULL_SIZE,
    seed: int = 0,
    workers: int | None = None,
    part_bytes: int = PART_BYTES,
    progress: bool = True,
) -> Path:
    """Writes a simulated world; does nothing where ``root`` holds the same one already.

    The files are written beside ``root`` and moved there as a whole, so that a root is complete or absent. A
    cell's pixels are a function of seed and cell: the number of cells and of workers does not change them.

    Args:
        root: The folder to make: ``Core-S1RTC``, ``Core-S2L1C``, ``Core-S2L2A``, ``WorldCover``,
            ``climate.tif``, ``regions.geojson`` and ``world.json``.
        cells: Number of grid cells, about 2 MB each at ``cell_size=264`` and 25 MB at full size.
        cell_size: Pixels of 10 m across a cell's picture, a multiple of 12. The published pictures have 1068;
            a smaller one shows the middle of its cell.
        seed: Seed of the planet.
        workers: Number of processes that render; 0 renders in this one. By default one per core.
        part_bytes: Size from which a new Parquet part is begun.
        progress: Show a bar.

    Returns:
        The root.

    Raises:
        TerraFMError: If a setting is impossible, or ``root`` holds something else.
    """
    root = Path(root)
    if cell_size % 12 or not 24 <= cell_size <= FULL_SIZE:
        raise TerraFMError(f"`cell_size` must be a multiple of 12 from 24 to {FULL_SIZE}, got {cell_size}.")
    settings = {"version": VERSION, "seed": seed, "cells": cells, "cell_size": cell_size}
    if _holds(root, settings):
        return root
    planet = Planet(seed)
    chosen = planet.cells(cells)
    beside = root.with_name(f"{root.name}.partial")
    if (beside / _BEGUN).is_file():  # by a run that was interrupted
        shutil.rmtree(beside)
    if os.path.lexists(beside) and not (beside.is_dir() and not any(beside.iterdir())):
        raise TerraFMError(f"{beside}, where the world is written first, is not of this command: name another `root`.")
    beside.mkdir(parents=True, exist_ok=True)
    (beside / _BEGUN).touch()
    worldcover = WorldCoverWriter(beside / "WorldCover")
    writers = {m: ProductWriter(beside / FOLDERS[m], part_bytes) for m in FOLDERS}
    encoded = zip(chosen, _encode(planet, chosen, cell_size, workers), strict=True)
    for cell, (codes, rows) in with_bar(encoded, "Simulating cells", cells, progress):
        worldcover.add(cell, codes)
        for modality, row in rows.items():
            writers[modality].add(row)
    for writer in writers.values():
        writer.close()
    worldcover.close()
    write_climate(beside / "climate.tif", planet)
    write_regions(beside / "regions.geojson")
    (beside / SIMULATED).write_text(json.dumps(settings, indent=2))
    if root.exists():
        root.rmdir()
    (beside / _BEGUN).unlink()
    os.replace(beside, root)
    return root


def read_settings(root: str | os.PathLike[str]) -> dict[str, int] | None:
    """Reads ``version``, ``seed``, ``cells`` and ``cell_size`` of the world in ``root``, None if there is none."""
    marker = Path(root) / SIMULATED
    try:
        found = json.loads(marker.read_text()) if marker.is_file() else None
    except ValueError:
        found = None
    return found if isinstance(found, dict) else None


def _holds(root: Path, settings: dict[str, int]) -> bool:
    """Tells if the root is that world already; refuses anything else that is not empty or absent."""
    found = read_settings(root)
    if found is not None and found != settings:
        differ = [f"{key} {found.get(key)}, not {value}" for key, value in settings.items() if found.get(key) != value]
        raise TerraFMError(f"{root} holds another simulated world ({'; '.join(differ)}): name another folder.")
    if found is None and root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise TerraFMError(f"{root} exists and is no simulated world: name a folder that is absent or empty.")
    return found is not None


def _encode(
    planet: Planet, cells: list[GridCell], size: int, workers: int | None
) -> Iterator[tuple[np.ndarray, dict[str, ProductRow]]]:
    """Yields the codes and products of the cells in their order, each rendered by one thread."""
    work = partial(encode_cell, planet, size)
    workers = min(multiprocessing.cpu_count() if workers is None else workers, len(cells))
    if workers < 1:
        with threadpool_limits(1):
            yield from map(work, cells)
        return
    with multiprocessing.Pool(workers, initializer=threadpool_limits, initargs=(1,)) as pool:
        yield from pool.imap(work, cells, chunksize=2)


@checked()
class SimulatedWorld(MajorTOM):
    """The simulated world as a dataset; it and its tile index are written first where they are missing.

    Args:
        root: The world's folder.
        modalities: ``"s1rtc"``, ``"s2l1c"``, ``"s2l2a"``, any of them; all where None.
        native: Return the stored pixels instead of float32 at 10 m.
        cells: Number of cells; where None, those that are there, or else 700.
        cell_size: Pixels across a cell's picture (a tile has half of them); where None, as they are, or else
            264.
        seed: Which planet; where None, the one that is there, or else 0.
        workers: Processes that render; one per core where None.
        transforms: Applied to each sample.
        **settings: Further arguments of :class:`~terrafm_tg.datasets.MajorTOM`.

    Raises:
        TerraFMError: If ``root`` holds something else, or a world with other settings than those given.
    """

    def __init__(
        self,
        root: str | os.PathLike[str] = "data/simulated",
        modalities: Sequence[str] | None = None,
        native: bool = False,
        cells: int | None = None,
        cell_size: int | None = None,
        seed: int | None = None,
        workers: int | None = None,
        transforms: Callable[[Sample], Sample] | None = None,
        **settings: Any,
    ) -> None:
        there = read_settings(root) or {"cells": 700, "cell_size": 264, "seed": 0}
        cells = there["cells"] if cells is None else cells
        cell_size = there["cell_size"] if cell_size is None else cell_size
        path = simulate(root, cells, cell_size, there["seed"] if seed is None else seed, workers)
        if not (path / INDEX).exists():
            build_index(path)
        super().__init__(path, modalities, native, cell_size // 2, transforms=transforms, **settings)
