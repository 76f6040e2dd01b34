"""Scores of windows of held-out places: radar to optical, change by a linear probe, and dimensions of embeddings."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch.nn.functional import normalize
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from terrafm_tg.modalities import S1RTC
from terrafm_tg.tasks.pretrain.statistics import embedding_statistics

from .canonical import fit_canonical, probe
from .windows import LAYOUT, STATISTICS, Windows

#: Values of the column ``task``.
WITHIN, OVERALL, CHANGE, DIMENSIONS = "within", "over all", "change", "dimensions"
#: Values of the column ``features``: embeddings as they are, or after the linear map of canonical correlation.
AS_THEY_ARE, CANONICAL = "", "canonical correlation"
_TOPS = (1, 5)
#: Names of scores.
SHARE, PRECISION, AUROC, RATIO = "median rank share", "average precision", "AUROC", "participation ratio"


def nearer_shares(query: NDArray, bank: NDArray) -> NDArray[np.int64]:
    """Counts for each query how many others of the bank are as near as its own, or nearer, in cosine.

    Args:
        query: (n, D).
        bank: (n, D), of which row i is that of query i.

    Returns:
        (n,), 0 where its own is nearest. A tie counts against the query, so that features that are one point find
        nothing.
    """
    a, b = (normalize(torch.from_numpy(np.asarray(x, np.float64)), dim=1) for x in (query, bank))
    similar = a @ b.T
    return ((similar >= similar.diagonal()[:, None]).sum(dim=1) - 1).numpy()


def score_places(windows: Windows, held_out: Sequence[str], optical: str) -> pd.DataFrame:
    """Scores every encoder, and the statistics, on held-out places; maps and probes are fitted on all others.

    Args:
        windows: Of all places.
        held_out: Names of places.
        optical: Modality that radar is compared with.

    Returns:
        A row per score and place: ``encoder``, ``features`` (:data:`AS_THEY_ARE`, with each sensor's mean over the
        training places taken off, or :data:`CANONICAL`), ``task``, ``sensor``, ``metric``, ``place``, ``score``,
        ``chance``, ``n`` (windows, patches that changed).
    """
    test = windows.where["place"].isin(held_out).to_numpy()
    rows: list[dict[str, Any]] = []
    for encoder, features in windows.features.items():
        sides = [features[S1RTC.name], features[optical]]
        maps = fit_canonical(*(x[~test] for x in sides))
        pairs = {CANONICAL: [maps.project(x[test], side) for side, x in enumerate(sides)]}
        if sides[0].shape[1] == sides[1].shape[1]:
            pairs[AS_THEY_ARE] = [x[test] - x[~test].mean(axis=0) for x in sides]
        for kind, (query, bank) in pairs.items():
            found = _same_place(query, bank, windows.where[test].reset_index(drop=True))
            rows += [{"encoder": encoder, "features": kind, "sensor": f"radar to {optical}"} | row for row in found]
        for name in (S1RTC.name, optical):
            about = {"encoder": encoder, "features": AS_THEY_ARE, "sensor": name}
            if encoder in windows.tokens:
                rows += [about | row for row in _change(windows, encoder, name, test)]
            if encoder not in (STATISTICS, LAYOUT):
                ratio = float(embedding_statistics(torch.from_numpy(features[name][test]))[1])
                row = {"task": DIMENSIONS, "metric": RATIO, "place": "", "score": ratio, "chance": np.nan}
                rows.append(about | row | {"n": int(test.sum())})
    return pd.DataFrame(rows)


def _same_place(query: NDArray, bank: NDArray, where: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Scores retrieval among the windows of each place and date, as the mean of its dates, and among all windows."""
    nearer = nearer_shares(query, bank)
    for place, part in where.groupby("place"):
        dates = [index.to_numpy() for index in part.groupby("date").groups.values() if len(index) > 1]
        for task, groups in ((WITHIN, dates), (OVERALL, [part.index.to_numpy()] if len(where) > 1 else [])):
            scores: dict[str, list[tuple[float, float]]] = {}
            for at in groups:
                before, others = (nearer[at], len(where) - 1) if task == OVERALL else (None, len(at) - 1)
                before = nearer_shares(query[at], bank[at]) if before is None else before
                for k in _TOPS:
                    chance = min(k / (others + 1), 1.0)
                    scores.setdefault(f"recall@{k}", []).append((float((before < k).mean()), chance))
                scores.setdefault(SHARE, []).append((float(np.median(before)) / others, 0.5))
            for metric, values in scores.items():
                score, chance = np.mean(values, axis=0).tolist()
                yield {"task": task, "metric": metric, "place": place, "score": score, "chance": chance, "n": len(part)}


def _change(windows: Windows, encoder: str, name: str, test: NDArray[np.bool_]) -> Iterator[dict[str, Any]]:
    """Scores a linear probe on how much each patch's tokens differ between the first two dates."""
    keys, where = ["place", "grid", "row", "column"], windows.where.reset_index(drop=True)
    pairs = where[where.date == 0].reset_index().merge(where[where.date == 1].reset_index(), on=keys)
    if pairs.empty:
        return
    first, second = pairs["index_x"].to_numpy(), pairs["index_y"].to_numpy()
    tokens, label = windows.tokens[encoder][name], windows.changed[first]
    place = np.repeat(pairs["place"].to_numpy(str), label.shape[1])
    x = np.abs(tokens[second] - tokens[first]).reshape(label.size, -1)
    label, held = label.ravel(), np.repeat(test[first], label.shape[1])
    known = np.isfinite(label)
    train = known & ~held
    if not (label[train] > 0).any():
        return
    for city in np.unique(place[known & held]):
        at = known & held & (place == city)
        if not 0 < (true := label[at] > 0).sum() < len(true):
            continue
        scores = torch.from_numpy(probe(x[train], label[train], x[at])), torch.from_numpy(true.astype(np.int64))
        found = {PRECISION: (binary_average_precision(*scores), true.mean()), AUROC: (binary_auroc(*scores), 0.5)}
        for metric, (score, chance) in found.items():
            row = {"task": CHANGE, "metric": metric, "place": city, "score": float(score), "chance": float(chance)}
            yield row | {"n": int(true.sum())}
