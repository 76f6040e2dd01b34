"""The whole report, chapter by chapter."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from terrafm_tg.datasets.bench import TASKS

from .blocks import Cell, Group, Section, Table
from .classes import confusions, per_class
from .entries import UNIT, entries
from .figures import beside_published, distances, fraction_curves
from .notes import BY_DATASET, BY_PROTOCOL, EMPTY, INTERVALS, OTHER_SPLIT, TITLES
from .pairs import pairs
from .run_tables import duration, run_tables
from .summary import Line, groups, summarise
from .tables import all_scores_table, best_table, difference_table, fraction_table, score_table, share


def sections(results: pd.DataFrame, skipped: Sequence[Mapping[str, Any]]) -> list[Section]:
    """All chapters, those without content left out.

    Args:
        results: The tidy table of ``terrafm bench``.
        skipped: What was not run: one mapping each, with whatever there is to say about it.
    """
    table = entries(results)
    lines = summarise(table)
    last = [_skipped(skipped)] if skipped else []
    if not lines:
        return [Section("Summary", text=[EMPTY]), *last]
    last.append(Section("How it was run", blocks=list(run_tables(table))))
    last.append(Section("All scores", blocks=[all_scores_table(lines)]))
    return [_summary(table, lines), *_scores(lines), *_figures(lines), *_details(table, lines), *last]


def _summary(table: pd.DataFrame, lines: Sequence[Line]) -> Section:
    units = table.drop_duplicates(UNIT)
    models = len({(line.settings["model"], line.settings["weights"]) for line in lines})
    variants = len({line.entry for line in lines})
    counts = [_count(models, "model") + (f" in {variants} variants" if variants > models else "")]
    counts += [_count(len({getattr(x, key) for x in lines}), key) for key in ("dataset", "protocol")]
    fractions = "train fractions " + ", ".join(map(share, sorted({line.train_fraction for line in lines})))
    seeds = _count(table.seed.nunique(), "seed")
    time = f"{_count(len(units), 'unit')} of work, {duration(units.seconds.sum())} together."
    blocks: list[Table | Group] = [best_table(lines)]
    if (chart := distances(lines)) is not None:
        blocks.append(chart)
    text = [f"{', '.join([*counts, fractions, seeds])}: {time}", INTERVALS]
    other = {x.dataset: x.n_test for x in lines if x.published and not x.comparable}
    if other:
        sizes = (f"{name} ({n:,} test samples, not {TASKS[name].counts[2]:,})" for name, n in other.items())
        text.append(OTHER_SPLIT.format(", ".join(sizes)))
    return Section("Summary", text=text, blocks=blocks)


def _scores(lines: Sequence[Line]) -> Iterator[Section]:
    for benchmark, chapter in groups(lines, lambda line: line.benchmark).items():
        yield Section(benchmark)
        for protocol, part in groups(chapter, lambda line: line.protocol).items():
            by_fraction = groups(
                sorted(part, key=lambda line: -line.train_fraction), lambda line: line.train_fraction
            )
            largest, compared = max(by_fraction), [line for line in part if line.published]
            unfolded = {line.train_fraction for line in compared} or {largest}
            blocks: list[Table | Group] = [
                score_table(of_fraction, fraction not in unfolded)
                for fraction, of_fraction in by_fraction.items()
            ]
            blocks += [group for group in [beside_published(part)] if group.charts]
            blocks += [table for table in [difference_table(part)] if table is not None]
            text = [BY_PROTOCOL[protocol]] if protocol in BY_PROTOCOL else []
            datasets = dict.fromkeys(line.dataset for line in compared)
            text += [BY_DATASET[name] for name in datasets if name in BY_DATASET]
            yield Section(TITLES.get(protocol, protocol), 3, text, blocks)


def _figures(lines: Sequence[Line]) -> Iterator[Section]:
    curves = fraction_curves(lines)
    if curves is not None:
        yield Section("Scores over the share of training data", blocks=[curves, fraction_table(lines)])
    compared = list(pairs(lines))
    if compared:
        yield Section(
            "One setting against another", text=["The same model, once with each value; second minus first."]
        )
        for title, chart, table in compared:
            yield Section(title, 3, blocks=[chart, table])


def _details(table: pd.DataFrame, lines: Sequence[Line]) -> Iterator[Section]:
    if blocks := list(per_class(table, lines)):
        yield Section("Scores per class", text=["At the largest train fraction."], blocks=blocks)
    if blocks := list(confusions(table, lines)):
        text = (
            "Of the best model, at the largest train fraction. Those of all models are in the results table."
        )
        yield Section("Confusion matrices", text=[text], blocks=blocks)


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> Section:
    header = [
        key
        for key in dict.fromkeys(key for entry in skipped for key in entry)
        if any(x.get(key) for x in skipped)
    ]
    rows = [[Cell(_said(key, entry.get(key)), tone="link") for key in header] for entry in skipped]
    table = Table("Skipped", header, rows, kind="words")
    return Section("Not run", text=["What was asked for and was not run, and what helps."], blocks=[table])


def _said(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return key if value else ""
    return "" if value is None else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"
