"""The hidden-state policy: parity with the published one, other backbones, what is stored, refusals."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import unmask.build
from data.tasks import Prompts
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from load_model import load_model
from policy.checkpoints import check_fits, load_policy, save_policy
from policy.dit_hidden import DitHidden, block_sizes
from policy.rollout import policy_log_probs, rollout
from policy.settings import PolicyTrainingSettings
from policy.unmasker import PolicyUnmasker
from rewards.rules import RewardOutput
from tests.enumerable import random_radd
from tests.helpers.rewards import SamplesReward

VECTORS = Path(__file__).parents[1] / "vectors"
HIDDEN = VECTORS / "policy-tiny" / "hidden_model.safetensors"
EXPECTED = VECTORS / "policy-tiny" / "hidden_expected.safetensors"


@pytest.fixture
def published(tmp_path):
    """As it is published: the weights alone."""
    save_file(load_file(HIDDEN), tmp_path / "model.safetensors")
    return tmp_path


def test_logits_equal_the_published_implementation(published):
    """From the tokens on: the hidden states are our model's."""
    model, _ = load_model(VECTORS / "llada-tiny")
    expected = load_file(EXPECTED)
    policy = load_policy(published, model=model)
    assert isinstance(policy, DitHidden)
    ours = policy.inputs(UnmaskingEnvironment(model, DecodeOptions(4)).reset(Prompts(expected["tokens"])))
    torch.testing.assert_close(ours["hidden"], expected["hidden_states"], atol=1e-5, rtol=1e-5)
    given = {"time": expected["timestep"].squeeze(1), "masked": expected["masked"]}
    for hidden in (ours["hidden"], expected["hidden_states"]):
        torch.testing.assert_close(policy.scores(hidden=hidden, **given), expected["logits"], atol=1e-5, rtol=1e-5)
    save_policy(policy, published / "ours")  # knows its heads from then on
    again = load_policy(published / "ours")
    assert torch.equal(again.scores(hidden=hidden, **given), policy.scores(hidden=hidden, **given))


def test_published_weights_need_the_model_that_they_are_of(published):
    with pytest.raises(ValueError, match="how many heads .* give the model that it was trained on"):
        load_policy(published)
    with pytest.raises(ValueError, match="how many heads"):
        load_policy(published, model=random_radd(width=32))
    model, _ = load_model(VECTORS / "llada-tiny")
    with pytest.raises(ValueError, match="width 16 .* 32 wide"):
        check_fits(DitHidden(16, 2, 24), model)


def test_the_published_size():
    with torch.device("meta"):
        policy = DitHidden(4096, 32, 12_288)
    assert sum(parameter.numel() for parameter in policy.parameters()) == 302_575_617


def config_of(policy, **more):
    return PolicyTrainingSettings.of({
        "init": None, "init_trust": None, "policy": {"policy_type": "dit_hidden", "num_heads": None, "mlp_size": None, "smart_init": -2.0} | policy,
        "algorithm": {"name": "ppo"}, "dlm": {"path": "a model"}, "reward": {"name": "right", "alphas": None},
    })  # fmt: skip


@pytest.mark.parametrize("name", ["llada-tiny", "dream-tiny"])
def test_the_block_is_the_models_own_and_starts_at_the_smart_init(name):
    model, _ = load_model(VECTORS / name)
    policy = unmask.build.build_policy(config_of({}), model)
    own = model.backbone.blocks[0].state_dict()
    policy.transformer_blocks[0].load_state_dict(own)  # the same names and shapes
    assert policy.config["num_heads"] == block_sizes(model)["num_heads"] == 4
    with torch.no_grad():
        policy.output_proj.weight.zero_()
    canvas = torch.full((3, 8), model.mask_id)
    logits, value = policy.forward_with_value(
        **policy.inputs(UnmaskingEnvironment(model, DecodeOptions(4)).reset(Prompts(canvas)))
    )
    assert torch.equal(logits, torch.full((3, 8), -2.0)) and value.shape == (3,)


def test_another_backbone_gives_the_sizes_or_is_refused():
    model = random_radd(width=16)
    policy = unmask.build.build_policy(config_of({"num_heads": 2, "mlp_size": 24}), model)
    assert policy.inputs(
        UnmaskingEnvironment(model, DecodeOptions(4)).reset(Prompts(torch.full((2, 8), model.mask_id)))
    )["hidden"].shape == (
        2,
        8,
        16,
    )
    with pytest.raises(ValueError, match=r"a model is neither; give policy.num_heads=4"):
        unmask.build.build_policy(config_of({"num_heads": 2}), model)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_hidden_states_are_kept_of_active_rows_behind_the_prompt_in_the_models_precision(dtype):
    model, _ = load_model(VECTORS / "llada-tiny", dtype=dtype)
    torch.manual_seed(0)
    policy = DitHidden(32, **block_sizes(model), smart_init=0.0)
    prompts = Prompts(torch.cat((torch.full((6, 5), 3), torch.full((6, 9), model.mask_id)), 1), {}, prompt_length=5)
    unmasker = PolicyUnmasker(policy, "bernoulli")
    reward = SamplesReward(lambda samples, rows: RewardOutput(torch.zeros(6)))
    samples, _ = rollout(model, unmasker, TokenRule(0.0), prompts, DecodeOptions(1), reward, 0, record=True)
    trajectory = samples.trajectory
    hidden = trajectory.inputs["hidden"]
    assert hidden.shape == (int(samples.steps.sum()), 9, 32) and hidden.dtype == getattr(torch, dtype)
    assert samples.steps.unique().numel() > 1  # rows leave at different steps
    with torch.no_grad():
        again, _ = policy_log_probs(policy, unmasker.distribution, trajectory)
    torch.testing.assert_close(again, trajectory.log_positions, atol=2e-5, rtol=0)
