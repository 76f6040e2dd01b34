"""A head says of windows what its task says of the same images; and what a map keeps of it is right."""

import math
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from saved_heads import NANO, save, seeded
from torch import Tensor
from torchgeo.tasks import Classification, SemanticSegmentation

from refusals import refused
from terrafm_tg.inference.map.predictor import BEFORE, STEPS, HeadPredictor, chosen_classes, entropy_of
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.tasks import (
    FineTuneChangeDetection,
    FineTuneClassification,
    FineTuneSegmentation,
    TerraFMPixelwiseRegression,
)
from terrafm_tg.tasks.finetune.task import TRAINED_ON
from terrafm_tg.transforms import Normalize

S2 = f"{NANO}_s2l2a"


def pixels(name: str, height: int, width: int, seed: int = 0) -> NDArray[np.float32]:
    """An image about the training mean."""
    modality = MODALITIES[name.removesuffix(BEFORE)]
    noise = np.random.default_rng(seed).normal(size=(len(modality.bands), height, width))
    mean, std = (np.array(x)[:, None, None] for x in (modality.mean, modality.std))
    return (mean + 0.3 * std * noise).astype(np.float32)


def run(predictor: HeadPredictor, images: dict[str, NDArray[np.float32]]) -> NDArray[np.float32]:
    """The values of one window that shows all of the images."""
    windows = {name: x[None] for name, x in predictor.prepare(images).items()}
    return predictor.predict(windows, {})[0].numpy()


def made(task: Any, folder: Path, told: dict[str, Any] | None = None, **settings: Any) -> HeadPredictor:
    """A task as a predictor, with what its training has told."""
    path = save(task, folder / "x.ckpt")
    if told:
        content = torch.load(path, weights_only=True)
        torch.save(content | {TRAINED_ON: told}, path)
    return HeadPredictor(path, device="cpu", **settings)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[FineTuneSegmentation, HeadPredictor]:
    """A head of two sensors."""
    seeded()
    task = FineTuneSegmentation(NANO, modalities=["s1rtc", "s2l2a"], num_classes=3, decoder="linear").eval()
    return task, made(task, tmp_path)


def test_pixels_are_those_of_the_task_itself(pair: tuple[FineTuneSegmentation, HeadPredictor]) -> None:
    task, predictor = pair
    images = {name: pixels(name, 64, 96) for name in predictor.names}
    batch = Normalize()({f"image_{name}": torch.from_numpy(x)[None] for name, x in images.items()})
    wanted = task.predict_step(batch, 0)["probabilities"][0].movedim(0, -1)
    assert np.allclose(run(predictor, images), wanted.detach().numpy(), atol=1e-5)
    assert (predictor.cell, predictor.depth, predictor.window) == (1, 3, 224)


def test_a_window_of_any_size_is_filled_up_with_missing_pixels(
    pair: tuple[FineTuneSegmentation, HeadPredictor],
) -> None:
    _, predictor = pair
    images = {name: pixels(name, 64, 80) for name in predictor.names}
    for image in images.values():
        image[:, 50:], image[:, :, 70:] = np.nan, np.nan
    whole, part = run(predictor, images), run(predictor, {name: x[:, :50, :70] for name, x in images.items()})
    assert part.shape == (50, 70, 3)
    assert np.allclose(whole[:50, :70], part, atol=1e-5)


def test_each_token_is_made_of_the_sensors_that_show_it(pair: tuple[FineTuneSegmentation, HeadPredictor]) -> None:
    """Radar is there in the left half only: the optical sensor alone makes the tokens of the right one."""
    _, predictor = pair
    images = {name: pixels(name, 32, 64) for name in predictor.names}
    images["s1rtc"][:, :, 32:] = np.nan
    seen: list[Tensor] = []
    hook = predictor.head.task.model.encoder.patch_embed.register_forward_hook(lambda *x: seen.append(x[-1]))
    run(predictor, images)
    run(predictor, {"s2l2a": images["s2l2a"]})
    run(predictor, images | {"s1rtc": pixels("s1rtc", 32, 64)})
    hook.remove()
    half, alone, both = (x.reshape(2, 4, -1) for x in seen)
    assert torch.allclose(half[:, 2:], alone[:, 2:], atol=1e-6)
    assert torch.allclose(half[:, :2], both[:, :2], atol=1e-6)
    assert not torch.allclose(half[:, :2], alone[:, :2], atol=1e-3)


def test_bands_are_picked_by_name(tmp_path: Path) -> None:
    seeded()
    bands = ["B08", "B10", "B02"]
    task = FineTuneSegmentation(NANO, modalities=["s2l1c"], bands=bands, num_classes=2, decoder="linear").eval()
    predictor = made(task, tmp_path)
    image = pixels("s2l1c", 32, 32)
    picked = torch.from_numpy(image[[7, 0, 1]])
    picked[1] = 12.0  # cirrus, which no stem reads
    batch = {"image": Normalize("s2l1c", bands)(picked)[None]}
    wanted = task.predict_step(batch, 0)["probabilities"][0].movedim(0, -1)
    assert np.allclose(run(predictor, {"s2l1c": image}), wanted.detach().numpy(), atol=1e-5)


def test_a_class_per_image_of_the_size_of_the_training(tmp_path: Path) -> None:
    """The dataset's images had 48 px and were enlarged to 96: so are windows."""
    seeded()
    task = FineTuneClassification(NANO, modalities=["s2l2a"], num_classes=4).eval()
    told = {"image_size": {"image": [48, 48]}, "input_size": {"image": [96, 96]}, "classes": ["a", "b", "c", "d"]}
    predictor = made(task, tmp_path, told)
    assert (predictor.window, predictor.cell, predictor.head.names) == (48, 48, ("a", "b", "c", "d"))
    image = pixels("s2l2a", 48, 48)
    batch = {"image": Normalize("s2l2a", size=96)(torch.from_numpy(image))[None]}
    values = run(predictor, {"s2l2a": image})
    assert values.shape == (1, 1, 4)
    assert np.allclose(values[0, 0], task.predict_step(batch, 0)[0].detach().numpy(), atol=1e-5)


def test_pixels_of_enlarged_images_come_back_at_their_own_size(tmp_path: Path) -> None:
    seeded()
    task = FineTuneSegmentation(NANO, modalities=["s1rtc"], num_classes=2, decoder="linear").eval()
    told = {"image_size": {"image": [40, 40]}, "input_size": {"image": [80, 80]}}
    predictor = made(task, tmp_path, told)
    image = pixels("s1rtc", 40, 40)
    batch = {"image": Normalize("s1rtc", size=80)(torch.from_numpy(image))[None]}
    wanted = torch.nn.functional.interpolate(task.predict_step(batch, 0)["probabilities"], 40, mode="bilinear")
    assert np.allclose(run(predictor, {"s1rtc": image}), wanted[0].movedim(0, -1).detach().numpy(), atol=1e-5)


def test_without_the_size_of_the_training_a_window_must_be_said(tmp_path: Path) -> None:
    path = save(Classification(model=S2, in_channels=12, num_classes=2), tmp_path / "x.ckpt")
    with refused(match="Nothing says how large the images were .* give `window`"):
        HeadPredictor(path, device="cpu")
    with refused(match="`window` is 40: the head reads multiples of 16, such as 32"):
        HeadPredictor(path, window=40, device="cpu")
    assert HeadPredictor(path, window=64, device="cpu").cell == 64


@pytest.mark.parametrize("model", ["upernet", "fcsiamdiff"])
def test_change_compares_the_earlier_image_with_the_later(tmp_path: Path, model: str) -> None:
    seeded()
    task = FineTuneChangeDetection(model=model, backbone=S2, in_channels=12).eval()
    predictor = made(task, tmp_path)
    assert predictor.names == [f"s2l2a{BEFORE}", "s2l2a"]
    images = {name: pixels(name, 32, 48, seed) for seed, name in enumerate(predictor.names)}
    dates = torch.stack([torch.from_numpy(x) for x in images.values()])
    wanted = task.predict_step({"image": Normalize("s2l2a")(dates)[None]}, 0)[0].movedim(0, -1)
    assert np.allclose(run(predictor, images), wanted.detach().numpy(), atol=1e-5)
    swapped = dict(reversed(images.items()))
    assert np.allclose(run(predictor, swapped), wanted.detach().numpy(), atol=1e-5)
    images["s2l2a"][:, :16] = np.nan
    values = run(predictor, images)
    assert np.isnan(values[:16]).all()
    assert np.isfinite(values[16:]).all()
    assert np.isnan(run(predictor, {"s2l2a": images["s2l2a"]})).all()


def test_a_model_that_is_no_terrafm_reads_what_it_was_trained_on(tmp_path: Path) -> None:
    seeded()
    task = SemanticSegmentation("unet", "resnet18", in_channels=3, num_classes=2).eval()
    with refused(match="Nothing says how the images .* were normalized: give `model_mean` and `model_std`"):
        made(task, tmp_path, modality="s2l2a", bands=["B04", "B03", "B02"])
    for std in (0, [1, 2], float("nan")):
        with refused(match="`model_std` is"):
            made(task, tmp_path, mean=0, std=std, modality="s2l2a", bands=["B04", "B03", "B02"])
    predictor = made(task, tmp_path, mean=[1, 2, 3], std=1e4, modality="s2l2a", bands=["B04", "B03", "B02"])
    image = pixels("s2l2a", 64, 32)
    x = torch.from_numpy((image[[3, 2, 1]] - np.array([1, 2, 3], np.float32)[:, None, None]) / 1e4)
    wanted = task.predict_step({"image": x[None]}, 0)["probabilities"][0].movedim(0, -1)
    assert np.allclose(run(predictor, {"s2l2a": image}), wanted.detach().numpy(), atol=1e-5)
    own = save(FineTuneSegmentation(NANO), tmp_path / "own.ckpt")
    with refused(match="leave `model_mean` and `model_std` out"):
        HeadPredictor(own, mean=0, std=1, device="cpu")


def test_it_is_sent_to_workers_without_its_weights(pair: tuple[FineTuneSegmentation, HeadPredictor]) -> None:
    _, predictor = pair
    images = {name: pixels(name, 32, 32) for name in predictor.names}
    sent = pickle.dumps(predictor)
    assert len(sent) < 5_000
    assert np.array_equal(run(pickle.loads(sent), images), run(predictor, images))


def test_numbers_stay_numbers(tmp_path: Path) -> None:
    seeded()
    predictor = made(TerraFMPixelwiseRegression("linear", NANO), tmp_path)
    values = run(predictor, {"s2l2a": pixels("s2l2a", 32, 32)})
    assert values.shape == (32, 32, 1)
    assert (predictor.finish(values) is values, predictor.dtype, predictor.bands) == (True, "float32", 1)


@pytest.mark.parametrize("classes", [1, 3, 200, 300])
@pytest.mark.parametrize("probabilities", ["uint8", "float32", "none"])
def test_class_entropy_and_probabilities_are_kept(tmp_path: Path, classes: int, probabilities: str) -> None:
    task = FineTuneSegmentation(NANO, modalities=["s1rtc"], num_classes=classes, decoder="linear")
    predictor = made(task, tmp_path, probabilities=probabilities)
    logits = np.random.default_rng(0).normal(size=(5, 7, classes)) * 2
    p = (np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)).astype(np.float32)
    p[2, 3] = np.nan
    kept = predictor.finish(p)
    bands = 2 + (classes if probabilities != "none" else 0)
    assert kept.shape == (5, 7, bands) == (5, 7, predictor.bands)
    whole = probabilities != "float32"
    assert kept.dtype == predictor.dtype == ("float32" if not whole else "uint8" if classes < 256 else "uint16")
    there = np.isfinite(p[..., 0])
    assert (kept[there][:, 0] == p[there].argmax(-1)).all()
    if whole:
        assert kept[2, 3, 0] == np.iinfo(kept.dtype).max
        assert (kept[2, 3, 1:] == STEPS + 1).all()
    else:
        assert np.isnan(kept[2, 3]).all()
    if probabilities != "none":
        scale = STEPS if whole else 1
        assert np.abs(kept[there][:, 2:] / scale - p[there]).max() <= (0.5 / STEPS + 1e-6 if whole else 0)


def test_entropy_by_its_formula() -> None:
    p = np.array([[0.5, 0.25, 0.25], [1, 0, 0], [1 / 3] * 3])
    wanted = [1.5 * math.log(2) / math.log(3), 0, 1]
    assert np.allclose(entropy_of(p, "multiclass"), wanted)
    assert np.allclose(entropy_of(np.array([[0.5], [1.0], [0.25]]), "binary"), [1, 0, 0.8112781244591328])
    assert np.allclose(entropy_of(np.array([[0.5, 1.0], [0.5, 0.5]]), "multilabel"), [0.5, 1])
    assert entropy_of(np.ones((2, 1)), "multiclass").tolist() == [0, 0]


@given(st.integers(1, 40), st.integers(0, 999), st.sampled_from(["multiclass", "binary", "multilabel"]))
def test_entropy_is_a_share_and_classes_are_in_range(count: int, seed: int, kind: str) -> None:
    rng = np.random.default_rng(seed)
    p = rng.random((6, 1 if kind == "binary" else count)) ** 8
    p = p / p.sum(-1, keepdims=True) if kind == "multiclass" else p
    entropy = entropy_of(p.astype(np.float32), kind)
    assert ((entropy >= 0) & (entropy <= 1 + 1e-6)).all()
    classes = chosen_classes(p, kind)
    most = {"multiclass": p.shape[1] - 1, "binary": 1, "multilabel": p.shape[1]}[kind]
    assert ((classes >= 0) & (classes <= most)).all()


def test_classes_of_labels() -> None:
    p = np.array([[0.2, 0.7, 0.6], [0.4, 0.1, 0.3], [0.5, 0.1, 0.2]])
    assert chosen_classes(p, "multilabel").tolist() == [1, 3, 0]
    assert chosen_classes(np.array([[0.5], [0.49]]), "binary").tolist() == [1, 0]
