"""The model itself behind one interface: an embedding and a map of patch features, whatever it is made of."""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from terrafm_tg.models.smp_encoder import feature_blocks

from .spec import UnsupportedTaskError

#: The readers' images by the name of the model's input.
type Inputs = Mapping[str, Tensor]

#: Name of the input of a model that has but one.
IMAGE = "image"


class Features(NamedTuple):
    """The features of one forward.

    Args:
        token: The model's own embedding (n, D).
        patches: Features of the last block (n, E, h, w); of a transformer after its last norm.
    """

    token: Tensor
    patches: Tensor


class Backbone(nn.Module, ABC):
    """A model.

    Args:
        model: It.
        token_dim: Width D of its embedding.
        patch_dim: Width E of its patch features.
        patch_size: Pixels per side of a patch.
        has_mean: Whether the mean of the patch features is an embedding too, and not the token itself.
    """

    model: Any

    def __init__(
        self, model: nn.Module, token_dim: int, patch_dim: int, patch_size: int, has_mean: bool = True
    ) -> None:
        super().__init__()
        self.model = model
        self.token_dim, self.patch_dim, self.patch_size = token_dim, patch_dim, patch_size
        self.has_mean = has_mean

    @abstractmethod
    def forward(self, inputs: Inputs) -> Features:
        """Returns embedding and patch features of normalized images."""

    @abstractmethod
    def levels(self, inputs: Inputs) -> list[Tensor]:
        """Returns four maps of increasing depth; of a transformer all of one size and width."""


class TimmBackbone(Backbone):
    """Any model with timm's interface, ours too.

    Args:
        model: It.
        size: Pixels that it sees.
        select: What of the inputs it takes; the only one by default.
    """

    def __init__(self, model: Any, size: int, select: Callable[[Inputs], Any] = lambda inputs: inputs[IMAGE]) -> None:
        width = int(model.num_features)
        super().__init__(model, int(getattr(model, "head_hidden_size", width)), width, _stride(model, size))
        self.select = select
        self.prefix = int(getattr(model, "num_prefix_tokens", 0))
        # Of a convolutional network the embedding is the pooled map.
        self.has_mean = self.prefix > 0

    def forward(self, inputs: Inputs) -> Features:
        """Returns the model's embedding before any classifier, and its last features."""
        features = self.model.forward_features(self.select(inputs))
        return Features(self.model.forward_head(features, pre_logits=True), self._map(features))

    def levels(self, inputs: Inputs) -> list[Tensor]:
        """Returns a transformer's features after 1/3, 1/2, 2/3 and all of its blocks; else the last four stages'."""
        plain = hasattr(self.model, "blocks") and hasattr(self.model, "cls_token")
        return self.model.forward_intermediates(
            self.select(inputs),
            indices=feature_blocks(len(self.model.blocks)) if plain else 4,
            norm=plain,
            output_fmt="NCHW",
            intermediates_only=True,
        )

    def _map(self, features: Tensor) -> Tensor:
        if features.ndim == 3:
            return to_map(features[:, self.prefix :])
        return features.movedim(-1, 1) if getattr(self.model, "output_fmt", "NCHW") == "NHWC" else features


class TokenBackbone(Backbone):
    """A transformer that does not give its tokens by itself: they are taken where they leave its blocks.

    Args:
        model: It.
        run: Runs it on the inputs; gives its own embedding (n, D), or None for the class token.
        blocks: Modules that are called once each, whose output the tokens (n, P + h w, D) are.
        norm: What the tokens go through after the last block.
        dim: Their width.
        patch_size: Pixels per side of a patch.
        prefix: Number P of tokens before those of the patches.
        take: The tokens, of a block's input and output; its output by default.
    """

    def __init__(
        self,
        model: nn.Module,
        run: Callable[[Inputs], Tensor | None],
        blocks: Sequence[nn.Module],
        norm: nn.Module,
        dim: int,
        patch_size: int,
        prefix: int = 1,
        take: Callable[[Tensor, Tensor], Tensor] = lambda x, y: y,
    ) -> None:
        super().__init__(model, dim, dim, patch_size)
        self.run, self.take = run, take
        # In lists, so that the parts of the model are not registered once more.
        self.blocks, self.norm = list(blocks), [norm]
        self.prefix = prefix

    def forward(self, inputs: Inputs) -> Features:
        """Returns the model's embedding, or else its class token, and its tokens as a map."""
        own, (tokens,) = self._tokens(inputs, [len(self.blocks) - 1])
        return Features(tokens[:, 0] if own is None else own, to_map(tokens[:, self.prefix :]))

    def levels(self, inputs: Inputs) -> list[Tensor]:
        """Returns the tokens after 1/3, 1/2, 2/3 and all of the blocks, normed."""
        _, levels = self._tokens(inputs, feature_blocks(len(self.blocks)))
        return [to_map(tokens[:, self.prefix :]) for tokens in levels]

    def _tokens(self, inputs: Inputs, indices: Sequence[int]) -> tuple[Tensor | None, list[Tensor]]:
        kept: dict[int, Tensor] = {}

        def keep(index: int) -> Callable[..., None]:
            def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
                kept[index] = self.take(args[0], output)

            return hook

        hooks = [self.blocks[index].register_forward_hook(keep(index)) for index in set(indices)]
        try:
            own = self.run(inputs)
        finally:
            for hook in hooks:
                hook.remove()
        return own, [self.norm[0](kept[index]) for index in indices]


class StagedBackbone(Backbone):
    """A network of stages: a map of each, the embedding being the mean of the last or what ``embed`` makes of it.

    Args:
        model: It.
        stages: Gives the maps (n, E, h, w) of the stages, the last one last; four or more for dense tasks.
        patch_dim: Channels of the last.
        patch_size: Pixels per side of one of its positions.
        embed: The embedding of the last map; its mean by default.
        token_dim: Width of the embedding; that of the last map by default.
    """

    def __init__(
        self,
        model: nn.Module,
        stages: Callable[[Tensor], list[Tensor]],
        patch_dim: int,
        patch_size: int,
        embed: Callable[[Tensor], Tensor] = lambda x: x.mean(dim=(2, 3)),
        token_dim: int | None = None,
    ) -> None:
        super().__init__(model, token_dim or patch_dim, patch_dim, patch_size, has_mean=False)
        self.stages, self.embed = stages, embed

    def forward(self, inputs: Inputs) -> Features:
        """Returns the embedding and the last stage's map."""
        last = self.stages(inputs[IMAGE])[-1]
        return Features(self.embed(last), last)

    def levels(self, inputs: Inputs) -> list[Tensor]:
        """Returns the last four stages' maps.

        Raises:
            UnsupportedTaskError: If there are fewer.
        """
        maps = self.stages(inputs[IMAGE])
        if len(maps) < 4:
            raise UnsupportedTaskError(
                f"{type(self.model).__name__} has no features of four depths: use the segmentation-probe for it."
            )
        return maps[-4:]


def to_map(tokens: Tensor) -> Tensor:
    """Returns tokens of a square image (n, h w, D) as a map (n, D, h, w)."""
    side = math.isqrt(tokens.shape[1])
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _stride(model: Any, size: int) -> int:
    """Returns the pixels per position of the last map."""
    if getattr(model, "num_prefix_tokens", 0) and hasattr(model, "patch_embed"):
        return int(model.patch_embed.patch_size[0])
    info = getattr(model, "feature_info", None)
    return int(info[-1]["reduction"]) if info else size


def with_seed[T](seed: int, build: Callable[[], T]) -> T:
    """Builds a model whose random weights depend on ``seed`` alone, and leaves the caller's random state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()
