"""The datamodules: what their loaders hold, what the command line sees of them, what they refuse."""

import inspect
import itertools

import jsonargparse
import numpy as np
import pytest
import torch
import toy_runs
from lightning.pytorch import LightningModule, Trainer
from memory_tiles import MemoryDataModule
from torchgeo.datamodules import BaseDataModule

from terrafm_tg import datamodules
from terrafm_tg.datamodules import (
    MajorTOMDataModule,
    SentinelFolderDataModule,
    SimulatedDataModule,
    TileDataModule,
    split_blocks,
)
from terrafm_tg.errors import TerraFMError

QUIET = toy_runs.QUIET | {"accelerator": "cpu", "enable_checkpointing": False}


def rows(loader) -> list[int]:
    return torch.cat([batch["row"] for batch in loader]).tolist()


def test_training_batches_are_the_draws() -> None:
    data = MemoryDataModule()
    data.setup("fit")
    drawn = data.sampler.global_rows()
    batches = list(data.train_dataloader())
    assert len(batches) == len(drawn) // 4
    np.testing.assert_array_equal(torch.cat([b["row"] for b in batches]), drawn[: 4 * len(batches)])
    assert set(drawn) <= set(data.split[0])
    batch = batches[0]
    assert batch["image_s2l2a_10m"].shape == (4, 4, 12, 12)
    assert batch["image_s2l2a_60m"].shape == (4, 2, 2, 2)
    assert batch["image_s2l2a_20m"].dtype == torch.uint16
    assert (batch["damaged"] == -1).all()
    np.testing.assert_allclose(MemoryDataModule(power=0).land_cover_share, [0.25] * 4 + [0] * 8)
    assert data.train_dataloader().ring
    assert not MemoryDataModule(ring=False).train_dataloader().ring
    assert "ring" not in data.state_dict()


def test_bank_and_queries_are_even_picks_of_both_sides() -> None:
    data = MemoryDataModule(edge=8, val_bank=40, val_queries=12)
    bank, queries = data.val_dataloader()
    assert rows(bank) == data.bank.tolist() == sorted(data.bank)
    assert rows(queries) == data.queries.tolist()
    assert set(data.bank) <= set(data.split[0])
    assert set(data.queries) <= set(data.split[1])
    cover = data.tiles.index["land_cover"].to_numpy()
    assert np.bincount(cover[data.bank]).tolist() == [10] * 4
    assert np.bincount(cover[data.queries]).tolist() == [3] * 4
    assert all((batch["position"] >= 0).all() for batch in queries)
    train, val = split_blocks(data.tiles.index, block=2)
    np.testing.assert_array_equal(data.split[0], train)
    test_bank, held_out = data.test_dataloader()
    assert rows(test_bank) == rows(bank)
    assert rows(held_out) == val.tolist()
    assert rows(data.predict_dataloader()) == list(range(256))


def test_nothing_held_out_means_no_validation() -> None:
    data = MemoryDataModule(val_share=0)
    assert data.val_dataloader() == data.test_dataloader() == []
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(Hooked(), data)
    assert trainer.global_step == 36


class Hooked(LightningModule):
    """Has hooks around the transfer, as the task has."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))
        self.predicted = []

    def on_before_batch_transfer(self, batch, dataloader_idx):
        return batch | {"plan": batch["position"] * 2}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return batch | {"after": batch["plan"] + 1}

    def training_step(self, batch, batch_idx):
        assert torch.equal(batch["after"], batch["position"] * 2 + 1)
        assert batch["image_s2l2a_10m"].dtype == torch.uint16  # neither normalised nor made float
        return self.weight**2

    def validation_step(self, batch, batch_idx, dataloader_idx=0): ...

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        self.predicted += batch["row"].tolist()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_hooks_of_the_task_are_used_and_nothing_normalises() -> None:
    task, data = Hooked(), MemoryDataModule(num_workers=1)
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(task, data)
    trainer.validate(task, data)
    trainer.predict(task, data, return_predictions=False)
    assert task.predicted == list(range(144))


def test_other_flags_of_the_trainer() -> None:
    for flag in ({"fast_dev_run": True}, {"overfit_batches": 2}, {"limit_train_batches": 0.5}):
        Trainer(**QUIET | {"max_epochs": 2} | flag).fit(Hooked(), MemoryDataModule())


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"batch_size": 1}, "`batch_size` is 1: training compares"),
        ({"batch_size": 500}, "One step takes 500 tiles .* and an epoch has"),
        ({"epoch_length": 3}, "an epoch has 3: lower `batch_size`"),
        ({"val_share": 0.9}, "leaves none to train on"),
    ],
)
def test_wrong_settings_stop_at_once(settings, words) -> None:
    with pytest.raises(TerraFMError, match=words):
        Trainer(max_epochs=1, **QUIET).fit(Hooked(), MemoryDataModule(**settings))


def test_one_tile_can_be_predicted() -> None:
    assert rows(MemoryDataModule(batch_size=1, edge=1, val_share=0).predict_dataloader()) == [0, 1, 2, 3]


def test_cache_decodes_once_over_training_and_validation() -> None:
    data = MemoryDataModule(cache=True, num_workers=2)
    data.setup("fit")
    train = data.train_dataloader()
    data.tiles.reads[:] = 0
    for epoch in range(2):
        train.sampler.set_epoch(epoch)
        drawn = rows(train)
        seen = list(itertools.chain(*(rows(loader) for loader in data.val_dataloader())))
        assert data.tiles.reads[:, 1].max() == 1
    assert (data.tiles.reads[drawn + seen, 1] == 1).all()


def test_settings_in_a_checkpoint_are_plain_and_differences_named(tmp_path, caplog) -> None:
    class WithPath(MemoryDataModule):
        def __init__(self, root, **kwargs) -> None:
            super().__init__(**kwargs)

    data = WithPath(tmp_path, by=("land_cover",), power=0.25, batch_size=8)
    task = Hooked()
    trainer = Trainer(max_epochs=1, **QUIET)
    trainer.fit(task, data)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert saved["datamodule_hyper_parameters"]["root"] == str(tmp_path)
    assert saved["datamodule_hyper_parameters"]["power"] == 0.25

    other = WithPath(str(tmp_path), by=["land_cover"], power=0.5, batch_size=4, num_workers=1)
    Trainer(max_epochs=2, **QUIET).fit(Hooked(), other, ckpt_path=tmp_path / "a.ckpt")
    named = [m.partition(" when")[0] for m in caplog.messages if "when the checkpoint was written" in m]
    assert named == ["`power` was 0.25", "`batch_size x processes x accumulate_grad_batches` was 8"]
    assert "is 0.5 now: other tiles follow than in an uninterrupted run" in caplog.text

    caplog.clear()  # of two tiles there is another one now, and the epoch is as long as it was
    fewer = WithPath(tmp_path, by=("land_cover",), power=0.25, batch_size=8)
    table = fewer.tiles.table
    table["cell"] = table["cell"].cat.rename_categories({table["cell"].iloc[0]: "1U_1R"})
    Trainer(max_epochs=2, **QUIET).fit(Hooked(), fewer, ckpt_path=tmp_path / "a.ckpt")
    assert [m.partition(" was")[0] for m in caplog.messages if "when the checkpoint" in m] == ["`tiles of the index`"]


@pytest.mark.parametrize("name", ["MajorTOMDataModule", "SentinelFolderDataModule", "SimulatedDataModule"])
def test_every_setting_can_be_given_in_yaml(name) -> None:
    """jsonargparse sees through the subclasses: each setting of the base, with its type and default."""
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(BaseDataModule, "data")
    settings = {"power": 0.75, "by": ["land_cover", "climate"], "cache": True, "val_bank": None, "batch_size": 32}

    def parse(**given: object) -> jsonargparse.Namespace:
        place = f"terrafm_tg.datamodules.{name}"
        return parser.parse_object({"data": {"class_path": place, "init_args": {"root": "x", **given}}})

    config = parse(**settings)
    parsed = config.data.init_args.as_dict()
    assert {key: parsed[key] for key in settings} == settings
    assert parsed["max_damaged_share"] == 0.05
    assert ("tile_size" in parsed) == (name != "SimulatedDataModule")
    assert set(inspect.signature(TileDataModule.__init__).parameters) - {"self"} < set(parsed)
    assert isinstance(parser.instantiate_classes(config).data, getattr(datamodules, name))
    with pytest.raises(jsonargparse.ArgumentError, match="powr"):
        parse(powr=1)


def test_simulated_world(tmp_path) -> None:
    data = SimulatedDataModule(
        tmp_path / "world", cells=12, cell_size=48, world_workers=0, val_block=1, batch_size=8, num_workers=0
    )
    data.prepare_data()
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image_s2l2a_10m"].shape[-2:] == (24, 24)
    assert batch["sample_idx_s1rtc"].max() < 8
    assert data.land_cover_share.sum() > 0.5
    assert len(data.val_dataloader()) == 2


@pytest.mark.parametrize(
    ("kind", "folder", "settings", "size"),
    [
        (MajorTOMDataModule, "major_tom", {"ambiguous_offset": "absent", "val_share": 0}, 534),
        (SentinelFolderDataModule, "terramesh", {"tile_size": 222, "val_share": 0.2, "val_block": 1}, 222),
    ],
)
def test_real_tiles(kind, folder, settings, size, real_data) -> None:
    data = kind(real_data / folder, batch_size=2, num_workers=0, **settings)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert batch["image_s2l2a_10m"].shape == (2, 4, size, size)
    assert ("image_s1rtc_10m" in batch) == ("image_s2l1c_10m" in batch) == (folder == "terramesh")
