"""All benchmarks in small, a small encoder's weights, and configurations for them."""

import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from data.copernicus_bench.data import WRITERS, make_copernicus
from data.geobench.data import KINDS, make_geobench
from data.landslide4sense.data import make_landslide
from terrafm_tg.models import build_encoder

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


def write_benchmarks(root: Path) -> Path:
    """GEO-Bench's twelve datasets, Copernicus-Bench's nine and Landslide4Sense: 8 to 20 samples of 32 px."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in KINDS:
            make_geobench(root, name, 12, 6, 8, classes=3)
    for name in WRITERS:
        make_copernicus(root, name, 8)
    make_landslide(root, 8)
    return root


def write_weights(path: Path) -> Path:
    """A tiny encoder."""
    torch.manual_seed(0)
    torch.save(build_encoder("terrafm_nano", depth=4).state_dict(), path)
    return path


def write_config(path: Path, **settings: Any) -> list[str]:
    """The words of the command that runs it."""
    path.write_text(yaml.safe_dump({"num_workers": 0, "device": "cpu"} | settings))
    return ["bench", f"--config={path}"]
