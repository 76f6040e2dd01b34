"""A checkpoint says what its task was trained on, in plain values."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from tiny_terrafm import trainer
from torch.utils.data import DataLoader, Dataset, Subset

from terrafm_tg.datamodules.labelled import SensorTransforms
from terrafm_tg.tasks import FineTuneClassification, FineTuneSegmentation
from terrafm_tg.tasks.finetune.task import TRAINED_ON

BANDS = {"s2l2a": ("B02", "B03", "B04")}
STATISTICS = {"s2l2a": {"mean": [900.0] * 12, "std": [500.0] * 12}}


class Chips(Dataset):
    """Chips of 40 px in digital numbers, of two classes with names."""

    classes = ("field", "wald 森")

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> dict[str, Any]:
        image = torch.full((3, 40, 40), 800.0 + 10 * index)
        return {"image": image, "label": torch.tensor(index % 2), "mask": torch.full((40, 40), index % 2)}


class Data(LightningDataModule):
    """As :class:`SensorDataModule`: chips are normalized and enlarged to 64 px on the device."""

    def __init__(self, dataset: Dataset) -> None:
        super().__init__()
        self.train_dataset = dataset
        self.aug = SensorTransforms(BANDS, image="s2l2a", size=64, statistics=STATISTICS)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.train_dataset, batch_size=4)

    def on_after_batch_transfer(self, batch: dict[str, Any], dataloader_idx: int) -> dict[str, Any]:
        return self.aug(batch)


def told(task: Any, data: Any, folder: Path) -> Any:
    """The note in the checkpoint of a run."""
    run = trainer(folder, max_epochs=1)
    run.fit(task, data)
    run.save_checkpoint(folder / "x.ckpt")
    return torch.load(folder / "x.ckpt", weights_only=True)[TRAINED_ON]


def test_sizes_classes_and_statistics_are_noted(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"bands": ["B02", "B03", "B04"], "warmup_epochs": 0}
    task = FineTuneClassification("terrafm_nano", modalities=["s2l2a"], num_classes=2, **settings)
    assert told(task, Data(Subset(Chips(), range(8))), tmp_path) == {
        "task": "FineTuneClassification",
        "image_size": {"image": [40, 40]},
        "input_size": {"image": [64, 64]},
        "classes": ["field", "wald 森"],
        "statistics": STATISTICS,
    }


def test_a_loader_without_datamodule_tells_the_sizes(tmp_path: Path) -> None:
    task = FineTuneSegmentation("terrafm_nano_rgb", decoder="linear", warmup_epochs=0, lr=1e-4)
    chips = [{"image": torch.rand(3, 32, 48), "mask": torch.zeros(32, 48, dtype=torch.int64)} for _ in range(4)]
    note = told(task, DataLoader(chips, batch_size=2), tmp_path)
    assert (note["image_size"], note["input_size"]) == ({"image": [32, 48]}, {"image": [32, 48]})
    assert (note["classes"], note["statistics"]) == (None, None)
