"""Damaged GEO-Bench files: one sentence that names the file."""

import shutil
from collections.abc import Callable
from pathlib import Path

import geobench
import h5py
import numpy as np
import pytest
import torch

from data.geobench.data import folder, make_geobench
from terrafm_tg.datasets.bench import open_bench
from terrafm_tg.errors import TerraFMError

EUROSAT, BIGEARTHNET, CASHEW = "m-eurosat", "m-bigearthnet", "m-cashew-plant"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three datasets: one class, several labels, masks."""
    path = tmp_path_factory.mktemp("pristine")
    for name in (EUROSAT, BIGEARTHNET, CASHEW):
        make_geobench(path, name, 10, 1, 1)
    return path


@pytest.fixture
def root(pristine: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(pristine, tmp_path / "root"))


def first(root: Path, name: str) -> Path:
    """The first training sample's file."""
    return open_bench(name, root, "train").files[0]


def rewrite(path: Path, change: Callable[[geobench.Sample], object]) -> None:
    """Changes a sample with geobench's own reader and writer."""
    sample = geobench.dataset.load_sample_hdf5(path)
    change(sample)
    sample.write(path.parent)


def fails_naming(path: Path, match: str, read: Callable[[], object]) -> None:
    """``read`` raises one sentence that begins with the file."""
    with pytest.raises(TerraFMError, match=match) as caught:
        read()
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.endswith(".")
    assert "\n" not in message


@pytest.mark.parametrize("kept", [0, 200, 3000, 0.5, 0.9, -1])
@pytest.mark.parametrize("name", [EUROSAT, CASHEW])
def test_truncated_sample(root: Path, name: str, kept: float) -> None:
    path = first(root, name)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content)) if isinstance(kept, float) else kept])
    data = open_bench(name, root, "train")
    fails_naming(path, "damaged or incomplete", lambda: data[0])
    assert data[1]


@pytest.mark.parametrize("pickled", [None, 200])
def test_a_sample_without_its_pickle_or_with_half_of_it(root: Path, pickled: int | None) -> None:
    path = first(root, EUROSAT)
    with h5py.File(path, "r+") as file:
        text = file.attrs.pop("pickle")
        if pickled:
            file.attrs["pickle"] = text[:pickled]
    match = "a pickle that was not read" if pickled else "damaged or incomplete"
    fails_naming(path, match, lambda: open_bench(EUROSAT, root, "train")[0])
    fails_naming(path, match, lambda: open_bench(EUROSAT, root, "train").targets())


def test_a_dataset_that_the_pickle_names_is_missing(root: Path) -> None:
    path = first(root, EUROSAT)
    with h5py.File(path, "r+") as file:
        del file["11 - SWIR"]
    fails_naming(path, "11 - SWIR", lambda: open_bench(EUROSAT, root, "train")[0])


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (EUROSAT, lambda sample: sample.bands.pop(0), r"lacks 01 - Coastal aerosol, .* it has 02 - Blue, 03"),
        (CASHEW, lambda sample: sample.bands.pop(0), r"lacks 01 - Coastal aerosol, .* it has 02 - Blue, 03"),
        (EUROSAT, lambda sample: sample.bands[1].crop((0, 0), (16, 16)), "must have the same shape"),
        (BIGEARTHNET, lambda x: [band.data.fill(np.nan) for band in x.bands], "no pixel that is a number"),
        (CASHEW, lambda sample: sample.label.data.fill(7), "holds the class 7, .* classes 0 to 6"),
        (CASHEW, lambda sample: sample.label.crop((0, 0), (16, 32)), r"a mask of \(16, 32\)"),
    ],
)
def test_what_a_sample_lacks_or_has_too_much(root: Path, name: str, change: Callable, match: str) -> None:
    path = first(root, name)
    rewrite(path, change)
    fails_naming(path, match, lambda: open_bench(name, root, "train")[0])


def test_bands_that_are_told_by_position_have_to_be_in_the_known_order(root: Path) -> None:
    path = first(root, EUROSAT)
    rewrite(path, lambda sample: sample.bands.reverse())
    for bands in ("corrected", "labelled"):
        data = open_bench(EUROSAT, root, "train", bands=bands)
        fails_naming(path, r"has not the order 01 .* it has 12 - SWIR, 11 - SWIR", lambda data=data: data[0])


def test_bands_that_are_told_by_name_may_be_in_any_order(root: Path) -> None:
    data = open_bench(BIGEARTHNET, root, "train")
    before = data[0]["image_s2l2a"]
    rewrite(data.files[0], lambda sample: sample.bands.reverse())
    torch.testing.assert_close(data[0]["image_s2l2a"], before)


def test_missing_pixels_stay(root: Path) -> None:
    def some(sample: geobench.Sample) -> None:
        sample.bands[3].data[2, 5] = np.nan
        sample.bands[2].data[:] = np.inf

    rewrite(first(root, BIGEARTHNET), some)
    missing = open_bench(BIGEARTHNET, root, "train")[0]["image_s2l2a"].isnan()
    assert missing[3].nonzero().tolist() == [[2, 5]]
    assert missing[2].all()
    assert missing.sum() == 1 + 32 * 32


@pytest.mark.parametrize(
    ("name", "label", "match"),
    [
        (EUROSAT, 10, "the label 10, but m-eurosat has a class from 0 to 9"),
        (EUROSAT, -1, "the label -1, "),
        (EUROSAT, "forest", r"the label \[\], "),
        (EUROSAT, [1, 2], r"the label \[1, 2\], "),
        (EUROSAT, [[1], [1, 2]], "inhomogeneous"),
        (BIGEARTHNET, 3, "the label 3, but m-bigearthnet has 43 labels of 0 or 1"),
        (BIGEARTHNET, [2] * 43, "but m-bigearthnet has 43 labels of 0 or 1"),
        (BIGEARTHNET, [0, 1], r"the label \[0, 1\], "),
    ],
)
def test_a_label_of_another_kind(root: Path, name: str, label: object, match: str) -> None:
    path = first(root, name)
    rewrite(path, lambda sample: setattr(sample, "label", label))
    fails_naming(path, match, lambda: open_bench(name, root, "train")[0])
    fails_naming(path, match, lambda: open_bench(name, root, "train").targets())


def test_labels_of_a_list_are_read_as_those_of_an_array(root: Path) -> None:
    data = open_bench(BIGEARTHNET, root, "train")
    before = data[0]["label"]
    rewrite(data.files[0], lambda sample: setattr(sample, "label", before.tolist()))
    torch.testing.assert_close(data[0]["label"], before)


def test_missing_partitions(root: Path) -> None:
    target = folder(root, EUROSAT)
    (target / "1.00x_train_partition.json").unlink()
    assert open_bench(EUROSAT, root, "train").partition == "default"
    (target / "0.10x_train_partition.json").unlink()
    part = open_bench(EUROSAT, root, "train", fraction=0.1)
    assert len(part) == 10  # one of each class
    for path in target.glob("*_partition.json"):
        path.unlink()
    for split in ("train", "val", "test"):
        fails_naming(target, "has no partition", lambda split=split: open_bench(EUROSAT, root, split))


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ('{"train": ["id', "cannot be read"),
        ("[]", "cannot be read"),
        ('{"valid": ["a"], "test": ["b"]}', "names no samples for the train split"),
        ('{"train": []}', "names no samples for the train split"),
        ('{"train": ["id_1", "id_2"]}', r"names id_1.hdf5, which is not beside it \(nor are 1 more of 2\)"),
    ],
)
def test_a_damaged_partition(root: Path, content: str, match: str) -> None:
    path = folder(root, EUROSAT) / "1.00x_train_partition.json"
    path.write_text(content)
    fails_naming(path, match, lambda: open_bench(EUROSAT, root, "train"))


@pytest.mark.parametrize("content", ["{", "{}", '{"11 - SWIR": 1}', None])
def test_damaged_statistics(root: Path, content: str | None) -> None:
    path = folder(root, EUROSAT) / "band_stats.json"
    path.write_text(content or "")
    if content is None:
        path.unlink()
    fails_naming(path, "cannot be read", lambda: open_bench(EUROSAT, root, "train"))
