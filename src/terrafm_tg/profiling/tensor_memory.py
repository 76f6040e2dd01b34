"""How much memory the tensors of a computation take at the most."""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter


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
