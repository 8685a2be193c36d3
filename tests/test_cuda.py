"""On a GPU: every strategy and a training step, against float32 on the CPU. Run by hand: ./test -m cuda."""

import copy

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import RaddLM, SeddLM
from dlm.noise import LogLinearNoise
from dlm.options import DecodeOptions
from dlm.pretrain import LOSSES, loss_of
from dlm.prompts import Prompts
from model.radd import RADD
from model.sedd import SEDD
from policy.networks import DitConfidence
from policy.rollout import policy_log_probs
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from tests.policy_runs import DIT, GROUPS, QUICK, record, run, tiny_models

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TOLERANCE = 1e-4  # of a log-probability in float32


@pytest.fixture(scope="module")
def models() -> tuple[RaddLM, RaddLM]:
    torch.manual_seed(0)
    config = {"tokens": 50, "model": {"hidden_size": 64, "n_blocks": 2, "n_heads": 2, "length": 64}}
    model = RaddLM(RADD(config)).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.normal_(std=0.2)
    return model, copy.deepcopy(model).cuda()


def test_log_probs_agree(models):
    tokens = torch.randint(0, 51, (4, 64))
    mine, theirs = models[0](tokens), models[1](tokens.cuda()).cpu()
    finite = mine > -torch.inf
    assert torch.equal(finite, theirs > -torch.inf)
    torch.testing.assert_close(mine[finite], theirs[finite], atol=TOLERANCE, rtol=0)


def slightly_other(model: RaddLM) -> RaddLM:
    """The model with every weight off by about one part in 100,000."""
    other = copy.deepcopy(model)
    for parameter in other.parameters():
        parameter.mul_(1 + 1e-5 * torch.randn_like(parameter))
    return other


@pytest.mark.parametrize("name", [*UNMASKING_RULES, "policy"])
def test_tokens_agree_until_a_close_call(models, name):
    """A close decision may fall the other way and changes all that follows: no more rows than where the weights are a little
    other ones, or one in ten."""
    torch.manual_seed(1)
    network = DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8)
    canvas = torch.full((20, 32), models[0].mask_id)
    results = []
    for model in (*models, slightly_other(models[0])):
        device = next(model.parameters()).device
        rule = (
            PolicyUnmasker(copy.deepcopy(network).to(device), "fixed") if name == "policy" else UNMASKING_RULES[name]()
        )
        environment = UnmaskingEnvironment(model, DecodeOptions(8))
        results.append(
            sample(environment, Strategy(rule, TokenRule()), Prompts(canvas.to(device)), seed=3).tokens.cpu()
        )
    as_on_the_gpu, by_other_weights = (int((results[0] == other).all(1).sum()) for other in results[1:])
    assert as_on_the_gpu >= min(18, by_other_weights)


@pytest.mark.parametrize("loss", [name for name in LOSSES if name != "ar"])
def test_a_training_step_has_the_same_gradient(models, loss):
    tokens = torch.randint(0, 50, (4, 64))
    gradients = []
    if loss == "DSE":  # of score models alone
        torch.manual_seed(0)
        shape = {
            "hidden_size": 32,
            "cond_dim": 8,
            "n_blocks": 1,
            "n_heads": 2,
            "length": 64,
            "scale_by_sigma": True,
            "dropout": 0.0,
        }
        network = SEDD({"tokens": 50, "graph": {"type": "absorb"}, "model": shape})
        for parameter in network.parameters():
            parameter.data.normal_(std=0.2)
        score = SeddLM(network, LogLinearNoise())
        models = score, copy.deepcopy(score).cuda()
    for model in models:
        trained = copy.deepcopy(model).requires_grad_(True)
        device = next(trained.parameters()).device
        value = loss_of(trained, tokens.to(device), loss, LogLinearNoise(), torch.Generator().manual_seed(0))
        value.backward()
        gradients.append(torch.cat([p.grad.flatten().cpu() for p in trained.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], atol=1e-4, rtol=1e-3)


def test_recorded_log_probabilities_are_found_again(models):
    model = models[1]
    network = DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8).cuda()
    unmasker = PolicyUnmasker(network, "bernoulli")
    canvas = torch.full((8, 16), model.mask_id, device="cuda")
    environment = UnmaskingEnvironment(model, DecodeOptions(8, patience=4))
    trajectory = sample(environment, Strategy(unmasker, TokenRule()), Prompts(canvas), record=network.inputs).trajectory
    assert trajectory is not None
    again, _ = policy_log_probs(network, unmasker.distribution, trajectory)
    torch.testing.assert_close(again, trajectory.log_positions, atol=1e-4, rtol=1e-4)


def test_an_iteration_of_grpo_on_puzzles(tmp_path):
    """Tokens are decoded on the GPU, and the solutions that tell what was given stay on the CPU."""
    words = [word for word in (*tiny_models(tmp_path)["small"], *GROUPS, *DIT, *QUICK) if word != "device=cpu"]
    directory = run(
        tmp_path / "run", *words, "device=cuda", "algorithm=grpo", "policy=dit_confidence", "sampler.steps=8",
        "training.n_iters=1", "training.eval_freq=1", "wandb.mode=disabled",
    )  # fmt: skip
    assert {"reward", "solved", "eval_solved"} <= record(directory)[1].keys()
