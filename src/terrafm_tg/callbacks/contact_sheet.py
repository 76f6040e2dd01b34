"""Writes the views of the first training batch as a picture."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer


class ContactSheet(Callback):
    """Writes what teacher and student really see of the first training batch, then trains on.

    See :func:`~terrafm_tg.transforms.draw_contact_sheet` for how to read it.

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
        """Writes the picture, once, on the first rank."""
        from terrafm_tg.transforms import draw_contact_sheet

        if self._written or not trainer.is_global_zero:
            return
        self._written = True
        whole = pl_module.multicrop.whole(batch, pl_module.hparams["crops"]["global_size"], pl_module.sensors)
        views = pl_module.multicrop(batch, batch["plan"])
        figure = draw_contact_sheet(whole, views, batch["plan"], self.tiles)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(self.path, dpi=130)
        print(f"Contact sheet of the first batch's views: {self.path}")
