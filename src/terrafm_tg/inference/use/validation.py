"""Scores of a map from a few labels: cross-validation in space, with an interval and what a guess has."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .labels import Labels, places_in_words
from .vectors import in_space

#: Up to so many labeled places, each is left out once; of more, so many blocks of them.
SINGLE, BLOCKS = 30, 10
_DRAWS = 20_000


class Fold(NamedTuple):
    """Labels to test, and those to learn from, all further from them than the buffer."""

    train: NDArray[np.int64]
    test: NDArray[np.int64]


@dataclass(frozen=True)
class SpatialScore:
    """Scores over the labels that could be tested, each place counted once.

    Args:
        balanced_accuracy: Mean over the tested classes of the share of their places that is right; None where none
            could be tested.
        low: Lower end of its 95 % interval.
        high: Upper end.
        accuracy: Share of all tested places that is right.
        guess: Balanced accuracy of a constant answer, one over the number of tested classes.
        majority: Accuracy of always answering the most frequent class.
        tested: Names of the tested classes.
        places: Number of tested places of each of them.
        confusion: Places of true (row) and predicted class (column), over all classes.
        buffer: Meters between what is tested and what is learned from.
        folds: Number of them.
        said: What could not be tested, in sentences.
    """

    balanced_accuracy: float | None
    low: float
    high: float
    accuracy: float
    guess: float
    majority: float
    tested: tuple[str, ...]
    places: tuple[int, ...]
    confusion: tuple[tuple[float, ...], ...]
    buffer: float
    folds: int
    said: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns it as plain values, None for what is not a number."""
        return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in asdict(self).items()}

    @property
    def words(self) -> str:
        """The score in a sentence."""
        if self.balanced_accuracy is None:
            return "Not scored: no label could be tested."
        better = "" if self.low > self.guess else ", so it may be no better"
        return (
            f"Balanced accuracy {self.balanced_accuracy:.2f} (95 % interval {self.low:.2f} to {self.high:.2f}) over "
            f"{sum(self.places):,} places of {len(self.tested)} classes; a constant guess has {self.guess:.2f}"
            f"{better}. Accuracy {self.accuracy:.2f}; the most frequent class alone has {self.majority:.2f}."
        )


def spatial_folds(labels: Labels, buffer: float) -> list[Fold]:
    """Splits labels so that those to learn from are further than a buffer from those to test.

    Each point or polygon is left out once; where there are more than :data:`SINGLE`, blocks of neighboring ones (by
    k-means of their places).

    Args:
        labels: The labels.
        buffer: Meters.
    """
    from scipy.spatial import KDTree
    from sklearn.cluster import KMeans

    points = in_space(labels.lon, labels.lat)
    features, group = np.unique(labels.place, return_inverse=True)
    if len(features) > SINGLE:
        middles = np.stack([points[group == i].mean(axis=0) for i in range(len(features))])
        group = KMeans(BLOCKS, n_init=4, random_state=0).fit_predict(middles)[group]
    folds = []
    for number in np.unique(group):
        test = np.flatnonzero(group == number)
        rest = np.flatnonzero(group != number)
        if len(rest):
            away, _ = KDTree(points[test]).query(points[rest])
            folds.append(Fold(rest[away > buffer], test))
    return folds


def validate(labels: Labels, fit: Callable[[NDArray, NDArray], Any], buffer: float) -> SpatialScore:
    """Predicts labels from those that are far from them.

    A label is tested where two classes, its own one of them, are left to learn from.

    Args:
        labels: The labels.
        fit: ``fit(x, y)`` gives a classifier with ``predict``.
        buffer: Meters.
    """
    from sklearn.metrics import accuracy_score, confusion_matrix

    predicted = np.full(len(labels.y), -1)
    folds = spatial_folds(labels, buffer)
    for train, test in folds:
        classes = np.unique(labels.y[train])
        able = test[np.isin(labels.y[test], classes)]
        if len(classes) > 1 and len(able):
            predicted[able] = fit(labels.x[train], labels.y[train]).predict(labels.x[able])
    able = np.flatnonzero(predicted >= 0)
    tested = np.unique(labels.y[able])
    said = _untested(labels, predicted, buffer)
    if len(tested) < 2:
        nothing = (np.nan,) * 5
        return SpatialScore(None, *nothing, (), (), (), buffer, len(folds), tuple(said))
    y, guessed = labels.y[able], predicted[able]
    places, which, sizes = np.unique(labels.place[able], return_inverse=True, return_counts=True)
    weight = 1 / sizes[which]  # so that a polygon counts as much as a point
    right = np.bincount(which, weight * (y == guessed))
    of_class = np.empty(len(places), np.int64)
    of_class[which] = y
    # A class's share of right places has Jeffreys' posterior; that of the balanced accuracy is the mean of theirs
    # (Brodersen et al. 2010, The balanced accuracy and its posterior distribution).
    rng = np.random.default_rng(0)
    hits = [right[of_class == c] for c in tested]
    draws = np.mean([rng.beta(0.5 + h.sum(), 0.5 + len(h) - h.sum(), _DRAWS) for h in hits], axis=0)
    score = float(np.mean([h.mean() for h in hits]))
    low, high = np.quantile(draws, (0.025, 0.975))
    matrix = confusion_matrix(y, guessed, labels=range(len(labels.classes)), sample_weight=weight)
    return SpatialScore(
        balanced_accuracy=score,
        low=min(float(low), score),
        high=max(float(high), score),
        accuracy=float(accuracy_score(y, guessed, sample_weight=weight)),
        guess=1 / len(tested),
        majority=max(len(h) for h in hits) / len(places),
        tested=tuple(labels.classes[c] for c in tested),
        places=tuple(len(h) for h in hits),
        confusion=tuple(tuple(map(float, row)) for row in matrix),
        buffer=buffer,
        folds=len(folds),
        said=tuple(said),
    )


def _untested(labels: Labels, predicted: NDArray, buffer: float) -> list[str]:
    said = []
    tested = np.unique(labels.y[predicted >= 0])
    absent = [c for c in range(len(labels.classes)) if c not in tested]
    single = [labels.classes[c] for c in absent if len(np.unique(labels.place[labels.y == c])) == 1]
    near = [labels.classes[c] for c in absent if labels.classes[c] not in single]
    if single:
        said.append(
            f"{places_in_words(single)}: one label only, so nothing is left to learn it from when it is tested."
        )
    if near:
        said.append(
            f"{places_in_words(near)}: no two labels further apart than {buffer:,.0f} m with another class beside, so "
            "it cannot be tested: add labels elsewhere, or set a smaller `buffer` and trust the score less."
        )
    some = np.unique(labels.place[(predicted < 0) & np.isin(labels.y, tested)])
    if len(some):
        count = f"{len(some):,} label{'s' * (len(some) != 1)}"
        said.append(f"Not tested: {count} of the tested classes, with none of the same class far enough away.")
    return said
