import copy
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from forked_ranks import fork_ranks
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore  # a group whose other processes are not there

from processes import start
from refusals import CONF, IN_MEMORY, refused
from terrafm_tg.cli.main import main
from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.checkpoint_io import VerifiedCheckpoints, check_writes_files
from terrafm_tg.tasks.pretrain.optimization import whole
from terrafm_tg.tasks.pretrain.sharding import (
    ShardingStrategy,
    check_strategy,
    load_optimizer_state,
    number_parameters,
    shard,
)

#: A step of the stacked overlays on processors.
WORDS = [
    *("fit", *IN_MEMORY, *(f"--config={CONF / 'hardware' / name}.yaml" for name in ("gpu8", "fsdp", "cpu"))),
    *("--data.batch_size=2", "--model.depth=1", "--trainer.callbacks=[]", "--trainer.logger=false"),
    *("--trainer.max_steps=1", "--trainer.limit_val_batches=0"),
]


def fit(rank: int, ranks: int, words: list[str]) -> None:
    """One rank of the command."""
    main(words)


def command(ranks: int, folder: Path) -> None:
    """``terrafm fit`` on so many processes, which leaves their exit codes."""
    words = [*WORDS, f"--trainer.devices={ranks}", f"--trainer.default_root_dir={folder}"]
    processes = fork_ranks(ranks, folder / "log", fit, words)
    for process in processes:
        process.join()
    (folder / "codes").write_text(str([process.exitcode for process in processes]))


@pytest.mark.parametrize("ranks", [1, 2])
def test_the_overlay_fits_any_number_of_processes(ranks: int, tmp_path: Path) -> None:
    start(command, ranks, tmp_path).join()
    assert (tmp_path / "codes").read_text() == str([0] * ranks), (tmp_path / "log_0.log").read_text()[-4000:]
    checkpoint = torch.load(next(tmp_path.rglob("*.ckpt")), weights_only=True)  # one file, of whole tensors
    assert checkpoint["state_dict"]["center.centers"].shape == (2, 256)


def test_the_older_fsdp_is_refused_with_one_sentence() -> None:
    with pytest.raises(TerraFMError, match=r"FSDPStrategy flattens parameters.*conf/hardware/fsdp\.yaml"):
        check_strategy(FSDPStrategy())
    check_strategy(ModelParallelStrategy())
    check_strategy(DDPStrategy())


def test_tensor_parallelism_is_refused() -> None:
    """Lightning's default on a machine of several GPUs."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data_parallel", "tensor_parallel"))
        with pytest.raises(TerraFMError, match="over 2 processes"):
            shard((), mesh)
    finally:
        dist.destroy_process_group()


def test_an_optimiser_reads_its_state_with_the_models_numbers() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    model[0].requires_grad_(False)
    groups = [{"params": [model[1].bias]}, {"params": [model[1].weight]}]
    one, two = torch.optim.AdamW(groups), torch.optim.AdamW([dict(group) for group in groups])
    model(torch.ones(1, 2)).sum().backward()
    one.step()
    state = number_parameters(one.state_dict(), one, model)
    assert [group["params"] for group in state["param_groups"]] == [[3], [2]]
    assert state["state"][2]["exp_avg"].shape == (2, 3)
    two.load_state_dict(state)
    for parameter in (model[1].bias, model[1].weight):
        assert torch.equal(two.state[parameter]["exp_avg"], one.state[parameter]["exp_avg"])


def test_shares_go_on_from_a_state_without_that_of_a_frozen_layer() -> None:
    """As if it had been trained without shares all the time; also before the first step, when there is no state."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for frozen_steps in (0, 2):
            torch.manual_seed(0)
            models = [torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2)) for _ in range(2)]
            whole_one = torch.optim.AdamW([{"params": [models[0][1].bias, *models[0][0].parameters()]},
                                           {"params": [models[0][1].weight]}], lr=0.1)  # fmt: skip
            for _ in range(frozen_steps):
                step(models[0], whole_one, frozen=models[0][1].weight)
            models[1].load_state_dict(models[0].state_dict())
            fully_shard(models[1], mesh=init_device_mesh("cpu", (1,)))
            groups = [{"params": [models[1][1].bias, *models[1][0].parameters()]}, {"params": [models[1][1].weight]}]
            shares = torch.optim.AdamW(groups, lr=0.1)
            saved = copy.deepcopy(number_parameters(whole_one.state_dict(), whole_one, models[0]))
            load_optimizer_state(models[1], shares, saved)
            for _ in range(3):
                step(models[0], whole_one)
                step(models[1], shares)
            for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
                assert isinstance(two, DTensor)
                torch.testing.assert_close(whole(two), one, rtol=0, atol=0)
    finally:
        dist.destroy_process_group()


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, frozen: torch.Tensor | None = None) -> None:
    """A step, in which one tensor may stay as it is."""
    model(torch.linspace(-1, 1, 8).view(2, 4)).square().sum().backward()
    if frozen is not None:
        frozen.grad = None
    optimizer.step()
    optimizer.zero_grad()


class Payload:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


@pytest.mark.parametrize("kind", [ModelParallelStrategy, FSDPStrategy, ShardingStrategy, DeepSpeedStrategy])
@pytest.mark.parametrize("folder", [True, False])
def test_no_strategy_runs_code_of_a_checkpoint(
    kind: type, folder: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of shares read past Lightning's plugin for checkpoints, and unpickle what they find."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoint").mkdir()
    if folder:
        (tmp_path / "checkpoint/meta.pt").write_bytes(b"")
        (tmp_path / "checkpoint/.metadata").write_bytes(pickle.dumps(Payload()))
        said = "is a folder, and checkpoints are single files"
    else:
        torch.save({"state_dict": {}, "a": Payload()}, tmp_path / "checkpoint/last.ckpt")
        said = "only tensors and plain values"
    strategy = kind.__new__(kind)  # neither a GPU nor the library need be there
    strategy._checkpoint_io = None
    task = VerifiedCheckpoints()
    task._trainer = SimpleNamespace(strategy=strategy)
    for _ in range(2):
        task.setup("validate")
    with refused(match=said):
        strategy.load_checkpoint(tmp_path / "checkpoint" / ("" if folder else "last.ckpt"))
    assert not (tmp_path / "owned").exists()


def test_checkpoints_that_would_not_be_read_again_are_refused_before_the_first_step() -> None:
    for strategy in (ModelParallelStrategy(), FSDPStrategy(state_dict_type="sharded")):
        with refused(match=f"{type(strategy).__name__} writes checkpoints as folders, which are not read again"):
            check_writes_files(strategy)
    for strategy in (ModelParallelStrategy(save_distributed_checkpoint=False), FSDPStrategy(), ShardingStrategy()):
        check_writes_files(strategy)
