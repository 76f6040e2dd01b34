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

from terrafm_tg.datasets.bench import TASKS
from terrafm_tg.evaluation.scores import Estimate
from terrafm_tg.utils.files import write_text

from . import tables
from .lines import RUN, average_of, entries, score_lines
from .published import BY_DATASET, BY_PROTOCOL, TITLES

TITLE = "Benchmark of encoders"
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
_COLORS = 7


class Mark(NamedTuple):
    """A point of a chart: its value, words and shape, the ends of its bar, and its place along a curve."""

    value: float
    words: str
    shape: str = "ours"
    low: float | None = None
    high: float | None = None
    x: float = 0.0


class Chart(NamedTuple):
    """Marks by the name of their row; with places along ``x``, by the name of their curve."""

    title: str
    series: Sequence[tuple[str, Sequence[Mark]]]
    x: Sequence[tuple[float, str]] = ()

    @property
    def ticks(self) -> list[float]:
        """Round values from below the lowest to above the highest end, within 0 and 100."""
        marks = [mark for _, some in self.series for mark in some]
        ends = [end for m in marks for end in (m.value, m.low, m.high) if end is not None]
        ticks = MaxNLocator(4, steps=[1, 2, 5, 10]).tick_values(min(ends), max(ends))
        return sorted({min(max(float(tick), 0.0), 100.0) for tick in ticks})


class Chapter(NamedTuple):
    """A heading of level 2 or 3, paragraphs, tables and charts."""

    title: str
    text: Sequence[str] = ()
    blocks: Sequence[tables.Table] = ()
    charts: Sequence[Chart] = ()
    level: int = 2


def write_bench_report(results: pd.DataFrame, out: Path, skipped: Sequence[Mapping[str, Any]] = ()) -> Path:
    """Writes ``report.md`` and ``report.html``; the same table gives the same bytes.

    The page needs nothing but itself: no script, no font, no picture from elsewhere.

    Args:
        results: The tidy table of ``terrafm bench``, one row per score.
        out: The folder; made if missing.
        skipped: Work that was not done: a mapping each, such as ``{"dataset": "m-so2sat", "why": "..."}``.

    Returns:
        The path of the page.

    Raises:
        TerraFMError: If the table lacks a column.
    """
    found = list(chapters(results, skipped))
    write_text(out / "report.md", to_markdown(found))
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string((files(__package__) / "report.html.j2").read_text())
    write_text(out / "report.html", template.render(chapters=found, title=TITLE))
    return out / "report.html"


def chapters(results: pd.DataFrame, skipped: Sequence[Mapping[str, Any]]) -> Iterator[Chapter]:
    """Yields all chapters that have content.

    Args:
        results: The tidy table of ``terrafm bench``.
        skipped: Work that was not done.
    """
    table = entries(results)
    lines = score_lines(table)
    if not lines.empty:
        yield _summary(table, lines)
        yield from _scores(lines)
        if curves := fraction_curves(lines):
            text = f"No more than {_COLORS} models, those with their usual settings first."
            yield Chapter("Scores over the share of training data", [text], charts=curves)
        if blocks := list(tables.confusion_tables(table, lines)):
            text = "Of the best model, at the largest train fraction. Those of all models are in the results table."
            yield Chapter("Confusion matrices", [text], blocks)
    else:
        yield Chapter("Summary", [_EMPTY])
    if skipped:
        yield _skipped(skipped)
    if not lines.empty:
        yield Chapter("How it was run", blocks=list(tables.run_tables(table)))
        yield Chapter("All scores", blocks=[tables.all_scores_table(lines)])


def _summary(table: pd.DataFrame, lines: pd.DataFrame) -> Chapter:
    units = table.drop_duplicates(RUN)
    counts = {
        "Models": f"{len(lines.drop_duplicates(['model', 'weights']))} in {lines.entry.nunique()} variants",
        "datasets": lines.dataset.nunique(),
        "protocols": lines.protocol.nunique(),
        "train fractions": ", ".join(map(tables.percent, sorted(lines.train_fraction.unique()))),
        "seeds": table.seed.nunique(),
        "units of work": f"{len(units)}, {tables.duration(units.seconds.sum())} (h:min:s) together",
    }
    text = ["; ".join(f"{what}: {value}" for what, value in counts.items()) + ".", _INTERVALS]
    other = lines[lines.published.astype(bool) & ~lines.comparable].drop_duplicates("dataset")
    if len(other):
        found = zip(other.dataset, other.n_test, strict=True)
        sizes = (f"{name} ({n:,} test samples, not {TASKS[name].counts[2]:,})" for name, n in found)
        text.append(_OTHER_SPLIT.format(", ".join(sizes)))
    return Chapter("Summary", text, [tables.best_table(lines)])


def _scores(lines: pd.DataFrame) -> Iterator[Chapter]:
    for benchmark, chapter in lines.groupby("benchmark", sort=False):
        yield Chapter(str(benchmark))
        for protocol, part in chapter.groupby("protocol", sort=False):
            compared = part[part.published.astype(bool)]
            unfolded = set(compared.train_fraction) or {part.train_fraction.max()}
            by_fraction = sorted(part.groupby("train_fraction"), key=lambda group: -group[0])
            scores = [tables.score_table(some, at not in unfolded) for at, some in by_fraction]
            if len(compared):
                judged = compared[compared.average == average_of(str(protocol))]
                scores.append(tables.difference_table("Differences to the published scores", judged))
            text = [BY_PROTOCOL[protocol]] if protocol in BY_PROTOCOL else []
            text += [BY_DATASET[name] for name in compared.dataset.unique() if name in BY_DATASET]
            yield Chapter(TITLES.get(protocol, protocol), text, scores, with_published(part), level=3)


def _skipped(skipped: Sequence[Mapping[str, Any]]) -> Chapter:
    keys = dict.fromkeys(key for item in skipped for key in item)
    header = [key for key in keys if any(item.get(key) for item in skipped)]
    rows = [[tables.Cell(str(item.get(key) or "")) for key in header] for item in skipped]
    text = "What was asked for and was not run, and what helps."
    return Chapter("Not run", [text], [tables.Table("Skipped", header, rows, kind="words")])


def with_published(lines: pd.DataFrame) -> list[Chart]:
    """Charts our entries and the published models, the best first; one chart per dataset and fraction.

    Without published scores only the largest fraction is shown.

    Args:
        lines: Of one benchmark and protocol.
    """
    charts = []
    for (dataset, fraction), some in lines[lines.leads].groupby(["dataset", "train_fraction"], sort=False):
        theirs = some.published.iloc[0]
        if len(some) + len(theirs) > 1 and (theirs or fraction == lines.train_fraction.max()):
            marks = [(x.entry, _mark(x.estimate, f"{x.estimate.mean:.1f}")) for x in some.itertuples()]
            marks += [(x.label, Mark(x.score, f"{x.score:.1f}", "published")) for x in theirs]
            title = f"{dataset}, {some.metric.iloc[0]}, {tables.percent(fraction)}"
            charts.append(Chart(title, [(name, [m]) for name, m in sorted(marks, key=lambda row: -row[1].value)]))
    return charts


def fraction_curves(lines: pd.DataFrame) -> list[Chart]:
    """Charts scores over train fractions, one chart per dataset and protocol that were run at several.

    It shows no more entries than there are colors, those with their usual settings first.
    """
    lead = lines[lines.leads]
    plain = lead.entry == lead["name"]
    shown = pd.concat([lead.entry[plain], lead.entry[~plain]]).unique()[:_COLORS]
    colors = {entry: f"c{number}" for number, entry in enumerate(shown)}
    charts = []
    for (dataset, protocol), some in lead[lead.entry.isin(colors)].groupby(["dataset", "protocol"], sort=False):
        series: dict[str, list[Mark]] = {}
        for x in some.itertuples():
            words = f"{x.entry}, {tables.percent(x.train_fraction)}: {x.estimate.mean:.1f} ({x.estimate.words})"
            mark = _mark(x.estimate, words, colors[x.entry])._replace(x=math.log(x.train_fraction))
            series.setdefault(x.entry, []).append(mark)
        places = [(math.log(fraction), tables.percent(fraction)) for fraction in sorted(some.train_fraction.unique())]
        if len(places) > 1:
            title = f"{dataset}: {TITLES.get(protocol, protocol)}, {some.metric.iloc[0]}"
            charts.append(Chart(title, list(series.items()), places))
    return charts


def _mark(found: Estimate, words: str, shape: str = "ours") -> Mark:
    ends = (max(found.low, 0.0), min(found.high, 100.0)) if found.kind else (None, None)
    return Mark(found.mean, words, shape, *ends)


def to_markdown(sections: Iterable[Chapter]) -> str:
    """Returns all chapters; charts are left out, since every number of them stands in a table."""
    parts = [f"# {TITLE}"]
    for section in sections:
        parts += [f"{'#' * section.level} {_escape(section.title)}", *map(_escape, section.text)]
        for table in section.blocks:
            rows = [
                [_escape(x.text) + (f" ({_escape(x.small)})" if x.small else "") for x in row] for row in table.rows
            ]
            rows = [list(map(_escape, table.header)), ["---"] * len(table.header), *rows]
            parts += [f"**{_escape(table.title)}**", "\n".join(f"| {' | '.join(row)} |" for row in rows)]
            parts += [_escape(table.note)] * bool(table.note)
    return "\n\n".join(parts) + "\n"


def _escape(text: str) -> str:
    """Returns text that Markdown and HTML inside of it show as it is."""
    text = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return re.sub(r"([\\|`*_\[\]])", r"\\\1", text)
