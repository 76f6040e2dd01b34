"""A quick look at a map: a PNG with its legend."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.utils.files import atomic_write

from .legend import Legend

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Pixels of the longer side of the picture's map, at most, and lines of its legend.
_SIDE, _LINES = 1500, 24


def write_picture(
    path: Path, product: Path, title: str, legend: Legend | None, shares: Sequence[float], unit: str
) -> None:
    """Draws a map of classes with its legend, or the first band of numbers with a scale.

    Args:
        path: The PNG, written atomically.
        product: The GeoTIFF.
        title: Above the map.
        legend: Of classes; None for numbers.
        shares: Share of each class.
        unit: Of numbers.
    """
    from matplotlib.figure import Figure

    values, mask = _read(product)
    height, width = values.shape
    inches = 8 / max(height, width)
    beside = 1.3 if legend is None else 3.2
    figure = Figure(figsize=(width * inches + beside, max(height * inches, 3) + 0.5), layout="constrained")
    ax = figure.subplots()
    ax.set_title(_plain(title), loc="left", fontsize=10, parse_math=False)
    ax.set(xticks=[], yticks=[], anchor="NW")
    if legend is None:
        low, high = np.nanpercentile(np.where(mask, values, np.nan), (2, 98)) if mask.any() else (0, 1)
        shown = ax.imshow(np.ma.array(values, mask=~mask), vmin=low, vmax=high, interpolation="nearest")
        figure.colorbar(shown, ax=ax, shrink=0.8, extend="both").set_label(unit, parse_math=False)
    else:
        table = np.array([*legend.colors, (255, 255, 255)], np.uint8)
        ax.imshow(table[np.where(mask, values, len(table) - 1).astype(np.intp)], interpolation="nearest")
        _draw_legend(ax, legend, shares)
    with atomic_write(path) as part, warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*[Gg]lyph.*")  # of writings that matplotlib's font lacks
        figure.savefig(part, format="png", dpi=150)


def _read(product: Path) -> tuple[NDArray, NDArray[np.bool_]]:
    """Reads a map at the size of the picture, from its overviews."""
    import rasterio

    with rasterio.open(product) as source:
        shrink = max(max(source.shape) / _SIDE, 1)
        size = tuple(max(round(side / shrink), 1) for side in source.shape)
        return source.read(1, out_shape=size), source.read_masks(1, out_shape=size) > 0


def _draw_legend(ax: "Axes", legend: Legend, shares: Sequence[float]) -> None:
    """Lists the classes that occur, the largest first."""
    from matplotlib.patches import Patch

    order = [i for i in np.argsort(shares)[::-1] if shares[i] > 0]
    lines = [(np.array(legend.colors[i]) / 255, f"{_plain(legend.names[i])}  {shares[i]:.1%}") for i in order[:_LINES]]
    if more := order[_LINES:]:
        lines.append((np.ones(3), f"{len(more)} more  {sum(shares[i] for i in more):.1%}"))
    patches = [Patch(facecolor=tuple(color), edgecolor="#666666", linewidth=0.5) for color, _ in lines]
    box = ax.legend(patches, ["-"] * len(lines), loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    for text, (_, name) in zip(box.get_texts(), lines, strict=True):  # a name may begin with _, or hold $
        text.set_parse_math(False)
        text.set_text(name)


def _plain(text: str) -> str:
    return text if len(text) <= 60 else f"{text[:58]} …"
