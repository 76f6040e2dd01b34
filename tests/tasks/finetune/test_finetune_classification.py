"""What the task learns, its scores against scikit-learn's, and what it says of batches that do not fit."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from finetune_runs import SIZE, images, loader, samples
from lightning.pytorch import Trainer, seed_everything
from sklearn.metrics import average_precision_score
from tiny_terrafm import trainer
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import build_encoder
from terrafm_tg.tasks import FineTuneClassification, FineTuneSegmentation
from terrafm_tg.tasks.finetune.classification import SensorMixup
from terrafm_tg.transforms import Normalize


def task(**settings: Any) -> FineTuneClassification:
    """A tiny one."""
    return FineTuneClassification(**({"model": "terrafm_tiny", "depth": 2, "num_classes": 2} | settings))


def two_lights(count: int, seed: int) -> dict[str, Tensor]:
    """Four classes: radar bright or dark, and optics bright or dark. Either sensor alone leaves two to guess from."""
    generator = torch.Generator().manual_seed(seed)
    bright = torch.randint(2, (count, 2), generator=generator)
    level = (bright - 0.5)[:, :, None, None, None]
    return {
        "image_s1rtc": images(2, count, generator) + level[:, 0],
        "image_s2l2a": images(12, count, generator) + level[:, 1],
        "label": 2 * bright[:, 0] + bright[:, 1],
    }


def test_it_learns_what_both_sensors_together_say(tmp_path: Path) -> None:
    torch.manual_seed(0)
    train, test = two_lights(64, seed=1), two_lights(64, seed=2)
    accuracy = {}
    for sensors in (["s1rtc", "s2l2a"], ["s2l2a"]):
        keys = [f"image_{name}" for name in sensors] + ["label"]
        module = task(modalities=sensors, num_classes=4, lr=2e-3, warmup_epochs=2, drop_path=0.0)
        run = trainer(tmp_path, max_epochs=12)
        run.fit(module, loader(samples(64, **{key: train[key] for key in keys}), 16, shuffle=True))
        run.test(module, loader(samples(64, **{key: test[key] for key in keys}), 32), verbose=False)
        accuracy[len(sensors)] = float(run.callback_metrics["test_OverallAccuracy"])
    assert accuracy[2] > 0.95
    assert accuracy[1] < 0.65


def test_mean_average_precision_is_scikit_learns(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (40, 5), generator=generator)
    data = loader(samples(40, image=images(12, 40, generator), label=labels), 7)
    module = task(task="multilabel", num_labels=5, modalities=["s2l1c"])
    torch.nn.init.normal_(module.model.head.weight, std=0.1)  # logits of both signs, and some within 0 to 1
    run = trainer(tmp_path)
    scores = torch.cat(run.predict(module, data)).numpy()
    run.test(module, data, verbose=False)
    for name, average in (("Overall", "micro"), ("Average", "macro")):
        expected = average_precision_score(labels.numpy(), scores, average=average)
        assert float(run.callback_metrics[f"test_{name}AveragePrecision"]) == pytest.approx(expected, abs=1e-5)


def test_probabilities_near_one_are_told_apart_in_bf16(tmp_path: Path) -> None:
    module = task(task="multilabel", num_labels=2, modalities=["s1rtc"])
    module.model.head.bias.data = torch.tensor([8.0, 9.0])
    run = trainer(tmp_path, precision="bf16-mixed")
    (scores,) = run.predict(module, loader(samples(2, image=images(2, 2))))
    assert scores.dtype == torch.float32
    assert (scores[:, 0] < scores[:, 1]).all()


@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("partner", [[5, 4, 3, 2, 1, 0], [0, 4, 3, 2, 1]])
def test_mixup_mixes_all_sensors_and_the_target_alike(partner: list[int], several: bool) -> None:
    """The first sample of an odd batch stays as it is."""
    seed_everything(0, verbose=False)
    count = len(partner)
    index = torch.arange(float(count))[:, None, None, None]
    target = torch.eye(count, dtype=torch.long) if several else torch.arange(count)
    mix = SensorMixup(count, mixup=1.0, cutmix=0.0, label_smoothing=0.0, multilabel=several)
    mixed, soft = mix({"s1rtc": index.expand(count, 2, 4, 4), "s2l2a": index.expand(count, 12, 4, 4)}, target)
    share = soft.diagonal()
    assert torch.allclose(soft.sum(1), torch.ones(count))
    assert ((share > 0) & (share < 1) | (torch.arange(count) == torch.tensor(partner))).all()
    expected = share * torch.arange(count) + (1 - share) * torch.tensor(partner)
    for image in mixed.values():
        assert torch.allclose(image, expected[:, None, None, None].expand_as(image))


def test_cutmix_cuts_one_box_out_of_all_sensors() -> None:
    seed_everything(3, verbose=False)
    index = torch.arange(2.0)[:, None, None, None]
    mix = SensorMixup(2, mixup=0.0, cutmix=1.0, label_smoothing=0.0, multilabel=False)
    mixed, soft = mix({"s1rtc": index.expand(2, 2, 16, 16), "s2l2a": index.expand(2, 12, 16, 16)}, torch.arange(2))
    boxes = {name: image[0].mean(0) for name, image in mixed.items()}
    assert torch.equal(boxes["s1rtc"], boxes["s2l2a"])
    assert set(boxes["s1rtc"].unique().tolist()) == {0.0, 1.0}
    assert float(soft[0, 1]) == pytest.approx(boxes["s1rtc"].mean().item())


@pytest.mark.parametrize("kind", ["multiclass", "multilabel"])
def test_mixup_and_smoothing_train(kind: str, tmp_path: Path) -> None:
    """Also with an odd last batch."""
    label = torch.randint(2, (5, 3)) if kind == "multilabel" else torch.arange(5) % 3
    module = task(
        task=kind, num_classes=3, num_labels=3, modalities=["s1rtc"], mixup=0.8, cutmix=1.0, label_smoothing=0.1
    )
    run = trainer(tmp_path)
    run.fit(module, loader(samples(5, image=images(2, 5), label=label)))
    assert run.global_step == 2
    assert torch.isfinite(run.callback_metrics["train_loss"])
    assert not any(name.startswith("train_Overall") for name in run.callback_metrics)


def test_raw_batches_are_normalised_on_request() -> None:
    decibels = torch.randn(2, 2, SIZE, SIZE) * 5 - 15
    module = task(modalities=["s1rtc"], normalize=True).eval()
    found = module.predict_step({"image": decibels}, 0)
    expected = module.model(Normalize("s1rtc")(decibels), modality="s1rtc").softmax(1)
    assert torch.allclose(found, expected)
    with pytest.raises(TerraFMError, match=r"s1rtc has a median of -1\d"):
        task(modalities=["s1rtc"]).predict_step({"image": decibels}, 0)


BATCH = {"image": torch.full((2, 12, SIZE, SIZE), 0.5), "label": torch.tensor([0, 1])}
NO_LABEL = {"image": BATCH["image"]}
ONE = {"modalities": ["s2l2a"]}


radar, several = partial(task, modalities=["s1rtc"]), partial(task, **ONE, task="multilabel")
pixels = partial(FineTuneSegmentation, "terrafm_tiny", depth=2, num_classes=2, decoder="linear")


@pytest.mark.parametrize(
    ("make", "settings", "batch", "said"),
    [
        (task, {}, BATCH, "Nothing says which sensor the batch's key 'image' is of"),
        (task, {}, {"image_s1": BATCH["image"]}, "holds 'image_s1', expected image_s1rtc"),
        (radar, {}, {"image_s2l2a": BATCH["image"]}, "holds 'image_s2l2a', expected image_s1rtc: add"),
        (task, {}, {"label": BATCH["label"]}, "holds no image"),
        (task, ONE, NO_LABEL, "has no 'label'"),
        (task, ONE, BATCH | {"label": torch.tensor([0, 7])}, "A label has the value 7, expected 0 to 1"),
        (task, ONE, BATCH | {"label": torch.zeros(2, 3)}, "set `task: multilabel`"),
        (several, {"num_labels": 19}, BATCH | {"label": torch.zeros(2, 43)}, r"shape \(2, 43\), but `num_labels: 19`"),
        (several, {"num_labels": 2}, BATCH | {"label": torch.tensor([[1, -1], [0, 1]])}, "value -1, expected 0 to 1"),
        (pixels, ONE, NO_LABEL, "has no 'mask'"),
        (pixels, ONE, NO_LABEL | {"mask": torch.zeros(2, 5)}, r"shape \(2, 5\)"),
        (pixels, ONE, NO_LABEL | {"mask": torch.zeros(2, 16, 16)}, "masks are 16x16 px and the images 32x32"),
        (pixels, ONE, NO_LABEL | {"mask": torch.full((2, 32, 32), 255)}, "A mask has the value 255, expected 0 to 1"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_sentence(
    make: Any, settings: dict[str, Any], batch: dict[str, Tensor], said: str
) -> None:
    module = make(**settings)
    module.trainer = Trainer(accelerator="cpu", logger=False)
    with pytest.raises(TerraFMError, match=said) as error:
        module.training_step(module.on_before_batch_transfer(batch, 0), 0)
    assert str(error.value).endswith(".")


@pytest.mark.parametrize("settings", [{"model": "terrafm_nano"}, {"model": "terrafm_small_s1rtc"}])
def test_a_checkpoint_rebuilds_its_own_encoder(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Tuned from a file of two blocks, and predicted with settings that name an encoder of another depth or width."""
    state = build_encoder("terrafm_tiny", depth=2).state_dict()
    torch.save(state, tmp_path / "two.pth")
    data = loader(samples(4, image=images(2, 4), label=torch.tensor([0, 1, 0, 1])))
    tuned, run = task(weights=tmp_path / "two.pth", depth=None, modalities=["s1rtc"]), trainer(tmp_path)
    assert all(torch.equal(tuned.model.state_dict()[name], tensor) for name, tensor in state.items())
    run.fit(tuned, data)
    run.save_checkpoint(tmp_path / "tuned.ckpt")
    other = task(depth=None, modalities=["s1rtc"], **settings)
    expected = torch.cat(run.predict(tuned, data))
    assert torch.equal(torch.cat(trainer(tmp_path).predict(other, data, ckpt_path=tmp_path / "tuned.ckpt")), expected)
    assert (len(other.model.blocks), other.hparams["depth"]) == (2, 2)
    loaded = FineTuneClassification.load_from_checkpoint(tmp_path / "tuned.ckpt").eval()
    assert torch.equal(torch.cat(trainer(tmp_path).predict(loaded, data)), expected)
