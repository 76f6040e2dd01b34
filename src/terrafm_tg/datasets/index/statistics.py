"""Mean and standard deviation of each band over the tiles of an archive, counted once and robust to outliers.

Pixels are counted by value: digital numbers as they are, radar by hundredths of a decibel. So any share of outliers can
be cut off afterwards, and counts of parts of the work add up exactly.
"""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from terrafm_tg.datasets.source import open_tiles
from terrafm_tg.datasets.store.plan import select_tiles
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import NODATA, STEPS, quantize
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, checked
from terrafm_tg.utils.files import atomic_write, write_json
from terrafm_tg.utils.parallel import run_units

#: The file below a root, next to its index.
STATISTICS = "statistics.json"
_VALUES = 1 << 16  # of a band; the first one stands for a missing pixel in each unit
_UNIT = 64  # tiles of a unit of work
_FEW = 100  # pixels of a band that tell nothing


def count_values(tiles: TileDataset) -> dict[str, NDArray[np.uint32]]:
    """Counts the values of all pixels of some tiles.

    Returns:
        (C, 65536) by modality, bands in stem order: digital numbers, or hundredths of a decibel from -327.68 on; and
        under ``damaged`` the number of images that cannot be read, (1,).
    """
    counts: dict[str, NDArray[Any]] = {m.name: np.zeros((len(m.bands), _VALUES), np.uint32) for m in tiles.modalities}
    counts["damaged"] = np.zeros(1, np.uint32)
    for modality in tiles.modalities:
        own = counts[modality.name]
        for row in np.flatnonzero(tiles.table[f"has_{modality.name}"]):
            try:
                groups = tiles._read_checked(int(row), modality, None)
            except DamagedTileError:
                counts["damaged"] += 1
                continue
            for resolution, bands in modality.native.items():
                for place, pixels in zip(
                    modality.band_indices(bands), (groups or {}).get(resolution, ()), strict=False
                ):
                    if modality.unit == "dB":
                        steps = quantize(pixels) if pixels.dtype.kind == "f" else pixels
                        pixels = (steps.astype(np.int32) - NODATA).astype(np.uint16)
                    own[place] += np.bincount(pixels.ravel(), minlength=_VALUES).astype(np.uint32)
        own[:, 0] = 0
    return counts


def moments(counts: NDArray[np.integer], modality: Modality, clip: float) -> dict[str, Any]:
    """Computes the statistics of a modality from its counts.

    Args:
        counts: (C, 65536).
        modality: The modality.
        clip: Share of a band's pixels at either end that count as the values where they begin.

    Returns:
        ``bands``, ``unit``, ``mean``, ``std``, ``pixels``, ``low`` and ``high`` (where the ends begin), lists over the
        bands. A band of hardly any pixels has the published mean and standard deviation.
    """
    values = np.arange(_VALUES, dtype=np.float64)
    values = (values + NODATA) / STEPS if modality.unit == "dB" else values
    found: dict[str, Any] = {"bands": list(modality.bands), "unit": modality.unit}
    found |= {name: [] for name in ("mean", "std", "pixels", "low", "high")}
    for band, own in enumerate(counts.astype(np.float64)):
        total, sums = own.sum(), own.cumsum()
        row = [modality.mean[band], modality.std[band], int(total), None, None]
        if total >= _FEW:
            ends = np.searchsorted(sums, [clip * total, (1 - clip) * total], side="left")
            low, high = values[max(int(ends[0]), int((own > 0).argmax()))], values[ends[1]]
            within = values.clip(low, high)
            mean = own @ within / total
            std = np.sqrt(own @ (within - mean) ** 2 / total)
            row = [float(mean), float(std), int(total), float(low), float(high)] if std > 0 else row
        for name, value in zip(("mean", "std", "pixels", "low", "high"), row, strict=True):
            found[name].append(value)
    return found


@checked(tiles=COUNT, clip=(0, 0.2), workers=NOT_NEGATIVE)
def build_statistics(
    root: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    tiles: int | None = 20_000,
    clip: float = 0.001,
    workers: int | None = None,
    scheduler: str | None = None,
    progress: bool = True,
    **settings: Any,
) -> dict[str, Any]:
    """Computes mean and standard deviation of each band over the tiles of an archive, and writes them as JSON.

    Over the pixels that are not missing, at their own resolution: optics in digital numbers without the offset of
    baseline 04.00, radar in decibels. A run that was stopped resumes when it is started again, from a folder beside
    the file. The same input gives the same bytes, whatever the number of processes.

    Args:
        root: Folder of an archive or a packed store, or the URL of a store; its ``index.parquet`` is used.
        out: The file to write instead of ``statistics.json`` below the root.
        tiles: Tiles to look at, evenly over the index; None for all.
        clip: Share of a band's pixels at either end that count as the values where they begin, so that glints, clouds'
            edges and hot pixels do not widen the standard deviation; 0 for the plain statistics.
        workers: Number of processes; 0 counts in this one. By default one per core where there is much to do.
        scheduler: Address of a Dask cluster, instead of local processes.
        progress: Show a bar.
        **settings: Of the dataset, such as ``unit``.

    Returns:
        By modality what :func:`moments` gives, with ``tiles``, ``damaged`` (images that cannot be read) and ``clip``.

    Raises:
        TerraFMError: If there are no tiles, a setting is wrong, or the file cannot be written.
    """
    root = os.fspath(root)
    if out is None and "://" in root:
        raise TerraFMError(f"{root} is a URL, below which nothing can be written: name a file with `out`.")
    out = Path(root) / STATISTICS if out is None else Path(out)
    if not os.access(out.parent, os.W_OK):
        raise TerraFMError(f"{out} cannot be written, as its folder is missing or read-only: name another with `out`.")
    dataset = open_tiles(root, **settings)
    count = len(dataset) if tiles is None else min(tiles, len(dataset))
    rows = np.linspace(0, len(dataset) - 1, count).astype(np.int64)
    units = np.split(rows, range(_UNIT, count, _UNIT))
    work, salt = out.with_name(f"{out.name}.work"), f"{sorted(settings.items())} {_state(dataset)}".encode()
    table = dataset.table.drop(columns=["geometry", "land_cover_share"], errors="ignore")
    digests = pd.util.hash_pandas_object(table, index=False).to_numpy()
    names = [f"{sha256(salt + digests[unit].tobytes()).hexdigest()}.npz" for unit in units]
    total: dict[str, NDArray[Any]] = {m.name: np.zeros((len(m.bands), _VALUES), np.int64) for m in dataset.modalities}
    total["damaged"] = np.zeros(1, np.int64)
    waiting = []
    for number, name in enumerate(names):
        try:
            with np.load(work / name) as kept:
                _add(total, kept)
        except (OSError, ValueError, KeyError, EOFError, BadZipFile):  # not kept, or damaged
            waiting.append(number)
    jobs = _Jobs(dataset, [units[number] for number in waiting])
    options: dict[str, Any] = {"workers": workers, "scheduler": scheduler, "progress": progress}
    for done, counts in run_units(count_values, jobs, title="Statistics", **options):
        _add(total, counts)
        with atomic_write(work / names[waiting[done]], sole_writer=True) as part, part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **counts)
    found: dict[str, Any] = {m.name: moments(total[m.name], m, clip) for m in dataset.modalities}
    if not any(sum(own["pixels"]) for own in found.values()):
        raise TerraFMError(f"None of {count:,} tiles of {root} can be read: check the files.")
    found |= {"tiles": count, "damaged": int(total["damaged"][0]), "clip": clip}
    write_json(out, found)
    shutil.rmtree(work, ignore_errors=True)
    return found


class _Jobs:
    """Datasets of some rows each, made one after the other as worker processes are given them."""

    def __init__(self, tiles: TileDataset, units: Sequence[NDArray[np.int64]]) -> None:
        self.tiles, self.units = tiles, units

    def __len__(self) -> int:
        return len(self.units)

    def __iter__(self) -> Iterator[TileDataset]:
        for rows in self.units:
            yield select_tiles(self.tiles, self.tiles.table.iloc[rows], stored=False)


def _state(dataset: TileDataset) -> str:
    """Returns a name for the files that the tiles come from, where their dataset has one."""
    state = getattr(type(dataset), "state", None)
    return "" if state is None else str(state(Path(dataset.root)))


def _add(total: dict[str, NDArray[Any]], counts: Mapping[str, NDArray[Any]]) -> None:
    """Adds the counts of a unit, all or none."""
    parts = {name: counts[name] for name in total}
    if any(part.shape != total[name].shape for name, part in parts.items()):
        raise ValueError("counts of another shape")
    for name, part in parts.items():
        total[name] += part
