"""Weighted cosine k-NN by Galileo's protocol, and its chance levels."""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from terrafm_tg.errors import TerraFMError

#: Neighbours that vote, and the temperature of their votes exp(similarity / T).
K, TEMPERATURE = 20, 0.07


def knn_predict(
    query: Tensor,
    bank: Tensor,
    labels: Tensor,
    k: int = K,
    temperature: float = TEMPERATURE,
    chunk: int = 1024,
) -> Tensor:
    """Class of each query by its ``k`` nearest neighbours in cosine; they vote exp(similarity / temperature).

    Args:
        query: Embeddings, (n, D).
        bank: Embeddings with known class, (m, D).
        labels: Their classes, >= 0, int64 (m,).
        k: Neighbours; all of the bank where it holds fewer.
        temperature: Of the votes.
        chunk: Queries compared at a time, which bounds the memory to ``chunk`` x m similarities.

    Returns:
        Classes, int64 (n,).

    Raises:
        TerraFMError: If the bank is empty or of another width.
    """
    from lightly.utils.benchmarking import knn_predict as predict

    if len(bank) == 0 or bank.shape[1] != query.shape[1]:
        raise TerraFMError(
            f"k-NN got a bank of shape {tuple(bank.shape)} for queries of shape {tuple(query.shape)}: "
            "give at least one embedding, and both of the same width."
        )
    query, bank = normalize(query, dim=1), normalize(bank, dim=1).T.contiguous()
    classes = int(labels.max()) + 1
    parts = [
        predict(part, bank, labels, classes, knn_k=min(k, bank.shape[1]), knn_t=temperature)[:, 0]
        for part in query.split(chunk)
    ]
    return torch.cat(parts) if parts else labels.new_empty(0)


def accuracy(predicted: Tensor, target: Tensor) -> float:
    """Share of tiles whose class is right."""
    return (predicted == target).double().mean().item()


def balanced_accuracy(predicted: Tensor, target: Tensor) -> float:
    """Mean over the classes present in ``target`` of the share of their tiles that is right."""
    count = target.bincount()
    right = target[predicted == target].bincount(minlength=len(count))
    return (right[count > 0] / count[count > 0]).double().mean().item()


def chance(bank_labels: Tensor, target: Tensor) -> dict[str, float]:
    """What a constant answer scores: the bank's most common class, for accuracy and for balanced accuracy."""
    constant = bank_labels.bincount().argmax().expand_as(target)
    return {"accuracy": accuracy(constant, target), "balanced accuracy": 1.0 / len(target.unique())}
