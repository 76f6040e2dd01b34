"""A model and what it reads, as the protocols use it."""

import hashlib
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from .backbone import Backbone, Inputs
from .reader import Reader
from .request import Request
from .spec import BenchEncoder, UnsupportedTaskError


class Encoder(BenchEncoder):
    """A backbone behind the readers of its inputs.

    Args:
        request: The model's settings and the task.
        readers: By the name of the backbone's input.
        backbone: The model.
        size: Pixels that it sees.
    """

    def __init__(
        self, request: Request, readers: Mapping[str, Reader], backbone: Backbone, size: int
    ) -> None:
        super().__init__()
        self.spec, self.task = request.spec, request.task
        self.readers = nn.ModuleDict(readers)
        self.backbone = backbone
        self.size, self.patch_size = size, backbone.patch_size
        width = backbone.patch_dim if self.task.kind == "segmentation" else backbone.token_dim
        self.dim = width * self.task.dates

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the kind of model, what it reads, and every weight."""
        reads = [(name, r.channels, r.sources, r.size) for name, r in self.readers.items()]
        digest = hashlib.sha256(repr((type(self.backbone).__name__, self.spec.model, reads)).encode())
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def prepare(self, batch: Mapping[str, Tensor]) -> Inputs:
        """Normalised images (B T, C, size, size) by the name of the model's input."""
        return {name: reader(batch) for name, reader in self.readers.items()}

    def embed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """``{"token": (B, D), "mean": (B, E)}``, the features of several dates side by side."""
        token, patches = self.backbone(self.prepare(batch))
        found = {"token": self._dates(token)}
        if self.backbone.has_mean:
            found["mean"] = self._dates(patches.mean(dim=(2, 3)))
        return found

    def patches(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Features of the last block (B, D, h, w), those of several dates stacked along the channels."""
        return self._dates(self.backbone(self.prepare(batch)).patches)

    def pyramid_inputs(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Four maps, those of several dates stacked along the channels."""
        return [self._dates(level) for level in self.backbone.levels(self.prepare(batch))]

    def trainable(self) -> nn.Module:
        """The backbone.

        Raises:
            UnsupportedTaskError: If it has no parameters.
        """
        if not any(True for _ in self.backbone.parameters()):
            raise UnsupportedTaskError(f"{self.spec.model} has no parameters: nothing of it can be trained.")
        return self.backbone

    def _dates(self, x: Tensor) -> Tensor:
        """(B T, D, ...) -> (B, T D, ...)."""
        return x.unflatten(0, (-1, self.task.dates)).flatten(1, 2) if self.task.dates > 1 else x
