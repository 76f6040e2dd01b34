"""At the end of a fit: radar to optical, and change, on places that training never saw."""

from collections.abc import Iterator
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console

from terrafm_tg.datamodules import TileDataModule
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.places.report import differences, places_table, write_places
from terrafm_tg.evaluation.places.scores import score_places
from terrafm_tg.evaluation.places.windows import (
    Picture,
    cut_windows,
    describe_windows,
    find_labels,
    open_places,
    read_pictures,
)
from terrafm_tg.utils.progress import with_bar

from .held_out import HeldOutReport


class PlacesReport(HeldOutReport):
    """Compares the trained teacher with the untrained one and with hand-made statistics on held-out places.

    Radar windows of 64 px are looked for among optical ones, and a linear probe tells which patches changed between two
    dates, where ``<place>-cm.tif`` says it. Prints the table and writes ``places.csv`` and two pictures. Hold places
    out by ``val_places``.

    Args:
        folder: Where to write; the logger's folder by default.
    """

    def __init__(self, folder: str | None = None) -> None:
        super().__init__(folder=folder)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops a run that could not be reported, before it has taken its time.

        Raises:
            TerraFMError: If no places are held out, or none shows radar and optical imagery.
        """
        self._held_out(trainer)

    def _held_out(self, trainer: Trainer) -> list[str]:
        data = self.datamodule(trainer)
        wanted = data.hparams.get("val_places")
        if not wanted or not isinstance(data, TileDataModule):
            raise TerraFMError(
                "PlacesReport needs places that training never sees: name some in `val_places`, such as cities, or let "
                "`terrafm real` choose."
            )
        known = {*open_places(data)[1].tolist()}
        if not (found := [name for name in wanted if name in known]) or len(found) == len(known):
            raise TerraFMError(
                f"`val_places` holds out {', '.join(wanted)}, and radar and optical imagery show "
                f"{', '.join(sorted(known))}: name some of these, and not all."
            )
        return found

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates and reports, on the first rank."""
        if getattr(trainer, "fast_dev_run", False) or not trainer.is_global_zero:
            return
        data, device = self.datamodule(trainer), trainer.strategy.root_device
        held_out = self._held_out(trainer)
        assert isinstance(data, TileDataModule)
        dataset, places, optical = open_places(data)
        for encoder in self._encoders.values():
            encoder.to(device).eval()
        kept = dict[str, Picture]()

        def pictures() -> Iterator[Picture]:
            for picture in with_bar(read_pictures(dataset, places), "Images of places", total=len(dataset)):
                if picture.place in held_out and not picture.date and cut_windows(picture.images)[1].size:
                    kept.setdefault(picture.place, picture)
                yield picture

        with torch.autocast(device.type, torch.bfloat16, enabled="bf16" in trainer.precision):
            labels = find_labels(dataset.root)
            windows = describe_windows(pictures(), self._encoders, pl_module.hparams["statistics"], labels, device)
        frame = score_places(windows, held_out, optical).assign(fold=0)
        folder = Path(self.folder or trainer.log_dir or trainer.default_root_dir)
        title = f"Places that training never saw, {pl_module.hparams['model']} after {trainer.global_step:,} steps"
        console = Console()
        console.print(places_table(frame, title))
        console.print(*differences(frame), sep="\n", soft_wrap=True, highlight=False)
        paths = write_places(frame, windows, kept, optical, folder)
        console.print("Written:", *map(str, paths), soft_wrap=True)
