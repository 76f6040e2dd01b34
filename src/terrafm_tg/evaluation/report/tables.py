"""The report's tables: scores, differences to published ones, classes, settings of the run."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.tasks.finetune.metrics import TRUE

from .lines import RUN, SETTINGS, as_json, as_text, average_of, settings_of
from .published import ROUNDING, TITLES, Published, highest

_UNFOLDED = 24  # rows of a table that the page shows at once
_COMPARED = ("dataset", "model", "score", "to the same model, published", "to the best published")
_SHOWN = 8  # values of a setting


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: Its text.
        small: A second, smaller line.
        tone: "best", "published" or "".
    """

    text: str
    small: str = ""
    tone: str = ""


class Table(NamedTuple):
    """A table; its first column names the rows.

    Attributes:
        title: Above it.
        header: One name per column.
        rows: Cells, as many as names.
        folded: Whether the page shows only the title at first.
        kind: "scores", "heat" (cells of percent, shaded by them), "words" or "list".
        note: A line beneath.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    kind: str = "scores"
    note: str = ""


NONE = Cell("–")


def percent(fraction: float) -> str:
    """Returns a train fraction in words."""
    return f"{100 * fraction:g} %"


def protocol_title(line: Any) -> str:
    """Returns the protocol and the share of training data."""
    return f"{TITLES.get(line.protocol, line.protocol)}, {percent(line.train_fraction)}"


def duration(seconds: float) -> str:
    """Returns a time as hours, minutes and seconds."""
    return str(timedelta(seconds=round(seconds)))


def difference_cell(line: Any, score: Published | None) -> Cell:
    """Returns ours minus a published score, with ▲ or ▼ if it exceeds interval and rounding, else ≈.

    Nothing is said without an interval, and if the test split is another.

    Args:
        line: A row of :func:`~.lines.score_lines`.
        score: The published score, if there is one.
    """
    if score is None:
        return NONE
    change = line.estimate.mean - score.score
    sign = ""
    if line.comparable and line.estimate.kind:
        sign = (" ▲" if change > 0 else " ▼") if line.estimate.differs(score.score, ROUNDING) else " ≈"
    small = f"{score.label}: {score.score:.1f}" + ("" if line.comparable else "; another test split")
    return Cell(f"{change:+z.1f}".replace("-", "−") + sign, small)


def difference_table(title: str, lines: pd.DataFrame) -> Table:
    """Returns scores with their differences to the published scores of the same model and to the best."""
    rows = []
    for line in lines.itertuples():
        metric = line.metric if line.average == TRUE else f"{line.metric} ({line.average})"
        rows.append(
            [
                Cell(line.dataset, protocol_title(line)),
                Cell(line.entry),
                Cell(f"{line.estimate.mean:.1f}", f"{metric}, {line.estimate.words}"),
                *(difference_cell(line, score) for score in (line.reference, highest(line.published))),
            ]
        )
    return Table(title, _COMPARED, rows, len(rows) > _UNFOLDED, "words")


def best_table(lines: pd.DataFrame) -> Table:
    """Returns the best entry of each dataset and protocol, at the largest train fraction and those published."""
    lead = lines[lines.leads]
    largest = lead.groupby(["dataset", "protocol"]).train_fraction.transform("max")
    shown = lead[lead.published.astype(bool) | (lead.train_fraction == largest)]
    means = shown.estimate.map(lambda found: found.mean)
    best = means.groupby([shown.dataset, shown.protocol, shown.train_fraction], sort=False).idxmax()
    return difference_table("Best of ours per dataset", shown.loc[best])


def score_table(lines: pd.DataFrame, folded: bool) -> Table:
    """Returns models by datasets: ours, then the published, the best on average first.

    Args:
        lines: Of one benchmark, protocol and train fraction.
        folded: Whether the page folds it.
    """
    compared = lines.published.astype(bool) & (lines.average == TRUE)
    columns = list(
        dict.fromkeys(lines[lines.leads | compared][["dataset", "metric"]].itertuples(index=False, name=None))
    )
    averages = dict.fromkeys([average_of(lines.protocol.iloc[0]), TRUE])
    rows: dict[Cell, dict[tuple[str, str], Cell]] = {}
    for average in averages:
        for key, column in lines[lines.average == average].groupby(["dataset", "metric"], sort=False):
            top = max(found.mean for found in column.estimate)
            for line in column.itertuples() if key in columns else ():
                mean = line.estimate.mean
                name = Cell(line.entry, average if len(averages) > 1 else "")
                rows.setdefault(name, {})[key] = Cell(f"{mean:.1f}", line.estimate.words, "best" if mean == top else "")
    first = lines.groupby(["dataset", "metric"]).published.first()
    theirs = pd.DataFrame({key: {score.label: score.score for score in first[key]} for key in columns}, dtype=float)
    for label in theirs.mean(axis=1).sort_values(ascending=False, kind="stable").index:
        tones = {key: "best" if theirs[key][label] == theirs[key].max() else "published" for key in columns}
        known = theirs.loc[label].dropna()
        rows[Cell(label, "published", "published")] = {
            key: Cell(f"{known[key]:.1f}", "", tones[key]) for key in known.index
        }
    header = ["model", *(f"{dataset}\n{metric}" for dataset, metric in columns)]
    table = [[name, *(cells.get(key, NONE) for key in columns)] for name, cells in rows.items()]
    return Table(f"{percent(lines.train_fraction.iloc[0])} of the training data", header, table, folded)


def confusion_tables(table: pd.DataFrame, lines: pd.DataFrame) -> Iterator[Table]:
    """Yields the confusion matrix of the best entry per dataset and protocol, all seeds together.

    Args:
        table: From :func:`~.lines.entries`.
        lines: From :func:`~.lines.score_lines`.
    """
    keys = ["dataset", "protocol", "train_fraction", "metric", "entry"]
    known = table[table.average == TRUE].assign(content=table.confusion.map(as_json))
    known = known[known.content.map(bool)].groupby(keys).content.agg(list).reset_index()
    found = lines[lines.leads].merge(known, on=keys)
    largest = found[found.train_fraction == found.groupby(["dataset", "protocol"]).train_fraction.transform("max")]
    means = largest.estimate.map(lambda estimate: estimate.mean)
    for line in largest.loc[means.groupby([largest.dataset, largest.protocol], sort=False).idxmax()].itertuples():
        total = np.sum([np.asarray(matrix, dtype=float) for matrix in line.content], axis=0)
        names = _classes(line.dataset, len(total))
        rows = []
        for name, counts in zip(names, total, strict=True):
            shares = 100 * counts / max(counts.sum(), 1)
            texts = (Cell(f"{x:.0f}" if x >= 0.5 else "<1" if x else "") for x in shares)
            rows.append([Cell(name, f"{counts.sum():,.0f}"), *texts])
        note = f"{line.entry}. Rows: true class and its count; columns: predicted; percent of the row."
        title = f"{line.dataset}: {protocol_title(line)}"
        yield Table(title, ["true \\ predicted", *names], rows, True, "heat", note)


def _classes(dataset: str, count: int) -> Sequence[str]:
    """Returns the task's classes; numbers if it is unknown or has other classes."""
    known = TASKS[dataset].classes if dataset in TASKS else ()
    return known if len(known) == count else [f"class {i}" for i in range(count)]


def run_tables(table: pd.DataFrame) -> Iterator[Table]:
    """Yields models and their settings, protocols and theirs, time per unit, machines and versions.

    Args:
        table: From :func:`~.lines.entries`.
    """
    models = table.assign(size=table.pixels, sensors=table.read).groupby("entry", sort=False)[list(SETTINGS)]
    texts = models.agg(_distinct)
    note = "Empty: the default; for weights, random ones."
    yield _plain("Models", "name", texts.loc[:, (texts != "").any()], note)
    protocols = {}
    for name, rows in table.groupby("protocol", sort=False):
        said = {key: f"{key} {value}" for key, value in _by_key(rows.settings).items()}
        own = settings_of(str(name))
        protocols[name] = {
            "settings": "; ".join(words for key, words in said.items() if key in own),
            "chosen on the way": "; ".join(words for key, words in said.items() if key not in own),
        }
    yield _plain("Protocols", "protocol", pd.DataFrame.from_dict(protocols, orient="index"))
    times = table.drop_duplicates(RUN).groupby(["protocol", "entry"], sort=False).seconds
    measures = times.agg(["median", "max", "sum"]).map(duration).set_axis(["median", "longest", "together"], axis=1)
    measures.insert(0, "units", times.size().astype(str))
    yield _plain("Time", "protocol", measures.reset_index("entry"))
    machine = {"machine": _distinct(table.machine)} | _by_key(table.versions)
    yield _plain("Machine and versions", "what", pd.DataFrame({"values": machine}))


def all_scores_table(lines: pd.DataFrame) -> Table:
    """Returns every score of every seed."""
    found = lines.estimate
    columns = {
        "protocol": lines.protocol,
        "model": lines.entry,
        "train": lines.train_fraction.map(percent),
        "metric": lines.metric,
        "average": lines.average,
        "mean": found.map(lambda x: f"{x.mean:.2f}"),
        "interval": found.map(lambda x: f"{x.low:.2f}–{x.high:.2f} ({x.kind})" if x.kind else "–"),
        "scores": lines.scores.map(lambda scores: " ".join(f"{score:.2f}" for score in scores.values())),
        "seeds": lines.scores.map(lambda scores: " ".join(map(str, scores))),
        "train samples": lines.n_train.astype(str),
        "test samples": lines.n_test.astype(str),
    }
    frame = pd.DataFrame(columns).set_axis(lines.dataset)
    return _plain("Every score", "dataset", frame)._replace(folded=True, kind="list")


def _plain(title: str, index: str, frame: pd.DataFrame, note: str = "") -> Table:
    """Returns a frame of texts as a table."""
    rows = [list(map(Cell, row)) for row in frame.itertuples()]
    return Table(title, [index, *frame.columns], rows, kind="words", note=note)


def _distinct(values: Iterable[Any]) -> str:
    """Returns distinct values in their order, the first few of many; empty ones are left out."""
    known = [value for value in dict.fromkeys(map(as_text, values)) if value]
    more = f" and {len(known) - _SHOWN} more" if len(known) > _SHOWN else ""
    return " | ".join(known[:_SHOWN]) + more


def _by_key(column: pd.Series) -> dict[str, str]:
    """Returns the distinct values of every key of JSON objects; of keys that hold objects themselves nothing."""
    found = [as_json(text) or {} for text in dict.fromkeys(column)]
    values = {
        key: [some[key] for some in found if key in some] for key in dict.fromkeys(k for some in found for k in some)
    }
    texts = {key: _distinct(value for value in some if not isinstance(value, dict)) for key, some in values.items()}
    return {key: text for key, text in texts.items() if text}
