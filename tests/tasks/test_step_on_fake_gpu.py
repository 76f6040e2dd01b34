"""A training step over tensors that say they lie on a GPU: none waits for it, and none lies elsewhere.

Fake tensors have shapes, types and devices, but no values: an operation that would read one, or whose result's size
depends on one, fails, on a machine without a GPU too. The backward pass needs one; `test_terrafm.py` watches it on the
processor.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_terrafm import make_batch, tiny_terrafm, trainer
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from terrafm_tg.tasks import TerraFM
from terrafm_tg.tasks.pretrain.optimization import Schedules, clip_each_, ema_

pytestmark = pytest.mark.filterwarnings("ignore")


class OneDevice(TorchDispatchMode):
    """Fails where an operation meets a tensor of another device: a copy, for which one of the two waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        met = {x.device.type for x in tree_leaves((args, kwargs, out)) if isinstance(x, Tensor)}
        assert met <= {"cuda"}, f"{func} meets tensors on {met}"
        return out


class Silent(TerraFM):
    """Keeps what it logs, since there is no Trainer's loop around, and says where it lies."""

    device = torch.device("cpu")

    def log(self, name: str, value: Any, **_: Any) -> None:
        self.seen = getattr(self, "seen", {}) | {name: value}

    def log_dict(self, values: dict[str, Any], **_: Any) -> None:
        self.seen |= values


def on_gpu(value: Any) -> Any:
    """The same shapes and types on a GPU that is not there."""
    return torch.empty(value.shape, dtype=value.dtype, device="cuda") if isinstance(value, Tensor) else value


def move(task: Silent) -> None:
    """All of its parameters and buffers."""
    task.device = torch.device("cuda")
    for module in task.modules():
        for name, parameter in module.named_parameters(recurse=False):
            module.register_parameter(name, nn.Parameter(on_gpu(parameter), parameter.requires_grad))
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, on_gpu(buffer))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"drop_path": 0.5, "koleo": 0.1, "contrast": {"weight": 1.0}},
        {"fuse": False, "local_crops": 0},
        {"modalities": ["s1rtc"]},
    ],
)
def test_it_meets_no_other_device_and_reads_no_value(tmp_path: Path, settings: dict[str, Any]) -> None:
    task = tiny_terrafm(Silent, **settings).train()
    task.trainer = trainer(tmp_path, log_every_n_steps=1)
    task.trainer.training = True
    batch = task.on_before_batch_transfer(make_batch(2, sensors=task.sensors), 0)
    task.schedules = Schedules(8, (1e-3, 1e-6), 2, (0.04, 0.4), (0.99, 1.0), (0.04, 0.06), 2, 0)
    with FakeTensorMode():
        move(task)
        batch = tree_map(on_gpu, batch)
        with OneDevice():
            loss = task.training_step(batch, 0)
            task.center.update()
            for parameter in task.student.parameters():
                parameter.grad = torch.empty_like(parameter)
            task.stems.center_gradients_()
            clip_each_(task.student.parameters(), 3.0)
            ema_(task.teacher.parameters(), task.student.parameters(), 0.99)
    assert (loss.device.type, loss.dtype, loss.shape) == ("cuda", torch.float32, ())
    assert {value.device.type for value in task.seen.values()} == {"cuda"}
    assert {"train/loss", "train/kl", "schedule/lr"} <= task.seen.keys()


def test_the_doubles_notice() -> None:
    with FakeTensorMode():
        there, here = torch.empty(3, device="cuda"), torch.empty(3)
        with pytest.raises(DataDependentOutputException):
            there.sum().item()
        with pytest.raises(AssertionError, match="meets tensors on"), OneDevice():
            here.to("cuda")
