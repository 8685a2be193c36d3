"""A text revealed where a rule picks: what stands there at the end, the log-probability of each step by looking every canvas up,
and what the sum of them says of the sampler's law, by enumeration."""

from itertools import product

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES, Threshold
from samplers.loop import Strategy, TeacherForced, sample
from tests.enumerable import RandomLM, dependent_joint, exact_law, from_joint, inconsistent

SETTINGS = {
    "threshold": {"threshold": 0.5},
    "window": {"threshold": 0.5, "window": 2},
    "factor": {"factor": 1.0},
    "entropy_bound": {"bound": 1.0},
    "confidence_noisy": {"noise": 0.7},
}
LOOKING_FOR_SURE = ("confidence", "top_prob", "entropy", "threshold", "window", "factor", "entropy_bound", "leftmost")
INCONSISTENT = inconsistent(vocabulary=3, length=4, seed=2)
TEXTS = torch.tensor(list(product(range(3), repeat=4)))


def revealed(model, name, text, steps, canvas=None, block=None, seed=0):
    """`text` revealed by the rule `name`, and log p of what was written: of each recorded step, and summed over the row."""
    canvas = torch.full_like(text, model.mask_id) if canvas is None else canvas
    strategy = TeacherForced(UNMASKING_RULES[name](**SETTINGS.get(name, {})), text)
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps, block)),
        strategy,
        Prompts(canvas),
        seed,
        record=lambda observation: {},
    )
    trajectory = samples.trajectory
    return samples, torch.zeros(len(text)).index_add_(0, trajectory.row, trajectory.log_tokens)


@pytest.mark.parametrize("name", UNMASKING_RULES)
@pytest.mark.parametrize("block", [None, 2])
def test_the_text_stands_at_the_end_and_every_step_has_the_probability_of_its_tokens(name, block):
    """Around a prompt that is not the text's, for all texts at once; step by step in plain numbers along `unmasked_at`."""
    prompt = torch.tensor([[3, 0, 3, 3]]).expand_as(TEXTS)
    samples, total = revealed(INCONSISTENT, name, TEXTS, 2, prompt, block)
    assert torch.equal(samples.tokens, torch.where(prompt == 3, TEXTS, prompt))
    table = INCONSISTENT.table.detach().double()
    steps = {(int(r), int(t)): float(v) for r, t, v in zip(
        samples.trajectory.row, samples.trajectory.step, samples.trajectory.log_tokens, strict=True
    )}  # fmt: skip
    assert len(steps) == int(samples.steps.sum())
    for row, text in enumerate(TEXTS.tolist()):
        canvas, sums = prompt[row].tolist(), 0.0
        for step in range(int(samples.steps[row])):
            state = int(INCONSISTENT.state(torch.tensor([canvas])))
            picks = [i for i in range(4) if int(samples.unmasked_at[row, i]) == step]
            expected = sum(float(table[state, i, text[i]]) for i in picks)
            assert steps[row, step] == pytest.approx(expected, abs=1e-5)
            for i in picks:
                canvas[i] = text[i]
            sums += expected
        assert float(total[row]) == pytest.approx(sums, abs=2e-5)


@pytest.mark.parametrize("name", ["random", "first_hitting", "dilated", "leftmost", "confidence", "entropy"])
def test_one_position_a_step_with_exact_conditionals_is_the_probability_of_the_text_in_any_order(name):
    joint = dependent_joint(vocabulary=3, length=4, seed=4)
    samples, total = revealed(from_joint(joint), name, TEXTS, steps=4)
    torch.testing.assert_close(total.double(), joint[tuple(TEXTS.T)].log(), atol=2e-5, rtol=0)
    assert (samples.unmasked_at.sort(1).values == torch.arange(4)).all()
    orders = len(samples.unmasked_at.unique(dim=0))
    assert orders == 1 if name == "leftmost" else orders >= 4


@pytest.mark.parametrize("name", LOOKING_FOR_SURE)
@pytest.mark.parametrize("steps", [2, 3])
def test_a_rule_without_chance_gives_the_probability_of_the_text_under_its_sampler(name, steps):
    """One order for each text: the bound is tight. The sampler's law by enumeration, which never reveals a text."""
    _, total = revealed(INCONSISTENT, name, TEXTS, steps)
    law = exact_law(INCONSISTENT, name, steps, **SETTINGS.get(name, {}))
    expected = torch.tensor([law[tuple(text)] for text in TEXTS.tolist()]).log()
    torch.testing.assert_close(total.double(), expected.double(), atol=3e-5, rtol=0)


@pytest.mark.parametrize("name", ["random", "direct", "dilated"])
def test_a_rule_with_chance_gives_it_on_average_and_its_logarithm_is_a_bound(name):
    """Of two texts, 20,000 rows each: E exp(sum) = p(text), so E sum < log p(text)."""
    rows = 20_000
    law = exact_law(INCONSISTENT, name, 2)
    for text in ([0, 2, 1, 1], [2, 0, 0, 1]):
        _, total = revealed(INCONSISTENT, name, torch.tensor(text).expand(rows, -1), 2)
        likelihood, exact = total.double().exp(), law[tuple(text)]
        assert abs(float(likelihood.mean()) - exact) < 4.5 * float(likelihood.std()) / rows**0.5
        assert float(total.mean()) < torch.tensor(exact).log() - 0.01


def test_a_text_is_looked_up_by_the_name_of_its_row():
    """Rows that leave early, and rows named in another order than they stand."""
    model = RandomLM(4)
    text = torch.randint(0, 4, (5, 6), generator=torch.Generator().manual_seed(0))
    name = torch.tensor([3, 0, 4])
    canvas = text[name].clone()
    canvas[0, 2:], canvas[1, 5], canvas[2] = 4, 4, 4
    strategy = TeacherForced(Threshold(0.9), text)
    samples = sample(UnmaskingEnvironment(model, DecodeOptions(6)), strategy, Prompts(canvas), row_id=name)
    assert torch.equal(samples.tokens, text[name])
    assert len(samples.steps.unique()) == 3


# ------------------------------------------------------------------------------------------------- the environment's part


class SmallChunks(RandomLM):
    def chunk(self, device):
        return 2


@pytest.mark.parametrize("kind", [RandomLM, SmallChunks])
def test_log_prob_sums_over_the_positions_asked_for_and_evaluates_no_row_that_asks_for_none(kind):
    model = kind(4)
    canvas = torch.tensor([[4, 1, 4, 4, 0], [4, 4, 4, 4, 4], [4, 1, 4, 4, 0]])
    text = torch.tensor([[2, 3, 0, 1, 1], [0, 1, 2, 3, 0], [3, 3, 3, 3, 3]])
    positions = torch.tensor([[1, 0, 1, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).bool()
    observation = UnmaskingEnvironment(model, DecodeOptions(3)).reset(Prompts(canvas))
    log_prob = observation.log_prob(positions, text)
    dense = RandomLM(4).log_probs(canvas).gather(2, text.unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(log_prob, dense.masked_fill(~positions, 0.0).sum(1))
    assert log_prob[1] == 0
    environment = observation.environment
    assert (
        environment.evaluations.tolist() == [1, 0, 1] and environment.rows_evaluated == 1
    )  # rows 0 and 2 are one canvas
    assert torch.equal(observation.log_prob(torch.zeros_like(positions), text), torch.zeros(3))
    assert environment.forwards == 1


def test_a_text_revealed_costs_what_the_same_rule_costs_a_sampler():
    """The rule's own reading serves: one evaluation a step, and blind rules read only what they write."""
    text = torch.randint(0, 4, (3, 8), generator=torch.Generator().manual_seed(1))
    canvas = torch.full_like(text, 4)
    canvas[[0, 1, 2], [0, 1, 2]] = 0  # no two rows share an evaluation
    for name, positions in (("confidence", 7 + 5 + 3 + 1), ("random", 7)):
        environment = UnmaskingEnvironment(RandomLM(4), DecodeOptions(4))
        for strategy in (TeacherForced(UNMASKING_RULES[name](), text), Strategy(UNMASKING_RULES[name](), TokenRule())):
            samples = sample(environment, strategy, Prompts(canvas))
            assert samples.evaluations.tolist() == [4, 4, 4]
            assert environment.positions_read == 3 * positions
