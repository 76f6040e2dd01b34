"""Which units of work a configuration asks for, and which datasets are not there."""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from terrafm_tg.datasets.bench import BenchSubset, BenchTask, MissingDatasetError, open_bench
from terrafm_tg.datasets.bench.task import Bands
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec

from .config import ProtocolEntry
from .unit import STATISTICS, Unit


@dataclasses.dataclass(frozen=True)
class Skipped:
    """What was asked for and not done.

    Args:
        dataset: Name of the dataset; empty where a model cannot be had at all.
        reason: Why, and what helps: one sentence.
        model: The model's label; empty where no model can be judged on the dataset.
        protocol: The protocol's name, if it is about one.
        failed: An error, which is not to be expected of files and settings that are right; else something is not
            there, or does not fit.
    """

    dataset: str
    reason: str
    model: str = ""
    protocol: str = ""
    failed: bool = False


class Plan(NamedTuple):
    """All units of a configuration, and what cannot be done of it."""

    units: list[Unit]
    skipped: list[Skipped]


def make_plan(
    models: Sequence[ModelSpec],
    datasets: Sequence[BenchTask],
    protocols: Sequence[ProtocolEntry],
    root: Path,
    bands: Sequence[Bands] = ("corrected",),
) -> Plan:
    """Lay out the work: dataset by dataset, and in each model by model, so that files and embeddings are shared.

    A protocol is left out of datasets whose labels it cannot take. Where neither the protocol, nor the share of the
    training split, nor the model depends on the seed, there is one unit, with the first seed. ``labelled`` adds units
    for the datasets alone whose files carry wrong band names.

    Args:
        models: Models.
        datasets: Datasets.
        protocols: Protocols, with their datasets, fractions and seeds.
        root: Folder of the benchmarks.
        bands: Whose band names to believe.
    """
    plan = Plan([], [])
    for task in datasets:
        fitting = [x for x in protocols if task.name in x.datasets and task.kind in x.protocol.kinds]
        for level in _levels(task, bands) if fitting else ():
            try:
                opened = _Opened(task.name, root, level)
                plan.units.extend(
                    unit for spec in models for entry in fitting for unit in _units(spec, entry, opened)
                )
            except MissingDatasetError as error:
                plan.skipped.append(Skipped(task.name, str(error)))
                break
            except TerraFMError as error:
                plan.skipped.append(Skipped(task.name, str(error), failed=True))
                break
    return plan


class _Opened:
    """One dataset's identity under each fraction and seed, looked up once."""

    def __init__(self, name: str, root: Path, bands: Bands) -> None:
        self.name, self.root, self.bands = name, root, bands
        self._held_out = [open_bench(name, root, split, bands=bands).fingerprint for split in ("val", "test")]
        self._train: dict[tuple[float, int], tuple[str, bool]] = {}

    def train(self, fraction: float, seed: int) -> tuple[str, bool]:
        """Identity of the three splits, and whether the seed has a part in it."""
        if (fraction, seed) not in self._train:
            split = open_bench(self.name, self.root, "train", fraction=fraction, seed=seed, bands=self.bands)
            stamp = hashlib.sha256("".join([split.fingerprint, *self._held_out]).encode()).hexdigest()
            self._train[fraction, seed] = stamp, isinstance(split, BenchSubset)
        return self._train[fraction, seed]


def _levels(task: BenchTask, bands: Sequence[Bands]) -> list[Bands]:
    """Names as labelled are a thing of their own only where they are wrong."""
    return [level for level in bands if level == "corrected" or task.labelled is not None] or ["corrected"]


def _units(spec: ModelSpec, entry: ProtocolEntry, opened: _Opened) -> Iterator[Unit]:
    drawn = spec.weights is None and spec.model != STATISTICS
    if spec.name is None:
        spec = dataclasses.replace(spec, name=_name(spec))
    for fraction in entry.fractions:
        for seed in entry.seeds:
            stamp, part = opened.train(fraction, seed)
            if seed != entry.seeds[0] and not (entry.protocol.seeded or part or drawn):
                continue
            model = dataclasses.replace(spec, seed=spec.seed + seed) if drawn else spec
            yield Unit(
                spec=model,
                dataset=opened.name,
                bands=opened.bands,
                protocol=entry.protocol,
                fraction=fraction,
                seed=seed,
                root=opened.root,
                stamp=f"{stamp} {_file_state(spec.weights)}".strip(),
            )


def _name(spec: ModelSpec) -> str:
    """A label that does not hold the seed: a row of the report is a mean over seeds."""
    if spec.model == STATISTICS:
        return spec.model
    return f"{spec.model} ({spec.weights or 'random'})"


def _file_state(weights: str | None) -> str:
    """Size and time of a file of weights, so that work is done again for a new checkpoint of the same name."""
    path = Path(weights or "")
    if weights is None or not path.is_file():
        return ""
    stat = path.stat()
    return f"{stat.st_size} {stat.st_mtime_ns}"
