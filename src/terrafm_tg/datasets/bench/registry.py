"""All tasks by name, and how to open one."""

from pathlib import Path

from terrafm_tg.errors import TerraFMError

from .copernicus_tasks import COPERNICUS_BENCH
from .geobench_tasks import GEO_BENCH
from .landslide4sense import LANDSLIDE4SENSE
from .subset import take_fraction
from .task import Bands, BenchDataset, BenchTask, Split

#: Every benchmark dataset by its name in the published tables.
TASKS: dict[str, BenchTask] = {task.name: task for task in (*GEO_BENCH, *COPERNICUS_BENCH, LANDSLIDE4SENSE)}


def get_task(name: str) -> BenchTask:
    """The task of that name.

    Raises:
        TerraFMError: If there is none.
    """
    if name not in TASKS:
        raise TerraFMError(f"Benchmark dataset {name!r} is unknown: use one of {', '.join(TASKS)}.")
    return TASKS[name]


def open_bench(
    name: str, root: Path, split: Split, *, fraction: float = 1.0, seed: int = 0, bands: Bands = "corrected"
) -> BenchDataset:
    """One split of a benchmark dataset.

    Args:
        name: A name of :data:`TASKS`.
        root: The folder that holds the benchmarks.
        split: ``"train"``, ``"val"`` or ``"test"``.
        fraction: Share of the train split: the benchmark's own partition where the files have it, else a seeded
            class-stratified part, nested in every larger one. Validation and test never shrink.
        seed: Which part, where the benchmark has no partition.
        bands: ``"corrected"`` or ``"labelled"``: which band names are believed where the files' are wrong.

    Raises:
        MissingDatasetError: If the dataset is not under ``root``.
        TerraFMError: If a setting is unknown, or a file is damaged.
    """
    task = get_task(name)
    if split not in ("train", "val", "test"):
        raise TerraFMError(f"Split {split!r} is unknown: use train, val or test.")
    if bands not in ("corrected", "labelled"):
        raise TerraFMError(f"`bands` must be corrected or labelled, got {bands!r}.")
    if not 0 < fraction <= 1:
        raise TerraFMError(f"`fraction` must be above 0 and at most 1, got {fraction}.")
    partition = f"{fraction:.2f}x_train" if fraction == round(fraction, 2) else ""
    dataset = task.opener(task, Path(root), split, partition=partition, bands=bands)
    if split == "train" and fraction < 1 and dataset.partition != partition:
        return take_fraction(dataset, fraction, seed)
    return dataset
