"""k-NN by Galileo's protocol (weighted, cosine) and its variants, for one class or several labels; chance levels."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from terrafm_tg.errors import TerraFMError
from terrafm_tg.utils.arguments import COUNT, POSITIVE, checked

#: Neighbors that vote, and the temperature of their votes exp(similarity / T).
K, TEMPERATURE = 20, 0.07
#: Queries compared at a time, which bounds the memory to as many similarities for each tile of the bank.
CHUNK = 1024

#: Similarity: the cosine, or minus the Euclidean distance.
Metric = Literal["cosine", "l2"]
#: A neighbor's vote: exp(similarity / temperature), or 1.
Votes = Literal["similarity", "uniform"]


def knn_votes(
    query: Tensor,
    bank: Tensor,
    targets: Tensor,
    k: int = K,
    temperature: float = TEMPERATURE,
    metric: Metric = "cosine",
    votes: Votes = "similarity",
) -> Tensor:
    """Share of the votes that each class has among the ``k`` nearest neighbors.

    Args:
        query: Embeddings, (n, D).
        bank: Embeddings whose classes are known, (m, D).
        targets: Zeros and ones, (m, L): one 1 per row for one class, any number for several labels.
        k: Neighbors; all of the bank where it holds fewer.
        temperature: Of the votes.
        metric: Which neighbors are near.
        votes: How much a neighbor counts.

    Returns:
        Shares from 0 to 1, float32 (n, L); of one class they add up to 1.

    Raises:
        TerraFMError: If the bank is empty or of another width.
    """
    if len(bank) == 0 or bank.shape[1] != query.shape[1]:
        raise TerraFMError(
            f"k-NN got a bank of shape {tuple(bank.shape)} for queries of shape {tuple(query.shape)}: "
            "give at least one embedding, and both of the same width."
        )
    if metric == "cosine":
        query, bank = normalize(query, dim=1), normalize(bank, dim=1)
    targets = targets.float()
    parts = []
    for part in query.split(CHUNK):
        similarities = part @ bank.T if metric == "cosine" else -torch.cdist(part, bank)
        similarity, nearest = similarities.topk(min(k, len(bank)), dim=1)
        # Only differences count, and the largest vote of a query becomes 1: no exponential overflows.
        logits = similarity - similarity[:, :1] if votes == "similarity" else torch.zeros_like(similarity)
        weight = (logits / temperature).exp()
        parts.append(torch.einsum("nk,nkl->nl", weight, targets[nearest]) / weight.sum(1, keepdim=True))
    return torch.cat(parts) if parts else targets.new_empty(0, targets.shape[1])


@checked(k=COUNT, temperature=POSITIVE)
def knn_predict(query: Tensor, bank: Tensor, labels: Tensor, k: int = K, temperature: float = TEMPERATURE) -> Tensor:
    """Class of each query, int64 (n,), by its nearest neighbors in cosine; the bank's ``labels`` are int64 (m,).

    The other arguments, and what is raised, are those of :func:`knn_votes`.
    """
    targets = one_hot(labels) if len(labels) else labels.new_empty(0, 1)
    return knn_votes(query, bank, targets, k, temperature).argmax(1)


@checked()
def accuracy(predicted: Tensor, target: Tensor) -> float:
    """Share of tiles whose class is right."""
    return (predicted == target).double().mean().item()


@checked()
def balanced_accuracy(predicted: Tensor, target: Tensor) -> float:
    """Mean over the classes present in ``target`` of the share of their tiles that is right."""
    count = target.bincount()
    right = target[predicted == target].bincount(minlength=len(count))
    return (right[count > 0] / count[count > 0]).double().mean().item()


def chance(bank_labels: Tensor, target: Tensor) -> dict[str, float]:
    """Returns the score of a constant answer: the bank's most common class, for accuracy and for balanced accuracy."""
    constant = bank_labels.bincount().argmax().expand_as(target)
    return {"accuracy": accuracy(constant, target), "balanced accuracy": 1.0 / len(target.unique())}
