"""Copernicus-Bench in TorchGeo's layouts: bands by name, units, classes, and errors that name the file."""

import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import rasterio
import torch
from torchgeo.datasets import CopernicusBench

from data.geotiff import write_geotiff
from data.labelled import WRITERS, make_copernicus
from refusals import refused
from terrafm_tg.datasets import DFC2020S1
from terrafm_tg.datasets.bench import TASKS, MissingDatasetError, open_bench

#: The published numbers of samples, classes and bands.
FACTS = {
    "Cloud-S2": ((1699, 567, 551), 4, 13), "EuroSAT-S1": ((16200, 5400, 5400), 10, 2),
    "EuroSAT-S2": ((16200, 5400, 5400), 10, 13), "BigEarthNet-S1": ((11894, 6117, 5991), 19, 2),
    "BigEarthNet-S2": ((11894, 6117, 5991), 19, 12), "DFC2020-S1": ((3156, 986, 986), 8, 2),
    "DFC2020-S2": ((3156, 986, 986), 8, 13), "LCZ-S2": ((15000, 5000, 5000), 17, 10),
    "Flood-S1": ((3000, 1000, 1000), 3, 2),
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All nine, 32 px."""
    folder = tmp_path_factory.mktemp("copernicus_bench")
    for name in ("Cloud-S2", "EuroSAT-S1", "EuroSAT-S2", "BigEarthNet-S1", "DFC2020-S1", "LCZ-S2", "Flood-S1"):
        make_copernicus(folder, name, n=4)
    return folder


def test_the_registry_has_the_paper_s_eight_and_floods() -> None:
    ours = {name: task for name, task in TASKS.items() if task.benchmark == "Copernicus-Bench"}
    assert set(ours) == set(FACTS) == set(WRITERS)
    for name, (counts, classes, bands) in FACTS.items():
        ((sensor, names),) = ours[name].sensors.items()
        assert (ours[name].counts, len(ours[name].classes), len(names)) == (counts, classes, bands)
        assert sensor == {"S1": "s1rtc", "S2": "s2l2a" if "Earth" in name else "s2l1c"}[name[-2:]]


@pytest.mark.parametrize("name", FACTS)
def test_samples_are_torchgeo_s_by_band_name(root: Path, name: str) -> None:
    data = open_bench(name, root, "val")
    ((sensor, bands),) = data.task.sensors.items()
    theirs = CopernicusBench(name.lower().replace("-", "_"), str(root), split="val", bands=bands)
    assert len(data) == len(theirs) > 0
    sample, other = data[1], theirs[1]["image"].double()
    if name == "LCZ-S2":
        other = other * 10_000
    if name == "Flood-S1":
        other = 10 * np.log10(np.clip(other, 0, 0.15))
    assert sample[f"image_{sensor}"].dtype == torch.float32
    assert torch.allclose(sample[f"image_{sensor}"].double(), other, rtol=1e-5)
    if data.task.kind == "segmentation":
        with refused(match="has masks, not labels"):
            data.targets()
    else:
        assert torch.equal(data.targets(), torch.stack([data[i]["label"] for i in range(len(data))]))
        assert torch.equal(sample["label"], theirs[1]["label"])


def test_b8a_of_eurosat_is_the_file_s_last_band(root: Path) -> None:
    data = open_bench("EuroSAT-S2", root, "train")
    with rasterio.open(data.files[3]) as file:
        stored = file.read().astype(np.float32)
    names = data.task.sensors["s2l1c"]
    image = data[3]["image_s2l1c"].numpy()
    assert names[8:11] == ("B8A", "B09", "B10")
    assert np.array_equal(image[8], stored[12])  # the file's order ends B09, B10, B11, B12, B8A
    assert np.array_equal(image[9:], stored[8:12])


def test_power_of_floods_is_clamped_and_becomes_decibels_of_two_dates(tmp_path: Path) -> None:
    make_copernicus(tmp_path, "Flood-S1", n=4)
    data = open_bench("Flood-S1", tmp_path, "train")
    path = data.paths[0][1]
    assert path.name.startswith("SL1_IVH")
    with rasterio.open(path) as file:
        power = file.read(1)
    power[0, :4] = [0.0, np.nan, 5.0, 0.01]
    write_geotiff(path, power)
    image = data[0]["image_s1rtc"]
    assert image.shape == (2, 2, 32, 32)  # date, band
    assert image[0, 1, 0, :2].isnan().all()
    assert torch.allclose(image[0, 1, 0, 2:4], 10 * torch.tensor([0.15, 0.01]).log10())
    assert image.nan_to_num(-99).max() <= 10 * np.log10(0.15) + 1e-5
    samples = [data[i] for i in range(4)]
    mask = torch.stack([sample["mask"] for sample in samples])
    vv = torch.stack([sample["image_s1rtc"][:, 0] for sample in samples], dim=1)
    assert vv[0][mask == 2].mean() - vv[1][mask == 2].mean() > 10  # flooded in the second date only
    assert abs(vv[0][mask == 0].mean() - vv[1][mask == 0].mean()) < 1
    assert not any(file.name.startswith("SL2") for file in data.files)


def test_masks_of_dfc2020_are_the_eight_classes(root: Path) -> None:
    table = {0: 255, 1: 0, 2: 1, 3: 255, 4: 2, 5: 3, 6: 4, 7: 5, 8: 255, 9: 6, 10: 7}
    for name in ("DFC2020-S1", "DFC2020-S2"):
        data = open_bench(name, root, "train")
        for i in range(len(data)):
            with rasterio.open(data.paths[i][1]) as file:
                stored = file.read(1)
            assert np.array_equal(data[i]["mask"].numpy(), np.vectorize(table.get)(stored))
        assert data.task.classes[-1] == DFC2020S1.classes[-1] == "Water"


def test_published_folders_are_found_too(root: Path, tmp_path: Path) -> None:
    for folder in ("copernicus_bench", "copernicusbench/l2_eurosat_s1s2", "l2_eurosat_s1s2"):
        under = tmp_path / folder.replace("/", "_") / folder
        under.mkdir(parents=True)
        (under / "eurosat_s2").symlink_to(root / "eurosat_s2")
        assert len(open_bench("EuroSAT-S2", tmp_path / folder.replace("/", "_"), "train")) == 10


@pytest.mark.parametrize("name", FACTS)
def test_a_missing_dataset_says_where_to_get_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingDatasetError, match=rf"^{name} is not there: .* was looked for; download .*huggingface"):
        open_bench(name, tmp_path, "test")


def first_file(root: Path, name: str, pattern: str) -> Path:
    """Writes the dataset, and returns the file of the first training sample that the pattern fits."""
    make_copernicus(root, name, n=1)
    return next(path for path in open_bench(name, root, "train").paths[0] if path.match(pattern))


@pytest.mark.parametrize(
    ("name", "pattern"),
    [("Cloud-S2", "s2_toa/*.tif"), ("Cloud-S2", "cloud/*.tif"), ("BigEarthNet-S2", "S2A*.tif"),
     ("DFC2020-S1", "s1/*.tif"), ("Flood-S1", "MS1_IVH*.tif"), ("LCZ-S2", "lcz_train.h5")],
)  # fmt: skip
def test_a_truncated_file_is_named(tmp_path: Path, name: str, pattern: str) -> None:
    path = first_file(tmp_path, name, pattern)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with refused(match=rf"{path.name} cannot be read.*fetch") as info:
        open_bench(name, tmp_path, "train")[0]
    assert "\n" not in str(info.value)


def test_too_few_bands_are_named(tmp_path: Path) -> None:
    path = first_file(tmp_path, "Cloud-S2", "s2_toa/*.tif")
    write_geotiff(path, np.ones((12, 32, 32), np.uint16))
    with refused(match=rf"{path.name} has 12 bands, but Cloud-S2 has 13 \(B01, B02"):
        open_bench("Cloud-S2", tmp_path, "train")[0]
    make_copernicus(tmp_path, "LCZ-S2")
    with h5py.File(tmp_path / "lcz_test.h5", "a") as file:
        pixels = file["sen2"][:, :, :, :8]
        del file["sen2"]
        file["sen2"] = pixels
    with refused(match=r"lcz_test.h5 cannot be read \(.*out of bounds"):
        open_bench("LCZ-S2", tmp_path, "test")[0]


def test_absent_files_are_named(tmp_path: Path) -> None:
    path = first_file(tmp_path, "Cloud-S2", "cloud/*.tif")
    path.unlink()
    with refused(match=rf"{path.name}, which .*train.csv names, is not there \(nor are 0 more of 2"):
        open_bench("Cloud-S2", tmp_path, "train")
    make_copernicus(tmp_path, "Flood-S1")
    lost = open_bench("Flood-S1", tmp_path, "test").files[2]
    lost.unlink()
    with refused(match=rf"{lost.parent.name} has no file MS1_IVV_\*.tif"):
        open_bench("Flood-S1", tmp_path, "test")


def test_a_damaged_list_is_named(tmp_path: Path) -> None:
    for name, file in (("DFC2020-S1", "dfc2020_s1s2/dfc-test-new.csv"), ("Flood-S1", "flood_s1/grid_dict_test.json")):
        make_copernicus(tmp_path, name, n=1)
        path = tmp_path / file
        path.write_text("" if name == "DFC2020-S1" else json.dumps({"a": {}})[:-1])
        with refused(match=rf"{path.name} cannot be read \(.*\): it is damaged or incomplete"):
            open_bench(name, tmp_path, "test")


def test_a_class_without_samples_warns(tmp_path: Path) -> None:
    make_copernicus(tmp_path, "EuroSAT-S1")
    path = tmp_path / "eurosat_s1/eurosat-train.txt"
    kept = [line for line in path.read_text().splitlines() if not line.startswith("River")]
    path.write_text("\n".join(kept) + "\n")
    with pytest.warns(UserWarning, match=r"eurosat-train.txt has no training sample of River"):
        assert 4 not in open_bench("EuroSAT-S1", tmp_path, "train").targets()
    assert len(open_bench("EuroSAT-S1", tmp_path, "test").targets().unique()) == 10
