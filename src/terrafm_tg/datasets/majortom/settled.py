"""Offsets that a product's name does not tell (``N9999``), or tells wrongly: by pixels, or by L1C of the same day."""

import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from rasterio import Env
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.radiometry import LIKELY, OFFSET, TELLING, UNKNOWN, Claims, judge, offset_evidence, remove_offset
from terrafm_tg.utils.parallel import run_units

from .part_files import PartFiles

_UNIT = 32  # images that a worker looks at together
_SAMPLE = 4  # images with a baseline before 04.00 in their name, and with a later one, whose pixels are compared


class _Image(NamedTuple):
    """A picture in a Parquet part, with the L1C picture of the same day: its part, row group and offset."""

    product: str
    part: str
    group: int
    beside: tuple[str, int, int] | None = None


def settle_offsets(
    table: pd.DataFrame,
    root: Path,
    workers: int | None = 0,
    scheduler: str | None = None,
    progress: bool = False,
    most: int | None = None,
) -> pd.DataFrame:
    """Finds the unknown offsets of a Major-TOM tile table by pixels, as far as they tell and lie on disk.

    Names that tell it are believed where the pixels of a few images agree: who takes the offset off often keeps the
    name. Where they do not, the pixels of all such images are asked, which a warning says.

    Args:
        table: From :func:`~terrafm_tg.datasets.majortom.rows.scan_tiles`.
        root: Of its parts.
        workers: As for :func:`~terrafm_tg.utils.parallel.run_units`.
        scheduler: Likewise.
        progress: Show a bar.
        most: Where more images of a modality would have to be read, none is.

    Returns:
        The table with ``offset_<modality>``, and ``proof_<modality>``: the reason, where pixels were asked.
    """
    for name in ("s2l1c", "s2l2a"):
        if f"offset_{name}" not in table:
            continue
        part = table[f"part_{name}"].astype(object)
        local = table[f"has_{name}"] & ~part.str.contains("://", na=True)
        keys = pd.MultiIndex.from_arrays([part, table[f"group_{name}"]])
        first = (local & ~keys.duplicated()).to_numpy()
        doubted = _doubted(table, root, name, first)
        if doubted.any():
            table = table.assign(**{f"offset_{name}": table[f"offset_{name}"].mask(doubted & local, UNKNOWN)})
        rows = np.flatnonzero((table[f"offset_{name}"] == UNKNOWN) & first)
        if not len(rows) or (most is not None and len(rows) > most):
            continue
        images = [_image(table.iloc[row], name, bool(doubted[row])) for row in rows]
        units = [images[start : start + _UNIT] for start in range(0, len(images), _UNIT)]
        found = dict[tuple[str, int], tuple[int, str]]()
        work = partial(_look, root=root, name=name)
        title = f"Offsets of {MODALITIES[name].title}"
        for number, results in run_units(
            work, units, workers=workers, scheduler=scheduler, title=title, progress=progress
        ):
            found |= {(image.part, image.group): r for image, r in zip(units[number], results, strict=True)}
        seen = [found.get(key, (UNKNOWN, None)) for key in keys]
        offsets = np.array([offset for offset, _ in seen])
        known = (offsets != UNKNOWN) & (table[f"offset_{name}"] == UNKNOWN).to_numpy()
        table = table.assign(**{
            f"offset_{name}": np.where(known, offsets, table[f"offset_{name}"]).astype(np.int16),
            f"proof_{name}": pd.Categorical([proof for _, proof in seen]),
        })  # fmt: skip
    return table


def _doubted(table: pd.DataFrame, root: Path, name: str, first: np.ndarray) -> np.ndarray:
    """Tells the tiles whose products' names say another offset than the pixels of a few of them.

    Args:
        table: The tile table.
        root: Of its parts.
        name: Of the modality.
        first: Where an image on disk comes first.
    """
    files, offsets = PartFiles(), table[f"offset_{name}"].to_numpy()
    doubted = np.zeros(len(table), dtype=bool)
    for named in (0, OFFSET):
        rows = np.flatnonzero(first & (offsets == named))
        agree, against = 0, list[str]()
        for row in rows[np.unique(np.linspace(0, len(rows) - 1, _SAMPLE).round().astype(int))] if len(rows) else []:
            image = _image(table.iloc[row], name)
            try:
                pixels = _telling(files, root, image.part, image.group)
            except (OSError, RasterioError, ValueError):  # reading the tile says what is wrong
                continue
            seen = offset_evidence({b: np.where(x > 0, x, np.nan).astype(np.float64) for b, x in pixels.items()}, name)
            if seen.strength > LIKELY and seen.offset != named:
                against.append(f"{image.product}: {seen.words}")
            agree += seen.strength > LIKELY and seen.offset == named
        if len(against) > 1 or (against and not agree):
            doubted |= offsets == named
            warnings.warn(
                f"Names of {name} products say that they hold an offset of {named} DN, and their pixels that they do "
                f"not (first {against[0]}): the pixels of each are asked, not its name.",
                stacklevel=4,
            )
    return doubted


def _image(row: pd.Series, name: str, unnamed: bool = False) -> _Image:
    """Describes the image of a tile, without the product's name where that is not believed."""
    beside = None
    if name == "s2l2a" and row.get("has_s2l1c", False) and row["offset_s2l1c"] != UNKNOWN:
        near = not abs(row["date_s2l2a"] - row["date_s2l1c"]) > pd.Timedelta(1, "D")
        if near and "://" not in row["part_s2l1c"]:
            beside = row["part_s2l1c"], int(row["group_s2l1c"]), int(row["offset_s2l1c"])
    product = "" if unnamed else str(row[f"product_{name}"])
    return _Image(product, row[f"part_{name}"], int(row[f"group_{name}"]), beside)


def _look(images: Sequence[_Image], root: Path, name: str) -> list[tuple[int, str]]:
    """Finds the offset of each image and the reason, in a worker process; -1 where pixels do not tell."""
    files, results = PartFiles(), []
    for image in images:
        try:
            pixels = _telling(files, root, image.part, image.group)
            beside = None
            if image.beside is not None:
                part, group, offset = image.beside
                l1c = _telling(files, root, part, group)
                beside = {band: remove_offset(values, offset) for band, values in l1c.items()}
            verdict = judge(Claims(name, image.product), pixels, None, beside)
            results.append((verdict.offset, verdict.proof))
        except (TerraFMError, OSError, RasterioError, ValueError) as error:
            results.append((UNKNOWN, f"its pixels do not tell: {error}"))
    return results


def _telling(files: PartFiles, root: Path, part: str, group: int) -> dict[str, np.ndarray]:
    """Reads the bands of a picture that tell."""
    values = files.read(str(root / part), group, [band for band in TELLING if band.startswith("B")])
    pixels = {}
    with Env.from_defaults():
        for band, blob in values.items():
            if isinstance(blob, bytes):
                with MemoryFile(blob) as memory, memory.open(driver="GTiff") as src:
                    pixels[band] = src.read(1)
    return pixels
