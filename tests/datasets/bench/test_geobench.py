"""GEO-Bench's datasets against geobench's own reader, on files of geobench's own writer."""

import warnings
from pathlib import Path

import geobench
import h5py
import numpy as np
import pytest
import torch

from data.geobench.data import FRACTIONS, KINDS, folder, make_geobench
from terrafm_tg.datasets.bench import TASKS, MissingDatasetError, open_bench
from terrafm_tg.modalities import MODALITIES

pytestmark = pytest.mark.filterwarnings("ignore:.*has no training sample of.*")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All twelve datasets."""
    path = tmp_path_factory.mktemp("geobench")
    for name in KINDS:
        make_geobench(path, name, 20, 4, 3)
    return path


@pytest.fixture(params=list(KINDS))
def name(request: pytest.FixtureRequest) -> str:
    """Each dataset in turn."""
    return request.param


def oracle(root: Path, name: str, split: str = "train") -> geobench.GeobenchDataset:
    """geobench's own reader."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the two datasets with wrong names
        return geobench.GeobenchDataset(folder(root, name), "1.00x_train", split=split)


def test_all_datasets_are_registered() -> None:
    assert [task.name for task in TASKS.values() if task.benchmark == "GEO-Bench"] == list(KINDS)


def test_samples_equal_geobenchs_own_reader(root: Path, name: str) -> None:
    for split, own_split in (("train", "train"), ("val", "valid"), ("test", "test")):
        data, own = open_bench(name, root, split), oracle(root, name, own_split)
        assert len(data) == len(own) == {"train": 20, "val": 4, "test": 3}[split]
        for index in (0, 7) if split == "train" else (1,):
            sample, label = data[index], own[index].label
            for sensor, names in data.names.items():
                stored, _ = own[index].pack_to_3d(names)
                expected = torch.from_numpy(stored).float().movedim(-1, 0)
                unit = data.units[sensor]
                if unit == "power":
                    expected = 10 * torch.log10(expected)
                elif unit in ("reflectance", "byte"):
                    expected = expected * {"reflectance": 10_000, "byte": 10_000 / 255}[unit]
                assert sample[f"image_{sensor}"].dtype == torch.float32
                torch.testing.assert_close(sample[f"image_{sensor}"], expected)
            actual = sample["mask" if data.task.kind == "segmentation" else "label"]
            assert actual.dtype == torch.int64
            np.testing.assert_array_equal(actual, label.data if data.task.kind == "segmentation" else label)


def test_targets_are_the_labels_of_the_samples(root: Path, name: str) -> None:
    data = open_bench(name, root, "train")
    if data.task.kind == "segmentation":
        with pytest.raises(ValueError, match="has masks, not labels"):
            data.targets()
    else:
        torch.testing.assert_close(data.targets(), torch.stack([data[i]["label"] for i in range(len(data))]))


def test_statistics_are_in_the_unit_of_the_images(root: Path, name: str) -> None:
    data = open_bench(name, root, "train")
    for sensor, bands in data.task.sensors.items():
        pixels = torch.stack([data[i][f"image_{sensor}"] for i in range(len(data))]).movedim(1, 0).flatten(1)
        assert data.mean[sensor].shape == data.std[sensor].shape == (len(bands),)
        # geobench samples the pixels; radar's are of percentiles.
        assert ((data.mean[sensor] - pixels.mean(1)).abs() < 1.2 * pixels.std(1)).all()
        assert ((data.std[sensor] / pixels.std(1)).log().abs() < 1.2).all()


def test_sensors_with_a_stem_have_its_bands(name: str) -> None:
    for sensors in (TASKS[name].sensors, TASKS[name].labelled or {}):
        for sensor, bands in sensors.items():
            if sensor in MODALITIES:
                MODALITIES[sensor].stem_columns(bands)


def test_fractions_are_the_files_partitions(root: Path, name: str) -> None:
    for fraction in FRACTIONS:
        data = open_bench(name, root, "train", fraction=fraction)
        own = oracle(root, name).load_partition(f"{fraction:.2f}x_train").partition_dict["train"]
        assert [path.name for path in data.files] == [f"{sample}.hdf5" for sample in own]
        assert data.partition == f"{fraction:.2f}x_train"
    assert len(open_bench(name, root, "val", fraction=0.01)) == 4
    assert open_bench(name, root, "val", fraction=0.01).fingerprint == open_bench(name, root, "val").fingerprint


def test_missing_dataset_says_where_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(MissingDatasetError, match=r"segmentation_v1.0/m-cashew-plant .*huggingface.co"):
        open_bench("m-cashew-plant", tmp_path, "test")


def test_of_several_dates_the_first_in_the_file_is_read(tmp_path: Path) -> None:
    target = make_geobench(tmp_path, "m-cashew-plant", 1, 1, 1, dates=2)
    image = open_bench("m-cashew-plant", tmp_path, "train")[0]["image_s2l2a"]
    sample = geobench.dataset.load_sample_hdf5(next(target.glob("train*.hdf5")))
    assert len(sample.bands) == 26
    torch.testing.assert_close(image, torch.from_numpy(np.stack([band.data for band in sample.bands[:12]])))


def test_power_of_zero_is_missing(tmp_path: Path) -> None:
    target = make_geobench(tmp_path, "m-so2sat", 2, 1, 1)
    for path in target.glob("train*.hdf5"):
        with h5py.File(path, "r+") as file:
            file["06 - VV.LEE Filtered"][3, 4] = 0
    image = open_bench("m-so2sat", tmp_path, "train")[0]["image_s1rtc"]
    assert image.isnan().nonzero().tolist() == [[0, 3, 4]]


def test_fingerprint_tells_partitions_bands_and_rewritten_files_apart(tmp_path: Path) -> None:
    target = make_geobench(tmp_path, "m-eurosat", 20, 1, 1)

    def print_of(**settings: str | float) -> str:
        return open_bench("m-eurosat", tmp_path, "train", **settings).fingerprint

    prints = {print_of(), print_of(fraction=0.5), print_of(bands="labelled"), print_of(fraction=0.3)}
    assert len(prints) == 4
    assert print_of() in prints
    path = next(target.glob("train*.hdf5"))
    path.write_bytes(path.read_bytes())
    assert print_of() not in prints
