"""The views of one modality, from its native groups to the encoder's input, by one linear resampling per group.

Crop, flip, resize and blur are two small matrix products.

The value of a view's cell is the mean of the image's linear interpolant over that cell, so a view that
shrinks the tile is antialiased, one that enlarges it is interpolated, and a linear ramp keeps its values at
every resolution: bands of 10, 20 and 60 m stay aligned. Both axes separate, view = A_y X A_x^T, and with
hat(t) = max(0, 1 - |t|)

    A[k, i] = 1 / (b_k - a_k) * integral of hat(t - i) dt from a_k to b_k,

where cell k runs from a_k to b_k in pixels of the group, the center of pixel i at i. In the outer half pixel
of the tile the interpolant goes on as it was: pixel -1 counts as 2 x_0 - x_1.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality
from terrafm_tg.radiometry import linear_power

from .normalize import MISSING

#: Cells that share one window of the image: enough for a good matrix product, few enough to skip most zeros.
_BLOCK = 32
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
    batch: Mapping[str, Tensor], modality: Modality, views: Views, size: int, radius: int = 0, extent: float = 1.0
) -> Tensor:
    """Crops, resamples, converts and normalizes; nothing waits for the device.

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
    n, channels, device = len(views.source), len(modality.bands), views.source.device
    out, done = torch.empty(n, channels, size, size, device=device), 0  # in the order of views.order
    blur = blur_matrices(views.sigma, size, radius) if radius else None
    groups = []
    for resolution, bands in modality.native.items():
        images = _group(batch, modality, resolution)
        masked = with_shares(images) if views.complete < n else images
        groups.append((images, masked, modality.band_indices(bands)))
    step = max(1, _CHUNK["cpu" if device.type == "cpu" else "device"] // size**2)
    for whole, chosen in ((True, views.order[: views.complete]), (False, views.order[views.complete :])):
        for part in chosen.split(step) if len(chosen) else ():
            source, box, here = views.source[part], views.box[part], None if blur is None else blur[part]
            turn, scale, shift = (x[part, ..., None, None] for x in (views.turn[:, None], views.scale, views.shift))
            y = out[done : done + len(part)]
            done += len(part)
            for images, masked, indices in groups:
                x = resample(images if whole else masked, source, box, size, here, extent, shares=not whole)
                if modality.unit == "dB":
                    x = x.clamp_(min=10 ** (FLOOR / 10)).log10_().mul_(10)
                x = torch.where(turn, x.mT, x)
                for channel, band in enumerate(indices):
                    torch.addcmul(shift[:, band], x[:, channel], scale[:, band], out=y[:, band])
            y.nan_to_num_(nan=MISSING)
    return torch.empty_like(out).index_copy_(0, views.order, out) if 0 < views.complete < n else out


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


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Products in true float32: rounded to TF32 or bfloat16, a ramp over 534 px would be off by a pixel."""
    with ExitStack() as stack:
        if hasattr(torch.backends.cuda.matmul, "fp32_precision"):
            for backend in (getattr(torch.backends, name).matmul for name in ("cuda", "mkldnn")):
                stack.callback(setattr, backend, "fp32_precision", backend.fp32_precision)
                backend.fp32_precision = "ieee"
        else:  # before torch 2.9
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        stack.enter_context(torch.autocast(device.type, enabled=False))
        yield


def blur_matrices(sigma: Tensor, size: int, radius: int) -> Tensor:
    """Gaussian blur as banded matrices that :func:`resample` folds into its own.

    Args:
        sigma: Standard deviation in pixels of the view, 0 for none, (n,).
        size: Edge of the view.
        radius: Cells that the blur reads on each side.

    Returns:
        (n, block, block + 2 radius), for each block of cells.
    """
    from kornia.filters import get_gaussian_kernel1d

    block = _block(size)
    taps = get_gaussian_kernel1d(2 * radius + 1, sigma.float().clamp(min=1e-2)[:, None])
    taps = torch.nn.functional.pad(taps, (0, 1))  # the last one stands for all that lies outside the band
    cells = torch.arange(block + 2 * radius, device=sigma.device)
    steps = cells - cells[:block, None]
    return taps[:, torch.where((steps >= 0) & (steps <= 2 * radius), steps, 2 * radius + 1)]


def with_shares(images: Tensor) -> Tensor:
    """Images with 0 for what is missing, and behind their channels as many that say what is there.

    Missing are pixels that are not above 0, or not finite. Done once per image, since views overlap.

    Args:
        images: Stored pixels (B, C, H, W), uint16 or float32.

    Returns:
        float32 (B, 2 C, H, W).
    """
    images = images.float()
    valid = (images > 0) & (images < torch.inf)
    return torch.cat([torch.where(valid, images, 0.0), valid.float()], dim=1)


def resample(
    images: Tensor,
    source: Tensor,
    box: Tensor,
    size: int,
    blur: Tensor | None = None,
    extent: float = 1.0,
    shares: bool = False,
) -> Tensor:
    """Views of one resolution group.

    Args:
        images: Pixels (B, C, H, W), uint16 or float32, none missing; or those of :func:`with_shares`.
        source: Image of each view, int64 (n,).
        box: Top, bottom, left and right of each view in fractions of the tile, (n, 4); top > bottom or
            left > right flips it.
        size: Height and width of the views.
        blur: From :func:`blur_matrices`.
        extent: Largest height or width of a box; a smaller one than 1 saves work.
        shares: The images are those of :func:`with_shares`: a cell is the weighted mean of the pixels that are
            there, and NaN where they make up less than half of it. Twice the work.

    Returns:
        float32 (n, C, size, size).
    """
    n = len(source)
    box = box.float()
    with full_precision(images.device):
        x = _along_rows(images, source, box[:, :2], size, blur, extent)
        planes = x.flatten(1, 2)  # (n, blocks * C, W, block): images of W rows
        every = torch.arange(n, device=source.device)
        x = _along_rows(planes, every, box[:, 2:], size, blur, extent).unflatten(2, x.shape[1:3])
    x = x.permute(0, 3, 2, 4, 1, 5).reshape(n, -1, size, size)  # (n, C, down and its cells, across and its cells)
    if not shares:
        return x
    values, share = x.chunk(2, dim=1)
    return torch.where(share < 0.5, torch.nan, values / share)


def _along_rows(images: Tensor, source: Tensor, ends: Tensor, size: int, blur: Tensor | None, extent: float) -> Tensor:
    """Resamples the rows of images (B, C, H, W) to ``size`` cells: (n, blocks, C, W, cells of a block)."""
    channels, length, width = images.shape[1:]
    n, block = len(source), _block(size)
    blocks = size // block
    radius = 0 if blur is None else (blur.shape[2] - block) // 2
    window = min(length, math.ceil(extent * length * (block + 2 * radius) / size) + 2)

    cells = torch.arange(blocks, device=ends.device)[:, None] * block
    cells = cells + torch.arange(-radius, block + radius + 1, device=ends.device)
    edges = torch.lerp(ends[:, :1, None], ends[:, 1:, None], (cells / size).float())  # (n, blocks, cells + 1)
    edges = edges.clamp(0, 1) * length - 0.5
    first = torch.minimum(edges[..., 0], edges[..., -1]).floor().clamp(0, length - window)
    weights = _weights(edges - first[..., None], window)  # (n, blocks, cells, window)
    if blur is not None:
        weights = blur[:, None] @ weights
    weights = weights / weights.sum(-1, keepdim=True)

    rows = first.long()[..., None, None] + torch.arange(window, device=ends.device)[:, None]
    planes = source[:, None] * channels + torch.arange(channels, device=source.device)
    rows = rows + planes[:, None, None] * length  # (n, blocks, window, C)
    picked = _take_rows(images.reshape(-1, width), rows).view(n * blocks, window, channels * width)
    result = torch.bmm(picked.mT, weights.flatten(0, 1).mT)  # (n * blocks, C * W, block)
    return result.view(n, blocks, -1, width, block)


def _weights(edges: Tensor, window: int) -> Tensor:
    """Integral of each pixel's hat over each cell: edges (..., cells + 1) to (..., cells, window)."""
    pixels = torch.arange(-1, window + 1, device=edges.device)
    offset = (edges[..., None] - pixels).clamp(-1, 1)
    weights = (offset - 0.5 * offset * offset.abs()).diff(dim=-2)  # of the hat's antiderivative, less a constant
    before, inside, after = weights[..., :1], weights[..., 1:-1], weights[..., -1:]
    if window == 1:  # a single pixel has no slope to go on with
        return before + inside + after
    inside[..., :2] += torch.cat([2 * before, -before], -1)
    inside[..., -2:] += torch.cat([-after, 2 * after], -1)
    return inside


def _take_rows(table: Tensor, rows: Tensor) -> Tensor:
    """Rows of (R, W) as float32; 16-bit integers are moved as they are, since few kernels know uint16."""
    moved = table.view(torch.int16) if table.dtype == torch.uint16 else table
    return moved.index_select(0, rows.flatten()).view(table.dtype).float()


def _block(size: int) -> int:
    """Largest divisor of ``size`` up to `_BLOCK`; all of it where that would be a sliver."""
    block = max(d for d in range(1, _BLOCK + 1) if size % d == 0)
    return block if block >= 8 else size
