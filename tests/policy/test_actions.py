"""Action distributions: parity with the published likelihoods, sums over every outcome, frequencies, gradients."""

from dataclasses import dataclass
from itertools import combinations, permutations
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from policy.actions import ACTIONS, Bernoulli, BernoulliForced, FixedCount, PlackettLuceStop, Trust

VECTORS = Path(__file__).parents[1] / "vectors" / "policy-tiny"


@dataclass(frozen=True)
class Repelled(FixedCount):
    """FixedCount whose picks repel each other (or attract, below 0), under the signature of the other laws."""

    repulsion: tuple[float, ...] = ()

    def sample(self, logits, writable, uniforms, count):
        return super().sample(logits, writable, uniforms, count, torch.tensor(self.repulsion))

    def log_prob(self, logits, writable, order):
        return super().log_prob(logits, writable, order, torch.tensor(self.repulsion))


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
    Repelled(repulsion=(1.5, -0.7)),
    Repelled(repulsion=(-2.0, 0.4, 3.0), temperature=2.0),
]
COUNT = 2
LOGITS = torch.tensor([0.4, -1.0, 9.0, 1.3])  # the largest is not writable
WRITABLE = torch.tensor([True, True, False, True])


def outcomes(distribution, writable):
    """Every order that the law can give on a row: Int[outcome, position]."""
    places = writable.nonzero().flatten().tolist()
    if isinstance(distribution, Bernoulli | BernoulliForced):
        picks = [subset for size in range(len(places) + 1) for subset in combinations(places, size)]
    elif isinstance(distribution, FixedCount):
        picks = list(permutations(places, min(COUNT, len(places))))
    else:
        picks = [pick for size in range(len(places) + 1) for pick in permutations(places, size)]
    orders = torch.zeros(len(picks), len(writable), dtype=torch.long)
    for order, pick in zip(orders, picks, strict=True):
        for rank, place in enumerate(pick, start=1):
            order[place] = 1 if isinstance(distribution, Bernoulli | BernoulliForced) else rank
    return orders


def log_probs_of_all(distribution, logits, writable):
    orders = outcomes(distribution, writable)
    return orders, distribution.log_prob(logits.expand(len(orders), -1), writable.expand(len(orders), -1), orders)


def draw(distribution, logits, writable, rows, seed=0):
    uniforms = torch.rand(rows, len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    more = (torch.full((rows,), COUNT),) if isinstance(distribution, FixedCount) else ()
    return distribution.sample(logits.expand(rows, -1), writable.expand(rows, -1), uniforms, *more)


def picks_of(order):
    """The positions of one row, in the order of their ranks; of equal ranks, from the left."""
    return order.argsort(stable=True)[(order == 0).sum() :].tolist()


def naive_repelled(logits, writable, order, repulsion, temperature=1.0):
    """The formula of `FixedCount`, one row, one pick at a time."""
    left = [place for place in range(len(logits)) if writable[place]]
    utility = {place: logits[place] / temperature for place in left}
    total = logits.new_zeros(())
    for pick in picks_of(order):
        total = total + utility[pick] - torch.stack([utility[place] for place in left]).logsumexp(0)
        left.remove(pick)
        for place in left:
            if abs(place - pick) <= len(repulsion):
                utility[place] = utility[place] - repulsion[abs(place - pick) - 1]
    return total


def naive_plackett_luce(logits, writable, order, stop_logit):
    """The formula of the paper, one row, one pick at a time."""
    left = [place for place in range(len(logits)) if writable[place]]
    picks = picks_of(order)
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
    distribution = PlackettLuceStop(stop_logit=expected["dpls_stop_logit"].item())
    log_prob = distribution.log_prob(expected["utilities"], expected["eligible"], order)
    torch.testing.assert_close(log_prob.double(), expected["dpls_loglik"], atol=1e-5, rtol=1e-5)


# ---------------------------------------------------------------------------------------- exactness


@pytest.mark.parametrize("distribution", LAWS, ids=str)
@settings(max_examples=20, deadline=None)
@given(
    logits=st.lists(st.floats(-12, 12, width=32), min_size=4, max_size=4),
    writable=st.lists(st.booleans(), min_size=4, max_size=4),
)
def test_probabilities_of_all_outcomes_sum_to_one(distribution, logits, writable):
    _, log_probs = log_probs_of_all(distribution, torch.tensor(logits), torch.tensor(writable))
    assert not log_probs.isnan().any()
    torch.testing.assert_close(log_probs.exp().sum(), torch.tensor(1.0), atol=2e-5, rtol=0)


@pytest.mark.parametrize("distribution", LAWS, ids=str)
def test_frequencies_are_the_probabilities(distribution):
    rows = 40_000
    orders, log_probs = log_probs_of_all(distribution, LOGITS, WRITABLE)
    base = torch.tensor([1, 5, 25, 125])
    drawn = (draw(distribution, LOGITS, WRITABLE, rows) * base).sum(-1)
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
        distribution = FixedCount()
        order = distribution.sample(logits, writable, uniforms, torch.tensor([0, 1, 3, 6]))
    else:
        distribution = PlackettLuceStop(stop_logit=stop_logit)
        order = distribution.sample(logits, writable, uniforms)
    log_prob = distribution.log_prob(logits, writable, order)
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


# ---------------------------------------------------------------------------------------- picks that repel each other

FIVE = torch.tensor([0.3, -0.8, 1.1, 0.6, -0.2])
REPULSIONS = [(1.2, 0.5), (-1.5,), (2.0, -1.0, 0.3, -0.6)]


def orders_of(count, writable):
    picks = list(permutations(writable.nonzero().flatten().tolist(), min(count, int(writable.sum()))))
    orders = torch.zeros(len(picks), len(writable), dtype=torch.long)
    for order, pick in zip(orders, picks, strict=True):
        order[list(pick)] = torch.arange(1, len(pick) + 1)
    return orders


def check_frequencies(distribution, logits, writable, counts, rows=40_000):
    """`rows` rows of each count, in one batch, against exp(log_prob) of every order that count allows."""
    count = torch.tensor(counts).repeat(rows)
    uniforms = torch.rand(len(count), len(logits), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    shape = len(count), -1
    drawn = distribution.sample(logits.expand(shape), writable.expand(shape), uniforms, count)
    base = (len(logits) + 1) ** torch.arange(len(logits))
    for size in counts:
        orders = orders_of(size, writable)
        probability = distribution.log_prob(logits.expand(len(orders), -1), writable.expand(len(orders), -1), orders)
        probability = probability.double().exp()
        codes = (drawn[count == size] * base).sum(-1)
        frequency = torch.stack([(codes == code).double().mean() for code in (orders * base).sum(-1)])
        error = (probability * (1 - probability) / rows).sqrt()
        assert float(probability.sum()) == pytest.approx(1, abs=1e-5)
        assert (frequency.sum() - 1).abs() < 1e-12  # nothing but these orders
        assert ((frequency - probability).abs() <= 4.5 * error + 1e-6).all(), (size, frequency, probability)


@pytest.mark.parametrize("repulsion", REPULSIONS, ids=str)
def test_frequencies_of_repelled_picks_are_the_probabilities_whatever_the_counts_beside_them(repulsion):
    """Counts from 0 to more than can be written (four of five) in one batch."""
    writable = torch.tensor([True, True, True, False, True])
    check_frequencies(Repelled(repulsion=repulsion), FIVE, writable, counts=[0, 1, 2, 3, 6])


@pytest.mark.parametrize("repulsion", [(3.0, 3.0), (-3.0, -6.0)], ids=str)
def test_frequencies_where_all_that_is_left_is_written(repulsion):
    """Three writable positions and a count of five: the orders of the three, far from evenly."""
    writable = torch.tensor([True, False, True, True, False])
    check_frequencies(Repelled(repulsion=repulsion), FIVE, writable, counts=[5])


@pytest.mark.parametrize(
    "logits, repulsion, count",
    [
        ([400.0, -400.0, -400.0], (0.0,), 2),  # which of the two comes second
        ([0.0, 5.0, 0.0], (-60.0,), 2),  # both neighbours come at once, either first
        ([0.0, 0.0, 0.0], (500.0, 500.0), 3),
        ([400.0, 0.0, -400.0, -400.0], (-400.0, 400.0, 400.0), 3),
    ],
    ids=str,
)
def test_frequencies_are_the_probabilities_however_far_apart_the_utilities_are(logits, repulsion, count):
    logits = torch.tensor(logits)
    writable = torch.ones(len(logits), dtype=torch.bool)
    check_frequencies(Repelled(repulsion=repulsion), logits, writable, [count])


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    reach=st.integers(1, 8),  # beyond the six positions too
    temperature=st.sampled_from([1.0, 0.5]),
)
def test_vectorised_repulsion_and_its_gradients_equal_the_formula(seed, reach, temperature):
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(5, 6, generator=generator)).requires_grad_()
    repulsion = (2 * torch.randn(reach, generator=generator)).requires_grad_()
    writable = torch.rand(5, 6, generator=generator) < 0.7
    writable[:, 2] = True
    uniforms = torch.rand(5, 6, dtype=torch.float64, generator=generator)
    distribution = FixedCount(temperature)
    order = distribution.sample(logits, writable, uniforms, torch.tensor([0, 1, 2, 3, 6]), repulsion)
    log_prob = distribution.log_prob(logits, writable, order, repulsion)
    exact = logits.detach().double().requires_grad_(), repulsion.detach().double().requires_grad_()
    naive = torch.stack([
        naive_repelled(exact[0][row], writable[row], order[row], exact[1], temperature) for row in range(5)
    ])  # fmt: skip
    torch.testing.assert_close(log_prob.double(), naive, atol=3e-5, rtol=1e-5)
    ours = torch.autograd.grad(log_prob.sum(), (logits, repulsion))
    theirs = torch.autograd.grad(naive.sum(), exact, materialize_grads=True)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, atol=3e-5, rtol=1e-4)


def test_gradients_of_repelled_picks_equal_finite_differences():
    logits, repulsion = FIVE[None].clone(), torch.tensor([0.9, -0.4])
    writable, order = torch.tensor([[True, True, True, False, True]]), torch.tensor([[3, 0, 1, 0, 2]])
    distribution, width = FixedCount(temperature=0.8), 0.03

    def value(shift_logits, shift_repulsion):
        return float(distribution.log_prob(logits + shift_logits, writable, order, repulsion + shift_repulsion))

    leaves = logits.clone().requires_grad_(), repulsion.clone().requires_grad_()
    ours = torch.autograd.grad(distribution.log_prob(leaves[0], writable, order, leaves[1]).sum(), leaves)
    along_logits = [(value(width * e, 0) - value(-width * e, 0)) / (2 * width) for e in torch.eye(5)]
    along_repulsion = [(value(0, width * e) - value(0, -width * e)) / (2 * width) for e in torch.eye(2)]
    torch.testing.assert_close(ours[0][0], torch.tensor(along_logits), atol=2e-3, rtol=0)
    torch.testing.assert_close(ours[1], torch.tensor(along_repulsion), atol=2e-3, rtol=0)
    assert ours[1].abs().min() > 0.05 and ours[0][0, 3] == 0


def random_rows(rows=300, length=7, scale=3.0):
    generator = torch.Generator().manual_seed(5)
    logits = scale * torch.randn(rows, length, generator=generator)
    writable = torch.rand(rows, length, generator=generator) < 0.7
    uniforms = torch.rand(rows, length, dtype=torch.float64, generator=generator)
    return logits, writable, uniforms, torch.randint(0, length + 1, (rows,), generator=generator)


@pytest.mark.parametrize("scale", [3.0, 400.0])
@pytest.mark.parametrize("reach", [1, 4, 20])
def test_a_repulsion_of_zero_is_none(scale, reach):
    logits, writable, uniforms, count = random_rows(scale=scale)
    distribution, zeros = FixedCount(temperature=0.7), torch.zeros(reach)
    order = distribution.sample(logits, writable, uniforms, count)
    assert torch.equal(distribution.sample(logits, writable, uniforms, count, zeros), order)
    plain = distribution.log_prob(logits, writable, order)
    torch.testing.assert_close(distribution.log_prob(logits, writable, order, zeros), plain, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("repulsion", [(0.0,), (1.0, -0.5)], ids=str)
def test_picks_that_all_have_rank_1_count_from_the_left(repulsion):
    """What `threshold` and the Bernoulli laws give, and imitation scores under this law: every pick counts."""
    logits, writable, uniforms, _ = random_rows(rows=40)
    order = (writable & (uniforms < 0.6)).long()
    assert (order.sum(1) > 1).any()
    log_prob = Repelled(repulsion=repulsion).log_prob(logits, writable, order)
    exact = logits.double(), writable, order
    naive = torch.stack([naive_repelled(*row, torch.tensor(repulsion)) for row in zip(*exact, strict=True)])
    torch.testing.assert_close(log_prob.double(), naive, atol=3e-5, rtol=1e-5)
    if not any(repulsion):
        torch.testing.assert_close(FixedCount().log_prob(logits, writable, order), log_prob, atol=3e-5, rtol=1e-5)


def test_a_single_pick_is_repelled_by_nothing():
    logits, writable, uniforms, _ = random_rows()
    distribution, repulsion = FixedCount(), torch.tensor([5.0, -3.0], requires_grad=True)
    one = torch.ones(len(logits), dtype=torch.long)
    order = distribution.sample(logits, writable, uniforms, one)
    assert torch.equal(distribution.sample(logits, writable, uniforms, one, repulsion), order)
    log_prob = distribution.log_prob(logits, writable, order, repulsion)
    torch.testing.assert_close(log_prob, distribution.log_prob(logits, writable, order), atol=2e-5, rtol=1e-5)
    assert (torch.autograd.grad(log_prob.sum(), repulsion)[0] == 0).all()


@pytest.mark.parametrize("strength", [-60.0, 0.0, 60.0])
def test_extreme_logits_write_their_count_however_strong_the_repulsion(strength):
    """Logits of 400 and -400, and sixteen neighbours of which each pick repels all that are left."""
    generator = torch.Generator().manual_seed(3)
    logits = 400.0 * (2 * (torch.rand(200, 16, generator=generator) < 0.5) - 1)
    logits[100:] = 0
    uniforms = torch.rand(200, 16, dtype=torch.float64, generator=generator)
    count = torch.randint(0, 17, (200,), generator=generator)
    count[::4] = 16
    writable = torch.ones(200, 16, dtype=torch.bool)
    repulsion = torch.full((15,), strength)
    order = FixedCount().sample(logits, writable, uniforms, count, repulsion)
    assert torch.equal((order > 0).sum(1), count)
    assert torch.equal(order.amax(1), count)
    assert FixedCount().log_prob(logits, writable, order, repulsion).isfinite().all()


# ---------------------------------------------------------------------------------------- what always holds


@pytest.mark.parametrize("distribution", LAWS, ids=str)
def test_only_writable_positions_and_ranks_without_gaps(distribution):
    generator = torch.Generator().manual_seed(1)
    logits = 4 * torch.randn(500, 6, generator=generator)
    writable = torch.rand(500, 6, generator=generator) < 0.5
    uniforms = torch.rand(500, 6, dtype=torch.float64, generator=generator)
    more = (torch.randint(0, 7, (500,), generator=generator),) if isinstance(distribution, FixedCount) else ()
    order = distribution.sample(logits, writable, uniforms, *more)
    assert order.dtype == torch.long and (order[~writable] == 0).all()
    size, any_writable = (order > 0).sum(-1), writable.any(-1)
    if isinstance(distribution, FixedCount):
        assert torch.equal(size, torch.minimum(more[0], writable.sum(-1)))
    elif not isinstance(distribution, Bernoulli):
        assert (size[any_writable] > 0).all()
    highest = (size > 0).long() if isinstance(distribution, Bernoulli | BernoulliForced) else size
    assert torch.equal(order.amax(-1), highest)
    log_prob = distribution.log_prob(logits, writable, order)
    assert log_prob.dtype == torch.float32 and log_prob.isfinite().all() and (log_prob <= 1e-5).all()
    assert (log_prob[~any_writable] == 0).all()

    permutation = torch.randperm(500, generator=generator)  # a row does not know its batch
    more = tuple(extra[permutation] for extra in more)
    again = distribution.sample(logits[permutation], writable[permutation], uniforms[permutation], *more)
    assert torch.equal(again, order[permutation])
    assert torch.equal(distribution.log_prob(logits[permutation], writable[permutation], again), log_prob[permutation])
    for row in range(0, 500, 25):
        alone = slice(row, row + 1)
        single = distribution.sample(logits[permutation][alone], writable[permutation][alone], uniforms[permutation][alone],
                            *(extra[alone] for extra in more))  # fmt: skip
        assert torch.equal(single, again[alone])


@pytest.mark.parametrize("distribution", LAWS, ids=str)
def test_no_rows_have_no_log_probabilities(distribution):
    """What a process of several has when none of its steps teaches anything; it must still join the others."""
    nothing = torch.zeros(0, 4)
    assert distribution.log_prob(nothing, nothing > 0, nothing.long()).shape == (0,)


@pytest.mark.parametrize("distribution", LAWS, ids=str)
@pytest.mark.parametrize("scale", [1.0, 80.0])
def test_gradients_are_finite(distribution, scale):
    logits = (scale * torch.tensor([[1.0, -1.0, 0.5], [0.1, 0.2, 0.3], [1.0, 2.0, 3.0]])).requires_grad_()
    writable = torch.tensor([[True, True, True], [False, False, False], [False, True, False]])
    uniforms = torch.full((3, 3), 0.3, dtype=torch.float64)
    more = (torch.tensor([2, 2, 2]),) if isinstance(distribution, FixedCount) else ()
    distribution.log_prob(logits, writable, distribution.sample(logits, writable, uniforms, *more)).sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[~writable] == 0).all()


@pytest.mark.parametrize("distribution", LAWS, ids=str)
def test_a_pick_outside_is_impossible(distribution):
    order = torch.tensor([[0, 0, 1, 0]])
    assert distribution.log_prob(LOGITS[None], WRITABLE[None], order) == -torch.inf


def test_saturated_logits_keep_their_tails():
    """Clamped probabilities would lose both: log(1 - sigmoid(40)) is -40, not log of the type's epsilon."""
    log_prob = Bernoulli().log_prob(torch.tensor([[40.0]]), torch.tensor([[True]]), torch.tensor([[0]]))
    torch.testing.assert_close(log_prob, torch.tensor([-40.0]))


def test_beta_above_one_makes_picks_certain():
    distribution, row = Bernoulli(beta=4.0), (torch.zeros(1, 1), torch.ones(1, 1, dtype=torch.bool))
    assert distribution.log_prob(*row, torch.tensor([[1]])) == 0
    assert distribution.log_prob(*row, torch.tensor([[0]])) == -torch.inf


@pytest.mark.parametrize("distribution", ACTIONS.values())
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_must_be_positive(distribution, temperature):
    with pytest.raises(ValueError, match=f"temperature {temperature} must be above 0"):
        distribution(temperature=temperature)


# ---------------------------------------------------------------------------------------- what a policy trusts


def test_trust_writes_all_above_its_threshold_and_always_the_best():
    logits = torch.tensor([[2.0, 0.1, -3.0, 9.0], [-2.0, -1.0, -3.0, 9.0]])
    writable = torch.tensor([[True, True, True, False]] * 2)
    order = Trust(threshold=0.5).sample(logits, writable, torch.zeros(2, 4, dtype=torch.float64))
    assert order.tolist() == [[1, 1, 0, 0], [0, 1, 0, 0]]
    cooler = Trust(temperature=10.0, threshold=0.54).sample(logits, writable, torch.zeros(2, 4, dtype=torch.float64))
    assert cooler.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]]  # sigmoid(0.2) = 0.55, sigmoid(0.01) = 0.50
    both = torch.tensor([[2.0, 1.9, -3.0, 9.0], [-2.0, -1.0, -3.0, 9.0]])
    order = Trust(temperature=10.0, threshold=0.6).sample(both, writable, torch.zeros(2, 4, dtype=torch.float64))
    assert order.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0]], (
        "at temperature 1 both of the first row pass: sigmoid(1.9) = 0.87"
    )


def test_trust_has_probability_one_where_it_picks_and_none_elsewhere():
    distribution, writable = Trust(), torch.tensor([[True, True]] * 2)
    logits = torch.tensor([[1.0, -1.0]] * 2)
    assert distribution.log_prob(logits, writable, torch.tensor([[1, 0], [1, 1]])).tolist() == [0.0, -float("inf")]
    with pytest.raises(ValueError, match="threshold 1.5"):
        Trust(threshold=1.5)


def plain_race(logits, writable, uniforms, count, repulsion, temperature):
    """The repelled draw as its definition reads, one statement at a time."""
    utilities = (logits.double() / temperature).masked_fill(~writable, -torch.inf)
    left = (-(utilities - torch.log(-torch.log(uniforms)))).masked_fill(~writable, torch.inf)
    place = torch.arange(logits.shape[-1])
    distance = (place[:, None] - place).abs()
    reach = torch.zeros(logits.shape[-1] + 1, dtype=torch.double)
    reach[1 : 1 + min(len(repulsion), logits.shape[-1])] = repulsion.double()[: logits.shape[-1]]
    cost, order = reach[distance], torch.zeros_like(writable, dtype=torch.long)
    for rank in range(1, int(count.max()) + 1):
        first = left.min(dim=-1, keepdim=True)
        picking = (rank <= count[:, None]) & first.values.isfinite()
        order = torch.where(picking, order.scatter(-1, first.indices, rank), order)
        gap = (first.values - left).clamp(max=-1e-300).nan_to_num(nan=-1.0)
        left = left + torch.log(-torch.expm1(gap)) + cost[first.indices.squeeze(-1)]
        left = left.scatter(-1, first.indices, torch.inf)
    return order


@pytest.mark.parametrize("spread", [0.0, 1.0, 300.0])
def test_the_repelled_draw_is_the_plain_race_to_the_last_pick(spread):
    """Also where rows end early, have nothing writable, ask for nothing, or tie."""
    generator = torch.Generator().manual_seed(0)
    logits = spread * torch.randn(300, 13, generator=generator)
    logits[7, 4] = -torch.inf
    writable = torch.rand(300, 13, generator=generator) < torch.rand(300, 1, generator=generator)
    uniforms = torch.rand(300, 13, generator=generator, dtype=torch.double).clamp(min=1e-12)
    uniforms[:20] = 0.5
    count = torch.randint(0, 15, (300,), generator=generator)
    for repulsion in (torch.tensor([]), torch.tensor([4.0]), torch.tensor([1.5, -0.7, 300.0] * 6)):
        drawn = FixedCount(temperature=0.5).sample(logits, writable, uniforms, count, repulsion)
        assert torch.equal(drawn, plain_race(logits, writable, uniforms, count, repulsion, 0.5))
        assert (drawn.amax(1) == torch.minimum(count, (writable & (logits > -torch.inf)).sum(1))).all()
    nothing = FixedCount().sample(logits, writable, uniforms, torch.zeros_like(count), torch.tensor([1.0]))
    assert not nothing.any()
