"""Tokens per forward (TPF) and accuracy under parallelism (AUP), with bootstrap intervals.

TPF is the number of tokens of the final responses, divided by the network evaluations (NFE) that they took. AUP is one
number for a whole curve of accuracy against TPF (arXiv 2601.07568): the area under the curve, in which accuracy that is
lost counts less and less. With points (rho_i, y_i), rho the TPF and y the accuracy in percent, sorted by rho:

    W(y) = min(exp(-alpha (1 - y / y_max)), 1)
    AUP  = rho_1 y_1 + sum_{i >= 2} (rho_i - rho_{i-1}) (y_i W(y_i) + y_{i-1} W(y_{i-1})) / 2

y_max is the best accuracy of any method on the task, so AUP depends on the methods that stand in the table.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from evaluation.intervals import Groups, Interval, Values, percentiles, resampled_sums

Real = float | int
Point = tuple[Real, Real]  # tokens per forward, accuracy in percent
ALPHA = 3.0  # of the publication and its leaderboard
MARGIN = 5.0  # percentage points that a point may lie below the first one
ROUNDING = 1e-9  # of an accuracy: a point exactly MARGIN below the first one is kept
NONE = Interval(math.nan, math.nan, math.nan)


def weight(accuracy: Real, best: Real, alpha: Real = ALPHA) -> float:
    """Return W = min(exp(-alpha (1 - accuracy / best)), 1), the weight of an accuracy under the best one of the task."""
    return 1.0 if accuracy >= best else math.exp(-alpha * (1 - accuracy / best))


def aup(points: Sequence[Point], best: Real | None = None, alpha: Real = ALPHA, check_scale: bool = True) -> float:
    """Return the accuracy under parallelism of one method on one task (arXiv 2601.07568; formula above).

    Points are sorted by TPF; points of equal TPF keep their order. The first term has no weight. Points between the first
    and the last one whose accuracy is more than 5 percentage points below that of the first one are left out.

    Args:
        points: pairs (tokens per forward, accuracy in percent).
        best: the best accuracy of any method on the task, in percent. None: the best one of `points`.
        alpha: how fast the weight falls with the accuracy.
        check_scale: refuse accuracies that are all at most 1, because they look like shares. The published code computes
            with them and prints a warning.

    Raises:
        ValueError: for no points, a TPF that is not above 0, an accuracy that is no percentage, or a last point that is
            more than 5 percentage points below the first one.
    """
    check_points(points, best, alpha, check_scale)
    ordered = sorted(points, key=lambda point: point[0])
    slowest, fastest = ordered[0], ordered[-1]
    if not is_near(fastest, slowest):
        raise ValueError(
            f"the last point (tokens per forward {fastest[0]:g}, accuracy {fastest[1]:g}) is more than {MARGIN:g} percentage "
            f"points below the first one ({slowest[0]:g}, {slowest[1]:g}), so AUP is not defined; leave that point out"
        )
    return area(ordered, max(y for _, y in points) if best is None else best, alpha)


def area(ordered: Sequence[Point], best: Real, alpha: Real = ALPHA) -> float:
    """Return the weighted area under sorted points, without those that are too low (formula above)."""
    weighted = [(rho, y * weight(y, best, alpha)) for rho, y in ordered if is_near((rho, y), ordered[0])]
    steps = ((b - a) * (at_a + at_b) / 2 for (a, at_a), (b, at_b) in pairwise(weighted))
    return float(ordered[0][0] * ordered[0][1] + sum(steps))


def is_near(point: Point, slowest: Point) -> bool:
    """Return whether the accuracy of a point is at most 5 percentage points below that of the point with the lowest TPF."""
    return point[1] >= slowest[1] - MARGIN - ROUNDING


def usable(points: Sequence[Point]) -> list[Point]:
    """Return the points of a sweep for which AUP is defined, sorted by TPF.

    Left out are the fastest points that are more than 5 percentage points below the slowest one, and points without
    tokens. `aup` refuses both.
    """
    ordered = sorted((point for point in points if point[0] > 0), key=lambda point: point[0])
    while ordered and not is_near(ordered[-1], ordered[0]):
        ordered.pop()
    return ordered


def check_points(
    points: Sequence[Point], best: Real | None = None, alpha: Real = ALPHA, check_scale: bool = True
) -> None:
    """Refuse points that have no AUP: ValueError, one sentence."""
    if not points:
        raise ValueError(
            "there are no points, and AUP needs at least one; give pairs of tokens per forward and accuracy"
        )
    if not (math.isfinite(alpha) and alpha >= 0):
        raise ValueError(f"alpha={alpha} must be a finite number of at least 0; the published value is {ALPHA:g}")
    if wrong := [rho for rho, _ in points if not (math.isfinite(rho) and rho > 0)]:
        raise ValueError(
            f"tokens per forward {wrong[0]} must be a finite number above 0; change it, or leave the point out"
        )
    accuracies = [y for _, y in points] + ([] if best is None else [best])
    if wrong := [y for y in accuracies if not 0 <= y <= 100 + ROUNDING]:
        raise ValueError(f"the accuracy {wrong[0]} must be a percentage from 0 to 100; change it")
    if check_scale and 0 < max(accuracies) <= 1:
        raise ValueError(
            f"the highest accuracy is {max(accuracies):g}, which looks like a share of 1, and AUP needs percentages from 0 to "
            "100; multiply the accuracies by 100"
        )


# ------------------------------------------------------------------------------------------------------ from samples


def tokens_per_forward(
    tokens: Values, evaluations: Values, groups: Groups | None = None, resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return TPF = (tokens of all samples) / (evaluations of all samples), with its 95% percentile bootstrap interval.

    Args:
        tokens: tokens of the final response of each sample. A token that was replaced counts once, tokens behind the end
            do not count.
        evaluations: network evaluations of each sample, those of verification and revision included.
        groups: the group of each sample; whole groups are resampled (None: each sample is resampled).

    Returns:
        NaN if the samples took no evaluation.
    """
    both = np.stack([np.asarray(tokens, dtype=float), np.asarray(evaluations, dtype=float)], 1)
    whole = both.sum(0)
    if not whole[1] > 0:
        return NONE
    sums = resampled_sums(both, groups, resamples, seed)
    return percentiles(whole[0] / whole[1], sums[:, 0] / sums[:, 1])


def tokens_per_forward_difference(
    ours: tuple[Values, Values], theirs: tuple[Values, Values], resamples: int = 2000, seed: int = 0
) -> Interval:
    """Return TPF of `ours` - TPF of `theirs` with its 95% interval, resampling pairs of samples (the same prompt or seed).

    Args:
        ours, theirs: (tokens, evaluations) of the samples.

    Raises:
        ValueError: the two have different numbers of samples.
    """
    if len(ours[0]) != len(theirs[0]):
        raise ValueError(
            f"{len(ours[0])} values against {len(theirs[0])}: a paired comparison needs one of each for every pair."
        )
    columns = np.stack([np.asarray(values, dtype=float) for values in (*ours, *theirs)], 1)
    sums = resampled_sums(columns, None, resamples, seed)
    whole = columns.sum(0)
    return percentiles(whole[0] / whole[1] - whole[2] / whole[3], sums[:, 0] / sums[:, 1] - sums[:, 2] / sums[:, 3])


@dataclass(frozen=True)
class Outcomes:
    """Results of one setting of a decoder, one value for each problem (means over seeds).

    right: share of right responses; tokens: of the final response; evaluations: NFE.
    """

    right: Values
    tokens: Values
    evaluations: Values

    @property
    def columns(self) -> np.ndarray:
        """Return the three measures as columns, one row for each problem."""
        return np.stack([np.asarray(one, dtype=float) for one in (self.right, self.tokens, self.evaluations)], 1)

    @property
    def point(self) -> Point:
        """Return (TPF, accuracy in percent)."""
        right, tokens, evaluations = self.columns.sum(0)
        return float(tokens / evaluations), float(100 * right / len(self.columns))


class SeriesAup(NamedTuple):
    """AUP of a sweep.

    aup: with its interval, NaN if no setting has tokens; points: settings in the sweep; left_out: settings for which AUP is not
    defined (`usable`).
    """

    aup: Interval
    points: int
    left_out: int


def sweep_aup(
    series: Mapping[str, Sequence[Outcomes]],
    best: Real | None = None,
    alpha: Real = ALPHA,
    groups: Groups | None = None,
    resamples: int = 2000,
    seed: int = 0,
) -> dict[str, SeriesAup]:
    """Return the AUP of each sweep on one task, with 95% percentile bootstrap intervals over problems.

    One resample draws the same problems for every setting of every sweep. Accuracies, TPF, the best accuracy and the settings
    that are left out (`usable`) are computed anew in each resample.

    Args:
        series: the settings of each sweep, all on the same problems in the same order.
        best: the best accuracy on the task in percent, a constant of all resamples. None: that of all the settings here.
        groups: the group of each problem; whole groups are resampled (None: each problem is resampled).

    Raises:
        ValueError: the settings have different numbers of problems.
    """
    columns = [one.columns for own in series.values() for one in own]
    if len(counts := sorted({len(one) for one in columns})) > 1:
        raise ValueError(f"settings have {counts[0]} and {counts[-1]} problems; evaluate all of them on the same ones")
    values = np.concatenate([np.ones((counts[0], 1)), *columns], 1)
    sums = np.concatenate([values.sum(0)[None], resampled_sums(values, groups, resamples, seed)])  # first: all problems
    right, tokens, evaluations = (sums[:, 1 + place :: 3] for place in range(3))
    rho, accuracy = tokens / evaluations, 100 * right / sums[:, :1]
    bests = accuracy.max(1) if best is None else np.full(len(sums), best)
    found, first = {}, 0
    for name, own in series.items():
        places = slice(first, first + len(own))
        first += len(own)
        curves = [
            usable(list(zip(*both, strict=True)))
            for both in zip(rho[:, places].tolist(), accuracy[:, places].tolist(), strict=True)
        ]
        tops = zip(curves, bests.tolist(), strict=True)
        areas = [area(curve, top, alpha) if curve else math.nan for curve, top in tops]
        found[name] = SeriesAup(percentiles(areas[0], areas[1:]), len(own), len(own) - len(curves[0]))
    return found
