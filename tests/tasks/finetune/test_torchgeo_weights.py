"""Whatever task has loaded weights: every tensor is the file's, and a frozen encoder stays so while the head learns."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchgeo.tasks import (
    BaseTask,
    ChangeDetection,
    Classification,
    PixelwiseRegression,
    Regression,
    SemanticSegmentation,
)

from data import published_weights
from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks import TerraFMPixelwiseRegression, TerraFMSegmentation
from terrafm_tg.tasks.finetune.optimization import encoder_of

Build = Callable[..., BaseTask]


def named(kind: type[BaseTask], model: str, channels: int = 12, /, **settings: object) -> Build:
    """A task of a tiny TerraFM that is still to be given weights."""
    return partial(kind, model=model, in_channels=channels, **settings)


OPTICS = {"backbone": "terrafm_tiny_s2l1c"}
#: The endings of TorchGeo's names, with the channels that each reads.
ENDINGS = {
    "": 12, "_s1rtc": 2, "_s2l1c": 12, "_rgb": 3, "_rgbn": 4, "_s2l1c_10": 10, "_s2l2a_10": 10, "_s2l1c_13": 13,
    "_eurosat": 13,
}  # fmt: skip
TASKS: dict[str, Build] = {
    **{
        f"classification{ending}": named(Classification, f"terrafm_tiny{ending}", channels, num_classes=3)
        for ending, channels in ENDINGS.items()
    },
    "classification-radar": named(Classification, "terrafm_tiny", 2, task="multilabel", num_labels=4, loss="bce"),
    "regression": named(Regression, "terrafm_tiny_s2l2a"),
    "pixelwise": named(PixelwiseRegression, "upernet", **OPTICS),
    "pixelwise-linear": named(TerraFMPixelwiseRegression, "linear", **OPTICS),
    **{
        f"segmentation-{head}": named(SemanticSegmentation, head, num_classes=3, **OPTICS)
        for head in ("upernet", "unet", "segformer")
    },
    **{f"ours-{head}": named(TerraFMSegmentation, head, num_classes=3, **OPTICS) for head in ("unet", "dpt", "linear")},
    "ours-bands": named(
        TerraFMSegmentation, "upernet", 2, backbone="terrafm_tiny", modality="s2l2a", bands=["B08", "B04"],
        num_classes=3,
    ),
    **{
        f"change-{model}": named(ChangeDetection, model, 2, backbone="terrafm_tiny_s1rtc")
        for model in ("fcsiamdiff", "fcsiamconc", "changevit", "unet", "upernet", "segformer")
    },
}  # fmt: skip


def assert_loaded(task: BaseTask, published: dict[str, Tensor]) -> None:
    """Every tensor of the file is the encoder's."""
    own = encoder_of(task.model).state_dict()
    different = [name for name, tensor in published.items() if not torch.equal(own[name], tensor)]
    assert different == []


def batch(task: BaseTask) -> dict[str, Tensor]:
    """Two random samples of a task."""
    h, change = task.hparams, isinstance(task, ChangeDetection)
    size = (2, 2, h["in_channels"], 32, 32) if change else (2, h["in_channels"], 32, 32)
    if isinstance(task, Classification):
        labels = torch.tensor([0, 1]) if h["num_classes"] else torch.tensor([[0, 1, 0, 1], [1, 0, 0, 0]])
        return {"image": torch.rand(size), "label": labels}
    mask = torch.randint(0, 2, (2, 1, 32, 32) if change else (2, 32, 32))
    return {"image": torch.rand(size), "label": torch.rand(2, 1), "mask": mask}


@pytest.mark.parametrize("name", TASKS)
def test_loads_every_tensor_and_trains_the_head_alone(
    name: str, checkpoint: Path, published: dict[str, Tensor]
) -> None:
    torch.manual_seed(0)
    with warnings.catch_warnings(action="error", category=UserWarning):
        task = TASKS[name](weights=str(checkpoint), freeze_backbone=True)
    assert_loaded(task, published)
    encoder, head = encoder_of(task.model), getattr(task.model, "head", None)
    inside = set(encoder.parameters()) - set(head.parameters() if head is not None else ())
    assert not any(p.requires_grad for p in inside)
    learning = {n: p for n, p in task.named_parameters() if p not in inside}
    assert learning
    assert all(p.requires_grad for p in learning.values())
    if isinstance(task, Classification):
        assert set(learning) == {"model.head.weight", "model.head.bias"}
    before = {n: p.detach().clone() for n, p in learning.items()}
    task.log = lambda *args, **kwargs: None  # there is no trainer
    optimizer = torch.optim.SGD(task.parameters(), lr=0.1)
    task.training_step(batch(task), 0).backward()
    optimizer.step()
    assert any(not torch.equal(p, before[n]) for n, p in learning.items())
    assert_loaded(task, published)


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".ckpt"])
def test_ours_take_any_file(ending: str, checkpoint: Path, file: Path, published: dict[str, Tensor]) -> None:
    path = file if ending == ".pth" else checkpoint.with_suffix(ending)
    assert_loaded(TASKS["ours-linear"](weights=str(path)), published)


@pytest.mark.parametrize("source", ["ours-dpt", "segmentation-unet", "classification"])
def test_a_checkpoint_of_one_task_starts_another(
    source: str, checkpoint: Path, published: dict[str, Tensor], tmp_path: Path
) -> None:
    task = TASKS[source](weights=str(checkpoint))
    saved = {"state_dict": task.state_dict(), "hyper_parameters": {"model": task.hparams["model"]}}
    torch.save(saved, tmp_path / "last.ckpt")
    assert_loaded(TASKS["change-upernet"](weights=str(tmp_path / "last.ckpt")), published)


@pytest.mark.parametrize("name", ["segmentation-upernet", "change-unet"])
def test_a_checkpoint_without_an_encoder_says_what_to_do(name: str, tmp_path: Path) -> None:
    state = {f"teacher.{key}": p for key, p in published_weights.tiny().items()}
    torch.save({"state_dict": state, "hyper_parameters": {"model": "terrafm_tiny"}}, tmp_path / "last.ckpt")
    with pytest.raises(TerraFMError, match="run `terrafm export` on the file"):
        TASKS[name](weights=str(tmp_path / "last.ckpt"))


def test_wrong_settings_are_one_sentence(checkpoint: Path) -> None:
    with pytest.raises(TerraFMError, match="holds terrafm_tiny \\(192 wide\\), not terrafm_small"):
        TerraFMSegmentation("dpt", "terrafm_small", str(checkpoint), num_classes=2)
    with pytest.raises(TerraFMError, match="192 wide and the model 384"):
        SemanticSegmentation("unet", "terrafm_small", str(checkpoint), in_channels=12, num_classes=2)
    with pytest.raises(TerraFMError, match="Backbone 'resnet18' is unknown: use one of terrafm_nano"):
        TerraFMSegmentation("upernet", "resnet18", num_classes=2)
    with pytest.raises(TerraFMError, match="`model` is 'fcn': it must be one of upernet, unet"):
        TerraFMPixelwiseRegression("fcn", "terrafm_tiny")
    with pytest.raises(TerraFMError, match="There is no checkpoint file nowhere"):
        TerraFMSegmentation("linear", "terrafm_tiny", "nowhere.pth", num_classes=2)
    with pytest.raises(TerraFMError, match=r"no published weights of terrafm_large: pass your own"):
        TerraFMSegmentation("linear", "terrafm_large", weights="terrafm_large", num_classes=2)


@pytest.mark.parametrize("task", ["classification", "segmentation", "ours"])
def test_the_registered_name(task: str, published_file: Path, hub: Path) -> None:
    """Short name, full name and True are the file in the torch hub cache."""
    (hub / "TerraFM-B.pth").hardlink_to(published_file)
    dense = {"backbone": "terrafm_base_s2l1c", "in_channels": 12, "num_classes": 2}
    if task == "classification":
        made: BaseTask = Classification("terrafm_base_rgb", "terrafm_base", in_channels=3, num_classes=2)
    elif task == "segmentation":
        full = "TerraFM_Base_Weights.SENTINEL12_ALL_DINO"
        made = SemanticSegmentation("unet", weights=full, **dense)
    else:
        made = TerraFMSegmentation("linear", weights=True, **dense)
    assert_loaded(made, torch.load(published_file, weights_only=True, mmap=True))
