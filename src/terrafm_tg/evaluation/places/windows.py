"""Places as radar and optical imagery show them, cut into windows, and what encoders and statistics say of these."""

import copy
import logging
import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from terrafm_tg.datamodules import TileDataModule
from terrafm_tg.datamodules.loading.split import place_names
from terrafm_tg.datasets.scenes.pairs import ANCHORS
from terrafm_tg.datasets.tiles.dataset import TileDataset
from terrafm_tg.datasets.tiles.outlines import BOX
from terrafm_tg.datasets.tiles.table import MAX_TILE
from terrafm_tg.errors import DamagedTileError, TerraFMError
from terrafm_tg.modalities import MODALITIES, S1RTC
from terrafm_tg.models.inputs import PATCH_SIZE
from terrafm_tg.transforms import Normalize

_log = logging.getLogger(__name__)

#: Names of hand-made statistics among the encoders: of the bands, and with where a window is bright.
STATISTICS, LAYOUT = "statistics", "with layout"
#: Edge of a window in pixels of 10 m, and the patches along it.
WINDOW = 64
PATCHES = WINDOW // PATCH_SIZE
_VALID = 0.95  # of a window's pixels, in each band that its image has
_CHANGED = 0.1  # of a patch's pixels, from which on it counts as changed
_TEXTURES = (1, 2, 4)  # pixels between those that are compared
_BATCH = 128


class Picture(NamedTuple):
    """One place at one date.

    Attributes:
        place: Its name.
        date: Its number among the images on this grid, from 0.
        images: Modality -> (C, H, W) float32 in the modality's unit, NaN where missing.
        grid: CRS and upper left corner.
    """

    place: str
    date: int
    images: dict[str, NDArray[Any]]
    grid: tuple[float, ...]


class Windows(NamedTuple):
    """Windows of many pictures, n of them, that both sensors show.

    Attributes:
        where: ``place``, ``date``, ``grid`` (a number), ``row`` and ``column`` of each window within it.
        features: Encoder (or statistics) -> modality -> (n, D).
        tokens: Likewise -> (n, patches, D).
        changed: Whether each patch changed between the two dates, (n, patches); NaN where no label says.
    """

    where: pd.DataFrame
    features: dict[str, dict[str, NDArray[Any]]]
    tokens: dict[str, dict[str, NDArray[Any]]]
    changed: NDArray[Any]


def open_places(datamodule: TileDataModule) -> tuple[TileDataset, NDArray[np.str_], str]:
    """Opens the images of a datamodule at 10 m, scenes of a folder whole.

    Returns:
        The dataset, with a row per image that radar and optical imagery show; the place of each; and the optical
        modality.

    Raises:
        TerraFMError: If radar or optical imagery is absent.
    """
    dataset = copy.copy(datamodule.tiles)
    table = dataset.table.assign(_place=place_names(dataset.table))
    has = {name: table[f"has_{name}"].to_numpy(bool) for name in ANCHORS if f"has_{name}" in table}
    radar = has.pop(S1RTC.name, np.zeros(len(table), bool))
    optical = max(has, key=lambda name: int((has[name] & radar).sum()), default="")
    if not optical or not (has[optical] & radar).any():
        raise TerraFMError(
            "No tile shows radar and optical imagery of one place, which are to be compared: give a folder with "
            "Sentinel-1 and Sentinel-2 of the same places (`terrafm inspect` says which stand together)."
        )
    table = _whole_scenes(table[has[optical] & radar], dataset.tile_size)
    dataset.native, dataset.index = False, table.drop(columns="_place")
    dataset.modalities = tuple(MODALITIES[name] for name in (S1RTC.name, optical))
    return dataset, table["_place"].to_numpy(str), optical


def _whole_scenes(table: pd.DataFrame, tile_size: int) -> pd.DataFrame:
    """Joins the tiles of a scene to one, with what is left at its edges, as far as a tile may be that large.

    Later scenes of a place are put on the grid of its first where they have nearly the same, as OSCD's have.
    """
    keys = [name for name in table if str(name).startswith(("path_", "files_"))]
    if not keys:
        return table
    parts, first = [], dict[str, pd.DataFrame]()
    table = table.sort_values("datetime_start", kind="stable")
    for _, tiles in table.groupby(keys, observed=True, dropna=False, sort=False):
        x, y = tiles["x"].min(), tiles["y"].max()
        wide = int(((tiles["x"] - x) / tiles["xres"] + tiles["width"]).max().round()) + tile_size - 6
        high = int(((y - tiles["y"]) / tiles["yres"] + tiles["height"]).max().round()) + tile_size - 6
        if max(wide, high) > MAX_TILE:
            parts.append(tiles)
            continue
        box = {side: tiles[side].agg("min" if side in BOX[:2] else "max") for side in BOX}
        size = {"height": np.int32(high), "width": np.int32(wide)}
        whole = tiles.iloc[[0]].assign(x=x, y=y, **size, **box)
        other = first.setdefault(whole["_place"].iat[0], whole)
        steps = [abs(whole[side].iat[0] - other[side].iat[0]) / other[f"{side}res"].iat[0] for side in "xy"]
        if (
            max(steps) < 2
            and np.isclose(whole["xres"], other["xres"], rtol=0.02).all()
            and other.epsg.iat[0] == whole.epsg.iat[0]
        ):
            whole = whole.assign(**{name: other[name].iat[0] for name in ("x", "y", "xres", "yres", *size)})
        parts.append(whole)
    return pd.concat(parts, ignore_index=True)


def read_pictures(dataset: TileDataset, places: NDArray[np.str_]) -> Iterator[Picture]:
    """Reads the images one by one, the earlier of a place first; damaged ones are left out.

    Args:
        dataset: From :func:`open_places`.
        places: Likewise.
    """
    table, seen = dataset.table, dict[Any, int]()
    for row in np.argsort(table["datetime_start"].to_numpy(), kind="stable").tolist():
        try:
            sample = dataset[dataset.tile_slice(row)]
        except DamagedTileError:
            continue
        images = {m.name: sample[m.key].numpy() for m in dataset.modalities if m.key in sample}
        if len(images) < len(dataset.modalities):
            continue
        grid = int(sample["epsg"]), *sample["transform"].tolist()[:6]
        key = str(places[row]), grid
        seen[key] = seen.get(key, -1) + 1
        yield Picture(key[0], seen[key], images, grid)


def describe_windows(
    pictures: Iterable[Picture],
    encoders: Mapping[str, nn.Module],
    statistics: Any = None,
    labels: Mapping[str, Path] | None = None,
    device: torch.device | str = "cpu",
) -> Windows:
    """Cuts pictures into windows that do not overlap, and describes them by encoders and by hand.

    Args:
        pictures: Of places.
        encoders: Name -> encoder, on the device and in ``eval`` mode.
        statistics: With which the encoders' images are normalized (:class:`~terrafm_tg.transforms.Normalize`).
        labels: Place -> image of changes on the grid of its first picture, above 1 where a pixel changed.
        device: Of the encoders.
    """
    normalize = Normalize(statistics=statistics).to(device)
    where, changed = list[pd.DataFrame](), list[NDArray]()
    features: dict[tuple[str, str], list[NDArray]] = defaultdict(list)
    tokens: dict[tuple[str, str], list[NDArray]] = defaultdict(list)
    for picture in pictures:
        cut, places = cut_windows(picture.images)
        if not len(places):
            continue
        grid = {"grid": str(picture.grid), "row": places[:, 0], "column": places[:, 1]}
        where.append(pd.DataFrame({"place": picture.place, "date": picture.date, **grid}))
        changed.append(_changed(picture, (labels or {}).get(picture.place), places))
        for name, x in cut.items():
            plain = _plain(x, name)
            features[STATISTICS, name].append(window_statistics(plain))
            tokens[STATISTICS, name].append(patch_statistics(plain))
            features[LAYOUT, name].append(np.concatenate([features[STATISTICS, name][-1], layout(plain)], axis=1))
            inputs = normalize({name: torch.from_numpy(x).to(device)})[name]
            for encoder, model in encoders.items():
                z = embed_windows(model, inputs, name)
                features[encoder, name].append(z[:, 0])
                tokens[encoder, name].append(z[:, 1:])
    if not where:
        raise TerraFMError(
            f"No image shows {WINDOW} x {WINDOW} pixels of radar and optical imagery without gaps: give larger images."
        )
    return Windows(pd.concat(where, ignore_index=True), _joined(features), _joined(tokens), np.concatenate(changed))


def _joined(parts: Mapping[tuple[str, str], list[NDArray]]) -> dict[str, dict[str, NDArray]]:
    joined: dict[str, dict[str, NDArray]] = defaultdict(dict)
    for (encoder, name), arrays in parts.items():
        joined[encoder][name] = np.concatenate(arrays)
    return dict(joined)


@torch.inference_mode()
def embed_windows(encoder: nn.Module, images: Tensor, modality: str) -> NDArray[Any]:
    """Returns class and patch tokens (n, 1 + patches, D) of normalized images (n, C, H, W)."""
    parts = [cast(Any, encoder).forward_features(x, modality=modality) for x in images.split(_BATCH)]
    return torch.cat(parts).float().cpu().numpy()


def cut_windows(images: Mapping[str, NDArray[Any]]) -> tuple[dict[str, NDArray[Any]], NDArray[np.int64]]:
    """Cuts images of one grid into windows, and keeps those of which all images show nearly all pixels.

    Returns:
        (n, C, 64, 64) by modality, and the row and column of each among the windows, (n, 2).
    """
    high, wide = (side // WINDOW for side in next(iter(images.values())).shape[1:])
    whole, cut = np.ones(high * wide, bool), {}
    for name, image in images.items():
        x = image[:, : high * WINDOW, : wide * WINDOW].reshape(len(image), high, WINDOW, wide, WINDOW)
        cut[name] = x = x.transpose(1, 3, 0, 2, 4).reshape(high * wide, len(image), WINDOW, WINDOW)
        held = np.isfinite(image).any(axis=(1, 2))  # radar may have one polarization
        whole &= (np.isfinite(x[:, held]).mean(axis=(2, 3)) >= _VALID).all(axis=1)
    places = np.stack(np.divmod(np.flatnonzero(whole), max(wide, 1)), axis=1)
    return {name: x[whole] for name, x in cut.items()}, places


def _plain(x: NDArray[Any], name: str) -> NDArray[Any]:
    """Prepares windows (n, C, H, W) for statistics: optical numbers as logarithms, missing pixels as their band's mean.

    The standard deviations of optical numbers grow with their means. A band that is absent becomes 0.
    """
    x = x if MODALITIES[name].unit == "dB" else np.log10(np.maximum(x, 1))  # NaN stays
    there = np.isfinite(x)
    mean = np.where(there, x, 0).sum(axis=(2, 3), keepdims=True) / np.maximum(there.sum(axis=(2, 3), keepdims=True), 1)
    return np.where(there, x, mean).astype(np.float32)


def window_statistics(x: NDArray[Any]) -> NDArray[Any]:
    """Describes windows (n, C, 64, 64) by hand.

    Returns:
        (n, 5 C): mean, standard deviation and texture of each band, which is the mean absolute difference of pixels 1,
        2 and 4 apart, both ways.
    """
    parts = [x.mean(axis=(2, 3)), x.std(axis=(2, 3))]
    for step in _TEXTURES:
        across, down = np.abs(x[..., step:] - x[..., :-step]), np.abs(x[..., step:, :] - x[..., :-step, :])
        parts.append((across.mean(axis=(2, 3)) + down.mean(axis=(2, 3))) / 2)
    return np.concatenate(parts, axis=1)


def layout(x: NDArray[Any]) -> NDArray[Any]:
    """Returns by how much each band of each patch is brighter than its window: (n, C, 64, 64) -> (n, patches C)."""
    return (_patches(x).mean(axis=-1) - x.mean(axis=(2, 3))[..., None]).reshape(len(x), -1)


def patch_statistics(x: NDArray[Any]) -> NDArray[Any]:
    """Returns mean and standard deviation of each band in each patch of windows (n, C, 64, 64): (n, patches, 2 C)."""
    x = _patches(x)
    return np.concatenate([x.mean(axis=-1), x.std(axis=-1)], axis=1).transpose(0, 2, 1)


def _patches(x: NDArray) -> NDArray:
    """Returns the pixels of each patch, in the order of tokens: (n, C, 64, 64) -> (n, C, patches, pixels)."""
    x = x.reshape(*x.shape[:2], PATCHES, PATCH_SIZE, PATCHES, PATCH_SIZE)
    return x.transpose(0, 1, 2, 4, 3, 5).reshape(*x.shape[:2], PATCHES**2, PATCH_SIZE**2)


def find_labels(root: str | os.PathLike[str]) -> dict[str, Path]:
    """Finds images of changes as OSCD has them, ``<place>-cm.tif`` or ``<place>/cm/cm.png``, by place."""
    named = {path.parents[1].name: path for path in Path(root).rglob("cm/cm.png")}
    return named | {path.stem.removesuffix("-cm"): path for path in Path(root).rglob("*-cm.tif")}


def _changed(picture: Picture, label: Path | None, places: NDArray[np.int64]) -> NDArray[Any]:
    """Tells for each patch of windows whether a tenth of it changed, (n, patches); NaN where no label says."""
    result = np.full((len(places), PATCHES**2), np.nan, np.float32)
    if label is None or picture.date:
        return result
    try:
        with Image.open(label, formats=("TIFF", "PNG")) as file:
            mask = np.asarray(file.convert("L")) > 1
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        _log.warning("%s cannot be read (%s): changes of %s are not scored.", label, error, picture.place)
        return result
    shape = next(iter(picture.images.values())).shape[1:]
    if any(side > own + WINDOW for side, own in zip(mask.shape, shape, strict=True)):
        return result  # the picture is a part of a larger one
    padded = np.full(shape, np.nan, np.float32)
    high, wide = (min(sides) for sides in zip(mask.shape, padded.shape, strict=True))
    padded[:high, :wide] = mask[:high, :wide]
    cut = [padded[row : row + WINDOW, column : column + WINDOW] for row, column in (places * WINDOW).tolist()]
    share = _patches(np.stack(cut)[:, None]).mean(axis=-1)[:, 0]
    return np.where(np.isnan(share), np.nan, share >= _CHANGED).astype(np.float32)
