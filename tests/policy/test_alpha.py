"""Policies that are told the weight of speed: the input, old files, rows, rewards, refusals."""

import json
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from data.tasks import Prompts
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from policy.agreement import Agreement
from policy.batches import budgets, with_alpha
from policy.checkpoints import load_policy, save_policy
from policy.dit_hidden import DitHidden
from policy.networks import DitConfidence, HiddenBlocks, HiddenMLP
from policy.rollout import rollout
from policy.settings import PolicyTrainingSettings
from policy.unmasker import PolicyUnmasker, check_alpha
from rewards.bound import BoundReward
from rewards.rules import RewardOutput, VerifiedReward, speed_factor
from rewards.settings import RightSettings
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM
from tests.helpers.rewards import SamplesReward
from unmask.build import check_alphas

MODEL = RandomLM(5, max_length=8)
BLANK = torch.full((6, 8), MODEL.mask_id)
ALPHAS = torch.tensor([0.0, 3.0, 0.3, 1.0, 0.0, 10.0])
KINDS = {
    "dit_confidence": lambda **more: DitConfidence(hidden_dim=8, feedforward_dim=8, time_embed_dim=4, **more),
    "dit_hidden": lambda **more: DitHidden(8, 2, 12, time_embed_dim=4, **more),
    "hidden_blocks": lambda **more: HiddenBlocks(8, 2, 1, time_embed_dim=4, **more),
    "agreement": lambda **more: Agreement(8, 2, 2, 8, top_k=3, **more),
}


def network_of(kind, **more):
    torch.manual_seed(0)
    network = KINDS[kind](**more)
    if kind == "agreement":  # whose output layer starts at zero
        torch.nn.init.normal_(network.output_proj.weight)
    return network


def inputs_of(kind):
    generator = torch.Generator().manual_seed(1)
    inputs = {"masked": torch.rand(6, 8, generator=generator) < 0.7, "time": torch.rand(6, generator=generator)}
    if kind == "agreement":
        likely = torch.rand(6, 8, 9, generator=generator).softmax(-1).topk(3)
        return inputs | {"top_tokens": likely.indices, "probabilities": likely.values}
    if kind != "dit_confidence":
        inputs["hidden"] = torch.randn(6, 8, 8, generator=generator)
    if kind != "dit_hidden":
        confidences = torch.rand(6, 8, 1, generator=generator)
        inputs["confidences"] = confidences.squeeze(2) if kind == "hidden_blocks" else confidences
    return inputs


@pytest.mark.parametrize("kind", KINDS)
def test_alpha_changes_nothing_at_first_and_every_row_by_itself_once_learnt(kind):
    network, inputs = network_of(kind, alpha_conditioned=True), inputs_of(kind)
    plain = network_of(kind)
    plain.load_state_dict({name: value for name, value in network.state_dict().items() if "alpha" not in name})
    torch.testing.assert_close(network.scores(**inputs, alpha=ALPHAS), plain.scores(**inputs), atol=1e-6, rtol=0)
    network.scores(**inputs, alpha=ALPHAS).sum().backward()
    assert (network.alpha_embedding[2].weight.grad != 0).any()
    torch.nn.init.normal_(network.alpha_embedding[2].weight)
    scores = network.scores(**inputs, alpha=ALPHAS)
    assert ((scores - plain.scores(**inputs)).abs().amax(1)[ALPHAS > 0] > 1e-3).all()
    moved = network.scores(**inputs, alpha=torch.where(torch.arange(6) == 2, 5.0, ALPHAS))
    changed = (moved - scores).abs().amax(1) > 1e-5
    assert changed.tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_the_architecture_is_in_the_config_and_files_from_before_load(kind, tmp_path):
    save_policy(network_of(kind, alpha_conditioned=True), tmp_path / "new")
    assert load_policy(tmp_path / "new").alpha_embedding is not None
    save_policy(network_of(kind), tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    config.pop("alpha_conditioned")
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    assert load_policy(tmp_path / "old").alpha_embedding is None
    assert not any("alpha" in name for name in load_file(tmp_path / "old" / "model.safetensors"))


def test_each_row_is_decoded_by_its_own_alpha_whoever_is_in_its_batch():
    network = network_of("dit_confidence", alpha_conditioned=True)
    torch.nn.init.normal_(network.alpha_embedding[2].weight, std=3.0)
    strategy, seen = Strategy(PolicyUnmasker(network, "bernoulli_argmax"), TokenRule(0.0)), []
    record = lambda observation: seen.append((observation.row_id, observation.alpha)) or network.inputs(observation)
    whole = sample(UnmaskingEnvironment(MODEL, DecodeOptions(8, alpha=ALPHAS)), strategy, Prompts(BLANK), record=record)
    assert torch.equal(whole.trajectory.inputs["alpha"], ALPHAS[whole.trajectory.row])
    assert len({len(row) for row, _ in seen}) > 1 and all(torch.equal(ALPHAS[row], alpha) for row, alpha in seen)
    for row in range(6):
        environment = UnmaskingEnvironment(MODEL, DecodeOptions(8, alpha=float(ALPHAS[row])))
        alone = sample(environment, strategy, Prompts(BLANK[:1]), row_id=torch.tensor([row]))
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]
    with pytest.raises(ValueError, match="trained for many weights of speed and needs one"):
        sample(UnmaskingEnvironment(MODEL, DecodeOptions(8)), strategy, Prompts(BLANK))


def test_a_reward_counts_speed_by_the_alpha_of_the_row():
    evaluations = torch.tensor([1, 2, 4, 8, 8, 3])
    each = [float(speed_factor(evaluations[i : i + 1], 8, float(alpha))) for i, alpha in enumerate(ALPHAS)]
    torch.testing.assert_close(speed_factor(evaluations, 8, ALPHAS), torch.tensor(each))
    task = SimpleNamespace(datasets=["own"], right=lambda tokens, rows: torch.ones(6), written=lambda tokens: [])
    reward = VerifiedReward(task, 1.0, ["correct_times_speed"], [1.0])
    finished = SimpleNamespace(tokens=BLANK, prompt=MODEL.mask_id != BLANK, evaluations=evaluations)
    assert reward(finished, {"alpha": ALPHAS}).total.tolist() == pytest.approx(each)
    assert torch.equal(reward(finished, {}).total, speed_factor(evaluations, 8, 1.0))


def test_a_prompt_shares_its_alpha_with_its_group_and_policy_and_reward_see_the_same():
    speed = RightSettings(alphas=[0, 0.3, 3])
    prompts = with_alpha(Prompts(BLANK[:4], {}), speed.weights_of_speed, seed=5).repeat(3)
    drawn = prompts.rows["alpha"]
    assert torch.equal(drawn, drawn[::3].repeat_interleave(3)) and len(drawn.unique()) > 1
    network = network_of("dit_confidence", alpha_conditioned=True)
    heard = []
    reward = SamplesReward(lambda samples, rows: heard.append(rows["alpha"]) or RewardOutput(torch.zeros(12)))
    samples, _ = rollout(
        MODEL, PolicyUnmasker(network, "bernoulli"), TokenRule(0.0), prompts, DecodeOptions(1), reward, 0, True
    )
    assert torch.equal(heard[0], drawn) and torch.equal(
        samples.trajectory.inputs["alpha"], drawn[samples.trajectory.row]
    )
    evenly = with_alpha(Prompts(BLANK, {}), speed.weights_of_speed).rows["alpha"]
    torch.testing.assert_close(evenly, torch.tensor([0, 0.3, 3, 0, 0.3, 3]))
    without = RightSettings(alpha=1).weights_of_speed
    assert "alpha" not in with_alpha(Prompts(BLANK, {}), without).rows


def test_what_does_not_go_together_is_refused():
    told, plain = network_of("dit_confidence", alpha_conditioned=True), network_of("dit_confidence")
    for network, alpha, message in (
        (told, None, "alpha is None; give a number of at least 0: sampler.alpha=1"),
        (told, -1, "alpha is -1"),
        (plain, 1, "alpha=1 is read by policies that were trained with reward.alphas only"),
        (None, 0.5, "alpha=0.5 is read by policies"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alpha(network, alpha)
    check_alpha(told, 0), check_alpha(plain, None), check_alpha(None, None)
    config = lambda alphas, name="grpo": PolicyTrainingSettings.of(
        {"algorithm": {"name": name}, "reward": {"name": "right", "alphas": alphas}}
    )
    reward = SamplesReward(lambda samples, rows: None)
    for given, network, judge, message in (
        (config(None), told, reward, r"give values to draw from: reward.alphas=\[0,0.3,1,3\]"),
        (config([1]), HiddenMLP(4), reward, "a policy that can read it"),
        (config([1]), told, BoundReward(), "a reward with a speed factor"),
        (config([1], "variational"), told, reward, "goes with grpo, ppo and imitation"),
    ):
        with pytest.raises(ValueError, match=message):
            check_alphas(given, network, judge)


def test_a_negative_weight_of_speed_is_refused():
    with pytest.raises(ValueError, match=r"reward.alphas=\[1, -1\] must be .* of at least 0"):
        RightSettings(alphas=[1, -1])


def test_weights_of_speed_are_drawn_apart_from_budgets():
    """Else a policy meets each weight of speed with one budget alone."""
    prompts = Prompts(torch.zeros(64, 2, dtype=torch.long), {})
    alpha = with_alpha(prompts, [0, 1, 2, 3], 5).rows["alpha"]
    assert len(torch.stack((alpha.long(), budgets([0, 1, 2, 3], 64, torch.device("cpu"), 5))).unique(dim=1)[0]) > 10
