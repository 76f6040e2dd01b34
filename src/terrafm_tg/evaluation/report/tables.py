"""The report's tables: scores, differences to published ones, classes, settings of the run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.tasks.finetune.metrics import TRUE

from .lines import RUN, SETTINGS, Line, Pair, as_json, as_text, average_of, groups, leading, settings_of
from .published import TITLES, Published, highest

_UNFOLDED = 24  # rows of a table that the page shows at once
_COMPARED = ("dataset", "model", "score", "to the same model, published", "to the best published")
_CLASSES = 6  # entries of a table of classes
_SHOWN = 8  # values of a setting
_SIGNS = {"above": " ▲", "below": " ▼", "within": " ≈", "": ""}
#: The score of a class, by the metric of all.
_MEANS = {
    "accuracy": "Accuracy per class (recall)", "oa": "Accuracy per class (recall)", "balanced-accuracy": "Recall",
    "f1": "F1", "macro-f1": "F1", "map": "Average precision", "macro-map": "Average precision", "miou": "IoU",
}  # fmt: skip


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: Its text.
        small: A second, smaller line.
        tone: "above" or "below" for a difference that exceeds the interval, "best", "published", "link" for text with
            addresses, or "".
        fill: Share of the cell that a bar or a shade fills, 0 to 1; None for neither.
    """

    text: str
    small: str = ""
    tone: str = ""
    fill: float | None = None


class Table(NamedTuple):
    """A table; its first column names the rows.

    Attributes:
        title: Above it.
        header: One name per column.
        rows: Cells, as many as names.
        folded: Whether the page shows only the title at first.
        kind: "scores", "bars" (cells filled by their share), "heat" (cells shaded by their share) or "words".
        note: A line beneath.
        words: Number of columns, from the first, that hold words and are aligned to the left.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    kind: str = "scores"
    note: str = ""
    words: int = 1


NONE = Cell("–")


def percent(fraction: float) -> str:
    """Returns a train fraction in words."""
    return f"{100 * fraction:g} %"


def protocol_title(line: Line) -> str:
    """Returns the protocol and the share of training data."""
    return f"{TITLES.get(line.protocol, line.protocol)}, {percent(line.train_fraction)}"


def signed(change: float) -> str:
    """Returns a difference with its sign."""
    text = f"{change:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def duration(seconds: float) -> str:
    """Returns a time in seconds, minutes or hours."""
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def difference_cell(line: Line, score: Published | None) -> Cell:
    """Returns ours minus a published score, marked if the difference exceeds the interval."""
    if score is None:
        return NONE
    verdict = line.against(score)
    small = f"{score.label}: {score.score:.1f}" + ("" if line.comparable else "; another test split")
    return Cell(signed(line.mean - score.score) + _SIGNS[verdict], small, _tone(verdict))


def _tone(verdict: str) -> str:
    return verdict if verdict in ("above", "below") else ""


def best_table(lines: Sequence[Line]) -> Table:
    """Returns the best entry of each dataset and protocol, at the largest train fraction and those published."""
    lead = leading(lines)
    largest = {key: max(x.train_fraction for x in of) for key, of in groups(lead, _judged).items()}
    shown = [x for x in lead if x.published or x.train_fraction == largest[_judged(x)]]
    rows = []
    for group in groups(shown, lambda x: (*_judged(x), x.train_fraction)).values():
        best = max(group, key=lambda line: line.mean)
        level = [x.entry for x in group if x is not best and best.estimate.kind and best.estimate.low <= x.mean]
        said = f"{len(level)} others" if len(level) > 2 else "; ".join(level)
        rows.append(_compared(best, f"within its interval: {said}" if said else ""))
    return Table("Best of ours per dataset", _COMPARED, rows, kind="words")


def difference_table(lines: Sequence[Line]) -> Table:
    """Returns every entry of a benchmark and protocol with its difference to the published scores."""
    rows = [_compared(x) for x in lines if x.published and x.average == average_of(x.protocol)]
    return Table("Differences to the published scores", _COMPARED, rows, len(rows) > _UNFOLDED, "words")


def _compared(line: Line, level: str = "") -> list[Cell]:
    """Returns a row: dataset, entry, score, and the differences to the published scores."""
    metric = line.metric if line.average == TRUE else f"{line.metric} ({line.average})"
    return [
        Cell(line.dataset, protocol_title(line)),
        Cell(line.entry, level),
        Cell(f"{line.mean:.1f}", f"{metric}, {line.estimate.words}"),
        *(difference_cell(line, score) for score in (line.reference, highest(line.published))),
    ]


def score_table(lines: Sequence[Line], folded: bool) -> Table:
    """Returns models by datasets: ours, then the published, the best on average first.

    Args:
        lines: Of one benchmark, protocol and train fraction.
        folded: Whether the page folds it.
    """
    headlines = {_column(line) for line in leading(lines)}
    compared = {_column(line) for line in lines if line.published and line.average == TRUE}
    columns = [key for key in dict.fromkeys(map(_column, lines)) if key in headlines | compared]
    averages = dict.fromkeys([average_of(lines[0].protocol), TRUE])
    rows: dict[Cell, dict[tuple[str, str], Cell]] = {}
    for average in averages:
        shown = [line for line in lines if line.average == average and _column(line) in columns]
        tops = {key: max(line.mean for line in column) for key, column in groups(shown, _column).items()}
        for line in shown:
            tone = "best" if line.mean == tops[_column(line)] else ""
            name = Cell(line.entry, average if len(averages) > 1 else "")
            rows.setdefault(name, {})[_column(line)] = Cell(f"{line.mean:.1f}", line.estimate.words, tone)
    by_column = groups(lines, _column)
    theirs = {key: {p.label: p.score for p in by_column[key][0].published} for key in columns}
    for label in pd.DataFrame(theirs).mean(axis=1).sort_values(ascending=False, kind="stable").index:
        cells = rows.setdefault(Cell(label, "published", "published"), {})
        for key, column in theirs.items():
            if label in column:
                tone = "best" if column[label] == max(column.values()) else "published"
                cells[key] = Cell(f"{column[label]:.1f}", "", tone)
    header = ["model", *(f"{dataset}\n{metric}" for dataset, metric in columns)]
    table = [[name, *(cells.get(key, NONE) for key in columns)] for name, cells in rows.items()]
    return Table(f"{percent(lines[0].train_fraction)} of the training data", header, table, folded)


def pair_table(pairs: Sequence[Pair], setting: str) -> Table:
    """Returns the scores with both values of a setting, and their differences."""
    rows = [
        [
            Cell(pair.first.dataset, protocol_title(pair.first)),
            Cell(pair.name),
            *(Cell(f"{x.mean:.1f}", SETTINGS[setting](x.settings[setting])) for x in pair[:2]),
            Cell(
                signed(pair.change.mean) + _SIGNS[pair.verdict], pair.change.words, pair.verdict.replace("within", "")
            ),
        ]
        for pair in pairs
    ]
    header = ["dataset", "model", "first", "second", "second − first"]
    return Table("Differences", header, rows, len(rows) > _UNFOLDED, "words")


def class_tables(table: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Table]:
    """Yields a table per dataset and protocol, at its largest train fraction: classes by entries, the best first.

    Args:
        table: From :func:`~.lines.entries`.
        lines: From :func:`~.lines.score_lines`.
    """
    for best, found in _with_column(table, lines, "per_class"):
        entries = [line.entry for line in best if line.entry in found]
        shown = entries[:_CLASSES]
        means = pd.DataFrame({x: pd.DataFrame(found[x], dtype=float).mean() for x in shown})
        more = f" The best {_CLASSES} of {len(entries)} models." if len(entries) > _CLASSES else ""
        note = f"{_MEANS.get(best[0].metric, best[0].metric)}, mean over seeds; – where a class does not occur.{more}"
        rows = [
            [Cell(name), *(NONE if np.isnan(x) else Cell(f"{x:.1f}", fill=min(max(x, 0), 100) / 100) for x in row)]
            for name, row in zip(_classes(best[0].dataset, len(means)), means.to_numpy(), strict=True)
        ]
        yield Table(f"{best[0].dataset}: {protocol_title(best[0])}", ["class", *shown], rows, True, "bars", note)


def confusion_tables(table: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Table]:
    """Yields the confusion matrix of the best entry per dataset and protocol, all seeds together."""
    for best, found in _with_column(table, lines, "confusion"):
        line = next(line for line in best if line.entry in found)
        total = np.sum([np.asarray(matrix, dtype=float) for matrix in found[line.entry]], axis=0)
        names = _classes(line.dataset, len(total))
        rows = []
        for name, counts in zip(names, total, strict=True):
            shares = (float(count / max(counts.sum(), 1)) for count in counts)
            texts = (Cell(f"{100 * x:.0f}" if x >= 0.005 else "<1" if x else "", fill=x) for x in shares)
            rows.append([Cell(name, f"{counts.sum():,.0f}"), *texts])
        note = f"{line.entry}. Rows: true class and its count; columns: predicted; percent of the row."
        title = f"{line.dataset}: {protocol_title(line)}"
        yield Table(title, ["true \\ predicted", *names], rows, True, "heat", note)


def _with_column(
    table: pd.DataFrame, lines: Sequence[Line], column: str
) -> Iterator[tuple[list[Line], dict[str, list[list]]]]:
    """Yields entries from the best to the worst at the largest fraction, and values of a column by entry."""
    known = table[table[column].map(lambda value: bool(as_json(value))) & (table.average == TRUE)]
    keys = ("dataset", "protocol", "metric", "train_fraction")
    rows = groups(known.itertuples(), lambda row: tuple(getattr(row, key) for key in keys))
    for group in groups(leading(lines), _judged).values():
        largest = max(line.train_fraction for line in group)
        best = sorted((x for x in group if x.train_fraction == largest), key=lambda line: -line.mean)
        found = groups(rows.get(tuple(getattr(best[0], key) for key in keys), []), lambda row: row.entry)
        if found:
            yield best, {entry: [as_json(getattr(row, column)) for row in of] for entry, of in found.items()}


def _classes(dataset: str, count: int) -> Sequence[str]:
    """Returns the task's classes; numbers if it is unknown or has other classes."""
    known = TASKS[dataset].classes if dataset in TASKS else ()
    return known if len(known) == count else [f"class {i}" for i in range(count)]


def run_tables(table: pd.DataFrame) -> Iterator[Table]:
    """Yields models and their settings, protocols and theirs, time per unit, machines and versions.

    Args:
        table: From :func:`~.lines.entries`.
    """
    models = table.assign(size=table.pixels, sensors=table.read).drop_duplicates(["entry", *SETTINGS])
    told = [setting for setting in SETTINGS if models[setting].any()]
    note = "Empty: the default; for weights, random ones."
    yield _plain("Models", "name", models.groupby("entry", sort=False)[told].agg(_values), kind="words", note=note)
    rank = {name: i for i, name in enumerate(dict.fromkeys([*TITLES, *table.protocol]))}
    table = table.sort_values("protocol", key=lambda column: column.map(rank), kind="stable")
    settings = pd.DataFrame.from_dict(
        {name: _settings(str(name), rows.settings) for name, rows in table.groupby("protocol", sort=False)},
        orient="index", columns=["settings", "chosen on the way"],
    )  # fmt: skip
    if settings.to_numpy().any():
        yield _plain("Protocols", "protocol", settings, kind="words")
    times = table.drop_duplicates(RUN).groupby(["protocol", "entry"], sort=False).seconds
    measures = times.agg(["median", "max", "sum"]).map(duration)
    rows = [[*map(Cell, key), Cell(str(n)), *map(Cell, measures.loc[key])] for key, n in times.size().items()]
    yield Table("Time", ["protocol", "model", "units", "median", "longest", "together"], rows, words=2)
    machine = {"machine": _values(table.machine)} | {k: _values(v) for k, v in _by_key(table.versions).items()}
    yield _plain("Machine and versions", "what", pd.DataFrame({"values": machine}), kind="words")


def all_scores_table(lines: Iterable[Line]) -> Table:
    """Returns every score of every seed."""
    rows = []
    for line in lines:
        found = line.estimate
        words = (line.dataset, line.protocol, line.entry, percent(line.train_fraction), line.metric, line.average)
        scores = " ".join(f"{score:.2f}" for score in line.scores.values())
        rows.append(
            [
                *map(Cell, (*words, f"{found.mean:.2f}")),
                Cell(f"{found.low:.2f}–{found.high:.2f}", found.kind) if found.kind else NONE,
                Cell(scores, "seeds " + " ".join(map(str, line.scores))),
                *map(Cell, (str(line.n_train), str(line.n_test))),
            ]
        )
    header = ["dataset", "protocol", "model", "train", "metric", "average", "mean", "interval", "scores"]
    return Table("Every score", [*header, "train samples", "test samples"], rows, folded=True, words=6)


def _plain(title: str, index: str, frame: pd.DataFrame, **settings: Any) -> Table:
    """Returns a frame of texts as a table."""
    rows = [list(map(Cell, row)) for row in frame.itertuples()]
    return Table(title, [index, *frame.columns], rows, **settings)


def _settings(protocol: str, column: Iterable[Any]) -> tuple[str, str]:
    """Returns the settings that a protocol was given, and those that it found by itself."""
    own = settings_of(protocol)
    said = {key: f"{key} {_values(values)}" for key, values in _by_key(column).items() if _values(values)}
    return (
        "; ".join(words for key, words in said.items() if key in own),
        "; ".join(words for key, words in said.items() if key not in own),
    )


def _values(values: Iterable[Any]) -> str:
    """Returns distinct values in their order, the first few of many; empty ones are left out."""
    known = [value for value in dict.fromkeys(map(_short, values)) if value]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return " | ".join(known[:_SHOWN]) + more


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and value == value else as_text(value)


def _by_key(column: Iterable[Any]) -> Mapping[str, list[Any]]:
    """Returns the values of every key of JSON objects."""
    values: dict[str, list[Any]] = {}
    for text in dict.fromkeys(column):
        for key, value in (as_json(text) or {}).items():
            if not isinstance(value, dict):  # the scores of all choices are in the results table
                said = ", ".join(map(_short, value)) if isinstance(value, list) else value
                values.setdefault(str(key), []).append(said)
    return values


def _judged(line: Line) -> tuple[str, str]:
    return line.dataset, line.protocol


def _column(line: Line) -> tuple[str, str]:
    return line.dataset, line.metric
