"""Multi-crop on the device, with the modality as an augmentation (`paper.md`, Pretraining)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import Modality, get_modalities
from terrafm_tg.utils.random import keyed_uniform

from .augment import NO_CHANGE, Augment
from .completeness import complete_tiles
from .draws import CROP_DRAWS, draw_boxes, draw_modalities
from .normalize import affine
from .render import Views, render

#: Number of global crops.
GLOBAL_CROPS = 2
#: What draws depend on: seed, epochs (B,), positions (B,) and views (V, 1).
Key = tuple[int, NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]


class ViewGroup(NamedTuple):
    """Views of one size, in the order "view 0 of every sample, view 1 of every sample, ...".

    Args:
        x: Modality -> normalised images, float32 (n_m, C, h, w) in stem order; only views that show it.
        rows: Modality -> int64 (n_m,), the place ``view * B + sample`` of each in that order; itself in any
            order.
        size: Number of views V * B.
    """

    x: dict[str, Tensor]
    rows: dict[str, Tensor]
    size: int


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
        augment: Changes of the values; True for the defaults of :class:`~terrafm_tg.transforms.Augment`,
            False for none.
        seed: Seed of all draws.

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
        augment: Augment | bool = True,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, scale in (("global_scale", global_scale), ("local_scale", local_scale)):
            if not 0 < scale[0] <= scale[1] <= 1:
                raise TerraFMError(
                    f"`{name}` is {tuple(scale)}: set a range of shares of the tile, above 0 and up to 1."
                )
        if not 0 < ratio[0] <= ratio[1]:
            raise TerraFMError(
                f"`ratio` is {tuple(ratio)}: set the smallest and the largest width / height, above 0."
            )
        if not 0 < modality_probability <= 1:
            raise TerraFMError(
                f"`modality_probability` is {modality_probability}: set a number above 0 and up to 1."
            )
        if min(global_size, local_size) < 1 or local_crops < 0:
            raise TerraFMError(
                f"{local_crops} local crops of {local_size} px beside global ones of {global_size} px: "
                "set sizes of at least 1 and a number of at least 0."
            )
        self.modalities = get_modalities(modalities)
        self.sizes = {"global": global_size, "local": local_size}
        self.counts = {"global": GLOBAL_CROPS, "local": local_crops}
        self.scales = {"global": global_scale, "local": local_scale}
        self.ratio = ratio
        self.modality_probability = modality_probability
        self.fuse = fuse
        self.augment = (Augment() if augment else NO_CHANGE) if isinstance(augment, bool) else augment
        self.seed = seed

    def plan(self, batch: Mapping[str, Any]) -> dict[str, Any]:
        """Decides what every view of a batch shows.

        Args:
            batch: Batch on the CPU with ``position`` and ``epoch`` (B,) and ``rows_<modality>``. A sample of
                position -1 (one that no sampler drew) is keyed by its ``row``.

        Returns:
            Flat dict of CPU tensors, and of sizes as integers, to be moved with the batch: for "global" and
            "local" and each modality ``<kind>_<modality>_rows`` and the tensors of :class:`~.render.Views`.
            The rows of global views are sorted into those of the teacher only, of both, and of the student
            only, so that each one's are a slice: ``_teacher`` is where the teacher's end, ``_student`` where
            the student's begin. ``_order`` sorts them into those of complete tiles, ``_complete`` many, and others.

        Raises:
            TerraFMError: If a sample has none of the modalities.
        """
        position = batch["position"].numpy()
        if "row" in batch:
            position = np.where(position < 0, -1 - batch["row"].numpy(), position)
        source = np.full((len(self.modalities), len(position)), -1)
        complete = np.zeros(source.shape, dtype=bool)
        for i, m in enumerate(self.modalities):
            if f"rows_{m.name}" in batch:
                rows = batch[f"rows_{m.name}"].numpy()
                source[i, rows] = np.arange(len(rows))
                complete[i, rows] = complete_tiles(batch, m).numpy()
        if (absent := (source < 0).all(0)).any():
            raise TerraFMError(
                f"Sample {absent.argmax()} of the batch has none of the modalities "
                f"{', '.join(m.name for m in self.modalities)}: leave it out, or add a modality that it has."
            )
        plan: dict[str, Any] = {"batch_size": len(position)}
        views = np.split(np.arange(sum(self.counts.values()))[:, None], [GLOBAL_CROPS])
        for kind, of_kind in zip(self.counts, views, strict=True):
            key = self.seed, batch["epoch"].numpy(), position, of_kind
            plan |= self._plan_kind(kind, key, source, complete)
        return plan

    def _plan_kind(
        self, kind: str, key: Key, source: NDArray[np.int64], complete: NDArray[np.bool_]
    ) -> dict[str, Any]:
        """The plan of one kind of view.

        ``source`` (M, B) is each sample's place in its modality's stack, ``complete`` (M, B) whether it has all pixels.
        """
        box, turn = draw_boxes(keyed_uniform(*key, CROP_DRAWS, "crop"), self.scales[kind], self.ratio)
        student = self._draw_modalities(key, source, "student")
        teacher = self._draw_modalities(key, source, "teacher") & (kind == "global")
        plan: dict[str, Any] = {}
        for i, m in enumerate(self.modalities):
            seen, taught = student[..., i].ravel(), teacher[..., i].ravel()
            parts = [np.flatnonzero(part) for part in (taught & ~seen, taught & seen, seen & ~taught)]
            rows, name = np.concatenate(parts), f"{kind}_{m.name}"
            drawn = np.tile(source[i], len(box)), box.reshape(-1, 4), turn.ravel(), *self._values(m, key)
            views = Views(*(_tensor(values[rows]) for values in drawn))
            plan |= {f"{name}_{field}": tensor for field, tensor in views._asdict().items()}
            plan |= {f"{name}_rows": _tensor(rows), f"{name}_student": len(parts[0])}
            plan |= {f"{name}_teacher": len(parts[0]) + len(parts[1])}
            whole = np.tile(complete[i], len(box))[rows]
            plan |= {f"{name}_order": _tensor(np.argsort(~whole, kind="stable"))}
            plan |= {f"{name}_complete": int(whole.sum())}
        return plan

    @torch.no_grad()
    def forward(self, batch: Mapping[str, Any], plan: Mapping[str, Any]) -> dict[str, ViewGroup]:
        """Makes the views.

        Args:
            batch: Native tiles, on any device.
            plan: From :meth:`plan` of this batch, on the same device.

        Returns:
            ``teacher_global`` and ``student_global`` (2 views each) and ``student_local``. A modality that no
            view of a group shows has no key in it. Teacher and student share memory: do not write to it.
        """
        size = int(plan["batch_size"])
        views = {
            name: ViewGroup({}, {}, size * GLOBAL_CROPS) for name in ("teacher_global", "student_global")
        }
        views["student_local"] = ViewGroup({}, {}, size * self.counts["local"])
        for m in self.modalities:
            for kind in self.counts:
                rows = plan[f"{kind}_{m.name}_rows"]
                if not len(rows):  # the batch may not even hold this modality
                    continue
                x = self._render(batch, plan, m, kind)
                parts = {f"student_{kind}": slice(plan[f"{kind}_{m.name}_student"], None)}
                if kind == "global":
                    parts["teacher_global"] = slice(plan[f"{kind}_{m.name}_teacher"])
                for name, part in parts.items():
                    if len(rows[part]):
                        views[name].x[m.name], views[name].rows[m.name] = x[part], rows[part]
        return views

    @torch.no_grad()
    def whole(
        self, batch: Mapping[str, Any], size: int, modalities: Sequence[str] | None = None
    ) -> ViewGroup:
        """Whole tiles, north up and without augmentation, for evaluation.

        Args:
            batch: Native tiles, on any device.
            size: Edge of the images in pixels.
            modalities: Which to return; those of this module where None. One that no sample has is left out.

        Returns:
            A group of one view per sample: ``rows`` are places in the batch.
        """
        chosen = self.modalities if modalities is None else get_modalities(modalities)
        group = ViewGroup({}, {}, len(batch["position"]))
        for m in chosen:
            rows = batch.get(f"rows_{m.name}")
            if rows is None or not len(rows):
                continue
            n, device = len(rows), rows.device
            scale, shift = (x.float().to(device).expand(n, -1) for x in affine(m))
            box = torch.tensor([0.0, 1.0, 0.0, 1.0], device=device).expand(n, 4)
            turn = torch.zeros(n, dtype=torch.bool, device=device)
            views = Views(
                torch.arange(n, device=device), box, turn, scale, shift, torch.zeros(n, device=device)
            )
            complete = complete_tiles(batch, m)
            order = complete.logical_not().argsort(stable=True)
            x = render(batch, m, views, size, order=order, complete=int(complete.sum()))
            group.x[m.name], group.rows[m.name] = x, rows
        return group

    def _draw_modalities(self, key: Key, source: NDArray[np.int64], who: str) -> NDArray[np.bool_]:
        """(V, B, M)."""
        uniform = keyed_uniform(*key, 1, who)[..., 0]
        return draw_modalities(uniform, (source >= 0).T, self.modality_probability, self.fuse)

    def _values(self, modality: Modality, key: Key) -> tuple[NDArray[np.float64], ...]:
        """Scale and shift (V * B, C), and the blur (V * B,): augmentation, then normalisation."""
        uniform = keyed_uniform(*key, Augment.draws(modality), modality.name)
        gain, offset, sigma = self.augment.change(modality, uniform)
        scale, shift = (x.numpy() for x in affine(modality))
        flat = (-1, len(modality.bands))
        return (scale * gain).reshape(flat), (scale * offset + shift).reshape(flat), sigma.ravel()

    def _render(
        self, batch: Mapping[str, Any], plan: Mapping[str, Any], modality: Modality, kind: str
    ) -> Tensor:
        """Images of all views of one kind that show the modality."""
        name = f"{kind}_{modality.name}"
        views = Views(*(plan[f"{name}_{field}"] for field in Views._fields))
        order = plan[f"{name}_order"], plan[f"{name}_complete"]
        # The tallest or widest box: the largest area at the most extreme ratio that still fits.
        extent = min(1.0, math.sqrt(self.scales[kind][1] * max(self.ratio[1], 1 / self.ratio[0])))
        return render(batch, modality, views, self.sizes[kind], self.augment.blur_radius, extent, *order)


def _tensor(x: NDArray[Any]) -> Tensor:
    return torch.from_numpy(x.astype(np.float32) if x.dtype == np.float64 else x)
