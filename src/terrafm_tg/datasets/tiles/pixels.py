"""Native pixels: from stored values, checked and cropped, to the float32 image at 10 m."""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor
from torch.nn.functional import interpolate

from terrafm_tg.errors import UnfitTileError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import NODATA, linear_power, present


def planes(groups: Mapping[int, np.ndarray], modality: Modality, held: NDArray[np.bool_] | None) -> list[np.ndarray]:
    """Returns the bands that are there, without a copy: whole groups (C, h, w), or planes (h, w) of a subset."""
    if held is None or held.all():
        return list(groups.values())
    return [
        plane
        for resolution, bands in modality.native.items()
        for plane, there in zip(groups[resolution], held[modality.band_indices(bands)], strict=True)
        if there
    ]


def valid_bands(group: np.ndarray) -> np.ndarray:
    """Tells for each band of a native group (C, h, w) if it has any pixel that is not missing."""
    some = present(group[:, ::16, ::16]).any(axis=(1, 2))  # mostly enough, and 256 times as fast
    return some if some.all() else some | present(group).any(axis=(1, 2))


def only_nodata(groups: Mapping[int, np.ndarray], modality: Modality, held: NDArray[np.bool_] | None = None) -> str:
    """Names the bands of a tile in which all pixels are missing, in words; empty where there is none.

    Radar often has one polarization only: the other one may be missing.

    Args:
        groups: (C, h, w) per resolution.
        modality: The modality.
        held: For each band of the stem, whether the tile has it; None where it has them all.
    """
    valid = np.concatenate([valid_bands(groups[resolution]) for resolution in modality.native])
    order = modality.native_order
    absent = np.zeros(len(order), bool) if held is None else ~held[np.argsort(order)]
    if (valid | absent).all() or (modality.unit == "dB" and valid.any()):
        return ""
    bands = np.array([band for group in modality.native.values() for band in group])
    return f"{f'band {", ".join(bands[~(valid | absent)])}' if valid.any() else 'it'} holds only nodata"


def is_complete(groups: Mapping[int, np.ndarray], modality: Modality, held: NDArray[np.bool_] | None = None) -> bool:
    """Returns whether no pixel is missing in any band that a tile has, uint16, int16 or float32; see `only_nodata`."""
    for pixels in planes(groups, modality, held):
        if not pixels.min() > (NODATA if pixels.dtype == np.int16 else 0):
            return False
        if pixels.dtype.kind == "f" and not pixels.max() < np.inf:
            return False
    return True


def check_fit(shape: tuple[int, ...], dtype: np.dtype, out: np.ndarray) -> None:
    """Refuses to write a native group into an array of another shape or type, which NumPy would broadcast or cast.

    Raises:
        UnfitTileError: If they differ.
    """
    if (shape, dtype) != (out.shape, out.dtype):
        raise UnfitTileError(
            f"A tile's {dtype} pixels {shape} do not fit an array of {out.dtype} {out.shape}: read it "
            "into arrays of its own."
        )


def crop(group: np.ndarray, window: Window, full: tuple[int, ...]) -> np.ndarray:
    """Cuts a part out of a native group (C, h, w).

    Returns:
        A view on that part; at least one pixel.
    """
    parts = []
    for (start, stop), size, length in zip(window.toranges(), group.shape[1:], full, strict=True):
        first = round(start * size / length)
        parts.append(slice(first, max(round(stop * size / length), first + 1)))
    return group[:, *parts]


def to_ten_meters(
    groups: Mapping[int, Tensor], modality: Modality, size: tuple[int, int] | torch.Size | None = None
) -> Tensor:
    """Returns one float32 image, in stem order and the modality's unit.

    Coarser bands are interpolated linearly between pixel centers (half-pixel convention) over the pixels that
    are not missing. Radar is interpolated as power and then taken to decibels.

    Returns:
        (C, H, W), NaN where the stored pixel is missing.
    """
    size = groups[10].shape[-2:]
    image = torch.cat([_resize(linear_power(groups[r]), size) for r in modality.native])
    image = image[modality.native_order]
    return 10 * torch.log10(image) if modality.unit == "dB" else image


def _resize(group: Tensor, size: torch.Size) -> Tensor:
    valid = group > 0
    if group.shape[-2:] == size:
        return torch.where(valid, group, torch.nan)
    planes = torch.stack([torch.where(valid, group, 0.0), valid.float()])
    value, weight = interpolate(planes, size, mode="bilinear", align_corners=False)
    here = interpolate(valid.float()[None], size, mode="nearest-exact")[0] > 0
    return torch.where(here, value / weight, torch.nan)
