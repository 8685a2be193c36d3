"""Action distributions: parity with the published likelihoods, sums over every outcome, frequencies, gradients."""

from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from policy.actions import ACTIONS, Bernoulli, BernoulliForced, FixedCount, PlackettLuceStop

VECTORS = Path(__file__).parents[1] / "vectors" / "policy-tiny"
LAWS = [
    Bernoulli(),
    Bernoulli(temperature=0.5),
    Bernoulli(beta=0.5),
    Bernoulli(beta=1.6),
    BernoulliForced(),
    BernoulliForced(temperature=2.0, beta=0.7),
    PlackettLuceStop(),
    PlackettLuceStop(stop_logit=-1.0, temperature=0.5),
    FixedCount(),
    FixedCount(temperature=2.0),
]
COUNT = 2
LOGITS = torch.tensor([0.4, -1.0, 9.0, 1.3])  # the largest is not writable
WRITABLE = torch.tensor([True, True, False, True])


def outcomes(law, writable):
    """Every order that the law can give on a row: Int[outcome, position]."""
    places = writable.nonzero().flatten().tolist()
    if isinstance(law, Bernoulli | BernoulliForced):
        picks = [subset for size in range(len(places) + 1) for subset in combinations(places, size)]
    elif isinstance(law, FixedCount):
        picks = list(permutations(places, min(COUNT, len(places))))
    else:
        picks = [pick for size in range(len(places) + 1) for pick in permutations(places, size)]
    orders = torch.zeros(len(picks), len(writable), dtype=torch.long)
    for order, pick in zip(orders, picks, strict=True):
        for rank, place in enumerate(pick, start=1):
            order[place] = 1 if isinstance(law, Bernoulli | BernoulliForced) else rank
    return orders


def log_probs_of_all(law, logits, writable):
    orders = outcomes(law, writable)
    return orders, law.log_prob(logits.expand(len(orders), -1), writable.expand(len(orders), -1), orders)


def draw(law, logits, writable, rows, seed=0):
    uniforms = torch.rand(rows, len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    more = (torch.full((rows,), COUNT),) if isinstance(law, FixedCount) else ()
    return law.sample(logits.expand(rows, -1), writable.expand(rows, -1), uniforms, *more)


def naive_plackett_luce(logits, writable, order, stop_logit):
    """The formula of the paper, one row, one pick at a time."""
    left = [place for place in range(len(logits)) if writable[place]]
    picks = order.argsort()[(order == 0).sum() :].tolist()
    stop = [] if stop_logit is None else [logits.new_tensor(stop_logit)]
    total = logits.new_zeros(())
    for turn, pick in enumerate(picks):
        rivals = [logits[place] for place in left] + (stop if turn else [])
        total = total + logits[pick] - torch.stack(rivals).logsumexp(0)
        left.remove(pick)
    if not stop:
        return total
    return total + stop_logit - torch.stack([logits[place] for place in left] + stop).logsumexp(0)


# ---------------------------------------------------------------------------------------- parity


def test_bernoulli_equals_the_published_likelihood():
    expected = load_file(VECTORS / "expected.safetensors")
    order = (expected["bernoulli_sample"] & expected["eligible"]).long()
    log_prob = Bernoulli().log_prob(expected["utilities"], expected["eligible"], order)
    torch.testing.assert_close(log_prob.double(), expected["bernoulli_loglik"], atol=1e-5, rtol=1e-5)


def test_plackett_luce_equals_the_published_likelihood():
    expected = load_file(VECTORS / "expected.safetensors")
    sequence = expected["dpls_sequence"]
    order = torch.zeros_like(sequence)
    for row, picks in enumerate(sequence):
        picks = picks[picks >= 0]
        order[row, picks] = torch.arange(1, len(picks) + 1)
    assert torch.equal(order > 0, expected["dpls_chosen"])
    law = PlackettLuceStop(stop_logit=expected["dpls_stop_logit"].item())
    log_prob = law.log_prob(expected["utilities"], expected["eligible"], order)
    torch.testing.assert_close(log_prob.double(), expected["dpls_loglik"], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("law", LAWS, ids=str)
@settings(max_examples=20, deadline=None)
@given(
    logits=st.lists(st.floats(-12, 12, width=32), min_size=4, max_size=4),
    writable=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_probabilities_of_all_outcomes_sum_to_one(law, logits, writable):
    _, log_probs = log_probs_of_all(law, torch.tensor(logits), torch.tensor(writable))
    assert not log_probs.isnan().any()
    torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0), atol=2e-5, rtol=0)


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_frequencies_are_the_probabilities(law):
    rows = 40_000
    orders, log_probs = log_probs_of_all(law, LOGITS, WRITABLE)
    base = torch.tensor([1, 5, 25, 125])
    drawn = (draw(law, LOGITS, WRITABLE, rows) * base).sum(-1)
    probability = log_probs.double().exp()
    frequency = torch.stack([(drawn == code).double().mean() for code in (orders * base).sum(-1)])
    error = (probability * (1 - probability) / rows).sqrt()
    assert (frequency.sum() - 1).abs() < 1e-12  # nothing but the outcomes listed
    assert ((frequency - probability).abs() <= 4.5 * error + 1e-6).all()


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), stop_logit=st.sampled_from([None, -3.0, 0.0, 2.0]))
def test_vectorised_plackett_luce_and_its_gradient_equal_the_formula(seed, stop_logit):
    generator = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(4, 6, generator=generator)).requires_grad_()
    writable = torch.rand(4, 6, generator=generator) < 0.7
    writable[:, 2] = True
    uniforms = torch.rand(4, 6, dtype=torch.float64, generator=generator)
    if stop_logit is None:
        law = FixedCount()
        order = law.sample(logits, writable, uniforms, torch.tensor([0, 1, 3, 6]))
    else:
        law = PlackettLuceStop(stop_logit=stop_logit)
        order = law.sample(logits, writable, uniforms)
    log_prob = law.log_prob(logits, writable, order)
    naive = torch.stack([naive_plackett_luce(*row, stop_logit) for row in zip(logits, writable, order, strict=True)])
    torch.testing.assert_close(log_prob, naive, atol=2e-5, rtol=1e-5)
    ours, theirs = (torch.autograd.grad(value.sum(), logits)[0] for value in (log_prob, naive))
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


def test_forced_pick_has_the_mass_of_the_empty_set():
    only_best = torch.tensor([[0, 0, 0, 1]])
    nothing = torch.zeros_like(only_best)
    row = LOGITS[None], WRITABLE[None]
    expected = Bernoulli().log_prob(*row, only_best).exp() + Bernoulli().log_prob(*row, nothing).exp()
    torch.testing.assert_close(BernoulliForced().log_prob(*row, only_best).exp(), expected)
    assert BernoulliForced().log_prob(*row, nothing) == -torch.inf


# ---------------------------------------------------------------------------------------- what always holds


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_only_writable_positions_and_ranks_without_gaps(law):
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(500, 6, generator=generator)
    writable = torch.rand(500, 6, generator=generator) < 0.5
    uniforms = torch.rand(500, 6, dtype=torch.float64, generator=generator)
    more = (torch.randint(0, 7, (500,), generator=generator),) if isinstance(law, FixedCount) else ()
    order = law.sample(logits, writable, uniforms, *more)
    assert order.dtype == torch.long and (order[~writable] == 0).all()
    size, any_writable = (order > 0).sum(-1), writable.any(-1)
    if isinstance(law, FixedCount):
        assert torch.equal(size, torch.minimum(more[0], writable.sum(-1)))
    elif not isinstance(law, Bernoulli):
        assert (size[any_writable] > 0).all()
    highest = (size > 0).long() if isinstance(law, Bernoulli | BernoulliForced) else size
    assert torch.equal(order.amax(-1), highest)
    log_prob = law.log_prob(logits, writable, order)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all() and (log_prob <= 1e-5).all()
    assert (log_prob[~any_writable] == 0).all()

    permutation = torch.randperm(500, generator=generator)  # a row does not know its batch
    more = tuple(extra[permutation] for extra in more)
    again = law.sample(logits[permutation], writable[permutation], uniforms[permutation], *more)
    assert torch.equal(again, order[permutation])
    assert torch.equal(law.log_prob(logits[permutation], writable[permutation], again), log_prob[permutation])


@pytest.mark.parametrize("law", LAWS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 80.0])
def test_gradients_are_finite(law, scale):
    logits = (scale * torch.tensor([[1.0, -1.0, 0.5], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])).requires_grad_()
    writable = torch.tensor([[True, True, True], [False, False, False], [False, True, False]])
    uniforms = torch.full((3, 3), 0.3, dtype=torch.float64)
    more = (torch.tensor([2, 2, 2]),) if isinstance(law, FixedCount) else ()
    law.log_prob(logits, writable, law.sample(logits, writable, uniforms, *more)).sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[~writable] == 0).all()


@pytest.mark.parametrize("law", LAWS, ids=str)
def test_a_pick_outside_is_impossible(law):
    order = torch.tensor([[0, 0, 1, 0]])
    assert law.log_prob(LOGITS[None], WRITABLE[None], order) == -torch.inf


def test_saturated_logits_keep_their_tails():
    """Clamped probabilities would lose both: log(1 - sigmoid(40)) is -40, not log of the type's epsilon."""
    log_prob = Bernoulli().log_prob(torch.tensor([[40.0]]), torch.tensor([[True]]), torch.tensor([[0]]))
    torch.testing.assert_close(log_prob, torch.tensor([-40.0]))


def test_beta_above_one_makes_picks_certain():
    law, row = Bernoulli(beta=4.0), (torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert law.log_prob(*row, torch.tensor([[1]])) == 0
    assert law.log_prob(*row, torch.tensor([[0]])) == -torch.inf


@pytest.mark.parametrize("law", ACTIONS.values())
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_must_be_positive(law, temperature):
    with pytest.raises(ValueError, match=f"temperature {temperature} must be above 0"):
        law(temperature=temperature)
