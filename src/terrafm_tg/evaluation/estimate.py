"""A mean over seeds and its 95 % confidence interval."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

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

    def drawn(self) -> "Estimate":
        """Returns it with an interval that stays within 0 and 100, for charts."""
        return self._replace(low=max(self.low, 0.0), high=min(self.high, 100.0)) if self.kind else self

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
