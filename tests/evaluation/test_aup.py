"""AUP against the published worked examples and tables, its properties, and the coverage of the bootstrap intervals."""

import math
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluation.aup import (
    Outcomes,
    aup,
    sweep_aup,
    tokens_per_forward,
    tokens_per_forward_difference,
    usable,
    weight,
)
from evaluation.leaderboard import best_accuracies, read_leaderboard, scores, table
from evaluation.metrics import cost
from samplers.samples import Samples

LEADERBOARDS = Path(__file__).parent / "leaderboards"

EXAMPLES = [
    ([(1, 72.55)], 74.98, 72.55),
    ([(1, 32.76), (5.74, 30.36)], 41.15, 107.6419),
    ([(1, 80), (4, 80)], 80, 320.0),
    ([(1, 80), (4, 80)], 90, 251.9675),
    ([(1, 80), (3, 75)], 80, 222.1772),
    ([(1, 80), (2, 70), (4, 76)], 80, 298.1207),
    ([(1, 80), (2, 78), (4, 76)], 80, 293.9598),
    ([(4, 76), (1, 80), (1, 78)], 80, 286.6667),
    ([(2, 79), (5, 78)], 80, 380.6845),
    ([(1, 75), (3, 78), (6, 77)], 78, 447.9688),
    ([(4, 76), (1, 78), (1, 80)], 80, 296.1207),
]


def by_hand(points, best, alpha=3.0):
    """The formula term by term, for points that are all kept."""
    ordered = sorted(points, key=lambda point: point[0])
    total = ordered[0][0] * ordered[0][1]
    for (before, was), (rho, y) in zip(ordered, ordered[1:], strict=False):
        at, ahead = (min(math.exp(-alpha * (1 - value / best)), 1) for value in (was, y))
        total += (rho - before) * (y * ahead + was * at) / 2
    return total


@pytest.mark.parametrize(("points", "best", "expected"), EXAMPLES)
def test_the_worked_examples(points, best, expected):
    assert round(aup(points, best), 4) == expected
    kept = [point for point in points if point != (2, 70)]
    assert aup(points, best) == pytest.approx(by_hand(kept, best), abs=1e-6)


def test_a_last_point_that_is_too_low_and_shares_are_refused():
    with pytest.raises(
        ValueError, match=r"the last point \(tokens per forward 3, accuracy 74.9\) is more than 5 percent"
    ):
        aup([(1, 80), (3, 74.9)], 80)
    assert usable([(3, 74.9), (1, 80)]) == [(1, 80)] and aup(usable([(3, 74.9), (1, 80)]), 80) == 80
    with pytest.raises(
        ValueError, match=r"highest accuracy is 0.8, which looks like a share of 1.*multiply the accuracies"
    ):
        aup([(1, 0.8), (4, 0.76)], 0.8)
    assert usable([(4, 20), (3, 74.9), (2, 70), (2.5, 79), (1, 80), (0, 0)]) == [(1, 80), (2, 70), (2.5, 79)]
    assert round(aup([(1, 0.8), (4, 0.76)], 0.8, check_scale=False), 4) == 2.9812
    assert aup([(1, 0.8), (4, 0.76)], 80) > 0  # a bad method on a task that others solve


@pytest.mark.parametrize(
    ("points", "best", "message"),
    [
        ([], None, "there are no points"),
        ([(0, 80)], None, "tokens per forward 0 must be a finite number above 0"),
        ([(1, 80), (-2, 80)], None, "tokens per forward -2 must"),
        ([(math.nan, 80)], None, "tokens per forward nan must"),
        ([(1, 101)], None, "the accuracy 101 must be a percentage"),
        ([(1, -1)], None, "the accuracy -1 must be a percentage"),
        ([(1, math.nan)], None, "the accuracy nan must be a percentage"),
        ([(1, 80)], 120, "the accuracy 120 must be a percentage"),
    ],
)
def test_points_without_an_aup_are_refused(points, best, message):
    with pytest.raises(ValueError, match=message):
        aup(points, best)
    with pytest.raises(ValueError, match="alpha=-1 must be"):
        aup([(1, 80)], alpha=-1)


def test_edge_rules():
    assert aup([(1, 0), (3, 0)]) == 0
    assert weight(90, 80) == 1 and weight(80, 80) == 1 and weight(40, 80) == pytest.approx(math.exp(-1.5))
    exactly = [(1, 64.4), (2, 59.4)]  # 5 lower, but 59.4 < 64.4 - 5 in floating point
    assert aup(exactly, 64.4) == pytest.approx(by_hand(exactly, 64.4))
    assert aup([(1, 90), (3, 88)], 80) == 90 + 2 * 89  # accuracies above y_max have weight 1
    assert aup([(1, 80), (4, 78)]) == aup([(1, 80), (4, 78)], 80)  # y_max of the method itself
    assert aup([(1, 80), (4, 78)], alpha=0) == 80 + 3 * 79  # without a penalty: the area


curves = st.lists(
    st.tuples(st.floats(0.5, 30, allow_nan=False), st.floats(70, 74.9)), min_size=1, max_size=6,
    unique_by=lambda point: round(point[0], 3),
)  # fmt: skip


@given(curves, st.floats(75, 100), st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_properties(points, best, random):
    """Order, scale, bounds, and how AUP changes with y_max, with alpha, and with a point that adds speed."""
    value = aup(points, best)
    assert value == pytest.approx(by_hand(points, best), rel=1e-12)
    shuffled = random.sample(points, len(points))
    assert aup(shuffled, best) == pytest.approx(value, rel=1e-12)
    shares = [(rho, y / 100) for rho, y in points]
    assert 100 * aup(shares, best / 100, check_scale=False) == pytest.approx(value, rel=1e-9)
    ordered = sorted(points)
    whole = aup(points, best, alpha=0)
    assert ordered[0][0] * ordered[0][1] <= value + 1e-9 and value <= whole + 1e-9
    assert aup(points, min(100, best + 3)) <= value + 1e-9 and aup(points, best, alpha=4) <= value + 1e-9
    faster = aup([*points, (ordered[-1][0] + 1, ordered[-1][1])], best)
    gain = ordered[-1][1] * weight(ordered[-1][1], best)
    assert faster == pytest.approx(value + gain, rel=1e-9)
    assert aup([*points, ordered[-1]], best) == pytest.approx(value, rel=1e-12)  # equal TPF: no width


def test_input_order_counts_for_equal_tpf_only():
    points = [(1.0, 80.0), (2.0, 78.0), (4.0, 76.0)]
    assert len({round(aup(list(order), 80), 9) for order in permutations(points)}) == 1
    tied = [(1.0, 80.0), (1.0, 78.0), (4.0, 76.0)]
    assert len({round(aup(list(order), 80), 9) for order in permutations(tied)}) == 2


# ------------------------------------------------------------------------------------------------ the published tables

PUBLISHED = {
    "llada": {
        "Qwen-2.5-7B-it": (74.1000, 41.1500, 63.6000, 67.7300, 82.5600, 65.83),
        "LLaDA": (72.5500, 32.2000, 41.7200, 38.2800, 78.5800, 52.67),
        "Fast-dLLM-LLaDA": (205.7811, 47.1873, 56.6011, 54.0245, 175.3744, 107.79),
        "D2F": (213.7564, 48.9958, 52.9606, 61.9823, 176.9480, 110.93),
        "dParallel-LLaDA": (358.1422, 64.5356, 60.4513, 83.6855, 309.0756, 175.18),
        "d3LLM-LLaDA": (637.6549, 107.6419, 88.3560, 96.6405, 441.1296, 274.28),
    },
    "dream": {
        "EAGLE-3": (318.9862, 142.0584, 298.5704, 344.8057, 422.2056, 305.33),
        "Dream": (83.9400, 39.6300, 57.2000, 55.2000, 78.9500, 62.98),
        "Fast-dLLM-Dream": (116.4864, 55.2169, 63.5892, 63.5012, 130.3502, 85.83),
        "Fast-dLLM-v2-7B": (176.1064, 126.6553, 114.1151, 128.9414, 207.2460, 150.61),
        "dParallel-Dream": (245.7335, 77.9471, 107.9665, 98.7677, 262.3936, 158.56),
        "d3LLM-Dream": (391.3278, 97.4967, 141.4058, 129.4756, 348.6435, 221.67),
    },
}
BEST = {"llada": (74.98, 41.15, 63.60, 67.73, 82.56), "dream": (83.94, 49.92, 63.80, 72.25, 82.56)}


@pytest.mark.parametrize("name", ["llada", "dream"])
def test_the_published_tables(name):
    board = read_leaderboard(LEADERBOARDS / f"{name}.yaml")
    assert tuple(best_accuracies(board).values()) == BEST[name]
    found = scores(board)
    for method, (*cells, mean) in PUBLISHED[name].items():
        values = [own[method] for own in found.values()]
        assert values == pytest.approx(cells, abs=1e-4)
        assert sum(values) / 5 == pytest.approx(mean, abs=0.01)
    means = {row["method"]: float(row["mean"]) for row in table(found)}
    assert {method: means[method] for method in PUBLISHED[name]} == pytest.approx(
        {method: row[-1] for method, row in PUBLISHED[name].items()}, abs=0.01
    )


def test_the_published_coder_table_has_four_tasks():
    """Its printed MBPP cell of d3LLM, 186.36, is not the AUP of its points; the mean is over four tasks, not five."""
    found = scores(read_leaderboard(LEADERBOARDS / "dream_coder.yaml"))
    assert found["MBPP"]["d3LLM-Coder-7B"] == pytest.approx(186.1772, abs=1e-4)
    row = next(row for row in table(found) if row["method"] == "Dream-Coder-7B")
    assert float(row["mean"]) == pytest.approx((82.9 + 76.8 + 79.9 + 68.8) / 4, abs=0.005)


# --------------------------------------------------------------------------------------------------- intervals over rows


def test_tpf_is_a_ratio_of_sums():
    found = tokens_per_forward([10, 20, 30], [5, 5, 2])
    assert found.value == 5 and found.low < 5 < found.high
    assert tokens_per_forward([4, 8], [2, 4]) == (2, 2, 2)
    assert all(map(math.isnan, tokens_per_forward([0, 0], [0, 0])))
    ours, theirs = ([10, 20, 30], [5, 5, 2]), ([10, 20, 30], [10, 10, 4])
    difference = tokens_per_forward_difference(ours, theirs)
    assert difference.value == 2.5 and difference.low > 0
    assert difference.low == pytest.approx(found.low / 2) and difference.high == pytest.approx(found.high / 2)  # paired
    with pytest.raises(ValueError, match="3 values against 2"):
        tokens_per_forward_difference(ours, ([1, 2], [1, 2]))


def test_tokens_of_samples_end_where_the_response_ends():
    """Of three rows with the same commits the second ends early; a prompt does not count."""
    tokens = torch.tensor([[1, 1, 2, 2], [1, 1, 9, 2], [1, 1, 2, 9]])
    prompt = torch.tensor([True, False, False, False]).expand(3, -1)
    committed = torch.where(prompt, -1, 0)
    samples = Samples(
        tokens, prompt, committed, torch.tensor([1, 2, 3]), torch.ones(3).long(), 3, 6, 1.0, 1.0, ends=(9,)
    )
    found = cost([samples, samples])
    assert found["tpf"] == (3 + 1 + 2) / (1 + 2 + 3) and found["generated"] == 18
    assert found["tpf_low"] <= found["tpf"] <= found["tpf_high"]


def test_groups_are_resampled_whole():
    """Copies of a row do not narrow its interval."""
    random = np.random.default_rng(0)
    tokens, evaluations = random.integers(5, 20, 40), random.integers(2, 9, 40)
    alone = tokens_per_forward(tokens, evaluations)
    copied = tokens_per_forward(np.repeat(tokens, 5), np.repeat(evaluations, 5), np.repeat(np.arange(40), 5))
    assert copied == pytest.approx(alone)
    with pytest.raises(ValueError, match="at least two groups"):
        tokens_per_forward([1, 2], [1, 2], [0, 0])


RATES, SPEEDS = (0.9, 0.89, 0.88), (1.5, 3.0, 5.0)


def simulated(random, problems):
    """Three settings on the same problems: a hard problem is hard for every setting, and takes more evaluations."""
    hard = random.random(problems)
    return [
        Outcomes(hard < rate, np.full(problems, 30.0), np.round(30 / speed * (0.7 + 0.6 * hard)))
        for rate, speed in zip(RATES, SPEEDS, strict=True)
    ]


def test_the_intervals_cover_as_often_as_they_say():
    population = [one.point for one in simulated(np.random.default_rng(1), 400_000)]
    true_aup, true_tpf = aup(population, max(y for _, y in population)), population[1][0]
    random, covered, spread = np.random.default_rng(2), np.zeros(2), []
    for _ in range(150):
        drawn = simulated(random, 150)
        found = sweep_aup({"a": drawn}, resamples=200)["a"].aup
        tpf = tokens_per_forward(drawn[1].tokens, drawn[1].evaluations, resamples=200)
        covered += (found.low <= true_aup <= found.high), (tpf.low <= true_tpf <= tpf.high)
        spread.append(found.value)
    assert (covered >= 150 * 0.88).all() and covered[1] < 150
    assert abs(np.mean(spread) - true_aup) < 4.5 * np.std(spread) / 150**0.5 + 0.02 * true_aup


def test_a_resample_computes_everything_anew():
    """Against a loop over resamples that draws problems by index and calls `aup`."""
    random = np.random.default_rng(4)
    series = {"a": simulated(random, 40), "b": simulated(random, 40)[1:]}

    def values(rows):
        points = {}
        for name, own in series.items():
            points[name] = [Outcomes(one.right[rows], one.tokens[rows], one.evaluations[rows]).point for one in own]
        best = max(y for own in points.values() for _, y in own)
        return [aup(usable(own), best) for own in points.values()]

    draw = np.random.default_rng(7)
    every = np.array([values(draw.integers(40, size=40)) for _ in range(100)])
    found = sweep_aup(series, resamples=100, seed=7)
    for place, (one, value) in enumerate(zip(found.values(), values(np.arange(40)), strict=True)):
        expected = (value, *np.quantile(every[:, place], [0.025, 0.975]))
        assert one.aup == pytest.approx(expected, abs=1e-9)


def test_settings_share_their_problems_in_a_resample():
    """Two sweeps with the same results have the same AUP in every resample, and y_max is that of both."""
    random = np.random.default_rng(3)
    drawn = simulated(random, 80)
    both = sweep_aup({"a": drawn, "b": drawn, "c": drawn[:1]})
    assert both["a"] == both["b"] and both["a"].aup.value == pytest.approx(aup([one.point for one in drawn]))
    assert both["c"].aup.value == pytest.approx(drawn[0].point[0] * drawn[0].point[1]) and both["c"].points == 1
    better = [Outcomes(np.ones(80), one.tokens, one.evaluations) for one in drawn[:1]]
    assert sweep_aup({"a": drawn, "d": better})["a"].aup.value < both["a"].aup.value
    fixed = sweep_aup({"a": drawn}, best=100)["a"].aup
    assert fixed.value == pytest.approx(aup([one.point for one in drawn], 100))
    bad = Outcomes(np.zeros(80), drawn[0].tokens, drawn[0].evaluations / 10)
    assert sweep_aup({"a": [*drawn, bad]})["a"] == (both["a"].aup, 4, 1)  # left out, in every resample
    silent = Outcomes(np.zeros(80), np.zeros(80), np.ones(80))
    assert math.isnan(sweep_aup({"a": [silent]})["a"].aup.value)
    with pytest.raises(ValueError, match="settings have 3 and 80 problems"):
        sweep_aup({"a": [drawn[0], Outcomes([1, 0, 1], [1, 1, 1], [1, 1, 1])]})


def test_the_page_of_measures_prints_what_it_says(capsys):
    page = (Path(__file__).parents[2] / "docs" / "measures.md").read_text()
    (source,) = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    exec(source, {})
    assert capsys.readouterr().out.split() == [line.rpartition("# ")[2] for line in source.splitlines() if "# " in line]
