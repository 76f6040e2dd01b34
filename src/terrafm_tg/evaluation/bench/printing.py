"""What ``terrafm bench`` prints: the plan, and in the end the headline scores beside the published ones."""

from pathlib import Path

import pandas as pd
from rich.console import Console
from rich.table import Table

from terrafm_tg.evaluation.bench_report.entries import entries
from terrafm_tg.evaluation.bench_report.published import Published
from terrafm_tg.evaluation.bench_report.summary import leading, summarise
from terrafm_tg.evaluation.bench_report.tables import share

from .plan import Plan, Skipped


def print_plan(plan: Plan, out: Path) -> None:
    """Every unit, whether it is done already, and what is missing.

    Args:
        plan: The work.
        out: Folder of the results.
    """
    console = Console()
    table = Table(title=f"{len(plan.units)} units of work", title_justify="left")
    for column in ("dataset", "bands", "model", "protocol", "train", "seed", ""):
        table.add_column(column)
    done = 0
    for unit in plan.units:
        there = unit.read(out) is not None
        done += there
        cells = [unit.dataset, unit.bands, unit.spec.label, unit.protocol.name]
        table.add_row(*cells, share(unit.fraction), str(unit.seed), "done" if there else "to do")
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
    table = Table(title="Headline scores in percent", title_justify="left")
    for column in ("dataset", "protocol", "train", "metric", "model"):
        table.add_column(column)
    for column in ("score", "published", "best published"):
        table.add_column(column, justify="right")
    for line in leading(summarise(entries(frame))):
        score = f"{line.mean:.1f} ({line.estimate.words})"
        cells = [line.dataset, line.protocol, share(line.train_fraction), line.metric, line.entry, score]
        table.add_row(*cells, f"{line.reference.score:.1f}" if line.reference else "", _named(line.best))
    if table.row_count:
        console.print(table)
    print_skipped(plan.skipped, console)
    console.print(f"Written: {report.parent / 'results.parquet'} and .csv; report: {report}", soft_wrap=True)


def print_skipped(skipped: list[Skipped], console: Console) -> None:
    """One line for each thing that was not done, with its reason."""
    for item in skipped:
        what = ", ".join(filter(None, [item.dataset, item.model, item.protocol]))
        word = "failed" if item.failed else "skipped"
        console.print(f"{word}: {what}: {item.reason}", soft_wrap=True, markup=False, highlight=False)


def _named(score: Published | None) -> str:
    return f"{score.score:.1f} {score.label}" if score else ""
