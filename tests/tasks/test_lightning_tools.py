"""Lightning's own tools on the task: copies, averages of weights, the Tuner, early checkpoints."""

import copy
import warnings
from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import LambdaCallback, StochasticWeightAveraging
from lightning.pytorch.tuner import Tuner
from tiny_terrafm import loader, make_batch, make_sample, tiny_terrafm, trainer
from torch.utils.data import DataLoader

from terrafm_tg.datasets.tiles.dataset import collate_tiles

pytestmark = pytest.mark.filterwarnings("ignore")
BATCHES = [make_batch(2), make_batch(2, 2)]


def test_a_copy_is_a_task_of_its_own(tmp_path: Path) -> None:
    task = tiny_terrafm()
    trainer(tmp_path).fit(task, loader(BATCHES))
    twin = copy.deepcopy(task)
    for (name, own), copied in zip(task.state_dict().items(), twin.state_dict().values(), strict=True):
        assert torch.equal(own, copied), name
    x = torch.rand(2, 192)
    torch.testing.assert_close(twin.student_head(x), task.student_head(x), rtol=0, atol=0)
    before = {name: p.clone() for name, p in task.named_parameters()}
    trainer(tmp_path).fit(twin, loader(BATCHES))
    assert all(torch.equal(p, before[name]) for name, p in task.named_parameters())
    assert not torch.equal(twin.student.cls_token, task.student.cls_token)


def test_weights_are_averaged_at_the_rate_of_the_callback(tmp_path: Path) -> None:
    task, rates = tiny_terrafm(), []
    task.on_before_zero_grad = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    average = StochasticWeightAveraging(swa_lrs=1e-5, swa_epoch_start=1, annealing_epochs=1)
    trainer(tmp_path, max_epochs=4, callbacks=[average]).fit(task, loader(BATCHES))
    assert rates[-1] == pytest.approx(1e-5)
    assert rates[1] > 1e-5
    assert all(torch.isfinite(p).all() for p in task.parameters())


def test_the_tuner_tries_learning_rates(tmp_path: Path) -> None:
    task, rates = tiny_terrafm(), []
    task.on_before_zero_grad = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])
    tuner = Tuner(trainer(tmp_path))
    found = tuner.lr_find(task, loader(BATCHES * 10), min_lr=1e-6, max_lr=1e-2, num_training=8)
    assert rates == sorted(rates)
    assert rates[-1] > 100 * rates[0]
    assert task.hparams["optimizer"]["lr"] == (found.suggestion() or 1e-3)


def test_the_tuner_tries_batches(tmp_path: Path) -> None:
    task = tiny_terrafm()
    task.batch_size = 2
    tiles = [make_sample(position) for position in range(8)]
    task.train_dataloader = lambda: DataLoader(tiles, task.batch_size, collate_fn=collate_tiles)
    task.val_dataloader = lambda: []  # noqa: PIE807
    run = trainer(tmp_path)
    assert Tuner(run).scale_batch_size(task, mode="power", steps_per_trial=1, init_val=2, max_trials=2) == 4


def test_a_checkpoint_before_the_first_step(tmp_path: Path) -> None:
    early = LambdaCallback(on_fit_start=lambda run, task: run.save_checkpoint(tmp_path / "early.ckpt"))
    trainer(tmp_path, early).fit(tiny_terrafm(), loader(BATCHES))
    again = tiny_terrafm()
    trainer(tmp_path).fit(again, loader(BATCHES), ckpt_path=tmp_path / "early.ckpt")
    assert again.global_step == 2


def test_settings_of_numpy_and_paths_stay_loadable(tmp_path: Path) -> None:
    import numpy as np

    task = tiny_terrafm(lr=np.float64(1e-3), prototypes=np.int64(64), global_scale=np.array([0.25, 1.0]))
    run = trainer(tmp_path)
    run.fit(task, loader(BATCHES))
    run.save_checkpoint(tmp_path / "last.ckpt")
    settings = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    assert (type(settings["optimizer"]["lr"]), type(settings["head"]["prototypes"])) == (float, int)
    assert settings["crops"]["global_scale"] == [0.25, 1.0]


def test_the_process_keeps_its_settings(tmp_path: Path) -> None:
    """Filters of warnings and kernels of attention are the caller's again after a run."""
    torch.backends.cuda.enable_cudnn_sdp(True)
    before = list(warnings.filters)
    trainer(tmp_path).fit(tiny_terrafm(), loader(BATCHES))
    assert [entry for entry in warnings.filters if entry not in before] == []
    assert torch.backends.cuda.cudnn_sdp_enabled()
