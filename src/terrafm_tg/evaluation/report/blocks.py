"""What a report is made of, before it is Markdown or HTML."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Cell(NamedTuple):
    """One cell of a table.

    Attributes:
        text: What it says.
        small: A second, smaller line.
        tone: "above" or "below" for a difference that the interval bears out, "best", "published", "link" for
            text with addresses, or "".
        fill: Share of the cell that a bar or a shade fills, 0 to 1; None for neither.
    """

    text: str
    small: str = ""
    tone: str = ""
    fill: float | None = None


@dataclass(frozen=True)
class Table:
    """A table; its first column names the rows.

    Args:
        title: What it shows.
        header: One name per column.
        rows: Cells, as many as names.
        folded: Whether the page shows only the title until it is asked for the rest.
        kind: "scores", "bars" (cells filled by their share), "heat" (cells shaded by their share) or "words".
        note: A line beneath.
        words: How many of the first columns are words, and stand on the left.
    """

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    folded: bool = False
    kind: str = "scores"
    note: str = ""
    words: int = 1


class Mark(NamedTuple):
    """A point of a chart: where, and its text. ``at``, ``low`` and ``high`` are percent of the width."""

    at: float
    text: str
    shape: str = "ours"
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """A line of a dot chart: a name and its marks."""

    label: str
    marks: Sequence[Mark]
    tone: str = ""


@dataclass(frozen=True)
class Dots:
    """Names beside marks on one scale.

    Args:
        title: What it shows.
        rows: Top to bottom.
        ticks: Position in percent of the width, and label.
        zero: Position of a line at zero, where the scale has it.
    """

    title: str
    rows: Sequence[Row]
    ticks: Sequence[tuple[float, str]]
    zero: float | None = None


class Point(NamedTuple):
    """A point of a curve, in percent of the chart's width and height, from the top left."""

    x: float
    y: float
    text: str
    low: float | None = None
    high: float | None = None


class Series(NamedTuple):
    """A curve, its name and the number of its colour."""

    label: str
    color: int
    points: Sequence[Point]


@dataclass(frozen=True)
class Curves:
    """Scores over the share of training data."""

    title: str
    series: Sequence[Series]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


@dataclass(frozen=True)
class Group:
    """Charts that stand side by side.

    Args:
        charts: All of one kind.
        legend: What shapes mean: shape and words.
        note: A line beneath.
    """

    charts: Sequence[Dots | Curves]
    legend: Sequence[tuple[str, str]] = ()
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A heading and what stands under it.

    Args:
        title: The heading.
        level: 2 for a chapter, 3 below it.
        text: Paragraphs.
        blocks: Tables and charts.
    """

    title: str
    level: int = 2
    text: Sequence[str] = ()
    blocks: Sequence[Table | Group] = field(default=())
