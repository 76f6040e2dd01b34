"""``python -m benchmarks.encoder``: the encoder's forward against a plain implementation of the same numbers."""

import copy
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.models import TerraFMViT, build_encoder, reparameterize
from terrafm_tg.profiling.machine import clock_of, peak_teraflops, seconds_of
from terrafm_tg.utils.devices import describe_device, find_device, has_bf16_units
from terrafm_tg.utils.progress import with_bar

from . import command

#: A short forward is repeated until a measurement takes this many seconds.
_SHORTEST = 0.1


@dataclass(frozen=True)
class Speed:
    """One variant's speed.

    Args:
        variant: Implementation and precision.
        seconds: Median time of one forward.
        ratio: Median over rounds of the plain fp32 time divided by this one's.
        images_per_second: Batch divided by ``seconds``.
        teraflops: Matrix products per second of the folded encoder's count, 10^12.
    """

    variant: str
    seconds: float
    ratio: float
    images_per_second: float
    teraflops: float


class PlainEncoder(nn.Module):
    """The published forward for one modality, each step on its own: convolution, linear maps, softmax attention.

    Args:
        model: Whose parameters to use.
        modality: What it reads.
    """

    def __init__(self, model: TerraFMViT, modality: str) -> None:
        super().__init__()
        self.model = model
        self.stem = get_modality(modality).stem

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> class tokens (B, d)."""
        embed = self.model.patch_embed
        stem, projection = embed.get_submodule(f"conv2d_{self.stem}"), embed.projection
        z = nn.functional.conv2d(x, stem.get_parameter("weight"), stem.get_parameter("bias"), stride=16)
        grid = z.shape[-2:]
        z = z.flatten(2).transpose(1, 2) + embed.get_parameter(f"{self.stem}_embed")
        z = projection.proj3(projection.proj2(projection.norm_input(projection.proj1(z))))
        z = self.model._pos_embed(z.unflatten(1, grid))
        for block in self.model.blocks:
            z = z + self._attention(block.attn, block.norm1(z))
            hidden = nn.functional.gelu(block.mlp.fc1(block.norm2(z)))
            z = z + block.mlp.fc2(hidden)
        return self.model.norm(z)[:, 0]

    @staticmethod
    def _attention(attn: nn.Module, x: Tensor) -> Tensor:
        batch, tokens, dim = x.shape
        qkv = attn.get_submodule("qkv")(x).reshape(batch, tokens, 3, attn.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return attn.get_submodule("proj")((weights @ v).transpose(1, 2).reshape(batch, tokens, dim))


def repeats_of(forward: Callable[[], object], device: torch.device) -> int:
    """Returns how often to run a forward in one measurement; the first calls, which compile, do not count."""
    seconds_of(forward, device, 1)
    return max(1, round(_SHORTEST / seconds_of(forward, device, 1)))


def encoder_speed(
    model: TerraFMViT, modality: str = "s2l2a", size: int = 224, batch: int = 8, rounds: int = 5, compiled: bool = False
) -> list[Speed]:
    """Measures the folded encoder and the plain implementation, in turn.

    In fp32, and under bf16 autocast if the device has units for it. With one thread on a CPU the time is the
    processor's, else wall time.

    Args:
        model: The encoder, on its device; all bands of the modality.
        modality: What it reads.
        size: Height and width in pixels.
        batch: Images per forward.
        rounds: Rounds over all variants.
        compiled: Whether to measure the folded encoder through ``torch.compile`` too.

    Returns:
        The variants, plain fp32 first.

    Raises:
        TerraFMError: If the two implementations do not agree to rounding, or a number is not positive.
    """
    if min(batch, rounds) < 1:
        raise TerraFMError(f"A batch of {batch} and {rounds} rounds measure nothing: take at least one of each.")
    device = model.cls_token.device
    model = copy.deepcopy(model).eval().requires_grad_(False)
    folded = reparameterize(model)
    folded.modality = modality
    x = torch.randn(batch, len(get_modality(modality).bands), size, size, device=device)
    modules: dict[str, nn.Module] = {"plain": PlainEncoder(model, modality), "encoder": folded}
    # A GPU's convolutions round to TF32 unless they are told not to.
    with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        difference = (folded(x) - modules["plain"](x)).abs().max().item()
    if not difference < 1e-2:
        raise TerraFMError(f"The plain implementation differs from the encoder by {difference:.2g}: not a comparison.")
    if compiled:
        modules["encoder, compiled"] = torch.compile(folded)
    variants = {
        f"{name}, {precision}": _forward(module, x, precision == "bf16")
        for precision in _precisions(device)
        for name, module in modules.items()
    }
    repeats = {name: repeats_of(forward, device) for name, forward in variants.items()}  # and warms up
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in with_bar(range(rounds), "Measuring forwards"):
        for name, forward in variants.items():
            times[name].append(seconds_of(forward, device, repeats[name]))
    flops = forward_flops(folded, modality, size) * batch
    plain = next(iter(times.values()))
    return [
        Speed(
            name,
            seconds := statistics.median(own),
            statistics.median(p / o for p, o in zip(plain, own, strict=True)),
            batch / seconds,
            flops / seconds / 1e12,
        )
        for name, own in times.items()
    ]


def _precisions(device: torch.device) -> tuple[str, ...]:
    """Names the precisions that the device computes in; one that it emulates is not measured."""
    return ("fp32", "bf16") if has_bf16_units(device) else ("fp32",)


def forward_flops(model: TerraFMViT, modality: str, size: int) -> int:
    """Operations (a multiplication and an addition are two) of the matrix products of one image."""
    plain = PlainEncoder(copy.deepcopy(model).to("meta"), modality)
    with FlopCounterMode(display=False) as counter:
        plain(torch.empty(1, len(get_modality(modality).bands), size, size, device="meta"))
    return counter.get_total_flops()


def measure(
    model: list[str] | str = "terrafm_base",
    modality: str = "s2l2a",
    size: int = 224,
    batch: int = 8,
    rounds: int = 5,
    compile: bool = False,
    device: str | None = None,
) -> None:
    """Measures the encoder's forward (folded, fused attention) against a plain implementation of the same numbers.

    All variants run in turn, several rounds long, and ratios are taken within a round. With one thread on a CPU
    (OMP_NUM_THREADS=1) processor time counts, which other programs disturb less than wall time.

    Args:
        model: Names of encoders.
        modality: What they read.
        size: Height and width in pixels.
        batch: Images per forward.
        rounds: Rounds of which the median counts.
        compile: Whether to measure `torch.compile` too; it takes minutes to start on a CPU.
        device: Such as cuda or cpu; a GPU where there is one by default.
    """
    for name in [model] if isinstance(model, str) else model:
        _print_speed(name, modality, size, batch, rounds, compile, device)


def _print_speed(
    name: str, modality: str, size: int, batch: int, rounds: int, compiled: bool, device: str | None
) -> None:
    place = find_device(device)
    model = build_encoder(name, modality=modality).to(place)
    rows = encoder_speed(model, modality, size, batch, rounds, compiled)
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16}
    peaks = {name: peak_teraflops(place, dtypes[name]) for name in _precisions(place)}
    best = list(peaks)[-1]
    table = Table(title=f"{name}, {modality}, {size} px, batch {batch}, {describe_device(place)}")
    for column in ("", "ms/forward", "images/s", "x plain fp32", f"of the {best} peak"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        shares = f"{row.images_per_second:.1f}", f"{row.ratio:.2f}", f"{row.teraflops / peaks[best]:.0%}"
        table.add_row(row.variant, f"{1000 * row.seconds:.1f}", *shares)
    table.caption = (
        f"Medians of {rounds} rounds, {'processor' if clock_of(place) is time.thread_time else 'wall'} time; "
        f"measured peak: {', '.join(f'{name} product {peak:.3g} TFLOP/s' for name, peak in peaks.items())}"
    )
    if "bf16" not in peaks:
        table.caption += "; bf16 is not measured, because this processor emulates it"
    Console().print(table)


def _forward(module: nn.Module, x: Tensor, half: bool) -> Callable[[], Tensor]:
    def forward() -> Tensor:
        with torch.inference_mode(), torch.autocast(x.device.type, torch.bfloat16, enabled=half):
            return module(x)

    return forward


if __name__ == "__main__":
    command(measure)
