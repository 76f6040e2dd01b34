"""A figure of what a dataset holds: per sensor one tile, its missing pixels, and the values beside the stem's."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from terrafm_tg.datasets.tiles.plot import tile_channels, tile_picture
from terrafm_tg.modalities import get_modality
from terrafm_tg.utils.files import atomic_write

from .inspection import EDGES, Look, percent_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_VALID, _MISSING, _RANGE, _INSIDE, _OUTSIDE = "#e4ecf2", "#d81b9a", "#f0e6c8", "#1f6f8b", "#c2452d"


def write_inspection_figure(looks: Sequence[Look], title: str, path: Path) -> None:
    """Draws one line per sensor: a tile in natural colors, its missing pixels, and a histogram of each band.

    The histograms stand on the scale of the encoder's normalization: the pale strip reaches two standard deviations of
    the training to either side of its mean. Values outside of it are red, with their share below the band.

    Args:
        looks: From :func:`~terrafm_tg.evaluation.inspection.look_at`.
        title: Above all.
        path: The PNG, which is written atomically.
    """
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 0.5 + 3.0 * len(looks)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold")
    axes = figure.subplots(len(looks), 3, squeeze=False, width_ratios=[1, 1, 2.6])
    for (picture, mask, values), look in zip(axes, looks, strict=True):
        modality = get_modality(look.modality)
        shown, missing = tile_picture(look.image, modality), ~np.isfinite(look.image[look.held]).all(axis=0)
        shown[missing] = to_rgb(_MISSING)
        picture.imshow(shown, interpolation="nearest")
        height, width = look.image.shape[1:]
        title, other = modality.title.removesuffix(" RTC"), "another " * (look.row != looks[0].row)
        picture.set_title(f"{title}: {other}tile {look.row}, {width} x {height} px", fontsize=8)
        picture.set_xlabel(_colors(tile_channels(look.image, modality)), fontsize=8)
        _draw_mask(mask, look)
        _draw_values(values, look)
        for ax in (picture, mask):
            ax.set(xticks=[], yticks=[])
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110)


def _colors(channels: Iterable[str]) -> str:
    """Says which colors a picture shows its bands in."""
    names = [*channels]
    if len(names) < 3:
        return f"gray: {', '.join(names)}"
    return ", ".join(f"{color} {name}" for color, name in zip(("red", "green", "blue"), names, strict=True))


def _draw_mask(ax: "Axes", look: Look) -> None:
    """Draws the pixels that are missing in any band that the tile has."""
    from matplotlib.colors import ListedColormap

    missing = ~np.isfinite(look.image[look.held]).all(axis=0)
    coarse = missing  # so many pixels are one on paper, and missing where one of them is
    for axis, side in enumerate(missing.shape):
        coarse = np.logical_or.reduceat(coarse, range(0, side, -(-side // 200)), axis=axis)
    ax.imshow(coarse, cmap=ListedColormap([_VALID, _MISSING]), vmin=0, vmax=1, interpolation="nearest")
    ax.set_title(f"pink: missing, {percent_of(missing.mean())} of this tile", fontsize=9)
    if look.tiles > 1:
        ax.set_xlabel(f"{percent_of(look.missing)} of the {look.tiles} tiles that were read", fontsize=8)


def _draw_values(ax: "Axes", look: Look) -> None:
    """Draws each band's histogram upright, on the scale of the normalization."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    modality = get_modality(look.modality)
    ax.axhspan(0, 1, color=_RANGE, zorder=0)
    ax.axhline(0.5, color="#a0926a", lw=0.8, zorder=1)
    start, stop = np.searchsorted(EDGES, (-1e-9, 1 - 1e-9))  # bins within two deviations
    parts = ((0, start, _OUTSIDE), (start, stop, _INSIDE), (stop, len(EDGES) - 1, _OUTSIDE))
    for place, (band, counts) in enumerate(zip(modality.bands, look.histogram, strict=True)):
        if not counts.any():
            ax.text(place, 0.5, "absent", rotation=90, ha="center", va="center", fontsize=8, color="#777777")
            continue
        width = 0.45 * counts / counts.max()
        for first, end, color in parts:
            half = width[first:end]
            how = {"baseline": place - half, "orientation": "horizontal", "fill": True, "color": color, "lw": 0}
            ax.stairs(place + half, EDGES[first : end + 1], zorder=2, **how)
        for line, color in ((1.6, "white"), (0.8, "black")):
            ax.plot([place - 0.3, place + 0.3], [look.scaled(band)] * 2, color=color, lw=line, zorder=3)
    labels = [f"{b}\n{look.outside[b]:.0%}" if b in look.outside else b for b in modality.bands]
    ax.set_xticks(range(len(modality.bands)), labels, fontsize=8)
    ax.set_yticks([0, 0.5, 1], ["mean − 2σ", "encoder's\nmean", "mean + 2σ"], fontsize=8)
    ax.set(ylim=(EDGES[0], EDGES[-1]), xlim=(-0.6, len(modality.bands) - 0.4))
    ax.set_title(f"values ({modality.unit})", fontsize=9, loc="left")
    ax.set_xlabel(f"percent: values of the band that are red; of all bands {look.beyond:.0%}", fontsize=8)
    ax.spines[["top", "right"]].set_visible(False)
    marks = [Patch(color=_INSIDE), Line2D([], [], color="black", lw=0.8), Patch(color=_RANGE), Patch(color=_OUTSIDE)]
    words = ["values", "median", "encoder's mean ± 2σ", "beyond (at the edges: and further)"]
    how = {"loc": "lower right", "bbox_to_anchor": (1, 1), "borderaxespad": 0, "frameon": False, "handlelength": 1.2}
    ax.legend(marks, words, ncols=4, fontsize=8, columnspacing=1.2, **how)
