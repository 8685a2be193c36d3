"""The variational bound against enumeration: every masking path of a tiny model, with its probability under either channel."""

import math
from itertools import permutations, product

import pytest
import torch

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from losses import variational_loss
from policy.networks import DitConfidence, HiddenMLP
from policy.unmasker import PolicyUnmasker
from policy.variational import MaskingPath, bound_loss, masking_path, reverse
from samplers.loop import Strategy, sample
from tests.enumerable import TableLM, fits

V, WIDTH = 2, 8


class WideLM(TableLM):
    """TableLM whose hidden state also holds random features of (canvas, position) for a policy to read."""

    def __init__(self, length, seed=0):
        generator = torch.Generator().manual_seed(seed)
        super().__init__(1.5 * torch.randn((V + 1) ** length, length, V, generator=generator))
        self.features = torch.randn((V + 1) ** length, length, WIDTH - 2, generator=generator)
        self.hidden_size = WIDTH

    def hidden_rows(self, tokens, read, sigma):
        place = super().hidden_rows(tokens, read, sigma)
        state, position = place.long().unbind(1)
        return torch.cat([place, self.features[state, position]], 1)

    def head(self, hidden):
        return super().head(hidden[:, :2])


def policy(seed=0):
    """Random and far from uniform; it does not read the two numbers that name the canvas and the position."""
    torch.manual_seed(seed)
    network = HiddenMLP(WIDTH)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(2.5)
        network.mlp[0].weight[:, :2] = 0
    return network


def counts(total, steps):
    """Positions written at each sampling step."""
    return [total // steps + (step < total % steps) for step in range(steps)]


def ordered_parts(positions, sizes):
    """Every way to take sizes[0] positions in order, then sizes[1] of the rest, ...: tuples of tuples."""
    if not sizes:
        return [()]
    return [
        (first, *rest)
        for first in permutations(positions, sizes[0])
        for rest in ordered_parts([i for i in positions if i not in first], sizes[1:])
    ]


def every_path(model, network, tokens, given, steps):
    """One row (tokens, given): (its masking paths as a batch of a MaskingPath, the same row repeated)."""
    free = (~given).nonzero().flatten().tolist()
    sizes = counts(len(free), steps)[::-1]
    paths = ordered_parts(free, sizes)
    rows = tokens.expand(len(paths), -1)
    total = torch.full((len(paths),), len(free))
    environment = UnmaskingEnvironment(model, DecodeOptions(steps))
    canvas, inputs, orders, eligibles, log_tokens = rows, [], [], [], []
    for k in range(steps + 1):
        observation = environment.reset(Prompts(canvas))
        observation.to_write = total
        inputs.append(network.inputs(observation, everywhere=True))
        if k:
            log_prob = model.log_probs(canvas).detach().gather(2, rows.unsqueeze(2)).squeeze(2)
            log_tokens.append((log_prob * (orders[-1] > 0)).sum(1))
        if k < steps:
            order = torch.zeros_like(rows)
            for row, path in enumerate(paths):
                order[row, list(path[k])] = torch.arange(1, sizes[k] + 1)
            orders.append(order)
            eligibles.append((canvas != model.mask_id) & ~given)
            canvas = canvas.masked_fill(order > 0, model.mask_id)
    return MaskingPath(inputs, orders, eligibles, torch.stack(log_tokens, 1)), given.expand(len(paths), -1)


def log_selected(scores, positions, left):
    """log P of picking `positions` in order without replacement among `left`, one at a time."""
    total, left = scores.new_zeros(()), list(left)
    for i in positions:
        total = total + scores[i] - torch.stack([scores[j] for j in left]).logsumexp(0)
        left.remove(i)
    return total


def terms(path, network, steps):
    """By the formula, row by row: log q of the whole path and log p(unmask picks) of it."""
    log_q, log_p = [], []
    scores = [network(**inputs) for inputs in path.inputs]
    for row in range(len(path.log_token)):
        q = p = scores[0].new_zeros(())
        masked = []
        for k in range(steps):
            picks = path.order[k][row]
            order = picks.argsort()[(picks == 0).sum() :].tolist()
            eligible = path.eligible[k][row].nonzero().flatten().tolist()
            q = q + log_selected(scores[k][row, :, 0], order, eligible)
            masked = masked + order
            p = p + log_selected(scores[k + 1][row, :, 1], order[::-1], masked)
        log_q.append(q)
        log_p.append(p)
    return torch.stack(log_q), torch.stack(log_p)


def one_by_one(network, path, given, reinforce):
    """bound_loss of each row by itself: the baseline is off, as for a batch of one."""
    for row in range(len(given)):
        inputs = [{name: value[row : row + 1] for name, value in canvas.items()} for canvas in path.inputs]
        pick = lambda tensors: [tensor[row : row + 1] for tensor in tensors]
        alone = MaskingPath(inputs, pick(path.order), pick(path.eligible), path.log_token[row : row + 1])
        yield bound_loss(network, alone, given[row : row + 1], reinforce)


CASES = [  # length, steps, given positions of the row (1, 0, 1)
    (3, 3, []),
    (3, 2, []),
    (3, 1, []),
    (3, 2, [1]),
    (3, 4, []),
]


def case(length, steps, given):
    model, network = WideLM(length), policy()
    tokens, fixed = torch.tensor([1, 0, 1][:length]), torch.zeros(length, dtype=torch.bool)
    fixed[given] = True
    path, rows_given = every_path(model, network, tokens, fixed, steps)
    return model, network, path, rows_given


# ---------------------------------------------------------------------------------------- the bound


@pytest.mark.parametrize("length, steps, given", CASES)
def test_importance_weights_average_to_the_likelihood(length, steps, given):
    """bound = log w with E_q[w] = sum over paths of p(x, path), and E_q[log w] <= log p(x)."""
    _, network, path, rows_given = case(length, steps, given)
    log_q, log_p = (value.detach() for value in terms(path, network, steps))
    assert float(log_q.exp().sum()) == pytest.approx(1, abs=1e-5)
    free = length - len(given)
    bounds = torch.tensor([-float(value) * free for _, value in one_by_one(network, path, rows_given, 1.0)])
    likelihood = float((path.log_token.sum(1) + log_p).exp().sum())
    assert float((log_q.exp() * bounds.exp()).sum()) == pytest.approx(likelihood, rel=1e-4)
    average = float((log_q.exp() * bounds).sum())
    assert average <= math.log(likelihood) + 1e-5
    if len(bounds) > 1:
        assert average < math.log(likelihood) - 1e-3  # q is no posterior here


@pytest.mark.parametrize("steps, given", [(3, []), (2, []), (2, [1])])
def test_that_likelihood_is_how_often_the_sampler_writes_the_row(steps, given):
    """All 2^L rows: sums over paths are the law of FixedCount decoding with tokens at temperature 1 (chi-square)."""
    model, network = WideLM(3), policy()
    fixed = torch.zeros(3, dtype=torch.bool)
    fixed[given] = True
    distribution = {}
    for row in product(range(V), repeat=3):
        tokens = torch.tensor(row)
        if (tokens[fixed] == 0).all():
            path, _ = every_path(model, network, tokens, fixed, steps)
            distribution[row] = float((path.log_token.sum(1) + terms(path, network, steps)[1].detach()).exp().sum())
    assert sum(distribution.values()) == pytest.approx(1, abs=1e-5)
    canvas = torch.full((20_000, 3), model.mask_id).masked_fill(fixed, 0)
    strategy = Strategy(PolicyUnmasker(network, "fixed"), TokenRule())
    fits(
        sample(UnmaskingEnvironment(model, DecodeOptions(steps)), strategy, Prompts(canvas), seed=3).tokens,
        distribution,
    )


@pytest.mark.parametrize("length, steps, given", CASES)
def test_paths_are_drawn_from_the_masking_channel(length, steps, given):
    """masking_path against the enumeration: frequencies, what it read, and the tokens' log-probabilities."""
    model, network, path, rows_given = case(length, steps, given)
    probability = terms(path, network, steps)[0].detach().exp()
    names = [
        tuple(torch.stack([order[row] for order in path.order]).flatten().tolist()) for row in range(len(rows_given))
    ]
    rows = 4000
    tokens, fixed = torch.tensor([1, 0, 1]).expand(rows, -1), rows_given[:1].expand(rows, -1)
    drawn = masking_path(model, network, tokens, fixed, steps, Draws(5))
    fits(torch.stack(drawn.order, 1).flatten(1), dict(zip(names, probability.tolist(), strict=True)))
    place = {name: row for row, name in enumerate(names)}
    same = torch.tensor([place[tuple(row)] for row in torch.stack(drawn.order, 1).flatten(1).tolist()])
    torch.testing.assert_close(drawn.log_token, path.log_token[same])
    for ours, theirs in zip(drawn.inputs, path.inputs, strict=True):
        torch.testing.assert_close(ours["hidden"], theirs["hidden"][same])
        torch.testing.assert_close(ours["time"], theirs["time"][same])


# ---------------------------------------------------------------------------------------- gradients


@pytest.mark.parametrize("length, steps, given", CASES)
def test_expected_gradient_is_that_of_the_exact_bound(length, steps, given):
    """Both channels at reinforce = 1, batches of one row; at 0 the masking channel has none."""
    _, network, path, rows_given = case(length, steps, given)
    parameters = list(network.parameters())
    log_q, log_p = terms(path, network, steps)
    exact = (log_q.exp() * (path.log_token.sum(1) + log_p - log_q)).sum() / (length - len(given))
    expected = torch.autograd.grad(-exact, parameters, retain_graph=True)
    loss = sum(
        weight * value
        for weight, (value, _) in zip(log_q.exp().detach(), one_by_one(network, path, rows_given, 1.0), strict=True)
    )
    for ours, theirs in zip(torch.autograd.grad(loss, parameters, allow_unused=True), expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-6, rtol=2e-4)

    unlearned, _ = bound_loss(network, path, rows_given, 0.0)
    head = torch.autograd.grad(unlearned, network.mlp[4].weight)[0]
    assert (head[0] == 0).all()
    assert (head[1] != 0).any() or steps == 1 or length - len(given) == 1


def test_the_baseline_scales_the_score_term_and_leaves_no_bias():
    """Every pair of paths of one row: a batch mean that holds the row itself scales the masking gradient by 1 - 1/2."""
    _, network, path, rows_given = case(3, 2, [])
    log_q, _ = terms(path, network, 2)
    probability = log_q.exp().detach()
    bias = network.mlp[4].weight
    alone = sum(p * loss for p, (loss, _) in zip(probability, one_by_one(network, path, rows_given, 1.0), strict=True))
    single = torch.autograd.grad(alone, bias)[0]
    paired = torch.zeros_like(bias)
    for first, second in product(range(len(probability)), repeat=2):
        index = torch.tensor([first, second])
        inputs = [{name: value[index] for name, value in canvas.items()} for canvas in path.inputs]
        both = MaskingPath(
            inputs, [o[index] for o in path.order], [e[index] for e in path.eligible], path.log_token[index]
        )
        loss, _ = bound_loss(network, both, rows_given[index], 1.0)
        paired += probability[index].prod() * torch.autograd.grad(loss, bias)[0]
    torch.testing.assert_close(paired[0], single[0] / 2, atol=1e-6, rtol=1e-3)
    torch.testing.assert_close(paired[1], single[1], atol=1e-6, rtol=1e-3)


def test_loss_reports_the_bound_per_token():
    values = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    length = torch.tensor([3, 2, 5, 4])
    _, negative = variational_loss(*values, length, 1.0)
    torch.testing.assert_close(negative, -((values[0] + values[1] - values[2]).sum(1) / length).mean())


def test_reverse():
    assert reverse(torch.tensor([[0, 2, 1, 3], [0, 0, 0, 0]])).tolist() == [[0, 2, 3, 1], [0, 0, 0, 0]]


# ---------------------------------------------------------------------------------------- training sees what sampling sees


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("given", [[], [0, 2]])
@pytest.mark.parametrize("kind", ["hidden_mlp", "dit_confidence"])
def test_the_time_in_training_is_that_of_sampling(kind, steps, given):
    """At the same number of masks, also where the steps do not divide them or outnumber them, and with given positions."""
    model = WideLM(5)
    dit = {"hidden_dim": 8, "feedforward_dim": 8, "time_embed_dim": 4}
    network = policy() if kind == "hidden_mlp" else DitConfidence(**dit)
    fixed = torch.zeros(3, 5, dtype=torch.bool)
    fixed[:, given] = True
    tokens = torch.ones_like(fixed, dtype=torch.long)
    canvas = tokens.masked_fill(~fixed, model.mask_id)
    strategy = Strategy(PolicyUnmasker(network, "fixed"), TokenRule())
    trajectory = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps)), strategy, Prompts(canvas), record=network.inputs
    ).trajectory
    sampled = dict(zip(trajectory.writable.sum(1).tolist(), trajectory.inputs["time"].tolist(), strict=True))
    path = masking_path(model, network, tokens, fixed, steps, Draws(0))
    written, trained = torch.zeros(3, dtype=torch.long), {}
    for order, inputs in zip(path.order, path.inputs[1:], strict=True):
        written = written + (order > 0).sum(1)
        if (order > 0).any():  # else no sampling step meets this canvas
            trained[int(written[0])] = float(inputs["time"][0])
            assert (inputs["time"] == inputs["time"][0]).all() and (written == written[0]).all()
    assert trained.keys() == sampled.keys()
    assert all(trained[masks] == pytest.approx(sampled[masks], abs=1e-7) for masks in trained)


def test_a_canvas_is_evaluated_once():
    model, calls = WideLM(3), []
    inner = model.hidden_rows
    model.hidden_rows = lambda *arguments: calls.append(1) or inner(*arguments)
    masking_path(model, policy(), torch.ones(4, 3, dtype=torch.long), torch.zeros(4, 3, dtype=torch.bool), 3, Draws(0))
    assert len(calls) == 4
