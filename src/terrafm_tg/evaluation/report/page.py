"""The report itself: chapters of tables and charts, as one HTML page and as Markdown."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from jinja2 import Environment, StrictUndefined
from matplotlib.ticker import MaxNLocator
from rich.cells import cell_len

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.evaluation.scores import Estimate
from terrafm_tg.utils.files import write_text

from . import tables
from .lines import RUN, Line, entries, find_pairs, groups, leading, score_lines
from .published import BY_DATASET, BY_PROTOCOL, TITLES

_INTERVALS = (
    "Small figures: 95 % confidence intervals, ± by Student's t over seeds; with one seed, or seeds that agree, "
    "Wilson's binomial interval where the score is a share of test images, else none. ▲ above, ▼ below the published "
    "score by more than the interval and its rounding, ≈ within it; without an interval nothing is said. An interval "
    "over seeds covers what training draws, not which images the test split holds."
)
_OTHER_SPLIT = (
    "Not to be compared with the published scores, because the test split has another size: {}. Differences are shown "
    "and not judged."
)
_EMPTY = "There are no results yet: nothing was run, or every unit was skipped."
_PAIRS = {
    "pooling": "Class token or mean of the patch tokens",
    "bands": "Band names as labelled or corrected",
    "stem": "Which stem reads Sentinel-2",
    "size": "Size of the images",
    "normalization": "Statistics of normalization",
}
_COLORS = 7
_OURS = [("ours", "ours, with 95 % interval"), ("published", "published")]


class Axis(NamedTuple):
    """The range of a chart's axis, and its ticks with their labels."""

    start: float
    stop: float
    ticks: Sequence[tuple[float, str]]


class Mark(NamedTuple):
    """A point of a chart: its value, words and shape, the ends of its bar, and its place along a curve."""

    value: float
    words: str
    shape: str = "ours"
    low: float | None = None
    high: float | None = None
    x: float = 0.0


class Chart(NamedTuple):
    """Marks by the name of their row; with an axis ``x``, by the name of their curve."""

    title: str
    series: Sequence[tuple[str, Sequence[Mark]]]
    axis: Axis
    x: Axis | None = None


class Charts(NamedTuple):
    """Charts that stand side by side, shapes and their meaning, and a line beneath."""

    charts: Sequence[Chart]
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


class Chapter(NamedTuple):
    """A heading of level 2 or 3, paragraphs, and tables and charts."""

    title: str
    level: int = 2
    text: Sequence[str] = ()
    blocks: Sequence[tables.Table | Charts] = ()


def write_bench_report(
    results: pd.DataFrame, out: Path, skipped: Sequence[Mapping[str, Any]] = (), title: str = "Benchmark of encoders"
) -> Path:
    """Writes ``report.md`` and ``report.html``; the same table gives the same bytes.

    The page needs nothing but itself: no script, no font, no picture from elsewhere.

    Args:
        results: The tidy table of ``terrafm bench``, one row per score.
        out: The folder; made if missing.
        skipped: Work that was not done: a mapping each, such as ``{"dataset": "m-so2sat", "why": "..."}``.
        title: Above the report.

    Returns:
        The path of the page.

    Raises:
        TerraFMError: If the table lacks a column.
    """
    found = []
    for chapter in chapters(results, skipped):
        filled = [x for x in chapter.blocks if (x.rows if isinstance(x, tables.Table) else x.charts)]
        found.append(chapter._replace(blocks=filled))
    write_text(out / "report.md", to_markdown(found, title))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "report.html.j2").read_text())
    write_text(out / "report.html", template.render(chapters=found, title=title))
    return out / "report.html"


def chapters(results: pd.DataFrame, skipped: Sequence[Mapping[str, Any]]) -> Iterator[Chapter]:
    """Yields all chapters that have content.

    Args:
        results: The tidy table of ``terrafm bench``.
        skipped: Work that was not done.
    """
    table = entries(results)
    lines = score_lines(table)
    if lines:
        yield _summary(table, lines)
        yield from _scores(lines)
        if (curves := fraction_curves(lines)).charts:
            yield Chapter("Scores over the share of training data", blocks=[curves])
        yield from _pairs(lines)
        if blocks := list(tables.class_tables(table, lines)):
            yield Chapter("Scores per class", text=["At the largest train fraction."], blocks=blocks)
        if blocks := list(tables.confusion_tables(table, lines)):
            text = "Of the best model, at the largest train fraction. Those of all models are in the results table."
            yield Chapter("Confusion matrices", text=[text], blocks=blocks)
    else:
        yield Chapter("Summary", text=[_EMPTY])
    if skipped:
        yield _skipped(skipped)
    if lines:
        yield Chapter("How it was run", blocks=list(tables.run_tables(table)))
        yield Chapter("All scores", blocks=[tables.all_scores_table(lines)])


def _summary(table: pd.DataFrame, lines: Sequence[Line]) -> Chapter:
    units = table.drop_duplicates(RUN)
    models = len({(line.settings["model"], line.settings["weights"]) for line in lines})
    variants = len({line.entry for line in lines})
    counts = [_count(models, "model") + (f" in {variants} variants" if variants > models else "")]
    counts += [_count(len({getattr(x, key) for x in lines}), key) for key in ("dataset", "protocol")]
    fractions = "train fractions " + ", ".join(map(tables.percent, sorted({line.train_fraction for line in lines})))
    time = f"{_count(len(units), 'unit')} of work, {tables.duration(units.seconds.sum())} together."
    text = [f"{', '.join([*counts, fractions, _count(table.seed.nunique(), 'seed')])}: {time}", _INTERVALS]
    other = {x.dataset: x.n_test for x in lines if x.published and not x.comparable}
    if other:
        sizes = (f"{name} ({n:,} test samples, not {TASKS[name].counts[2]:,})" for name, n in other.items())
        text.append(_OTHER_SPLIT.format(", ".join(sizes)))
    return Chapter("Summary", text=text, blocks=[tables.best_table(lines)])


def _scores(lines: Sequence[Line]) -> Iterator[Chapter]:
    for benchmark, chapter in groups(lines, lambda line: line.benchmark).items():
        yield Chapter(benchmark)
        for protocol, part in groups(chapter, lambda line: line.protocol).items():
            by_fraction = groups(sorted(part, key=lambda x: -x.train_fraction), lambda x: x.train_fraction)
            compared = [line for line in part if line.published]
            unfolded = {line.train_fraction for line in compared} or {max(by_fraction)}
            scores = (tables.score_table(some, at not in unfolded) for at, some in by_fraction.items())
            blocks: list[tables.Table | Charts] = [*scores, with_published(part), tables.difference_table(part)]
            text = [BY_PROTOCOL[protocol]] if protocol in BY_PROTOCOL else []
            datasets = dict.fromkeys(line.dataset for line in compared)
            text += [BY_DATASET[name] for name in datasets if name in BY_DATASET]
            yield Chapter(TITLES.get(protocol, protocol), 3, text, blocks)


def _pairs(lines: Sequence[Line]) -> Iterator[Chapter]:
    order = ("token", "mean", "labelled", "corrected")
    found = {setting: list(find_pairs(lines, setting, order)) for setting in _PAIRS}
    if any(found.values()):
        text = "The same model, once with each value; second minus first."
        yield Chapter("One setting against another", text=[text])
    for setting, pairs in found.items():
        if pairs:
            yield Chapter(_PAIRS[setting], 3, blocks=[tables.pair_table(pairs, setting)])


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> Chapter:
    keys = dict.fromkeys(key for item in skipped for key in item)
    header = [key for key in keys if any(item.get(key) for item in skipped)]
    rows = []
    for item in skipped:
        said = {key: key * value if isinstance(value, bool) else value for key, value in item.items()}
        rows.append([tables.Cell(str(said.get(key) or ""), tone="link") for key in header])
    text = "What was asked for and was not run, and what helps."
    return Chapter("Not run", text=[text], blocks=[tables.Table("Skipped", header, rows, kind="words")])


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def axis(values: Iterable[float]) -> Axis:
    """Returns a round axis around values, within 0 and 100 unless a value is not; NaN is left out."""
    known = [value for value in values if not math.isnan(value)]
    ticks = list(MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(min(known), max(known)))
    start, stop = max(ticks[0], min(0.0, *known)), min(ticks[-1], max(100.0, *known))
    return Axis(start, stop, [(float(tick), f"{tick:g}") for tick in ticks if start <= tick <= stop])


def with_published(lines: Sequence[Line]) -> Charts:
    """Charts our entries and the published models, the best first; one chart per dataset and fraction.

    Without published scores only the largest fraction is shown.

    Args:
        lines: Of one benchmark and protocol.
    """
    charts = []
    largest = max(line.train_fraction for line in lines)
    for (dataset, fraction), some in groups(leading(lines), lambda x: (x.dataset, x.train_fraction)).items():
        theirs = some[0].published
        if len(some) + len(theirs) > 1 and (theirs or fraction == largest):
            marks = [(x.entry, _mark(x.estimate, f"{x.mean:.1f}")) for x in some]
            marks += [(x.label, Mark(x.score, f"{x.score:.1f}", "published")) for x in theirs]
            series = [(name, [mark]) for name, mark in sorted(marks, key=lambda row: -row[1].value)]
            title = f"{dataset}, {some[0].metric}, {tables.percent(fraction)}"
            charts.append(Chart(title, series, axis(_ends(mark for _, mark in marks))))
    return Charts(charts, _OURS)


def fraction_curves(lines: Sequence[Line]) -> Charts:
    """Charts scores over train fractions, one chart per dataset and protocol that were run at several.

    It shows no more entries than there are colors, those with their usual settings first.
    """
    lead = leading(lines)
    every = list(dict.fromkeys(x.entry for x in sorted(lead, key=lambda x: x.entry != x.name)))
    colors = {entry: f"c{number}" for number, entry in enumerate(every[:_COLORS])}
    note = f"{_COLORS} of {len(every)} models; the tables hold all." if len(every) > _COLORS else ""
    charts = []
    shown = [line for line in lead if line.entry in colors]
    for (dataset, protocol), some in groups(shown, lambda line: (line.dataset, line.protocol)).items():
        fractions = sorted({line.train_fraction for line in some})
        if len(fractions) < 2:
            continue
        series: dict[str, list[Mark]] = {}
        for x in some:
            words = f"{x.entry}, {tables.percent(x.train_fraction)}: {x.mean:.1f} ({x.estimate.words})"
            mark = _mark(x.estimate, words, colors[x.entry])._replace(x=math.log(x.train_fraction))
            series.setdefault(x.entry, []).append(mark)
        places = [(math.log(fraction), tables.percent(fraction)) for fraction in fractions]
        title = f"{dataset}: {TITLES.get(protocol, protocol)}, {some[0].metric}"
        scale = axis(_ends(mark for marks in series.values() for mark in marks))
        charts.append(Chart(title, list(series.items()), scale, Axis(places[0][0], places[-1][0], places)))
    return Charts(charts, note=note)


def _mark(found: Estimate, words: str, shape: str = "ours") -> Mark:
    return Mark(found.mean, words, shape, *(found.drawn()[1:3] if found.kind else (None, None)))


def _ends(marks: Iterable[Mark]) -> list[float]:
    return [value for mark in marks for value in (mark.value, mark.low, mark.high) if value is not None]


def to_markdown(sections: Iterable[Chapter], title: str) -> str:
    """Returns all chapters; charts are left out, since every number of them stands in a table."""
    parts = [f"# {_escape(title)}"]
    for section in sections:
        parts.append(f"{'#' * section.level} {_escape(section.title)}")
        parts += map(_escape, section.text)
        for block in section.blocks:
            if isinstance(block, tables.Table):
                parts += [f"**{_escape(block.title)}**"] * (block.title != section.title)
                parts += filter(None, [_markdown_table(block), _escape(block.note)])
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Returns text that Markdown and HTML inside of it show as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)


def _markdown_table(table: tables.Table) -> str:
    """Returns a table whose columns line up in a plain text editor."""
    rows = [list(map(_escape, table.header))]
    for row in table.rows:
        texts = [f"**{_escape(x.text)}**" if x.tone == "best" else _escape(x.text) for x in row]
        rows.append([f"{text} ({_escape(x.small)})" if x.small else text for text, x in zip(texts, row, strict=True)])
    columns = []
    for number, column in enumerate(zip(*rows, strict=True)):
        right = number >= table.words and table.kind != "words"
        width = max(3, *map(cell_len, column))
        spaces = [" " * (width - cell_len(text)) for text in column]
        padded = [s + text if right else text + s for s, text in zip(spaces, column, strict=True)]
        columns.append([padded[0], "-" * (width - right) + ":" * right, *padded[1:]])
    return "\n".join(f"| {' | '.join(row)} |" for row in zip(*columns, strict=True))
