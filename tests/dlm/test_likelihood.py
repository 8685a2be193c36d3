"""Every estimator against its target by enumeration: what it means, that it is unbiased for that, and what it costs."""

import math
from itertools import product

import pytest
import torch
from torch import nn

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.likelihood import (
    ESTIMATORS,
    Coupled,
    Elbo,
    MeanField,
    Published,
    ReplayedTrajectory,
    Sandwich,
    ScoreEntropy,
    Views,
    check_estimator,
    known_terms,
    log_likelihood,
    terms,
)
from dlm.noise import GeometricNoise, LogLinearNoise
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from tests.enumerable import (
    TableLM,
    any_order_bound,
    dependent_joint,
    from_joint,
    inconsistent,
    random_radd,
    random_sedd,
)

ROW = (1, 0, 2)
MANY = 4000  # rows that are all alike, each with masks of its own


def estimates(model, estimator, row=ROW, many=MANY, push_down=None, given=()):
    """The estimate of one row, `many` times with masks of their own."""
    tokens = torch.tensor([row]).repeat(many, 1)
    free = torch.ones_like(tokens, dtype=torch.bool)
    free[:, list(given)] = False
    views = estimator.views(free, Draws(7))
    down = None if push_down is None else torch.full((many,), push_down)
    return log_likelihood(model, estimator, tokens, views, 100_000, down).sum(1).double()


def log_p(model, canvas, position, token):
    return float(model.table.detach().double()[int(model.state(torch.tensor([canvas]))), position, token])


def over_masks(model, row, weight_of):
    """Sum over masks of weight_of(masked set) times the log-probabilities of its tokens, each by itself."""
    total = 0.0
    for masked in product((False, True), repeat=len(row)):
        canvas = [model.mask_id if m else t for m, t in zip(masked, row, strict=True)]
        said = sum(log_p(model, canvas, i, row[i]) for i in range(len(row)) if masked[i])
        total += weight_of(sum(masked)) * said
    return total


def cut_bound(model, row, low, high):
    """The any-order bound with its times cut to [low, high]: the integral of t^(k-1) (1-t)^(n-k) over the range, by quadrature."""
    times = low + (high - low) * (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    n = len(row)
    return over_masks(model, row, lambda k: float((times ** (k - 1) * (1 - times) ** (n - k)).mean()) if k else 0.0)


def mean_field(model, row):
    return sum(log_p(model, [model.mask_id] * len(row), i, row[i]) for i in range(len(row)))


def near(values, target):
    error = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) - target) < 4.5 * error + 1e-5, (float(values.mean()), target, error)


@pytest.fixture(scope="module")
def model():
    """Conditionals that no joint has: orders differ, and so the bound is no equality."""
    return inconsistent(3, 3)


@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("antithetic", [True, False])
@pytest.mark.parametrize("counts", [True, False])
def test_the_elbo_is_unbiased_for_the_any_order_bound(counts, antithetic, samples, model):
    near(estimates(model, Elbo(samples, counts, antithetic)), -any_order_bound(model, ROW))


@pytest.mark.parametrize("kind", [Elbo, Sandwich])
def test_the_second_half_of_the_views_mirrors_the_first(kind):
    """Their times add up to 1 and their masks to all that is free: exactly by times, up to one position by counts."""
    free = torch.ones(50, 6, dtype=torch.bool)
    views = kind(4, counts=False, antithetic=True)
    time, keys = views.times(free, Draws(3))
    time, keys = time.view(50, 4), keys.view(50, 4, 6)
    torch.testing.assert_close(time + time.flip(1), torch.ones(50, 4, dtype=time.dtype))
    masked = keys < time.unsqueeze(2)
    assert torch.equal(masked[:, :2], ~masked.flip(1)[:, :2])
    of = {
        antithetic: kind(4, True, antithetic).views(free, Draws(3)).masked.view(50, 4, 6)
        for antithetic in (True, False)
    }
    both = of[True] & of[True].flip(1), of[True] | of[True].flip(1)
    assert both[1].all() and int(both[0].sum(2).max()) <= 1
    assert not (of[False] | of[False].flip(1)).all()


@pytest.mark.parametrize("beta", [0.5, 1.0, 2.0])
def test_the_upper_side_of_the_sandwich_is_a_power_mean(beta):
    """log(mean over views of weight * p^beta) / beta, by hand; a row that is not pushed down has its ELBO."""
    terms_of = torch.tensor([[0.5, 0.2], [0.25, 0.9], [0.5, 0.2], [0.25, 0.9]]).log()
    read = torch.tensor([[True, True], [True, False]] * 2)
    weight = torch.tensor([1.5, 0.5, 1.5, 0.5])
    views = Views(torch.tensor([0, 0, 1, 1]), read, read, weight)
    found = Sandwich(2, beta=beta, mix=1.0).combine(terms_of, views, 2, torch.tensor([True, False]))
    upper = [(1.5 * 0.5**beta + 0.5 * 0.25**beta), 1.5 * 0.2**beta]
    lower = [1.5 * math.log(0.5) + 0.5 * math.log(0.25), 1.5 * math.log(0.2)]
    torch.testing.assert_close(found, torch.tensor([[math.log(u) / beta for u in upper], lower]))
    half = Sandwich(2, beta=beta, mix=0.25).combine(terms_of, views, 2, torch.tensor([True, False]))
    torch.testing.assert_close(half[0], 0.25 * found[0] + 0.75 * torch.tensor(lower))


def test_given_positions_are_never_masked(model):
    near(estimates(model, Elbo(2), given=(1,)), -any_order_bound(model, ROW, given=(1,)))


def test_under_exact_conditionals_the_elbo_is_the_likelihood():
    joint = dependent_joint(3, 3)
    near(estimates(from_joint(joint), Elbo(2)), float(joint[ROW].log()))


def test_strata_and_counts_lower_the_variance(model):
    """Of masks by times the variance is infinite: a token alone is masked with probability t and weighs 1 / t."""
    variance = lambda *settings: float(estimates(model, Elbo(*settings)).var())
    single, stratified, complements = variance(1, True, False), variance(4, True, False), variance(4, True, True)
    assert stratified < 0.95 * single / 4 and complements < single / 4
    assert 2 * single < variance(1, False, False) and 2 * complements < variance(4, False, True)


def test_the_mean_field_is_exact_and_costs_one_view(model):
    found = estimates(model, MeanField(), many=2)
    assert found.tolist() == pytest.approx([mean_field(model, ROW)] * 2, abs=1e-5)
    assert len(MeanField(4).views(torch.ones(5, 3, dtype=torch.bool), Draws(0))) == 5


def test_a_masked_prompt_is_not_scored(model):
    free = torch.tensor([[False, True, True]]).repeat(2000, 1)
    views = MeanField(1, 0.3).views(free, Draws(1))
    share = float(views.masked[:, 0].float().mean())
    assert 0.25 < share < 0.35 and not views.read[:, 0].any() and views.read[:, 1:].all()


def test_coupled_is_a_third_mean_field_and_two_thirds_of_the_cut_bound(model):
    target = mean_field(model, ROW) / 3 + 2 * cut_bound(model, ROW, 0.2, 0.8) / 3
    near(estimates(model, Coupled(2)), target)
    free = torch.ones(50, 3, dtype=torch.bool)
    views = Coupled(1).views(free, Draws(3))
    seen = torch.zeros(50, 3).index_add_(0, views.row, views.masked.float())
    assert (seen == 2).all()  # each token twice: with everything masked, and in one of the halves


def test_the_cut_bound_of_all_times_is_the_bound(model):
    assert cut_bound(model, ROW, 0.0, 1.0) == pytest.approx(-any_order_bound(model, ROW), abs=1e-4)


def test_the_sandwich_encloses():
    """Under exact conditionals: ELBO = log p <= upper, in the mean; and with many samples the upper estimate is its formula."""
    joint = dependent_joint(3, 3)
    model, estimator = from_joint(joint), Sandwich(64, mix=1.0)
    lower, upper = (estimates(model, estimator, many=50, push_down=down) for down in (False, True))
    assert float(upper.mean()) > float(joint[ROW].log()) + 0.02
    near(lower, float(joint[ROW].log()))
    exact = 0.0
    for i in range(3):
        total = 0.0
        for masked in product((False, True), repeat=3):
            if not masked[i]:
                continue
            canvas = [model.mask_id if m else t for m, t in zip(masked, ROW, strict=True)]
            k = sum(masked)
            share = {1: 1 / 3, 2: 1 / 6, 3: 1 / 3}[k]  # B(k, n - k + 1): the integral of t^(k-1) (1-t)^(n-k)
            total += share * torch.tensor(log_p(model, canvas, i, ROW[i])).double().exp()
        exact += float(torch.as_tensor(total).log())
    assert exact > float(joint[ROW].log())
    many = estimates(model, Sandwich(2000, mix=1.0), many=20, push_down=True)
    assert float(many.mean()) == pytest.approx(exact, abs=0.01)
    half = estimates(model, Sandwich(64, mix=0.5), many=50, push_down=True)
    torch.testing.assert_close(half, (upper + lower) / 2)


class ScoreTable(TableLM):
    """Scores of a table: log p - log(e^sigma - 1), off by `wrong`, which a masked position's scores add up to too much."""

    wrong = 0.0

    def log_scale(self, sigma):
        return -torch.expm1(sigma).log() + self.wrong

    def sigma_of(self, share):
        return -torch.log1p(-share).float()


@pytest.mark.parametrize("noise", [LogLinearNoise(1e-6), GeometricNoise(1e-4, 20)])
def test_score_entropy_is_the_bound_of_a_score_model_and_charges_a_wrong_mass(noise):
    model = ScoreTable(inconsistent(3, 3).table.detach())
    found = estimates(model, ScoreEntropy(8, noise=noise), many=6000)
    near(found, -any_order_bound(model, ROW))
    model.wrong = 0.3
    charged = estimates(model, ScoreEntropy(8, noise=noise), many=6000)
    # of each masked position sigma' r (e^w - 1 - w); its integral over times is 3 (e^w - 1 - w) E[1/masked share * masked]
    cost = 3 * (torch.tensor(0.3).exp().item() - 1.3)
    assert float((found - charged).mean()) == pytest.approx(cost, rel=0.05)


@pytest.mark.parametrize("rule", ["direct", "random", "first_hitting", "confidence", "leftmost"])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_replayed_trajectory_has_the_log_probability_it_had(rule, temperature):
    model = random_radd()
    canvas = torch.full((6, 12), model.mask_id)
    canvas[:, 0] = 3
    strategy = Strategy(UNMASKING_RULES[rule](), TokenRule(temperature))
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(5)), strategy, Prompts(canvas), seed=3, record=lambda observation: {}
    )
    assert samples.trajectory is not None
    due = torch.zeros(6).index_add_(0, samples.trajectory.row, samples.trajectory.log_tokens)
    estimator = ReplayedTrajectory(temperature)
    views = estimator.views(canvas == model.mask_id, Draws(0), samples.unmasked_at)
    assert len(views) == int(samples.evaluations.sum())  # one for each evaluation
    found = log_likelihood(model, estimator, samples.tokens, views).sum(1)
    torch.testing.assert_close(found, due, atol=1e-4, rtol=1e-4)


def test_some_steps_of_a_trajectory_stand_for_all_of_them(model):
    many, length = 4000, 3
    tokens, unmasked_at = torch.tensor([ROW]).repeat(many, 1), torch.tensor([[0, 2, 1]]).repeat(many, 1)
    free = torch.ones(many, length, dtype=torch.bool)

    def estimated(steps):
        estimator = ReplayedTrajectory(steps=steps)
        views = estimator.views(free, Draws(3), unmasked_at)
        return log_likelihood(model, estimator, tokens, views, 100_000).sum(1).double(), views

    exact, _ = estimated(None)
    for steps in (1, 2):
        some, views = estimated(steps)
        assert (torch.bincount(views.row, minlength=many) == steps).all()
        assert abs(float(some.mean() - exact[0])) < 4 * float(some.std()) / many**0.5
    for steps in (3, 8):
        assert torch.equal(estimated(steps)[0], exact)


def test_the_published_estimator_is_zero_without_a_gradient(model):
    assert (estimates(model, Published(), many=3) == 0).all()
    views = Published().views(torch.ones(3, 3, dtype=torch.bool), Draws(0))
    assert not terms(model, Published(), torch.tensor([ROW] * 3), views).requires_grad


@pytest.mark.parametrize(
    "name", [name for name in ESTIMATORS if name not in ("trajectory", "published", "score_entropy")]
)
def test_a_row_does_not_know_its_batch_nor_its_process(name):
    """The masks of a row are a function of its number in the whole batch."""
    estimator, free = ESTIMATORS[name](), torch.ones(6, 9, dtype=torch.bool)
    whole = estimator.views(free, Draws(5))
    half = estimator.views(free[:2], Draws(5, first=4))
    index = (whole.row >= 4).nonzero().squeeze(1)
    assert torch.equal(whole.take(index).masked, half.masked) and torch.equal(whole.take(index).row - 4, half.row)


def test_chunks_change_neither_the_terms_nor_their_gradient(monkeypatch):
    import dlm.masked_lm

    model = random_radd()
    model.requires_grad_(True)
    tokens = torch.randint(11, (5, 40), generator=torch.Generator().manual_seed(0))
    views = Elbo(4).views(torch.ones_like(tokens, dtype=torch.bool), Draws(0))
    whole = terms(model, Elbo(4), tokens, views)
    torch.testing.assert_close(known_terms(model, Elbo(4), tokens, views, 3), whole.detach(), atol=1e-5, rtol=1e-5)
    gradient = torch.autograd.grad(whole.sum(), list(model.parameters()), allow_unused=True)
    monkeypatch.setitem(dlm.masked_lm.LOGITS_PER_CHUNK, "cpu", 16 * model.vocab_size)
    assert model.chunk(torch.device("cpu")) == 16
    small = terms(model, Elbo(4), tokens, views)
    again = torch.autograd.grad(small.sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(gradient, again, strict=True):
        if one is not None:
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-4)


def test_what_a_model_cannot_give_is_refused(model):
    with pytest.raises(ValueError, match="score_entropy reads unnormalised scores, which SEDD has"):
        check_estimator(ScoreEntropy(), model)
    causal = TableLM(nn.Parameter(torch.zeros(16, 2, 3)))
    causal.causal = True
    with pytest.raises(ValueError, match="a causal model has its likelihood in one evaluation"):
        check_estimator(Elbo(), causal)


@pytest.mark.parametrize("noise", ["loglinear", "geometric"])
def test_a_score_model_is_told_the_masked_share_of_the_canvas_as_in_training(noise):
    """With a prompt the share of the canvas is less than that of the answer; padding is no part of either."""
    model = random_sedd(noise=noise)
    length, prompt, pad = 4, 1, 2
    tokens = torch.randint(0, 3, (200, length), generator=torch.Generator().manual_seed(1))
    free = (torch.arange(length) >= prompt).repeat(200, 1)
    estimator = ScoreEntropy(2, noise=model.noise)
    views = estimator.views(free, Draws(3))
    assert views.sigma is not None
    share = -torch.expm1(-views.sigma) * (length - prompt) / length
    canvas = tokens[views.row].masked_fill(views.masked, model.mask_id)
    hidden = model.hidden(canvas, views.read, -torch.log1p(-share))
    own = views.sigma[views.read.nonzero()[:, 0]]
    scores = model.head(hidden) + model.log_scale(own).unsqueeze(1)
    due = estimator.term(scores.logsumexp(1), scores.gather(1, tokens[views.row][views.read][:, None])[:, 0], own)
    found = terms(model, estimator, tokens, views)
    torch.testing.assert_close(found[views.read], due, atol=1e-4, rtol=1e-4)
    padded = torch.cat((torch.zeros(200, pad, dtype=torch.long), tokens), 1)
    moved = Views(views.row, *(torch.nn.functional.pad(x, (pad, 0)) for x in (views.masked, views.read)),
                  views.weight, views.sigma, views.free)  # fmt: skip
    again = terms(model, estimator, padded, moved, torch.full((200,), pad))
    torch.testing.assert_close(again[:, pad:], found, atol=1e-5, rtol=1e-5)
    assert (again[:, :pad] == 0).all()
