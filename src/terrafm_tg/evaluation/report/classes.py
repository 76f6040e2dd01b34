"""Scores per class and confusion matrices."""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.evaluation.metrics import TRUE

from .blocks import Cell, Table
from .entries import as_json
from .summary import Line, groups, leading
from .tables import NONE, protocol_title

_MOST = 6  # entries beside each other
_MEANS = {
    "accuracy": "Accuracy per class (recall)", "oa": "Accuracy per class (recall)", "balanced-accuracy": "Recall",
    "f1": "F1", "macro-f1": "F1", "map": "Average precision", "macro-map": "Average precision", "miou": "IoU",
}  # fmt: skip


def per_class(table: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Table]:
    """A table per dataset and protocol, at its largest train fraction: classes by entries, the best first.

    Args:
        table: From :func:`~.entries.entries`.
        lines: From :func:`~.summary.summarise`.
    """
    for best, found in _groups(table, lines, "per_class"):
        values = {line.entry: _mean(found[line.entry]) for line in best if line.entry in found}
        shown = list(values)[:_MOST]
        names = class_names(best[0].dataset, max(len(values[entry]) for entry in shown))
        rows = [
            [Cell(name), *(_bar(values[entry][i]) if i < len(values[entry]) else NONE for entry in shown)]
            for i, name in enumerate(names)
        ]
        more = f" The best {_MOST} of {len(values)} models." if len(values) > _MOST else ""
        metric = _MEANS.get(best[0].metric, best[0].metric)
        note = f"{metric}, mean over seeds; – where a class does not occur.{more}"
        yield Table(_title(best[0]), ["class", *shown], rows, True, "bars", note)


def confusions(table: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Table]:
    """The confusion matrix of the best entry per dataset and protocol, all seeds together; arguments as above."""
    for best, found in _groups(table, lines, "confusion"):
        line = next(line for line in best if line.entry in found)
        total = np.sum([np.asarray(matrix, dtype=float) for matrix in found[line.entry]], axis=0)
        names = class_names(line.dataset, len(total))
        counts = total.sum(1)
        shares = np.divide(total, counts[:, None], out=np.zeros_like(total), where=counts[:, None] > 0)
        rows = [
            [Cell(name, f"{count:,.0f}"), *map(_shade, of_class)]
            for name, count, of_class in zip(names, counts, shares, strict=True)
        ]
        note = f"{line.entry}. Rows: true class and its count; columns: predicted; percent of the row."
        yield Table(_title(line), ["true \\ predicted", *names], rows, True, "heat", note)


def class_names(dataset: str, count: int) -> Sequence[str]:
    """The task's classes; numbers where it is unknown or has other classes."""
    known = TASKS[dataset].classes if dataset in TASKS else ()
    return known if len(known) == count else [f"class {i}" for i in range(count)]


def _groups(
    table: pd.DataFrame, lines: Sequence[Line], column: str
) -> Iterator[tuple[list[Line], dict[str, list[list]]]]:
    """Per dataset and protocol, at the largest fraction: entries from best to worst, and their values of the column."""
    known = table[table[column].map(lambda value: bool(as_json(value))) & (table.average == TRUE)]
    keys = ("dataset", "protocol", "metric", "train_fraction")
    rows = groups(known.itertuples(), lambda row: tuple(getattr(row, key) for key in keys))
    for group in groups(leading(lines), lambda line: (line.dataset, line.protocol)).values():
        largest = max(line.train_fraction for line in group)
        best = sorted((x for x in group if x.train_fraction == largest), key=lambda line: -line.mean)
        found = groups(rows.get(tuple(getattr(best[0], key) for key in keys), []), lambda row: row.entry)
        if found:
            yield best, {entry: [as_json(getattr(row, column)) for row in of] for entry, of in found.items()}


def _mean(values: Sequence[Sequence[float | None]]) -> np.ndarray:
    """Mean over seeds, of the classes that occur."""
    table = np.array([[np.nan if value is None else value for value in row] for row in values], float)
    return np.ma.masked_invalid(table).mean(axis=0).filled(np.nan)


def _bar(value: float) -> Cell:
    return NONE if np.isnan(value) else Cell(f"{value:.1f}", fill=min(max(float(value), 0), 100) / 100)


def _shade(value: float) -> Cell:
    return Cell(f"{100 * value:.0f}" if value >= 0.005 else "" if value == 0 else "<1", fill=float(value))


def _title(line: Line) -> str:
    return f"{line.dataset}: {protocol_title(line)}"
