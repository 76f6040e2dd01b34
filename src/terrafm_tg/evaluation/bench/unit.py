"""One unit of a benchmark's work: a model judged once on a dataset by a protocol."""

import dataclasses
import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

from terrafm_tg.datasets.bench.task import Bands
from terrafm_tg.evaluation.encoders import ModelSpec
from terrafm_tg.evaluation.protocols import Protocol
from terrafm_tg.utils.files import write_text

#: The one model that has no weights, neither trained nor random.
STATISTICS = "pixel-statistics"


@dataclasses.dataclass(frozen=True)
class Unit:
    """What one entry of the results needs; small, so that it can be sent to another process.

    Args:
        spec: The model.
        dataset: Name of the benchmark dataset.
        bands: Whose band names are believed.
        protocol: With its settings.
        fraction: Share of the training split.
        seed: Of what the protocol draws, of the share, and of random weights.
        root: Where the benchmark's files are.
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
        """What a progress bar calls it."""
        bands = "" if self.bands == "corrected" else f" ({self.bands})"
        share = "" if self.fraction == 1 else f", {self.fraction:.3g} of train"
        return f"{self.dataset}{bands}, {self.spec.label}, {self.protocol.name}{share}, seed {self.seed}"

    def read(self, out: Path) -> list[dict[str, Any]] | None:
        """The rows of this unit, where they are there and made of the files as they are now."""
        stored = read_rows(self.path(out))
        return stored["rows"] if stored is not None and stored["stamp"] == self.stamp else None

    def write(self, out: Path, rows: list[dict[str, Any]]) -> None:
        """Keep the rows: all of them appear at once."""
        text = json.dumps({"stamp": self.stamp, "rows": rows}, indent=1, allow_nan=False)
        write_text(self.path(out), text + "\n")

    def path(self, out: Path) -> Path:
        """The file of its rows."""
        return out / "units" / f"{self.key}.json"


def read_rows(path: Path) -> dict[str, Any] | None:
    """What :meth:`Unit.write` wrote; None where the file is missing or damaged, so that the work is done again."""
    try:
        stored = json.loads(path.read_text())
    except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
        return None
    return stored if isinstance(stored, dict) and {"stamp", "rows"} <= set(stored) else None
