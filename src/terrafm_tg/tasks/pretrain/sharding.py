"""FSDP: each process holds a share of every parameter, its gradient, its optimizer state and its average."""

from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.optim import Optimizer

from terrafm_tg.errors import TerraFMError
from terrafm_tg.models import TerraFMViT


class ShardingStrategy(ModelParallelStrategy):
    """FSDP over all processes of a run, however many it has, with checkpoints as those of any other run."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(tensor_parallel_size=1, save_distributed_checkpoint=False, **kwargs)

    def setup_environment(self) -> None:
        """Spreads the shares over the processes, whose number is known from here on."""
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()

    def load_checkpoint(self, checkpoint_path: _PATH, weights_only: bool | None = None) -> dict[str, Any]:
        """Loads a file of whole tensors, of FSDP or any other run.

        Lightning would refuse an optimizer that has no state for a parameter, as for a layer that was frozen so far.
        """
        optimizers, self.optimizers = self.optimizers, []
        try:
            checkpoint = super().load_checkpoint(checkpoint_path, weights_only is not False)
        finally:
            self.optimizers = optimizers
        assert self.model is not None
        for optimizer, state in zip(optimizers, checkpoint.get("optimizer_states", ()), strict=False):
            load_optimizer_state(self.model, optimizer, state)
        return checkpoint


def shard(pairs: Iterable[tuple[nn.Module, nn.Module]], mesh: DeviceMesh) -> None:
    """Shards teacher and student alike, in place, so that a process averages its own share of the one into the other's.

    An encoder's blocks are gathered one by one as they are needed, and let go behind; the rest of it, and a head, as
    a whole.

    Args:
        pairs: Teachers, each with its student.
        mesh: The processes, of a `ModelParallelStrategy`.

    Raises:
        TerraFMError: If the mesh splits tensors too: each process has its own tiles here, and those that share a tensor
            would not add up their gradients.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

    if (parts := mesh["tensor_parallel"].size()) > 1:
        raise TerraFMError(
            f"The strategy splits each tensor over {parts} processes (`tensor_parallel_size`), which this model does "
            "not: use conf/hardware/fsdp.yaml, or `tensor_parallel_size` 1 and `data_parallel_size` the number of "
            "processes."
        )
    mesh = mesh["data_parallel"]
    for module in (module for pair in pairs for module in pair):
        blocks: Iterable[nn.Module] = module.blocks.children() if isinstance(module, TerraFMViT) else ()
        for block in blocks:
            fully_shard(block, mesh=mesh)
            register_fsdp_forward_method(block, "forward_crops")
        # Not kept gathered after the forward pass: without a backward pass the teacher would keep its first weights.
        fully_shard(module, mesh=mesh, reshard_after_forward=True)
        if isinstance(module, TerraFMViT):
            register_fsdp_forward_method(module, "embed_views")


def number_parameters(state: dict[str, Any], optimizer: Optimizer, model: nn.Module) -> dict[str, Any]:
    """An optimizer's state with parameters numbered as in the model, which FSDP expects of a checkpoint.

    Any other optimizer reads it as well: it goes by their order in the groups.

    Args:
        state: What ``optimizer.state_dict()`` gave.
        optimizer: Whose state it is.
        model: Of which it trains some parameters.
    """
    places = {id(parameter): place for place, parameter in enumerate(model.parameters())}
    numbers = [places[id(p)] for group in optimizer.param_groups for p in group["params"]]
    return {
        "state": {numbers[number]: value for number, value in state["state"].items()},
        "param_groups": [
            group | {"params": [numbers[number] for number in group["params"]]} for group in state["param_groups"]
        ],
    }


def load_optimizer_state(model: nn.Module, optimizer: Optimizer, saved: dict[str, Any]) -> None:
    """Loads an optimizer's state into shares; parameters that have none in it begin with none, as in any other run.

    Args:
        model: Whose parameters are sharded, in the order in which the state numbers them.
        optimizer: Of AdamW's kind: a state that is all 0 is that of a parameter before its first step.
        saved: State of whole tensors, as :func:`number_parameters` or FSDP's own gives it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    if not saved["state"]:
        return
    names, parameters = zip(*model.named_parameters(), strict=True)
    places, state = {id(p): n for n, p in enumerate(parameters)}, dict(saved["state"])
    example, kind = next(iter(state.items()))
    for number in (places[id(p)] for group in optimizer.param_groups for p in group["params"]):
        if number not in state:
            shape, like = parameters[number].shape, parameters[example].shape
            state[number] = {k: v.new_zeros(shape if v.shape == like else v.shape) for k, v in kind.items()}
    groups = [group | {"params": [names[number] for number in group["params"]]} for group in saved["param_groups"]]
    named: dict[str, Any] = {"state": {names[number]: value for number, value in state.items()}, "param_groups": groups}
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    set_optimizer_state_dict(model, optimizer, named, options=options)


def check_strategy(strategy: Strategy) -> None:
    """Stops a run whose strategy leaves no tensors to clip one by one and to average.

    Raises:
        TerraFMError: Naming the strategy.
    """
    if isinstance(strategy, FSDPStrategy | DeepSpeedStrategy):
        raise TerraFMError(
            f"The strategy {type(strategy).__name__} flattens parameters, of which each gradient is to be clipped and "
            "the teacher averaged on its own: use ModelParallelStrategy (conf/hardware/fsdp.yaml) or DDP."
        )
