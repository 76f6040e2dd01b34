"""k-NN on frozen embeddings: the train split votes, the test split is scored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, get_args

from torch.nn.functional import one_hot

from terrafm_tg.errors import TerraFMError
from terrafm_tg.evaluation.knn import TEMPERATURE, K, Metric, Votes, knn_votes
from terrafm_tg.tasks.finetune.metrics import Score

from .base import Context, Protocol, Splits
from .embedded import counted, embed_splits

if TYPE_CHECKING:
    from terrafm_tg.evaluation.encoders import ModelSpec


@dataclass(frozen=True)
class KNN(Protocol):
    """Galileo's k-NN by default; of several labels, one k-NN of two classes each, as there.

    Args:
        k: Neighbors that vote; all of the train split where it holds fewer.
        metric: "cosine", or "l2" (then similarity is minus the Euclidean distance).
        temperature: Of the votes exp(similarity / temperature).
        votes: "similarity" for those, "uniform" for one each.
    """

    name: ClassVar[str] = "knn"
    kinds: ClassVar[frozenset[str]] = frozenset({"multiclass", "multilabel"})
    seeded: ClassVar[bool] = False

    k: int = K
    metric: Metric = "cosine"
    temperature: float = TEMPERATURE
    votes: Votes = "similarity"

    def __post_init__(self) -> None:
        self.check_positive("k", "temperature")
        for name, choices in (("metric", get_args(Metric)), ("votes", get_args(Votes))):
            if (value := getattr(self, name)) not in choices:
                raise TerraFMError(f"`{name}` of the protocol knn is {value!r}: use one of {', '.join(choices)}.")

    def run(self, spec: ModelSpec, splits: Splits, context: Context) -> list[Score]:
        """See :class:`~terrafm_tg.evaluation.protocols.Protocol`."""
        task = splits.train.task
        several = task.kind == "multilabel"
        bank, test = embed_splits(self, spec, splits, context, "train", "test")
        targets = bank.y if several else one_hot(bank.y, len(task.classes))
        share = knn_votes(test.x, bank.x, targets, self.k, self.temperature, metric=self.metric, votes=self.votes)
        # A label is there where more than half of the votes say so.
        return counted(task, share - 0.5 if several else share, test.y).compute()
