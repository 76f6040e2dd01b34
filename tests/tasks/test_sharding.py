from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from forked_ranks import fork_ranks
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore  # a group whose other processes are not there

from processes import start
from refusals import CONF, IN_MEMORY
from terrafm_tg.cli.main import main
from terrafm_tg.errors import TerraFMError
from terrafm_tg.tasks.pretrain.sharding import check_strategy, number_parameters, shard

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
