"""One unit of work, done on this process's own device."""

import json
import multiprocessing
import platform
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from terrafm_tg.datasets.bench import open_bench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder, UnsupportedTaskError, load_encoder
from terrafm_tg.evaluation.encoders.reader import Reader
from terrafm_tg.evaluation.protocols import Context, Score, Splits
from terrafm_tg.utils.devices import find_device

from .units import SCHEMA, WorkUnit

#: Packages whose versions are kept with every score.
_PACKAGES = ("terrafm-tg", "torch", "torchgeo", "timm", "lightning", "torchmetrics", "scikit-learn")


class Outcome(NamedTuple):
    """State of a unit: if it is ``done`` its rows are in its file, else there is a reason."""

    state: Literal["done", "skipped", "failed"]
    reason: str = ""


def run_unit(
    unit: WorkUnit, out: Path, device: str = "auto", batch_size: int = 64, num_workers: int = 0, cache: bool = True
) -> Outcome:
    """Does one unit and keeps its rows; all that it needs lies on disk, so any process can.

    Args:
        unit: The unit.
        out: Folder of the results.
        device: "auto" for the process's own GPU where there is one, else such as "cuda:1" or "cpu".
        batch_size: Images per forward of a frozen encoder.
        num_workers: Processes that decode images.
        cache: Whether to keep embeddings for further units.
    """
    if _worker_number() is not None:
        # Dask's processes spawn others, and each process of a loader would import everything anew.
        multiprocessing.set_start_method(None, force=True)
    try:
        opened = partial(open_bench, unit.dataset, unit.root, bands=unit.bands)
        splits = Splits(opened("train", fraction=unit.fraction, seed=unit.seed), opened("val"), opened("test"))
        scratch = out / "unfinished" / unit.key
        kept = out / "embeddings" if cache else None
        context = Context(own_device(device), unit.seed, kept, batch_size, num_workers, scratch)
        with isolate_rng():
            seed_everything(unit.seed, workers=True, verbose=False)
            encoder = load_encoder(unit.spec, splits.test.task, splits.train)
            start = time.perf_counter()
            scores = unit.protocol.run(unit.spec, splits, context)
            seconds = time.perf_counter() - start
    except UnsupportedTaskError as error:
        return Outcome("skipped", str(error))
    except TerraFMError as error:
        return Outcome("failed", str(error))
    except torch.OutOfMemoryError as error:
        reason = str(error).partition(". ")[0]
        return Outcome("failed", f"{reason}: use a smaller `batch_size`, for the model and the protocol.")
    unit.write(out, list(_rows(unit, splits, encoder, context.device, scores, seconds)))
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # that of another unit is in it
        scratch.parent.rmdir()
    return Outcome("done")


def own_device(wanted: str) -> torch.device:
    """Returns the device of this process.

    Args:
        wanted: ``"auto"`` for a GPU if there is one. Of several, each Dask worker of this machine takes the one of
            its own number; a worker of a cluster takes the first that its ``CUDA_VISIBLE_DEVICES`` shows it.

    Raises:
        TerraFMError: If there is no such device.
    """
    device = find_device(None if wanted == "auto" else wanted)
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", (_worker_number() or 0) % torch.cuda.device_count())
    return device


def _worker_number() -> int | None:
    """Returns the number of a worker of this run; 0 in another Dask worker; None in any other process."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # not in a worker
        return None
    return name if isinstance(name, int) else 0


def _rows(
    unit: WorkUnit, splits: Splits, encoder: BenchEncoder, device: torch.device, scores: Sequence[Score], seconds: float
) -> Iterator[dict[str, Any]]:
    """Yields a row of the results per score; NaN (a class that does not occur) becomes null."""
    task, spec = splits.test.task, unit.spec
    readers = [module for module in encoder.modules() if isinstance(module, Reader)]
    read = {source.sensor for reader in readers for source in reader.sources if source is not None}
    common = {
        "benchmark": task.benchmark,
        "dataset": task.name,
        "protocol": unit.protocol.name,
        "model": spec.model,
        "name": spec.label,
        "weights": spec.weights or "",
        "stem": spec.stem or "",
        "sensors": ",".join(sensor for sensor in task.sensors if sensor in read),
        "pooling": spec.pooling,
        "size": encoder.size,
        "normalization": spec.normalization,
        "bands": unit.bands,
        "train_fraction": unit.fraction,
        "seed": unit.seed,
        "n_train": len(splits.train),
        "n_test": len(splits.test),
        "seconds": round(seconds, 3),
        "machine": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "versions": versions(),
        "model_id": encoder.identity,
        "data_id": unit.stamp.partition(" ")[0],
        "published": False,
    }
    more = {name: value for name, value in asdict(spec).items() if name not in SCHEMA.names}
    for score in scores:
        settings = {**more, **unit.protocol.settings, **score.settings, "partition": splits.train.partition}
        classes = score.per_class
        yield common | {
            "metric": score.metric,
            "average": score.average,
            "headline": score.headline,
            "score": _number(score.score),
            "settings": json.dumps(settings, sort_keys=True, default=str),
            "per_class": None if classes is None else [_number(value) for value in classes],
            "confusion": None if score.confusion is None else json.dumps(score.confusion),
        }


def _number(value: float) -> float | None:
    return None if value != value else float(value)


@cache
def versions() -> str:
    """Returns the versions of the packages that compute the scores, as JSON."""
    found = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return json.dumps(found)


def _processor() -> str:
    return f"{platform.system()} {platform.processor() or platform.machine()}"
