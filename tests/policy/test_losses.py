"""Policy objectives as pure functions: advantages, clipping, weights, the KL estimate, GAE, the value loss."""

import pytest
import torch

from losses import (
    clipped_policy_loss,
    gae,
    group_advantages,
    kl_to_reference,
    over_deviation,
    per_row_weights,
    step_advantages,
    value_loss,
)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------------------------- advantages


def test_advantages_compare_within_the_group():
    reward = torch.tensor([[1.0, 0.0, 0.0, 1.0], [5.0, 5.0, 7.0, 7.0]])
    assert torch.equal(group_advantages(reward, False), torch.tensor([[0.5, -0.5, -0.5, 0.5], [-1, -1, 1, 1]]))
    divided = group_advantages(reward, True)
    torch.testing.assert_close(divided, torch.tensor([[1.0, -1, -1, 1], [-1, -1, 1, 1]]), atol=3e-4, rtol=0)


@pytest.mark.parametrize("members", [2, 3, 8, 32])
@pytest.mark.parametrize("divide_by_std", [False, True])
def test_equal_rewards_have_no_advantage_at_all(members, divide_by_std):
    """The float32 mean of equal numbers often is another number, which would make an update out of rounding."""
    reward = rand(200, 1).expand(-1, members).contiguous()
    assert (group_advantages(reward, divide_by_std) == 0).all()


LENGTHS = [3, 1, 5, 2, 4, 4]  # of two groups of three, or three of two


def ragged_steps(lengths, seed=3):
    """(row, step) of rollouts of these lengths, in any order."""
    pairs = torch.tensor([(row, t) for row, length in enumerate(lengths) for t in range(length)])
    return pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(seed))].unbind(1)


@pytest.mark.parametrize("group", [2, 3])
@pytest.mark.parametrize("divide_by_std", [False, True])
def test_step_advantages_equal_a_plain_loop_over_rollouts_of_different_lengths(group, divide_by_std):
    row, step = ragged_steps(LENGTHS)
    reward = rand(len(row)) - 0.4
    ours = step_advantages(reward, row, step, len(LENGTHS), group, divide_by_std)
    earned = [[0.0] * length for length in LENGTHS]
    for r, t, value in zip(row.tolist(), step.tolist(), reward.tolist(), strict=True):
        earned[r][t] = value
    expected = []
    for r, t in zip(row.tolist(), step.tolist(), strict=True):
        first = r // group * group
        returns = [sum(earned[member][t:]) for member in range(first, first + group)]  # of one that has ended: 0
        expected.append(returns[r - first] - sum(returns) / group)
    if divide_by_std:
        mean = sum(expected) / len(expected)
        deviation = (sum((value - mean) ** 2 for value in expected) / len(expected)) ** 0.5
        expected = [value / deviation for value in expected]
    assert ours.tolist() == pytest.approx(expected, abs=1e-5)


def test_a_rollout_without_steps_still_counts_in_its_group():
    """Row 1 took no step: its returns are 0, and those of row 0 are compared with them."""
    row, step = torch.tensor([0, 0]), torch.tensor([0, 1])
    advantage = step_advantages(torch.tensor([1.0, 3.0]), row, step, 2, 2, False)
    assert advantage.tolist() == [2.0, 1.5]


@pytest.mark.parametrize("members", [2, 3, 8, 32])
@pytest.mark.parametrize("divide_by_std", [False, True])
def test_equal_rollouts_have_no_advantage_at_any_step(members, divide_by_std):
    """Those of a policy that has become sure of its picks: nothing to learn, and nothing to be made of rounding."""
    reward = -rand(50, 1, 4).expand(-1, members, -1).flatten()
    row, step = torch.cartesian_prod(torch.arange(50 * members), torch.arange(4)).unbind(1)
    assert (step_advantages(reward, row, step, 50 * members, members, divide_by_std) == 0).all()


def test_rounding_is_not_blown_up_to_an_advantage():
    """Numbers that agree to float32's last digits have no spread; a real one, however small beside them, counts."""
    values = torch.tensor([0.3, 0.3 + 3e-8, 0.3, 0.3])
    assert (
        over_deviation(values - values.mean(), (values - values.mean()).std(correction=0), values.mean()) == 0
    ).all()
    values = torch.tensor([0.3, 0.301, 0.3, 0.3])
    spread = over_deviation(values - values.mean(), values.std(correction=0), values.mean())
    torch.testing.assert_close(spread.square().mean(), torch.tensor(1.0), atol=1e-2, rtol=0)
    reward = torch.tensor([0.1, 0.2, 0.3 + 2e-8, 0.0])  # returns 0.3 of both, added up in another order
    found = step_advantages(reward, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]), 2, 2, True)
    assert found.abs().max() < 1.5 and bool(torch.isfinite(found).all())
    assert (group_advantages(torch.tensor([[1.0, 1.0, 1.0, 0.999]]), True).abs() < 2).all()


# ---------------------------------------------------------------------------------------- clipping


def test_first_inner_update_has_the_policy_gradient():
    log_prob = (-3 * rand(9)).requires_grad_()
    advantage, weight = rand(9, seed=1) - 0.5, rand(9, seed=2)
    loss = clipped_policy_loss(log_prob, log_prob.detach(), advantage, weight, 0.2)
    torch.testing.assert_close(loss, -(weight * advantage).sum())  # every ratio is 1
    torch.testing.assert_close(torch.autograd.grad(loss, log_prob)[0], -weight * advantage)


@pytest.mark.parametrize(
    "ratio, advantage, expected, moves",
    [
        (1.1, 1.0, 1.1, True),
        (1.5, 1.0, 1.2, False),  # better and already much likelier: no further
        (0.5, 1.0, 0.5, True),  # better and yet less likely: back, however far
        (0.9, -1.0, -0.9, True),
        (0.5, -1.0, -0.8, False),
        (1.5, -1.0, -1.5, True),
    ],
)
def test_clip_regions(ratio, advantage, expected, moves):
    log_prob = torch.tensor([ratio]).log().requires_grad_()
    loss = clipped_policy_loss(log_prob, torch.zeros(1), torch.tensor([advantage]), torch.tensor([2.0]), 0.2)
    assert loss.item() == pytest.approx(-2 * expected)
    gradient = torch.autograd.grad(loss, log_prob)[0].item()
    assert gradient == pytest.approx(-2 * ratio * advantage if moves else 0.0)


# ---------------------------------------------------------------------------------------- weights, KL


def test_rollouts_count_the_same_however_many_steps_they_took():
    row = torch.tensor([3, 0, 0, 3, 3, 1])  # row 2 took none
    weight = per_row_weights(row, 4)
    torch.testing.assert_close(weight, 1 / 4 / torch.tensor([3.0, 2, 2, 3, 3, 1]))
    totals = torch.zeros(4).index_add_(0, row, weight)
    torch.testing.assert_close(totals, torch.tensor([0.25, 0.25, 0.0, 0.25]))


def test_kl_estimate_is_positive_unbiased_and_pulls_to_the_reference():
    logits, reference = (4 * rand(6) - 2).double().requires_grad_(), (4 * rand(6, seed=1) - 2).double().log_softmax(0)
    log_prob = logits.log_softmax(0)
    estimate = kl_to_reference(log_prob.detach(), reference)
    assert (estimate >= 0).all()
    exact = (log_prob.exp() * (log_prob - reference)).sum()
    torch.testing.assert_close((log_prob.exp() * estimate).sum(), exact)
    assert (kl_to_reference(reference, reference) == 0).all()
    # Sampled from the policy, its gradient is in expectation that of the other direction, KL(reference || policy).
    expected = (log_prob.detach().exp() * kl_to_reference(log_prob, reference)).sum()
    ours = torch.autograd.grad(expected, logits, retain_graph=True)[0]
    other = (reference.exp() * (reference - log_prob)).sum()
    torch.testing.assert_close(ours, torch.autograd.grad(other, logits)[0])


# ---------------------------------------------------------------------------------------- PPO


@pytest.mark.parametrize("discount, decay", [(1.0, 0.95), (0.9, 0.8), (1.0, 1.0), (1.0, 0.0)])
def test_gae_equals_a_plain_loop_over_each_episode(discount, decay):
    lengths = [3, 1, 5, 2]
    row, step = ragged_steps(lengths)
    reward, value = rand(len(row)), rand(len(row), seed=1)
    advantage, target = gae(reward, value, row, step, discount, decay)
    at = {(int(r), int(t)): i for i, (r, t) in enumerate(zip(row, step, strict=True))}
    for episode, length in enumerate(lengths):
        rewards = [float(reward[at[episode, t]]) for t in range(length)]
        values = [float(value[at[episode, t]]) for t in range(length)] + [0.0]
        for t in range(length):
            deltas = [rewards[k] + discount * values[k + 1] - values[k] for k in range(t, length)]
            expected = sum((discount * decay) ** k * delta for k, delta in enumerate(deltas))
            assert float(advantage[at[episode, t]]) == pytest.approx(expected, abs=1e-5)
            if decay == 1.0:  # the target is then the return
                returns = sum(discount**k * r for k, r in enumerate(rewards[t:]))
                assert float(target[at[episode, t]]) == pytest.approx(returns, abs=1e-5)
    torch.testing.assert_close(target, advantage + value)


def test_value_loss_is_half_the_weighted_square():
    value, target, weight = rand(5).requires_grad_(), rand(5, seed=1), rand(5, seed=2)
    loss = value_loss(value, target, weight)
    torch.testing.assert_close(loss, 0.5 * (weight * (value - target) ** 2).sum())
    torch.testing.assert_close(torch.autograd.grad(loss, value)[0], weight * (value - target).detach())
