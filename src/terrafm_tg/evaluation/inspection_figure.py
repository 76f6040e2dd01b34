"""A figure of what a dataset holds: per sensor one tile, its missing pixels, and the values beside the stem's."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from terrafm_tg.datasets.tiles.plot import tile_picture
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import atomic_write

from .inspection import EDGES, Look

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VALID, _MISSING, _RANGE, _INSIDE, _OUTSIDE = "#e4ecf2", "#3b3b3b", "#f0e6c8", "#1f6f8b", "#c2452d"


def write_inspection_figure(looks: Sequence[Look], title: str, path: Path) -> None:
    """Draws one line per sensor: a tile in natural colors, its missing pixels, and a histogram of each band.

    The histograms stand on the scale of the encoder's normalization: the pale strip reaches two standard deviations of
    the training to either side of its mean. Values outside of it are red, with their share below the band.

    Args:
        looks: From :func:`~terrafm_tg.evaluation.inspection.look_at`.
        title: Above all.
        path: The PNG, which is written atomically.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 0.5 + 3.0 * len(looks)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplots(len(looks), 3, squeeze=False, width_ratios=[1, 1, 2.6])
    for (picture, mask, values), look in zip(axes, looks, strict=True):
        modality = get_modality(look.modality)
        picture.imshow(tile_picture(look.image, modality), interpolation="nearest")
        picture.set_title(f"{modality.title}, tile {look.row}", fontsize=9)
        colors = "VV, VH, VV − VH" if modality.unit == "dB" else "B04, B03, B02"
        picture.set_xlabel(f"{colors}, stretched", fontsize=8)
        _draw_mask(mask, look)
        _draw_values(values, look)
        for ax in (picture, mask):
            ax.set(xticks=[], yticks=[])
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110)


def _draw_mask(ax: "Axes", look: Look) -> None:
    """Draws the pixels that are missing in any band that the tile has."""
    from matplotlib.colors import ListedColormap

    missing = ~np.isfinite(look.image[look.held]).all(axis=0)
    ax.imshow(missing, cmap=ListedColormap([_VALID, _MISSING]), vmin=0, vmax=1, interpolation="nearest")
    ax.set_title(f"missing: {missing.mean():.1%} of this tile", fontsize=9)
    ax.set_xlabel(f"dark: missing; {look.missing:.1%} of {look.tiles} tiles", fontsize=8)


def _draw_values(ax: "Axes", look: Look) -> None:
    """Draws each band's histogram upright, on the scale of the normalization."""
    modality = get_modality(look.modality)
    centers = (EDGES[1:] + EDGES[:-1]) / 2
    ax.axhspan(0, 1, color=_RANGE, zorder=0)
    ax.axhline(0.5, color="#a0926a", lw=0.8, zorder=1)
    parts = (centers < 0, (centers >= 0) & (centers <= 1), centers > 1)
    for place, (band, counts) in enumerate(zip(modality.bands, look.histogram, strict=True)):
        if not counts.any():
            ax.text(place, 0.5, "absent", rotation=90, ha="center", va="center", fontsize=8, color="#777777")
            continue
        width = 0.45 * counts / counts.max()
        for where, color in zip(parts, (_OUTSIDE, _INSIDE, _OUTSIDE), strict=True):
            ax.fill_betweenx(centers[where], place - width[where], place + width[where], color=color, lw=0, zorder=2)
        ax.plot([place - 0.3, place + 0.3], [look.scaled(band)] * 2, color="white", lw=1.6, zorder=3)
        ax.plot([place - 0.3, place + 0.3], [look.scaled(band)] * 2, color="black", lw=0.8, zorder=4)
    labels = [f"{b}\n{look.outside[b]:.0%}" if b in look.outside else b for b in modality.bands]
    ax.set_xticks(range(len(modality.bands)), labels, fontsize=8)
    ax.set_yticks([0, 0.5, 1], ["mean − 2σ", "training\nmean", "mean + 2σ"], fontsize=8)
    ax.set(ylim=(EDGES[0], EDGES[-1]), xlim=(-0.6, len(modality.bands) - 0.4))
    ax.set_title(f"values beside the stem's statistics; below: share beyond ±2σ, {look.beyond:.0%} of all", fontsize=9)
    ax.spines[["top", "right"]].set_visible(False)
