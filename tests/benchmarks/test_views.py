"""kornia's crops stand for the same work: as many images of the same tiles, at the same sizes and in the same range."""

from pathlib import Path

import pytest
import torch

from benchmarks.in_memory import InMemoryDataModule
from benchmarks.views import KorniaCrops, measure
from terrafm_tg.errors import TerraFMError
from terrafm_tg.transforms import MultiCrop


@pytest.mark.parametrize("mode", ["slice", "resample"])
def test_the_same_views_are_made(mode: str) -> None:
    batch = next(iter(InMemoryDataModule(batch_size=3, tile_size=60, batches=1).train_dataloader()))
    crop = MultiCrop(global_size=32, local_size=16, local_crops=2)
    plan = crop.plan(batch)
    torch.manual_seed(0)
    kornia, ours = KorniaCrops(crop, mode)(batch, plan), crop(batch, plan)
    for m in crop.modalities:
        made = kornia[f"local_{m.name}"]
        assert made.shape == ours["student_local"].images[m.name].shape
        assert made.isfinite().all()
        assert made.mean() == pytest.approx(ours["student_local"].images[m.name].mean(), abs=0.25)
        assert len(kornia[f"global_{m.name}"]) == len(plan[f"global_{m.name}_view_idx"])


def test_the_table(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    measure(batch=2, rounds=1, tile_size=60, device="cpu", json=tmp_path / "v.json")
    printed = capsys.readouterr().out
    for part in ("kornia, slice", "kornia, resample", "ours", "x kornia"):
        assert part in printed
    assert (tmp_path / "v.json").stat().st_size > 100
    with pytest.raises(TerraFMError, match="2 tiles or more"):
        measure(batch=1, device="cpu")
