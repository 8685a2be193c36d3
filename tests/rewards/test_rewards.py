"""Rewards: the formulas, what counts as solved, and that no reward is ever NaN."""

import math
from collections import Counter
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data.sudoku import make
from losses import group_advantages
from rewards.bound import BoundReward
from rewards.likelihood import LikelihoodReward
from rewards.measures import unigram_entropy
from rewards.rules import PuzzleReward, RewardOutput, each_row, speed_factor, sudoku_solved

torch.set_num_threads(1)
BOX = (2, 2)


@pytest.fixture
def puzzles():
    return make(BOX, 4, clues=6)


def finished(puzzles, evaluations):
    """Row 0 solved; 1 a wrong cell; 2 a mask left; 3 another valid grid than the clues allow."""
    tokens = puzzles["solutions"].clone()
    free = [int((~row).nonzero()[0]) for row in puzzles["clues"]]
    tokens[1, free[1]] = (tokens[1, free[1]] + 1) % 4
    tokens[2, free[2]] = 4
    tokens[3] = (tokens[3] + 1) % 4
    return SimpleNamespace(tokens=tokens, prompt=puzzles["clues"], evaluations=torch.tensor(evaluations))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(1, 60), st.floats(0, 5))
def test_speed_factor_formula(length, evaluations, alpha):
    expected = ((length - min(evaluations, length) + 1) / length) ** alpha
    for size in (length, torch.tensor([length])):
        assert speed_factor(torch.tensor([evaluations]), size, alpha).item() == pytest.approx(expected, rel=1e-4)


def test_speed_factor_takes_a_length_per_row():
    factor = speed_factor(torch.tensor([1, 5, 5]), torch.tensor([10, 10, 5]), 1.0)
    assert factor.tolist() == pytest.approx([1.0, 0.6, 0.2])


def test_multiplicative_puzzle_reward(puzzles):
    output = PuzzleReward(BOX, alpha=2.0)(finished(puzzles, [4, 1, 1, 1]), puzzles)
    assert output.total.tolist() == pytest.approx([0.7**2, 0, 0, 0])  # 10 cells to generate, the 6 clues not counted
    assert output.terms["still_masked"].tolist() == [0, 0, 1, 0]
    assert output.terms["evaluations"].tolist() == [4, 1, 1, 1]


def test_additive_puzzle_reward(puzzles):
    output = PuzzleReward(BOX, alpha=0.5, additive=True)(finished(puzzles, [4, 1, 10, 2]), puzzles)
    assert output.total.tolist() == pytest.approx([1 - 0.2, -0.05, -0.5, -0.1])


def test_changed_clues_are_no_solution_but_any_grid_will_do_without_rows(puzzles):
    samples = finished(puzzles, [1, 1, 1, 1])
    assert sudoku_solved(samples.tokens, BOX).tolist() == [1, 0, 0, 1]
    assert PuzzleReward(BOX, 1.0)(samples, puzzles).terms["solved"].tolist() == [1, 0, 0, 0]
    assert PuzzleReward(BOX, 1.0)(samples).terms["solved"].tolist() == [1, 0, 0, 1]


def test_a_puzzle_with_several_solutions_is_solved_by_any_that_keeps_its_clues(puzzles):
    """Two rows of a band change places: another grid, of which the clues outside of them do not tell."""
    samples = finished(puzzles, [1, 1, 1, 1])
    grids = puzzles["solutions"].view(-1, 4, 4)
    samples.tokens = grids[:, [1, 0, 2, 3]].flatten(1)
    samples.prompt = (torch.arange(16) >= 8).expand(4, -1).clone()
    samples.prompt[3] = True
    samples.prompt[3, -1] = False  # the last grid has clues in those rows, and changed them
    assert PuzzleReward(BOX, 1.0)(samples, puzzles).terms["solved"].tolist() == [1, 1, 1, 0]


def test_solutions_of_another_device_are_brought_to_the_tokens(puzzles):
    """Rows of a task stay on the CPU while tokens are decoded on a GPU."""

    class Elsewhere(torch.Tensor):
        def __eq__(self, other):
            raise RuntimeError("found two devices")

        def to(self, device):
            return self.as_subclass(torch.Tensor).to(device)

    rows = {"solutions": puzzles["solutions"].as_subclass(Elsewhere)}
    reward = PuzzleReward(BOX, 1.0)(finished(puzzles, [1, 1, 1, 1]), rows)
    assert reward.terms["solved"].tolist() == [1, 0, 0, 0]


def test_a_row_without_a_finite_reward_has_none_and_is_named(puzzles):
    output = RewardOutput(torch.tensor([0.0, math.nan]), {"solved": torch.tensor([1.0, 3.0])})
    assert output.failed.keys() == {1} and "is nan (terms {'solved': 3.0})" in output.failed[1]
    assert output.failure_message().startswith("1 of 2 rows have no reward: the reward of row 1 is nan")
    samples = finished(puzzles, [1, 1, 1, 1])
    samples.prompt = samples.prompt.clone()
    samples.prompt[1] = True  # nothing to generate: the speed of that row is not defined
    assert PuzzleReward(BOX, 1.0)(samples).failed.keys() == {1}
    judged = LikelihoodReward(lambda tokens, counted: torch.tensor([0.0, 0.0, -math.inf, 0.0]), 0.0)(
        finished(puzzles, [1] * 4)
    )
    assert judged.failed.keys() == {2} and "is -inf" in judged.failed[2]
    assert judged.total.isnan().tolist() == [False, False, True, False]


def test_no_row_with_a_reward_stops_the_run():
    with pytest.raises(
        FloatingPointError, match="2 of 2 rows have no reward: the reward of row 0 is nan.*row 1 is inf"
    ):
        RewardOutput(torch.tensor([math.nan, math.inf]), {})


def test_a_row_whose_reward_raises_is_dropped_counted_and_named():
    def score(row):
        if row == 7:
            raise KeyError("no such answer")
        return {"total": math.nan if row == 5 else row / 8, "length": float(row)}

    output = each_row(score, [4, 5, 6, 7], torch.device("cpu"))
    assert output.total[[0, 2]].tolist() == [0.5, 0.75] and output.total[[1, 3]].isnan().all()
    assert output.terms["length"][:3].tolist() == [4, 5, 6] and output.terms["length"].isnan().tolist() == [0, 0, 0, 1]
    assert output.failed[3] == "raises KeyError: 'no such answer'" and output.failed[1].startswith("is nan")
    assert torch.equal(group_advantages(output.total.view(1, 4), False), torch.tensor([[-0.125, 0, 0.125, 0]]))
    with pytest.raises(FloatingPointError, match="2 of 2 rows have no reward.*row 0 raises KeyError"):
        each_row(score, [7, 7], torch.device("cpu"))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.lists(st.integers(0, 50_000) | st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4))
def test_unigram_entropy_equals_counting(rows):
    expected = [-sum(count / 7 * math.log(count / 7) for count in Counter(row).values()) for row in rows]
    assert unigram_entropy(torch.tensor(rows)).tolist() == pytest.approx(expected, abs=1e-5)


def test_likelihood_reward_penalises_repetition_and_slowness():
    tokens = torch.tensor([[7, 7, 7, 7], [1, 2, 3, 4], [1, 2, 3, 4]])
    samples = SimpleNamespace(
        tokens=tokens, prompt=torch.zeros_like(tokens, dtype=torch.bool), evaluations=torch.tensor([1, 1, 4])
    )

    def judge(tokens, counted):
        return -(tokens * counted).sum(1) / counted.sum(1)

    total = LikelihoodReward(judge, entropy_floor=1.0, weight=2.0)(samples).total
    assert total.tolist() == pytest.approx([-7 - 2.0, -2.5, -2.5])
    total = LikelihoodReward(judge, entropy_floor=1.5, alpha=0.5)(samples).total
    missing = 1.5 - math.log(4)  # four different tokens have log 4 = 1.386 nats
    assert total.tolist() == pytest.approx([-8.5, -2.5 - missing, -2.5 - missing + 0.5 * math.log(1 / 4)])
    ended = LikelihoodReward(judge, entropy_floor=0.0, ends=(4, 3))(samples)  # likelihood and entropy are of [1, 2]
    assert ended.total.tolist() == pytest.approx([-7, -1.5, -1.5])
    assert ended.terms["entropy"].tolist() == pytest.approx([0, math.log(2), math.log(2)])


# ---------------------------------------------------------------------------------------- the bound


def revealed(prompt, row, log_tokens):
    """Texts of which `prompt` was given, revealed in recorded steps of these rows."""
    return SimpleNamespace(
        prompt=prompt, trajectory=SimpleNamespace(row=torch.tensor(row), log_tokens=torch.tensor(log_tokens))
    )


def test_the_bound_of_a_row_is_the_sum_of_its_steps_a_position_to_generate():
    prompt = torch.zeros(4, 6, dtype=torch.bool)
    prompt[1, :2], prompt[3] = True, True  # row 1 has four positions to generate, row 3 none and no step
    output = BoundReward()(revealed(prompt, [0, 1, 2, 1, 0, 1], [-3.0, -4.0, -1.5, -2.0, -9.0, -1.0]))
    assert output.steps.tolist() == pytest.approx([-0.5, -1.0, -0.25, -0.5, -1.5, -0.25])
    assert output.total.tolist() == pytest.approx([-2.0, -1.75, -0.25, 0.0])
    assert output.terms["nats_per_token"].tolist() == pytest.approx([2.0, 1.75, 0.25, 0.0])


def test_a_bound_needs_a_recorded_trajectory_and_a_text_that_can_be():
    prompt = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="reward=bound reads a recorded trajectory; roll out with record=True"):
        BoundReward()(SimpleNamespace(prompt=prompt, trajectory=None))
    with pytest.raises(FloatingPointError, match="row 1 is -inf"):
        BoundReward()(revealed(prompt, [0, 1], [-1.0, -math.inf]))
