"""A figure of one tile: what each sensor saw."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality

from .pixels import to_ten_meters


def plot_tile(sample: Sample, suptitle: str | None = None) -> Figure:
    """Draws a sample's modalities side by side.

    Args:
        sample: A sample of a :class:`~terrafm_tg.datasets.TileDataset`, native or at 10 m.
        suptitle: A title above all.

    Returns:
        The figure: optics as B04, B03, B02, radar as VV, VH and VV - VH (dB), each band stretched from its
        2nd to its 98th percentile together with the others of its kind; missing pixels are white.

    Raises:
        TerraFMError: If the sample has no image.
    """
    images = {
        m.title: tile_picture(image, m) for m in MODALITIES.values() if (image := tile_image(sample, m)) is not None
    }
    if not images:
        raise TerraFMError(f"The sample holds no image to plot, only {', '.join(sample)}.")
    figure, axes = plt.subplots(1, len(images), figsize=(4 * len(images), 4), squeeze=False, layout="constrained")
    for ax, (title, image) in zip(axes[0], images.items(), strict=True):
        ax.imshow(image)
        ax.set_title(title)
        ax.axis("off")
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def tile_image(sample: Sample, modality: Modality) -> np.ndarray | None:
    """Returns a sample's image at 10 m, (C, H, W) in stem order; None where the sample lacks the modality."""
    groups = {r: sample[key] for r in modality.native if (key := modality.native_key(r)) in sample}
    if groups:
        return to_ten_meters(groups, modality).numpy()
    return sample[modality.key].numpy() if modality.key in sample else None


def tile_channels(image: np.ndarray, modality: Modality) -> dict[str, np.ndarray]:
    """Returns what a picture of an image (C, H, W) shows as red, green and blue, by name.

    Of a tile without one of the usual bands these are fewer, and any one band where it has none of them.
    """
    held = {band: x for band, x in zip(modality.bands, image, strict=True) if np.isfinite(x).any()}
    if modality.unit == "dB":
        return held if len(held) < 2 else {**held, "VV − VH": held["VV"] - held["VH"]}
    return {band: held[band] for band in ("B04", "B03", "B02") if band in held} or dict([*held.items()][:1])


def tile_picture(image: np.ndarray, modality: Modality) -> np.ndarray:
    """Returns an image (C, H, W) in the stem's bands as RGB (H, W, 3) in [0, 1]; missing pixels are white.

    Where there are fewer than three channels it is gray.
    """
    channels = np.stack([*tile_channels(image, modality).values()] or [image[0]])
    channels = np.stack([_stretch(x) for x in channels]) if modality.unit == "dB" else _stretch(channels)
    if len(channels) < 3:
        channels = channels.mean(axis=0, keepdims=True).repeat(3, axis=0)
    return np.nan_to_num(channels.transpose(1, 2, 0), nan=1.0)


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = np.nanpercentile(values, (2, 98)) if np.isfinite(values).any() else (0.0, 1.0)
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1)
