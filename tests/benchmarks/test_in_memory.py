"""Random tiles in memory look like those of the other datamodules, and their positions run on."""

from types import SimpleNamespace

import pytest
import torch

from benchmarks.in_memory import InMemoryDataModule
from terrafm_tg.datamodules import PackedDataModule
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.store.pack import pack
from terrafm_tg.errors import TerraFMError


def test_batches_are_like_those_of_a_store(small_world, tmp_path) -> None:
    tiles = MajorTOM(small_world, native=True, harmonize=False, tile_size=72)
    pack(tiles, tmp_path / "store", quantize_radar=True, workers=0, progress=False)
    store = PackedDataModule(tmp_path / "store", batch_size=4, num_workers=0, val_share=0)
    store.setup("fit")
    real = next(iter(store.train_dataloader()))
    made = next(iter(InMemoryDataModule(batch_size=4, tile_size=72).train_dataloader()))
    common = made.keys() & real.keys()
    assert {"position", "epoch", "land_cover", "row", "sample_idx_s2l2a", "image_s1rtc_10m"} <= common
    assert {key for key in real if key.startswith(("image_", "sample_idx_"))} <= common
    for key in common:
        assert made[key].shape[1:] == real[key].shape[1:], key
        assert made[key].dtype == real[key].dtype, key
    assert (made["image_s2l1c_60m"].int() > 0).all()  # nothing is missing


def test_positions_run_on_through_epochs_and_ranks() -> None:
    data = InMemoryDataModule(batch_size=4, tile_size=12, epoch_length=30)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=device, accumulate_grad_batches=1)
    loader = data.train_dataloader()
    assert len(loader) == 3
    first, second = list(loader), list(loader)
    assert torch.cat([batch["position"] for batch in first]).tolist() == list(range(1, 24, 2))
    assert {int(batch["epoch"][0]) for batch in first} == {0}
    assert {int(batch["epoch"][0]) for batch in second} == {1}
    images = [batch["image_s2l2a_10m"] for batch in first]
    assert images[0] is images[2]  # made once
    assert not torch.equal(images[0].int(), images[1].int())


def test_an_epoch_holds_one_step() -> None:
    data = InMemoryDataModule(batch_size=4, tile_size=12, epoch_length=16)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=device, accumulate_grad_batches=4)
    assert len(data.train_dataloader()) == 4
    data.trainer.accumulate_grad_batches = 5
    with pytest.raises(TerraFMError, match=r"One step takes 20 tiles \(5 batches\) and an epoch has 16"):
        data.train_dataloader()


@pytest.mark.parametrize(("name", "value"), [("batch_size", 1), ("batches", 0), ("tile_size", 100)])
def test_only_the_wrong_setting_is_named(name: str, value: int) -> None:
    with pytest.raises(TerraFMError) as error:
        InMemoryDataModule(**{name: value})
    assert [x for x in ("batch_size", "batches", "tile_size") if f"`{x}`" in str(error.value)] == [name]
