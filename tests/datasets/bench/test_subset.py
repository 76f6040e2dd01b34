"""Opening a benchmark dataset by name, and seeded parts of a train split."""

import itertools
from pathlib import Path

import pytest
import torch

from data.geobench.data import folder, make_geobench
from terrafm_tg.datasets.bench import BenchDataset, open_bench, take_fraction
from terrafm_tg.errors import TerraFMError


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
