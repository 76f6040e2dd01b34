"""Training with images: fine-tuning and frozen UPerNet, what they change, and what an interrupted sweep keeps."""

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Trainer
from safetensors.torch import load_file
from torch import nn
from torch.utils.data import DataLoader, default_collate

from data.labelled import make_copernicus
from data.tiny_bench import open_splits, tiny_task
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.encoders import ModelSpec, UnsupportedTaskError, load_encoder
from terrafm_tg.evaluation.protocols import Context, Splits, make_protocol
from terrafm_tg.evaluation.protocols.finetune import linear_head, patch_head
from terrafm_tg.tasks.finetune.head_task import HeadTask, loss_of
from terrafm_tg.tasks.finetune.metrics import NotFiniteError
from terrafm_tg.transforms.orient import orient

#: A transformer of 64 channels and 6 blocks.
SMALL = ModelSpec("timm/test_vit", size=32)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Splits]:
    """A task of each kind, and one of two dates."""
    names = ("EuroSAT-S2", "BigEarthNet-S2", "Cloud-S2", "Flood-S1")
    root = {name: tmp_path_factory.mktemp(name) for name in names}
    return {name: open_splits(make_copernicus(root[name], name, n=8, size=32), name) for name in names}


def finetune(**settings: Any) -> Any:
    return make_protocol(
        "finetune", **({"rates": [1e-3], "epochs": 1, "batch_size": 4, "effective_batch": 8} | settings)
    )


def headline(scores: list[Any]) -> Any:
    (best,) = (score for score in scores if score.headline)
    return best


def small_task(splits: Splits, rate: float = 1e-3, **settings: Any) -> HeadTask:
    encoder = load_encoder(SMALL, splits.train.task, splits.train)
    dense = splits.train.task.kind == "segmentation"
    head = (patch_head if dense else linear_head)(encoder, splits.train)
    return HeadTask(encoder, head, encoder.task, partial(finetune().optimize, encoder.task, rate), **settings)


def test_the_rate_rises_for_a_tenth_and_falls_as_a_cosine() -> None:
    optimizer, schedule = finetune(min_lr=0.1).optimize(tiny_task({}), 1.0, [nn.Parameter(torch.ones(1))], 100)
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert [rates[0], rates[4], max(rates)] == pytest.approx([0.1, 0.5, 1.0])
    assert [rates[55], rates[-1]] == pytest.approx([0.55, 0.1], abs=0.02)


@pytest.mark.parametrize(
    ("name", "metric", "settings"),
    [("EuroSAT-S2", "oa", {}), ("BigEarthNet-S2", "map", {}), ("Cloud-S2", "miou", {}), ("Flood-S1", "miou", {}),
     ("EuroSAT-S2", "oa", {"precision": "bf16-mixed"})],
)  # fmt: skip
def test_every_kind_of_task(
    data: dict[str, Splits], tmp_path: Path, name: str, metric: str, settings: dict[str, str]
) -> None:
    best = headline(finetune(**settings).run(SMALL, data[name], Context(folder=tmp_path)))
    assert best.metric == metric
    assert 0 <= best.score <= 100
    assert best.settings.keys() == {"lr", "val", "epoch", "tried"}


def test_fine_tuning_learns_and_trains_the_encoder(data: dict[str, Splits], tmp_path: Path) -> None:
    splits = data["Cloud-S2"]
    scores = finetune(rates=[3e-3], epochs=15, decoder="upernet", width=16).run(SMALL, splits, Context(folder=tmp_path))
    assert headline(scores).score > 30  # a constant answer: below 10
    before = load_encoder(SMALL, splits.train.task, splits.train).state_dict()
    (file,) = tmp_path.rglob("best.safetensors")
    after = load_file(file)
    changed = [name for name, value in before.items() if not torch.equal(value, after[f"encoder.{name}"])]
    assert any("blocks.0.attn.qkv.weight" in name for name in changed)
    assert any("patch_embed" in name for name in changed)


def test_frozen_upernet_learns_and_leaves_the_encoder(data: dict[str, Splits], tmp_path: Path) -> None:
    protocol = make_protocol("upernet", epochs=15, batch_size=4, width=16, rates=[1e-2])
    scores = protocol.run(SMALL, data["Cloud-S2"], Context(folder=tmp_path))
    assert headline(scores).score > 40  # a constant answer: below 10
    task = small_task(data["Cloud-S2"])
    before = {name: value.clone() for name, value in task.encoder.state_dict().items()}
    finetune().fit(task, data["Cloud-S2"], Context())
    assert all(torch.equal(value, before[name]) for name, value in task.encoder.state_dict().items())
    assert not task.encoder.training
    assert not any(name.startswith("encoder") for name in task.copy_learnt())


def test_features_of_both_dates_count(data: dict[str, Splits], tmp_path: Path) -> None:
    splits = data["Flood-S1"]
    task = small_task(splits)
    batch = default_collate([splits.train[0]])
    assert batch["image_s1rtc"].ndim == 5
    with torch.no_grad():
        first = task(batch)[0]
        swapped = task(batch | {"image_s1rtc": batch["image_s1rtc"].flip(1)})[0]
    assert first.shape == (1, 3, *batch["mask"].shape[-2:])
    assert not torch.allclose(first, swapped)


def test_results_do_not_depend_on_workers_and_interruption(data: dict[str, Splits], tmp_path: Path) -> None:
    """A sweep that was stopped after its first rate, or lost its best weights, ends with the same scores."""
    splits, protocol = data["Cloud-S2"], finetune(rates=[1e-3, 1e-2], epochs=2)
    torch.manual_seed(1)
    scores = protocol.run(SMALL, splits, Context(folder=tmp_path / "a", seed=3))
    torch.manual_seed(2)
    assert protocol.run(SMALL, splits, Context(folder=tmp_path / "b", seed=3, num_workers=2)) == scores
    assert protocol.run(SMALL, splits, Context(folder=tmp_path / "c", seed=4)) != scores
    (folder,) = (tmp_path / "a").iterdir()
    assert sorted(file.name for file in folder.iterdir()) == ["best.safetensors", "lr_0.001.json", "lr_0.01.json"]
    (folder / "lr_0.01.json").unlink()
    whole = (folder / "best.safetensors").read_bytes()
    (folder / "best.safetensors").unlink()
    (folder / "best.safetensors").write_bytes(whole[:1000])
    written = (folder / "lr_0.001.json").stat().st_mtime_ns
    assert protocol.run(SMALL, splits, Context(folder=tmp_path / "a", seed=3)) == scores
    assert (folder / "lr_0.001.json").stat().st_mtime_ns == written  # a finished rate is not trained again


def test_a_rate_that_diverges_is_left_out(data: dict[str, Splits], tmp_path: Path) -> None:
    splits = data["EuroSAT-S2"]
    with pytest.warns(UserWarning, match=r"Learning rate 1e\+30 is left out: The loss is nan|logits are NaN"):
        best = headline(finetune(rates=[1e30, 1e-3], epochs=3).run(SMALL, splits, Context(folder=tmp_path)))
    assert best.settings["lr"] == 1e-3
    assert best.settings["tried"]["1e+30"] is None
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(NotFiniteError, match=r"every learning rate \(1e\+30\)"),
    ):
        finetune(rates=[1e30], epochs=3).run(SMALL, splits, Context(folder=tmp_path))


def test_the_best_epoch_counts(data: dict[str, Splits]) -> None:
    """A rate that is far too high at the end: what was best on the way is kept."""
    task = small_task(data["Cloud-S2"], train_encoder=True)
    values: list[float] = []
    end = task.on_validation_epoch_end

    def noting() -> None:
        end()
        values.append(task.metrics.value())

    task.on_validation_epoch_end = noting
    finetune(epochs=6).fit(task, data["Cloud-S2"], Context())
    assert task.best == max(values)
    assert task.best_epoch == values.index(max(values))
    task.load_learnt(task.learnt)
    task.on_validation_epoch_start()
    with torch.no_grad():
        for batch in DataLoader(data["Cloud-S2"].val, 4):
            task.eval().validation_step(batch, 0)
    assert task.metrics.value() == pytest.approx(task.best)


@pytest.mark.parametrize("augment", ["none", "flips", "turns"])
def test_image_and_mask_turn_alike(data: dict[str, Splits], augment: str) -> None:
    """An image that shows its mask still does, and only in ways that the setting allows."""
    splits = data["Cloud-S2"]
    task = small_task(splits, augment=augment, seed=5)
    task.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    task.trainer.training = True
    mask = torch.randint(4, (1, 32, 32)).repeat(40, 1, 1)
    turned = task.on_before_batch_transfer({"image_s2l1c": mask[:, None].float(), "mask": mask}, 0)
    assert torch.equal(turned["image_s2l1c"][:, 0].long(), turned["mask"])
    ways = {way for x in turned["mask"] for way in range(8) if torch.equal(x, orient(mask[:1], torch.tensor([way]))[0])}
    assert ways == {"none": {0}, "flips": {0, 2, 4, 6}, "turns": set(range(8))}[augment]


def test_accumulated_batches_step_as_one(data: dict[str, Splits]) -> None:
    """Two batches of 4 change the weights as one of 8."""
    learnt = []
    for size in (8, 4):
        torch.manual_seed(0)
        task = small_task(data["EuroSAT-S2"], train_encoder=True, augment="none")
        finetune(epochs=2, batch_size=size).fit(task, data["EuroSAT-S2"], Context())
        learnt.append({name: value.clone() for name, value in task.state_dict().items()})
    for name, value in learnt[0].items():
        torch.testing.assert_close(value, learnt[1][name], atol=2e-4, rtol=1e-3)


def test_loss_leaves_out_what_is_ignored(data: dict[str, Splits]) -> None:
    task = data["Flood-S1"].train.task
    assert task.ignore_index == 3
    logits, mask = torch.randn(2, 3, 4, 4), torch.randint(4, (2, 4, 4))
    known = mask != 3
    expected = nn.functional.cross_entropy(logits.movedim(1, -1)[known], mask[known])
    torch.testing.assert_close(loss_of(task, logits, mask), expected)
    assert loss_of(task, logits, torch.full_like(mask, 3)) == 0
    several = data["BigEarthNet-S2"].train.task
    labels = torch.randint(2, (5, 19))
    torch.testing.assert_close(
        loss_of(several, torch.zeros(5, 19), labels), nn.MultiLabelSoftMarginLoss()(torch.zeros(5, 19), labels)
    )


def test_errors(data: dict[str, Splits], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedTaskError, match="pixel-statistics has no parameters"):
        finetune().run(ModelSpec("pixel-statistics"), data["Cloud-S2"], Context(folder=tmp_path))
    for name in ("upernet", "segmentation-probe"):
        with pytest.raises(UnsupportedTaskError, match="takes segmentation, and EuroSAT-S2 is of kind multiclass"):
            make_protocol(name).run(SMALL, data["EuroSAT-S2"], Context(folder=tmp_path))
    splits = data["EuroSAT-S2"]
    kind = type(splits.train)
    read = kind.__getitem__
    monkeypatch.setattr(kind, "__getitem__", lambda *args: read(*args) | {"label": torch.tensor(99)})
    with pytest.raises(TerraFMError, match="A target has the value 99, expected 0 to 9"):
        finetune().run(SMALL, splits, Context(folder=tmp_path))
