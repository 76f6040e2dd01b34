"""A figure of a tile index: a map of its tiles, and their classes, zones and regions before and after sampling."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd

from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.index.layers import CONTINENTS, KOPPEN_GEIGER, places
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES, UNKNOWN
from terrafm_tg.modalities import Modality
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_OCEAN, _UNSEEN = "#9fc3de", "#e8b4a0"
#: Colors of the published map, then ocean's.
COLORS = (*("#{:02x}{:02x}{:02x}".format(*c.color) for c in CLASSES), _OCEAN)
_INK, _LAND, _SEA = "#1b1f24", "#dcdcd8", "#f5f8fa"
_STAGES = {"all tiles": "#c3cad1", "without most ocean": "#6fa3cf", "drawn in an epoch": "#1f4e79"}
_POINTS = 20_000  # more tiles than these are drawn as a raster
_BIN = 0.25  # degrees of its pixels


class _Tiles(TileDataset):
    """Tiles of which no pixel is wanted."""

    def _read(self, row: int, modality: Modality) -> None:
        return None


def stage_weights(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Computes each tile's weight among all, among those that the sampler keeps, and in its draws, float (n,).

    Only the first stage where the sampler, with its default settings, has nothing left to draw.
    """
    weights = [np.ones(len(table))]
    try:
        sampler = LandCoverSampler(_Tiles(table))
    except TerraFMError:  # nothing but ocean
        sampler = None
    if sampler is not None:
        weights += [np.zeros(len(table)), np.zeros(len(table))]
        weights[1][sampler.rows], weights[2][sampler.rows] = 1, sampler.expected_counts
    return dict(zip(_STAGES, weights, strict=False))


def class_shares(classes: pd.Series, weights: dict[str, np.ndarray]) -> pd.DataFrame:
    """Computes the share of each value of a class column in each stage.

    Args:
        classes: ``land_cover``, ``climate`` or ``region`` of a tile table.
        weights: As from :func:`stage_weights`.

    Returns:
        One row per value that occurs, in order; a column per stage that sums to 1.
    """
    values = classes.to_numpy(np.int64) - UNKNOWN
    shares = pd.DataFrame({stage: np.bincount(values, w) / w.sum() for stage, w in weights.items()})
    shares.index += UNKNOWN
    return shares[shares["all tiles"] > 0]


def draw_index(table: pd.DataFrame, regions: Sequence[str] = (), earth: bool = True) -> "Figure":
    """Draws a map of the tiles by land cover, and shares per class, climate zone and region in three stages.

    Args:
        table: A tile table that ``terrafm index`` wrote.
        regions: Names of its regions.
        earth: Draw the continents beneath; a simulated planet has others.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 12.5), layout="constrained", facecolor="white")
    world, below = np.asarray(figure.subfigures(2, 1, height_ratios=[1.45, 1]))
    _draw_map(world.subplots(), table, earth)
    columns = {
        "land_cover": ("Land cover (ESA WorldCover)", CLASS_NAMES),
        "climate": ("Climate zone (Köppen-Geiger)", ("", *KOPPEN_GEIGER)),
        "region": ("Region", regions),
    }
    weights = stage_weights(table)
    axes = below.subplots(1, 3, width_ratios=[1, 1, 0.8])
    for ax, (column, (title, names)) in zip(axes, columns.items(), strict=True):
        shares = class_shares(table[column], weights)
        labels = [_label(value, names) for value in shares.index]
        _draw_bars(ax, shares, labels, title)
        if column == "land_cover":
            colors = [COLORS[value] if value >= 0 else _UNSEEN for value in shares.index]
            ax.scatter(
                np.full(len(colors), -0.018), range(len(colors)), s=80, marker="s", c=colors, lw=0.5,
                edgecolors=_INK, clip_on=False, transform=ax.get_yaxis_transform(), zorder=4,
            )  # fmt: skip
            ax.tick_params(axis="y", pad=12)
    handles, names = axes[0].get_legend_handles_labels()
    below.legend(handles, names, loc="outside lower center", ncols=3, frameon=False, fontsize=11)
    return figure


def write_index_figure(table: pd.DataFrame, regions: Sequence[str], path: Path, earth: bool = True) -> None:
    """Writes :func:`draw_index` as PNG, atomically."""
    with atomic_write(path) as part:
        draw_index(table, regions, earth).savefig(part, format="png", dpi=110)


def _label(value: int, names: Sequence[str]) -> str:
    if value == UNKNOWN:
        return "not known"
    return names[value] if value < len(names) else str(value)


def _draw_map(ax: "Axes", table: pd.DataFrame, earth: bool) -> None:
    from matplotlib.colors import BoundaryNorm, ListedColormap
    from matplotlib.ticker import MaxNLocator

    lon, lat = places(table)
    classes = table["land_cover"].to_numpy(np.int64)
    cmap, norm = (ListedColormap([_UNSEEN, *COLORS]), BoundaryNorm(np.arange(-1.5, len(COLORS)), len(COLORS) + 1))
    if earth:
        outline = gpd.read_file(CONTINENTS)
        outline.plot(ax=ax, facecolor=_LAND, edgecolor="none", zorder=1)
        outline.boundary.plot(ax=ax, color="#8d949b", lw=0.5, zorder=3)
    if len(table) > _POINTS:
        image = _majority_per_bin(lon, lat, classes)
        ax.imshow(
            np.ma.masked_less(image, UNKNOWN), cmap=cmap, norm=norm, origin="lower", interpolation="nearest",
            extent=(-180, 180, -90, 90), zorder=2,
        )  # fmt: skip
    else:
        size = np.clip(40_000 / max(len(table), 1), 4, 30)
        ax.scatter(lon, lat, c=classes, cmap=cmap, norm=norm, s=size, marker="s", lw=0.2, ec=_INK, zorder=4)
    x, y, half = _extent(lon, lat)
    ax.set(xlim=(x - half, x + half), ylim=(y - half / 2, y + half / 2), xlabel="", ylabel="")
    ax.set(aspect="equal", facecolor=_SEA)
    for axis, ends in ((ax.xaxis, "EW"), (ax.yaxis, "NS")):
        axis.set_major_locator(MaxNLocator(7, steps=[1, 2, 3, 5, 6, 10]))
        axis.set_major_formatter(partial(_degrees, ends))
    ax.tick_params(length=0, labelsize=9, labelcolor="#5c656e")
    ax.spines[:].set_color("#c3cad1")
    cells = table["cell"].nunique()
    title = f"{len(table):,} tiles in {cells:,} cells, by their most frequent land cover"
    ax.set_title(title, loc="left", fontsize=14, fontweight="bold", color=_INK)


def _degrees(ends: str, value: float, _: int | None) -> str:
    return f"{abs(value):g}°{ends[int(value < 0)] if value else ''}"


def _extent(lon: np.ndarray, lat: np.ndarray) -> tuple[float, float, float]:
    """Returns middle and half width in degrees of a map of all tiles, twice as wide as high: the world, or less."""
    if not len(lon):
        return 0.0, 0.0, 180.0
    half = 0.6 * max(np.ptp(lon), 2 * np.ptp(lat), 2.0)
    if half > 90:
        return 0.0, 0.0, 180.0
    middle = (lon.min() + lon.max()) / 2, (lat.min() + lat.max()) / 2
    return float(middle[0]), float(np.clip(middle[1], half / 2 - 90, 90 - half / 2)), float(half)


def _majority_per_bin(lon: np.ndarray, lat: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Returns the most frequent class of each bin of the globe, from south to north; -2 where there is no tile."""
    width, height = round(360 / _BIN), round(180 / _BIN)
    col = np.clip((lon + 180) / _BIN, 0, width - 1).astype(np.int64)
    row = np.clip((lat + 90) / _BIN, 0, height - 1).astype(np.int64)
    kinds = len(COLORS) + 1
    bins = (row * width + col) * kinds + classes - UNKNOWN
    counts = np.bincount(bins, minlength=height * width * kinds).reshape(height, width, kinds)
    return np.where(counts.any(axis=2), counts.argmax(axis=2) + UNKNOWN, UNKNOWN - 1)


def _draw_bars(ax: "Axes", shares: pd.DataFrame, labels: list[str], title: str) -> None:
    """Draws horizontal bars, a group per value."""
    colors = [_STAGES[stage] for stage in shares]
    (100 * shares).set_axis(labels).plot.barh(ax=ax, width=0.8, color=colors, legend=False, zorder=2)
    ax.tick_params(axis="y", labelsize=10 if len(labels) < 20 else 7.5)
    ax.invert_yaxis()
    ax.set_xlabel("share (%)", fontsize=10)
    ax.set_title(title, loc="left", fontsize=12, fontweight="bold", color=_INK)
    ax.grid(axis="x", color="#e3e7eb", zorder=0)
    ax.tick_params(length=0, colors=_INK)
    ax.spines[:].set_visible(False)
