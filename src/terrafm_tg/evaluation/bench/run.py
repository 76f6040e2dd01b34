"""Does the units of a plan, wherever there are processors for them, and writes table and report."""

import dataclasses
import json
from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from terrafm_tg.evaluation.report import write_bench_report
from terrafm_tg.utils.files import write_text
from terrafm_tg.utils.parallel import run_units

from .available import split_available
from .plan import Plan, Skipped
from .table import collect, write_table
from .unit import Unit
from .work import How, run_unit


class Results(NamedTuple):
    """What a run leaves.

    Attributes:
        plan: The work, with what was skipped or failed on the way.
        frame: The table of results.
        report: The page.
    """

    plan: Plan
    frame: pd.DataFrame
    report: Path


def run_plan(plan: Plan, how: How, workers: int | None = 0, scheduler: str | None = None) -> Results:
    """Do what is missing of a plan; then write ``results.parquet``, ``results.csv``, ``skipped.json`` and the report.

    Every unit's rows are on disk before the next begins: a killed run loses the units under way alone. Of each model
    that is still to be judged, the weights are fetched first.

    Args:
        plan: The work.
        how: Where and how.
        workers: Processes on this machine; 0 for this one alone.
        scheduler: Address of a Dask cluster instead.
    """
    missing = [unit for unit in plan.units if unit.read(how.out) is None]
    todo, unavailable = split_available(missing)
    skipped = [*plan.skipped, *unavailable]
    if todo:
        todo = spread(todo) if workers or scheduler is not None else todo
        with nullcontext() if workers == 0 and scheduler is None else _dask_settings():
            outcomes = run_units(
                partial(run_unit, how=how),
                todo,
                workers=workers,
                scheduler=scheduler,
                title="Benchmark",
                describe=lambda unit: unit.title,
            )
            for position, outcome in outcomes:
                if outcome.state != "done":
                    unit = todo[position]
                    skipped.append(
                        Skipped(
                            unit.dataset,
                            outcome.reason,
                            unit.spec.label,
                            unit.protocol.name,
                            failed=outcome.state == "failed",
                        )
                    )
    return write_results(Plan(plan.units, list(dict.fromkeys(skipped))), how.out)


def spread(units: list[Unit]) -> list[Unit]:
    """Units in an order in which those that need the same embeddings are far apart.

    The first of them computes these; others that ran at the same time would compute them too.
    """
    seen: Counter[tuple[object, ...]] = Counter()
    turns = []
    for unit in units:
        same = (unit.spec, unit.dataset, unit.bands)
        turns.append(seen[same])
        seen[same] += 1
    return [units[at] for at in sorted(range(len(units)), key=turns.__getitem__)]


def write_results(plan: Plan, out: Path) -> Results:
    """Everything that a run leaves besides its units, from these."""
    frame = collect(out, plan.units)
    skipped = [dataclasses.asdict(item) for item in plan.skipped]
    write_table(frame, out)
    write_text(out / "skipped.json", json.dumps(skipped, indent=1) + "\n")
    return Results(plan, frame, write_bench_report(frame, out, skipped))


def _dask_settings() -> AbstractContextManager[object]:
    """Lets Dask's worker processes start the processes of a DataLoader, which daemons may not."""
    if find_spec("distributed") is None:
        return nullcontext()
    import dask

    import_module("distributed")  # or its own settings, read at that import, would go with this one
    return dask.config.set({"distributed.worker.daemon": False})
