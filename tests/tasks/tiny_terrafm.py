"""A TerraFM that trains in seconds, and native batches made of nothing."""

from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from torch import Tensor
from torch.nn.functional import interpolate
from torch.utils.data import DataLoader

from terrafm_tg.datasets.tiles.dataset import collate_tiles
from terrafm_tg.modalities import get_modality
from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.settings import GROUPS

ALL = ("s1rtc", "s2l1c", "s2l2a")
SIZE = 96


def grouped(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by their own names (`lr`) in the task's groups (`optimizer={"lr": ...}`)."""
    names = {field.name: group for group, kind in GROUPS.items() for field in fields(kind)}
    nested: dict[str, Any] = {}
    for name, value in settings.items():
        if name in names:
            nested.setdefault(names[name], {})[name] = value
        else:
            nested[name] = value
    return nested


def tiny_terrafm(cls: type[TerraFM] = TerraFM, **settings: Any) -> TerraFM:
    """Two blocks, two local crops, 64 prototypes; the same weights each time."""
    torch.manual_seed(0)
    sizes = {"model": "terrafm_tiny", "depth": 2, "global_size": 48, "local_size": 32, "local_crops": 2}
    head = {"prototypes": 64, "hidden_dim": 64, "bottleneck_dim": 32}
    steps = {"lr": 1e-3, "lr_batch": None, "warmup_epochs": 0, "freeze_last_layer_epochs": 0}
    classes = {"frequent_classes": ["Tree cover", "Grassland"]}
    return cls(**grouped(sizes | head | steps | classes | settings))


def make_sample(position: int, sensors: Sequence[str] = ALL, epoch: int = 0) -> dict[str, Tensor]:
    """A tile of one of five land covers, each with a spectrum and a grain that all sensors share."""
    land_cover = position % 5
    generator = torch.Generator().manual_seed(land_cover)
    spectrum = torch.rand(12, generator=generator)
    generator.manual_seed(1000 * epoch + position)
    grain = torch.rand(1, 1, 2 + 4 * land_cover, 2 + 4 * land_cover, generator=generator)
    sample = {"land_cover": land_cover, "row": position, "position": position, "epoch": epoch}
    sample = {name: torch.tensor(value) for name, value in sample.items()}
    for modality in map(get_modality, sensors):
        for resolution, bands in modality.native.items():
            pattern = interpolate(grain, SIZE * 10 // resolution, mode="bilinear")[0]
            image = 0.2 + pattern * spectrum[[modality.bands.index(band) for band in bands], None, None]
            sample[modality.native_key(resolution)] = (
                0.1 * image if modality.name == "s1rtc" else (3000 * image).to(torch.uint16)
            )
    return sample


def make_batch(size: int = 4, start: int = 0, sensors: Sequence[str] = ALL, epoch: int = 0) -> dict[str, Any]:
    """A collated batch of positions ``start`` to ``start + size - 1``."""
    return collate_tiles([make_sample(start + i, sensors, epoch) for i in range(size)])


def loader(batches: Sequence[Any]) -> DataLoader:
    """Hands out ready batches."""
    return DataLoader(list(batches), batch_size=None)


def trainer(folder: Path, *callbacks: Callback, **settings: Any) -> Trainer:
    """One CPU, one epoch, quiet, and nothing is written."""
    parts = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary", "use_distributed_sampler")
    quiet = dict.fromkeys(parts, False) | {"num_sanity_val_steps": 0}
    one = {"accelerator": "cpu", "devices": 1, "max_epochs": 1, "default_root_dir": folder, "callbacks": [*callbacks]}
    return Trainer(**(quiet | one | settings))
