"""``python -m benchmarks.views``: our views of a batch against kornia's random crops of the same tiles."""

import statistics
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.profiling.machine import seconds_of
from terrafm_tg.radiometry import linear_power
from terrafm_tg.transforms import MultiCrop
from terrafm_tg.transforms.augment import NO_CHANGE
from terrafm_tg.utils.devices import describe_device, find_device
from terrafm_tg.utils.files import write_json
from terrafm_tg.utils.progress import with_bar

from . import command
from .in_memory import InMemoryDataModule


class ViewSpeed(NamedTuple):
    """How fast one way makes the views of a batch.

    Args:
        way: Which.
        seconds: Median time of a batch.
        ratio: Median over rounds of the faster kornia's time divided by this one's.
    """

    way: str
    seconds: float
    ratio: float


class KorniaCrops(nn.Module):
    """The same views by kornia: a random crop, resized, and flips for each resolution of each modality.

    It renders as many images as :class:`~terrafm_tg.transforms.MultiCrop`, of the same tiles at the same sizes, by
    bilinear interpolation, and converts them to the encoder's normalized input. It does less: no antialiasing where a
    view shrinks the tile, no missing pixels, no blur and no quarter turn, and bands of different resolution are not
    aligned, since each resolution draws its own crop.

    Args:
        crop: Whose settings to take.
        mode: ``slice`` crops image by image, ``resample`` all at once through a grid.
    """

    def __init__(self, crop: MultiCrop, mode: str) -> None:
        from kornia.augmentation import RandomHorizontalFlip, RandomResizedCrop, RandomVerticalFlip

        super().__init__()
        self.crop = crop
        self.crops = nn.ModuleDict(
            {
                kind: nn.Sequential(
                    RandomResizedCrop((size, size), crop.scales[kind], crop.ratio, cropping_mode=mode),
                    RandomHorizontalFlip(p=0.5),
                    RandomVerticalFlip(p=0.5),
                )
                for kind, size in crop.sizes.items()
            }
        )

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, Tensor]:
        """Views by kind and modality; which tiles they show is the plan's."""
        views = {}
        for m in self.crop.modalities:
            for kind, crops in self.crops.items():
                fields = {name: plan[f"{kind}_{m.name}_{name}"] for name in ("source", "scale", "shift")}
                if not len(fields["source"]):
                    continue
                size = self.crop.sizes[kind]
                out = torch.empty(len(fields["source"]), len(m.bands), size, size, device=fields["source"].device)
                for resolution, bands in m.native.items():
                    made = crops(_tiles(batch[m.native_key(resolution)], fields["source"], m.unit))
                    made = made.clamp_min(1e-4).log10().mul(10) if m.unit == "dB" else made
                    columns = m.band_indices(bands)
                    scale, shift = (fields[name][:, columns, None, None] for name in ("scale", "shift"))
                    out[:, columns] = made * scale + shift
                views[f"{kind}_{m.name}"] = out
        return views


def view_speed(
    batch_size: int = 16, rounds: int = 5, device: torch.device | None = None, **settings: Any
) -> list[ViewSpeed]:
    """Measures both ways in turn over the same tiles.

    Args:
        batch_size: Tiles.
        rounds: Rounds of which the median counts; one more warms up.
        device: The CPU by default.
        settings: Of :class:`~terrafm_tg.transforms.MultiCrop`, and ``tile_size``.

    Returns:
        kornia in both of its modes, then ours without changes of the values, and ours.

    Raises:
        TerraFMError: If a number is not positive.
    """
    if batch_size < 2 or rounds < 1:
        raise TerraFMError(f"{rounds} rounds of {batch_size} tiles measure nothing: take 1 round and 2 tiles or more.")
    device = device or torch.device("cpu")
    data = InMemoryDataModule(batch_size=batch_size, batches=1, tile_size=settings.pop("tile_size", 534))
    batch = next(iter(data.train_dataloader()))
    crop, bare = MultiCrop(**settings), MultiCrop(**settings, augment=NO_CHANGE)
    plans = [
        {name: x.to(device) if isinstance(x, Tensor) else x for name, x in module.plan(batch).items()}
        for module in (crop, bare)
    ]
    batch = {name: x.to(device) for name, x in batch.items()}
    kornia = {f"kornia, {mode}": KorniaCrops(crop, mode) for mode in ("slice", "resample")}
    modules: dict[str, nn.Module] = kornia | {"ours, without blur": bare, "ours": crop}
    ways = {name: partial(module, batch, plans[module is bare]) for name, module in modules.items()}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for number in with_bar(range(rounds + 1), "Making views"):
        for name, way in ways.items():
            seconds = seconds_of(way, device, 1)
            if number:
                times[name].append(seconds)
    return [
        ViewSpeed(
            name,
            statistics.median(own),
            statistics.median(min(both) / o for *both, o in zip(*(times[k] for k in kornia), own, strict=True)),
        )
        for name, own in times.items()
    ]


def measure(
    batch: int = 16, rounds: int = 5, device: str | None = None, tile_size: int = 534, json: Path | None = None
) -> None:
    """Measures the views of a batch against kornia's RandomResizedCrop and flips per resolution, on the same tiles.

    Two global views of 224 px and eight local ones of 96 px, each in the sensors that it draws. What share of a step
    the views take is what `terrafm profile --config ...` says.

    Args:
        batch: Tiles.
        rounds: Rounds of which the median counts.
        device: Such as cuda or cpu; a GPU where there is one by default.
        tile_size: Edge of a tile in pixels of 10 m.
        json: File for the numbers.
    """
    place = find_device(device)
    speeds = view_speed(batch, rounds, place, tile_size=tile_size)
    name = describe_device(place)
    table = Table(title=f"Views of {batch} tiles of {tile_size} px on {name}")
    for column in ("", "ms/batch", "tiles/s", "x kornia"):
        table.add_column(column, justify="right" if column else "left")
    for speed in speeds:
        numbers = f"{1000 * speed.seconds:,.1f}", f"{batch / speed.seconds:,.1f}", f"{speed.ratio:.2f}"
        table.add_row(speed.way, *numbers)
    Console().print(table)
    if json is not None:
        write_json(json, {"device": name, "batch": batch, "speeds": [speed._asdict() for speed in speeds]})


def _tiles(stored: Tensor, rows: Tensor, unit: str) -> Tensor:
    """Tiles as float32; moved as int16, since few kernels know uint16."""
    if unit == "dB":
        return linear_power(stored[rows])
    return stored.view(torch.int16)[rows].view(torch.uint16).float()


if __name__ == "__main__":
    command(measure)
