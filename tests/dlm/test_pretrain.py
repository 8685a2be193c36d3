"""The denoising losses are the any-order bound on -log p, whichever way positions are masked; where gradients go."""

from itertools import combinations
from math import comb

import pytest
import torch

import dlm.masked_lm
from benchmarks.plain_sedd import score_entropy
from dlm.noise import GeometricNoise, LogLinearNoise
from dlm.pretrain import corrupt, evaluate, loss_of, row_bounds
from losses import denoising_loss, low_discrepancy_times, mask_exactly, next_token_loss, score_entropy_loss
from tests.enumerable import any_order_bound, dependent_joint, fits, from_joint, inconsistent, random_radd, random_sedd

LENGTH = 3
MODEL = inconsistent(vocabulary=3, length=LENGTH, seed=1)
ROWS = torch.tensor([[0, 1, 2], [2, 2, 0], [1, 0, 0]])


def bound(given=()):
    """Nats per token, by enumeration."""
    return sum(any_order_bound(MODEL, row.tolist(), given) for row in ROWS) / len(ROWS) / LENGTH


@pytest.mark.parametrize("given", [(), (1,)], ids=["everything", "around what is given"])
@pytest.mark.parametrize(
    "loss, noise",
    [("t_DCE", LogLinearNoise()), ("t_DCE", GeometricNoise(1e-4, 20)), ("lambda_DCE", None), ("k_DCE", None)],
    ids=["t_DCE-loglinear", "t_DCE-geometric", "lambda_DCE", "k_DCE"],
)
def test_every_denoising_loss_is_the_any_order_bound(loss, noise, given):
    """Mean over 60 batches of 1,200 rows, within 4.5 standard errors. Times start at 1e-3 and the schedules stop short of
    everything being masked: at most 3e-3 of the bound is never sampled."""
    generator = torch.Generator().manual_seed(0)
    batch = ROWS.repeat(400, 1)[torch.randperm(1200, generator=generator)]
    positions = torch.zeros_like(batch, dtype=torch.bool)
    positions[:, given] = True
    with torch.no_grad():
        values = torch.stack(
            [loss_of(MODEL, batch, loss, noise, generator, positions if given else None) for _ in range(60)]
        ).double()
    expected, error = bound(given), float(values.std()) / len(values) ** 0.5
    assert error < 0.02 * expected  # else the comparison says nothing
    assert abs(float(values.mean()) - expected) < 4.5 * error + 3e-3 * expected


def test_k_DCE_without_monte_carlo():
    """Every count and every subset, each with the weight that corrupt gives it: the bound to rounding."""
    total = 0.0
    for count in range(1, LENGTH + 1):
        for subset in combinations(range(LENGTH), count):
            masked = torch.zeros(len(ROWS), LENGTH, dtype=torch.bool)
            masked[:, subset] = True
            hidden = MODEL.hidden(ROWS.masked_fill(masked, MODEL.mask_id), masked)
            log_prob = MODEL.head(hidden).log_softmax(-1).gather(1, ROWS[masked].unsqueeze(1)).squeeze(1)
            value = denoising_loss(log_prob, masked.nonzero()[:, 0], torch.full((len(ROWS),), LENGTH / count), LENGTH)
            total += float(value.detach()) / LENGTH / comb(LENGTH, count)
    assert total == pytest.approx(bound(), rel=1e-6)


def test_with_exact_conditionals_the_bound_is_the_likelihood():
    joint = dependent_joint(3, 3, seed=4)
    model = from_joint(joint)
    for row in ([0, 1, 2], [2, 2, 2]):
        assert any_order_bound(model, row) == pytest.approx(-float(joint[tuple(row)].log()), rel=1e-5)
    rows = torch.tensor([[0, 1, 2]]).repeat(4000, 1)
    bounds = row_bounds(model, rows, 4, torch.Generator().manual_seed(0)).double()
    assert abs(float(bounds.mean()) + float(joint[0, 1, 2].log()) / 3) < 4.5 * float(bounds.std()) / 4000**0.5


def test_k_DCE_masks_every_subset_as_often_as_it_should():
    masked, weight, _ = corrupt("k_DCE", 12_000, 3, None, torch.Generator().manual_seed(1))
    assert torch.equal(weight, 3 / masked.sum(1))
    fits(
        masked.long(),
        {s: 1 / 3 / comb(3, sum(s)) for s in [(a, b, c) for a in (0, 1) for b in (0, 1) for c in (0, 1)] if sum(s)},
    )


@pytest.mark.parametrize("noise", [LogLinearNoise(), GeometricNoise(1e-4, 20.0)], ids=str)
def test_t_DCE_masks_at_the_rate_that_its_weight_belongs_to(noise):
    """Small weight, many masks: at weight sigma' / (exp(sigma) - 1) the mask probability is 1 - exp(-sigma)."""
    masked, weight, _ = corrupt("t_DCE", 4000, 50, noise, torch.Generator().manual_seed(2))
    times = torch.linspace(1e-3, 1, 20_001, dtype=torch.float64)
    sigma, rate = noise(times)
    weights, shares = (rate / torch.expm1(sigma)).float(), -torch.expm1(-sigma)
    place = torch.searchsorted(weights.flip(0).contiguous(), weight).clamp(max=20_000)
    assert torch.equal(weights, weights.sort(descending=True).values)
    expected, order = shares.flip(0)[place].sort()
    found = masked[order].sum(1).double()
    for rates, counts in zip(expected.split(200), found.split(200), strict=True):
        deviation = float((rates * (1 - rates)).sum() * 50) ** 0.5
        assert abs(float(counts.sum() - rates.sum() * 50)) < 4.5 * deviation + 1


@pytest.mark.parametrize("loss", ["t_DCE", "lambda_DCE", "k_DCE", "masked_CE"])
def test_what_is_given_is_never_masked(loss):
    given = torch.rand(500, 6, generator=torch.Generator().manual_seed(5)) < 0.5
    given[0] = True
    masked, weight, _ = corrupt(loss, 500, 6, LogLinearNoise(), torch.Generator().manual_seed(6), given)
    assert not (masked & given).any()
    assert masked[~given].float().mean() > 0.3
    assert weight.isfinite().all()


def test_masked_CE_is_the_mean_over_masked_positions():
    generator = torch.Generator().manual_seed(3)
    shares = corrupt("masked_CE", 300, 2000, None, generator)[0].float().mean(1).sort().values
    assert (shares - torch.linspace(0, 1, 300)).abs().max() < 0.05
    masked, weight, _ = corrupt("masked_CE", 40, 6, None, generator)
    log_prob = torch.randn(int(masked.sum()))
    value = denoising_loss(log_prob, masked.nonzero()[:, 0], weight, 6)
    assert float(value) == pytest.approx(-float(log_prob.mean()), rel=1e-5)


def test_times_are_spread_evenly_and_masks_counted_exactly():
    times = low_discrepancy_times(10, torch.tensor(0.73, dtype=torch.float64))
    assert torch.allclose(times.sort().values.diff(), torch.tensor(0.0999, dtype=torch.float64))
    assert ((times >= 1e-3) & (times < 1)).all()
    counts = torch.tensor([0, 1, 5, 3])
    assert torch.equal(mask_exactly(torch.rand(4, 5), counts).sum(1), counts)


@pytest.mark.parametrize("loss", ["t_DCE", "lambda_DCE", "k_DCE", "masked_CE"])
def test_gradients_flow_only_where_tokens_are_masked(loss):
    """The table has an entry for each canvas and position: those of masked positions of the canvases seen, and no other."""
    model = inconsistent(vocabulary=3, length=LENGTH, seed=1)
    rows = ROWS[torch.arange(5) % 3]
    loss_of(model, rows, loss, LogLinearNoise(), torch.Generator().manual_seed(4)).backward()
    masked, *_ = corrupt(loss, 5, LENGTH, LogLinearNoise(), torch.Generator().manual_seed(4))
    expected = torch.zeros(model.table.shape[:2], dtype=torch.bool)
    expected[
        model.state(rows.masked_fill(masked, model.mask_id)).unsqueeze(1).expand(-1, LENGTH)[masked],
        masked.nonzero()[:, 1],
    ] = True
    assert torch.equal((model.table.grad != 0).any(-1), expected)
    assert expected.any()


def test_a_batch_in_which_nothing_is_masked_costs_nothing():
    """One short row at a low rate: the loss is zero with zero gradients, and so it is through a real network."""
    seeded = lambda seed: torch.Generator().manual_seed(seed)
    seed = next(seed for seed in range(1000) if not corrupt("lambda_DCE", 1, 3, None, seeded(seed))[0].any())
    for model in (inconsistent(3, 3), random_radd().requires_grad_(True)):
        loss = loss_of(model, ROWS[:1], "lambda_DCE", None, seeded(seed))
        loss.backward()
        assert float(loss.detach()) == 0
        assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())
        assert evaluate(model, ROWS[:1], "lambda_DCE", None, 1, seed) == 0


def test_evaluation_repeats_itself_and_does_not_depend_on_its_batch_size_much():
    rows = ROWS.repeat(100, 1)
    first, again, halved = (evaluate(MODEL, rows, "lambda_DCE", None, batch) for batch in (300, 300, 150))
    assert first == again
    assert halved == pytest.approx(first, rel=0.25)
    assert first == pytest.approx(bound(), rel=0.25)


def test_the_next_token_loss():
    logits, tokens = torch.randn(2, 4, 5), torch.randint(5, (2, 4))
    by_hand = -sum(logits[b, i].log_softmax(0)[tokens[b, i + 1]] for b in range(2) for i in range(3)) / 6
    assert torch.allclose(next_token_loss(logits, tokens), by_hand)


# ------------------------------------------------------------------------------------------------------ score entropy


def noisy_batch(model, noise, rows=64):
    """Tokens, what is masked, the noise of each row."""
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(model.vocab_size - 1, (rows, 5), generator=generator)
    masked, weight, share = corrupt("DSE", rows, 5, noise, torch.Generator().manual_seed(8))
    return tokens, masked, weight, -torch.log1p(-share)


@pytest.mark.parametrize("scaled", [True, False], ids=["scaled by sigma", "raw"])
@pytest.mark.parametrize("noise", ["loglinear", "geometric"])
def test_DSE_is_the_dense_formula_with_its_gradient(noise, scaled):
    model = random_sedd("absorb", noise, vocabulary=4, scaled=scaled).requires_grad_(True)
    tokens, masked, weight, sigma = noisy_batch(model, model.noise)
    canvas = tokens.masked_fill(masked, model.mask_id)
    log_score = model.backbone(canvas, sigma.float()).double()
    entropy = score_entropy(log_score, tokens, canvas, sigma)
    rate = (weight.double() * torch.expm1(sigma)).unsqueeze(1)  # sigma' of each row
    dense = (rate * entropy).sum() / tokens.numel()
    expected = torch.autograd.grad(dense, list(model.parameters()))
    ours = loss_of(model, tokens, "DSE", model.noise, torch.Generator().manual_seed(8))
    assert float(ours.detach()) == pytest.approx(float(dense.detach()), rel=2e-4)
    for found, known in zip(torch.autograd.grad(ours, list(model.parameters())), expected, strict=True):
        assert (found - known).norm() <= 1e-3 * known.norm() + 1e-5


@pytest.mark.parametrize("noise", ["loglinear", "geometric"])
def test_DSE_of_normalised_scores_is_t_DCE(noise):
    """Where the scores sum to 1 / (e^sigma - 1), value and gradient in what is normalised are those of the cross-entropy."""
    sigma, weight, row = torch.rand(6).double() * 3 + 0.01, torch.rand(6), torch.tensor([0, 0, 1, 2, 4, 5])
    logits = torch.randn(6, 9, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 1, 2, 3, 4, 8])
    log_prob = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)
    ratio = -torch.expm1(sigma).log()
    log_normalizer = (logits.log_softmax(1) + ratio[row, None]).logsumexp(1)
    score = score_entropy_loss(log_prob, log_normalizer, row, weight, sigma, 3)
    cross = denoising_loss(log_prob, row, weight, 3)
    assert torch.allclose(score, cross)
    grads = [torch.autograd.grad(loss, logits, retain_graph=True)[0] for loss in (score, cross)]
    assert torch.allclose(*grads, atol=1e-12) and grads[0].abs().max() > 1e-3


def test_DSE_is_least_where_the_mass_is_right_and_is_finite_at_the_least_noise():
    noise = GeometricNoise(1e-4, 20.0)
    sigma, rate = noise(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))
    weight, row = (rate / torch.expm1(sigma)).float(), torch.arange(3)
    right = -torch.expm1(sigma).log().float()
    values = [score_entropy_loss(torch.zeros(3), right + d, row, weight, sigma, 1) for d in (-1.0, 0.0, 1.0)]
    assert float(values[1].abs()) < 1e-5
    assert values[0] > 0.1 and values[2] > 0.1


@pytest.mark.parametrize("loss", ["DSE", "t_DCE", "lambda_DCE", "k_DCE"])
def test_a_vocabulary_in_chunks_is_the_whole_vocabulary(loss, monkeypatch):
    model = random_sedd(vocabulary=6).requires_grad_(True)
    tokens = torch.randint(6, (24, 8), generator=torch.Generator().manual_seed(3))
    whole, chunked = [], []
    for into, size in ((whole, 10**6), (chunked, 16 * 7)):
        monkeypatch.setitem(dlm.masked_lm.LOGITS_PER_CHUNK, "cpu", size)
        value = loss_of(model, tokens, loss, model.noise, torch.Generator().manual_seed(1))
        into += [value, *torch.autograd.grad(value, list(model.parameters()))]
    for one, other in zip(whole, chunked, strict=True):
        assert torch.allclose(one, other, atol=1e-6, rtol=1e-4)


def test_the_model_is_told_the_noise_of_the_whole_canvas_where_some_of_it_is_given():
    model, told = random_sedd(vocabulary=6, length=100), []
    body = model.backbone.body
    model.backbone.body = lambda tokens, sigma, read: told.append(sigma) or body(tokens, sigma, read)
    given = torch.zeros(8, 100, dtype=torch.bool)
    given[4:, :80] = True
    tokens = torch.zeros(8, 100, dtype=torch.long)
    loss_of(model, tokens, "t_DCE", model.noise, torch.Generator().manual_seed(1), given)
    sigma, share = torch.cat(told), corrupt("t_DCE", 8, 100, model.noise, torch.Generator().manual_seed(1), given)[2]
    share = share * torch.tensor([1.0] * 4 + [0.2] * 4)
    assert torch.allclose(-torch.expm1(-sigma), share.float(), atol=1e-5)
