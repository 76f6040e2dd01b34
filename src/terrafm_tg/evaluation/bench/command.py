"""``terrafm bench``: plans, does the missing units, writes table and report, and prints."""

import dataclasses
import sys
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from terrafm_tg.datasets.bench.task import Bands
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.report import write_bench_report
from terrafm_tg.evaluation.report.lines import entries, score_lines
from terrafm_tg.evaluation.report.published import highest
from terrafm_tg.evaluation.report.tables import percent
from terrafm_tg.utils.arguments import checked
from terrafm_tg.utils.files import write_json
from terrafm_tg.utils.parallel import run_units

from .config import read_datasets, read_models, read_protocols, unknown
from .units import Plan, Skipped, collect_results, make_plan, split_available, write_results
from .work import own_device, run_unit

_BANDS: tuple[Bands, ...] = ("corrected", "labelled")


@contextmanager
def warnings_once() -> Iterator[None]:
    """Shows a warning as one line without its place in the code, and once however many units bring it."""
    seen: set[str] = set()

    def show(message: Warning | str, *place: object, **others: object) -> None:
        if str(message) not in seen:
            seen.add(str(message))
            print(f"terrafm: warning: {message}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


@checked()
@warnings_once()
def run_bench(
    root: Path | None = None,
    out: Path | None = None,
    models: list[dict[str, Any] | str] | str = "terrafm_base",
    datasets: list[str] | str = "GEO-Bench",
    protocols: list[dict[str, Any] | str] | str = "knn",
    fractions: list[float] | float = 1.0,
    seeds: list[int] | int = 0,
    bands: list[str] | str = "corrected",
    device: str = "auto",
    batch_size: int = 64,
    num_workers: int = 4,
    workers: int | None = None,
    scheduler: str | None = None,
    cache: bool = True,
    dry_run: bool = False,
) -> None:
    """Evaluates encoders on GEO-Bench, Copernicus-Bench and Landslide4Sense, beside the published scores.

    Take one of the configurations in conf/bench and override what differs, such as
    `terrafm bench --config conf/bench/geobench_knn.yaml --root data/bench --models [terrafm_base,pixel-statistics]`.
    The same command again resumes. A dataset that is not there is skipped and named, with where
    to get it. OUT receives results.parquet, results.csv, report.md and report.html.

    Args:
        root: Folder of the benchmarks' files.
        out: Folder of the results; what it holds of other runs stays in the table.
        models: Names, with their published weights, or MODEL@FILE, or MODEL@random, such as
            [terrafm_base,torchgeo/dofa_base_patch16_224,timm/vit_small_patch16_224@random]; or mappings of model,
            weights, name, stem, sensors, pooling (token, mean), size, normalization (model, dataset), seed, channels,
            absent (neighbour, mean).
        datasets: Names, patterns or benchmarks, such as [m-eurosat,*-S1,Copernicus-Bench].
        protocols: Any of knn, linear-probe, logistic, segmentation-probe, upernet, finetune, copernicus-frozen; or
            mappings of name, the protocol's settings, and datasets, fractions and seeds where these differ.
        fractions: Shares of the training split, such as [0.01,0.1,1].
        seeds: One run each; what does not depend on a seed runs once.
        bands: "corrected" band names, "labelled" ones as the files of two datasets have them, or both.
        device: Such as cpu, cuda or cuda:1; a GPU where there is one by default.
        batch_size: Images per forward of a frozen encoder; protocols that train have a setting of their own.
        num_workers: Processes per unit that decode images.
        workers: Units at a time on this machine, each in a process of its own; one per GPU by default.
        scheduler: Address of a Dask cluster that sees the same files: one worker per GPU.
        cache: Keep embeddings in OUT for further runs.
        dry_run: Only list the units of work, and what is missing.

    Raises:
        TerraFMError: If a setting is wrong, there is nothing to do, or in the end for units that failed.
    """
    if root is None or out is None:
        missing = "root" if root is None else "out"
        raise TerraFMError(
            f"`{missing}` is not set: give --root, the folder of the benchmarks, and --out, that of the results."
        )
    if not root.is_dir():
        raise TerraFMError(f"There is no folder {root}: give the folder of the benchmarks as `root`.")
    tasks = read_datasets(datasets)
    protocol_entries = read_protocols(protocols, tasks, fractions, seeds)
    specs = read_models(models)
    wanted = [bands] if isinstance(bands, str) else list(bands)
    for level in wanted:
        if level not in _BANDS:
            raise TerraFMError(unknown("setting of `bands`", level, _BANDS))
    own_device(device)
    plan = make_plan(specs, tasks, protocol_entries, root, [level for level in _BANDS if level in wanted])
    if dry_run:
        _print_plan(plan, out)
        return
    if not plan.units:
        raise TerraFMError(_nothing(plan))
    if workers is None and scheduler is None:
        # One process per GPU if there are several and Dask is installed; else this process.
        count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
        workers = count if count > 1 and find_spec("distributed") is not None else 0
    settings = {"device": device, "batch_size": batch_size, "num_workers": num_workers, "cache": cache}
    plan, frame = run_plan(plan, out.absolute(), workers, scheduler, **settings)
    skipped = [dataclasses.asdict(item) for item in plan.skipped]
    write_json(out / "skipped.json", skipped)
    _print_results(frame, plan, write_bench_report(frame, out, skipped))
    failed = [item for item in plan.skipped if item.failed]
    if failed:
        more = f", and {len(failed) - 1} more, which {out / 'skipped.json'} names" if len(failed) > 1 else ""
        raise TerraFMError(
            f"{failed[0].name} failed: {failed[0].reason.rstrip('.')}{more}. The others are in the report."
        )


def _nothing(plan: Plan) -> str:
    """Says why a plan has no unit."""
    if not plan.skipped:
        return "No protocol fits any of the datasets: see docs/benchmarks.md for which takes which."
    first, *others = plan.skipped
    more = f" The same goes for {', '.join(item.dataset for item in others)}." if others else ""
    return f"{first.reason.rstrip('.')}.{more}"


def run_plan(
    plan: Plan, out: Path, workers: int | None, scheduler: str | None, **settings: Any
) -> tuple[Plan, pd.DataFrame]:
    """Does what is missing of a plan; then writes ``results.parquet`` and ``results.csv``.

    Every unit's rows are on disk before the next begins: a killed run loses the units under way alone. Of each model
    that is still to be judged, the weights are fetched first.

    Args:
        plan: The work.
        out: Folder of the results.
        workers: Processes on this machine; 0 for this one alone.
        scheduler: Address of a Dask cluster instead.
        settings: Of :func:`~.work.run_unit`.

    Returns:
        The plan with what was skipped or failed on the way, and the table of results.
    """
    todo, unavailable = split_available([unit for unit in plan.units if unit.read(out) is None])
    skipped = [*plan.skipped, *unavailable]
    alone = workers == 0 and scheduler is None
    with nullcontext() if alone or not todo else _dask_settings():
        outcomes = run_units(
            partial(run_unit, out=out, **settings),
            todo,
            workers=workers,
            scheduler=scheduler,
            title="Benchmark",
            describe=lambda unit: unit.title,
        )
        for position, outcome in outcomes if todo else ():
            if outcome.state != "done":
                unit, failed = todo[position], outcome.state == "failed"
                names = unit.spec.label, unit.protocol.name
                skipped.append(Skipped(unit.dataset, outcome.reason, *names, failed=failed))
    frame = collect_results(out, plan.units)
    write_results(frame, out)
    return Plan(plan.units, list(dict.fromkeys(skipped))), frame


def _dask_settings() -> AbstractContextManager[object]:
    """Lets Dask's worker processes start the processes of a DataLoader, which daemons may not."""
    if find_spec("distributed") is None:
        return nullcontext()
    import dask

    import_module("distributed")  # or its own settings, read at that import, would go with this one
    return dask.config.set({"distributed.worker.daemon": False})


def _print_plan(plan: Plan, out: Path) -> None:
    """Prints every unit, whether it is done already, and what is missing."""
    units = [
        {
            "dataset": unit.dataset if unit.bands == "corrected" else f"{unit.dataset} ({unit.bands})",
            "model": unit.spec.label,
            "protocol": unit.protocol.name,
            "train": percent(unit.fraction),
            "seed": unit.seed,
            "state": "to do" if unit.read(out) is None else "done",
        }
        for unit in plan.units
    ]
    print(pd.DataFrame(units).to_string(index=False))
    done = sum(unit["state"] == "done" for unit in units)
    print(f"{len(units)} units of work: {done} of {len(units)} units are done in {out}.")
    _print_skipped(plan.skipped)


def _print_results(frame: pd.DataFrame, plan: Plan, report: Path) -> None:
    """Prints headline scores in percent with 95 % intervals, what was skipped, and where the report is."""
    lines = score_lines(entries(frame))
    rows = []
    for line in () if lines.empty else lines[lines.leads].itertuples():
        found, best = line.estimate, highest(line.published)
        rows.append(
            {
                "dataset": line.dataset,
                "protocol": f"{line.protocol}, {percent(line.train_fraction)}",
                "metric": line.metric,
                "model": line.entry,
                "score": f"{found.mean:.1f}" + (f" ({found.low:.1f}–{found.high:.1f})" if found.kind else ""),
                "published": f"{line.reference.score:.1f}" if line.reference else "",
                "best published": f"{best.score:.1f} {best.label}" if best else "",
            }
        )
    if rows:
        print(pd.DataFrame(rows).to_string(index=False))
    _print_skipped(plan.skipped)
    print(f"Written: {report.parent / 'results.parquet'} and .csv; report: {report}")


def _print_skipped(skipped: list[Skipped]) -> None:
    """Prints what was not done: one line for each reason."""
    reasons: dict[tuple[bool, str], list[str]] = {}
    for item in skipped:
        reasons.setdefault((item.failed, item.reason), []).append(item.name)
    for (failed, reason), names in reasons.items():
        print(f"{'failed' if failed else 'skipped'}: {'; '.join(names)}: {reason}")
