"""Benchmark datasets as batches: the stem's bands and normalisation, and TorchGeo's own tasks trained on them."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torchgeo.tasks import Classification, SemanticSegmentation

from data.copernicus_bench.data import make_copernicus
from data.landslide4sense.data import make_landslide
from terrafm_tg.datamodules import BenchDataModule
from terrafm_tg.datasets.bench import MissingDatasetError, open_bench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L1C
from terrafm_tg.tasks import FineTuneChangeDetection, FineTuneSegmentation


def first_batch(data: BenchDataModule) -> dict[str, torch.Tensor]:
    """The first test batch, as a Trainer hands it to a task."""
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.testing = True
    data.setup("test")
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def test_one_sensor_is_image_with_the_stem_s_bands_and_statistics(tmp_path: Path) -> None:
    make_copernicus(tmp_path, "EuroSAT-S2")
    data = BenchDataModule("EuroSAT-S2", tmp_path, size=0, batch_size=3)
    found = first_batch(data)
    raw = torch.stack([open_bench("EuroSAT-S2", tmp_path, "test")[i]["image_s2l1c"] for i in range(3)])
    names = data.task.sensors["s2l1c"]
    assert set(found) == {"image", "label"}
    assert found["image"].shape == (3, 12, 32, 32)  # B10 has no stem
    for column, band in enumerate(S2L1C.bands):
        mean, std = S2L1C.mean[column], S2L1C.std[column]
        expected = (raw[:, names.index(band)] - (mean - 2 * std)) / (4 * std)
        assert torch.allclose(found["image"][:, column], expected, atol=1e-4)
    undone = found["image"] * data.std[:, None, None] + data.mean[:, None, None]  # as TorchGeo's figures do
    assert torch.allclose(undone[:, 3], raw[:, 3], atol=0.5)


def test_the_dataset_s_statistics_and_other_bands(tmp_path: Path) -> None:
    make_copernicus(tmp_path, "EuroSAT-S2")
    data = BenchDataModule("EuroSAT-S2", tmp_path, normalization="dataset", batch_size=2)
    assert data.bands == {"s2l1c": data.task.sensors["s2l1c"]}
    assert first_batch(data)["image"].shape == (2, 13, 224, 224)
    rgb = BenchDataModule(
        "EuroSAT-S2", tmp_path, bands={"s2l1c": ["B04", "B03", "B02"]}, normalization="dataset", size=0
    )
    found = first_batch(rgb)["image"]
    opened = open_bench("EuroSAT-S2", tmp_path, "test")
    z = (opened[0]["image_s2l1c"][3] - opened.mean["s2l1c"][3]) / opened.std["s2l1c"][3]
    assert torch.allclose(found[0, 0], z / 4 + 0.5, atol=1e-5)


def test_several_sensors_and_one_without_a_stem(tmp_path: Path) -> None:
    make_landslide(tmp_path)
    assert set(first_batch(BenchDataModule("landslide4sense", tmp_path))) == {"image", "mask"}
    both = BenchDataModule("landslide4sense", tmp_path, sensors=["s2l1c", "terrain"], size=48, batch_size=2)
    found = first_batch(both)
    assert {key: tuple(x.shape) for key, x in found.items()} == {
        "image_s2l1c": (2, 11, 48, 48), "image_terrain": (2, 2, 48, 48), "mask": (2, 48, 48),
    }  # fmt: skip
    assert 0.2 < found["image_terrain"].mean() < 0.8


def test_missing_pixels_get_the_mean_and_training_samples_turn_with_their_masks(tmp_path: Path) -> None:
    make_copernicus(tmp_path, "Flood-S1", n=6)
    torch.manual_seed(0)
    data = BenchDataModule("Flood-S1", tmp_path, size=0, batch_size=6)
    data.setup("fit")
    batch = {"image_s1rtc": torch.full((6, 2, 2, 8, 8), -12.0), "mask": torch.arange(64).view(1, 8, 8).expand(6, 8, 8)}
    batch["image_s1rtc"][:, :, 0] += batch["mask"][:, None] / 10
    batch["image_s1rtc"][0, 0, 1, 0] = torch.nan
    still, turned = data.aug(batch), data.train_aug(batch)
    assert torch.equal(still["image"][0, 0, 1, 0], torch.full((8,), 0.5))
    assert not torch.equal(turned["mask"], batch["mask"])
    decibels = (turned["image"][:, 1, 0] - 0.5) * 4 * S1RTC.std[0] + S1RTC.mean[0]
    assert torch.allclose(decibels, turned["mask"] / 10 - 12.0, atol=1e-3)


TASKS: dict[str, tuple[dict[str, str], Callable[[], LightningModule]]] = {
    "BigEarthNet-S2": (
        {},
        lambda: Classification(
            "terrafm_tiny_s2l2a", in_channels=12, task="multilabel", num_labels=19, loss="bce"
        ),
    ),
    "Cloud-S2": (
        {"normalization": "dataset"},
        lambda: SemanticSegmentation("unet", "resnet18", in_channels=13, num_classes=4),
    ),
    "DFC2020-S1": (
        {},
        lambda: FineTuneSegmentation(
            "terrafm_tiny", modalities=["s1rtc"], num_classes=8, ignore_index=255, depth=2
        ),
    ),
    "Flood-S1": (
        {},
        lambda: FineTuneChangeDetection(
            model="upernet", backbone="terrafm_tiny_s1rtc", in_channels=2, task="multiclass", num_classes=3,
            ignore_index=3, loss="ce",
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", TASKS)
def test_torchgeo_s_tasks_and_ours_train_on_it(tmp_path: Path, name: str) -> None:
    make_copernicus(tmp_path, name, n=2)
    settings, make = TASKS[name]
    data, module = BenchDataModule(name, tmp_path, size=32, batch_size=2, **settings), make()
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, data)
    (scores,) = trainer.test(module, data, verbose=False)
    assert torch.tensor(scores["test_loss"]).isfinite()
    assert len(scores) > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "EuroSAT"}, "Benchmark dataset 'EuroSAT' is unknown: use one of m-"),
        ({"sensors": ["s1rtc"]}, "EuroSAT-S2 has no sensor 's1rtc': it has s2l1c"),
        ({"bands": {"s2l1c": ["B2"]}}, "EuroSAT-S2 has no band 'B2' in s2l1c: it has B01"),
        ({"bands": {"s1rtc": ["VV"]}}, "`bands` names s1rtc, but EuroSAT-S2 is read from s2l1c"),
        ({"bands": {"s2l1c": []}}, "EuroSAT-S2 has no band '' in s2l1c"),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, settings: dict, message: str) -> None:
    with pytest.raises(TerraFMError, match=message):
        BenchDataModule(**({"name": "EuroSAT-S2", "root": tmp_path} | settings))


def test_missing_data_and_too_large_a_batch(tmp_path: Path) -> None:
    with pytest.raises(MissingDatasetError, match="EuroSAT-S2 is not there"):
        BenchDataModule("EuroSAT-S2", tmp_path).setup("fit")
    make_copernicus(tmp_path, "EuroSAT-S2")
    data = BenchDataModule("EuroSAT-S2", tmp_path, batch_size=64)
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.setup("fit")
    with pytest.raises(TerraFMError, match="`batch_size` is 64, but there are only 10 training samples"):
        data.train_dataloader()
