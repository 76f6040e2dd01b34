"""A model with its inputs, as the protocols use it."""

import hashlib
from collections.abc import Mapping
from functools import cached_property

import torch
from torch import Tensor, nn

from terrafm_tg.tasks.finetune.heads import FeatureEncoder

from .backbone import Backbone, Inputs
from .reader import Reader, Request
from .spec import UnsupportedTaskError


class BenchEncoder(FeatureEncoder):
    """A backbone behind the readers of its inputs, which reads one task's raw batches.

    A batch is a collated one of a ``BenchDataset``: ``image_<sensor>`` float32 (B, C, H, W), or (B, T, C, H, W) if a
    task has several dates, in the sensor's unit, missing pixels NaN.

    Args:
        request: The model's settings and the task.
        readers: By the name of the backbone's input.
        backbone: The model.
        size: Pixels per side that it sees.

    Attributes:
        spec: The model's settings.
        task: The task that it reads.
        dim: Width of its features, those of several dates together.
        patch_size: Pixels per side of a patch.
    """

    def __init__(self, request: Request, readers: Mapping[str, Reader], backbone: Backbone, size: int) -> None:
        super().__init__()
        self.spec, self.task = request.spec, request.task
        self.readers = nn.ModuleDict(readers)
        self.backbone = backbone
        self.size, self.patch_size = size, backbone.patch_size
        width = backbone.patch_dim if self.task.kind == "segmentation" else backbone.token_dim
        self.dim = width * self.task.dates

    @cached_property
    def identity(self) -> str:
        """SHA-256 of the kind of model, its inputs, and every weight: equal ones give the same numbers."""
        reads = [(name, r.channels, r.sources, r.size) for name, r in self.readers.items()]
        digest = hashlib.sha256(repr((type(self.backbone).__name__, self.spec.model, reads)).encode())
        for name, tensor in [*self.named_parameters(), *self.named_buffers()]:
            digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
            digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def prepare(self, batch: Mapping[str, Tensor]) -> Inputs:
        """Returns normalized images (B T, C, size, size) by the name of the model's input."""
        return {name: reader(batch) for name, reader in self.readers.items()}

    def embed(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns ``{"token": (B, D), "mean": (B, E)}``, several dates side by side; a model with one has one."""
        token, patches = self.backbone(self.prepare(batch))
        found = {"token": self._dates(token)}
        if self.backbone.has_mean:
            found["mean"] = self._dates(patches.mean(dim=(2, 3)))
        return found

    def patches(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Returns features of the last block (B, D, h, w), those of several dates stacked along the channels."""
        return self._dates(self.backbone(self.prepare(batch)).patches)

    def pyramid_inputs(self, batch: Mapping[str, Tensor]) -> list[Tensor]:
        """Returns four maps of increasing depth, those of several dates stacked along the channels.

        Of a plain transformer (B, D, h, w) each, after 1/3, 1/2, 2/3 and all of its blocks; of a network of stages the
        last four stages' maps, each of a width and size of its own.

        Raises:
            UnsupportedTaskError: If there are fewer.
        """
        return [self._dates(level) for level in self.backbone.levels(self.prepare(batch))]

    def trainable(self) -> nn.Module:
        """Returns the backbone, whose parameters full fine-tuning trains; forward it through the methods above.

        Raises:
            UnsupportedTaskError: If it has no parameters.
        """
        if not any(True for _ in self.backbone.parameters()):
            raise UnsupportedTaskError(f"{self.spec.model} has no parameters: nothing of it can be trained.")
        return self.backbone

    def _dates(self, x: Tensor) -> Tensor:
        """(B T, D, ...) -> (B, T D, ...)."""
        return x.unflatten(0, (-1, self.task.dates)).flatten(1, 2) if self.task.dates > 1 else x
