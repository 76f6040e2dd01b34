"""Same-place retrieval: does one sensor's picture of a tile find the same tile as another sensor sees it?"""

import torch
from torch import Tensor
from torch.nn.functional import normalize

from .features import TileFeatures

#: The right tile counts as found among this many.
TOP = 10


def recall(
    query: TileFeatures, bank: TileFeatures, k: int = TOP, chunk: int = 1024
) -> tuple[float, float, int]:
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
