"""Scores as charts: positions in percent, so that a chart fits any width and its text keeps its size."""

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial

from .blocks import Curves, Dots, Group, Mark, Point, Row, Series
from .estimate import Estimate
from .notes import TITLES
from .summary import Line, groups, leading
from .tables import share, signed

_COLORS = 7
_ROWS = 30  # of a chart of the summary
_USUAL = "Models with their usual settings; the tables hold those with others, too."
_STEPS = (0.5, 1, 2, 5, 10, 20, 50, 100)
_OURS = [("ours", "ours, with 95 % interval"), ("published", "published")]
_DISTANCES = [
    ("above", "above by more than the interval"),
    ("below", "below by more than the interval"),
    ("open", "within the interval, or no interval"),
]


def scale(
    values: Iterable[float], low: float = 0.0, high: float = 100.0
) -> tuple[Callable[[float], float], list[tuple[float, str]]]:
    """A round axis around the values.

    Args:
        values: What it must hold; NaN is passed over.
        low: It goes no lower, unless a value does.
        high: It goes no higher, unless a value does.

    Returns:
        Where a value lies in percent of the width, and the ticks.
    """
    known = [value for value in values if not math.isnan(value)]
    smallest, largest = min(known), max(known)
    step = next((step for step in _STEPS if largest - smallest <= 4 * step), _STEPS[-1])
    start, stop = step * math.floor(smallest / step), step * math.ceil(largest / step)
    if stop - start < 2 * step:
        start, stop = start - step, stop + step
    start, stop = max(start, min(low, smallest)), min(stop, max(high, largest))
    first = step * math.ceil(start / step)
    ticks = [first + i * step for i in range(math.floor((stop - first) / step) + 1)]

    def place(value: float) -> float:
        return round(100 * (value - start) / (stop - start), 2)

    return place, [(place(tick), f"{tick:g}") for tick in ticks]


def beside_published(lines: Sequence[Line]) -> Group:
    """A panel per dataset and fraction: our entries and the published models, best first.

    Without published scores only the largest fraction is shown.

    Args:
        lines: Of one benchmark and protocol.
    """
    charts = []
    largest = max(line.train_fraction for line in lines)
    for (dataset, fraction), group in groups(leading(lines), lambda x: (x.dataset, x.train_fraction)).items():
        theirs = group[0].published
        if len(group) + len(theirs) < 2 or (not theirs and fraction != largest):
            continue
        ends = [end for line in group for end in _extent(line)]
        place, ticks = scale([*ends, *(score.score for score in theirs)])
        rows = [
            (
                x.mean,
                Row(
                    x.entry,
                    [Mark(place(x.mean), f"{x.mean:.1f}", "ours", *_ends(x.estimate.drawn(), place))],
                    "ours",
                ),
            )
            for x in group
        ]
        rows += [
            (x.score, Row(x.label, [Mark(place(x.score), f"{x.score:.1f}", "published")])) for x in theirs
        ]
        ordered = [row for _, row in sorted(rows, key=lambda row: -row[0])]
        charts.append(Dots(f"{dataset}, {group[0].metric}, {share(fraction)}", ordered, ticks))
    return Group(charts, _OURS)


def distances(lines: Sequence[Line]) -> Group | None:
    """Ours minus the published score of the same model, wherever there is one; None where there is none."""
    compared = [
        (line, line.reference, line.estimate.minus(line.reference.score))
        for line in leading(lines)
        if line.reference is not None
    ]
    if not compared:
        return None
    usual = [found for found in compared if found[0].usual]
    note = _USUAL if len(compared) > _ROWS and usual else ""
    compared = usual if note else compared
    ends = [end for *_, change in compared for end in (change.mean, change.low, change.high)]
    place, ticks = scale([0.0, *ends], -math.inf, math.inf)
    ticks = [(at, label.replace("-", "−") if label[0] in "-0" else f"+{label}") for at, label in ticks]
    charts = []
    for (benchmark, protocol), group in groups(compared, lambda x: (x[0].benchmark, x[0].protocol)).items():
        rows = []
        for line, reference, change in group:
            shape = {"above": "above", "below": "below"}.get(line.against(reference), "open")
            mark = Mark(place(change.mean), signed(change.mean), shape, *_ends(change, place))
            rows.append(Row(f"{line.dataset}, {share(line.train_fraction)}: {line.entry}", [mark]))
        charts.append(Dots(f"{benchmark}: {TITLES.get(protocol, protocol)}", rows, ticks, place(0.0)))
    return Group(charts, _DISTANCES, note)


def fraction_curves(lines: Sequence[Line]) -> Group | None:
    """Score over train fraction, a panel per dataset and protocol; None where only one fraction was run.

    No more entries than there are colours, those with their usual settings first.
    """
    lead = leading(lines)
    entries = dict.fromkeys(line.entry for line in sorted(lead, key=lambda line: not line.usual))
    colors = {entry: i for i, entry in enumerate(list(entries)[:_COLORS])}
    note = f"{_COLORS} of {len(entries)} models; the table holds all." if len(entries) > _COLORS else ""
    lead = [line for line in lead if line.entry in colors]
    charts = []
    for (dataset, protocol), group in groups(lead, lambda line: (line.dataset, line.protocol)).items():
        fractions = sorted({line.train_fraction for line in group})
        if len(fractions) < 2:
            continue
        start, span = math.log(fractions[0]), math.log(fractions[-1] / fractions[0])
        x = {fraction: round(4 + 92 * (math.log(fraction) - start) / span, 2) for fraction in fractions}
        ends = [end for line in group for end in _extent(line)]
        up, ticks = scale(ends)
        down = partial(_down, up)
        series = []
        for entry, curve in groups(group, lambda line: line.entry).items():
            points = []
            for line in curve:
                text = f"{entry}, {share(line.train_fraction)}: {line.mean:.1f} ({line.estimate.words})"
                low, high = _ends(line.estimate.drawn(), down)
                points.append(Point(x[line.train_fraction], down(line.mean), text, low, high))
            series.append(Series(entry, colors[entry], points))
        labels = [(x[fraction], share(fraction)) for fraction in _apart(fractions, x)]
        title = f"{dataset}: {TITLES.get(protocol, protocol)}, {group[0].metric}"
        charts.append(Curves(title, series, labels, [(round(100 - at, 2), label) for at, label in ticks]))
    return Group(charts, note=note) if charts else None


def _apart(fractions: Sequence[float], x: dict[float, float]) -> list[float]:
    """Fractions whose labels do not touch: first and last, and between them what leaves room."""
    kept = [fractions[0]]
    for fraction in fractions[1:-1]:
        if x[fraction] - x[kept[-1]] >= 12 and x[fractions[-1]] - x[fraction] >= 12:
            kept.append(fraction)
    return [*kept, fractions[-1]]


def _extent(line: Line) -> tuple[float, float, float]:
    drawn = line.estimate.drawn()
    return drawn.mean, drawn.low, drawn.high


def _down(up: Callable[[float], float], value: float) -> float:
    return round(100 - up(value), 2)


def _ends(found: Estimate, place: Callable[[float], float]) -> tuple[float | None, float | None]:
    return (place(found.low), place(found.high)) if found.kind else (None, None)
