"""ReMDM: transition probabilities as in the paper, the planned share of committed positions, and laws by enumeration."""

from itertools import product
from math import exp

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import Direct
from samplers.loop import Strategy
from samplers.revision import ReMDM, by_confidence
from tests.enumerable import dependent_joint, fits, from_joint, inconsistent

SCHEDULES = {
    "cap": {"schedule": "cap", "eta": 0.3},
    "rescale": {"schedule": "rescale", "eta": 0.6},
    "late": {"schedule": "rescale", "eta": 0.8, "switch": 0.6},
    "conf": {"schedule": "conf"},
    "late_conf": {"schedule": "conf", "switch": 0.6},
    "loop": {"schedule": "loop", "eta": 0.4, "begin": 0.75, "end": 0.25, "level": 0.6},
}
V, LENGTH, STEPS = 2, 3, 4
MODEL = from_joint(dependent_joint(V, LENGTH, seed=3))


def planned(schedule, step, steps=STEPS, begin=0.75, end=0.25, level=0.6):
    """alpha after `step` steps."""
    time = 1 - step / steps
    if schedule != "loop":
        return 1 - time
    if time > begin:
        return (1 - time) * level / (1 - begin)
    return level if time >= end else 1 - time * (1 - level) / end


def transition(settings, step, probabilities, steps=STEPS):
    """(probability of committing a mask, of masking each committed position) in plain Python.

    probabilities: for each position the probability with which its token was committed, None where it is masked.
    """
    schedule, eta = settings["schedule"], settings.get("eta", 0)
    now, then = planned(schedule, step), planned(schedule, step + 1)
    limit = min(1.0, (1 - then) / now) if now > 0 else 1.0
    early = "switch" in settings and 1 - step / steps >= settings["switch"]
    committed = [p for p in probabilities if p is not None]
    masked = len(probabilities) - len(committed)
    if schedule == "conf":
        opened = min(limit if committed else 0, masked * (1 - then) / (1 - now)) if not early else 0
        total = sum(exp(-p) for p in committed)
        sigma = [0 if p is None else exp(-p) / total * opened for p in probabilities]
        return (then - now) / (1 - now) + (opened / masked if masked else 0), sigma
    looping = 1 - step / steps <= settings.get("begin", 1) and 1 - (step + 1) / steps >= settings.get("end", 0)
    one = {"cap": min(eta, limit), "rescale": eta * limit, "loop": eta if looping else 0}[schedule]
    one = 0 if early else one
    return (then - (1 - one) * now) / (1 - now), [0 if p is None else one for p in probabilities]


def laws(settings, steps=STEPS):
    """The law over states after each step; a state is a token (None: masked) and its probability at commit, per position."""
    table, law = MODEL.table.detach().double().softmax(-1), {((None, None),) * LENGTH: 1.0}
    found = [law]
    for step in range(steps):
        following = {}
        for state, weight in law.items():
            canvas = torch.tensor([[V if token is None else token for token, _ in state]])
            predicted = table[int(MODEL.state(canvas))].tolist()
            commit, sigma = transition(settings, step, [p for _, p in state])
            choices = []
            for place, (token, p) in enumerate(state):
                if token is None:
                    options = [((v, predicted[place][v]), commit * predicted[place][v]) for v in range(V)]
                    choices.append([*options, ((None, None), 1 - commit)])
                else:
                    choices.append([((token, p), 1 - sigma[place]), ((None, None), sigma[place])])
            for picked in product(*choices):
                chance = weight
                for _, share in picked:
                    chance *= share
                    assert share >= -1e-12
                if chance > 0:
                    key = tuple(entry for entry, _ in picked)
                    following[key] = following.get(key, 0.0) + chance
        law = following
        found.append(law)
    return found


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_law_after_every_step_is_that_of_the_enumerated_kernel(name):
    """Of whole canvases, masks included: the final law alone hardly depends on the rate of remasking."""
    rows, canvases = 6000, []

    def look(observation, place):
        assert len(place) == rows
        canvases.append(observation.tokens.clone())

    samples = ReMDM(TokenRule(), **SCHEDULES[name]).decode(
        MODEL, Prompts(torch.full((rows, LENGTH), V)), DecodeOptions(STEPS), seed=11, on_step=look
    )
    for step, found in enumerate(laws(SCHEDULES[name])[1:]):
        law = {}
        for state, weight in found.items():
            tokens = tuple(V if token is None else token for token, _ in state)
            law[tokens] = law.get(tokens, 0.0) + weight
        fits(canvases[step], law)
    assert torch.equal(canvases[-1], samples.tokens) and int(samples.revisions.sum()) > 100


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_expected_share_of_committed_positions_is_the_schedules_after_every_step(name):
    for step, law in enumerate(laws(SCHEDULES[name])):
        share = sum(w * sum(token is not None for token, _ in state) for state, w in law.items()) / LENGTH
        assert abs(share - planned(SCHEDULES[name]["schedule"], step)) < 1e-12
        assert abs(sum(law.values()) - 1) < 1e-12


class Looked:
    """Compares the probabilities that the decoder uses with those in plain Python, at every canvas of a run."""

    def __init__(self, rule, settings):
        self.rule, self.settings, self.seen, self.original = rule, settings, 0, rule.probabilities

    def __call__(self, observation, committed_at):
        sigma, commit = self.original(observation, committed_at)
        for row in range(len(sigma)):
            known = [None if masked else p for masked, p in
                     zip(observation.masked[row].tolist(), committed_at[row].tolist(), strict=True)]  # fmt: skip
            expected, remasked = transition(self.settings, int(observation.block_step[row]), known)
            assert float(commit[row]) == pytest.approx(expected, abs=1e-6)
            assert sigma[row].tolist() == pytest.approx(remasked, abs=1e-6)
            self.seen += 1
        return sigma, commit


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_probabilities_at_every_canvas_are_those_of_the_paper(name, monkeypatch):
    rule = ReMDM(TokenRule(), **SCHEDULES[name])
    looked = Looked(rule, SCHEDULES[name])
    monkeypatch.setattr(rule, "probabilities", looked)
    rule.decode(MODEL, Prompts(torch.full((60, LENGTH), V)), DecodeOptions(STEPS), seed=1)
    assert looked.seen >= 120


def test_without_remasking_it_is_ancestral_sampling():
    model = inconsistent(3, 4, seed=2)
    prompts, options = Prompts(torch.full((200, 4), 3)), DecodeOptions(5)
    plain = Strategy(Direct(), TokenRule()).decode(model, prompts, options, seed=4)
    for schedule in ("cap", "rescale"):
        samples = ReMDM(TokenRule(), schedule, 0.0).decode(model, prompts, options, seed=4)
        assert torch.equal(samples.tokens, plain.tokens) and not samples.revisions.any()
        assert torch.equal(samples.evaluations, plain.evaluations)


def test_the_weights_of_confidence_sum_to_one_over_committed_positions():
    committed_at = torch.tensor([[0.9, 0.1, 0.5, 0.3]])
    revisable = torch.tensor([[True, True, False, True]])
    share = torch.tensor([0.5], dtype=torch.float64)
    sigma, commit = by_confidence(committed_at, revisable, ~revisable, share, share + 0.25)
    assert sigma[0, 2] == 0 and sigma[0, 1] > sigma[0, 3] > sigma[0, 0] > 0
    # sigma_max is 1/2, and one masked position can take up (1 - 0.75) / (1 - 0.5).
    assert sigma.sum() == pytest.approx(0.5) and commit.item() == pytest.approx(0.5 + 0.5)
    nothing_masked = torch.zeros_like(revisable)
    assert by_confidence(committed_at, revisable, nothing_masked, share, share + 0.25)[0].sum() == 0
    all_masked = torch.ones_like(revisable)
    sigma, commit = by_confidence(committed_at, nothing_masked, all_masked, 0 * share, share)
    assert sigma.sum() == 0 and commit.item() == pytest.approx(0.5)


@pytest.mark.parametrize("name", SCHEDULES)
def test_blocks_take_their_steps_one_after_the_other_and_rows_decode_the_same_alone(name):
    model = inconsistent(2, 4, seed=5)
    canvas = torch.full((6, 4), 2)
    canvas[1, 0], canvas[2, 3] = 1, 0
    options = DecodeOptions(8, block_length=2)
    rule = ReMDM(TokenRule(), **SCHEDULES[name])
    whole = rule.decode(model, Prompts(canvas), options, seed=3)
    assert (whole.steps == 8).all() and (whole.evaluations <= 8).all()
    assert (whole.unmasked_at[:, 2:] >= 4).logical_or(canvas[:, 2:] < 2).all() and (whole.unmasked_at[:, :2] < 4).all()
    for row in range(6):
        alone = rule.decode(model, Prompts(canvas[row : row + 1]), options, seed=3, row_id=torch.tensor([row]))
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]


def test_a_budget_ends_it_and_fewer_steps_than_blocks_take_one_each():
    rule = ReMDM(TokenRule(), "cap", 0.5)
    samples = rule.decode(MODEL, Prompts(torch.full((20, LENGTH), V)), DecodeOptions(9, budget=3), seed=2)
    assert int(samples.evaluations.max()) == 3 and not (samples.tokens == V).any()
    environment = UnmaskingEnvironment(inconsistent(2, 4), DecodeOptions(1, block_length=2))
    assert environment.options.steps == 1
    samples = rule.decode(environment.model, Prompts(torch.full((5, 4), 2)), DecodeOptions(1, block_length=2), seed=2)
    assert samples.evaluations.tolist() == [2] * 5


def test_a_strength_that_makes_probabilities_negative_is_refused():
    ReMDM(TokenRule(), "loop", 0.111)
    with pytest.raises(ValueError, match=r"eta=0.3 must be from 0 to 0.1111 with schedule=loop"):
        ReMDM(TokenRule(), "loop", 0.3)
    with pytest.raises(ValueError, match="must be from 0 to 1 with schedule=cap"):
        ReMDM(TokenRule(), "cap", 1.5)
    with pytest.raises(ValueError, match="'linear' is unknown; use one of cap, rescale, conf, loop"):
        ReMDM(TokenRule(), "linear")
    with pytest.raises(ValueError, match="end=0.6 must be at most begin=0.55"):
        ReMDM(TokenRule(), "loop", end=0.6)
