"""A figure of a tile index: a map of its tiles, and their classes, zones and regions before and after sampling."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import geopandas as gpd
import numpy as np
import pandas as pd

from terrafm_tg.datasets import TileDataset
from terrafm_tg.datasets.esa_worldcover import CONTINENTS
from terrafm_tg.datasets.index.layers import KOPPEN_GEIGER, places
from terrafm_tg.errors import TerraFMError
from terrafm_tg.land_cover import CLASS_NAMES, CLASSES, UNKNOWN
from terrafm_tg.modalities import Modality
from terrafm_tg.samplers import LandCoverSampler
from terrafm_tg.utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Colors of the published map, then ocean's and that of unknown land cover (index -1).
COLORS = (*("#{:02x}{:02x}{:02x}".format(*c.color) for c in CLASSES), "#9fc3de", "#e8b4a0")
_STAGES = {"all tiles": "#c3cad1", "without most ocean": "#6fa3cf", "drawn in an epoch": "#1f4e79"}
_POINTS = 20_000  # of more tiles so many are drawn


class _Tiles(TileDataset):
    """Tiles of which no pixel is wanted."""

    def _read(self, row: int, modality: Modality) -> None:
        return None


def stage_weights(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Computes each tile's weight among all, among those that the sampler keeps, and in its draws, float (n,).

    Only the first stage where the sampler, with its default settings, has nothing left to draw.
    """
    weights = [np.ones(len(table))]
    with suppress(TerraFMError):  # nothing but ocean
        sampler = LandCoverSampler(_Tiles(table))
        kept, drawn = np.zeros((2, len(table)))
        kept[sampler.rows], drawn[sampler.rows] = 1, sampler.expected_counts
        weights += [kept, drawn]
    return dict(zip(_STAGES, weights, strict=False))


def class_shares(classes: pd.Series, weights: dict[str, np.ndarray]) -> pd.DataFrame:
    """Computes the share of each value of a class column in each stage.

    Args:
        classes: ``land_cover``, ``climate`` or ``region`` of a tile table.
        weights: As from :func:`stage_weights`.

    Returns:
        One row per value that occurs, in order; a column per stage that sums to 1.
    """
    stages = pd.DataFrame(weights)
    return stages.groupby(classes.to_numpy()).sum() / stages.sum()


def write_index_figure(table: pd.DataFrame, regions: Sequence[str], path: Path, earth: bool = True) -> None:
    """Draws a map of the tiles by land cover, and shares per class, climate zone and region in three stages.

    Args:
        table: A tile table that ``terrafm index`` wrote.
        regions: Names of its regions.
        path: The PNG, which is written atomically.
        earth: Draw the continents beneath; a simulated planet has others.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 12.5), layout="constrained")
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
        shares = 100 * class_shares(table[column], weights)
        shares.index = [_label(value, names) for value in shares.index]
        shares.plot.barh(ax=ax, width=0.8, color=[_STAGES[stage] for stage in shares], legend=False, zorder=2)
        ax.set(title=title, xlabel="share (%)", ylabel="")
        ax.tick_params(axis="y", labelsize=10 if len(shares) < 20 else 7.5)
        ax.invert_yaxis()
        ax.grid(axis="x", zorder=0)
    below.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=110)


def _label(value: int, names: Sequence[str]) -> str:
    if value == UNKNOWN:
        return "not known"
    return names[value] if value < len(names) else str(value)


def _draw_map(ax: "Axes", table: pd.DataFrame, earth: bool) -> None:
    """Draws the tiles, or some of many, in the colors of their land cover."""
    shown = table.sample(min(len(table), _POINTS), random_state=0)
    lon, lat = places(shown)
    classes = shown["land_cover"].to_numpy()
    size = np.clip(40_000 / max(len(shown), 1), 4, 30)
    for value in np.unique(classes):
        one = classes == value
        label = _label(value, CLASS_NAMES)
        ax.scatter(lon[one], lat[one], s=size, color=COLORS[value], marker="s", label=label, zorder=4)
    ax.set_aspect("equal")
    if earth:
        limits = ax.axis()
        gpd.read_file(CONTINENTS).plot(ax=ax, facecolor="#dcdcd8", edgecolor="#8d949b", lw=0.5, aspect=None, zorder=1)
        ax.axis(limits)
    ax.set(xlabel="longitude (°)", ylabel="latitude (°)", facecolor="#f5f8fa")
    ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    ax.set_title(f"{len(table):,} tiles in {table['cell'].nunique():,} cells, by their most frequent land cover")
