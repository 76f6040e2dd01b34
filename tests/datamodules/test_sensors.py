"""Batches for fine-tuning: normalised by sensor, turned with their masks, paired by place."""

from pathlib import Path

import pytest
import rasterio
import torch
from lightning.pytorch import Trainer
from torchgeo.datasets import BigEarthNet, CopernicusBenchFloodS1, EuroSAT

from data import labelled
from terrafm_tg.datamodules import SensorDataModule, SensorOSCDDataModule
from terrafm_tg.datamodules.labelled import SensorTransforms
from terrafm_tg.datasets import DFC2020S1, DFC2020S2, BigEarthNetS1, BigEarthNetS2, SensorPairs
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import S1RTC, S2L1C
from terrafm_tg.transforms.orient import orient


def batch(data: SensorDataModule) -> dict[str, torch.Tensor]:
    """The first test batch, as a Trainer hands it to a task."""
    data.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    data.trainer.testing = True
    data.setup("test")
    return data.on_after_batch_transfer(next(iter(data.test_dataloader())), 0)


def test_one_sensor_keeps_torchgeos_key_and_its_bands_are_the_stems(tmp_path: Path) -> None:
    labelled.eurosat(tmp_path)
    found = batch(SensorDataModule({"s2l1c": EuroSAT}, tmp_path, batch_size=2))["image"]
    raw = torch.stack([EuroSAT(tmp_path, "test")[i]["image"] for i in range(2)])  # B8A last, and B10
    column = EuroSAT.all_band_names.index("B8A")
    index = S2L1C.bands.index("B8A")
    expected = (raw[:, column] - (S2L1C.mean[index] - 2 * S2L1C.std[index])) / (4 * S2L1C.std[index])
    assert found.shape == (2, 12, 64, 64)
    assert torch.allclose(found[:, index], expected, atol=1e-5)
    data = SensorDataModule({"s2l1c": EuroSAT}, tmp_path, bands={"s2l1c": ["B04", "B03", "B02"]}, batch_size=2)
    undone = batch(data)["image"] * data.std[:, None, None] + data.mean[:, None, None]  # as TorchGeo's plots do
    raw = torch.stack([EuroSAT(tmp_path, "test", ["B04", "B03", "B02"])[i]["image"] for i in range(2)])
    assert torch.allclose(undone, raw, atol=0.1)


def test_several_sensors_are_of_one_place(tmp_path: Path) -> None:
    labelled.dfc2020(tmp_path)
    found = batch(SensorDataModule({"s2l1c": DFC2020S2, "s1rtc": DFC2020S1}, tmp_path, batch_size=2))
    assert found["image_s1rtc"].shape == (2, 2, 64, 64)
    assert found["image_s2l1c"].shape == (2, 12, 64, 64)
    # The generator draws both from the mask: the higher the class, the darker the radar and the brighter the optics.
    both = torch.stack([found["image_s1rtc"].mean(1).flatten(), found["image_s2l1c"].mean(1).flatten()])
    assert torch.corrcoef(both)[0, 1] < -0.8


def test_linear_power_becomes_normalised_decibels(tmp_path: Path) -> None:
    labelled.floods(tmp_path)
    data = SensorDataModule({"s1rtc": CopernicusBenchFloodS1}, tmp_path, radar_unit="linear", batch_size=2)
    found = batch(data)["image"]
    raw = torch.stack([CopernicusBenchFloodS1(tmp_path, "test")[i]["image"] for i in range(2)])
    assert found.shape == raw.shape == (2, 2, 2, 64, 64)
    for band in range(2):
        expected = (10 * raw[:, :, band].log10() - S1RTC.mean[band]) / (4 * S1RTC.std[band]) + 0.5
        assert torch.allclose(found[:, :, band], expected, atol=1e-4)


def test_crops_of_oscd_cut_both_dates_and_the_mask_alike(tmp_path: Path) -> None:
    labelled.oscd(tmp_path)
    data = SensorOSCDDataModule(tmp_path, patch_size=64, crops=3, batch_size=2)
    data.setup("fit")
    assert len(data.train_dataset) == 4 * 3
    assert len(data.val_dataset) == 1
    for i in range(4):
        sample = data.train_dataset[i]
        assert sample["image"].shape == (2, 12, 64, 64)
        # In the made-up files the second date is brighter by 1500 exactly where the mask is set.
        brighter = (sample["image"][1] - sample["image"][0]).mean(0) > 750
        assert torch.equal(brighter, sample["mask"][0].bool())
    assert torch.equal(data.val_dataset[0]["image"], data.val_dataset[0]["image"])
    large = SensorOSCDDataModule(tmp_path, patch_size=112)
    large.setup("test")
    with pytest.raises(TerraFMError, match="112x96 px is smaller than `patch_size` 112"):
        large.test_dataset[0]


def test_orientations_are_the_eight_of_a_square() -> None:
    square = torch.arange(9).view(1, 3, 3).expand(8, 3, 3)
    found = orient(square, torch.arange(8))
    assert len({tuple(x.flatten().tolist()) for x in found}) == 8
    assert torch.equal(found[0], square[0])
    assert torch.equal(found[1], torch.rot90(square[1]))
    assert torch.equal(found[4], square[4].flip(-1))
    oblong = torch.arange(6).view(1, 2, 3).expand(8, 2, 3)
    assert len({tuple(x.flatten().tolist()) for x in orient(oblong, torch.arange(8))}) == 4


def test_fill_values_are_missing_as_in_pretraining() -> None:
    """Digital number 0 and -9999 dB, before and after what turns linear power into decibels."""
    optics = torch.full((1, 12, 8, 8), 2000.0)
    optics[0, 3, 0, 0] = 0
    found = SensorTransforms({"s2l1c": S2L1C.bands}, image="s2l1c")({"image": optics})["image"]
    assert found[0, 3, 0, 0] == 0.5
    assert found[0, 3, 0, 1] != 0.5
    for unit, fill in (("dB", -9999.0), ("dB", -32768.0), ("linear", 0.0), ("linear", -32768.0)):
        radar = torch.full((1, 2, 8, 8), 0.1 if unit == "linear" else -10.0)
        radar[0, 0, 0, 0] = fill
        found = SensorTransforms({"s1rtc": S1RTC.bands}, radar_unit=unit)({"image_s1rtc": radar})["image_s1rtc"]
        assert found[0, 0, 0, 0] == 0.5
        assert found[0, 0, 0, 1] != 0.5


def test_masks_turn_with_their_images() -> None:
    torch.manual_seed(0)
    mask = torch.arange(64).view(1, 8, 8).expand(16, 8, 8)
    image = mask[:, None].expand(16, 2, 8, 8) * 0.1 - 20.0
    found = SensorTransforms({"s1rtc": S1RTC.bands}, augment=True)({"image_s1rtc": image, "mask": mask})
    assert not torch.equal(found["mask"], mask)
    decibels = (found["image_s1rtc"][:, 0] - 0.5) * 4 * S1RTC.std[0] + S1RTC.mean[0]
    assert torch.allclose(decibels, found["mask"] * 0.1 - 20.0, atol=1e-4)


def test_bigearthnet_by_sensor(tmp_path: Path) -> None:
    """Radar has its decimals and VV first, optical imagery is TorchGeo's, a missing band is named."""
    labelled.bigearthnet(tmp_path)
    dataset = BigEarthNetS1(tmp_path, "test", bands=["VH", "VV"])
    folder = Path(dataset.folders[0]["s1"])
    for channel, band in enumerate(("VH", "VV")):
        with rasterio.open(folder / f"{folder.name}_{band}.tif") as file:
            assert torch.equal(dataset[0]["image"][channel], torch.from_numpy(file.read(1)))
    both = BigEarthNetS1(tmp_path, "test")[0]["image"]
    torchgeos = BigEarthNet(tmp_path, "test", bands="s1")[0]["image"]
    assert torch.equal(both.round().flip(0), torchgeos)  # what TorchGeo's class does
    sample, torchgeos = BigEarthNetS2(tmp_path, "test")[1], BigEarthNet(tmp_path, "test", bands="s2")[1]
    assert torch.equal(sample["label"], torchgeos["label"])
    assert (sample["image"] - torchgeos["image"]).abs().max() <= 1  # TorchGeo's interpolation rounds
    next(folder.glob("*_VH.tif")).unlink()
    with pytest.raises(TerraFMError, match=r"no band VH in .*S1A_IW.*: extract that patch again"):
        dataset[0]


def test_pairs_of_other_places_are_refused(tmp_path: Path) -> None:
    labelled.bigearthnet(tmp_path)
    radar, optics = BigEarthNetS1(tmp_path, "train"), BigEarthNetS2(tmp_path, "train")
    optics.folders = optics.folders[1:] + optics.folders[:1]
    with pytest.raises(TerraFMError, match="Sample 0 has another label in s2l2a than in s1rtc"):
        SensorPairs({"s1rtc": radar, "s2l2a": optics})[0]
    with pytest.raises(TerraFMError, match="s1rtc 4, s2l2a 2"):
        SensorPairs({"s1rtc": radar, "s2l2a": BigEarthNetS2(tmp_path, "val")})


def test_what_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    for settings, said in (
        ({"size": 100}, "`size` is 100"),
        ({"bands": {"s1rtc": ["VV"]}}, "`bands` names s1rtc"),
        ({"bands": {"s2l1c": ["B99"]}}, "B99"),
    ):
        with pytest.raises(TerraFMError, match=said):
            SensorDataModule({"s2l1c": EuroSAT}, tmp_path, **settings)
    labelled.bigearthnet(tmp_path)
    with pytest.raises(TerraFMError, match=r"EuroSAT refuses one of .*unexpected keyword argument 'num_classes'"):
        SensorDataModule({"s2l1c": EuroSAT}, tmp_path, options={"num_classes": 19}).setup("fit")
    with pytest.raises(TerraFMError, match="BigEarthNet refuses one of split 'train', bands VV, VH"):
        SensorDataModule({"s1rtc": BigEarthNet}, tmp_path).setup("fit")
