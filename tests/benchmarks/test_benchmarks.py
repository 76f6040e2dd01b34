"""Our own measurements run, say what they measured, and compare like with like; how long it took is not asserted."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import bench, encoder, loader, store, views
from benchmarks.in_memory import InMemoryDataModule
from data.geobench.data import make_geobench
from terrafm_tg.datamodules import MajorTOMDataModule
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec
from terrafm_tg.models import TerraFMViT, build_encoder, reparameterize
from terrafm_tg.transforms import MultiCrop
from terrafm_tg.utils.devices import has_bf16_units

TINY = {"model": "terrafm_tiny", "device": "cpu"}


@pytest.fixture(scope="module")
def geobench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("geobench")
    make_geobench(path, "m-eurosat", 20, 10, 10, classes=3)
    return path


@pytest.fixture(scope="module")
def model() -> TerraFMViT:
    torch.manual_seed(0)
    return build_encoder("terrafm_tiny", depth=2, modality="s2l2a").eval()


def test_every_table(small_world: Path, geobench: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiles = MajorTOMDataModule(small_world, tile_size=72)
    half = "encoder, bf16" if has_bf16_units("cpu") else "bf16 is not measured"
    measurements: list[tuple[Callable[[], None], tuple[str, ...]]] = [
        (
            lambda: bench.measure(geobench, model="pixel-statistics", samples=12),
            ("12 images of m-eurosat", "processor s"),
        ),
        (lambda: encoder.measure(**TINY, size=32, batch=1, rounds=1), ("plain, fp32", half, "x plain", "TFLOP/s")),
        (lambda: loader.measure(tiles, batch_size=2, batches=2, rounds=1), ("MajorTOM, batches of 2", "DataLoader, ")),
        (lambda: store.measure(small_world, tiles=4, rounds=1), ("4 tiles, read in turn", "packed store")),
        (
            lambda: views.measure(batch=2, rounds=1, tile_size=60, device="cpu", json=tmp_path / "v.json"),
            ("kornia, slice", "kornia, resample", "ours", "x kornia"),
        ),
    ]
    for measure, parts in measurements:
        measure()
        printed = " ".join(capsys.readouterr().out.split())
        assert not [part for part in parts if part not in printed]
    assert (tmp_path / "v.json").stat().st_size > 100


@pytest.mark.parametrize(
    ("measure", "options", "said"),
    [
        (bench.bench_speed, {"spec": ModelSpec("pixel-statistics"), "root": Path(), "samples": 1}, "`samples` is 1"),
        (encoder.measure, TINY | {"model": "terrafm_huge"}, "'terrafm_huge' is unknown"),
        (encoder.measure, TINY | {"modality": "sar"}, "'sar' is unknown"),
        (encoder.measure, TINY | {"device": "abacus"}, "no device 'abacus' here"),
        (encoder.measure, TINY | {"size": 8}, "8x8 px cannot be cut"),
        (encoder.measure, TINY | {"rounds": 0}, "0 rounds"),
        (loader.loader_speed, {"tiles": [], "batches": 0}, "measure nothing: give 1 or more of each"),
        (store.store_speed, {"root": Path(), "out": Path(), "rounds": 0}, "0 rounds measure nothing"),
        (views.measure, {"batch": 1, "device": "cpu"}, "2 tiles or more"),
    ],
)
def test_a_wrong_option_is_one_sentence(measure: Callable[..., Any], options: dict[str, Any], said: str) -> None:
    with pytest.raises(TerraFMError, match=said):
        measure(**options)


def test_what_a_knn_is_counted_by(geobench: Path) -> None:
    found = bench.bench_speed(ModelSpec("terrafm_tiny", size=32), geobench, samples=16, batch_size=4)
    assert found.samples == 16
    assert 0 < found.forward.processor < found.total.processor
    assert 0 < found.forward.wall < found.total.wall
    (headline,) = [score for score in found.scores if score.headline]
    assert headline.metric == "accuracy"


@pytest.mark.parametrize(("modality", "channels"), [("s1rtc", 2), ("s2l2a", 12)])
@pytest.mark.parametrize("px", [224, 48])
def test_the_plain_encoder_gives_the_same_numbers(model: TerraFMViT, modality: str, channels: int, px: int) -> None:
    x = torch.randn(2, channels, px, px)
    plain = encoder.PlainEncoder(model, modality)(x)
    torch.testing.assert_close(plain, model(x, modality=modality), atol=1e-5, rtol=1e-4)


def test_an_encoders_operations(model: TerraFMViT) -> None:
    """Folding leaves a convolution, one map to d, and blocks of 12 d^2 per token and attention."""
    patches, d = 4, 192
    stem = patches * (12 * 256 * 3 * d + 3 * d * d)
    block = (patches + 1) * 12 * d * d + 2 * (patches + 1) ** 2 * d
    assert encoder.forward_flops(reparameterize(model), "s2l2a", 32) == 2 * (stem + 2 * block)
    assert encoder.forward_flops(model, "s2l2a", 32) == 2 * (stem + 2 * block + 2 * patches * (3 * d) ** 2)


@pytest.mark.parametrize("mode", ["slice", "resample"])
def test_kornia_makes_as_many_views_of_the_same_sizes_and_range(mode: str) -> None:
    batch = next(iter(InMemoryDataModule(batch_size=3, tile_size=60, batches=1).train_dataloader()))
    crop = MultiCrop(global_size=32, local_size=16, local_crops=2)
    plan = crop.plan(batch)
    torch.manual_seed(0)
    kornia, ours = views.KorniaCrops(crop, mode)(batch, plan), crop(batch, plan)
    for m in crop.modalities:
        made = kornia[f"local_{m.name}"]
        assert made.shape == ours["student_local"].images[m.name].shape
        assert made.isfinite().all()
        assert made.mean() == pytest.approx(ours["student_local"].images[m.name].mean(), abs=0.25)
        assert len(kornia[f"global_{m.name}"]) == len(plan[f"global_{m.name}_view_idx"])
