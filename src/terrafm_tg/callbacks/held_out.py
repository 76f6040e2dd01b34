"""At the end of a fit: what training has changed, measured on held-out cells."""

from copy import deepcopy

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from rich.console import Console
from torch import nn

from terrafm_tg.datamodules import TileDataModule
from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.held_out import embed_held_out, held_out_loaders, score_held_out
from terrafm_tg.evaluation.held_out_picture import draw_picture, write_nearest
from terrafm_tg.evaluation.held_out_report import TRAINED, UNTRAINED, table, write_report
from terrafm_tg.utils.arguments import COUNT, checked


@checked(size=COUNT)
class HeldOutReport(Callback):
    """Compares the trained teacher with the untrained one and with plain band statistics on held-out cells.

    Prints the table and writes ``held_out.csv``, ``held_out.png`` and, with a datamodule of tiles,
    ``nearest_tiles.png`` (what a search by radar finds, and maps of patch tokens) into the run's folder. The untrained
    encoder is a copy from before the first step, with the run's own seed, also where the run was resumed.

    Args:
        size: Height and width in pixels of a resized tile; the task's ``crops.global_size`` by default.
        centered: Remove from every embedding its sensor's mean over the bank (see ``evaluate_held_out``).
        folder: Where to write; the logger's folder by default.
    """

    def __init__(self, size: int | None = None, centered: bool = False, folder: str | None = None) -> None:
        self.size, self.centered, self.folder = size, centered, folder
        self._encoders: dict[str, nn.Module] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Copies the teacher before a checkpoint is restored into it.

        Raises:
            TerraFMError: If the task has no teacher or the trainer no datamodule.
        """
        if stage == "fit":
            self.datamodule(trainer)
            teacher = getattr(pl_module, "teacher", None)
            if not isinstance(teacher, nn.Module):
                raise TerraFMError(
                    f"HeldOutReport got {type(pl_module).__name__}, which has no `teacher` encoder: give it "
                    "TerraFM, or remove the callback."
                )
            self._encoders = {UNTRAINED: deepcopy(teacher).cpu(), TRAINED: teacher}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stops a run that could not be reported, before it has taken its time.

        Raises:
            TerraFMError: If the datamodule holds out no tiles.
        """
        held_out_loaders(self.datamodule(trainer))

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluates on every rank; the first one reports."""
        if getattr(trainer, "fast_dev_run", False):
            return
        folder = self.folder or trainer.log_dir or trainer.default_root_dir
        datamodule, size = self.datamodule(trainer), self.size or pl_module.hparams["crops"]["global_size"]
        features = embed_held_out(
            self._encoders,
            datamodule,
            size,
            modalities=pl_module.hparams.get("modalities"),
            device=trainer.strategy.root_device,
            autocast="bf16" in trainer.precision,
            centered=self.centered,
            statistics=pl_module.hparams.get("statistics"),
            progress=trainer.is_global_zero,
        )
        if trainer.is_global_zero:
            title = f"Held-out cells, {pl_module.hparams['model']} after {trainer.global_step:,} steps"
            console, frame = Console(), score_held_out(features)
            console.print(table(frame, title))
            written = [*write_report(frame, folder, title)]
            if isinstance(datamodule, TileDataModule):
                statistics = pl_module.hparams.get("statistics")
                picture = draw_picture(features, self._encoders, datamodule.tiles, size, statistics)
                written += [] if picture is None else [write_nearest(picture, folder)]
            console.print("Written:", *map(str, written), soft_wrap=True)

    @staticmethod
    def datamodule(trainer: Trainer) -> LightningDataModule:
        """Returns the datamodule, whose held-out tiles are needed.

        Raises:
            TerraFMError: If there is none.
        """
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is None:
            raise TerraFMError(
                "HeldOutReport needs a datamodule's held-out tiles, but the Trainer got dataloaders: fit with "
                "a datamodule, or remove the callback."
            )
        return datamodule
