"""The encoder: timm's Vision Transformer behind TerraFM's patch embedding."""

import functools
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, fx, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, S2L2A
from terrafm_tg.transforms import SensorBatch
from terrafm_tg.utils.arguments import COUNT, NOT_NEGATIVE, checked

from .inputs import PATCH_SIZE, Bands, Columns, guess_modality, input_channels, resolve_input, select_columns
from .multi_crop import CropBlock, DepthPlan, embed_groups
from .patch_embed import SensorPatchEmbed
from .sizes import SIZES, find_size

#: Anything that the encoder reads.
type Images = Tensor | Mapping[str, Tensor] | SensorBatch


@fx.wrap  # torch.fx records the call: what it does depends on the size
def resize_positions(positions: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """Resizes learned positions by DINO's scale factor (h + 0.1) / 14, not to a target size, without antialiasing.

    Args:
        positions: (1, N, d), row by row.
        grid: Height and width of the grid that they were learned on; N is their product.
        height: Rows of the new grid.
        width: Columns of the new grid.

    Returns:
        (1, height * width, d); ``positions`` themselves on their own grid.
    """
    if torch.jit.is_tracing():  # a trace is of one size, and hands out sizes as tensors
        height, width = int(height), int(width)
    if (height, width) == grid:
        return positions
    resized = nn.functional.interpolate(
        positions.unflatten(1, grid).permute(0, 3, 1, 2),
        scale_factor=((height + 0.1) / grid[0], (width + 0.1) / grid[1]),
        mode="bicubic",
    )
    return resized.flatten(2).transpose(1, 2)


@fx.wrap  # torch.fx records the call: the checks run when the traced model does
def check_traced(x: Any, columns: Columns, bare: str, *said: Any) -> Tensor:
    """Checks what a model traced by :mod:`torch.fx` is called with, and returns the image.

    Args:
        x: (B, C, H, W).
        columns: The stem channels that it holds, by modality.
        bare: The modality that was traced.
        said: What the call says of modality and samples: nothing, or that modality.

    Raises:
        TerraFMError: If it says anything else, or the stem cannot read the image.
    """
    if any(word not in (None, bare) for word in said):
        raise TerraFMError(
            f"A model traced by torch.fx reads tensors of {bare} alone: call it with these, or trace an encoder that "
            "was built with another `modality`."
        )
    return resolve_input(x, columns, bare).images[bare]


@checked(in_chans=COUNT, num_classes=NOT_NEGATIVE, embed_dim=COUNT, depth=COUNT, num_heads=COUNT, img_size=COUNT)
class TerraFMViT(VisionTransformer):
    """A Vision Transformer for Sentinel-1 RTC, Sentinel-2 L1C and L2A, alone or fused at every position.

    Everything that timm's ``VisionTransformer`` offers works. Images are normalized as
    (x - (mean - 2 std)) / (4 std) and have any height and width divisible by 16.

    Args:
        modality: What a bare tensor is. Without it 2 channels are ``s1rtc``, and 12 are ``s2l2a`` with one
            warning.
        bands: Bands of the input in the order of its channels, any subset of the modality's; all by default.
            They apply to each modality that has them; where modalities differ, a mapping of modality to
            bands. An absent band counts as being at its training mean; B10, which the 13-band files of
            Sentinel-2 L1C have and no stem reads, may be named and is read past.
        in_chans: Channels of a bare tensor; follows from the two above and is checked against them.
        img_size: Nominal size in pixels, for timm's tools; positions are learned on a 14x14 grid and resized.
        num_classes: Number of classes; 0 returns the embedding.
        global_pool: ``"token"`` (class token), ``"avg"`` (mean of the patch tokens) or another of timm's.
        embed_dim: Width d.
        depth: Number of blocks.
        num_heads: Number of attention heads.
        dynamic_img_size: For timm's callers; sizes are always dynamic.
        timm: Further settings of timm's ``VisionTransformer``, such as ``drop_path_rate``.

    Raises:
        TerraFMError: If a modality or band is unknown, or ``in_chans`` contradicts them.

    Example:
        >>> model = TerraFMViT(embed_dim=192, num_heads=3)
        >>> model({"s1rtc": torch.rand(4, 2, 96, 96), "s2l2a": torch.rand(4, 12, 96, 96)}).shape
        torch.Size([4, 192])
    """

    #: Mean and standard deviation by modality that its weights were trained with; None for the published ones.
    statistics: dict[str, dict[str, list[float]]] | None = None
    patch_embed: SensorPatchEmbed
    cls_token: nn.Parameter
    pos_embed: nn.Parameter

    def __init__(
        self,
        modality: str | None = None,
        bands: Bands | None = None,
        in_chans: int | None = None,
        img_size: int | tuple[int, int] = 224,
        num_classes: int = 0,
        global_pool: Literal["", "avg", "avgmax", "max", "token", "map", "prr"] = "token",
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int = 12,
        dynamic_img_size: bool = True,
        **timm: Any,
    ) -> None:
        columns = select_columns(modality, bands)
        # The trained norm stays where it was trained, whatever pools after it.
        settings: dict[str, Any] = {"fc_norm": False, "patch_size": PATCH_SIZE, "block_fn": CropBlock} | timm
        super().__init__(
            img_size=img_size,
            in_chans=input_channels(columns, modality, in_chans),
            num_classes=num_classes,
            global_pool=global_pool,
            embed_dim=embed_dim,
            depth=depth,
            num_heads=num_heads,
            class_token=True,
            reg_tokens=0,
            pos_embed="learn",
            no_embed_class=False,
            dynamic_img_size=True,
            embed_layer=functools.partial(SensorPatchEmbed, columns=columns, modality=modality),
            **settings,
        )
        self.modality = modality
        self.columns = columns
        self.depth = depth
        self._warned = False

    def sensor_batch(
        self,
        x: Images,
        modality: str | None = None,
        sample_idx: Mapping[str, Tensor] | None = None,
        size: int | None = None,
    ) -> SensorBatch:
        """Checks a batch and gives it one form; arguments as in :meth:`forward`.

        Raises:
            TerraFMError: If a modality, a channel count, a size or a type is not what a stem can read.
        """
        if isinstance(x, fx.Proxy):  # a trace by torch.fx is of a bare tensor of the model's own channels
            bare = self.patch_embed.modality
            image = check_traced(x, self.columns, bare, modality, sample_idx, size)
            return SensorBatch({bare: image}, None, image.shape[0])
        if isinstance(x, Tensor):
            modality = modality or self.modality
            if modality is None and x.ndim == 4:
                modality = guess_modality(x.shape[1], self.columns)
                if modality == S2L2A.name and not self._warned and not torch.compiler.is_compiling():
                    self._warned = True
                    warnings.warn(
                        f"A bare tensor of {x.shape[1]} channels is read as s2l2a: pass modality='s2l2a' or "
                        "'s2l1c' to say so. (The published code can reach only its L1C stem, so a score "
                        "made with it on L2A data differs.)",
                        UserWarning,
                        stacklevel=2,
                    )
        return resolve_input(x, self.columns, modality, sample_idx, size)

    def forward(
        self,
        x: Images,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        modality: str | None = None,
        sample_idx: Mapping[str, Tensor] | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Embeds a batch.

        Args:
            x: Normalized images (B, C, H, W), or a dict of modality -> (n_m, C_m, H, W).
            attn_mask: Passed to timm's blocks.
            is_causal: Passed to timm's blocks.
            modality: What a bare tensor is.
            sample_idx: Modality -> int64 (n_m,), the sample that each image belongs to, for batches whose samples
                differ in what they have. Each sample must occur at least once, and at most once per modality.
            size: Number of samples B; needed with ``sample_idx``.

        Returns:
            The class token (B, d), or what ``global_pool`` says; logits (B, num_classes) if there are
            classes.

        Raises:
            TerraFMError: If a modality, a channel count, a size or a type is not what a stem can read.
        """
        features = self.forward_features(x, attn_mask, is_causal, modality=modality, sample_idx=sample_idx, size=size)
        return self.forward_head(features)

    def forward_features(
        self,
        x: Images,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
        *,
        modality: str | None = None,
        sample_idx: Mapping[str, Tensor] | None = None,
        size: int | None = None,
    ) -> Tensor:
        """Class and patch tokens after the last norm, (B, 1 + N, d); arguments as in :meth:`forward`."""
        checked = self.sensor_batch(x, modality, sample_idx, size)
        # timm only hands it to the patch embedding, and reads its shape.
        return super().forward_features(cast("Tensor", checked), attn_mask, is_causal)

    def forward_intermediates(
        self,
        x: Images,
        *args: Any,
        modality: str | None = None,
        sample_idx: Mapping[str, Tensor] | None = None,
        size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As timm's, for anything that :meth:`forward` reads."""
        checked = self.sensor_batch(x, modality, sample_idx, size)
        return super().forward_intermediates(cast("Tensor", checked), *args, **kwargs)

    def embed_views(
        self, views: Sequence[SensorBatch], depth: DepthPlan | None = None, compiled: bool = False
    ) -> Tensor:
        """Returns class tokens of groups of views of several sizes, as a training step needs them.

        Args:
            views: The groups, checked by :meth:`sensor_batch`. Pooling and head are not used.
            depth: Stochastic depth, from :func:`~terrafm_tg.models.multi_crop.plan_depth`; none where None.
            compiled: Whether the residual branches are compiled, once for all sizes.

        Returns:
            (views of all groups, d), after the last norm.
        """
        kept = [None] * (2 * len(self.blocks)) if depth is None else depth.branches(len(views))
        tokens = [self.norm_pre(self._pos_embed(grid)) for grid in embed_groups(self.patch_embed, views)]
        shapes = [(t.shape[0], t.shape[1]) for t in tokens]
        x = torch.cat([t.flatten(0, 1) for t in tokens])
        for number, block in enumerate(self.blocks):
            x = cast(CropBlock, block).forward_crops(
                x,
                shapes,
                kept[2 * number : 2 * number + 2],
                last=number == len(self.blocks) - 1,
                compiled=compiled,
                recompute=self.grad_checkpointing,
            )
        return self.norm(x)

    def _pos_embed(self, x: Tensor) -> Tensor:
        """Adds class token and positions, (B, h, w, d) -> (B, 1 + h w, d)."""
        height, width = x.shape[1:3]
        token, positions = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        positions = resize_positions(positions, self.patch_embed.grid_size, height, width)
        token = (self.cls_token + token).expand(x.shape[0], -1, -1)
        return self.pos_drop(torch.cat([token, x.flatten(1, 2) + positions], dim=1))

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        """As timm's, with the modality vectors and the fusion's queries, which are embeddings too."""
        embeds = {f"patch_embed.{modality.stem}_embed" for modality in MODALITIES.values()}
        return super().no_weight_decay() | embeds | {"patch_embed.fusion.queries"}

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuses a checkpoint of another size, strict or not; pruned (``features_only``) takes what it kept.

        Raises:
            TerraFMError: If width or depth differ.
        """
        token = state_dict.get(f"{prefix}cls_token")
        if token is not None and token.shape[-1] != self.embed_dim:
            raise TerraFMError(
                f"The checkpoint is {token.shape[-1]} wide and the model {self.embed_dim}: build the size "
                f"that it was trained with ({', '.join(f'{n} {s["embed_dim"]}' for n, s in SIZES.items())})."
            )
        block = re.compile(re.escape(prefix) + r"blocks\.(\d+)\.")
        depth = len({match[1] for name in state_dict if (match := block.match(name))})
        if depth not in (0, self.depth, len(self.blocks)):
            own = find_size(self.embed_dim, depth)
            fit = own if own and SIZES[own]["depth"] == depth else f"it with depth={depth}"
            raise TerraFMError(f"The checkpoint has {depth} blocks and the model {self.depth}: build {fit}.")
        gone = [f"{prefix}blocks.{i}." for i in range(len(self.blocks), self.depth)]
        if isinstance(self.norm, nn.Identity):
            gone += [f"{prefix}norm."] + [f"{prefix}head."] * isinstance(self.head, nn.Identity)
        for name in [name for name in state_dict if name.startswith(tuple(gone))]:
            del state_dict[name]
        super()._load_from_state_dict(state_dict, prefix, *args)
