"""What a file of predictions holds, and that it can be read."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule
from tiny_terrafm import trainer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from terrafm_tg.callbacks import PredictionWriter


class Places(Dataset):
    """A row of numbers, by number or by slice as TorchGeo's geographic datasets."""

    def __getitem__(self, index: int | tuple[slice, ...]) -> Tensor:
        return torch.arange(10.0)[index if isinstance(index, int) else index[0]].sum()

    def __len__(self) -> int:
        return 10


class Double(LightningModule):
    """Predicts twice the value."""

    def predict_step(self, batch: Tensor) -> Tensor:
        return 2 * batch


@pytest.mark.parametrize("geographic", [False, True])
def test_each_batch_is_a_file(geographic: bool, tmp_path: Path) -> None:
    drawn = [(slice(i, i + 1), slice(0, 1)) if geographic else i for i in range(5)]
    data = DataLoader(Places(), batch_size=2, sampler=drawn)
    trainer(tmp_path, PredictionWriter()).predict(Double(), data, return_predictions=False)
    paths = sorted((tmp_path / "predictions").iterdir())
    assert [path.name for path in paths] == ["0_0_000000.pt", "0_0_000001.pt", "0_0_000002.pt"]
    second = torch.load(paths[1], weights_only=True)
    assert second["predictions"].tolist() == [4.0, 6.0]
    assert second["samples"] == (None if geographic else [2, 3])
