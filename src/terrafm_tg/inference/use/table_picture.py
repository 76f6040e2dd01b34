"""A picture of a table: its rows at their places."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terrafm_tg.inference.products.legend import Legend
from terrafm_tg.utils.files import atomic_write

from .tables import TableLayer


def write_table_picture(
    path: Path, layer: TableLayer, values: NDArray, legend: Legend | None = None, unit: str = ""
) -> None:
    """Draws the rows of a table at their places, with a legend of classes or a scale of numbers.

    Args:
        path: The PNG, written atomically.
        layer: The table.
        values: Class of each row, -1 where missing; or its number, NaN where missing.
        legend: Of classes; None for numbers.
        unit: Of numbers.
    """
    from matplotlib.figure import Figure

    west, south, _, north = layer.bounds()
    figure = Figure(figsize=(9, 6), layout="constrained")
    ax = figure.subplots()
    lon, lat = layer.lonlat(np.arange(layer.count))
    lon = np.where(lon < west, lon + 360, lon)  # across 180°
    size = float(np.clip(30_000 / max(layer.count, 1), 3, 60))
    missing = values < 0 if legend else ~np.isfinite(values)
    if missing.any():
        ax.scatter(lon[missing], lat[missing], s=size / 2, color="#bbbbbb", marker="x", label="missing")
    if legend is None:
        there = ~missing
        low, high = np.percentile(values[there], (2, 98)) if there.any() else (0, 1)
        shown = ax.scatter(lon[there], lat[there], s=size, c=values[there], vmin=low, vmax=high, marker="s")
        figure.colorbar(shown, ax=ax, shrink=0.8, extend="both").set_label(unit)
    else:
        for number, (name, color) in enumerate(zip(legend.names, legend.colors, strict=True)):
            one = values == number
            if one.any():
                label = f"{name}  {one.mean():.1%}".lstrip("_")
                ax.scatter(lon[one], lat[one], s=size, color=tuple(np.array(color) / 255), marker="s", label=label)
        box = ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
        for text in box.get_texts():
            text.set_parse_math(False)
    ax.set_aspect(1 / max(float(np.cos(np.radians((south + north) / 2))), 0.05), adjustable="datalim")
    ax.set(xlabel="longitude (°)", ylabel="latitude (°)")
    ax.set_title(layer.name, loc="left", fontsize=10, parse_math=False)
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=150)
