"""DINO's projection head with logits in float32."""

import warnings
from copy import deepcopy
from typing import Any

import torch
from lightly.models.modules.heads import DINOProjectionHead
from torch import Tensor, nn


class ProjectionHead(DINOProjectionHead):
    """lightly's DINO head (two hidden layers, bottleneck, weight-normed last layer) whose logits are float32.

    Under autocast the hidden layers run in low precision; the normalized bottleneck times the prototypes does
    not, since the softmax divides these logits by a temperature of 0.04. The arguments are lightly's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        with warnings.catch_warnings():
            # lightly builds the head by torch's older weight_norm; nothing here depends on which.
            warnings.simplefilter("ignore", FutureWarning)
            super().__init__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> "ProjectionHead":
        """Returns a copy; the normed weight follows from two parameters, and as a computed tensor cannot be copied."""
        computed = self.last_layer.__dict__.pop("weight")
        try:
            copied = type(self).__new__(type(self))
            memo[id(self)] = copied
            copied.__dict__.update({name: deepcopy(value, memo) for name, value in self.__dict__.items()})
            copied.last_layer.__dict__["weight"] = computed.detach().clone()
        finally:
            self.last_layer.__dict__["weight"] = computed
        return copied

    def forward(self, x: Tensor) -> Tensor:
        """Logits, float32 (N, K), of embeddings (N, D)."""
        x = self.layers(x)
        with torch.autocast(x.device.type, enabled=False):
            return self.last_layer(nn.functional.normalize(x.float(), dim=-1))
