"""The findings of a profile: numbers that go into a table and a JSON file."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.files import write_json


@dataclass(frozen=True)
class Profile:
    """A profile of training steps. Times are seconds per batch, operations those of a batch of one process.

    Args:
        task: The model's name.
        device: In words.
        precision: Of the Trainer.
        processes: That were measured.
        batch: Tiles per batch and process.
        accumulated: Batches per optimizer step.
        batches: Batches that count.
        seconds: Mean time of a batch.
        deviation: Standard deviation of that time from batch to batch.
        stages: Mean time of each of :data:`~terrafm_tg.profiling.stages.STAGES`, in the order of a step.
        operations: Of matrix products and convolutions by stage, as torch counts them.
        peak: Rate of one large matrix product in the precision of the step, in the same run, 10^12 per second.
        waiting: Share of the stages' boundaries at which the GPU had nothing left to do; None on a CPU.
        memory: Peak bytes: of the main process on the host (``host``), of tensors on the GPU (``device``).
        gradients: Bytes that processes reduce per optimizer step.
        run: The whole configured run: its samples, optimizer steps, processes, their predicted efficiency, hours
            without validation, and device hours; None where its length is not known.
        versions: Of the software.
    """

    task: str
    device: str
    precision: str
    processes: int
    batch: int
    accumulated: int
    batches: int
    seconds: float
    deviation: float
    stages: dict[str, float]
    operations: dict[str, int]
    peak: float
    waiting: float | None
    memory: dict[str, int]
    gradients: int
    run: dict[str, Any] | None
    versions: dict[str, str]

    @property
    def samples_per_second(self) -> float:
        """Of all measured processes together."""
        return self.batch * self.processes / self.seconds

    @property
    def teraflops(self) -> float:
        """Of one device."""
        return sum(self.operations.values()) / self.seconds / 1e12

    @property
    def mfu(self) -> float:
        """Share of the measured rate of a matrix product that the step reaches."""
        return self.teraflops / self.peak

    def beyond_products(self, stage: str) -> float:
        """Seconds of a stage that its products would not take at the measured rate."""
        return self.stages[stage] - self.operations.get(stage, 0) / self.peak / 1e12

    def write(self, path: Path) -> None:
        """Writes everything as JSON, with what follows from it."""
        derived = {name: getattr(self, name) for name in ("samples_per_second", "teraflops", "mfu")}
        write_json(path, asdict(self) | {"derived": derived})


def read_profile(path: Path) -> Profile:
    """Reads what :meth:`Profile.write` wrote.

    Raises:
        TerraFMError: If the file is not such a profile.
    """
    advice = f"write one with `terrafm profile ... --json {path}`"
    try:
        found = json.loads(path.read_text())
        return Profile(**{name: value for name, value in found.items() if name != "derived"})
    except FileNotFoundError:
        raise TerraFMError(f"There is no {path}: {advice}.") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise TerraFMError(f"{path} is not a profile ({error}): {advice}.") from None
