"""Landslide4Sense in the challenge's layout and in that of the later copy; errors that name the file."""

import itertools
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data.geobench.data import folder, make_geobench
from data.labelled import DIVISOR, GROUND, SLIDE, make_landslide
from terrafm_tg.datasets.bench import TASKS, BenchDataset, MissingDatasetError, open_bench, take_fraction
from terrafm_tg.errors import TerraFMError

NAME = "landslide4sense"


def test_values_are_digital_numbers_degrees_and_metres(tmp_path: Path) -> None:
    make_landslide(tmp_path, n=12)
    assert [len(open_bench(NAME, tmp_path, split)) for split in ("train", "val", "test")] == [12, 6, 6]
    data = open_bench(NAME, tmp_path, "train")
    sample = data[10]  # image_11, which sorts before image_2 as text
    with h5py.File(tmp_path / NAME / "TrainData/img/image_11.h5") as file:
        stored = file["img"][()]
    both = torch.cat([sample["image_s2l1c"], sample["image_terrain"]])
    assert np.allclose(both.permute(1, 2, 0), stored * DIVISOR, rtol=1e-6)
    assert both.dtype == torch.float32
    for kind, level in enumerate((GROUND, SLIDE)):
        if (sample["mask"] == kind).any():
            assert np.allclose(both[:, sample["mask"] == kind].mean(1), level, rtol=0.05)


def test_the_task_is_as_published_and_statistics_in_its_unit(tmp_path: Path) -> None:
    task = TASKS[NAME]
    assert (task.counts, task.size, task.metric) == ((3799, 245, 800), 128, "miou")
    assert "B8A" not in task.sensors["s2l1c"]
    assert task.sensors["s2l1c"][9] == "B10"
    assert task.classes[1] == "landslide"  # the published table's iou_landslide
    data = open_bench(NAME, make_landslide(tmp_path, n=1), "train")
    assert data.mean["s2l1c"].shape == data.std["s2l1c"].shape == (12,)
    assert 20 < data.mean["terrain"][0] < 30  # degrees
    assert 500 < data.mean["terrain"][1] < 2000  # metres


def test_missing_folders_and_masks(tmp_path: Path) -> None:
    with pytest.raises(MissingDatasetError, match=r"TrainData/img was looked for; unpack .*zenodo"):
        open_bench(NAME, tmp_path, "train")
    make_landslide(tmp_path, n=2)
    (tmp_path / NAME / "ValidData/mask/mask_1.h5").unlink()
    with pytest.raises(TerraFMError, match=r"image_1.h5 has no mask in .*ValidData/mask \(nor have 0 more of 1\)"):
        open_bench(NAME, tmp_path, "val")


def test_damaged_files_are_named(tmp_path: Path) -> None:
    make_landslide(tmp_path, n=4)
    images, masks = tmp_path / NAME / "TrainData/img", tmp_path / NAME / "TrainData/mask"
    data = open_bench(NAME, tmp_path, "train")
    whole = (images / "image_1.h5").read_bytes()
    (images / "image_1.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(images / "image_2.h5", "w") as file:
        file["img"] = np.ones((32, 32, 13))
    with h5py.File(masks / "mask_3.h5", "a") as file:
        file["mask"][0, 0] = 7
    with h5py.File(images / "image_4.h5", "w") as file:
        file["image"] = np.ones((32, 32, 14))
    for index, message in enumerate(
        ("image_1.h5 cannot be read", r"image_2.h5 holds pixels of the shape \(32, 32, 13\), .*B01, B02",
         "mask_3.h5 holds the class 7, but landslide4sense has classes 0 to 1", "image_4.h5 cannot be read .*img")
    ):  # fmt: skip
        with pytest.raises(TerraFMError, match=message):
            data[index]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two datasets without partitions of train but the whole."""
    path = tmp_path_factory.mktemp("whole")
    for name in ("m-pv4ger", "m-pv4ger-seg"):
        make_geobench(path, name, 40, 2, 2, size=8)
        for partition in folder(path, name).glob("0.*_partition.json"):
            partition.unlink()
    return path


@pytest.fixture(params=["m-pv4ger", "m-pv4ger-seg"])
def train(request: pytest.FixtureRequest, root: Path) -> BenchDataset:
    """The whole train split."""
    return open_bench(request.param, root, "train")


def test_parts_are_nested_and_of_the_share_asked_for(train: BenchDataset) -> None:
    parts = [take_fraction(train, fraction, seed=3) for fraction in (0.05, 0.1, 0.2, 0.5, 0.9)]
    assert [len(part) for part in parts] == [2, 4, 8, 20, 36]
    for smaller, larger in itertools.pairwise(parts):
        assert set(smaller.indices) < set(larger.indices)


def test_parts_depend_on_the_seed_alone(train: BenchDataset) -> None:
    one, same, other = (take_fraction(train, 0.5, seed) for seed in (0, 0, 1))
    assert one.indices == same.indices != other.indices
    assert one.fingerprint == same.fingerprint
    assert len({one.fingerprint, other.fingerprint, train.fingerprint}) == 3


def test_classes_keep_their_shares_and_evaluation_never_shrinks(root: Path) -> None:
    train = open_bench("m-pv4ger", root, "train")
    for fraction, each in ((0.015, 1), (0.05, 1), (0.1, 2), (0.5, 10)):
        part = open_bench("m-pv4ger", root, "train", fraction=fraction)
        assert part.targets().bincount().tolist() == [each] * 2
        for index in range(len(part)):
            torch.testing.assert_close(part[index], train[part.indices[index]])
            assert part[index]["label"] == part.targets()[index]
    assert [len(open_bench("m-pv4ger", root, split, fraction=0.1)) for split in ("val", "test")] == [2, 2]


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"name": "eurosat"}, "'eurosat' is unknown: use one of m-eurosat"),
        ({"split": "valid"}, "'valid' is unknown: use train, val or test"),
        ({"bands": "true"}, "corrected or labelled, got 'true'"),
        ({"fraction": 0.0}, "above 0 and at most 1, got 0.0"),
        ({"fraction": 10}, "above 0 and at most 1, got 10"),
    ],
)
def test_wrong_settings_say_what_was_expected(root: Path, settings: dict[str, object], match: str) -> None:
    with pytest.raises(TerraFMError, match=match):
        open_bench(**{"name": "m-pv4ger", "root": root, "split": "train", **settings})
