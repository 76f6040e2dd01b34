"""Scores as tables."""

from collections.abc import Iterable, Sequence

from terrafm_tg.evaluation.metrics import TRUE

from .blocks import Cell, Table
from .notes import TITLES
from .published import Published
from .summary import Line, average_of, groups, leading

NONE = Cell("–")
_SIGNS = {"above": " ▲", "below": " ▼", "within": " ≈", "": ""}
_UNFOLDED = 24  # rows of a table that the page shows at once


def share(fraction: float) -> str:
    """A train fraction in words."""
    return f"{100 * fraction:g} %"


def protocol_title(line: Line) -> str:
    """How an entry was judged, and on how much data."""
    return f"{TITLES.get(line.protocol, line.protocol)}, {share(line.train_fraction)}"


def signed(change: float) -> str:
    """A difference with its sign."""
    text = f"{change:+.1f}".replace("-", "−")
    return "0.0" if text[1:] == "0.0" else text


def difference_cell(line: Line, score: Published | None) -> Cell:
    """Ours minus a published score, marked only where the interval bears it out."""
    if score is None:
        return NONE
    verdict = line.against(score)
    tone = verdict if verdict in ("above", "below") else ""
    small = f"{score.label}: {score.score:.1f}" + ("" if line.comparable else "; another test split")
    return Cell(signed(line.mean - score.score) + _SIGNS[verdict], small, tone)


def best_table(lines: Sequence[Line]) -> Table:
    """The best entry of every dataset and protocol, and how far it is from published scores.

    At the largest train fraction, and at those that have published scores.
    """
    rows = []
    lead = leading(lines)
    largest = {key: max(x.train_fraction for x in of) for key, of in groups(lead, _judged).items()}
    shown = [x for x in lead if x.published or x.train_fraction == largest[_judged(x)]]
    for group in groups(shown, lambda x: (*_judged(x), x.train_fraction)).values():
        best = max(group, key=lambda line: line.mean)
        level = [
            x.entry for x in group if x is not best and best.estimate.kind and best.estimate.low <= x.mean
        ]
        rows.append(
            [
                Cell(best.dataset, protocol_title(best)),
                Cell(f"{best.mean:.1f}", f"{_metric(best)}, {best.estimate.words}"),
                Cell(best.entry, _level(level)),
                difference_cell(best, best.reference),
                difference_cell(best, best.best),
            ]
        )
    header = ["dataset", "score", "best of ours", "to the same model, published", "to the best published"]
    return Table("Best of ours per dataset", header, rows, kind="words")


def _level(entries: Sequence[str]) -> str:
    """Entries that cannot be told from the best one."""
    if len(entries) > 2:
        return f"within its interval: {len(entries)} others"
    return f"within its interval: {'; '.join(entries)}" if entries else ""


def score_table(lines: Sequence[Line], folded: bool) -> Table:
    """Models by datasets: ours, then the published.

    Args:
        lines: Of one benchmark, protocol and train fraction.
        folded: Whether the page folds it.
    """
    headlines = {(line.dataset, line.metric) for line in leading(lines)}
    columns = list(
        dict.fromkeys(
            (line.dataset, line.metric)
            for line in lines
            if (line.dataset, line.metric) in headlines or (line.published and line.average == TRUE)
        )
    )
    averages = dict.fromkeys([average_of(lines[0].protocol), TRUE])
    rows = []
    for average in averages:
        shown = [line for line in lines if line.average == average and (line.dataset, line.metric) in columns]
        tops = {key: max(line.mean for line in column) for key, column in groups(shown, _column).items()}
        for entry, of_entry in groups(shown, lambda line: line.entry).items():
            cells = {_column(line): line for line in of_entry}
            rows.append(
                [Cell(entry, average if len(averages) > 1 else "")]
                + [_score(cells[key], tops[key]) if key in cells else NONE for key in columns]
            )
    by_column = groups(lines, _column)
    rows += _published_rows([by_column[key][0].published for key in columns])
    header = ["model", *(f"{dataset}\n{metric}" for dataset, metric in columns)]
    return Table(f"{share(lines[0].train_fraction)} of the training data", header, rows, folded)


def _published_rows(columns: Sequence[Sequence[Published]]) -> list[list[Cell]]:
    """A row per published model, the best on average first."""
    found = [{score.label: score.score for score in column} for column in columns]
    labels = dict.fromkeys(label for column in found for label in column)

    def average(label: str) -> float:
        scores = [column[label] for column in found if label in column]
        return -sum(scores) / len(scores)

    return [
        [Cell(label, "published", "published")]
        + [
            Cell(f"{column[label]:.1f}", "", "best" if column[label] == max(column.values()) else "published")
            if label in column
            else NONE
            for column in found
        ]
        for label in sorted(labels, key=average)
    ]


def difference_table(lines: Sequence[Line]) -> Table | None:
    """Every entry of a benchmark and protocol beside the published scores; None where there are none."""
    rows = [
        [
            Cell(line.dataset, f"{_metric(line)}, {share(line.train_fraction)}"),
            Cell(line.entry),
            Cell(f"{line.mean:.1f}", line.estimate.words),
            difference_cell(line, line.reference),
            difference_cell(line, line.best),
        ]
        for line in lines
        if line.published and line.average == average_of(line.protocol)
    ]
    if not rows:
        return None
    header = ["dataset", "model", "score", "to the same model, published", "to the best published"]
    return Table("Differences to the published scores", header, rows, len(rows) > _UNFOLDED, "words")


def fraction_table(lines: Sequence[Line]) -> Table:
    """Scores by train fraction, of entries that were run at several."""
    lead = leading(lines)
    fractions = sorted({line.train_fraction for line in lead})
    rows = []
    for (dataset, protocol, entry), curve in groups(lead, lambda x: (x.dataset, x.protocol, x.entry)).items():
        at = {line.train_fraction: Cell(f"{line.mean:.1f}", line.estimate.words) for line in curve}
        if len(at) > 1:
            name = Cell(dataset, TITLES.get(protocol, protocol))
            rows.append([name, Cell(entry), *(at.get(fraction, NONE) for fraction in fractions)])
    header = ["dataset", "model", *map(share, fractions)]
    return Table("The numbers of these curves", header, rows, folded=True, words=2)


def all_scores_table(lines: Iterable[Line]) -> Table:
    """Every score of every seed."""
    rows = [
        [
            Cell(line.dataset),
            Cell(line.protocol),
            Cell(line.entry),
            Cell(share(line.train_fraction)),
            Cell(line.metric),
            Cell(line.average),
            Cell(f"{line.mean:.2f}"),
            Cell(f"{line.estimate.low:.2f}–{line.estimate.high:.2f}", line.estimate.kind)
            if line.estimate.kind
            else NONE,
            Cell(
                " ".join(f"{s:.2f}" for s in line.scores.values()), "seeds " + " ".join(map(str, line.scores))
            ),
            Cell(str(line.n_train)),
            Cell(str(line.n_test)),
        ]
        for line in lines
    ]
    header = ["dataset", "protocol", "model", "train", "metric", "average", "mean", "interval", "scores"]
    return Table("Every score", [*header, "train samples", "test samples"], rows, folded=True, words=6)


def _score(line: Line, top: float) -> Cell:
    return Cell(f"{line.mean:.1f}", line.estimate.words, "best" if line.mean == top else "")


def _metric(line: Line) -> str:
    """Names the average where it is not over all samples."""
    return line.metric if line.average == TRUE else f"{line.metric} ({line.average})"


def _judged(line: Line) -> tuple[str, str]:
    return line.dataset, line.protocol


def _column(line: Line) -> tuple[str, str]:
    return line.dataset, line.metric
