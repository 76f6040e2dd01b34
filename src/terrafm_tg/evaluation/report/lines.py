"""From the table of results to one line per model and score: mean over seeds, interval, published counterparts."""

import dataclasses
import json
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec
from terrafm_tg.evaluation.protocols import PROTOCOLS, get_protocol
from terrafm_tg.evaluation.scores import Estimate, estimate
from terrafm_tg.tasks.finetune.metrics import PER_BATCH, TRUE

from .published import PROTOCOL_NAMES, ROUNDING, TITLES, Published, counterparts, highest, published_scores

#: Columns that tell scores apart.
CELL = ["benchmark", "dataset", "protocol", "train_fraction", "metric", "average"]
#: Columns that tell runs of one entry apart.
RUN = ["entry", "benchmark", "dataset", "protocol", "train_fraction", "seed"]
#: Settings of a model, and their values in words.
SETTINGS: dict[str, Callable[[str], str]] = {
    "model": str,
    "weights": lambda value: value or "random weights",
    "stem": lambda value: f"stem {value}" if value else "default stem",
    "sensors": lambda value: value.replace(",", " and ") or "all sensors",
    "pooling": lambda value: {"token": "class token", "mean": "mean of patches"}.get(value, value),
    "size": lambda value: {"": "default size", "0": "stored size"}.get(value, f"{value} px"),
    "normalization": lambda value: f"{value} statistics",
    "bands": lambda value: {"labelled": "bands as labelled"}.get(value, f"bands {value}"),
}
#: Values that an entry's name leaves out.
_USUAL = {"stem": "", "sensors": "", "pooling": "token", "size": "", "normalization": "model", "bands": "corrected"}
_REQUIRED = [*CELL, "name", *SETTINGS, "seed", "score"]
_OPTIONAL = {
    "headline": True, "n_train": 0, "n_test": 0, "seconds": 0.0, "settings": "{}", "per_class": None,
    "confusion": None, "versions": "{}", "machine": "", "published": False,
}  # fmt: skip
_LARGEST_PATCH = 32  # pixels: a stored size is rounded up to whole patches


class Line(NamedTuple):
    """One score of one entry over all seeds; the attributes not named here are columns of the results.

    Attributes:
        entry: The model with its settings; ``name`` is the model alone.
        settings: These, as text.
        scores: By seed, in percent.
        estimate: Of their mean.
        published: The published scores of the same benchmark, dataset, protocol, train fraction and metric.
        reference: That of the same method and backbone, if any.
    """

    benchmark: str
    dataset: str
    protocol: str
    train_fraction: float
    metric: str
    average: str
    entry: str
    name: str
    settings: Mapping[str, str]
    headline: bool
    n_train: int
    n_test: int
    scores: Mapping[int, float]
    estimate: Estimate
    published: Sequence[Published]
    reference: Published | None

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return self.estimate.mean

    @property
    def comparable(self) -> bool:
        """True if the test split has as many samples as the published one."""
        return self.dataset not in TASKS or self.n_test == TASKS[self.dataset].counts[2]

    def against(self, score: Published) -> str:
        """Returns "above" or "below" for a difference larger than interval and rounding, else "within".

        It is empty without an interval, and if the test split is another.
        """
        if not self.comparable or not self.estimate.kind:
            return ""
        if not self.estimate.differs(score.score, ROUNDING):
            return "within"
        return "above" if self.mean > score.score else "below"


class Pair(NamedTuple):
    """One model with two values of a setting, and the change from the first to the second."""

    first: Line
    second: Line
    change: Estimate

    @property
    def name(self) -> str:
        """The parts that both names share."""
        both = [part for part in self.first.entry.split(", ") if part in self.second.entry.split(", ")]
        return ", ".join(both) or f"{self.first.entry} / {self.second.entry}"

    @property
    def verdict(self) -> str:
        """Place of the change: "above", "below" or "within" the interval of no change; empty without an interval."""
        if not self.change.differs(0):
            return "within" if self.change.kind else ""
        return "above" if self.change.mean > 0 else "below"


def entries(results: pd.DataFrame) -> pd.DataFrame:
    """Returns the rows of models that were run, with the column ``entry``.

    Sizes become relative to the dataset (empty for its usual one, "0" for the stored one; as pixels they are in the
    column ``pixels``), and ``sensors`` empty if all are read (by name in ``read``). An entry is a model with its
    settings; its name says of these only what tells it from another entry of that name. If protocols of one name
    were run with several settings, these tell entries apart, too. A score that occurs twice for one seed counts once.

    Args:
        results: The tidy table of ``terrafm bench``; an empty one may lack columns.

    Raises:
        TerraFMError: If a column is missing.
    """
    if results.empty:
        return pd.DataFrame(columns=[*_REQUIRED, *_OPTIONAL, "entry"])
    if missing := [column for column in _REQUIRED if column not in results]:
        raise TerraFMError(
            f"The results table has no column {', '.join(missing)}: give the table that `terrafm bench` writes."
        )
    table = results.assign(**{key: value for key, value in _OPTIONAL.items() if key not in results})
    table = table[~table.published.astype(bool) & table.score.notna()]
    table = table.assign(
        **{column: table[column].map(as_text) for column in SETTINGS},
        pixels=table["size"].map(as_text),
        read=table["sensors"].map(as_text),
        train_fraction=table.train_fraction.astype(float).round(4),
        entry=table["name"].map(as_text),
    ).reset_index(drop=True)
    table["size"] = [_relative_size(*row) for row in zip(table.dataset, table["size"], strict=True)]
    every = {name: set(task.sensors) for name, task in TASKS.items()}
    table["sensors"] = [
        "" if set(sensors.split(",")) == every.get(dataset) else sensors
        for dataset, sensors in zip(table.dataset, table.sensors, strict=True)
    ]
    cell = [*CELL, "name"]
    for column, words in SETTINGS.items():
        _tell_apart(table, cell, table[column], words, _USUAL.get(column))
    twice = table[table.duplicated([*CELL, "entry", "seed"], keep=False)]
    for protocol, rows in twice.groupby("protocol"):
        settings = pd.DataFrame([as_json(text) or {} for text in rows.settings], index=rows.index)
        for key in settings.columns.intersection(settings_of(str(protocol))):
            values = settings[key].map(as_text).reindex(table.index, fill_value="")
            _tell_apart(table, [*cell, "seed"], values, partial("{} {}".format, key), "")
    return table.drop_duplicates([*CELL, "entry", "seed"], keep="last").reset_index(drop=True)


def _tell_apart(
    table: pd.DataFrame, within: list[str], values: pd.Series, words: Callable[[str], str], usual: str | None
) -> None:
    """Adds a setting to the entries of each name that has several values of it for one score; not the usual one."""
    several = table.assign(value=values).groupby(within, dropna=False).value.transform("nunique") > 1
    rows = table["name"].isin(table["name"][several].unique()) & (values != usual)
    table.loc[rows, "entry"] += ", " + values[rows].map(words)


def _relative_size(dataset: str, size: str) -> str:
    task = TASKS.get(dataset)
    if task is None or not size.isdigit() or int(size) == task.input_size:
        return "" if task is not None else size
    return "0" if 0 <= int(size) - task.size < _LARGEST_PATCH else size


def score_lines(table: pd.DataFrame) -> list[Line]:
    """Returns the means over seeds, in the order of a report.

    Args:
        table: From :func:`entries`.
    """
    by_key = groups(published_scores(), lambda p: (p.benchmark, p.dataset, p.protocol, p.train_fraction, p.metric))
    rows = groups(table.itertuples(index=False), lambda row: tuple(getattr(row, key) for key in [*CELL, "entry"]))
    lines = []
    for of_one in rows.values():
        first = of_one[0]
        name = PROTOCOL_NAMES.get(first.protocol, first.protocol)
        theirs = by_key.get((first.benchmark, first.dataset, name, first.train_fraction, first.metric), [])
        scores = {int(row.seed): float(row.score) for row in of_one}
        task = TASKS.get(first.dataset)
        is_share = task is not None and task.kind == "multiclass" and first.metric in ("accuracy", "oa")
        trials = int(first.n_test) if is_share and first.average == TRUE else None
        lines.append(
            Line(
                **{key: getattr(first, key) for key in [*CELL, "entry", "name"]},
                settings={key: getattr(first, key) for key in SETTINGS},
                headline=any(row.headline for row in of_one),
                n_train=int(first.n_train),
                n_test=int(first.n_test),
                scores=scores,
                estimate=estimate(list(scores.values()), trials),
                published=theirs,
                reference=highest(counterparts(theirs, first.model, first.weights or None)),
            )
        )
    benchmarks = _rank((task.benchmark for task in TASKS.values()), table.benchmark)
    datasets, protocols = _rank(TASKS, table.dataset), _rank(TITLES, table.protocol)
    order = {name: i for i, name in enumerate(dict.fromkeys(table.entry))}
    return sorted(
        lines,
        key=lambda line: (
            benchmarks[line.benchmark], protocols[line.protocol], datasets[line.dataset], line.train_fraction,
            not line.headline, line.metric, line.average, order[line.entry],
        ),
    )  # fmt: skip


def _rank(known: Iterable[str], found: pd.Series) -> dict[str, int]:
    """Returns the place of each name: the known ones in their order, then others by name."""
    return {name: i for i, name in enumerate(dict.fromkeys([*known, *sorted(found.unique())]))}


def average_of(protocol: str) -> str:
    """Returns the average that published scores of a protocol are."""
    return PER_BATCH if protocol == "copernicus-frozen" else TRUE


def leading(lines: Iterable[Line]) -> list[Line]:
    """Returns the lines of the headline metric, averaged as published scores are, or else as they were recorded."""
    known = list(lines)
    metrics = {(line.dataset, line.protocol, line.metric) for line in known if line.headline}
    known = [line for line in known if (line.dataset, line.protocol, line.metric) in metrics]

    def place(line: Line) -> tuple[Hashable, ...]:
        return line.dataset, line.protocol, line.train_fraction, line.metric, line.entry

    has = {place(line) for line in known if line.average == average_of(line.protocol)}
    return [line for line in known if line.average == average_of(line.protocol) or place(line) not in has]


def groups[T, K: Hashable](items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Returns items by key, both in the order of their first appearance."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def find_pairs(lines: Sequence[Line], setting: str, order: Sequence[str]) -> Iterator[Pair]:
    """Yields the entries that differ in one setting alone; seeds are compared one by one.

    Args:
        lines: All.
        setting: A key of ``Line.settings``.
        order: Values that come before all others.
    """

    def rest(line: Line) -> tuple[object, ...]:
        others = [value for key, value in line.settings.items() if key != setting]
        return (*(getattr(line, key) for key in CELL), *others)

    for group in groups(leading(lines), rest).values():
        by_value = {value: some[0] for value, some in groups(group, lambda x: x.settings[setting]).items()}
        first, *others = (by_value[value] for value in dict.fromkeys([*order, *by_value]) if value in by_value)
        for second in others:
            common = [seed for seed in first.scores if seed in second.scores]
            if common:
                yield Pair(first, second, estimate([second.scores[i] - first.scores[i] for i in common]))


def settings_of(protocol: str) -> list[str]:
    """Names the settings that a protocol and a model are given, as opposed to those chosen during the run."""
    own = dataclasses.fields(get_protocol(protocol)) if protocol in PROTOCOLS else ()
    return [field.name for field in (*dataclasses.fields(ModelSpec), *own)]


def as_text(value: Any) -> str:
    """Returns a setting as text, however Parquet or CSV gave it: None, NaN, a number, a list of names, a string."""
    if value is None or (isinstance(value, float) and value != value):
        return ""
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, str):
        return value
    return "+".join(map(str, value)) if hasattr(value, "__len__") else str(value)


def as_json(value: Any) -> Any:
    """Returns the content of a column that holds JSON, or already its content; None for an empty one."""
    if isinstance(value, str):
        return json.loads(value) if value else None
    if hasattr(value, "tolist"):
        return value.tolist()
    return None if isinstance(value, float) else value
