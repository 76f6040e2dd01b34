"""The views of one modality: from its native groups to the encoder's input."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import linear_power

from .normalize import MISSING
from .resample import blur_matrices, resample, with_shares

#: Lowest backscatter in dB. The instrument's own noise lies near -25 dB; what noise removal leaves far below
#: it means nothing, and its logarithm would be an outlier.
FLOOR = -40.0
#: Pixels of views in one go: on a processor what fits into its cache, on a device what fits into its memory.
_CHUNK = {"cpu": 2**17, "device": 2**21}


class Views(NamedTuple):
    """n views of one modality, to be rendered.

    Args:
        source: Where in the modality's stack each view's tile is, int64 (n,).
        box: Top, bottom, left and right in fractions of the tile, (n, 4); reversed ends flip.
        turn: Whether rows and columns are exchanged, bool (n,).
        scale: Factor from the modality's unit to the encoder's input, per band in stem order, (n, C).
        shift: What is then added, (n, C).
        sigma: Standard deviation of the blur in pixels of the view, (n,).
        order: The views in an order in which those of complete tiles come first, int64 (n,). A tile is complete if no
            pixel is missing: none is looked for there, which is half of the work.
        complete: Number of views of complete tiles.
    """

    source: Tensor
    box: Tensor
    turn: Tensor
    scale: Tensor
    shift: Tensor
    sigma: Tensor
    order: Tensor
    complete: int


def render(
    batch: Mapping[str, Tensor],
    modality: Modality,
    views: Views,
    size: int,
    radius: int = 0,
    extent: float = 1.0,
) -> Tensor:
    """Crops, resamples, converts and normalises; nothing waits for the device.

    Args:
        batch: Native tiles (``image_<modality>_10m`` and so on).
        modality: Which.
        views: What to render.
        size: Height and width of the views.
        radius: Pixels that the widest blur reads on each side; 0 for no blur.
        extent: Largest height or width of a box.

    Returns:
        float32 (n, C, size, size) in stem order; a missing cell is 0.5.

    Raises:
        TerraFMError: If a group of bands is not in the batch.
    """
    n, order, complete = len(views.source), views.order, views.complete
    sort = 0 < complete < n
    if sort:
        views = Views(*(field.index_select(0, order) for field in views[:-1]), complete)
    out = torch.empty(n, len(modality.bands), size, size, device=views.source.device, dtype=torch.float32)
    blur = blur_matrices(views.sigma, size, radius) if radius else None
    groups = []
    for resolution, bands in modality.native.items():
        images = _group(batch, modality, resolution)
        groups.append((images, with_shares(images) if complete < n else images, modality.band_indices(bands)))
    for part in [*_chunks(0, complete, size, out.device), *_chunks(complete, n, size, out.device)]:
        source, box = views.source[part], views.box[part]
        turn, scale, shift = (
            x[part, ..., None, None] for x in (views.turn[:, None], views.scale, views.shift)
        )
        here = None if blur is None else blur[part]
        whole = part.stop <= complete
        for images, masked, bands in groups:
            x = resample(images if whole else masked, source, box, size, here, extent, shares=not whole)
            if modality.unit == "dB":
                x = x.clamp_(min=10 ** (FLOOR / 10)).log10_().mul_(10)
            x = torch.where(turn, x.mT, x)
            for channel, band in enumerate(bands):
                torch.addcmul(shift[:, band], x[:, channel], scale[:, band], out=out[part, band])
        out[part].nan_to_num_(nan=MISSING)
    return torch.empty_like(out).index_copy_(0, order, out) if sort else out


def _group(batch: Mapping[str, Tensor], modality: Modality, resolution: int) -> Tensor:
    key = modality.native_key(resolution)
    if key not in batch:
        raise TerraFMError(
            f"The batch has no {key}, so no view can be made of it: read the tiles with `native=True` and "
            "batch them with `collate_tiles`."
        )
    bands = modality.native[resolution]
    if batch[key].shape[1] != len(bands):
        raise TerraFMError(
            f"{key} must be (B, {len(bands)}, H, W), bands {', '.join(bands)}, got {tuple(batch[key].shape)}."
        )
    # Radar averages as power: taken to it once, before the views, which overlap
    return linear_power(batch[key]) if modality.unit == "dB" else batch[key]


def _chunks(first: int, end: int, size: int, device: torch.device) -> Iterator[slice]:
    step = max(1, _CHUNK["cpu" if device.type == "cpu" else "device"] // size**2)
    return (slice(start, min(start + step, end)) for start in range(first, end, step))
