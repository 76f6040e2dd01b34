"""Landslide4Sense in the challenge's layout and in that of the later copy; errors that name the file."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from data.labelled import DIVISOR, GROUND, SLIDE, make_landslide
from terrafm_tg.datasets.bench import TASKS, MissingDatasetError, open_bench
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
