"""From pixels to tokens: a stem per modality, fusion at every position, the shared projection.

Parameter names, shapes and order are the published ones; those of the fusion are extra and come last.
"""

from collections.abc import Collection, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES
from terrafm_tg.transforms import SensorBatch

from .fusion import ModalityFusion
from .inputs import PATCH_SIZE, Columns, guess_modality, resolve_input

#: Height and width of the grid of learned positions: that of a 224 px image.
POSITION_GRID = (14, 14)
#: Correlation of neighboring pixels, and of bands, that :meth:`PatchStem.whiten_` takes back.
PIXELS, BANDS = 0.95, 0.9


class PatchStem(nn.Conv2d):
    """A convolution of 16x16 px and stride 16, computed as one matrix product over patches, which is faster.

    The kernel keeps a column for each band of the modality, so that any checkpoint fits; ``columns`` picks
    those that the input has. An absent band counts as being at its training mean, which normalizes to 0.5; a
    channel of the input without a column is not read.

    Args:
        bands: Number of bands of the modality.
        dim: Width D of the output.
        columns: The kernel column of each channel of the input, None for a channel to read past.
        factory: ``device`` and ``dtype``.
    """

    def __init__(self, bands: int, dim: int, columns: tuple[int | None, ...], **factory: Any) -> None:
        super().__init__(bands, dim, kernel_size=PATCH_SIZE, stride=PATCH_SIZE, **factory)
        self.columns = [column for column in columns if column is not None]
        self.channels = [channel for channel, column in enumerate(columns) if column is not None]
        self.reads_all = None not in columns

    @torch.no_grad()
    def whiten_(self) -> None:
        """Multiplies the kernel by what whitens patches of pictures, so that detail weighs as much as brightness.

        Of the variance of real patches more than 80 % lies in one direction, all pixels of all bands together. A random
        kernel passes it on, LayerNorm and cosine see little else, and so does what is learned first. The covariance
        that is taken back here is the usual model of pictures, not a measured one: neighboring pixels correlate with
        :data:`PIXELS`, bands with :data:`BANDS`, independently; with it in W (S + I)^-1/2, S of diagonal 1, noise far
        below the mean of its eigenvalues is not raised. The variance of the output stays, and so does what is learned
        from a patch of the training mean.
        """
        steps = torch.arange(PATCH_SIZE, dtype=torch.float64)
        pixels = PIXELS ** (steps - steps[:, None]).abs()
        bands = torch.full((self.in_channels,) * 2, BANDS, dtype=torch.float64).fill_diagonal_(1.0)
        (shares, mix), (length, wave) = torch.linalg.eigh(bands), torch.linalg.eigh(pixels)
        variance = torch.einsum("c,i,j->cij", shares, length, length)
        gain = (variance + 1).rsqrt()
        gain *= (variance.sum() / (variance * gain**2).sum()).sqrt()
        kernel = torch.einsum("dbyx,bc,yi,xj->dcij", self.weight.double(), mix, wave, wave) * gain
        self.weight.copy_(torch.einsum("dcij,bc,yi,xj->dbyx", kernel, mix, wave, wave))

    def forward(self, input: Tensor, offset: Tensor | float = 0.0) -> Tensor:
        """Embeds patches.

        Args:
            input: (B, C, H, W).
            offset: (D,), added to the bias: the modality's vector.

        Returns:
            (B, H / 16, W / 16, D).
        """
        if not self.reads_all:
            input = torch.stack([input[:, channel] for channel in self.channels], dim=1)
        batch, channels, height, width = input.shape
        kernel, gap = self.select()
        patches = input.reshape(batch, channels, height // PATCH_SIZE, PATCH_SIZE, width // PATCH_SIZE, PATCH_SIZE)
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return nn.functional.linear(patches, kernel.flatten(1), cast("Tensor", self.bias) + offset + gap)

    def select(self) -> tuple[Tensor, Tensor | float]:
        """Returns the kernel (D, C, 16, 16) of the bands that are there, and what absent ones add to the bias (D,)."""
        if self.columns == list(range(self.in_channels)):
            return self.weight, 0.0
        kernels = self.weight.unbind(1)  # views: no index tensor has to reach the device
        kernel = torch.stack([kernels[i] for i in self.columns], dim=1)
        absent = [kernels[i].sum((1, 2)) for i in range(self.in_channels) if i not in self.columns]
        return kernel, 0.5 * torch.stack(absent).sum(0) if absent else 0.0


@fx.wrap  # torch.fx records the call: what it does depends on which parameters are trained
def join_unused(tokens: Tensor, unused: Sequence[nn.Parameter]) -> Tensor:
    """Joins parameters to the graph with weight zero: each gets a gradient, zero, and no value changes."""
    firsts = [parameter.view(-1)[0] for parameter in unused if parameter.requires_grad]
    return tokens + 0.0 * torch.stack(firsts).sum() if firsts else tokens


class SharedProjection(nn.Module):
    """The projection from the stems' width D = 3 d to the transformer's d.

    ``proj1`` is the value map of the fusion's attention and comes before it; the rest follows it.

    Args:
        dim: Width d of the transformer.
        factory: ``device`` and ``dtype``.
    """

    def __init__(self, dim: int, **factory: Any) -> None:
        super().__init__()
        wide = 3 * dim
        self.proj1: nn.Module = nn.Linear(wide, wide, bias=False, **factory)
        self.norm_input = nn.LayerNorm(wide, **factory)
        self.proj2: nn.Module = nn.Linear(wide, wide, **factory)
        self.proj3 = nn.Linear(wide, dim, **factory)

    def forward(self, z: Tensor) -> Tensor:
        """(..., D) fused values -> (..., d) tokens."""
        return self.proj3(self.proj2(self.norm_input(z)))


class SensorPatchEmbed(nn.Module):
    """Patch embedding of any mix of modalities, with the interface of timm's.

    Args:
        img_size: Nominal input size in pixels; any multiple of 16 is accepted at run time.
        patch_size: Must be 16.
        in_chans: Channels of a bare tensor, which timm passes; ``columns`` says it already.
        embed_dim: Width d of the transformer.
        columns: Stem channels that the input has, by modality.
        modality: What a bare tensor is; None goes by ``in_chans``.
        device: Where to create the parameters.
        dtype: Type of the parameters.
        timm: Other settings of timm's patch embedding, which have no meaning here.
    """

    strict_img_size = False

    def __init__(
        self,
        img_size: int | tuple[int, int] = 224,
        patch_size: int | tuple[int, int] = PATCH_SIZE,
        in_chans: int = 12,
        embed_dim: int = 768,
        *,
        columns: Columns,
        modality: str | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        **timm: Any,
    ) -> None:
        super().__init__()
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.columns = columns
        self.modality = modality or guess_modality(in_chans, columns)
        self.patch_size = (PATCH_SIZE, PATCH_SIZE)
        self.grid_size = POSITION_GRID
        self.num_patches = POSITION_GRID[0] * POSITION_GRID[1]
        self.set_input_size(img_size, patch_size)
        stems = list(reversed(MODALITIES.values()))  # the published order
        for sensor in stems:
            embed = nn.Parameter(torch.empty(1, 3 * embed_dim, **factory))
            self.register_parameter(f"{sensor.stem}_embed", embed)
        for sensor in stems:
            stem = PatchStem(len(sensor.bands), 3 * embed_dim, columns[sensor.name], **factory)
            self.add_module(f"conv2d_{sensor.stem}", stem)
        self.projection = SharedProjection(embed_dim, **factory)
        self.fusion = ModalityFusion(3 * embed_dim, **factory)
        self.init_weights()

    def init_weights(self, whiten: bool = False) -> None:
        """Small random modality vectors, and stems that map a patch of the training mean to nothing but that vector.

        Normalized inputs have mean 0.5. With biases around 0 that constant would outweigh what differs between tiles,
        all tokens would start nearly alike, and DINO would collapse more easily.
        """
        for modality in MODALITIES.values():
            nn.init.trunc_normal_(self.get_parameter(f"{modality.stem}_embed"), std=0.02)
            stem = self.stem(modality.name)
            if whiten:
                stem.whiten_()
            with torch.no_grad():
                stem.get_parameter("bias").copy_(-0.5 * stem.weight.sum((1, 2, 3)))

    @property
    def proj(self) -> PatchStem:
        """The stem of a bare tensor, under the name that timm's patch embedding has for its only one."""
        return self.stem(self.modality)

    def forward(self, x: SensorBatch | Tensor) -> Tensor:
        """Embeds a checked batch, or a bare tensor (B, C, H, W) as callers of timm's patch embedding pass it.

        Returns:
            Tokens (B, H / 16, W / 16, d). One modality gives exactly the numbers of its plain stem.

        Raises:
            TerraFMError: If the stem cannot read the bare tensor.
        """
        if isinstance(x, Tensor):
            x = resolve_input(x, self.columns, self.modality)
        values = [self.projection.proj1(self.stem(name)(image, self.offset(name))) for name, image in x.images.items()]
        if x.present is not None and len(values) > 1:
            fused = self._fuse_present(values, x, x.present)
        elif x.sample_idx is not None:
            fused = self.fusion(values, list(x.sample_idx.values()), x.size)
        elif len(values) > 1:
            fused = self.fusion(values)
        else:
            fused = values[0]
        tokens = self.projection(fused)
        if self.training and torch.is_grad_enabled():
            alone = x.sample_idx is None and len(x.images) == 1
            unused = [*self.unused(x.images), *(self.fusion.parameters() if alone else ())]
            tokens = join_unused(tokens, unused)
        return tokens

    def _fuse_present(self, values: list[Tensor], x: SensorBatch, present: dict[str, Tensor]) -> Tensor:
        """Fuses position by position: each is a sample of its own, of the modalities that show anything there.

        Args:
            values: Tokens by modality, (n_m, h, w, D).
            x: The batch, of B samples.
            present: By modality, bool (n_m, h, w); where none shows anything, all count.

        Returns:
            (B, h, w, D).
        """
        grid = values[0].shape[1:3]
        count = grid.numel()
        places = [x.idx(name)[:, None] * count + torch.arange(count, device=values[0].device) for name in x.images]
        shown = [present[name].flatten(1) for name in x.images]
        some = torch.zeros(x.size * count, dtype=torch.bool, device=values[0].device)
        for place, here in zip(places, shown, strict=True):
            some[place[here]] = True
        shown = [here | ~some[place] for place, here in zip(places, shown, strict=True)]  # nothing there: of all
        tokens = [value.flatten(1, 2)[here] for value, here in zip(values, shown, strict=True)]
        idx = [place[here] for place, here in zip(places, shown, strict=True)]
        return self.fusion(tokens, idx, x.size * count).view(x.size, *grid, -1)

    def stem(self, name: str) -> PatchStem:
        """Returns the stem of a modality."""
        return getattr(self, f"conv2d_{MODALITIES[name].stem}")  # get_submodule() stops torch.export before torch 2.7

    def offset(self, name: str) -> Tensor:
        """Returns the vector (D,) of a modality, which its stem adds to every token."""
        return getattr(self, f"{MODALITIES[name].stem}_embed")[0]  # get_parameter() refuses a Proxy of torch.fx

    def unused(self, names: Collection[str]) -> list[nn.Parameter]:
        """Parameters of the stems of other modalities than these.

        Joined to the graph with weight zero they have a gradient in each step, which plain
        DistributedDataParallel demands of every rank, whatever modalities it drew.
        """
        parameters: list[nn.Parameter] = []
        for name, modality in MODALITIES.items():
            if name not in names:
                parameters.append(getattr(self, f"{modality.stem}_embed"))
                parameters += self.get_submodule(f"conv2d_{modality.stem}").parameters()
        return parameters

    def set_input_size(
        self, img_size: int | tuple[int, int] | None = None, patch_size: int | tuple[int, int] | None = None
    ) -> None:
        """Changes the nominal input size; positions stay on the 14x14 grid and are resized at run time.

        Raises:
            TerraFMError: If the patch size is not 16.
        """
        if patch_size not in (None, PATCH_SIZE, self.patch_size):
            raise TerraFMError(f"TerraFM's patches are {PATCH_SIZE} px wide, got {patch_size}: drop `patch_size`.")
        if img_size is not None:
            self.img_size = (img_size, img_size) if isinstance(img_size, int) else tuple(img_size)

    def feat_ratio(self, as_scalar: bool = True) -> int | tuple[int, int]:
        """Pixels per token, as timm asks for it."""
        return PATCH_SIZE if as_scalar else self.patch_size

    def dynamic_feat_size(self, img_size: tuple[int, int]) -> tuple[int, int]:
        """Grid of tokens for an image of ``img_size`` (height, width) in pixels."""
        return img_size[0] // PATCH_SIZE, img_size[1] // PATCH_SIZE

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Keeps its own fusion where a checkpoint has none, as the published one has, strict or not.

        Raises:
            TerraFMError: If one of checkpoint and model is folded and the other is not.
        """
        if f"{prefix}conv2d_s1.weight" in state_dict:
            has_folded = f"{prefix}projection.proj1.weight" not in state_dict
            is_folded = isinstance(self.projection.proj1, nn.Identity)
            if has_folded != is_folded:
                folded, plain = ("checkpoint", "model") if has_folded else ("model", "checkpoint")
                raise TerraFMError(
                    f"The {folded} is folded and the {plain} is not: load weights first, then reparameterize."
                )
            fusion = {f"{prefix}fusion.{name}": tensor for name, tensor in self.fusion.state_dict().items()}
            if not fusion.keys() & state_dict.keys():
                state_dict.update(fusion)
        super()._load_from_state_dict(state_dict, prefix, *args)
