"""One line per entry and score: mean, interval, and the published scores beside it."""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.evaluation.metrics import PER_BATCH, TRUE

from .entries import CELL, SETTINGS
from .estimate import Estimate, estimate
from .notes import TITLES
from .published import PROTOCOL_NAMES, ROUNDING, Published, counterparts, published_scores

_SHARES = ("accuracy", "oa")


@dataclass(frozen=True)
class Line:
    """One score of one entry over all seeds.

    Args:
        benchmark: Of the dataset.
        dataset: Its name.
        protocol: How the entry was judged.
        train_fraction: Of the train split.
        metric: What the score is.
        average: "true" or "per-batch".
        entry: The model with its settings.
        name: The model alone.
        settings: These, as text.
        headline: Whether this is the metric that published tables give.
        n_train: Samples.
        n_test: Samples.
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
        """Over the seeds."""
        return self.estimate.mean

    @property
    def usual(self) -> bool:
        """Whether no other entry of that name is more usual: class token, corrected bands, default size and stem."""
        return self.entry == self.name

    @property
    def comparable(self) -> bool:
        """Whether the test split has as many samples as the published one."""
        return self.dataset not in TASKS or self.n_test == TASKS[self.dataset].counts[2]

    def against(self, score: Published) -> str:
        """Whether it is "above" or "below" a published score by more than interval and rounding, or "within".

        Returns:
            One of these, or "" where there is no interval or the test split is another.
        """
        if not self.comparable or not self.estimate.kind:
            return ""
        if not self.estimate.differs(score.score, ROUNDING):
            return "within"
        return "above" if self.mean > score.score else "below"

    @property
    def best(self) -> Published | None:
        """The highest published score, if any."""
        return _highest(self.published)


def summarise(table: pd.DataFrame) -> list[Line]:
    """Means over seeds, in the order of a report.

    Args:
        table: From :func:`~.entries.entries`.
    """
    by_key = groups(
        published_scores(), lambda p: (p.benchmark, p.dataset, p.protocol, p.train_fraction, p.metric)
    )
    rows = table[
        [*CELL, "entry", "name", *SETTINGS, "headline", "n_train", "n_test", "seed", "score"]
    ].itertuples(index=False)
    order = _order(table)
    lines = []
    for rows_of_one in groups(rows, lambda row: row[: len(CELL) + 1]).values():
        first = rows_of_one[0]
        protocol = PROTOCOL_NAMES.get(first.protocol, first.protocol)
        theirs = by_key.get(
            (first.benchmark, first.dataset, protocol, first.train_fraction, first.metric), []
        )
        scores = {int(row.seed): float(row.score) for row in rows_of_one}
        trials = int(first.n_test) if _is_share(first.dataset, first.metric, first.average) else None
        lines.append(
            Line(
                **{key: getattr(first, key) for key in [*CELL, "entry", "name"]},
                settings={key: getattr(first, key) for key in SETTINGS},
                headline=any(row.headline for row in rows_of_one),
                n_train=int(first.n_train),
                n_test=int(first.n_test),
                scores=scores,
                estimate=estimate(list(scores.values()), trials),
                published=theirs,
                reference=_highest(counterparts(theirs, first.model, first.weights or None)),
            )
        )
    return sorted(lines, key=order)


def average_of(protocol: str) -> str:
    """The average that published scores of a protocol are."""
    return PER_BATCH if protocol == "copernicus-frozen" else TRUE


def leading(lines: Iterable[Line]) -> list[Line]:
    """The lines to put first: the headline metric, averaged as the published scores are where that was recorded."""
    lines = list(lines)
    metrics = {(line.dataset, line.protocol, line.metric) for line in lines if line.headline}
    known = [line for line in lines if (line.dataset, line.protocol, line.metric) in metrics]
    has = {_place(line) for line in known if line.average == average_of(line.protocol)}
    return [line for line in known if line.average == average_of(line.protocol) or _place(line) not in has]


def groups[T, K: Hashable](items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Items by key, both in the order of their first appearance."""
    found: dict[K, list[T]] = {}
    for item in items:
        found.setdefault(key(item), []).append(item)
    return found


def _place(line: Line) -> tuple[Hashable, ...]:
    return line.dataset, line.protocol, line.train_fraction, line.metric, line.entry


def _is_share(dataset: str, metric: str, average: str) -> bool:
    """Whether a score is the share of test samples that are right."""
    known = dataset in TASKS and TASKS[dataset].kind == "multiclass"
    return known and metric in _SHARES and average == TRUE


def _highest(scores: Sequence[Published]) -> Published | None:
    return max(scores, key=lambda score: score.score, default=None)


def _order(table: pd.DataFrame) -> Callable[[Line], tuple[Hashable, ...]]:
    """Benchmarks, datasets and protocols as they are known here, then others by name; entries as they were run."""
    benchmarks = _rank((task.benchmark for task in TASKS.values()), table.benchmark)
    datasets, protocols = _rank(TASKS, table.dataset), _rank(TITLES, table.protocol)
    entries = {name: i for i, name in enumerate(dict.fromkeys(table.entry))}
    return lambda line: (
        benchmarks[line.benchmark], protocols[line.protocol], datasets[line.dataset], line.train_fraction,
        not line.headline, line.metric, line.average, entries[line.entry],
    )  # fmt: skip


def _rank(known: Iterable[str], others: pd.Series) -> dict[str, int]:
    return {name: i for i, name in enumerate(dict.fromkeys([*known, *sorted(others.unique())]))}
