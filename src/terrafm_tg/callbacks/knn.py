"""Watches, during training, what the embeddings of held-out cells are good for."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.knn import TEMPERATURE, K
from terrafm_tg.evaluation.scores import CROSS_SENSOR, KNN, RETRIEVAL, TOP, collect, gather, score
from terrafm_tg.utils.arguments import COUNT, POSITIVE, checked

_LOG_NAMES = {KNN: "val/knn_{query}", CROSS_SENSOR: "val/knn_{bank}_to_{query}"}


@checked(k=COUNT, temperature=POSITIVE, top=COUNT)
class KNNMonitor(Callback):
    """Logs k-NN accuracy within and across sensors, and retrieval between sensors, after every validation.

    Logs ``val/knn_<sensor>`` (and ``val/knn_fused``), ``val/knn_<bank>_to_<query>`` and
    ``val/recall10_<query>_to_<bank>``, the same values on every rank. Collects what ``validation_step``
    returns, from two loaders: the first holds the bank (tiles of training cells), the second the queries
    (tiles of held-out cells). Tiles whose land cover is unknown take part in retrieval only.

    Args:
        k: Neighbors of the k-NN.
        temperature: Of their votes, exp(cosine / temperature).
        top: Length of the list in which retrieval must find the tile.
    """

    def __init__(self, k: int = K, temperature: float = TEMPERATURE, top: int = TOP) -> None:
        self.k, self.temperature, self.top = k, temperature, top
        self._outputs: tuple[list[Mapping[str, Any]], list[Mapping[str, Any]]] = ([], [])
        self._warned = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets the validation before."""
        self._outputs = ([], [])

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keeps a batch's embeddings.

        Raises:
            TerraFMError: If ``validation_step`` returned none.
        """
        if not isinstance(outputs, Mapping) or "embeddings" not in outputs:
            raise TerraFMError(
                f"KNNMonitor got {type(outputs).__name__} from {type(pl_module).__name__}.validation_step: "
                "return a dict with `embeddings`, `sample_idx`, `land_cover` and `row`, or remove the callback."
            )
        self._outputs[dataloader_idx].append(outputs)

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Scores the queries against the bank and logs."""
        collected = [collect(outputs) for outputs in self._outputs]
        self._outputs = ([], [])
        bank, query = (gather(features) for features in collected)
        if trainer.sanity_checking or not bank or not query:
            return
        rows = list(score(bank, query, self.k, self.temperature, self.top))
        if not any(row["task"] == KNN for row in rows) and not self._warned:
            self._warned = True
            rank_zero_warn(
                "k-NN is not logged, because the land cover of all validation tiles is unknown (-1): build "
                "the index with a WorldCover folder (`terrafm index --worldcover`). Retrieval needs none."
            )
        for row in rows:
            if row["task"] == RETRIEVAL:
                name = f"val/recall{self.top}_{row['query']}_to_{row['bank']}"
            elif row["metric"] == "accuracy":
                name = _LOG_NAMES[row["task"]].format(**row)
            else:
                continue
            pl_module.log(name, row["score"], rank_zero_only=False, sync_dist=False)
