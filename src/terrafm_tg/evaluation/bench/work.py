"""Does one unit of work, on this process's own device."""

import json
import multiprocessing
import platform
import shutil
import sys
import time
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.utilities.seed import isolate_rng

from terrafm_tg.datasets.bench import BenchDataset, open_bench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import BenchEncoder, UnsupportedTaskError, load_encoder
from terrafm_tg.evaluation.encoders.reader import Reader
from terrafm_tg.evaluation.protocols import Context, Score, Splits

from .table import SCHEMA
from .unit import Unit

#: Packages whose versions stand beside every score.
_PACKAGES = ("terrafm-tg", "torch", "torchgeo", "timm", "lightning", "torchmetrics", "scikit-learn")


class How(NamedTuple):
    """How a run does its units; nothing of it changes a score.

    Args:
        out: Folder of the results.
        device: "auto" for the process's own GPU where there is one, else such as "cuda:1" or "cpu".
        batch_size: Images per forward of a frozen encoder.
        num_workers: Processes that decode images.
        cache: Folder of embeddings; none are kept where None.
    """

    out: Path
    device: str = "auto"
    batch_size: int = 64
    num_workers: int = 0
    cache: Path | None = None


class Outcome(NamedTuple):
    """What became of a unit: its rows are in its file where it is ``done``, else there is a reason."""

    state: Literal["done", "skipped", "failed"]
    reason: str = ""


def run_unit(unit: Unit, how: How) -> Outcome:
    """Do one unit and keep its rows; what it needs lies on disk, so any process can.

    Args:
        unit: The unit.
        how: Where and how.
    """
    if _worker_number() is not None:
        # Dask's processes spawn others, and each process of a loader would import everything anew.
        multiprocessing.set_start_method(None, force=True)
    try:
        splits = open_splits(unit)
        device = own_device(how.device)
        scratch = how.out / "unfinished" / unit.key
        context = Context(
            device=device,
            seed=unit.seed,
            fraction=unit.fraction,
            cache=how.cache,
            batch_size=how.batch_size,
            num_workers=how.num_workers,
            folder=scratch,
        )
        with isolate_rng():
            seed_everything(unit.seed, workers=True, verbose=False)
            encoder = load_encoder(unit.spec, splits.test.task, splits.train)
            common = _common(unit, splits, encoder, device)
            del encoder  # the protocol loads its own
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
    common["seconds"] = round(seconds, 3)
    unit.write(how.out, [common | _row(score, unit, splits.train) for score in scores])
    shutil.rmtree(scratch, ignore_errors=True)
    with suppress(OSError):  # that of another unit is in it
        scratch.parent.rmdir()
    return Outcome("done")


def open_splits(unit: Unit) -> Splits:
    """The three parts of the unit's dataset."""
    return Splits(
        open_bench(
            unit.dataset, unit.root, "train", fraction=unit.fraction, seed=unit.seed, bands=unit.bands
        ),
        open_bench(unit.dataset, unit.root, "val", bands=unit.bands),
        open_bench(unit.dataset, unit.root, "test", bands=unit.bands),
    )


def own_device(wanted: str) -> torch.device:
    """The device of this process.

    Args:
        wanted: ``"auto"`` for a GPU where there is one. Of several, each Dask worker of this machine takes the one of
            its own number; a worker of a cluster takes the first that its ``CUDA_VISIBLE_DEVICES`` shows it.

    Raises:
        TerraFMError: If there is no such device.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise TerraFMError(
            f"`device` is {wanted!r}: use auto, cpu, cuda or one of several, such as cuda:1."
        ) from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise TerraFMError(f"`device` is {wanted!r}, but torch sees no GPU here: use device=cpu.")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", (_worker_number() or 0) % torch.cuda.device_count())
    return device


def _worker_number() -> int | None:
    """Of a worker that this machine's run started; 0 of another Dask worker; None in any other process."""
    if "distributed" not in sys.modules:
        return None
    from distributed import get_worker

    try:
        name = get_worker().name
    except ValueError:  # not in a worker
        return None
    return name if isinstance(name, int) else 0


def _common(unit: Unit, splits: Splits, encoder: BenchEncoder, device: torch.device) -> dict[str, Any]:
    """What all rows of a unit share."""
    task, spec = splits.test.task, unit.spec
    return {
        "benchmark": task.benchmark,
        "dataset": task.name,
        "protocol": unit.protocol.name,
        "model": spec.model,
        "name": spec.label,
        "weights": spec.weights or "",
        "stem": spec.stem or "",
        "sensors": ",".join(sensor for sensor in task.sensors if sensor in _read_by(encoder)),
        "pooling": spec.pooling,
        "size": encoder.size,
        "normalization": spec.normalization,
        "bands": unit.bands,
        "train_fraction": unit.fraction,
        "seed": unit.seed,
        "n_train": len(splits.train),
        "n_test": len(splits.test),
        "machine": machine(device),
        "versions": versions(),
        "model_id": encoder.identity,
        "data_id": unit.stamp.partition(" ")[0],
        "published": False,
    }


def _read_by(encoder: BenchEncoder) -> set[str]:
    """The sensors that an encoder takes bands of."""
    readers = [module for module in encoder.modules() if isinstance(module, Reader)]
    return {source.sensor for reader in readers for source in reader.sources if source is not None}


def _row(score: Score, unit: Unit, train: BenchDataset) -> dict[str, Any]:
    """One score; numbers that there are not (a class that does not occur) become null."""
    more = {name: value for name, value in asdict(unit.spec).items() if name not in SCHEMA.names}
    settings = {**more, **unit.protocol.settings, **score.settings, "partition": train.partition}
    classes = score.per_class
    return {
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
    """Versions of what computes the scores, as JSON."""
    found = {name: version(name) for name in _PACKAGES} | {"python": platform.python_version()}
    return json.dumps(found)


def machine(device: torch.device) -> str:
    """The processor that computed a score."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.system()} {platform.processor() or platform.machine()}"
