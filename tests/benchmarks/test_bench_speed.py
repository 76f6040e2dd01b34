"""The measurement of a k-NN: what is counted; how long it took is printed, not asserted."""

from pathlib import Path

import pytest

from benchmarks.bench import bench_speed
from benchmarks.bench import measure as measure_bench
from data.geobench.data import make_geobench
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec

pytestmark = pytest.mark.filterwarnings("ignore:.*has no training sample of class")


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geobench")
    make_geobench(path, "m-eurosat", 20, 10, 10, classes=3)
    return path


def test_what_is_counted(root: Path) -> None:
    found = bench_speed(ModelSpec("terrafm_tiny", size=32), root, samples=16, batch_size=4)
    assert found.samples == 16
    assert 0 < found.forward.processor < found.total.processor
    assert 0 < found.forward.wall < found.total.wall
    assert found.ratio > 1
    (headline,) = [score for score in found.scores if score.headline]
    assert headline.metric == "accuracy"


def test_the_table(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    measure_bench(root, model="pixel-statistics", samples=12)
    shown = " ".join(capsys.readouterr().out.split())
    assert "k-NN of 12 images of m-eurosat" in shown
    assert "of processor time" in shown


def test_too_few(root: Path) -> None:
    with pytest.raises(TerraFMError, match="`samples` is 1"):
        bench_speed(ModelSpec("pixel-statistics"), root, samples=1)


@pytest.mark.soak
def test_two_thousand_samples_with_the_base_encoder(tmp_path: Path) -> None:
    make_geobench(tmp_path, "m-eurosat", 1000, 10, 1000, size=64, classes=10)
    found = bench_speed(ModelSpec("terrafm_base"), tmp_path)
    print(f"{found.ratio:.3f} of processor time, {found.wall_ratio:.3f} of wall time, cached {found.again.wall:.1f} s")
    assert found.samples == 2000
    assert found.again.processor < found.forward.processor
