"""Units, normalisation, missing pixels and size."""

from pathlib import Path

import pytest
import torch

from data.tiny_bench import S2, batch_of, encoder, tiny_data
from terrafm_tg.evaluation.encoders import UnsupportedTaskError
from terrafm_tg.modalities import S1RTC, S2L1C, S2L2A
from terrafm_tg.transforms import Normalize

BANDS = {"s1rtc": S1RTC.bands, "s2l1c": S2}


@pytest.mark.parametrize("size", [16, 32, 48])
def test_terrafm_reads_as_its_own_normalisation_does(tmp_path: Path, size: int) -> None:
    data = tiny_data(tmp_path, BANDS)
    batch = batch_of(data)
    batch["image_s2l1c"][0, 3, 5] = torch.nan
    own = Normalize(bands={"s2l1c": S2}, size=size)(batch)
    found = encoder(data, size=size).prepare(batch)
    torch.testing.assert_close(found["s1rtc"], own["image_s1rtc"], rtol=1e-4, atol=1e-4)
    kept = [S2.index(band) for band in S2L1C.bands]
    torch.testing.assert_close(found["s2l1c"], own["image_s2l1c"][:, kept], rtol=1e-4, atol=1e-4)


def test_a_missing_pixel_and_an_absent_band_are_at_the_training_mean(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": S2[1:7]})
    batch = batch_of(data)
    batch["image_s2l2a"][0, 0, 0, 0] = torch.nan
    batch["image_s2l2a"][1] = torch.nan
    found = encoder(data).prepare(batch)["s2l2a"]
    assert found.isfinite().all()
    assert found[0, 1, 0, 0] == 0.5  # B02 comes second: B01, which B02 stands in for, first
    assert (found[1] == 0.5).all()


@pytest.mark.parametrize(
    ("sensors", "settings", "bands"),
    [
        ({"s2l2a": S2L2A.bands}, {"normalization": "dataset"}, list(S2L2A.bands)),
        ({"rgb": ("red", "green", "blue")}, {}, ["B02", "B03", "B04"]),  # eight bits
    ],
)
def test_the_datasets_statistics_come_to_the_stems(tmp_path: Path, sensors: dict, settings: dict, bands: list) -> None:
    data = tiny_data(tmp_path, sensors, count=30)
    reader = encoder(data, **settings)
    assert [channel.band for channel in reader.readers["s2l2a"].channels] == bands
    deviation, mean = torch.std_mean(reader.prepare(batch_of(data))["s2l2a"], dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.full((len(bands),), 0.5), atol=1e-3, rtol=0)
    torch.testing.assert_close(deviation, torch.full((len(bands),), 0.25), atol=1e-3, rtol=0)


def test_photographs_are_normalised_as_timm_says(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"rgb": ("red", "green", "blue")})
    found = encoder(data, "timm/resnet18").prepare(batch_of(data))["image"]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    expected = (batch_of(data)["image_rgb"] / 255 - mean[:, None, None]) / std[:, None, None]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_sentinel2_is_shown_to_a_model_of_photographs_as_esa_shows_it(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l1c": S2})
    batch = batch_of(data)
    batch["image_s2l1c"][0, 3] = 3558.0 * 2  # red, above what is white
    batch["image_s2l1c"][0, 2] = 3558.0 / 2
    found = encoder(data, "timm/resnet18").prepare(batch)["image"]
    assert found[0, 0].unique().item() == pytest.approx((1 - 0.485) / 0.229, rel=1e-4)
    assert found[0, 1].unique().item() == pytest.approx((0.5 - 0.456) / 0.224, rel=1e-4)


def test_the_size(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": S2L2A.bands}, size=50, input_size=64)
    sizes = {setting: encoder(data, size=setting).size for setting in (None, 0, 33)}
    assert sizes == {None: 64, 0: 64, 33: 48}
    assert encoder(data, "torchgeo/vit_small_patch14_dinov2").size == 70
    with torch.inference_mode():
        assert encoder(data, size=0).patches(batch_of(data)).shape == (4, 192, 4, 4)


def test_two_dates_are_read_one_by_one(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s1rtc": S1RTC.bands}, dates=2)
    batch = batch_of(data)
    both = encoder(data)
    assert both.dim == 2 * 192
    (tmp_path / "one").mkdir()
    single = encoder(tiny_data(tmp_path / "one", {"s1rtc": S1RTC.bands}))
    with torch.inference_mode():
        for name, x in both.embed(batch).items():
            parts = [single.embed({"image_s1rtc": batch["image_s1rtc"][:, date]})[name] for date in (0, 1)]
            torch.testing.assert_close(x, torch.cat(parts, dim=1))
        assert both.patches(batch).shape == (4, 384, 2, 2)
        assert [level.shape for level in both.pyramid_inputs(batch)] == [(4, 384, 2, 2)] * 4


def test_sensors_that_are_not_there(tmp_path: Path) -> None:
    data = tiny_data(tmp_path, {"s2l2a": S2L2A.bands})
    with pytest.raises(UnsupportedTaskError, match="was to read s1rtc, and the task has s2l2a"):
        encoder(data, sensors=["s1rtc"])
    with pytest.raises(UnsupportedTaskError, match="none of s2l2a has a band of s1rtc"):
        encoder(data, "terrafm_nano_s1rtc")
    terrain = tiny_data(tmp_path, {"terrain": ("slope", "elevation")})
    with pytest.raises(UnsupportedTaskError, match="has a band of s1rtc or Sentinel-2"):
        encoder(terrain)
