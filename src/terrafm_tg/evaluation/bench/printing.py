"""What ``terrafm bench`` prints: the plan, and in the end the headline scores beside the published ones."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pandas as pd
from rich.console import Console
from rich.table import Table

from terrafm_tg.evaluation.report.lines import Line, entries, leading, score_lines
from terrafm_tg.evaluation.report.published import Published, highest
from terrafm_tg.evaluation.report.tables import percent

from .plan import Plan, Skipped


@contextmanager
def warnings_once() -> Iterator[None]:
    """Shows a warning as one line without its place in the code, and once however many units bring it."""
    seen: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"terrafm: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def print_plan(plan: Plan, out: Path) -> None:
    """Every unit, whether it is done already, and what is missing.

    Args:
        plan: The work.
        out: Folder of the results.
    """
    console = Console()
    table = Table(title=f"{len(plan.units)} units of work", title_justify="left")
    for column in ("dataset", "model", "protocol", "train", "seed", ""):
        table.add_column(column, overflow="fold")
    done = 0
    for unit in plan.units:
        there = unit.read(out) is not None
        done += there
        dataset = unit.dataset if unit.bands == "corrected" else f"{unit.dataset} ({unit.bands})"
        cells = [dataset, unit.spec.label, unit.protocol.name, percent(unit.fraction), str(unit.seed)]
        table.add_row(*cells, "done" if there else "to do")
    console.print(table)
    console.print(f"{done} of {len(plan.units)} units are done in {out}.", soft_wrap=True)
    print_skipped(plan.skipped, console)


def print_results(frame: pd.DataFrame, plan: Plan, report: Path) -> None:
    """Headline scores, what was skipped, and where the report is.

    Args:
        frame: The table of results.
        plan: After the run.
        report: The HTML page.
    """
    console = Console()
    table = Table(title="Headline scores in percent, with 95 % intervals", title_justify="left")
    for column in ("dataset, protocol", "model"):
        table.add_column(column, overflow="fold")
    for column in ("score", "published", "best published"):
        table.add_column(column, justify="right")
    before = ""
    for line in leading(score_lines(entries(frame))):
        what = f"{line.dataset}: {line.protocol}, {line.metric}, {percent(line.train_fraction)}"
        first = what != before
        if before and first:
            table.add_section()
        theirs = highest(line.published)
        best = f"{_points(theirs)} {theirs.label}" if first and theirs else ""
        table.add_row(what if first else "", line.entry, _score(line), _points(line.reference), best)
        before = what
    if table.row_count:
        console.print(table)
    print_skipped(plan.skipped, console)
    console.print(f"Written: {report.parent / 'results.parquet'} and .csv; report: {report}", soft_wrap=True)


def print_skipped(skipped: list[Skipped], console: Console) -> None:
    """What was not done: one line for each reason."""
    reasons: dict[tuple[bool, str], list[str]] = {}
    for item in skipped:
        what = ", ".join(filter(None, [item.dataset, item.model, item.protocol]))
        reasons.setdefault((item.failed, item.reason), []).append(what)
    for (failed, reason), names in reasons.items():
        word = "failed" if failed else "skipped"
        console.print(f"{word}: {'; '.join(names)}: {reason}", soft_wrap=True, markup=False, highlight=False)


def _score(line: Line) -> str:
    found = line.estimate
    return f"{found.mean:.1f} ({found.low:.1f}–{found.high:.1f})" if found.kind else f"{found.mean:.1f}"


def _points(published: Published | None) -> str:
    return "" if published is None else f"{published.score:.1f}"
