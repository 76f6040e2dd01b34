"""``terrafm profile memory``: what a training step keeps, and the largest batch that fits.

The step runs on fake tensors, which have shapes but no numbers: nothing is computed, so a laptop says what a GPU needs.
Memory is linear in the batch and in the number of blocks, so four small steps give all.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from terrafm_tg.datasets.tiles.dataset import check_tile_size
from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modalities, get_modality
from terrafm_tg.models.multi_crop import DepthPlan, as_on_a_gpu, plan_depth
from terrafm_tg.models.sizes import SIZES
from terrafm_tg.tasks import TerraFM
from terrafm_tg.transforms import SensorBatch
from terrafm_tg.transforms.multicrop import GLOBAL_CROPS
from terrafm_tg.utils.arguments import NOT_NEGATIVE, POSITIVE, checked
from terrafm_tg.utils.progress import with_bar

#: Depths and batches of the steps from which all others follow.
_DEPTHS, _BATCHES = (2, 4), (16, 64)


class TensorMemory(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is active, until they are freed.

    Tensors that share memory count once. What a kernel needs for itself is not seen. With fake tensors nothing is
    computed and nothing takes memory, and the count is the same.

    Attributes:
        now: Bytes of the tensors that live.
        peak: Most bytes that lived at the same time.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: set[int] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Runs the operation and takes note of new memory."""
        before = {tensor.untyped_storage()._cdata for tensor in tree_iter(args) if isinstance(tensor, Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self._count(tensor, before)
        return out

    def _count(self, tensor: Tensor, before: set[int]) -> None:
        storage = tensor.untyped_storage()
        place, size = storage._cdata, storage.nbytes()
        if place in self._known or place in before:
            return
        self._known.add(place)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, place, size)

    def _free(self, place: int, size: int) -> None:
        self._known.discard(place)
        self.now -= size


def step_peak(task: TerraFM, batch: int, low: bool = True) -> int:
    """Returns the most bytes that a training step makes and holds at the same time, nothing of which is computed.

    That is views, what is kept for the backward pass, gradients, and whatever is in between; not what is there before.

    Args:
        task: On the CPU; its gradients are lost.
        batch: Tiles.
        low: bf16 autocast; otherwise float32.
    """
    task.train().zero_grad()
    numbers = [count for count in task.multicrop.counts.values() if count]
    places = torch.arange(batch)
    depth = plan_depth(task.student.blocks, task.hparams["seed"], torch.zeros_like(places), places, numbers)
    token = as_on_a_gpu.set(True)
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), TensorMemory() as memory:
            groups = [_views(task, kind, batch) for kind, count in task.multicrop.counts.items() if count]
            _step(task, groups, depth, low)
    finally:
        as_on_a_gpu.reset(token)
        task.zero_grad()
    return memory.peak


def tile_bytes(modalities: list[str], tile_size: int = 534) -> int:
    """Bytes of a native tile: two per pixel and band, each at its own resolution."""
    return sum(
        2 * len(bands) * (tile_size * 10 // resolution) ** 2
        for modality in get_modalities(modalities)
        for resolution, bands in modality.native.items()
    )


def estimate_memory(
    model: str, depth: int | None = None, tile_size: int = 534, low: bool = True, **settings: Any
) -> tuple[float, float]:
    """Computes the memory of a training step as a linear function of the batch.

    Args:
        model: Name of the encoder.
        depth: Its blocks; as many as its size has where None.
        tile_size: Edge of a native tile in pixels of 10 m.
        low: bf16 autocast; otherwise float32.
        settings: More of :class:`~terrafm_tg.tasks.TerraFM`.

    Returns:
        Bytes whatever the batch: parameters, Adam's two moments, teacher and more; bytes per tile.

    Raises:
        TerraFMError: If a setting is impossible.
    """
    check_tile_size(tile_size)
    lines = []
    for few in _DEPTHS:
        task = TerraFM(model, depth=few, **settings)
        state = sum(_size(x) * (3 if x.requires_grad else 1) for x in (*task.parameters(), *task.buffers()))
        small, large = (state + step_peak(task, batch, low) for batch in _BATCHES)
        slope = (large - small) / (_BATCHES[1] - _BATCHES[0])
        lines.append((small - _BATCHES[0] * slope, slope + tile_bytes(task.sensors, tile_size)))
    blocks = ((depth or SIZES[model]["depth"]) - _DEPTHS[0]) / (_DEPTHS[1] - _DEPTHS[0])
    fixed, per_sample = (a + blocks * (b - a) for a, b in zip(*lines, strict=True))
    return fixed, per_sample


@checked(gigabytes=POSITIVE, reserve=NOT_NEGATIVE)
def memory_table(
    model: list[str] | str | None = None,
    gigabytes: float = 80.0,
    reserve: float = 4.0,
    tile_size: int = 534,
    precision: str = "bf16",
    **settings: Any,
) -> Table:
    """Computes what a pretraining step needs on a GPU, with and without gradient checkpointing, and the largest batch.

    Nothing is computed or allocated: tensors have shapes only, so this runs anywhere within a minute.

    Args:
        model: Names of encoders; terrafm_base and terrafm_large by default.
        gigabytes: Memory of the GPU, in 10^9 bytes.
        reserve: Part of it, in 10^9 bytes, that context, libraries and gaps between tensors take.
        tile_size: Edge of a native tile in pixels of 10 m.
        precision: bf16 (autocast) or fp32.
        settings: More of :class:`~terrafm_tg.tasks.TerraFM`.

    Raises:
        TerraFMError: If a setting is impossible, or the reserve leaves nothing.
    """
    if precision not in ("bf16", "fp32") or not 0 <= reserve < gigabytes:
        raise TerraFMError(
            f"Precision {precision!r} with {reserve:g} of {gigabytes:g} GB in reserve: use bf16 or fp32, and leave "
            "memory for the step."
        )
    names = [model] if isinstance(model, str) else model or ["terrafm_base", "terrafm_large"]
    table = Table(title=f"Training steps in {gigabytes:g} GB, {reserve:g} of them in reserve, {precision}")
    for column in ("", "blocks", "fixed GB", "MB per tile", "largest batch"):
        table.add_column(column, justify="right" if column else "left")
    steps = list(product(names, (False, True)))
    for name, again in with_bar(steps, "Going through steps"):
        fixed, per_sample = estimate_memory(
            name, tile_size=tile_size, low=precision == "bf16", grad_checkpointing=again, **settings
        )
        batch = max(0, int((1e9 * (gigabytes - reserve) - fixed) / per_sample))
        numbers = f"{fixed / 1e9:.1f}", f"{per_sample / 1e6:.0f}", f"{batch:,}"
        table.add_row(name, "recomputed" if again else "kept", *numbers)
    table.caption = (
        "Computed from the tensors of a step: parameters, teacher, gradients, Adam, native tiles, views, and what the "
        "backward pass needs."
    )
    return table


def _views(task: TerraFM, kind: str, batch: int) -> SensorBatch:
    """Views of a kind, each modality in its expected share of them: each is kept with p, at least one.

    With three modalities and p = 0.5 the shares add up to 12/7.
    """
    size, edge = batch * task.multicrop.counts[kind], task.multicrop.sizes[kind]
    count, keep = len(task.sensors), task.hparams["modality_probability"]
    share = keep / (1 - (1 - keep) ** count) if task.hparams["fuse"] else 1 / count
    counts = dict.fromkeys(task.sensors, round(share * size))
    x = {name: torch.empty(n, len(get_modality(name).bands), edge, edge) for name, n in counts.items()}
    return SensorBatch(x, {name: torch.arange(n) for name, n in counts.items()}, size)


def _step(task: TerraFM, groups: list[SensorBatch], depth: DepthPlan, low: bool) -> None:
    """Forward and backward pass of a training step."""
    size = groups[0].size // GLOBAL_CROPS
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        with torch.no_grad():
            embeddings = task.teacher.embed_views(groups[:1])
            logits = task.teacher_head(embeddings).unflatten(0, (-1, size))
            targets = task.center(logits)
        tokens = task.student.embed_views(groups, depth)
        student = task.student_head(tokens).unflatten(0, (-1, size))
        loss = task.loss(student, targets, task.hparams["schedule"]["teacher_temp"][0])
    loss.backward()


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
