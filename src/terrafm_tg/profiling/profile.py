"""The findings of a profile: numbers that go into a table, a figure and a JSON file."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import write_json


@dataclass(frozen=True)
class Stage:
    """A stage's part of a step.

    Args:
        name: One of :data:`~terrafm_tg.profiling.stages.STAGES`.
        seconds: Mean per batch.
        share: Of the step.
        operations: Of its matrix products, all samples of this process's batch together; None where not counted.
    """

    name: str
    seconds: float
    share: float
    operations: float | None = None

    @property
    def teraflops(self) -> float | None:
        """Rate of its matrix products, 10^12 per second."""
        return self.operations / self.seconds / 1e12 if self.operations and self.seconds else None


@dataclass(frozen=True)
class Run:
    """Time and cost of the whole configured run.

    Args:
        samples: Tiles, all epochs together.
        steps: Optimizer steps.
        processes: Processes, a device each, that the configuration asks for.
        efficiency: Share of the measured speed that is left with that many processes, as predicted; 1 where as many
            were measured.
        hours: Of training steps, validation and start-up not included.
    """

    samples: int
    steps: int
    processes: int
    efficiency: float
    hours: float

    @property
    def device_hours(self) -> float:
        """Hours of all devices together."""
        return self.hours * self.processes


@dataclass(frozen=True)
class Profile:
    """A profile of training steps. Times are seconds per batch of one process.

    Args:
        task: The model's name.
        settings: What shapes the step.
        device: In words.
        processes: That were measured.
        batch: Tiles per batch and process.
        batches: Batches that count.
        seconds: Mean time of a batch.
        deviation: Standard deviation of that time from batch to batch.
        stages: In the order of a step.
        operations: Per sample, by the convention of :mod:`.arithmetic`, or as torch counted them.
        operations_as_written: Per sample, with the stem's pairs of maps apart; None for other tasks.
        modalities: Mean number of modalities per view by the settings, E[M]; None for other tasks.
        modalities_met: The same, counted in the batches; None for other tasks.
        peak: Rate of one large matrix product in the precision of the step, in the same run, 10^12 per second.
        precision: Of the Trainer.
        waiting: Share of the stages' boundaries at which the GPU had nothing left to do; None on a CPU.
        memory: Peak bytes: of the main process on the host (``host``), of tensors on the GPU (``device``).
        reduced: Bytes that processes reduce per optimizer step: ``gradients`` and ``centers``.
        accumulated: Batches per optimizer step.
        graphs: Graphs compiled before the first batch that counts.
        recompiled: Graphs compiled since.
        run: The whole configured run; None where its length is not known.
        versions: Of the software.
    """

    task: str
    settings: dict[str, Any]
    device: str
    processes: int
    batch: int
    batches: int
    seconds: float
    deviation: float
    stages: tuple[Stage, ...]
    operations: float | None
    operations_as_written: float | None
    modalities: float | None
    modalities_met: float | None
    peak: float
    precision: str
    waiting: float | None
    memory: dict[str, int]
    reduced: dict[str, int]
    accumulated: int = 1
    graphs: int = 0
    recompiled: int = 0
    run: Run | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def samples_per_second(self) -> float:
        """Of all measured processes together."""
        return self.batch * self.processes / self.seconds

    @property
    def teraflops(self) -> float | None:
        """Of one device."""
        return None if self.operations is None else self.operations * self.batch / self.seconds / 1e12

    @property
    def mfu(self) -> float | None:
        """Share of the measured rate of a matrix product that the step reaches."""
        return None if self.teraflops is None else self.teraflops / self.peak

    def stage(self, name: str) -> float:
        """Seconds of a stage; 0 where the step has none of that name."""
        return sum(stage.seconds for stage in self.stages if stage.name == name)

    def write(self, path: Path) -> None:
        """Writes everything as JSON, with what follows from it."""
        derived = {
            "samples_per_second": self.samples_per_second,
            "teraflops": self.teraflops,
            "mfu": self.mfu,
            "run_device_hours": self.run and self.run.device_hours,
        }
        write_json(path, asdict(self) | {"derived": derived})


def _check(profile: Profile) -> None:
    """The numbers that others follow from.

    Raises:
        ValueError: If one is missing, no number or negative, or 0 where something is divided by it.
    """
    names = ("processes", "batch", "batches", "seconds", "peak", "accumulated")
    divided_by = {name: getattr(profile, name) for name in names}
    numbers = divided_by | {"deviation": profile.deviation}
    numbers |= {f"reduced {name}": profile.reduced.get(name) for name in ("gradients", "centers")}
    numbers |= {f"stage {stage.name}": stage.seconds for stage in profile.stages}
    for name, value in numbers.items():
        if not isinstance(value, int | float) or not (value > 0 if name in divided_by else value >= 0):
            raise ValueError(f"{name} is {value!r}")


def read_profile(path: Path) -> Profile:
    """Reads what :meth:`Profile.write` wrote.

    Raises:
        TerraFMError: If the file is not such a profile.
    """
    try:
        found = json.loads(path.read_text())
        found.pop("derived")
        stages = tuple(Stage(**stage) for stage in found.pop("stages"))
        run = found.pop("run")
        profile = Profile(**found, stages=stages, run=run and Run(**run))
        _check(profile)
        return profile
    except FileNotFoundError:
        raise TerraFMError(f"There is no {path}: write one with `terrafm profile ... --json {path}`.") from None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TerraFMError(
            f"{path} is not a profile ({error}): write one with `terrafm profile ... --json {path}`."
        ) from None
