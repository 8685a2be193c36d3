"""Confidence intervals: Wilson for a rate, the percentile bootstrap for a mean or a paired comparison.

The interval of Wilson (1927) stays inside [0, 1] and keeps its coverage near 0 and 1, where tasks of a hundred puzzles
often are, unlike the normal interval. The bootstrap (Efron 1979) is paired if two methods have the same prompts or seeds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Values = Sequence[float | int] | np.ndarray
Z95 = 1.959963984540054


class Interval(NamedTuple):
    """An estimate with the ends of its 95 % interval."""

    value: float
    low: float
    high: float


def wilson(successes: int, trials: int) -> Interval:
    """Return the rate with its 95% Wilson score interval."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(
            f"{successes} successes of {trials} trials: expected 0 <= successes <= trials and a trial at least."
        )
    rate = successes / trials
    centre = (rate + Z95**2 / (2 * trials)) / (1 + Z95**2 / trials)
    half = Z95 / (1 + Z95**2 / trials) * (rate * (1 - rate) / trials + Z95**2 / (4 * trials**2)) ** 0.5
    return Interval(rate, max(0.0, centre - half), min(1.0, centre + half))


def bootstrap_mean(values: Values, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return the mean with its 95% percentile bootstrap interval."""
    return _bootstrap(np.asarray(values, dtype=float), lambda rows: rows.mean(), resamples, seed)


def bootstrap_groups(
    values: Values, groups: Sequence[int] | np.ndarray, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return the mean with its 95% percentile bootstrap interval over whole groups, whose members are not independent.

    Args:
        groups: the group of each value.

    Raises:
        ValueError: there is only one group, whose interval would have width 0.
    """
    values, (_, place) = np.asarray(values, dtype=float), np.unique(np.asarray(groups), return_inverse=True)
    sums, counts = np.bincount(place, values), np.bincount(place).astype(float)
    if len(sums) < 2:
        raise ValueError("all values are of one group: expected at least two groups to resample.")
    return _bootstrap(np.stack([sums, counts], 1), lambda rows: rows[:, 0].sum() / rows[:, 1].sum(), resamples, seed)


def paired_difference(ours: Values, theirs: Values, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return mean(ours) - mean(theirs) with its 95% interval, resampling pairs (one pair: the same prompt or seed)."""
    return _bootstrap(_pairs(ours, theirs), lambda rows: rows[:, 0].mean() - rows[:, 1].mean(), resamples, seed)


def paired_ratio(ours: Values, theirs: Values, resamples: int = 2000, seed: int = 0) -> Interval:
    """Return mean(ours) / mean(theirs) with its 95% interval, resampling pairs. Both must be positive."""
    return _bootstrap(_pairs(ours, theirs), lambda rows: rows[:, 0].mean() / rows[:, 1].mean(), resamples, seed)


def _pairs(ours: Values, theirs: Values) -> np.ndarray:
    if len(ours) != len(theirs):
        raise ValueError(
            f"{len(ours)} values against {len(theirs)}: a paired comparison needs one of each for every pair."
        )
    return np.stack([np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)], axis=1)


def _bootstrap(rows: np.ndarray, statistic: Callable[[np.ndarray], float], resamples: int, seed: int) -> Interval:
    if len(rows) == 0:
        raise ValueError("there are no values to resample: expected at least one.")
    random = np.random.default_rng(seed)
    draws = [statistic(rows[random.integers(len(rows), size=len(rows))]) for _ in range(resamples)]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Interval(float(statistic(rows)), float(low), float(high))
