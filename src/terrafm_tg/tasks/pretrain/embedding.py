"""The pretraining task outside of training: embeddings of whole tiles by the teacher."""

import math
from typing import Any

from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torchgeo.tasks import BaseTask

from terrafm_tg.land_cover import CLASS_NAMES
from terrafm_tg.losses import DualCenter
from terrafm_tg.models import TerraFMViT
from terrafm_tg.models.embedding import FUSED, embed_sensors
from terrafm_tg.tasks.checkpoint_io import VerifiedCheckpoints
from terrafm_tg.transforms import MultiCrop

from .optimization import Schedules
from .statistics import PrototypeUse


class TeacherEmbedding(VerifiedCheckpoints, BaseTask):
    """Validation and prediction with the teacher, of tiles that are resized to the global crops' size.

    Validation logs entropy and spread of prototypes per land-cover class, ``val/entropy/<class>`` and
    ``val/spread/<class>``; k-NN scores are left to callbacks, which receive the embeddings.
    """

    teacher: TerraFMViT
    teacher_head: nn.Module
    center: DualCenter
    multicrop: MultiCrop
    sensors: list[str]
    schedules: Schedules

    def configure_metrics(self) -> None:
        """Builds the per-class statistics of validation."""
        self.prototype_use = PrototypeUse(self.hparams["head"]["prototypes"])

    def forward(self, x: Tensor | dict[str, Tensor], **kwargs: Any) -> Tensor:
        """Embeddings (B, D) by the teacher; takes what the encoder takes."""
        return self.teacher(x, **kwargs)

    def embed(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Embeds tiles by each sensor alone and by all that a tile has, fused.

        Args:
            batch: Native tiles.

        Returns:
            ``embeddings`` (each sensor's name and ``fused`` -> (n, D)), ``sample_idx`` (the same -> int64 (n,),
            which tiles of the batch these are), and the batch's ``land_cover`` and ``row``, each (B,).
        """
        tiles = self.multicrop.whole(batch, self.hparams["crops"]["global_size"], self.sensors)
        embeddings, idx = embed_sensors(self.teacher, tiles)
        places = {"land_cover": batch["land_cover"], "row": batch["row"]}
        return {"embeddings": embeddings, "sample_idx": idx} | places

    def validation_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Embeds tiles (:meth:`embed`) for the callbacks; adds to the per-class statistics."""
        output = self.embed(batch)
        logits = self.center(self.teacher_head(output["embeddings"][FUSED]))
        self.prototype_use.update(logits, output["land_cover"][output["sample_idx"][FUSED]], self._teacher_temp())
        return output | {"dataloader_idx": dataloader_idx}

    def on_validation_epoch_end(self) -> None:
        """Logs the per-class statistics, of the classes that have enough tiles."""
        statistics = self.prototype_use.compute()
        self.prototype_use.reset()
        if self.trainer.sanity_checking:
            return
        for name in ("entropy", "spread"):
            for title, value in zip(CLASS_NAMES, statistics[name].tolist(), strict=True):
                if math.isfinite(value):
                    self.log(f"val/{name}/{title.lower().replace(' ', '_')}", value, sync_dist=True)

    def predict_step(self, batch: dict[str, Any], batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Embeds tiles, see :meth:`embed`."""
        return self.embed(batch)

    def _teacher_temp(self) -> float:
        """The teacher's temperature now; the end of its schedule where nothing is being fitted."""
        if self.trainer.state.fn != TrainerFn.FITTING or self.trainer.sanity_checking:
            return self.hparams["schedule"]["teacher_temp"][1]
        return self.schedules.at(self.global_step).teacher_temp
