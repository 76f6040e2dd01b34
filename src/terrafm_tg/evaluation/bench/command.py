"""``terrafm bench``: any models, datasets and protocols, beside the published scores."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from terrafm_tg.datasets.bench.task import Bands
from terrafm_tg.errors import TerraFMError

from .config import read_datasets, read_models, read_protocols, unknown
from .plan import Plan, make_plan
from .printing import print_plan, print_results, warnings_once
from .run import run_plan
from .work import How, own_device

_BANDS: tuple[Bands, ...] = ("corrected", "labelled")


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
        protocols: Of knn, linear-probe, logistic, segmentation-probe, upernet, finetune, copernicus-frozen; or
            mappings of name, the protocol's settings, and datasets, fractions and seeds where these differ.
        fractions: Shares of the training split, such as [0.01,0.1,1].
        seeds: One run each; what does not depend on a seed runs once.
        bands: Band names "corrected", "labelled" as the files of two datasets have them, or both.
        device: Such as cpu, cuda or cuda:1; a GPU where there is one by default.
        batch_size: Images per forward of a frozen encoder; protocols that train have a setting of their own.
        num_workers: Processes per unit that decode images.
        workers: Units at a time on this machine, each in a process of its own; one per GPU by default.
        scheduler: Address of a Dask cluster that sees the same files: one worker per GPU.
        cache: Whether to keep embeddings in OUT for further runs.
        dry_run: Whether only to list the units of work, and what is missing.

    Raises:
        TerraFMError: If a setting is wrong, there is nothing to do, or in the end for what failed.
    """
    if root is None or out is None:
        missing = "root" if root is None else "out"
        raise TerraFMError(
            f"`{missing}` is not set: give --root, the folder of the benchmarks, and --out, that of the results."
        )
    if not root.is_dir():
        raise TerraFMError(f"There is no folder {root}: give the folder of the benchmarks as `root`.")
    tasks = read_datasets(datasets)
    entries = read_protocols(protocols, tasks, fractions, seeds)
    specs = read_models(models)
    wanted = [bands] if isinstance(bands, str) else list(bands)
    for level in wanted:
        if level not in _BANDS:
            raise TerraFMError(unknown("setting of `bands`", level, _BANDS))
    levels = [level for level in _BANDS if level in wanted]
    own_device(device)
    plan = make_plan(specs, tasks, entries, root, levels)
    if dry_run:
        print_plan(plan, out)
        return
    if not plan.units:
        raise TerraFMError(_nothing(plan))
    workers = _workers(workers, scheduler, device)
    how = How(
        out=out.absolute(),
        device=device,
        batch_size=batch_size,
        num_workers=num_workers,
        cache=out.absolute() / "embeddings" if cache else None,
    )
    results = run_plan(plan, how, workers, scheduler)
    print_results(results.frame, results.plan, results.report)
    failed = [item for item in results.plan.skipped if item.failed]
    if failed:
        what = ", ".join(filter(None, [failed[0].dataset, failed[0].model, failed[0].protocol]))
        more = f", and {len(failed) - 1} more, which {out / 'skipped.json'} names" if len(failed) > 1 else ""
        raise TerraFMError(
            f"{what} failed: {failed[0].reason.rstrip('.')}{more}. The others are in the report."
        )


def _workers(workers: int | None, scheduler: str | None, device: str) -> int | None:
    """One process per GPU where there are several and Dask is installed; else this process."""
    if workers is not None or scheduler is not None:
        return workers
    count = torch.cuda.device_count() if device in ("auto", "cuda") else 0
    return count if count > 1 and find_spec("distributed") is not None else 0


def _nothing(plan: Plan) -> str:
    """Why a plan has no unit."""
    if plan.skipped:
        names: Sequence[str] = [item.dataset for item in plan.skipped]
        first = plan.skipped[0].reason.rstrip(".")
        more = f" The same goes for {', '.join(names[1:])}." if names[1:] else ""
        return f"{first}.{more}"
    return "No protocol fits any of the datasets: see docs/benchmarks.md for which takes which."
