"""What each rule learns, by enumeration and from samples; gradients; invariances."""

import pytest
import torch
from torch.nn.functional import logsigmoid

from losses import clipped_policy_loss, gae
from tests.twist.chain import Chain
from twist.objectives import (
    IDENTIFIED,
    PROPOSAL_ONLY,
    check_resampling,
    contrastive_loss,
    dpg_loss,
    final_log_weight,
    fudge_loss,
    normalised,
    ppo_rewards,
    prefix_labels,
    prefix_log_weights,
    sixo_loss,
    soft_q_loss,
)

LOSSES = ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")


def close(one, other, tolerance=1e-12):
    torch.testing.assert_close(one, other, atol=tolerance, rtol=0)


def bounded(method, twists):
    """FUDGE's twists are probabilities."""
    return [logsigmoid(twist) for twist in twists] if method == "fudge" else twists


def exact_loss(method, chain, twists):
    """The expectation of each rule over all sequences, through the functions that training calls: enumerated sequences stand for
    samples, their log-probability being added to their log-weights."""
    seen = chain.densities(bounded(method, twists))
    prior, phi = chain.log_prior(), chain.log_phi
    everywhere = prior.exp()
    drawn = seen.log_q.sum(1)
    target = normalised(final_log_weight(seen.log_p, seen.log_q, phi) + drawn)
    close(target, chain.log_sigma().exp())
    if method == "ctl":
        weights = normalised(prefix_log_weights(seen.log_p, seen.log_q, seen.log_psi) + drawn.unsqueeze(1))
        return contrastive_loss(seen.log_psi, target, seen.log_psi, weights)
    if method == "rl":
        return soft_q_loss(seen.log_psi, seen.log_normalizer, phi, everywhere)
    if method == "sixo":
        return sixo_loss(seen.log_psi, target, seen.log_psi, everywhere)
    if method == "fudge":
        return fudge_loss(seen.log_psi, phi.unsqueeze(1).expand_as(seen.log_psi), everywhere)
    if method == "dpg":
        return dpg_loss(seen.log_psi, seen.log_normalizer, target)
    return -(
        drawn.exp().detach() * (ppo_rewards(seen.log_p, seen.log_q, phi).sum(1) * drawn)
    ).sum()  # the score function


def prefix_kls(chain, twists):
    """The mean over t of KL(sigma(s_1:t) || pi_t), the objective of CTL."""
    total = 0
    for t in range(1, chain.length + 1):
        size = chain.vocabulary**t
        marginal = torch.zeros(size, dtype=torch.float64).index_add(0, chain.number[t], chain.log_sigma().exp())
        prior = torch.zeros(size, dtype=torch.float64).index_add(0, chain.number[t], chain.log_prior().exp())
        log_pi = (prior.log() + twists[t - 1]).log_softmax(0)
        total = total + (marginal * (marginal.log() - log_pi)).sum()
    return total / chain.length


def minimised(method, chain, iterations=150):
    """Twists where the exact loss is least. Of CTL and PPO, whose weights stand still, the function that has their gradient (the
    tests of (c)) is minimised."""
    functions = {"ctl": lambda twists: prefix_kls(chain, twists), "ppo": lambda twists: chain.kls(twists)[0]}
    twists = chain.new_twists()
    lbfgs = torch.optim.LBFGS(twists, max_iter=iterations, tolerance_grad=1e-14, tolerance_change=0,
                              line_search_fn="strong_wolfe")  # fmt: skip

    def closure():
        lbfgs.zero_grad()
        loss = functions[method](twists) if method in functions else exact_loss(method, chain, twists)
        loss.backward()
        return loss

    if method == "rl":  # its target stands still: a fixed point, one position after the other from the end
        for _ in range(chain.length):
            lbfgs.step(closure)
            lbfgs = torch.optim.LBFGS(twists, max_iter=iterations, tolerance_grad=1e-14, tolerance_change=0,
                                      line_search_fn="strong_wolfe")  # fmt: skip
    else:
        lbfgs.step(closure)
    return [twist.detach() for twist in bounded(method, twists)]


@pytest.fixture(scope="module")
def chain():
    return Chain()


# ------------------------------------------------------------------------------------------------ (a) the optimal twists


def test_optimal_twists_propose_the_target_and_weigh_nothing(chain):
    psi, log_z = chain.optimal
    seen = chain.densities(psi)
    for kl in chain.kls(psi):
        close(kl, torch.zeros_like(kl))
    running = prefix_log_weights(seen.log_p, seen.log_q, seen.log_psi)
    increments = torch.cat((running[:, :1], running[:, 1:] - running[:, :-1]), 1)
    close(increments[:, 0], log_z.expand(len(running)))
    close(increments[:, 1:], torch.zeros_like(increments[:, 1:]))
    close(final_log_weight(seen.log_p, seen.log_q, chain.log_phi), log_z.expand(len(running)))  # variance 0


# ------------------------------------------------------------------------------------------------ (b) what is identified


@pytest.mark.parametrize("method", LOSSES)
def test_what_each_rule_identifies(method, chain):
    psi, log_z = chain.optimal
    learnt = minimised(method, chain)
    for kl in chain.kls(learnt):
        assert 0 <= float(kl) + 1e-12 < 1e-6
    off = [own - best for own, best in zip(learnt, psi, strict=True)]  # log psi / psi*, of each prefix
    constant = torch.stack([difference.mean() for difference in off])
    spread = max(float((difference - difference.mean()).abs().max()) for difference in off)
    by_prefix = max(
        float((rows - rows.mean(1, keepdim=True)).abs().max())
        for rows in (difference.view(-1, chain.vocabulary) for difference in off)
    )
    assert by_prefix < 1e-2
    assert (spread < 1e-2) == (method not in PROPOSAL_ONLY)
    expected = {"rl": 0.0, "fudge": 0.0, "sixo": -float(log_z)}
    if method in expected:
        close(constant, torch.full_like(constant, expected[method]), 1e-2)
    if method == "ctl":
        assert float(constant.abs().max()) > 0.1  # started at 0, stays where it likes


def test_resampling_by_twists_of_the_proposal_only_is_refused():
    assert IDENTIFIED.keys() == set(LOSSES)
    for method in LOSSES:
        if method not in PROPOSAL_ONLY:
            check_resampling(method, "RUN")
            continue
        with pytest.raises(
            ValueError,
            match=f"the twist RUN was learnt by {method}, which identifies the proposal only .*--resample never",
        ):
            check_resampling(method, "RUN")


# ------------------------------------------------------------------------------------------------ (c) gradients


def gradients(loss, twists):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, twists, retain_graph=True)])


def test_the_gradient_of_ctl_is_that_of_the_kls_of_all_prefixes(chain):
    twists = chain.new_twists(seed=1)
    close(gradients(exact_loss("ctl", chain, twists), twists), gradients(prefix_kls(chain, twists), twists))


@pytest.mark.parametrize(("method", "which"), [("dpg", 1), ("ppo", 0)])
def test_the_gradients_of_dpg_and_ppo_are_those_of_the_two_kls(method, which, chain):
    twists = chain.new_twists(seed=1)
    scale = chain.length if method == "dpg" else 1
    close(gradients(exact_loss(method, chain, twists) * scale, twists), gradients(chain.kls(twists)[which], twists))


def test_dpg_is_the_published_estimator(chain):
    """sum_v sg(q(v)) log psi(v), over the vocabulary, has the gradient of the log-normalizer."""
    twists = chain.new_twists(seed=2)
    weight = torch.rand(len(chain.sequences), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    seen = chain.densities(twists)
    tables = [twist.view(-1, chain.vocabulary) for twist in twists]
    expected = [((p + t).log_softmax(1).exp().detach() * t).sum(1, keepdim=True).expand_as(t)
                for p, t in zip(chain.log_p, tables, strict=True)]  # fmt: skip
    published = -(weight.unsqueeze(1) * (seen.log_psi - chain.of_tables(expected))).sum(0).mean()
    ours = dpg_loss(seen.log_psi, seen.log_normalizer, weight)
    close(gradients(ours, twists), gradients(published, twists))


# ------------------------------------------------------------------------------------------------ (d) DPG's free factor


def test_a_factor_a_prefix_changes_the_weights_of_particles_and_not_the_proposal(chain):
    twists = [twist.detach() for twist in chain.new_twists(seed=3)]
    generator = torch.Generator().manual_seed(5)
    free = [torch.randn(chain.vocabulary**t, 1, generator=generator, dtype=torch.float64) for t in range(chain.length)]
    moved = [(t.view(-1, chain.vocabulary) + c).flatten() for t, c in zip(twists, free, strict=True)]
    one, other = chain.densities(twists), chain.densities(moved)
    close(one.log_q, other.log_q)
    close(
        final_log_weight(one.log_p, one.log_q, chain.log_phi), final_log_weight(other.log_p, other.log_q, chain.log_phi)
    )
    weights = [normalised(prefix_log_weights(s.log_p, s.log_q, s.log_psi)) for s in (one, other)]
    assert float((weights[0] - weights[1]).abs().max()) > 1e-3
    target = chain.log_sigma().exp()
    for c, d in ((one, other),):
        close(dpg_loss(c.log_psi, c.log_normalizer, target), dpg_loss(d.log_psi, d.log_normalizer, target))


def test_a_group_of_weight_0_teaches_nothing_and_leaves_the_others_as_they_are():
    log_weight = torch.tensor([0.0, 1.0, -torch.inf, -torch.inf, 2.0, -torch.inf])
    found = normalised(log_weight, groups=3)
    close(found[:2], normalised(log_weight[:2]) / 3)
    assert found[2:].tolist() == [0, 0, pytest.approx(1 / 3), 0]


def test_the_targets_of_soft_q_stand_still():
    """The gradient goes into log psi alone: with the log-normalizer of the next position learnt too, both would move together."""
    log_psi, log_normalizer = (torch.randn(3, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    weight = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    phi = torch.randn(3, dtype=torch.float64, requires_grad=True)
    soft_q_loss(log_psi, log_normalizer, phi, weight).backward()
    assert log_normalizer.grad is None and phi.grad is None
    target = torch.cat((log_normalizer[:, 1:], phi.unsqueeze(1)), 1).detach()
    close(log_psi.grad, 2 * weight.unsqueeze(1) * (log_psi.detach() - target) / 4)


# ------------------------------------------------------------------------------------------------ FUDGE on target samples


def test_labels_of_prefixes_and_of_rows():
    labels = prefix_labels(torch.tensor([-1.0, -2.0, -3.0, -4.0]), torch.tensor([-5.0, -6.0]))
    assert labels.tolist() == [[-1, -2, -5], [-3, -4, -6]]


def completions(chain, t):
    """[V^t prefixes, V^T sequences]: probability of each sequence given its first t tokens."""
    log_prior, prefix = chain.log_prior(), chain.number[t]
    prior = torch.zeros(chain.vocabulary**t, dtype=torch.float64).index_add(0, prefix, log_prior.exp())
    conditional = torch.zeros(chain.vocabulary**t, len(log_prior), dtype=torch.float64)
    conditional[prefix, torch.arange(len(log_prior))] = log_prior.exp() / prior[prefix]
    return conditional


@pytest.mark.parametrize("early", [0, 1])
def test_labels_see_the_token_that_is_scored(early, chain):
    """In expectation over target prefixes and completions by p the twists are psi*; where the label is of a completion of one token
    less (`early`), as published, they are not."""
    twists = chain.new_twists()
    target = chain.log_sigma().exp()
    label = torch.stack(
        [
            completions(chain, t - early)[chain.number[t - early]] @ chain.log_phi.exp()
            for t in range(1, chain.length + 1)
        ],
        1,
    )
    lbfgs = torch.optim.LBFGS(
        twists, max_iter=150, tolerance_grad=1e-14, tolerance_change=0, line_search_fn="strong_wolfe"
    )

    def closure():
        lbfgs.zero_grad()
        loss = fudge_loss(chain.densities(bounded("fudge", twists)).log_psi, label.log(), target)
        loss.backward()
        return loss

    lbfgs.step(closure)
    off = max(
        float((logsigmoid(t.detach()) - best).abs().max()) for t, best in zip(twists, chain.optimal[0], strict=True)
    )
    assert (off > 0.3) == bool(early) and (off < 0.1) == (not early)


def test_fudge_of_a_certain_twist_is_finite():
    log_psi = torch.tensor([[0.0, -1e-30, -200.0]], requires_grad=True)
    loss = fudge_loss(log_psi, torch.tensor([[-0.5, -0.5, -torch.inf]]), torch.ones(1))
    loss.backward()
    assert torch.isfinite(loss) and torch.isfinite(log_psi.grad).all()


# ------------------------------------------------------------------------------------------------ (j) from samples


def sampled_loss(method, chain, twists, rows, generator):
    """What training does with `rows` samples: tokens by enumeration of the laws, weights and losses by the functions."""
    whole = chain.densities(bounded(method, twists))
    drawn = whole.log_q.sum(1).detach()
    index = chain.draw(chain.log_prior() if method == "fudge" else drawn, rows, generator)
    seen = chain.densities(bounded(method, twists), chain.sequences[index])
    phi, even = chain.log_phi[index], torch.full((rows,), 1 / rows, dtype=torch.float64)
    target = normalised(final_log_weight(seen.log_p, seen.log_q, phi))
    if method == "ctl":
        weights = normalised(prefix_log_weights(seen.log_p, seen.log_q, seen.log_psi))
        return contrastive_loss(seen.log_psi, target, seen.log_psi, weights)
    if method == "rl":
        return soft_q_loss(seen.log_psi, seen.log_normalizer, phi, even)
    if method == "sixo":
        other = chain.densities(twists, chain.sequences[chain.draw(chain.log_prior(), rows, generator)])
        return sixo_loss(seen.log_psi, target, other.log_psi, even)
    if method == "fudge":
        return fudge_loss(seen.log_psi, phi.unsqueeze(1).expand_as(seen.log_psi), even)
    if method == "dpg":
        return dpg_loss(seen.log_psi, seen.log_normalizer, target)
    rewards = ppo_rewards(seen.log_p, seen.log_q, phi)
    row = torch.arange(rows).repeat_interleave(chain.length)
    step = torch.arange(chain.length).repeat(rows)
    to_go = rewards.flip(1).cumsum(1).flip(1)
    advantage, _ = gae(rewards.flatten(), to_go.mean(0).repeat(rows), row, step, 1.0, 1.0)
    log_q = seen.log_q.flatten()
    return clipped_policy_loss(log_q, log_q.detach(), advantage, torch.full_like(log_q, 1 / len(log_q)), 0.2)


@pytest.mark.parametrize("method", LOSSES)
def test_from_a_hundred_samples_an_update(method, chain):
    generator = torch.Generator().manual_seed(0)
    twists = chain.new_twists()
    before = chain.kls([twist.detach() for twist in twists])
    adam = torch.optim.Adam(twists, lr=0.05)
    updates = 600
    for update in range(updates):
        adam.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        adam.zero_grad()
        sampled_loss(method, chain, twists, 100, generator).backward()
        adam.step()
    after = chain.kls(bounded(method, [twist.detach() for twist in twists]))
    for start, end in zip(before, after, strict=True):
        assert float(start) > 0.1 and float(end) < 1e-2


# ------------------------------------------------------------------------------------------------ (k) infilling


def test_infilling_by_enumeration():
    """The last tokens o as a condition: psi*_t(s_1:t, o) = p(o | s_1:t), Z(o) = p(o), and E_o log Z(o) = -H(o)."""
    whole = Chain(vocabulary=3, length=4, seed=2)
    head, tail = 2, 2
    log_prior = whole.log_prior()
    o = whole.numbers(whole.sequences[:, head:])
    marginal = torch.zeros(3**tail, dtype=torch.float64).index_add(0, o, log_prior.exp())
    chain = Chain(vocabulary=3, length=head, seed=0)
    chain.log_p = whole.log_p[:head]
    expected, entropy = 0.0, -(marginal * marginal.log()).sum()
    for number in range(3**tail):
        here = o == number
        chain.log_phi = log_prior[here] - whole.of_tables(whole.log_p)[here][:, :head].sum(1)
        psi, log_z = chain.optimal
        close(log_z, marginal[number].log())
        joint = torch.zeros(3, dtype=torch.float64).index_add(0, whole.number[1][here], log_prior[here].exp())
        first = torch.zeros(3, dtype=torch.float64).index_add(0, whole.number[1], log_prior.exp())
        close(psi[0], (joint / first).log())
        close(chain.kls(psi)[0], torch.zeros((), dtype=torch.float64))
        expected = expected + marginal[number] * log_z
    close(expected, -entropy)


# ------------------------------------------------------------------------------------------------ (l) invariances


def test_a_constant_a_position_changes_neither_proposal_nor_kls(chain):
    twists = [twist.detach() for twist in chain.new_twists(seed=3)]
    moved = [twist + 1.7 * t for t, twist in enumerate(twists, start=1)]
    one, other = chain.densities(twists), chain.densities(moved)
    close(one.log_q, other.log_q)
    weights = [normalised(prefix_log_weights(s.log_p, s.log_q, s.log_psi)) for s in (one, other)]
    close(weights[0], weights[1])
    for kl, same in zip(chain.kls(twists), chain.kls(moved), strict=True):
        close(kl, same)


def test_a_factor_on_the_potential_moves_log_z_and_nothing_else():
    one, other = Chain(seed=4), Chain(seed=4)
    other.log_phi = one.log_phi + 0.9
    close(other.log_z, one.log_z + 0.9)
    close(other.log_sigma(), one.log_sigma())
    twists = [twist.detach() for twist in one.new_twists(seed=3)]
    for kl, same in zip(one.kls(twists), other.kls(twists), strict=True):
        close(kl, same)


# ------------------------------------------------------------------------------------------------ groups


def test_conditions_have_equal_shares():
    log_weight = torch.tensor([0.0, 1.0, 5.0, 5.0])
    weight = normalised(log_weight, groups=2)
    torch.testing.assert_close(weight, torch.cat((log_weight[:2].softmax(0), log_weight[2:].softmax(0))) / 2)
    torch.testing.assert_close(normalised(log_weight, groups=4), torch.full((4,), 0.25))
