"""Configurations of the bench."""

from pathlib import Path
from typing import Any

import yaml

#: Settings that make every protocol a matter of a moment.
QUICK: list[dict[str, Any]] = [
    {"name": "knn", "k": 5},
    {"name": "linear-probe", "rates": [0.01, 0.1], "epochs": 2},
    {"name": "logistic", "start": -1, "stop": 1, "count": 2},
    {"name": "segmentation-probe", "rates": [0.01], "epochs": 1, "tile": 0},
    {"name": "upernet", "epochs": 1, "width": 16, "batch_size": 16},
    {"name": "finetune", "rates": [1e-4], "epochs": 1, "batch_size": 16, "effective_batch": 16},
    {"name": "copernicus-frozen", "epochs": 1, "width": 16, "auxiliary_width": 16, "batch_size": 16},
]


def write_config(root: Path, out: Path, **settings: Any) -> list[str]:
    """Writes the configuration of a run on the data below `root` beside its results; the words of the command."""
    path = out.with_suffix(".yaml")
    places = {"root": str(root), "out": str(out)}
    path.write_text(yaml.safe_dump({"num_workers": 0, "device": "cpu"} | places | settings))
    return ["bench", f"--config={path}"]
