"""Which band each channel of GEO-Bench is: pixels that say which one they are."""

from pathlib import Path

import pytest
import torch

from data.geobench.data import KINDS, LABELLED_BANDS, TRUE_BANDS, make_geobench
from terrafm_tg.datasets.bench import TASKS, BenchDataset, open_bench


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The datasets of several bands; each channel is filled with its number in the file, from 1."""
    path = tmp_path_factory.mktemp("marked")
    for name in ("m-eurosat", "m-brick-kiln", "m-so2sat", "m-bigearthnet", "m-forestnet", "m-SA-crop-type"):
        make_geobench(path, name, 3, 1, 1, marked=True)
    return path


def channels(data: BenchDataset, sensor: str, unit: float) -> dict[str, int]:
    """The number of the file's channel that each band comes from, from 0."""
    image = data[0][f"image_{sensor}"]
    numbers = (image[:, 0, 0] / unit).round().int().tolist()
    torch.testing.assert_close(image, (torch.tensor(numbers) * float(unit))[:, None, None].expand_as(image))
    return dict(zip(data.task.sensors[sensor], [number - 1 for number in numbers], strict=True))


@pytest.mark.parametrize(("name", "sensor"), [("m-eurosat", "s2l1c"), ("m-brick-kiln", "s2l2a")])
def test_corrected_and_labelled_differ_by_the_stated_permutation(root: Path, name: str, sensor: str) -> None:
    opened = [open_bench(name, root, "train", bands=bands) for bands in ("corrected", "labelled")]
    corrected, labelled = (channels(data, sensor, 100) for data in opened)
    for data in opened:  # statistics follow the channel, not the name
        torch.testing.assert_close(data.mean[sensor], data[0][f"image_{sensor}"].mean((1, 2)))
    assert labelled == {band: channel for channel, band in enumerate(LABELLED_BANDS)}
    assert corrected == {band: i for i, band in enumerate(TRUE_BANDS[name]) if not band.startswith("TCI")}


def test_datasets_with_right_names_are_the_same_either_way(root: Path) -> None:
    for name in ("m-bigearthnet", "m-so2sat"):
        corrected, labelled = (open_bench(name, root, "test", bands=bands) for bands in ("corrected", "labelled"))
        assert corrected.task.sensors == labelled.task.sensors == TASKS[name].sensors
        assert corrected.fingerprint == labelled.fingerprint


def stored(name: str, text: str) -> int:
    """The channel of the one band whose name in the file contains ``text``."""
    (channel,) = (i for i, band in enumerate(KINDS[name].bands) if text in band.name)
    return channel


def test_so2sat_has_vv_before_vh_in_decibels(root: Path) -> None:
    found = channels(open_bench("m-so2sat", root, "train"), "s1rtc", -1)
    assert list(found) == ["VV", "VH"]
    assert found == {"VV": stored("m-so2sat", "06 - VV.LEE"), "VH": stored("m-so2sat", "05 - VH.LEE")}


@pytest.mark.parametrize(
    ("name", "sensor", "unit"),
    [("m-so2sat", "s2l1c", 100), ("m-bigearthnet", "s2l2a", 100), ("m-SA-crop-type", "s2l2a", 10_000 / 255)],
)
def test_sentinel2_bands_come_by_name(root: Path, name: str, sensor: str, unit: float) -> None:
    found = channels(open_bench(name, root, "train"), sensor, unit)
    for band, channel in found.items():
        number = "08A" if band == "B8A" else band[1:]
        optical = [i for i, info in enumerate(KINDS[name].bands) if info.name.startswith(f"{number} - ")]
        assert channel == optical[-1]  # So2Sat's radar bands are numbered too, and come before
    assert len(found) == (10 if name == "m-so2sat" else 12)


def test_landsat_is_red_green_blue_infrared(root: Path) -> None:
    found = channels(open_bench("m-forestnet", root, "train"), "landsat8", 1)
    assert found == {band: i for i, band in enumerate(("red", "green", "blue", "nir", "swir1", "swir2"))}
