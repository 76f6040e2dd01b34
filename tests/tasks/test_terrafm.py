import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from tiny_terrafm import loader, make_batch, tiny_terrafm, trainer
from torch.utils._python_dispatch import TorchDispatchMode

from terrafm_tg.callbacks import AtomicCheckpointIO
from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks import TerraFM
from terrafm_tg.transforms.augment import NO_CHANGE

pytestmark = pytest.mark.filterwarnings("ignore")


class Watch(Callback):
    """Notes what a run did, step by step."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.dtypes: set[torch.dtype] = set()
        self.groups: list[dict[str, dict[str, float]]] = []
        self.heads: list[torch.Tensor] = []
        self.logged: list[dict[str, float]] = []

    def on_fit_start(self, trainer, pl_module) -> None:
        for head in (pl_module.student_head, pl_module.teacher_head):
            head.register_forward_hook(lambda module, x, y: self.dtypes.add(y.dtype))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        self.losses.append(outputs["loss"].item())
        self.dtypes.add(outputs["loss"].dtype)
        self.heads.append(pl_module.student_head.last_layer.weight_v.detach().clone())
        groups = trainer.optimizers[0].param_groups
        self.groups.append({g["name"]: {k: g[k] for k in ("lr", "weight_decay")} for g in groups})
        self.logged.append({k: v.item() for k, v in trainer.callback_metrics.items()})


def fit(task: TerraFM, batches: list[Any], folder: Path, **settings: Any) -> Watch:
    watch = Watch()
    run = trainer(folder, **({"callbacks": [watch], "log_every_n_steps": 1} | settings))
    run.fit(task, loader(batches))
    return watch


def weights(task: TerraFM) -> torch.Tensor:
    modules = (task.student, task.student_head, task.teacher, task.teacher_head, task.center)
    return torch.cat([v.detach().float().flatten() for m in modules for v in m.state_dict().values()])


def test_the_student_learns_what_the_teacher_says(tmp_path: Path) -> None:
    """With a teacher and centres that stand still, the divergence between the two falls."""
    task = tiny_terrafm(teacher_momentum=(1.0, 1.0), momentum=1.0, lr=3e-3)
    watch = fit(task, [make_batch(4)], tmp_path, max_epochs=25)
    kl = [logged["train/kl"] for logged in watch.logged]
    assert sum(kl[-3:]) < 0.5 * sum(kl[:3])
    assert sum(watch.losses[-3:]) < sum(watch.losses[:3])


def test_bf16_mixed_trains_with_logits_loss_and_centers_in_float32(tmp_path: Path) -> None:
    task = tiny_terrafm()
    watch = fit(task, [make_batch(4), make_batch(4, 4)], tmp_path, precision="bf16-mixed")
    assert watch.dtypes == {torch.float32}
    assert torch.isfinite(torch.tensor(watch.losses)).all()
    assert task.center.centers.dtype == torch.float32
    assert task.center.centers[0].abs().max() > 0


def test_koleo_is_minus_the_log_of_the_distance_to_the_nearest_other_tile(tmp_path: Path) -> None:
    task = tiny_terrafm(koleo=0.3)
    tokens: list[np.ndarray] = []
    task.koleo.register_forward_hook(lambda module, x, y: tokens.append(x[0].detach().double().numpy()))
    watch = fit(task, [make_batch(4)], tmp_path, max_steps=1)
    expected = []
    for crop in tokens:
        unit = crop / np.linalg.norm(crop, axis=1, keepdims=True)
        away = np.linalg.norm(unit[:, None] - unit, axis=-1) + 9 * np.eye(len(unit))
        expected.append(-np.log(away.min(axis=1)).mean())
    assert [crop.shape for crop in tokens] == [(4, 192)] * 2
    assert watch.losses[0] - watch.logged[0]["train/loss"] == pytest.approx(0.3 * np.mean(expected), rel=1e-4)


def test_optimizer_follows_the_schedules_and_teacher_the_student(tmp_path: Path) -> None:
    task = tiny_terrafm(freeze_last_layer_epochs=1, lr=2e-3, warmup_epochs=1)
    start = {name: p.clone() for name, p in task.teacher.named_parameters()}
    watch = fit(task, [make_batch(4), make_batch(4, 4)], tmp_path, max_epochs=3)
    for step, groups in enumerate(watch.groups):
        values = task.schedules.at(step)
        assert groups["decay"] == {"lr": values.lr, "weight_decay": values.weight_decay}
        assert groups["no_decay"] == {"lr": values.lr, "weight_decay": 0.0}
        logged = {k.removeprefix("schedule/"): v for k, v in watch.logged[step].items() if "schedule" in k}
        assert logged == pytest.approx(values._asdict())
    assert torch.equal(watch.heads[0], watch.heads[1])
    assert not torch.equal(watch.heads[1], watch.heads[2])
    # After n steps the teacher is its start and each student so far; here it is checked for the first of them.
    again = tiny_terrafm(freeze_last_layer_epochs=1, lr=2e-3, warmup_epochs=1)
    fit(again, [make_batch(4)], tmp_path, max_steps=1)
    momentum = again.schedules.at(0).teacher_momentum
    for (name, teacher), student in zip(again.teacher.named_parameters(), again.student.parameters(), strict=True):
        torch.testing.assert_close(teacher, momentum * start[name] + (1 - momentum) * student.detach())


def test_teacher_has_no_drop_path_gradient_or_training_mode(tmp_path: Path) -> None:
    task = tiny_terrafm(drop_path=0.3)
    fit(task, [make_batch(2)], tmp_path)
    task.train()
    assert task.student.training
    assert not any(module.training for module in [*task.teacher.modules(), *task.teacher_head.modules()])
    assert not any(p.requires_grad for p in [*task.teacher.parameters(), *task.teacher_head.parameters()])
    rates = [type(block.drop_path1).__name__ for block in task.teacher.blocks]
    assert rates == ["Identity", "Identity"]
    assert type(task.student.blocks[-1].drop_path1).__name__ == "DropPath"


class NoWaiting(TorchDispatchMode):
    """Fails on each operation that reads a value of a tensor, or whose result's size depends on one."""

    names = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "unique", "equal.default")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = str(func).removeprefix("aten.")
        assert not name.startswith(self.names), f"{name} waits for the device"
        if name.startswith("index.Tensor"):
            assert all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in args[1])
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("every", [1, 50])
def test_a_training_step_does_not_wait_for_the_device(tmp_path: Path, every: int) -> None:
    """Forward, loss, backward, clipping, teacher and centres; the views have a test of their own."""
    within, task = ExitStack(), tiny_terrafm()

    def enter(*_: Any) -> None:
        within.enter_context(NoWaiting())

    def leave(*_: Any) -> None:
        within.close()

    step = LambdaCallback(on_train_batch_start=enter, on_train_batch_end=leave, on_exception=leave)
    task.multicrop.register_forward_pre_hook(leave)
    task.multicrop.register_forward_hook(enter)
    fit(task, [make_batch(2)], tmp_path, callbacks=[step], log_every_n_steps=every)
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        torch.ones(1).item()


@pytest.mark.parametrize("clip", [None, 1e-3])
def test_clips_each_gradient(tmp_path: Path, clip: float | None) -> None:
    task, norms = tiny_terrafm(clip_grad=clip), []
    task.on_before_zero_grad = lambda optimizer: norms.extend(
        p.grad.norm().item() for p in task.student.parameters() if p.grad is not None
    )
    fit(task, [make_batch(2), make_batch(2, 2)], tmp_path)
    assert (max(norms) <= 1.001e-3) == (clip is not None)


def checkpoint(folder: Path, **settings: Any) -> tuple[Path, TerraFM]:
    task = tiny_terrafm(**settings)
    run = trainer(folder, plugins=[AtomicCheckpointIO()])
    run.fit(task, loader([make_batch(2)]))
    run.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt", task


def resume(path: Path, **settings: Any) -> TerraFM:
    task = tiny_terrafm(**settings)
    run = trainer(path.parent, max_epochs=2, plugins=[AtomicCheckpointIO()])
    run.fit(task, loader([make_batch(2)]), ckpt_path=path)
    return task


def test_checkpoint_is_plain_and_loads_again(tmp_path: Path) -> None:
    path, task = checkpoint(tmp_path)
    content = torch.load(path, weights_only=True)
    assert torch.equal(content["state_dict"]["center.centers"], task.center.centers)
    assert content["state_dict"]["center.frequent"].nonzero().flatten().tolist() == [0, 2]
    assert content["hyper_parameters"]["head"]["prototypes"] == 64
    loaded = TerraFM.load_from_checkpoint(path, map_location="cpu")
    torch.testing.assert_close(weights(loaded), weights(task), rtol=0, atol=0)
    image = torch.rand(2, 2, 48, 48)
    torch.testing.assert_close(loaded(image, modality="s1rtc"), task.teacher(image, modality="s1rtc"))


def test_each_setting_that_differs_from_the_checkpoint_is_named(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    with pytest.raises(TerraFMError) as error:
        resume(path, lr=0.5, alpha=0.5, global_scale=[0.25, 1.0], compile=False)
    text = str(error.value)
    assert "optimizer.lr (0.001 in the checkpoint, 0.5 now)" in text
    assert "center.alpha (0.8 in the checkpoint, 0.5 now)" in text
    assert "global_scale" not in text


def test_settings_of_the_machine_may_differ_and_a_longer_run_is_named(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    with pytest.warns(UserWarning, match=r"schedules are not the checkpoint's: steps \(1 in the checkpoint, 2 now\)"):
        task = resume(path, grad_checkpointing=True)
    assert task.global_step == 2


def test_a_checkpoint_of_another_model_gives_one_sentence(tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path)
    with pytest.raises(TerraFMError, match="depth \\(2 in the checkpoint, 3 now\\)"):
        resume(path, depth=3)
    content = torch.load(path, weights_only=True)
    content["state_dict"] = {"backbone.weight": torch.zeros(3)}
    torch.save(content, path)
    with pytest.raises(TerraFMError, match="was not written by TerraFM's pretraining"):
        resume(path)


def test_validation_embeds_each_sensor_and_all_and_logs_classes(tmp_path: Path) -> None:
    task, outputs = tiny_terrafm(), []
    run = trainer(tmp_path, LambdaCallback(on_validation_batch_end=lambda *given: outputs.append(given[2])))
    run.validate(task, [loader([make_batch(6)]), loader([make_batch(4, 6, sensors=("s2l2a",))])], verbose=False)
    bank, queries = outputs
    assert set(bank["embeddings"]) == {"s1rtc", "s2l1c", "s2l2a", "fused"}
    assert set(queries["embeddings"]) == {"s2l2a", "fused"}
    assert bank["embeddings"]["fused"].shape == (6, 192)
    assert bank["sample_idx"]["s1rtc"].tolist() == list(range(6))
    assert (bank["dataloader_idx"], queries["dataloader_idx"]) == (0, 1)
    assert bank["land_cover"].tolist() == [0, 1, 2, 3, 4, 0]
    whole = task.multicrop.whole(make_batch(6), 48, ["s1rtc"])
    with torch.no_grad():
        expected = task.teacher(whole.images["s1rtc"], modality="s1rtc")
    torch.testing.assert_close(bank["embeddings"]["s1rtc"], expected)
    assert {"val/entropy/tree_cover", "val/spread/tree_cover", "val/entropy/built-up"} <= set(run.callback_metrics)
    assert 0 <= run.callback_metrics["val/spread/tree_cover"] <= 1


def test_logs_what_shows_health(tmp_path: Path) -> None:
    logged = fit(tiny_terrafm(), [make_batch(4)], tmp_path).logged[0]
    assert logged["train/loss"] == pytest.approx(logged["train/kl"] + logged["train/teacher_entropy"], rel=1e-5)
    assert {"train/embedding_std", "train/effective_rank", "schedule/lr", "use/s1rtc"} <= set(logged)
    assert all(0 < logged[f"use/{name}"] < 1 for name in ("s1rtc", "s2l1c", "s2l2a"))


def test_stochastic_depth_and_views_depend_on_the_draw_alone(tmp_path: Path) -> None:
    first, second = tiny_terrafm(drop_path=0.5), tiny_terrafm(drop_path=0.5)
    losses = fit(first, [make_batch(4)], tmp_path).losses
    torch.rand(17)
    assert fit(second, [make_batch(4)], tmp_path).losses == losses
    third = tiny_terrafm(drop_path=0.5, seed=1)
    assert fit(third, [make_batch(4)], tmp_path).losses != losses


def test_ablation_settings_train(tmp_path: Path) -> None:
    one = tiny_terrafm(modalities=["s2l2a"], alpha=1.0, frequent_classes=None, local_crops=0)
    watch = fit(one, [make_batch(2)], tmp_path)
    assert watch.logged[0]["use/s2l2a"] == 1
    single = tiny_terrafm(fuse=False, augmentation=NO_CHANGE)
    logged = fit(single, [make_batch(4)], tmp_path).logged[0]
    assert sum(logged[f"use/{name}"] for name in ("s1rtc", "s2l1c", "s2l2a")) == pytest.approx(1)


@pytest.mark.parametrize(
    ("settings", "of_trainer", "says"),
    [
        ({"alpha": 1.5}, {}, "`center.alpha` is 1.5"),
        ({"teacher_temp": (0.06, 0.04)}, {}, "`schedule.teacher_temp`"),
        ({"modalities": ["s3"]}, {}, "'s3'"),
        ({"model": "terrafm_huge"}, {}, "terrafm_huge"),
        ({"frequent_classes": ["Jungle"]}, {}, "'Jungle'"),
        ({"frequent_classes": None}, {}, "land cover of every tile is unknown"),
        ({"lr_batch": 256}, {}, "no batch_size"),
        ({}, {"gradient_clip_val": 3.0}, "gradient_clip_val"),
        ({}, {"precision": "bf16-true"}, "'bf16-true'.*bf16-mixed, 16-mixed, 32-true"),
        ({}, {"precision": "64-true"}, "64-true"),
        ({}, {"max_epochs": -1}, "max_epochs"),
    ],
)
def test_an_impossible_setting_gives_one_sentence(
    tmp_path: Path, settings: dict[str, Any], of_trainer: dict[str, Any], says: str
) -> None:
    with pytest.raises(TerraFMError, match=says):
        fit(tiny_terrafm(**settings), [make_batch(2)], tmp_path, **of_trainer)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"global_size": 50}, "`crops.global_size` is 50: it must be a multiple of 16"),
        ({"drop_path": 1.0}, "`drop_path` is 1.0: it must be at least 0 and below 1"),
        ({"teacher_momentum": (0.9, 1.1)}, r"`schedule.teacher_momentum` is \[0.9, 1.1\]: each of its two numbers"),
        ({"student_temp": 0.0}, "`student_temp` is 0.0: it must be above 0"),
        ({"prototypes": 0}, "`head.prototypes` is 0: it must be at least 1"),
        ({"clip_grad": -1.0}, "`optimizer.clip_grad`"),
    ],
)
def test_an_impossible_number_is_named_before_anything_is_read(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(TerraFMError, match=says):
        tiny_terrafm(**settings)


def test_an_unsuitable_batch_gives_one_sentence(tmp_path: Path) -> None:
    nowhere = make_batch(2)
    nowhere["position"] = torch.full((2,), -1)
    for batch, says in ((make_batch(1), "batch of one"), (nowhere, "`position`")):
        with pytest.raises(TerraFMError, match=says):
            fit(tiny_terrafm(), [batch], tmp_path)


def test_starts_without_warnings_that_mean_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tiny_terrafm(), [make_batch(2)], tmp_path)
    texts = [str(warning.message) for warning in caught]
    assert not [text for text in texts if "weight_norm" in text or "eval mode at the start" in text]
