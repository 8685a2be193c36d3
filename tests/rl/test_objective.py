"""The gradient that is followed is the gradient of the expected reward, by enumeration; chunks and reuse change nothing."""

import math
from itertools import permutations, product

import pytest
import torch

from dlm.draws import Draws
from dlm.likelihood import Elbo, Published, ReplayedTrajectory, Sandwich, known_terms, log_likelihood
from losses import group_advantages
from rl.objective import backward, policy_loss
from tests.enumerable import inconsistent, random_radd


def trajectories(model):
    """[(tokens, unmasked_at)] of every order and text, one position a step, the order uniform."""
    length, vocabulary = model.length, model.mask_id
    return [
        (text, order) for order in permutations(range(length)) for text in product(range(vocabulary), repeat=length)
    ]


def law(model, all_of_them):
    """log-probability of each, differentiable in the table: the orders are uniform, the tokens the model's."""
    found = []
    for text, order in all_of_them:
        canvas, total = [model.mask_id] * model.length, 0.0
        for step in range(model.length):
            position = order.index(step)
            row = model.table[int(model.state(torch.tensor([canvas]))), position].log_softmax(0)
            total = total + row[text[position]]
            canvas[position] = text[position]
        found.append(total - torch.lgamma(torch.tensor(model.length + 1.0)))
    return torch.stack(found)


@pytest.mark.parametrize("ratio", ["sequence", "token"])
def test_the_expected_grpo_gradient_is_that_of_the_expected_reward(ratio):
    """Groups of two, all of them weighed by their probability. A member stands in its own baseline: a factor 1 - 1 / 2. Rows
    count 1 / positions each."""
    model = inconsistent(2, 2)
    every = trajectories(model)
    reward = torch.rand(len(every), generator=torch.Generator().manual_seed(0))
    log_probs = law(model, every)
    (analytic,) = torch.autograd.grad((log_probs.exp() * reward).sum(), model.table)
    chance = log_probs.exp().detach()
    assert float(chance.sum()) == pytest.approx(1, abs=1e-5)
    estimator, rows = ReplayedTrajectory(), len(every)
    pairs = torch.cartesian_prod(torch.arange(rows), torch.arange(rows))
    tokens = torch.tensor([every[i][0] for i in pairs.flatten().tolist()])
    unmasked_at = torch.tensor([every[i][1] for i in pairs.flatten().tolist()])
    free = torch.ones_like(tokens, dtype=torch.bool)
    advantage = group_advantages(reward[pairs], False).flatten()
    weight = (chance[pairs].prod(1) / 2).repeat_interleave(2)
    views = estimator.views(free, Draws(0), unmasked_at)
    old = log_likelihood(model, estimator, tokens, views)
    torch.testing.assert_close(old.sum(1)[::2][: len(pairs)].exp() / 2, chance[pairs[:, 0]], atol=1e-5, rtol=1e-4)
    model.zero_grad()
    backward(model, estimator, tokens, views,
             lambda new: policy_loss(new, old, None, free, advantage, weight, ratio, 0.2, 0.0)[0], 1000)  # fmt: skip
    torch.testing.assert_close(model.table.grad, -analytic / 2 / model.length, atol=1e-6, rtol=1e-4)
    assert float(analytic.abs().max()) > 1e-3


def updated(estimator, chunk, known, kl_beta=0.1, ratio="sequence"):
    """The gradient of an update whose weights have moved since the rows were drawn."""
    model = random_radd()
    tokens = torch.randint(11, (6, 12), generator=torch.Generator().manual_seed(1))
    free = torch.ones_like(tokens, dtype=torch.bool)
    free[:, 0] = False
    advantage = torch.tensor([1.0, -1.0, 0.0, 0.5, -2.0, 1.5])
    views = estimator.views(free, Draws(1))
    old = log_likelihood(model, estimator, tokens, views, push_down=advantage < 0)
    reference = old + 0.1
    model.requires_grad_(True)
    with torch.no_grad():
        model.backbone.output_layer.linear.weight += 0.01
    said = known_terms(model, estimator, tokens, views, 64) if known else None
    loss = backward(
        model, estimator, tokens, views,
        lambda new: policy_loss(new, old, reference, free, advantage, torch.full((6,), 1 / 6), ratio, 0.2, kl_beta)[0],
        chunk, advantage < 0, known=said,
    )  # fmt: skip
    return loss, [p.grad for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("ratio", ["sequence", "token"])
@pytest.mark.parametrize("estimator", [Elbo(4), Sandwich(4)], ids=["elbo", "sandwich"])
def test_chunks_give_the_gradient_of_the_whole(estimator, ratio):
    loss, whole = updated(estimator, 64, False, ratio=ratio)
    for chunk, known in ((5, False), (64, True), (1, True)):
        again, parts = updated(estimator, chunk, known, ratio=ratio)
        assert again == pytest.approx(loss, abs=1e-5) and len(whole) == len(parts) > 5
        for one, other in zip(whole, parts, strict=True):
            torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-3)


def test_the_published_estimator_has_no_gradient():
    loss, gradients = updated(Published(), 64, False)
    assert gradients == [] and loss == pytest.approx(0.0005, abs=1e-3)


def test_nothing_to_learn_is_no_gradient_and_no_evaluation():
    model = random_radd()
    tokens = torch.randint(11, (2, 8), generator=torch.Generator().manual_seed(1))
    views = Elbo(2).views(torch.ones_like(tokens, dtype=torch.bool), Draws(1))
    old, said = log_likelihood(model, Elbo(2), tokens, views), known_terms(model, Elbo(2), tokens, views, 8)
    model.requires_grad_(True)
    loss = backward(model, Elbo(2), tokens, views, lambda new: (0 * (new - old)).sum(), 8, known=said)
    assert loss == 0 and all(p.grad is None for p in model.parameters())


def test_rows_of_weight_zero_are_left_out():
    new, free = (
        torch.tensor([[0.1, -0.2], [torch.inf, torch.nan]], requires_grad=True),
        torch.ones(2, 2, dtype=torch.bool),
    )
    old = torch.zeros(2, 2)
    advantage, weight = torch.tensor([1.0, 0.0]), torch.tensor([1.0, 0.0])
    for ratio in ("sequence", "token"):
        loss, shown = policy_loss(new, old, old, free, advantage, weight, ratio, 0.2, 0.1)
        assert torch.isfinite(loss) and shown["kl"] > 0


def test_the_first_ratio_is_one_and_the_kl_of_equals_is_zero():
    old, free = torch.randn(3, 4), torch.ones(3, 4, dtype=torch.bool)
    advantage, weight = torch.tensor([1.0, -1.0, 2.0]), torch.full((3,), 1 / 3)
    for ratio in ("sequence", "token"):
        loss, shown = policy_loss(old, old, old, free, advantage, weight, ratio, 0.2, 0.1)
        assert float(loss) == pytest.approx(-2 / 3, abs=1e-6) and shown == {"clipped": 0.0, "kl": 0.0}


def test_a_member_without_a_reward_is_no_part_of_its_group():
    reward = torch.tensor([[1.0, torch.nan, 3.0], [5.0, 5.0, torch.nan]])
    valid = torch.tensor([[True, False, True], [True, True, False]])
    assert group_advantages(reward, False, valid).tolist() == [[-1, 0, 1], [0, 0, 0]]
    assert group_advantages(reward, True, valid)[0].tolist() == pytest.approx([-1, 0, 1], abs=1e-3)
    alone = group_advantages(torch.tensor([[4.0, torch.nan]]), True, torch.tensor([[True, False]]))
    assert alone.tolist() == [[0, 0]]


def test_the_kl_is_weighed_and_positions_are_averaged():
    """Rows whose old and new estimates agree, half a nat a position from the reference; one position of a row was given."""
    new = torch.zeros(2, 4)
    free = torch.tensor([[True] * 4, [False] + [True] * 3])
    none, weight = torch.zeros(2), torch.full((2,), 0.5)
    reference = torch.where(free, 0.5, 0.0)
    for ratio in ("sequence", "token"):
        loss, shown = policy_loss(new, new, reference, free, none, weight, ratio, 0.2, 0.1)
        assert shown["kl"] == pytest.approx(math.exp(0.5) - 1.5, abs=1e-6)
        assert float(loss) == pytest.approx(0.1 * shown["kl"], abs=1e-6)
