"""Our own measurements run, say what they measured, and compare like with like; how long it took is not asserted."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
import torch

from benchmarks import bench, encoder, index, loader, store, views
from benchmarks.in_memory import InMemoryDataModule
from benchmarks.synthetic_index import write_synthetic_index
from data.geobench.data import make_geobench
from terrafm_tg.datamodules import MajorTOMDataModule, PackedDataModule
from terrafm_tg.datasets import MajorTOM
from terrafm_tg.datasets.store.pack import pack
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


def test_batches_are_like_those_of_a_store(small_world, tmp_path) -> None:
    tiles = MajorTOM(small_world, native=True, harmonize=False, tile_size=72)
    pack(tiles, tmp_path / "store", quantize_radar=True, workers=0, progress=False)
    store = PackedDataModule(tmp_path / "store", batch_size=4, num_workers=0, val_share=0)
    store.setup("fit")
    real = next(iter(store.train_dataloader()))
    made = next(iter(InMemoryDataModule(batch_size=4, tile_size=72).train_dataloader()))
    common = made.keys() & real.keys()
    assert {"position", "epoch", "land_cover", "row", "sample_idx_s2l2a", "image_s1rtc_10m"} <= common
    assert {key for key in real if key.startswith(("image_", "sample_idx_"))} <= common
    for key in common:
        assert made[key].shape[1:] == real[key].shape[1:], key
        assert made[key].dtype == real[key].dtype, key
    assert (made["image_s2l1c_60m"].int() > 0).all()  # nothing is missing


def test_positions_run_on_through_epochs_and_ranks() -> None:
    data = InMemoryDataModule(batch_size=4, tile_size=12, epoch_length=30)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=1, world_size=2, strategy=device, accumulate_grad_batches=1)
    loader = data.train_dataloader()
    assert len(loader) == 3
    first, second = list(loader), list(loader)
    assert torch.cat([batch["position"] for batch in first]).tolist() == list(range(1, 24, 2))
    assert {int(batch["epoch"][0]) for batch in first} == {0}
    assert {int(batch["epoch"][0]) for batch in second} == {1}
    images = [batch["image_s2l2a_10m"] for batch in first]
    assert images[0] is images[2]  # made once
    assert not torch.equal(images[0].int(), images[1].int())


def test_an_epoch_holds_one_step() -> None:
    data = InMemoryDataModule(batch_size=4, tile_size=12, epoch_length=16)
    device = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=device, accumulate_grad_batches=4)
    assert len(data.train_dataloader()) == 4
    data.trainer.accumulate_grad_batches = 5
    with pytest.raises(TerraFMError, match=r"One step takes 20 tiles \(5 batches\) and an epoch has 16"):
        data.train_dataloader()


def measure(folder, tiles) -> dict[str, dict]:
    write_synthetic_index(folder / "index.parquet", tiles)
    stages = index.measure(folder / "index.parquet")
    assert [path.name for path in folder.iterdir()] == ["index.parquet"]
    return {stage["stage"]: stage for stage in stages}


@pytest.mark.soak
def test_sixty_thousand_tiles(tmp_path) -> None:
    """Loading them takes little more memory than the imports: half a kilobyte a tile at most."""
    stages = measure(tmp_path, 60_000)
    assert {"load the index", "sampler", "first draw of an epoch"} < set(stages)
    assert stages["load the index"]["peak_gb"] - stages["imports"]["peak_gb"] < 0.25
    assert all(stage["processor_seconds"] > 0 for stage in stages.values())


@pytest.mark.soak
def test_six_million_tiles(tmp_path) -> None:
    stages = measure(tmp_path, 6_000_000)
    assert stages["load the index"]["peak_gb"] < 3
    assert max(stage["peak_gb"] for stage in stages.values()) < 4


def test_columns_are_those_of_a_real_index(small_world, tmp_path) -> None:
    write_synthetic_index(tmp_path / "index.parquet", 40)
    ours, real = (pq.read_schema(folder / "index.parquet") for folder in (tmp_path, small_world))
    assert {field.name: field.type for field in ours} == {field.name: field.type for field in real}
