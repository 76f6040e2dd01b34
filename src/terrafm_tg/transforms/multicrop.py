"""Multi-crop on the device, with the modality as an augmentation (`paper.md`, Pretraining)."""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import MODALITIES, Modality, get_modalities
from terrafm_tg.utils.arguments import NOT_NEGATIVE, checked
from terrafm_tg.utils.random import keyed_uniform

from .augment import Augment
from .normalize import MISSING, affine
from .resample import Views, render
from .statistics import Statistics, with_statistics

#: Uniform numbers that one crop uses.
CROP_DRAWS = 5
#: Number of global crops.
GLOBAL_CROPS = 2
#: What draws depend on: seed, epochs (B,), positions (B,) and views (V, 1).
Key = tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class SensorBatch(NamedTuple):
    """Images of samples, or of views, that differ in the sensors they have.

    Views lie in the order "view 0 of every sample, view 1 of every sample, ...", so that each is a sample of its own,
    ``view * B + sample``.

    Args:
        images: Modality -> normalized images, float (n_m, C_m, H, W) in stem order; H and W are the same for all.
        sample_idx: Modality -> int64 (n_m,), the sample of each image, in any order; None where every sample has every
            modality of ``images``.
        size: Number of samples.
        present: Modality -> bool (n_m, H / 16, W / 16), the positions at which each image shows anything: at others
            the token is made of the other modalities alone. None where all do.
    """

    images: dict[str, Tensor]
    sample_idx: dict[str, Tensor] | None
    size: int
    present: dict[str, Tensor] | None = None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, C, H, W), with the channels of all modalities together; timm reads the size from it."""
        height, width = next(iter(self.images.values())).shape[-2:]
        return self.size, sum(x.shape[1] for x in self.images.values()), height, width

    @property
    def sets(self) -> Tensor:
        """Number of each sample's set of modalities, int64 (B,): equal where the sets are, from 1."""
        number = torch.zeros(self.size, dtype=torch.int64, device=next(iter(self.images.values())).device)
        for i, name in enumerate(self.images):
            number.index_add_(0, self.idx(name), torch.full_like(self.idx(name), 2**i))
        return number

    def idx(self, name: str) -> Tensor:
        """Returns the sample of each image of a modality, int64 (n_m,)."""
        x = self.images[name]
        return torch.arange(len(x), device=x.device) if self.sample_idx is None else self.sample_idx[name]


@checked(seed=NOT_NEGATIVE)
class MultiCrop(nn.Module):
    """Makes the views of a batch of native tiles.

    :meth:`plan` decides on the CPU what each view shows, a function of (seed, epoch, position in the epoch's
    list, view) alone; :meth:`forward` makes the views on the device, without waiting for it. Teacher and
    student see the same global crops with the same augmentation, each in modalities of its own draw.

    Args:
        modalities: Names of the modalities to show; all by default.
        global_size: Edge of the two global crops in pixels.
        local_size: Edge of the local crops in pixels.
        local_crops: Number of local crops.
        global_scale: Range of a global crop's share of the tile's area.
        local_scale: Range of a local crop's share.
        ratio: Range of a crop's width / height.
        modality_probability: Chance of each modality in a view, on condition that one is shown at least.
        fuse: Whether a view may show several modalities; otherwise each shows one.
        augment: Changes of the values; ``NO_CHANGE`` for none.
        seed: Seed of all draws.
        statistics: Mean and standard deviation by modality that images are normalized with; the published ones by
            default.

    Raises:
        TerraFMError: If a setting is impossible.

    Example:
        >>> crop = MultiCrop(global_size=96, local_size=48, local_crops=4)
        >>> batch["plan"] = crop.plan(batch)  # on the CPU, in ``on_before_batch_transfer``
        >>> views = crop(batch, batch["plan"])  # wherever the batch is
        >>> views["student_local"].x["s2l2a"].shape[1:]
        torch.Size([12, 48, 48])
    """

    def __init__(
        self,
        modalities: Sequence[str] | None = None,
        global_size: int = 224,
        local_size: int = 96,
        local_crops: int = 8,
        global_scale: tuple[float, float] = (0.25, 1.0),
        local_scale: tuple[float, float] = (0.05, 0.25),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
        modality_probability: float = 0.5,
        fuse: bool = True,
        augment: Augment = Augment(),
        seed: int = 0,
        statistics: Statistics | None = None,
    ) -> None:
        super().__init__()
        self.scales = {"global": global_scale, "local": local_scale}
        for kind, scale in self.scales.items():
            if not 0 < scale[0] <= scale[1] <= 1:
                raise TerraFMError(
                    f"`{kind}_scale` is {tuple(scale)}: set a range of shares of the tile, above 0 and up to 1."
                )
        if not 0 < ratio[0] <= ratio[1]:
            raise TerraFMError(f"`ratio` is {tuple(ratio)}: set the smallest and the largest width / height, above 0.")
        if not 0 < modality_probability <= 1:
            raise TerraFMError(f"`modality_probability` is {modality_probability}: set a number above 0 and up to 1.")
        if min(global_size, local_size) < 1 or local_crops < 0:
            raise TerraFMError(
                f"{local_crops} local crops of {local_size} px beside global ones of {global_size} px: "
                "set sizes of at least 1 and a number of at least 0."
            )
        self.modalities = tuple(with_statistics(m, statistics) for m in get_modalities(modalities))
        self.statistics = statistics
        self.sizes = {"global": global_size, "local": local_size}
        self.counts = {"global": GLOBAL_CROPS, "local": local_crops}
        self.ratio, self.modality_probability, self.fuse = ratio, modality_probability, fuse
        self.augment, self.seed = augment, seed

    def enlarged(self, batch: Mapping[str, Any]) -> str:
        """Says, of a batch whose tiles are so small that every crop of a kind enlarges them, how much; else nothing."""
        keys = [m.native_key(r) for m in self.modalities for r in m.native if m.native_key(r) in batch]
        side = max((max(batch[key].shape[-2:]) for key in keys), default=0)
        times = {kind: size / side / self.scales[kind][1] ** 0.5 for kind, size in self.sizes.items() if side}
        said = [
            f"{kind} crops of {self.sizes[kind]} pixels enlarge them {times[kind]:.2g} times at least"
            for kind in times
            if times[kind] > 1.01 and self.counts[kind]
        ]
        if not said:
            return ""
        return (
            f"Tiles are {side} pixels across: {' and '.join(said)}, so that views show interpolated pixels. Index "
            "larger tiles (`tile_size`), or set `crops.global_size` and `crops.local_size` to theirs."
        )

    def plan(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Decides what every view of a batch shows.

        Args:
            batch: Batch on the CPU with ``position`` and ``epoch`` (B,) and ``sample_idx_<modality>``, and with
                ``complete``, bool (B, modalities): whether a tile has all of its pixels; where absent, none counts as
                such; and with ``bands_<modality>``, bool (B, C), where tiles lack bands: these are at their training
                mean in every view. A sample of position -1 (one that no sampler drew) is keyed by its ``row``.

        Returns:
            Flat dict of CPU tensors, and of sizes as integers, to be moved with the batch: for "global" and
            "local" and each modality ``<kind>_<modality>_view_idx`` and the fields of :class:`~.resample.Views`.
            Global views are sorted into those of the teacher only, of both, and of the student only, so that each
            one's are a slice: ``_teacher`` is where the teacher's end, ``_student`` where the student's begin.

        Raises:
            TerraFMError: If a sample has none of the modalities.
        """
        position = batch["position"].numpy()
        if "row" in batch:
            position = np.where(position < 0, -1 - batch["row"].numpy(), position)
        source = np.full((len(self.modalities), len(position)), -1)
        complete = np.zeros(source.shape, dtype=bool)
        said = [m.name for m in self.modalities if f"bands_{m.name}" in batch]
        absent_bands = {name: ~batch[f"bands_{name}"].numpy() for name in said}
        for i, m in enumerate(self.modalities):
            if f"sample_idx_{m.name}" in batch:
                sample_idx = batch[f"sample_idx_{m.name}"].numpy()
                source[i, sample_idx] = np.arange(len(sample_idx))
                complete[i, sample_idx] = _complete(batch, m).numpy()
        if (absent := (source < 0).all(0)).any():
            raise TerraFMError(
                f"Sample {absent.argmax()} of the batch has none of the modalities "
                f"{', '.join(m.name for m in self.modalities)}: leave it out, or add a modality that it has."
            )
        plan: dict[str, Any] = {"batch_size": len(position)}
        views = np.split(np.arange(sum(self.counts.values()))[:, None], [GLOBAL_CROPS])
        for kind, of_kind in zip(self.counts, views, strict=True):
            key = self.seed, batch["epoch"].numpy(), position, of_kind
            plan |= self._plan_kind(kind, key, source, complete, absent_bands)
        return plan

    def _plan_kind(
        self,
        kind: str,
        key: Key,
        source: NDArray[np.int64],
        complete: NDArray[np.bool_],
        absent_bands: Mapping[str, NDArray[np.bool_]],
    ) -> dict[str, Any]:
        """The plan of one kind of view.

        ``source`` (M, B) is each sample's place in its modality's stack, ``complete`` (M, B) whether it has all pixels,
        ``absent_bands`` (B, C) by modality which bands it lacks, where any sample may.
        """
        box, turn = draw_boxes(keyed_uniform(*key, CROP_DRAWS, "crop"), self.scales[kind], self.ratio)
        student = self._draw_modalities(key, source, "student")
        teacher = self._draw_modalities(key, source, "teacher") & (kind == "global")
        plan: dict[str, Any] = {}
        for i, m in enumerate(self.modalities):
            seen, taught = student[..., i].ravel(), teacher[..., i].ravel()
            parts = [np.flatnonzero(part) for part in (taught & ~seen, taught & seen, seen & ~taught)]
            view_idx, name = np.concatenate(parts), f"{kind}_{m.name}"
            drawn = np.tile(source[i], len(box)), box.reshape(-1, 4), turn.ravel(), *self._values(m, key)
            whole = np.tile(complete[i], len(box))[view_idx]
            order = _tensor(np.argsort(~whole, kind="stable"))
            tile, boxes, turns, scale, shift, sigma = (_tensor(values[view_idx]) for values in drawn)
            if m.name in absent_bands:
                set_missing(scale, shift, torch.from_numpy(absent_bands[m.name][view_idx % source.shape[1]]))
            views = Views(tile, boxes, turns, scale, shift, sigma, order, int(whole.sum()))
            plan |= {f"{name}_{field}": value for field, value in views._asdict().items()}
            plan |= {f"{name}_view_idx": _tensor(view_idx), f"{name}_student": len(parts[0])}
            plan |= {f"{name}_teacher": len(parts[0]) + len(parts[1])}
        return plan

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, SensorBatch]:
        """Makes the views.

        Args:
            batch: Native tiles, on any device.
            plan: From :meth:`plan` of this batch, on the same device.

        Returns:
            ``teacher_global`` and ``student_global`` (2 views each) and ``student_local``. A modality that no
            view of a group shows has no key in it. Teacher and student share memory: do not write to it.
        """
        size = int(plan["batch_size"])
        sizes = {"teacher_global": GLOBAL_CROPS, "student_global": GLOBAL_CROPS, "student_local": self.counts["local"]}
        images: dict[str, dict[str, Tensor]] = {name: {} for name in sizes}
        idx: dict[str, dict[str, Tensor]] = {name: {} for name in sizes}
        for m in self.modalities:
            for kind in self.counts:
                view_idx = plan[f"{kind}_{m.name}_view_idx"]
                if not len(view_idx):  # the batch may not even hold this modality
                    continue
                views = Views(*(plan[f"{kind}_{m.name}_{field}"] for field in Views._fields))
                # The tallest or widest box: the largest area at the most extreme ratio that still fits.
                extent = min(1.0, math.sqrt(self.scales[kind][1] * max(self.ratio[1], 1 / self.ratio[0])))
                x = render(batch, m, views, self.sizes[kind], self.augment.blur_radius, extent)
                parts = {f"student_{kind}": slice(plan[f"{kind}_{m.name}_student"], None)}
                if kind == "global":
                    parts["teacher_global"] = slice(plan[f"{kind}_{m.name}_teacher"])
                for name, part in parts.items():
                    if len(view_idx[part]):
                        images[name][m.name], idx[name][m.name] = x[part], view_idx[part]
        return {name: SensorBatch(images[name], idx[name], size * count) for name, count in sizes.items()}

    @torch.no_grad()
    def whole(self, batch: Mapping[str, Any], size: int, modalities: Sequence[str] | None = None) -> SensorBatch:
        """Whole tiles, north up and without augmentation, for evaluation.

        Args:
            batch: Native tiles, on any device.
            size: Edge of the images in pixels.
            modalities: Which to return; those of this module where None. One that no sample has is left out.

        Returns:
            One view per sample.
        """
        chosen = [m.name for m in self.modalities] if modalities is None else modalities
        images, idx = {}, {}
        for m in (with_statistics(m, self.statistics) for m in get_modalities(chosen)):
            sample_idx = batch.get(f"sample_idx_{m.name}")
            if sample_idx is None or not len(sample_idx):
                continue
            n, device = len(sample_idx), sample_idx.device
            scale, shift = (x.float().to(device).repeat(n, 1) for x in affine(m))
            if f"bands_{m.name}" in batch:
                set_missing(scale, shift, ~batch[f"bands_{m.name}"][sample_idx])
            box = torch.tensor([0.0, 1.0, 0.0, 1.0], device=device).expand(n, 4)
            turn = torch.zeros(n, dtype=torch.bool, device=device)
            source, no_blur = torch.arange(n, device=device), torch.zeros(n, device=device)
            complete = _complete(batch, m)
            order = complete.logical_not().argsort(stable=True)
            views = Views(source, box, turn, scale, shift, no_blur, order, int(complete.sum()))
            images[m.name], idx[m.name] = render(batch, m, views, size), sample_idx
        return SensorBatch(images, idx, len(batch["position"]))

    def _draw_modalities(self, key: Key, source: NDArray[np.int64], who: str) -> NDArray[np.bool_]:
        """(V, B, M)."""
        uniform = keyed_uniform(*key, 1, who)[..., 0]
        return draw_modalities(uniform, (source >= 0).T, self.modality_probability, self.fuse)

    def _values(self, modality: Modality, key: Key) -> tuple[NDArray[np.float64], ...]:
        """Scale and shift (V * B, C), and the blur (V * B,): augmentation, then normalization."""
        uniform = keyed_uniform(*key, Augment.draws(modality), modality.name)
        gain, offset, sigma = self.augment.change(modality, uniform)
        scale, shift = (x.numpy() for x in affine(modality))
        flat = (-1, len(modality.bands))
        return (scale * gain).reshape(flat), (scale * offset + shift).reshape(flat), sigma.ravel()


def _complete(batch: Mapping[str, Any], modality: Modality) -> Tensor:
    """Returns whether each image of a modality has all of its pixels, bool (n_m,); unknown counts as no."""
    sample_idx = batch[f"sample_idx_{modality.name}"]
    if "complete" not in batch:
        return torch.zeros_like(sample_idx, dtype=torch.bool)
    return batch["complete"][:, list(MODALITIES).index(modality.name)][sample_idx]


def set_missing(scale: Tensor, shift: Tensor, absent: Tensor) -> None:
    """Makes x * scale + shift the training mean, exactly, in absent bands; all are (n, C)."""
    scale.masked_fill_(absent, 0.0)
    shift.masked_fill_(absent, MISSING)


def _tensor(x: NDArray[Any]) -> Tensor:
    return torch.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x)


def draw_boxes(
    uniform: NDArray[np.float64], scale: tuple[float, float], ratio: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Crop boxes and one of the eight orientations of the square.

    The area is uniform in ``scale`` and exact: the aspect ratio is log-uniform within the part of ``ratio``
    with which the box still fits into the tile, where torchvision would retry or fall back.

    Args:
        uniform: Numbers in [0, 1), shape (..., `CROP_DRAWS`).
        scale: Smallest and largest share of the tile's area.
        ratio: Smallest and largest width / height.

    Returns:
        Boxes (..., 4) as the top, bottom, left and right of the view in fractions of the tile, top > bottom
        where the view is flipped upside down and left > right where it is mirrored; and whether rows and
        columns are then exchanged (...).
    """
    area = scale[0] + (scale[1] - scale[0]) * uniform[..., 0]
    low = np.log(np.clip(ratio[0], area, 1 / area))
    high = np.log(np.clip(ratio[1], area, 1 / area))
    aspect = np.exp(low + (high - low) * uniform[..., 1])
    side = np.minimum(np.sqrt(np.stack([area / aspect, area * aspect], -1)), 1.0)  # height, width
    start = (1 - side) * uniform[..., 2:4]
    edges = np.stack([start, start + side], -1)  # (..., 2 axes, 2 ends)
    orientation = (8 * uniform[..., 4]).astype(np.int64)
    flipped = np.stack([orientation & 1, orientation & 2], -1).astype(bool)
    edges = np.where(flipped[..., None], edges[..., ::-1], edges)
    return edges.reshape(*edges.shape[:-2], 4), (orientation & 4).astype(bool)


def draw_modalities(
    uniform: NDArray[np.float64], available: NDArray[np.bool_], probability: float, fuse: bool = True
) -> NDArray[np.bool_]:
    """The modalities of each view: each kept with ``probability``, on condition that at least one is.

    At 0.5 that is uniform over the non-empty sets of what the sample has.

    Args:
        uniform: Numbers in [0, 1), shape (..., B).
        available: Which of the M modalities each sample has, (B, M), at least one each.
        probability: Chance of each modality, above 0.
        fuse: Whether a view may show several modalities; otherwise it shows one, each equally often.

    Returns:
        Which modalities each view shows, (..., B, M).
    """
    count = available.shape[1]
    subsets = np.array(list(product([False, True], repeat=count)))[1:]  # (2^M - 1, M)
    kept = subsets.sum(1)
    possible = ~(subsets & ~available[:, None]).any(2)  # (B, 2^M - 1)
    # Given that a set is possible, what it leaves out of the sample's own modalities was dropped.
    dropped = available.sum(1)[:, None] - kept
    weight = probability**kept * (1.0 - probability) ** np.maximum(dropped, 0) if fuse else kept == 1
    cumulative = np.cumsum(np.where(possible, weight, 0.0), axis=1)
    pick = (uniform[..., None] * cumulative[:, -1:] >= cumulative).sum(-1)
    return subsets[pick]
