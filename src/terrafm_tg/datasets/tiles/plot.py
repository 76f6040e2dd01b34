"""A figure of one tile: what each sensor saw."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from mpl_toolkits.axes_grid1.anchored_artists import AnchoredSizeBar
from pyproj import Transformer
from torchgeo.datasets.utils import Sample

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality

from .pixels import to_ten_meters

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_CENTURY = 3.2e9  # seconds


def plot_tile(sample: Sample, suptitle: str | None = None) -> Figure:
    """Draws a sample's modalities side by side, with a scale bar, and below them the tile's place and dates.

    Args:
        sample: A sample of a :class:`~terrafm_tg.datasets.TileDataset`, native or at 10 m.
        suptitle: A title above all.

    Returns:
        The figure: optics as B04, B03, B02, radar as VV, VH and VV - VH (dB), each band stretched from its
        2nd to its 98th percentile together with the others of its kind; missing pixels are white.

    Raises:
        TerraFMError: If the sample has no image.
    """
    images = {m.title: _picture(image, m) for m in MODALITIES.values() if (image := _image(sample, m)) is not None}
    if not images:
        raise TerraFMError(f"The sample holds no image to plot, only {', '.join(sample)}.")
    figure, axes = plt.subplots(1, len(images), figsize=(4 * len(images), 4), squeeze=False, layout="constrained")
    for ax, (title, image) in zip(axes[0], images.items(), strict=True):
        ax.imshow(image)
        ax.set_title(title)
        ax.axis("off")
    _scale(axes[0, 0], next(iter(images.values())).shape[1])
    figure.supxlabel(_place(sample), fontsize=10)
    if suptitle is not None:
        figure.suptitle(suptitle)
    return figure


def _scale(ax: "Axes", width: int) -> None:
    """Draws a bar of a round length, at most a third of the picture, in its lower left corner."""
    lengths = (5000, 2000, 1000, 500, 200, 100, 50, 20, 10)
    meters = next(length for length in lengths if length <= max(width * 10 / 3, 10))
    text = f"{meters // 1000} km" if meters >= 1000 else f"{meters} m"
    style: dict[str, Any] = {"color": "white", "label_top": True, "size_vertical": width / 150}
    bar = AnchoredSizeBar(ax.transData, meters / 10, text, "lower left", **style)
    bar.patch.set(facecolor="black", alpha=0.6, linewidth=0)
    ax.add_artist(bar)


def _place(sample: Sample) -> str:
    """Middle of the tile in degrees, its UTM zone, and its dates; nothing where the sample does not say them."""
    if "bounds" not in sample or "epsg" not in sample:
        return ""
    x0, x1, _, y0, y1, _, start, stop, _ = sample["bounds"].tolist()
    epsg = int(sample["epsg"])
    lon, lat = Transformer.from_crs(epsg, 4326, always_xy=True).transform((x0 + x1) / 2, (y0 + y1) / 2)
    words = [f"{abs(lat):.3f}° {'NS'[lat < 0]}, {abs(lon):.3f}° {'EW'[lon < 0]}", f"EPSG:{epsg}"]
    if stop - start < _CENTURY:  # else no date is known
        days = (f"{datetime.fromtimestamp(t, UTC):%Y-%m-%d}" for t in (start, stop))
        words.append(" to ".join(dict.fromkeys(days)))
    return " · ".join(words)


def _image(sample: Sample, modality: Modality) -> np.ndarray | None:
    groups = {r: sample[key] for r in modality.native if (key := modality.native_key(r)) in sample}
    if groups:
        return to_ten_meters(groups, modality).numpy()
    return sample[modality.key].numpy() if modality.key in sample else None


def _picture(image: np.ndarray, modality: Modality) -> np.ndarray:
    """RGB (H, W, 3) in [0, 1]."""
    if modality.unit == "dB":
        vv, vh = image
        channels = [_stretch(vv), _stretch(vh), _stretch(vv - vh)]
    else:
        channels = list(_stretch(image[modality.band_indices(["B04", "B03", "B02"])]))
    return np.nan_to_num(np.stack(channels, axis=-1), nan=1.0)


def _stretch(values: np.ndarray) -> np.ndarray:
    low, high = np.nanpercentile(values, (2, 98)) if np.isfinite(values).any() else (0.0, 1.0)
    return np.clip((values - low) / max(high - low, 1e-6), 0, 1)
