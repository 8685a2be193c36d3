"""Confidence intervals: Wilson for a rate, the percentile bootstrap for a mean or a paired comparison.

The interval of Wilson (1927) stays inside [0, 1] and keeps its coverage near 0 and 1, where tasks of a hundred puzzles
often are, unlike the normal interval. The bootstrap (Efron 1979) is paired if two methods have the same prompts or seeds.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

Values = Sequence[float | int] | np.ndarray
Groups = Sequence[int] | np.ndarray  # the group of each value
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


def bootstrap_groups(values: Values, groups: Groups, resamples: int = 2000, seed: int = 0) -> Interval:
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


def resampled_sums(
    values: np.ndarray, groups: Groups | None = None, resamples: int = 2000, seed: int = 0
) -> np.ndarray:
    """Return the sum of every column in each bootstrap resample of the rows. All columns share the resampled rows.

    The mean of a column in a resample is its sum over that of a column of ones. A ratio of means is the ratio of two sums.

    Args:
        values: one row for each sample, problem or prompt, one column for each measure.
        groups: the group of each row; whole groups are resampled (None: each row is a group).

    Returns:
        One row for each resample, one column for each measure.

    Raises:
        ValueError: there are no rows, or all rows are of one group.
    """
    units = np.asarray(values, dtype=float)
    if groups is not None:
        _, place = np.unique(np.asarray(groups), return_inverse=True)
        units = np.stack([np.bincount(place, column) for column in units.T], 1)
        if len(units) < 2:
            raise ValueError("all values are of one group: expected at least two groups to resample.")
    if len(units) == 0:
        raise ValueError("there are no values to resample: expected at least one.")
    random, count = np.random.default_rng(seed), len(units)
    draws = (np.bincount(random.integers(count, size=count), minlength=count) for _ in range(resamples))
    return np.stack([times @ units for times in draws])


def percentiles(value: float, draws: Values) -> Interval:
    """Return a value with the 95% percentile interval of its bootstrap draws."""
    low, high = np.quantile(np.asarray(draws, dtype=float), [0.025, 0.975])
    return Interval(float(value), float(low), float(high))


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
    return percentiles(statistic(rows), draws)
