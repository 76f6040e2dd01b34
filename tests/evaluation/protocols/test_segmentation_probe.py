"""The linear segmentation probe and its file of features, on GEO-Bench's and Copernicus-Bench's own formats."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import jaccard_score
from torch.utils.data import default_collate

from data.geobench.data import make_geobench
from data.labelled import make_copernicus
from data.tiny_bench import open_splits
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, load_encoder
from terrafm_tg.evaluation.protocols import Context, Splits, make_protocol
from terrafm_tg.evaluation.protocols import patch_features as module
from terrafm_tg.evaluation.protocols.patch_features import cut, patch_features
from terrafm_tg.tasks.finetune.heads import PatchHead
from terrafm_tg.tasks.finetune.metrics import NotFiniteError

PIXELS = ModelSpec("pixel-statistics", size=32, channels=("B02", "B08"))


@pytest.fixture(scope="module")
def clouds(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    root = tmp_path_factory.mktemp("cloud")
    return open_splits(make_copernicus(root, "Cloud-S2", n=12, size=32), "Cloud-S2")


@pytest.fixture(scope="module")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Splits:
    root = tmp_path_factory.mktemp("crops")
    make_geobench(root, "m-cashew-plant", 2, 1, 1, size=128, classes=3)
    return open_splits(root, "m-cashew-plant")


def test_it_learns_classes_of_pixels(clouds: Splits, tmp_path: Path) -> None:
    protocol = make_protocol("segmentation-probe", rates=[1e-4, 1e-2], epochs=10, batch_size=4)
    scores = protocol.run(PIXELS, clouds, Context(cache=tmp_path))
    best = next(score for score in scores if score.headline)
    assert (best.metric, best.average) == ("miou", "true")
    assert best.score > 80
    assert best.settings["lr"] == 0.01  # with 1e-4, it learns hardly anything
    assert best.settings["tried"]["0.01"] > best.settings["tried"]["0.0001"]
    assert len(list(tmp_path.iterdir())) == 3
    assert protocol.run(PIXELS, clouds, Context(cache=tmp_path)) == scores  # from the files


def test_the_score_is_that_of_the_predictions(clouds: Splits, tmp_path: Path) -> None:
    """Against scikit-learn, with the layer of the only learning rate."""
    protocol = make_protocol("segmentation-probe", rates=[3e-3], epochs=3, batch_size=4)
    context = Context(cache=tmp_path)
    scores = {(score.metric, score.average): score for score in protocol.run(PIXELS, clouds, context)}
    encoder = load_encoder(PIXELS, clouds.train.task, clouds.train)
    train, test = (patch_features(encoder, split, context) for split in (clouds.train, clouds.test))
    torch.manual_seed(0)
    start = PatchHead(train.x.shape[1], 4, side=16)
    head = protocol.fit(clouds.train.task, start, train, context)[3e-3]
    with torch.no_grad():
        predicted = head(test.x.float())[0].argmax(1)
    expected = jaccard_score(test.y.flatten(), predicted.flatten(), average="macro")
    assert scores["miou", "true"].score == pytest.approx(100 * expected)
    assert np.sum(scores["miou", "true"].confusion) == test.y.numel()


def test_learning_rates_do_not_touch_each_other(clouds: Splits, tmp_path: Path) -> None:
    """Trained together they score on validation as each alone; one that diverges is left out."""
    context = Context(cache=tmp_path)

    def tried(*rates: float) -> dict[str, float]:
        protocol = make_protocol("segmentation-probe", rates=rates, epochs=3, batch_size=4)
        return protocol.run(PIXELS, clouds, context)[0].settings["tried"]

    together = tried(1e-3, 1e-2, 1e36)
    assert together == {**tried(1e-3), **tried(1e-2), "1e+36": None}
    with pytest.raises(NotFiniteError, match=r"diverged with every learning rate \(1e\+36\): lower them"):
        tried(1e36)


def test_patch_head_lays_out_pixels_as_galileo() -> None:
    """b (h w) (c i j) -> b c (h i) (w j)."""
    head = PatchHead(5, classes=3, side=4)
    features = torch.randn(2, 5, 2, 6)
    flat = torch.nn.functional.linear(features.flatten(2).mT, head.linear.weight[..., 0, 0], head.linear.bias)
    expected = flat.view(2, 2, 6, 3, 4, 4).permute(0, 3, 1, 4, 2, 5).reshape(2, 3, 8, 24)
    torch.testing.assert_close(head(features)[0], expected)
    with pytest.raises(TerraFMError, match="shows 200x200 px of the mask"):
        PatchHead(5, 2, 200)


def test_crops_are_cut_into_tiles(crops: Splits, tmp_path: Path) -> None:
    """Images of 128 px into 4 of 64; a model's own size decides how it sees them."""
    protocol = make_protocol("segmentation-probe", rates=[1e-2], epochs=1, batch_size=4)
    spec = ModelSpec("pixel-statistics", size=0, channels=("B02", "B08"))
    scores = protocol.run(spec, crops, Context(cache=tmp_path))
    assert scores[0].settings["tile"] == 64
    kept = [np.load(file) for file in tmp_path.iterdir()]
    assert sorted(file["x"].shape for file in kept) == [(4, 512, 4, 4), (4, 512, 4, 4), (8, 512, 4, 4)]
    assert {file["y"].shape[1:] for file in kept} == {(64, 64)}


def test_tiles_are_the_images_in_order(crops: Splits, tmp_path: Path) -> None:
    batch = default_collate([crops.train[0], crops.train[1]])
    mask = batch["mask"]
    tiles = cut(mask, 64)
    assert torch.equal(tiles[1], mask[0, :64, 64:])
    assert torch.equal(tiles[6], mask[1, 64:, :64])
    image = next(x for key, x in batch.items() if key.startswith("image"))
    assert torch.equal(cut(image, 32)[5], image[0, :, 32:64, 32:64])
    assert torch.equal(cut(image[:, None], 64)[2, 0], image[0, :, 64:, :64])
    with pytest.raises(TerraFMError, match="Tiles of 50 px do not fill images of 128x128 px"):
        cut(mask, 50)
    encoder = load_encoder(PIXELS, crops.train.task, crops.train)
    kept = patch_features(encoder, crops.train, Context(cache=tmp_path), tile=64)
    assert torch.equal(kept.y.long(), tiles)


def test_features_in_the_file_are_the_model_s(clouds: Splits, tmp_path: Path) -> None:
    encoder = load_encoder(ModelSpec("terrafm_tiny", size=32), clouds.train.task, clouds.train)
    kept = patch_features(encoder, clouds.train, Context(folder=tmp_path, batch_size=5, num_workers=1))
    samples = [clouds.train[i] for i in range(len(clouds.train))]
    with torch.no_grad():
        expected = encoder.patches(default_collate(samples))
    assert kept.x.dtype == torch.float16
    torch.testing.assert_close(kept.x.float(), expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(kept.y.long(), torch.stack([sample["mask"] for sample in samples]))


def test_a_damaged_file_is_computed_anew(clouds: Splits, tmp_path: Path) -> None:
    encoder = load_encoder(PIXELS, clouds.val.task, clouds.train)
    context = Context(cache=tmp_path)
    first = patch_features(encoder, clouds.val, context)
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.unlink()
    file.write_bytes(whole[: len(whole) // 2])
    with pytest.warns(UserWarning, match=f"{file.name} is damaged and is computed anew"):
        again = patch_features(encoder, clouds.val, context)
    assert torch.equal(first.x, again.x)
    assert file.read_bytes() == whole
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        patch_features(encoder, clouds.val, context)


def test_features_too_large_for_float16(clouds: Splits, tmp_path: Path) -> None:
    encoder = load_encoder(PIXELS, clouds.val.task, clouds.train)
    encoder.readers["image"].scale.mul_(1e6)
    with pytest.raises(NotFiniteError, match="float16 cannot hold: set `dtype` to float32"):
        patch_features(encoder, clouds.val, Context(cache=tmp_path))
    assert not list(tmp_path.iterdir())  # nothing half written
    kept = patch_features(encoder, clouds.val, Context(cache=tmp_path), dtype="float32")
    assert kept.x.dtype == torch.float32


def test_too_small_a_disk_is_said_before_writing(
    clouds: Splits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    free = module.shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(module.shutil, "disk_usage", lambda path: free)
    encoder = load_encoder(PIXELS, clouds.val.task, clouds.train)
    with pytest.raises(TerraFMError, match=r"need 0\.\d GB in .* which has 0\.0 GB left"):
        patch_features(encoder, clouds.val, Context(cache=tmp_path))
