"""Each rule of UNMASKING_RULES samples the law that enumeration gives: chi-square against every canvas, 20,000 rows at once."""

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from tests.enumerable import best_subsets, dependent_joint, exact_law, fits, from_joint, inconsistent, noisy_subsets

ROWS = 20_000
SETTINGS = {  # chosen so that a step writes one position at some canvases and several at others
    "confidence_noisy": {"noise": 0.7},
    "threshold": {"threshold": 0.592},
    "window": {"threshold": 0.55, "window": 2},
    "factor": {"factor": 1.0},
    "entropy_bound": {"bound": 1.5},
}
DEPENDENT = from_joint(dependent_joint(vocabulary=3, length=3, seed=1))
INCONSISTENT = inconsistent(vocabulary=3, length=4, seed=2)
# On the blank canvas the two best positions are others for the best probability, for the margin and for the entropy.
BLANK = torch.tensor([[0.6, 0.39, 0.01], [0.225, 0.55, 0.225], [0.001, 0.409, 0.59], [0.35, 0.055, 0.595]])
INCONSISTENT.table.data[-1] = BLANK.log()


def sampled(model, name, steps, canvas=None, block=None, token_sampler=None, rows=ROWS, seed=0, **settings):
    start = torch.tensor(canvas or [model.mask_id] * model.length).expand(rows, -1)
    environment = UnmaskingEnvironment(model, DecodeOptions(steps, block))
    return sample(
        environment,
        Strategy(UNMASKING_RULES[name](**settings), TokenRule(**(token_sampler or {}))),
        Prompts(start),
        seed,
    ).tokens


@pytest.mark.parametrize("name", UNMASKING_RULES)
@pytest.mark.parametrize("model, steps", [(DEPENDENT, 2), (INCONSISTENT, 3)], ids=["joint", "inconsistent"])
def test_every_rule_samples_its_exact_law(name, model, steps):
    settings = SETTINGS.get(name, {})
    fits(sampled(model, name, steps, **settings), exact_law(model, name, steps, **settings))


@pytest.mark.parametrize("name", UNMASKING_RULES)
@pytest.mark.parametrize("prompt", [{}, {2: 1}], ids=["no prompt", "a prompt"])
def test_every_rule_samples_its_exact_law_in_blocks_around_a_prompt(name, prompt):
    settings, mask = SETTINGS.get(name, {}), INCONSISTENT.mask_id
    canvas = [prompt.get(position, mask) for position in range(4)]
    law = exact_law(INCONSISTENT, name, 4, canvas, block=2, **settings)
    fits(sampled(INCONSISTENT, name, 4, canvas, block=2, **settings), law)


@pytest.mark.parametrize("name", ["random", "first_hitting", "leftmost", "confidence", "entropy"])
def test_one_position_an_evaluation_samples_the_joint_itself(name):
    """With exact conditionals no order of writing one by one changes the law."""
    joint = dependent_joint(vocabulary=4, length=3, seed=2)
    law = {tuple(index.tolist()): float(joint[tuple(index)]) for index in (joint >= 0).nonzero()}
    fits(sampled(from_joint(joint), name, steps=3), law)


@pytest.mark.parametrize(
    "token_sampler",
    [
        {"temperature": 0.6},
        {"temperature": 1.7},
        {"top_p": 0.8},
        {"top_k": 2},
        {"top_k": 1},
        {"temperature": 0.0},
        {"temperature": 1.4, "top_k": 3, "top_p": 0.7},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["random", "confidence"])
def test_token_rules_sample_the_transformed_law(name, token_sampler):
    model = inconsistent(vocabulary=4, length=2, seed=5)
    fits(sampled(model, name, 2, token_sampler=token_sampler), exact_law(model, name, 2, token_sampler=token_sampler))


def test_the_laws_of_the_rules_differ():
    """Else the tests above could not tell one rule from another."""
    laws = {name: exact_law(INCONSISTENT, name, 3, **SETTINGS.get(name, {})) for name in UNMASKING_RULES}
    names = list(laws)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            keys = laws[one].keys() | laws[other].keys()
            distance = sum(abs(laws[one].get(k, 0) - laws[other].get(k, 0)) for k in keys) / 2
            assert distance > 0.1, (one, other)


def test_the_enumeration_itself():
    """What the laws are built of, by hand: shared places of ties, and Gaussian races of which two have closed forms."""
    assert best_subsets({0: 0.5, 1: 0.3, 2: 0.3 + 5e-6}, 2) == [(0.5, (0, 1)), (0.5, (0, 2))]
    assert sum(share for share, _ in noisy_subsets({0: 0.0, 1: 1.0, 2: 0.3}, 2, 0.7)) == pytest.approx(1, abs=1e-6)
    first = dict((subset, share) for share, subset in noisy_subsets({0: 0.0, 1: 1.0}, 1, 0.7))[(1,)]
    assert first == pytest.approx(float(torch.special.ndtr(torch.tensor(1.0 / (0.7 * 2**0.5)))), abs=1e-5)
    with pytest.raises(AssertionError, match="chi-square"):
        fits(torch.tensor([[0], [1]]).repeat(500, 1), {(0,): 0.6, (1,): 0.4})
    with pytest.raises(AssertionError, match="never to come up"):
        fits(torch.tensor([[2]]), {(0,): 1.0})
