"""Embeddings of bank and query tiles, their scores by k-NN and retrieval, and the interval of a mean."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import permutations
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Tensor
from torch.nn.functional import normalize

from terrafm_tg.models.embedding import FUSED
from terrafm_tg.utils.arguments import COUNT, POSITIVE, checked

from .knn import CHUNK, TEMPERATURE, K, accuracy, balanced_accuracy, chance, knn_predict

_AGREE = 1e-3  # percent: less than one in 100,000 samples


class Estimate(NamedTuple):
    """A mean with a 95 % confidence interval.

    Attributes:
        mean: Of the scores.
        low: Lower end; NaN without an interval.
        high: Upper end; NaN without an interval.
        kind: "t", Student's t over seeds; "binomial", Wilson's interval of one proportion; "" for none.
        n: Number of seeds.
    """

    mean: float
    low: float
    high: float
    kind: str
    n: int

    @property
    def words(self) -> str:
        """The interval, as a table's cell says it."""
        seeds = f"{self.n} seed{'s' * (self.n != 1)}"
        if self.kind == "t":
            return f"±{self.high - self.mean:.1f}, {seeds}"
        return f"{self.low:.1f}–{self.high:.1f} binomial, {seeds}" if self.kind else seeds

    def differs(self, value: float, rounding: float = 0.0) -> bool:
        """Returns whether a value lies outside of the interval, widened by ``rounding``; False without one."""
        return bool(self.kind) and not self.low - rounding <= value <= self.high + rounding


def estimate(scores: Sequence[float], trials: int | None = None) -> Estimate:
    """Estimates the mean over seeds and its interval.

    Seeds that all agree (a k-NN draws nothing) say nothing about the spread: they count as one.

    Args:
        scores: One per seed, in percent.
        trials: Number of test samples, if a score is the share of them that is right.
    """
    values = np.asarray(scores, dtype=float)
    mean, n = float(values.mean()), len(values)
    if np.ptp(values) > _AGREE:
        low, high = stats.t.interval(0.95, n - 1, loc=mean, scale=stats.sem(values))
        return Estimate(mean, float(low), float(high), "t", n)
    if trials:
        low, high = stats.binomtest(round(mean / 100 * trials), trials).proportion_ci(0.95, method="wilson")
        return Estimate(mean, 100 * float(low), 100 * float(high), "binomial", n)
    return Estimate(mean, np.nan, np.nan, "", n)


class TileFeatures(NamedTuple):
    """Embeddings of n tiles as one sensor (or all of them fused) sees them.

    Attributes:
        x: Embeddings, (n, D).
        row: Which tile each belongs to, a row of the dataset's index, int64 (n,).
        land_cover: WorldCover class 0-10, 11 ocean, -1 unknown, int64 (n,).
    """

    x: Tensor
    row: Tensor
    land_cover: Tensor

    def select(self, keep: Tensor) -> "TileFeatures":
        """The tiles at ``keep``, a boolean mask or positions."""
        return TileFeatures(self.x[keep], self.row[keep], self.land_cover[keep])

    def labelled(self) -> "TileFeatures":
        """The tiles whose land cover is known."""
        return self.select(self.land_cover >= 0)

    def unique(self) -> "TileFeatures":
        """Each tile once, by row: ranks may pad their shares, and a damaged tile is replaced by another."""
        return self.select(torch.from_numpy(np.unique(self.row.numpy(), return_index=True)[1]))


@checked()
def collect(outputs: Iterable[Mapping[str, Any]]) -> dict[str, TileFeatures]:
    """Joins batches of embeddings into one :class:`TileFeatures` per sensor, each tile once, on the CPU.

    Args:
        outputs: Per batch ``embeddings`` (name -> (n, D)), ``sample_idx`` (name -> positions (n,) in the batch),
            ``land_cover`` (B,) and ``row`` (B,), as ``TerraFM.validation_step`` returns them.
    """
    parts: dict[str, list[TileFeatures]] = {}
    for output in outputs:
        for name, x in output["embeddings"].items():
            at = output["sample_idx"][name]
            part = TileFeatures(x.detach().float(), output["row"][at], output["land_cover"][at])
            parts.setdefault(name, []).append(TileFeatures(*(tensor.cpu() for tensor in part)))
    return {name: join(some) for name, some in parts.items()}


def join(parts: Iterable[TileFeatures]) -> TileFeatures:
    """Several lists of tiles as one, each tile once."""
    return TileFeatures(*(torch.cat(tensors) for tensors in zip(*parts, strict=True))).unique()


@checked()
def gather(features: dict[str, TileFeatures]) -> dict[str, TileFeatures]:
    """The features of all ranks, the same on each; a rank may hold few tiles of a sensor, or none."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return features
    shares: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(shares, features)
    names = sorted({name for share in shares for name in share})
    return {name: join(share[name] for share in shares if name in share) for name in names}


def center(features: dict[str, TileFeatures], bank: dict[str, TileFeatures]) -> dict[str, TileFeatures]:
    """Removes from each sensor its own mean over the bank: what is constant to a sensor tells no place."""
    return {
        name: tiles._replace(x=tiles.x - bank[name].x.mean(dim=0)) if name in bank else tiles
        for name, tiles in features.items()
    }


#: The right tile counts as found among this many.
TOP = 10
#: Values of the column ``task``.
KNN, CROSS_SENSOR, RETRIEVAL = "knn", "cross-sensor knn", "retrieval"


@checked(k=COUNT, temperature=POSITIVE, top=COUNT)
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
    same = [(KNN, name, name) for name in (sensors if len(sensors) == 1 else bank)]
    for task, a, b in same + [(CROSS_SENSOR, a, b) for a, b in permutations(sensors, 2)]:
        if b in query:
            for row in _knn(bank[a], query[b], k, temperature):
                yield {"task": task, "bank": a, "query": b} | row
    for a, b in permutations((name for name in query if name != FUSED), 2):
        if query[a].x.shape[1] == query[b].x.shape[1]:
            value, level, count = recall(query[a], query[b], top)
            row = {"task": RETRIEVAL, "bank": b, "query": a, "metric": f"recall@{top}", "score": value}
            if count:
                yield row | {"chance": level, "n_bank": len(query[b].row), "n_query": count}


def _knn(bank: TileFeatures, query: TileFeatures, k: int, temperature: float) -> Iterator[dict[str, Any]]:
    """Accuracy and balanced accuracy on the tiles of known land cover, none where they cannot be compared."""
    bank, query = bank.labelled(), query.labelled()
    if not (len(bank.row) and len(query.row) and bank.x.shape[1] == query.x.shape[1]):
        return
    predicted = knn_predict(query.x, bank.x, bank.land_cover, k, temperature)
    level = chance(bank.land_cover, query.land_cover)
    for metric, measure in (("accuracy", accuracy), ("balanced accuracy", balanced_accuracy)):
        row = {"metric": metric, "score": measure(predicted, query.land_cover), "chance": level[metric]}
        yield row | {"n_bank": len(bank.row), "n_query": len(query.row)}


@checked(k=COUNT)
def recall(query: TileFeatures, bank: TileFeatures, k: int = TOP) -> tuple[float, float, int]:
    """Recall@k in cosine of the same tile among all tiles of the bank, each of which is listed once.

    A tie counts against the query, so that an encoder that maps all tiles to one point finds nothing.

    Args:
        query: Tiles as sensor A sees them; those that the bank lacks are left out.
        bank: Tiles as sensor B sees them.
        k: Length of the list in which the tile must stand.

    Returns:
        The recall (NaN without queries), its chance level ``k / N`` for a bank of N, and the number of
        queries.
    """
    found = own_ranks(query.select(torch.isin(query.row, bank.row)), bank) <= k
    chance = min(1.0, k / len(bank.row)) if len(bank.row) else float("nan")
    return found.double().mean().item(), chance, len(found)


def own_ranks(query: TileFeatures, bank: TileFeatures) -> Tensor:
    """The place of each query's own tile in the bank by cosine, int64 (n,): 1 is the nearest, ties count against it.

    Args:
        query: Tiles as sensor A sees them.
        bank: Tiles as sensor B sees them, the same and others.
    """
    order = bank.row.argsort()
    target = order[torch.searchsorted(bank.row[order], query.row)]
    keys = normalize(bank.x, dim=1).T.contiguous()
    found = []
    for x, place in zip(normalize(query.x, dim=1).split(CHUNK), target.split(CHUNK), strict=True):
        similarity = x @ keys
        found.append((similarity >= similarity.gather(1, place[:, None])).sum(dim=1))
    return torch.cat(found)
