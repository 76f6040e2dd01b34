"""Two values of one setting against each other: class token and mean of patches, bands as labelled and corrected."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from .blocks import Cell, Dots, Group, Mark, Row, Table
from .entries import CELL, SETTINGS
from .estimate import Estimate, estimate
from .figures import scale
from .summary import Line, groups, leading
from .tables import protocol_title, signed

_TITLES = {
    "pooling": "Class token or mean of the patch tokens",
    "bands": "Band names as labelled or corrected",
    "stem": "Which stem reads Sentinel-2",
    "size": "Size of the images",
    "normalization": "Statistics of normalisation",
}
_ORDER = ("token", "mean", "labelled", "corrected")
_UNFOLDED = 24


class _Pair(NamedTuple):
    """One model with two values of a setting; the change from the first to the second."""

    first: Line
    second: Line
    change: Estimate

    @property
    def name(self) -> str:
        """What both are called: the parts that their names share."""
        both = [part for part in self.first.entry.split(", ") if part in self.second.entry.split(", ")]
        return ", ".join(both) or f"{self.first.entry} / {self.second.entry}"


def pairs(lines: Sequence[Line]) -> Iterator[tuple[str, Group, Table]]:
    """For every setting that entries differ in alone: what it is, a chart of both values, a table of the differences.

    Differences are taken seed by seed, and their interval is Student's t over these.
    """
    lead = leading(lines)
    for setting, title in _TITLES.items():

        def rest(line: Line, setting: str = setting) -> tuple[object, ...]:
            settings = [value for key, value in line.settings.items() if key != setting]
            return (*(getattr(line, key) for key in CELL), *settings)

        found = [pair for group in groups(lead, rest).values() for pair in _pairs(group, setting)]
        if found:
            yield title, _chart(found, setting), _table(found, setting)


def _pairs(group: Sequence[Line], setting: str) -> Iterator[_Pair]:
    by_value = groups(group, lambda line: line.settings[setting])
    rank = {value: i for i, value in enumerate(dict.fromkeys([*_ORDER, *by_value]))}
    first, *others = (by_value[value][0] for value in sorted(by_value, key=rank.__getitem__))
    for second in others:
        change = [
            second.scores[seed] - score for seed, score in first.scores.items() if seed in second.scores
        ]
        if change:
            yield _Pair(first, second, estimate(change))


def _table(found: Sequence[_Pair], setting: str) -> Table:
    rows = []
    for first, second, change in found:
        pair = _Pair(first, second, change)
        sign, tone = (" ≈" if change.kind else ""), ""
        if change.differs(0):
            sign, tone = (" ▲", "above") if change.mean > 0 else (" ▼", "below")
        rows.append(
            [
                Cell(first.dataset, protocol_title(first)),
                Cell(pair.name),
                *(Cell(f"{x.mean:.1f}", SETTINGS[setting](x.settings[setting])) for x in (first, second)),
                Cell(signed(change.mean) + sign, change.words, tone),
            ]
        )
    header = ["dataset", "model", "first", "second", "second − first"]
    return Table("Differences", header, rows, len(rows) > _UNFOLDED, "words")


def _chart(found: Sequence[_Pair], setting: str) -> Group:
    """One panel per dataset and protocol, at its largest train fraction."""
    charts = []
    for all_of in groups(found, lambda pair: (pair.first.dataset, pair.first.protocol)).values():
        largest = max(pair.first.train_fraction for pair in all_of)
        both = [pair for pair in all_of if pair.first.train_fraction == largest]
        place, ticks = scale([line.mean for first, second, _ in both for line in (first, second)])
        rows = []
        for pair in both:
            ends = sorted((place(pair.first.mean), place(pair.second.mean)))
            marks = [
                Mark(place(x.mean), f"{SETTINGS[setting](x.settings[setting])}: {x.mean:.1f}", shape, *ends)
                for x, shape in ((pair.first, "other"), (pair.second, "ours"))
            ]
            rows.append(Row(pair.name, marks))
        first = both[0].first
        title = f"{first.dataset}: {protocol_title(first)}, {first.metric}"
        charts.append(Dots(title, rows, ticks))
    words = [
        dict.fromkeys(SETTINGS[setting](line.settings[setting]) for line in side)
        for side in ([pair.first for pair in found], [pair.second for pair in found])
    ]
    return Group(charts, [("other", " or ".join(words[0])), ("ours", " or ".join(words[1]))])
