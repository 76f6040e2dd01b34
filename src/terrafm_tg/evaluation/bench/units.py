"""Units of work: a model judged once on a dataset by a protocol, and the plan of all that a configuration asks for."""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from terrafm_tg.datasets.bench import BenchSubset, BenchTask, MissingDatasetError, open_bench
from terrafm_tg.datasets.bench.task import Bands
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, UnsupportedTaskError, load_encoder
from terrafm_tg.evaluation.protocols import Protocol
from terrafm_tg.utils.files import atomic_write, write_text

from .config import ProtocolEntry

#: The one model that has no weights, neither trained nor random.
_STATISTICS = "pixel-statistics"


@dataclasses.dataclass(frozen=True)
class WorkUnit:
    """One unit of work; small, so that it can be sent to another process.

    Args:
        spec: The model.
        dataset: Name of the benchmark dataset.
        bands: "corrected" or "labelled": the band names to believe.
        protocol: With its settings.
        fraction: Share of the training split.
        seed: Of the protocol's draws, of the share, and of random weights.
        root: Folder of the benchmarks.
        stamp: Identity of the files, data and weights, as they were when the work was planned.
    """

    spec: ModelSpec
    dataset: str
    bands: Bands
    protocol: Protocol
    fraction: float
    seed: int
    root: Path
    stamp: str

    @cached_property
    def key(self) -> str:
        """Name of the unit's file: a hash of all its settings, whatever the state of the files that it reads."""
        settings = {
            "model": dataclasses.asdict(self.spec),
            "dataset": self.dataset,
            "bands": self.bands,
            "protocol": [self.protocol.name, self.protocol.settings],
            "fraction": self.fraction,
            "seed": self.seed,
        }
        text = json.dumps(settings, sort_keys=True, default=str)
        return hashlib.sha256(text.encode()).hexdigest()[:24]

    @property
    def title(self) -> str:
        """Name in a progress bar."""
        bands = "" if self.bands == "corrected" else f" ({self.bands})"
        share = "" if self.fraction == 1 else f", {self.fraction:.3g} of train"
        return f"{self.dataset}{bands}, {self.spec.label}, {self.protocol.name}{share}, seed {self.seed}"

    def read(self, out: Path) -> list[dict[str, Any]] | None:
        """Returns the rows of this unit, if they were made of the files as they are now."""
        stored = read_rows(self.path(out))
        return stored["rows"] if stored is not None and stored["stamp"] == self.stamp else None

    def write(self, out: Path, rows: list[dict[str, Any]]) -> None:
        """Keeps the rows: all of them appear at once."""
        text = json.dumps({"stamp": self.stamp, "rows": rows}, indent=1, allow_nan=False)
        write_text(self.path(out), text + "\n")

    def path(self, out: Path) -> Path:
        """Returns the file of its rows."""
        return out / "units" / f"{self.key}.json"


def read_rows(path: Path) -> dict[str, Any] | None:
    """Returns the content of a unit's file; None if it is missing or damaged, so that the work is done again."""
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return stored if isinstance(stored, dict) and {"stamp", "rows"} <= set(stored) else None


@dataclasses.dataclass(frozen=True)
class Skipped:
    """Work that was asked for and not done.

    Args:
        dataset: Name of the dataset; empty if a model cannot be had at all.
        reason: One sentence with the reason and the fix.
        model: The model's label; empty if no model can be judged on the dataset.
        protocol: The protocol's name, if it is about one.
        failed: True for an error, which is not to be expected of files and settings that are right; else something
            is missing, or does not fit.
    """

    dataset: str
    reason: str
    model: str = ""
    protocol: str = ""
    failed: bool = False

    @property
    def name(self) -> str:
        """Dataset, model and protocol, as far as it is about one."""
        return ", ".join(filter(None, (self.dataset, self.model, self.protocol)))


class Plan(NamedTuple):
    """All units of a configuration, and the rest of it."""

    units: list[WorkUnit]
    skipped: list[Skipped]


def make_plan(
    models: Sequence[ModelSpec],
    datasets: Sequence[BenchTask],
    protocols: Sequence[ProtocolEntry],
    root: Path,
    bands: Sequence[Bands] = ("corrected",),
) -> Plan:
    """Lays out the work: dataset by dataset, and in each model by model, so that files and embeddings are shared.

    A protocol is left out of datasets whose labels it cannot take. If neither the protocol, nor the share of the
    training split, nor the model depends on the seed, there is one unit, with the first seed. ``labelled`` adds units
    for the datasets alone whose files carry wrong band names.

    Args:
        models: Models.
        datasets: Datasets.
        protocols: Protocols, with their datasets, fractions and seeds.
        root: Folder of the benchmarks.
        bands: The band names to believe.
    """
    plan = Plan([], [])
    for task in datasets:
        fitting = [x for x in protocols if task.name in x.datasets and task.kind in x.protocol.kinds]
        levels = [level for level in bands if level == "corrected" or task.labelled is not None] or ["corrected"]
        for level in levels if fitting else ():
            try:
                place: dict[str, Any] = {"dataset": task.name, "root": root, "bands": level}
                identify = cache(partial(_identify, task.name, root, level))
                plan.units.extend(
                    unit for spec in models for entry in fitting for unit in _units(spec, entry, identify, **place)
                )
            except TerraFMError as error:
                failed = not isinstance(error, MissingDatasetError)
                plan.skipped.append(Skipped(task.name, str(error), failed=failed))
                break
    return plan


def _identify(name: str, root: Path, bands: Bands, fraction: float, seed: int) -> tuple[str, bool]:
    """Returns the identity of a dataset's three splits, and whether it depends on the seed."""
    train = open_bench(name, root, "train", fraction=fraction, seed=seed, bands=bands)
    held_out = [open_bench(name, root, split, bands=bands).fingerprint for split in ("val", "test")]
    return hashlib.sha256("".join([train.fingerprint, *held_out]).encode()).hexdigest(), isinstance(train, BenchSubset)


def _units(
    spec: ModelSpec, entry: ProtocolEntry, identify: Callable[[float, int], tuple[str, bool]], **place: Any
) -> Iterator[WorkUnit]:
    drawn = spec.weights is None and spec.model != _STATISTICS
    if spec.name is None:  # without the seed: a row of the report is a mean over seeds
        name = spec.model if spec.model == _STATISTICS else f"{spec.model} ({spec.weights or 'random'})"
        spec = dataclasses.replace(spec, name=name)
    for fraction in entry.fractions:
        for seed in entry.seeds:
            stamp, part = identify(fraction, seed)
            if seed == entry.seeds[0] or entry.protocol.seeded or part or drawn:
                model = dataclasses.replace(spec, seed=spec.seed + seed) if drawn else spec
                state = f"{stamp} {_file_state(spec.weights)}".strip()
                yield WorkUnit(model, protocol=entry.protocol, fraction=fraction, seed=seed, stamp=state, **place)


def _file_state(weights: str | None) -> str:
    """Returns size and time of a file of weights, so that work is done again for a new file of the same name."""
    path = Path(weights or "")
    if weights is None or not path.is_file():
        return ""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"


def split_available(units: Sequence[WorkUnit]) -> tuple[list[WorkUnit], list[Skipped]]:
    """Loads each model once; one that cannot be loaded is named once, and its units are left out.

    So weights are downloaded by one process, before others need them, and not tried for again with every unit.

    Args:
        units: Of a plan.

    Returns:
        The units of models that could be loaded, and the other models.
    """
    missing: dict[ModelSpec, str] = {}
    tried: set[ModelSpec] = set()
    for unit in units:
        model = dataclasses.replace(unit.spec, seed=0)
        if model not in tried:
            data = open_bench(unit.dataset, unit.root, "train", bands=unit.bands)
            try:
                load_encoder(unit.spec, data.task, data)
            except UnsupportedTaskError:
                continue  # another dataset may be one that it can read
            except TerraFMError as error:
                missing[model] = str(error)
            tried.add(model)
    skipped = [Skipped("", reason, model.label, failed=True) for model, reason in missing.items()]
    return [unit for unit in units if dataclasses.replace(unit.spec, seed=0) not in missing], skipped


_COLUMNS = (
    "benchmark", "dataset", "protocol", "model", "name", "weights", "stem", "sensors", "pooling", "size",
    "normalization", "bands", "train_fraction", "seed", "metric", "average", "headline", "score", "n_train", "n_test",
    "seconds", "settings", "per_class", "confusion", "versions", "machine", "model_id", "data_id", "published",
)  # fmt: skip
_TYPES = dict.fromkeys(("size", "seed", "n_train", "n_test"), pa.int64())
_TYPES |= dict.fromkeys(("train_fraction", "score", "seconds"), pa.float64())
_TYPES |= {"headline": pa.bool_(), "published": pa.bool_(), "per_class": pa.list_(pa.float64())}
#: Columns of the table in order.
#: ``score`` is in percent. ``settings`` (given to the protocol, and chosen by it), ``versions`` and ``confusion``
#: (``[true][predicted]``) are JSON. ``stem`` and ``weights`` are empty for the dataset's own level and random weights.
SCHEMA = pa.schema([(name, _TYPES.get(name, pa.string())) for name in _COLUMNS])
_ORDER = [x for x in _COLUMNS if x not in ("seconds", "score", "per_class", "confusion", "versions")]


def collect_results(out: Path, planned: Sequence[WorkUnit]) -> pd.DataFrame:
    """Returns the results of a folder, of this run and of others before it.

    Args:
        out: Folder of the results.
        planned: Units of this run: results of an older state of their files are left out.
    """
    plan = {unit.key: unit.stamp for unit in planned}
    rows = []
    for path in sorted((out / "units").glob("*.json")):
        stored = read_rows(path)
        if stored is not None and plan.get(path.stem, stored["stamp"]) == stored["stamp"]:
            rows += stored["rows"]
    frame = pa.Table.from_pylist(rows, schema=SCHEMA).to_pandas()
    return frame.sort_values(_ORDER, kind="stable", ignore_index=True)


def write_results(frame: pd.DataFrame, out: Path) -> None:
    """Writes ``results.parquet`` and ``results.csv``, each whole; the same results give the same bytes.

    Args:
        frame: From :func:`collect_results`.
        out: Folder.
    """
    with atomic_write(out / "results.parquet", sole_writer=True) as path:
        pq.write_table(pa.Table.from_pandas(frame, schema=SCHEMA, preserve_index=False), path)
    flat = frame.assign(per_class=[None if x is None else json.dumps(list(x)) for x in frame["per_class"]])
    with atomic_write(out / "results.csv", sole_writer=True) as path:
        flat.to_csv(path, index=False)
