"""The views of the first training batch as a picture: what teacher and student really see."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from numpy.typing import NDArray
from torch import Tensor

from terrafm_tg.errors import TerraFMError
from terrafm_tg.modalities import get_modality
from terrafm_tg.tasks import TerraFM
from terrafm_tg.transforms import SensorBatch
from terrafm_tg.transforms.statistics import Statistics, with_statistics
from terrafm_tg.utils.arguments import COUNT, checked

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Column titles and kind of crop of each group of views.
_GROUPS = {
    "teacher_global": ("teacher, global", "global"),
    "student_global": ("student, global", "global"),
    "student_local": ("student, local", "local"),
}


@checked(tiles=COUNT)
class ContactSheet(Callback):
    """Writes what teacher and student really see of the first training batch, then trains on.

    See :func:`draw_contact_sheet` for how to read it.

    Args:
        path: Picture to write, such as ``sheet.png``.
        tiles: Tiles to show.
    """

    def __init__(self, path: str | Path, tiles: int = 3) -> None:
        self.path = Path(path)
        self.tiles = tiles
        self._written = False

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: dict[str, Any], batch_idx: int
    ) -> None:
        """Writes the picture, once, on the first rank.

        Raises:
            TerraFMError: If the task is not TerraFM's pretraining.
        """
        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        if not isinstance(pl_module, TerraFM):
            raise TerraFMError(
                f"ContactSheet got {type(pl_module).__name__}, which makes no views: remove the callback."
            )
        whole = pl_module.multicrop.whole(batch, pl_module.hparams["crops"]["global_size"], pl_module.sensors)
        views = pl_module.multicrop(batch, batch["plan"])
        figure = draw_contact_sheet(whole, views, batch["plan"], self.tiles, pl_module.multicrop.statistics)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path, dpi=130)
        print(f"Contact sheet of the first batch's views: {self.path}")


def draw_contact_sheet(
    whole: SensorBatch,
    views: Mapping[str, SensorBatch],
    plan: Mapping[str, Any],
    tiles: int = 3,
    statistics: Statistics | None = None,
) -> "Figure":
    """Draws the views of the first tiles of a batch.

    A line per tile and sensor, a column per view. The first column is the whole tile, north up and without
    augmentation, with the outlines of the crops. All images of a line share one stretch of brightness, so
    that augmentation shows. Sentinel-2 is drawn in true color (B04, B03, B02), Sentinel-1 as VV, VH and VV -
    VH in dB, missing pixels as the encoder gets them. In the other places stands "not drawn" where the view did
    not draw the sensor, and "no data" where the tile lacks it.

    Args:
        whole: From :meth:`MultiCrop.whole` of the batch.
        views: From :meth:`MultiCrop.forward` of the batch.
        plan: From :meth:`MultiCrop.plan`.
        tiles: Number of tiles to show.
        statistics: Those that the views are normalized with; the published ones where None.

    Returns:
        The figure; ``figure.savefig("sheet.png")`` writes it.
    """
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    columns = [(name, view) for name in _GROUPS for view in range(views[name].size // whole.size)]
    titles = ["whole tile", *(f"{_GROUPS[name][0]}\ncrop {view + 1}" for name, view in columns)]
    lines = [(tile, sensor) for tile in range(min(tiles, whole.size)) for sensor in whole.images]
    size = (1.25 * (len(columns) + 1) + 0.4, 1.25 * len(lines) + 0.9)
    figure = Figure(figsize=size, layout="constrained")
    figure.suptitle("Views of the first tiles of a batch", x=0.01, ha="left", fontsize=11, fontweight="bold")
    axes = figure.subplots(len(lines), len(columns) + 1, squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_visible(False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=8)
    for line, (tile, sensor) in zip(axes, lines, strict=True):
        line[0].set_ylabel(f"tile {tile + 1}\n{get_modality(sensor).title}", fontsize=7)
        reference = _picture(whole, sensor, tile, statistics)
        stretch = (0.0, 1.0) if reference is None else np.percentile(reference, (1, 99), axis=(0, 1))
        _show(line[0], reference, stretch, "no data")
        for ax, (name, view) in zip(line[1:], columns, strict=True):
            kind, place = _GROUPS[name][1], view * whole.size + tile
            picture = _picture(views[name], sensor, place, statistics)
            _show(ax, picture, stretch, "no data" if reference is None else "not drawn")
            if reference is None or picture is None:
                continue
            color = colormaps["tab10"]((view + 2 * (kind == "local")) % 10)
            ax.spines[:].set(visible=True, color=color, linewidth=1.5)
            box = plan[f"{kind}_{sensor}_box"][_find(plan[f"{kind}_{sensor}_view_idx"], place)]
            # The crop's outline in pixels; a dot marks the corner that is the view's upper left before any turn.
            top, bottom, left, right = box.cpu().numpy() * len(reference) - 0.5
            line[0].plot([left, right, right, left, left], [top, top, bottom, bottom, top], color=color, linewidth=0.8)
            line[0].plot(left, top, marker="o", markersize=2.5, color=color, clip_on=False)
    return figure


def _show(ax: "Axes", picture: NDArray[np.float32] | None, stretch: Any, absent: str) -> None:
    if picture is None:
        ax.text(0.5, 0.5, absent, ha="center", va="center", fontsize=7, color="#9aa4ae", transform=ax.transAxes)
    else:
        low, high = stretch
        ax.imshow(np.clip((picture - low) / np.maximum(high - low, 1e-6), 0, 1), interpolation="nearest")


def _picture(group: SensorBatch, name: str, place: int, statistics: Statistics | None) -> NDArray[np.float32] | None:
    """Three channels (h, w, 3) of the view at that place of the list; None where it lacks the modality."""
    found = _find(group.idx(name), place) if name in group.images else None
    if found is None:
        return None
    x, modality = group.images[name][found].detach().float().cpu(), with_statistics(get_modality(name), statistics)
    if modality.unit == "dB":
        vv, vh = (x[i].numpy() * 4 * modality.std[i] + modality.mean[i] - 2 * modality.std[i] for i in (0, 1))
        return np.stack([vv, vh, vv - vh], axis=-1)
    return x[modality.band_indices(("B04", "B03", "B02"))].permute(1, 2, 0).numpy()


def _find(view_idx: Tensor, place: int) -> int | None:
    found = (view_idx == place).nonzero().flatten().tolist()
    return found[0] if found else None
