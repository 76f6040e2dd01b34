"""Scores of held-out places as a table, their differences with intervals over places, and pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from terrafm_tg.datasets.tiles.plot import tile_picture
from terrafm_tg.evaluation.held_out_picture import token_colors
from terrafm_tg.evaluation.held_out_report import SHORT_TITLES, TRAINED, UNTRAINED
from terrafm_tg.evaluation.scores import Estimate, estimate
from terrafm_tg.modalities import S1RTC, get_modality

from .scores import AS_THEY_ARE, AUROC, CANONICAL, CHANGE, DIMENSIONS, OVERALL, PRECISION, RATIO, SHARE, WITHIN
from .windows import LAYOUT, PATCHES, STATISTICS, WINDOW, Picture, Windows

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Sections of the table, each with its columns: metric and sensor (None: any).
_SECTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    WITHIN: ("Within place and date", ("recall@1", "recall@5", SHARE)),
    OVERALL: ("Over all windows", ("recall@1", "recall@5", SHARE)),
    CHANGE: ("Change, linear probe", (PRECISION, AUROC)),
    DIMENSIONS: ("Participation ratio", (RATIO,)),
}
_SHORT = {SHARE: "rank share", PRECISION: "precision", RATIO: "ratio"}
#: Lines of the table: encoder, features, title.
_LINES = [
    (STATISTICS, AS_THEY_ARE, "statistics"), (STATISTICS, CANONICAL, "statistics CC"),
    (LAYOUT, CANONICAL, "with layout CC"), (UNTRAINED, AS_THEY_ARE, "untrained"), (TRAINED, AS_THEY_ARE, "trained"),
    (UNTRAINED, CANONICAL, "untrained CC"), (TRAINED, CANONICAL, "trained CC"),
]  # fmt: skip
#: Pairs of columns whose difference is told, of one task.
_AGAINST = [
    (WITHIN, "recall@5", "trained", "untrained"), (WITHIN, "recall@5", "trained", "statistics CC"),
    (WITHIN, "recall@5", "trained CC", "untrained CC"), (WITHIN, "recall@5", "trained CC", "statistics CC"),
    (CHANGE, PRECISION, "trained", "untrained"), (CHANGE, PRECISION, "trained", "statistics"),
]  # fmt: skip


def by_place(frame: pd.DataFrame, task: str, metric: str, sensor: str, line: str) -> pd.Series:
    """Returns the scores of one line of the table by place, and by fold where a score is of none."""
    encoder, features = next((encoder, features) for encoder, features, title in _LINES if title == line)
    part = frame[(frame.task == task) & (frame.metric == metric) & (frame.sensor == sensor)]
    part = part[(part.encoder == encoder) & (part.features == features)]
    return part.set_index("fold" if task == DIMENSIONS else "place")["score"]


def over_places(scores: pd.Series) -> Estimate:
    """Estimates the mean over places and Student's 95 % interval of it."""
    found = estimate(100 * scores.to_numpy())
    return Estimate(found.mean / 100, found.low / 100, found.high / 100, found.kind, found.n)


def places_table(frame: pd.DataFrame, title: str) -> Table:
    """A table of the means over places, each with half the width of its 95 % interval.

    Args:
        frame: From :func:`~terrafm_tg.evaluation.places.scores.score_places` with a column ``fold``; several joined.
        title: Above the table.
    """
    places, windows = frame[frame.task == WITHIN].drop_duplicates("place"), frame[frame.task == DIMENSIONS]
    caption = (
        f"Means over {len(places)} places that training never saw, ± half of their 95 % interval (Student's, over "
        f"places); {int(windows.drop_duplicates('fold').n.sum()):,} windows of {WINDOW} px. Embeddings as they are, "
        "with each sensor's mean over the training places taken off; CC: after canonical correlation on the training "
        "places. Statistics: mean, standard deviation and texture of each band; with layout: also the brightness of "
        "each patch. Same place, radar to optical: recall, and rank share, the share of other windows that are nearer "
        "(lower is better). Precision is the average one."
    )
    result = Table(title=title, caption=caption, box=box.HORIZONTALS, padding=(0, 1, 0, 0), pad_edge=False)
    result.title_justify = result.caption_justify = "left"
    result.show_header = False
    for _ in range(5):
        result.add_column(justify="right" if result.columns else "left")
    for task, (heading, metrics) in _SECTIONS.items():
        part = frame[frame.task == task]
        columns = [(m, sensor) for m in metrics for sensor in sorted(part[part.metric == m].sensor.unique())]
        if not columns:
            continue
        result.add_section()
        names = [_SHORT.get(metric, metric) for metric, _ in columns]
        if task in (CHANGE, DIMENSIONS):
            names = [f"{name}, {SHORT_TITLES[sensor]}" for name, (_, sensor) in zip(names, columns, strict=True)]
        result.add_row(f"[bold]{heading}[/]", *names)
        means = [part[(part.metric == m) & (part.sensor == sensor)].chance.mean() for m, sensor in columns]
        if np.isfinite(means).all():
            result.add_row("  chance", *(f"{mean:.3f}" for mean in means))
        for *_, line in _LINES:
            scores = [by_place(frame, task, *column, line) for column in columns]
            if any(len(x) for x in scores):
                result.add_row(f"  {line}", *map(_cell, scores))
    return result


def _cell(scores: pd.Series) -> str:
    if scores.empty:
        return "–"
    found, digits = over_places(scores), 1 if scores.mean() > 1 else 3
    return f"{found.mean:.{digits}f}" + (f" ±{found.high - found.mean:.{digits}f}" if found.kind else "")


def differences(frame: pd.DataFrame) -> list[str]:
    """Says paired differences over places, with their 95 % interval and in standard errors."""
    lines = []
    for task, metric, column, other in _AGAINST:
        for sensor in sorted(frame[(frame.task == task) & (frame.metric == metric)].sensor.unique(), reverse=True):
            pairs = [by_place(frame, task, metric, sensor, name) for name in (column, other)]
            apart = (pairs[0] - pairs[1]).dropna()
            if len(apart) < 2:
                continue
            found, error = over_places(apart), apart.std() / len(apart) ** 0.5
            what = f"{task}, {metric}" + f", {SHORT_TITLES.get(sensor, sensor)}" * (task == CHANGE)
            interval = f" ({found.low:+.3f} to {found.high:+.3f})" if found.kind else ""
            errors = f"{apart.mean() / max(error, 1e-12):+.1f} standard errors over {len(apart)} places"
            lines.append(f"{what}: {column} − {other} {found.mean:+.3f}{interval}, {errors}")
    return lines


def query_figure(
    windows: Windows, pictures: Mapping[str, Picture], optical: str, count: int = 5, seed: int = 0
) -> "Figure":
    """Draws radar windows, one a place by lot, and the optical windows nearest to each before and after training.

    Args:
        windows: Of all places.
        pictures: One of each held-out place, of its first date.
        optical: Modality of the optical images.
        count: Queries at most.
        seed: Of the lot.
    """
    from matplotlib.figure import Figure

    rng, where = np.random.default_rng(seed), windows.where
    test = where["place"].isin([*pictures]).to_numpy()
    places = sorted(pictures)[:count]
    shown = 4
    fig = Figure(figsize=(11.5, 1.17 * len(places) + 0.6), layout="constrained")
    axes = fig.subplots(len(places), 2 + 2 * shown, squeeze=False)
    for line, place in zip(axes, places, strict=True):
        at = _windows_of(where, pictures[place])
        query = int(rng.choice(at))
        colors = {name: _colors(x, name) for name, x in pictures[place].images.items()}
        line[0].imshow(_crop(colors[S1RTC.name], where, query))
        line[1].imshow(_crop(colors[optical], where, query))
        line[0].set_ylabel(place, fontsize=9)
        for block, encoder in enumerate((UNTRAINED, TRAINED)):
            sides = [windows.features[encoder][name] for name in (S1RTC.name, optical)]
            a, b = sides[0][[query]] - sides[0][~test].mean(axis=0), sides[1][at] - sides[1][~test].mean(axis=0)
            near = (a / np.linalg.norm(a)) @ (b / np.linalg.norm(b, axis=1, keepdims=True)).T
            for rank, other in enumerate(at[np.argsort(-near[0])][:shown].tolist()):
                ax = line[2 + shown * block + rank]
                ax.imshow(_crop(colors[optical], where, other))
                if other == query:
                    for spine in ax.spines.values():
                        spine.set(color="#18a558", linewidth=4)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    heads = ["radar", "its place"] + [f"{name} {n + 1}" for name in (UNTRAINED, TRAINED) for n in range(shown)]
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head, fontsize=9)
    fig.suptitle("A radar window, and the optical windows that the encoder holds nearest (green: the same place)")
    return fig


def _colors(image: NDArray, name: str) -> NDArray:
    """Returns an image as RGB, each color stretched by itself: haze would make L1C blue."""
    shown = tile_picture(image, get_modality(name))
    there = np.isfinite(image).any(axis=0)
    low, high = np.percentile(shown[there], (2, 98), axis=0)
    return ((shown - low) / np.maximum(high - low, 1e-6)).clip(0, 1)


def _windows_of(where: pd.DataFrame, picture: Picture) -> NDArray[np.int64]:
    """Finds the windows of a picture."""
    same = (where["place"] == picture.place) & (where["date"] == picture.date)
    return np.flatnonzero(same & (where["grid"] == str(picture.grid)))


def _crop(picture: NDArray, where: pd.DataFrame, index: int) -> NDArray:
    row, column = (int(where[side].iat[index]) * WINDOW for side in ("row", "column"))
    return picture[row : row + WINDOW, column : column + WINDOW]


def token_figure(windows: Windows, picture: Picture) -> "Figure":
    """Draws a place in both sensors, and its patch tokens before and after training by their three main directions."""
    from matplotlib.figure import Figure

    where = windows.where
    at = _windows_of(where, picture)
    rows, columns = (where[side].to_numpy()[at] for side in ("row", "column"))
    high, wide = ((int(side.max()) + 1) for side in (rows, columns))
    names = list(picture.images)
    fig = Figure(figsize=(9.5, 0.3 + 2 * 3.1 * high / wide), layout="constrained")
    axes = fig.subplots(2, 3)
    for line, name in zip(axes, names, strict=True):
        image = _colors(picture.images[name], name)
        line[0].imshow(image[: high * WINDOW, : wide * WINDOW])
        line[0].set_title(get_modality(name).title.removesuffix(" RTC"), fontsize=9)
    for column, encoder in enumerate((UNTRAINED, TRAINED), start=1):
        colors = token_colors([windows.tokens[encoder][name][at] for name in names])
        for ax, part in zip(axes[:, column], colors, strict=True):
            shown = np.ones((high, PATCHES, wide, PATCHES, 3))
            shown[rows, :, columns] = part.reshape(-1, PATCHES, PATCHES, 3)
            ax.imshow(shown.reshape(high * PATCHES, wide * PATCHES, 3), interpolation="nearest")
            ax.set_title(f"tokens, {encoder}", fontsize=9)
    for ax in axes.ravel():
        ax.set(xticks=[], yticks=[])
    fig.suptitle(f"{picture.place}: equal colors are equal directions of tokens, in both sensors")
    return fig


def write_places(
    frame: pd.DataFrame, windows: Windows, pictures: Mapping[str, Picture], optical: str, folder: Path
) -> list[Path]:
    """Writes ``places.csv`` and two pictures, ``queries.jpg`` and ``tokens.jpg`` (of the largest held-out place).

    Returns:
        Their paths.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / name for name in ("places.csv", "queries.jpg", "tokens.jpg")]
    frame.to_csv(paths[0], index=False, float_format="%.6g")
    largest = max(pictures, key=lambda place: len(_windows_of(windows.where, pictures[place])))
    for path, figure in zip(
        paths[1:], (query_figure(windows, pictures, optical), token_figure(windows, pictures[largest])), strict=True
    ):
        figure.savefig(path, dpi=110, pil_kwargs={"quality": 85})
    return paths
