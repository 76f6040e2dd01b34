"""Native pixels: what is missing, cutting a part, and the float32 image at 10 m."""

from collections.abc import Mapping

import numpy as np
import torch
from rasterio.windows import Window
from torch import Tensor
from torch.nn.functional import interpolate

from terrafm_tg.errors import UnfitTileError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import NODATA, linear_power, present


def valid_bands(group: np.ndarray) -> np.ndarray:
    """Whether each band of a native group (C, h, w) has any pixel that is not missing."""
    some = present(group[:, ::16, ::16]).any(axis=(1, 2))  # mostly enough, and 256 times as fast
    return some if some.all() else some | present(group).any(axis=(1, 2))


def is_complete(groups: Mapping[int, Tensor]) -> bool:
    """Returns whether no pixel is missing in any native group (C, h, w), uint16, int16 or float32."""
    for group in groups.values():
        pixels = group.numpy()  # NumPy knows uint16, and passes NaN on
        if not pixels.min() > (NODATA if pixels.dtype == np.int16 else 0):
            return False
        if pixels.dtype.kind == "f" and not pixels.max() < np.inf:
            return False
    return True


def check_fit(group: np.ndarray, out: np.ndarray) -> None:
    """Refuse to copy a native group into an array of another shape or type, which NumPy would broadcast or cast.

    Raises:
        UnfitTileError: If they differ.
    """
    if (group.shape, group.dtype) != (out.shape, out.dtype):
        raise UnfitTileError(
            f"A tile's {group.dtype} pixels {group.shape} do not fit an array of {out.dtype} {out.shape}: read it "
            "into arrays of its own."
        )


def crop(group: np.ndarray, window: Window, full: tuple[int, ...]) -> np.ndarray:
    """Part of a native group (C, h, w).

    Args:
        group: Native pixels that cover a whole tile.
        window: The part, in pixels of the 10 m group.
        full: Height and width of the 10 m group.

    Returns:
        A view on that part; at least one pixel.
    """
    parts = []
    for (start, stop), size, length in zip(window.toranges(), group.shape[1:], full, strict=True):
        first = round(start * size / length)
        parts.append(slice(first, max(round(stop * size / length), first + 1)))
    return group[:, *parts]


def to_ten_metres(groups: Mapping[int, Tensor], modality: Modality) -> Tensor:
    """One float32 image at the size of the 10 m group, in stem order and the modality's unit.

    Coarser bands are interpolated linearly between pixel centres (half-pixel convention) over the pixels that
    are not missing. Radar is interpolated as power and then taken to decibels.

    Args:
        groups: Native group (C, h, w) by resolution, as in a ``native=True`` sample.
        modality: Whose bands they are.

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
