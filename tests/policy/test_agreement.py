"""The agreement policy: its sums against plain loops, what an untrained one is, what it is for, and what it refuses."""

import itertools

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from policy.agreement import SURE, Agreement
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import Threshold
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM

LENGTH, TOP = 6, 3
MODEL = RandomLM(5, max_length=LENGTH)


def observed(budget=None):
    canvas = torch.full((4, LENGTH), MODEL.mask_id)
    canvas[1:, 2] = torch.arange(3)
    canvas[2:, 4] = 1
    return UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH, budget=budget)).reset(Prompts(canvas))


def policy(**settings):
    torch.manual_seed(3)
    return Agreement(LENGTH, relations=2, candidates=2, width=8, top_k=TOP, **settings)


def test_agreement_is_the_probability_of_the_best_token_elsewhere():
    seen, network = observed(), policy()
    inputs = network.inputs(seen)
    every = MODEL.log_probs(seen.tokens).exp()
    found = network.agreement(inputs["top_tokens"], inputs["probabilities"])
    for row in range(len(seen.tokens)):
        for i in range(LENGTH):
            for c, j in itertools.product(range(2), range(LENGTH)):
                token = int(inputs["top_tokens"][row, i, c])
                if seen.masked[row, j]:
                    ranks = every[row, j].topk(TOP).indices.tolist()
                    expected = float(every[row, j, token]) if token in ranks else 0.0
                else:
                    expected = float(token == int(seen.tokens[row, j]))
                assert float(found[row, c, i, j]) == pytest.approx(expected, abs=1e-6)


def test_relations_weigh_masked_and_committed_positions_apart():
    """The trunk's sums, by plain loops over positions, put through the same layers."""
    seen, network = observed(budget=3), policy()
    for layer in (network.output_proj, network.time_mlp[2]):
        torch.nn.init.normal_(layer.weight)
    torch.nn.init.constant_(network.confidence_scale, 1.5)
    inputs = network.inputs(seen)
    agreement = network.agreement(inputs["top_tokens"], inputs["probabilities"])
    probabilities = inputs["probabilities"]
    rows = []
    for row in range(len(seen.tokens)):
        for i in range(LENGTH):
            p = probabilities[row, i]
            entropy = -sum(float(q) * torch.log(q.clamp_min(1e-9)) for q in p)
            own = [p[0].logit(1e-5) / 5, entropy, seen.masked[row].float().mean(), p[0], p[1]]
            sums = torch.zeros(2, 3, 2)
            for c, j in itertools.product(range(2), range(LENGTH)):
                a = agreement[row, c, i, j]
                if seen.masked[row, j]:
                    sums[c, 0] += a * network.relations[0, i, j]
                    sums[c, 1] += torch.log(1 - a.clamp(max=1 - SURE)) / 3 * network.relations[1, i, j]
                else:
                    sums[c, 2] += a * network.relations[2, i, j]
            rows.append(torch.cat([torch.stack([torch.as_tensor(value) for value in own]), sums.flatten()]))
    x = network.features(torch.stack(rows).view(len(seen.tokens), LENGTH, -1))
    time = inputs["time"][:, None]
    x = x + (time * network.time_mlp(time))[:, None]
    x = torch.nn.functional.gelu(x, approximate="tanh")
    x = torch.nn.functional.gelu(network.hidden(x), approximate="tanh")
    expected = network.output_proj(x).squeeze(-1) + 1.5 * probabilities[..., 0].logit(1e-5)
    torch.testing.assert_close(network.scores(**inputs), expected, atol=1e-5, rtol=1e-5)


def test_an_untrained_policy_is_the_threshold_rule():
    canvas = torch.full((8, LENGTH), MODEL.mask_id)
    for threshold in (0.25, 0.4):
        ours, rules = (
            sample(UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH)), Strategy(rule, TokenRule(0.0)), Prompts(canvas))
            for rule in (PolicyUnmasker(policy(), "threshold", threshold=threshold), Threshold(threshold))
        )
        assert torch.equal(ours.unmasked_at, rules.unmasked_at) and torch.equal(ours.tokens, rules.tokens)


def test_without_a_budget_time_is_nothing():
    network = policy()
    torch.nn.init.normal_(network.output_proj.weight), torch.nn.init.normal_(network.time_mlp[2].weight)
    free, told = network.inputs(observed()), network.inputs(observed(budget=4))
    assert free["time"].tolist() == [0.0] * 4 and told["time"].tolist() == [0.25] * 4
    zero = network.scores(**free)
    torch.nn.init.zeros_(network.time_mlp[2].weight), torch.nn.init.zeros_(network.time_mlp[2].bias)
    assert torch.equal(network.scores(**free), zero) and torch.equal(network.scores(**told), zero)


def test_it_learns_which_pairs_must_differ():
    """Best tokens of neighbours 0-1, 2-3, 4-5 are wrong where they are equal: what no position knows by itself."""
    torch.manual_seed(0)
    network = policy()
    optimiser = torch.optim.Adam(network.parameters(), 3e-2)
    tokens = torch.randint(2, (256, LENGTH))
    right = (tokens.view(-1, 3, 2)[..., 0] != tokens.view(-1, 3, 2)[..., 1]).repeat_interleave(2, 1)
    probabilities = torch.tensor([0.8, 0.2, 0.0]).expand(256, LENGTH, 3)
    inputs = {
        "masked": torch.ones(256, LENGTH, dtype=torch.bool), "top_tokens": torch.stack((tokens, 1 - tokens, 2 + tokens), -1),
        "probabilities": probabilities, "time": torch.zeros(256),
    }  # fmt: skip
    for _ in range(80):
        optimiser.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(network.scores(**inputs), right.float()).backward()
        optimiser.step()
    assert ((network.scores(**inputs) > 0) == right).float().mean() > 0.99


def test_another_length_is_refused():
    seen = UnmaskingEnvironment(MODEL, DecodeOptions(4)).reset(Prompts(torch.full((1, 4), MODEL.mask_id)))
    with pytest.raises(ValueError, match="trained on 6 positions and the canvas has 4"):
        policy().inputs(seen)
