"""Functions of verified answers: their formulas, weights, dispatch by data set, published names, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from rewards.rules import PUBLISHED, VerifiedReward

RIGHT = [1.0, 0.0, 1.0, 1.0]
TEXTS = [
    "<reasoning>a</reasoning><answer>7</answer>",
    "<answer>7</answer>",
    "7",
    " <reasoning></reasoning>\n<answer></answer> ",
]
ROWS = {"dataset": torch.tensor([0, 0, 1, 1])}


class Answers:
    datasets = ("gsm8k", "math")

    def right(self, tokens, rows):
        return torch.tensor(RIGHT)

    def written(self, tokens):
        return TEXTS


def rewarded(functions, weights, alpha=2.0, task=None):
    prompt = torch.zeros(4, 12, dtype=torch.bool)
    prompt[:, :2] = True  # ten positions were written
    samples = SimpleNamespace(
        tokens=torch.zeros(4, 12, dtype=torch.long), prompt=prompt, evaluations=torch.tensor([1, 5, 6, 40])
    )
    return VerifiedReward(task or Answers(), alpha, functions, weights)(samples, ROWS)


def test_every_function_is_its_formula():
    speed = [1.0, 0.6**2, 0.5**2, 0.1**2]  # ((L - min(NFE, L) + 1) / L) ** alpha
    cost = [2 * nfe / 10 for nfe in (1, 5, 6, 40)]
    expected = {
        "correct_times_speed": [1.0, 0.0, 0.25, 0.01],
        "correct_minus_cost": [right - paid for right, paid in zip(RIGHT, cost, strict=True)],
        "correct": RIGHT,
        "format": [1.0, 0.0, 0.0, 1.0],
    }
    for name, values in expected.items():
        output = rewarded([name], [1.0])
        assert output.total.tolist() == pytest.approx(values), name
        assert output.terms["right"].tolist() == RIGHT and output.terms["speed"].tolist() == pytest.approx(speed)


def test_weights_have_the_order_of_the_functions_and_zero_only_logs():
    output = rewarded(["correct", "format", "correct_minus_cost"], [1.0, 0.5, 0])
    assert output.total.tolist() == pytest.approx([1.5, 0, 1, 1.5])
    assert output.terms["correct_minus_cost"].tolist() == pytest.approx([0.8, -1, -0.2, -7])
    assert rewarded(["correct_minus_cost", "format"], [0, 3]).total.tolist() == pytest.approx([3, 0, 0, 3])


def test_a_task_that_can_tell_says_how_much_is_right():
    class Parts(Answers):
        def partly_right(self, tokens, rows):
            return torch.tensor([0.5, 0.25, 1.0, 0.0])

    output = rewarded(["correct", "partly_correct"], [1, 2], task=Parts())
    assert output.total.tolist() == [2.0, 0.5, 3.0, 1.0] and output.terms["partly_correct"].tolist() == [
        0.5,
        0.25,
        1.0,
        0.0,
    ]


def test_a_function_of_a_data_set_leaves_the_others_at_zero():
    output = rewarded(["correct@math", "correct_minus_cost@gsm8k"], [1, 1])
    assert output.total.tolist() == pytest.approx([0.8, -1.0, 1.0, 1.0])
    assert output.terms["correct@math"].tolist() == [0, 0, 1, 1]


def test_alpha_zero_is_plain_correctness():
    for name in ("correct_times_speed", "correct_minus_cost"):
        assert rewarded([name], [1], alpha=0.0).total.tolist() == RIGHT


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_are_ours(name):
    if name.startswith("kodcode"):
        with pytest.raises(ValueError, match="of a data set that is not learnt from; use one of gsm8k, math"):
            rewarded([name], [1])
        return
    assert torch.equal(rewarded([name], [1]).total, rewarded([PUBLISHED[name]], [1]).total)


@pytest.mark.parametrize(
    ("functions", "weights", "message"),
    [
        (["correctness"], [1], "'correctness' is unknown; use one of correct_times_speed, correct_minus_cost"),
        (["correct@code"], [1], "of a data set that is not learnt from; use one of gsm8k, math"),
        (["correct", "format"], [1], "has 1 numbers for 2 reward.functions"),
        (["correct"], [1, 1], "has 2 numbers for 1 reward.functions"),
        (["correct", "mixed_correctness_reward_func"], [1, 1], "names one twice"),
        (["correct"], [0.0], "nothing to learn from"),
        ([], [], "nothing to learn from"),
        (["partly_correct"], [1], "'partly_correct' is for tasks whose answers have parts"),
    ],
)
def test_what_is_refused(functions, weights, message):
    with pytest.raises(ValueError, match=message):
        rewarded(functions, weights)
