"""From embeddings of bank and query tiles to rows of a tidy table: k-NN, k-NN across sensors, retrieval."""

from collections.abc import Iterator
from itertools import permutations
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from terrafm_tg.models.embedding import FUSED

from .features import TileFeatures
from .knn import TEMPERATURE, K, accuracy, balanced_accuracy, chance, knn_predict

#: The right tile counts as found among this many.
TOP = 10
#: Values of the column ``task``.
KNN, CROSS_SENSOR, RETRIEVAL = "knn", "cross-sensor knn", "retrieval"


def score(
    bank: dict[str, TileFeatures],
    query: dict[str, TileFeatures],
    k: int = K,
    temperature: float = TEMPERATURE,
    top: int = TOP,
) -> Iterator[dict[str, Any]]:
    """Every score that embeddings allow.

    What cannot be compared gives no row: sensors whose embeddings differ in width (band statistics of radar
    and optics), sensors that never saw the same tile, a bank or queries without a tile of known land cover,
    and fused where there is but one sensor.

    Args:
        bank: Tiles of the training cells, by sensor and :data:`FUSED`.
        query: Tiles of the held-out cells.
        k: Neighbors of the k-NN.
        temperature: Of its votes.
        top: Length of retrieval's list.

    Yields:
        ``task``, ``bank``, ``query``, ``metric``, ``score``, ``chance``, ``n_bank``, ``n_query``. In
        retrieval both sides are held-out tiles, and ``bank`` is the sensor that is searched.
    """
    sensors = [name for name in bank if name != FUSED]
    for name in sensors if len(sensors) == 1 else bank:
        yield from _knn(KNN, bank, query, name, name, k, temperature)
    for a, b in permutations(sensors, 2):
        yield from _knn(CROSS_SENSOR, bank, query, a, b, k, temperature)
    for a, b in permutations((name for name in query if name != FUSED), 2):
        if query[a].x.shape[1] == query[b].x.shape[1]:
            value, level, count = recall(query[a], query[b], top)
            row = {"task": RETRIEVAL, "bank": b, "query": a, "metric": f"recall@{top}", "score": value}
            if count:
                yield row | {"chance": level, "n_bank": len(query[b].row), "n_query": count}


def _knn(
    task: str,
    banks: dict[str, TileFeatures],
    queries: dict[str, TileFeatures],
    a: str,
    b: str,
    k: int,
    temperature: float,
) -> Iterator[dict[str, Any]]:
    if b not in queries:
        return
    bank, query = banks[a].labelled(), queries[b].labelled()
    if not (len(bank.row) and len(query.row) and bank.x.shape[1] == query.x.shape[1]):
        return
    predicted = knn_predict(query.x, bank.x, bank.land_cover, k, temperature)
    level = chance(bank.land_cover, query.land_cover)
    for metric, measure in (("accuracy", accuracy), ("balanced accuracy", balanced_accuracy)):
        row = {"task": task, "bank": a, "query": b, "metric": metric}
        yield row | {
            "score": measure(predicted, query.land_cover),
            "chance": level[metric],
            "n_bank": len(bank.row),
            "n_query": len(query.row),
        }


def recall(query: TileFeatures, bank: TileFeatures, k: int = TOP, chunk: int = 1024) -> tuple[float, float, int]:
    """Recall@k in cosine of the same tile among all tiles of the bank, each of which is listed once.

    A tie counts against the query, so that an encoder that maps all tiles to one point finds nothing.

    Args:
        query: Tiles as sensor A sees them; those that the bank lacks are left out.
        bank: Tiles as sensor B sees them.
        k: Length of the list in which the tile must stand.
        chunk: Queries compared at a time.

    Returns:
        The recall (NaN without queries), its chance level ``k / N`` for a bank of N, and the number of
        queries.
    """
    query = query.select(torch.isin(query.row, bank.row))
    order = bank.row.argsort()
    target = order[torch.searchsorted(bank.row[order], query.row)]
    keys = normalize(bank.x, dim=1).T.contiguous()
    found: list[Tensor] = []
    for x, place in zip(normalize(query.x, dim=1).split(chunk), target.split(chunk), strict=True):
        similarity = x @ keys
        right = similarity.gather(1, place[:, None])
        found.append((similarity >= right).sum(dim=1) <= k)
    chance = min(1.0, k / len(bank.row)) if len(bank.row) else float("nan")
    return torch.cat(found).double().mean().item() if len(query.row) else float("nan"), chance, len(query.row)
