"""Policy networks: parity with the published implementation, sizes, files, errors."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from policy.checkpoints import POLICIES, check_fits, load_policy, save_policy
from policy.networks import DitConfidence, HiddenMLP
from tests.enumerable import RandomLM

VECTORS = Path(__file__).parents[1] / "vectors" / "policy-tiny"
KINDS = [*POLICIES, "dit_projection"]  # the last: a DitConfidence with hidden states, and with repulsion


def size(policy):
    return sum(parameter.numel() for parameter in policy.parameters())


def dit_inputs(rows=5, length=7, best=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        "masked": torch.rand(rows, length, generator=generator) < 0.6,
        "confidences": torch.rand(rows, length, best, generator=generator),
        "time": torch.rand(rows, generator=generator),
    }


def hidden_inputs(rows=5, length=7, width=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, length, width, generator=generator)
    return {"hidden": hidden, "time": torch.rand(rows, generator=generator)}


def agreement_inputs(rows=5, length=7, best=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    masked = torch.rand(rows, length, generator=generator) < 0.6
    likely = torch.rand(rows, length, 9, generator=generator).softmax(-1).topk(best)
    committed = torch.eye(best)[0].expand_as(likely.values)
    return {
        "masked": masked, "top_tokens": likely.indices, "time": torch.rand(rows, generator=generator),
        "probabilities": torch.where(masked[..., None], likely.values, committed),
    }  # fmt: skip


def tiny(kind):
    torch.manual_seed(0)
    if kind == "hidden_mlp":
        return HiddenMLP(hidden_size=6), hidden_inputs()
    sizes = {"hidden_dim": 24, "feedforward_dim": 20, "num_heads": 3, "time_embed_dim": 10, "num_blocks": 2}
    if kind == "dit_confidence":
        return DitConfidence(confidences_top_p=2, **sizes), dit_inputs(best=2)
    if kind == "hidden_blocks":
        inputs = dit_inputs() | {"hidden": hidden_inputs(width=8)["hidden"]}
        policy = POLICIES[kind](hidden_size=8, num_heads=2, time_embed_dim=4)
        return policy, inputs | {"confidences": inputs["confidences"][..., 0]}
    if kind == "dit_hidden":
        policy = POLICIES[kind](8, 4, 12, key_heads=2, biases=True, num_blocks=2, time_embed_dim=4, theta=100.0)
        return policy, {name: value for name, value in dit_inputs().items() if name != "confidences"} | {
            "hidden": hidden_inputs(width=8)["hidden"]
        }
    if kind == "agreement":
        policy = POLICIES[kind](7, relations=2, candidates=2, width=8, top_k=3)
        torch.nn.init.normal_(policy.output_proj.weight)
        return policy, agreement_inputs()
    assert kind == "dit_projection"
    policy = DitConfidence(confidences_top_p=2, hidden_size=6, repulsion=3, **sizes)
    torch.nn.init.normal_(policy.repulsion)
    return policy, dit_inputs(best=2) | {"hidden": hidden_inputs()["hidden"]}


def same(policy, other, inputs):
    """Equal scores, and equal repulsion where there is one."""
    mine, theirs = (getattr(one, "repulsion", None) for one in (policy, other))
    repels_alike = mine is theirs is None or torch.equal(mine, theirs)
    return repels_alike and torch.equal(policy.scores(**inputs), other.scores(**inputs))


# ---------------------------------------------------------------------------------------- the networks


def test_logits_equal_the_published_implementation():
    policy, expected = load_policy(VECTORS), load_file(VECTORS / "expected.safetensors")
    logits = policy(
        masked=expected["masked"].flatten(0, 1),
        confidences=expected["confidences"].flatten(0, 1),
        time=expected["timestep"].flatten(),
    )
    torch.testing.assert_close(logits, expected["logits"].flatten(0, 1), atol=1e-5, rtol=1e-5)


def test_parameter_counts_are_the_published_ones():
    assert size(DitConfidence()) == 331_265
    assert size(HiddenMLP()) == 444_290
    assert size(DitConfidence(value_head=True)) == 331_265 + 129
    assert size(DitConfidence(repulsion=24)) == 331_265 + 24
    for width in (4096, 3584):  # LLaDA-8B and Dream-7B: policy=dit_projection
        assert size(DitConfidence(hidden_size=width)) == 331_265 + 2 * width + (width + 1) * 128 < 1_000_000
    assert size(DitConfidence(hidden_size=768)) == 331_265 + 2 * 768 + 769 * 128  # a norm and a projection


def test_smart_init_starts_every_logit_near_its_value():
    torch.manual_seed(0)
    logits = DitConfidence(smart_init=-2.0)(**dit_inputs())
    assert abs(logits.mean() + 2) < 1.5  # the head's weight keeps its default initialisation
    policy = DitConfidence(smart_init=-2.0)
    assert policy.output_proj.bias.item() == -2.0
    assert policy.transformer_blocks[0].ada_conditioning.weight.abs().sum() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_permuting_the_rows_permutes_the_scores(kind):
    policy, inputs = tiny(kind)
    permutation = torch.tensor([3, 0, 4, 2, 1])
    permuted = policy.scores(**{name: tensor[permutation] for name, tensor in inputs.items()})
    torch.testing.assert_close(permuted, policy.scores(**inputs)[permutation], atol=1e-6, rtol=0)


def test_value_head_leaves_the_logits_alone_and_reads_masked_positions_only():
    torch.manual_seed(0)
    policy, inputs = DitConfidence(hidden_dim=16, feedforward_dim=16, value_head=True), dit_inputs()
    inputs["masked"][2] = False
    logits, value = policy.forward_with_value(**inputs)
    assert torch.equal(logits, policy(**inputs))
    mean = policy.trunk(**inputs)[0][inputs["masked"][0]].mean(dim=0)
    torch.testing.assert_close(value[0], policy.value_proj(mean)[0])
    torch.testing.assert_close(value[2], policy.value_proj.bias[0])
    with pytest.raises(ValueError, match="value_head=True"):
        tiny("dit_confidence")[0].forward_with_value(**dit_inputs(best=2))


@pytest.mark.parametrize("channel, log_probs", [(0, HiddenMLP.masking_log_probs), (1, HiddenMLP.unmasking_log_probs)])
def test_hidden_mlp_is_normalised_over_the_eligible_positions(channel, log_probs):
    logits = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)).requires_grad_()
    eligible = torch.tensor([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0], [0, 0, 1, 0, 0]]).bool()
    result = log_probs(logits, eligible)
    assert (result[~eligible] == -torch.inf).all()
    torch.testing.assert_close(result[0, [0, 1, 3]], logits[0, [0, 1, 3], channel].log_softmax(0))
    assert result[2, 2] == 0
    result[eligible].sum().backward()
    assert logits.grad.isfinite().all() and (logits.grad[~eligible] == 0).all()


@dataclass
class FakeObservation:
    """Junk where nothing was asked for, as a readout may hold."""

    masked: torch.Tensor
    time: torch.Tensor
    asked: torch.Tensor | None = None
    steps: int = 3

    @property
    def to_write(self):
        return torch.full((len(self.masked),), 3)

    def read(self, positions, best):
        self.asked = positions
        log_probs = torch.full((*positions.shape, best), 0.5).log()
        return SimpleNamespace(top_log_probs=log_probs.masked_fill(~positions[..., None], torch.nan))

    def hidden(self, positions):
        self.asked = positions
        return positions[..., None].expand(-1, -1, 6).float()


@pytest.mark.parametrize("read_all", [False, True])
def test_confidences_of_written_positions_are_zero_unless_read_all(read_all):
    observation = FakeObservation(torch.tensor([[True, False, True]]), torch.tensor([0.5]))
    policy = DitConfidence(hidden_dim=8, confidences_top_p=2, read_all=read_all)
    inputs = policy.inputs(observation)
    positions = torch.ones(1, 3, dtype=torch.bool) if read_all else observation.masked
    assert torch.equal(observation.asked, positions)
    assert torch.equal(inputs["confidences"], positions[..., None].expand(-1, -1, 2) * 0.5)
    assert policy.scores(**inputs).isfinite().all()


@pytest.mark.parametrize("read_all", [False, True])
def test_hidden_states_are_read_everywhere_in_the_evaluation_that_gives_the_confidences(read_all):
    model = RandomLM(4)
    canvas = torch.tensor([[4, 1, 4, 3], [0, 4, 4, 4]])
    observation = UnmaskingEnvironment(model, DecodeOptions(2)).reset(Prompts(canvas))
    settings = {"hidden_dim": 8, "confidences_top_p": 2, "read_all": read_all}
    inputs = DitConfidence(hidden_size=1, **settings).inputs(observation)
    environment = observation.environment
    assert environment.evaluations.tolist() == [1, 1] and environment.forwards == 1
    everywhere = torch.ones_like(canvas, dtype=torch.bool)
    assert torch.equal(inputs["hidden"], model.hidden(canvas, everywhere).view(2, 4, 1))
    assert (inputs["hidden"][canvas != 4] != 0).all()
    apart = DitConfidence(**settings).inputs(UnmaskingEnvironment(model, DecodeOptions(2)).reset(Prompts(canvas)))
    assert apart.keys() == inputs.keys() - {"hidden"}
    assert all(torch.equal(inputs[name], value) for name, value in apart.items())


def test_every_hidden_state_moves_the_scores_and_its_scale_hardly_does():
    policy, inputs = tiny("dit_projection")
    scores = policy.scores(**inputs)
    for position in range(7):
        other = inputs["hidden"].clone()
        other[:, position] = other[:, position].flip(-1)
        moved = (policy.scores(**inputs | {"hidden": other}) - scores).abs()
        assert (moved[:, position] > 1e-3).all(), position  # at the position itself, masked or written
    scaled = policy.scores(**inputs | {"hidden": 100 * inputs["hidden"]})  # hidden states are normalised
    torch.testing.assert_close(scaled, scores, atol=1e-3, rtol=0)


def test_hidden_mlp_reads_hidden_states_at_the_masks():
    observation = FakeObservation(torch.tensor([[True, False, True]]), torch.tensor([0.5]))
    inputs = HiddenMLP(6).inputs(observation)
    assert torch.equal(observation.asked, observation.masked)
    assert HiddenMLP(6).scores(**inputs).shape == (1, 3)


@pytest.mark.parametrize("setting", [{"hidden_dim": 6, "num_heads": 2}, {"time_embed_dim": 5}])
def test_impossible_sizes_are_refused(setting):
    with pytest.raises(ValueError, match=str(next(iter(setting.values())))):
        DitConfidence(**setting)


def test_check_fits():
    masked_lm = SimpleNamespace(hidden_size=6, vocab_size=5)
    check_fits(HiddenMLP(6), masked_lm)
    check_fits(DitConfidence(confidences_top_p=4), masked_lm)
    with pytest.raises(ValueError, match="width 8 .* 6 wide"):
        check_fits(HiddenMLP(8), masked_lm)
    check_fits(DitConfidence(hidden_size=6), masked_lm)
    with pytest.raises(ValueError, match="width 8 .* 6 wide"):
        check_fits(DitConfidence(hidden_size=8), masked_lm)
    with pytest.raises(ValueError, match="confidences_top_p 5 exceeds the 4 tokens"):
        check_fits(DitConfidence(confidences_top_p=5), masked_lm)


# ---------------------------------------------------------------------------------------- files


@pytest.mark.parametrize("kind", KINDS)
def test_save_and_load(kind, tmp_path):
    policy, inputs = tiny(kind)
    policy_type = kind if kind in POLICIES else "dit_confidence"
    save_policy(policy, tmp_path / "float32")
    assert same(load_policy(tmp_path / "float32"), policy, inputs)
    assert same(POLICIES[policy_type].from_pretrained(tmp_path / "float32"), policy, inputs)
    assert json.loads((tmp_path / "float32" / "config.json").read_text())["policy_type"] == policy_type
    assert sorted(file.name for file in (tmp_path / "float32").iterdir()) == ["config.json", "model.safetensors"]

    save_policy(policy, tmp_path / "bfloat16", dtype=torch.bfloat16)
    loaded = load_policy(tmp_path / "bfloat16")
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(loaded.scores(**inputs), policy.scores(**inputs), atol=0.05, rtol=0.05)
    assert not same(loaded, policy, inputs)

    policy.save_pretrained(tmp_path / "hub")
    assert json.loads((tmp_path / "hub" / "config.json").read_text())["policy_type"] == policy_type
    assert same(load_policy(tmp_path / "hub"), policy, inputs)


def test_arguments_that_no_shape_tells_come_back(tmp_path):
    save_policy(DitConfidence(hidden_dim=8, time_period=100, read_all=True, value_head=True, smart_init=-2.0), tmp_path)
    loaded = load_policy(tmp_path)
    assert loaded.time_period == 100 and loaded.read_all and loaded.value_proj is not None
    assert loaded.config["smart_init"] == -2.0


@pytest.mark.parametrize("kind", KINDS)
def test_the_architecture_is_read_off_the_shapes_where_the_config_is_gone(kind, tmp_path):
    policy, inputs = tiny(kind)
    save_policy(policy, tmp_path)
    (tmp_path / "config.json").unlink()
    if kind == "dit_hidden":  # how many heads: no shape tells
        (tmp_path / "config.json").write_text('{"num_heads": 4, "key_heads": 2, "biases": true, "theta": 100.0}')
    loaded = load_policy(tmp_path)
    assert same(loaded, policy, inputs) and loaded.hidden_size == policy.hidden_size


@pytest.mark.parametrize("config", [None, {}, {"architectures": ["Wrapper"], "model_type": ""}])
def test_published_checkpoint_without_a_config_of_ours(config, tmp_path):
    save_file(load_file(VECTORS / "model.safetensors"), tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    policy, inputs = load_policy(tmp_path), dit_inputs(best=4)
    assert same(policy, load_policy(VECTORS), inputs)
    assert policy.read_all and policy.transformer_blocks[0].num_heads == 2
    assert same(load_policy(tmp_path / "model.safetensors"), policy, inputs)
    save_policy(policy, tmp_path / "ours")
    assert same(load_policy(tmp_path / "ours"), policy, inputs) and load_policy(tmp_path / "ours").read_all


def checkpoint_of(policy, **more):
    return {"optimizer": {"state": {}, "param_groups": []}, "policy_model": policy.state_dict(), "step": 3, **more}


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "dit_hidden"])  # that one needs its configuration
def test_pth_prefers_the_moving_average(kind, tmp_path):
    policy, inputs = tiny(kind)
    average = [parameter * 0.5 for parameter in policy.parameters()]
    ema = {"decay": 0.9999, "num_updates": 3, "shadow_params": average}
    torch.save(checkpoint_of(policy, ema=ema), tmp_path / "with.pth")
    torch.save(checkpoint_of(policy), tmp_path / "without.pth")
    loaded = load_policy(tmp_path / "with.pth")
    assert all(torch.equal(parameter, shadow) for parameter, shadow in zip(loaded.parameters(), average, strict=True))
    assert same(load_policy(tmp_path / "with.pth", use_ema=False), policy, inputs)
    assert same(load_policy(tmp_path / "without.pth"), policy, inputs)

    ema["shadow_params"] = average[1:]
    torch.save(checkpoint_of(policy, ema=ema), tmp_path / "with.pth")
    with pytest.raises(ValueError, match="use_ema=False"):
        load_policy(tmp_path / "with.pth")


def test_run_directory(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for number in (2, 10, 9):
        torch.save(checkpoint_of(HiddenMLP(number)), tmp_path / "checkpoints" / f"checkpoint_{number}.pth")
    torch.save({}, tmp_path / "checkpoints" / "checkpoint_last.pth")
    assert load_policy(tmp_path).hidden_size == 10  # newest by number, not by name
    save_policy(HiddenMLP(4), tmp_path / "policy")
    assert load_policy(tmp_path).hidden_size == 4


def test_config_inside_a_pth(tmp_path):
    policy = DitConfidence(hidden_dim=8, time_period=100)
    torch.save(checkpoint_of(policy, config=policy.config), tmp_path / "policy.pth")
    assert load_policy(tmp_path / "policy.pth").time_period == 100


def test_a_policy_of_the_hub(tmp_path, monkeypatch):
    policy = DitConfidence(hidden_dim=8, confidences_top_p=3)
    save_policy(policy, tmp_path)
    monkeypatch.setattr("dlm.checkpoints.files.prepare", lambda *name: None)
    monkeypatch.setattr(
        "dlm.checkpoints.files.hf_hub_download",
        lambda folder, name: tmp_path / name if folder == "owner/name" else None,
    )
    loaded = load_policy("owner/name")
    assert loaded.confidences_top_p == 3
    for name, tensor in policy.state_dict().items():
        torch.testing.assert_close(loaded.state_dict()[name], tensor)


# ---------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("place", ["nowhere", ".", "notes.txt"])
def test_a_path_without_a_policy(place, tmp_path):
    (tmp_path / "notes.txt").write_text("no policy")
    with pytest.raises(ValueError, match="holds no policy: expected .*policy/model.safetensors"):
        load_policy(tmp_path / place)


def test_a_pth_without_a_policy(tmp_path):
    torch.save({"model": {}, "step": 1}, tmp_path / "backbone.pth")
    with pytest.raises(ValueError, match=r"found \['model', 'step'\], expected 'policy_model'"):
        load_policy(tmp_path / "backbone.pth")


def test_unknown_policy_type_names_the_nearest(tmp_path):
    save_policy(HiddenMLP(4), tmp_path)
    (tmp_path / "config.json").write_text('{"policy_type": "hiden_mlp"}')
    with pytest.raises(ValueError, match="'hiden_mlp'.*did you mean 'hidden_mlp'"):
        load_policy(tmp_path)


def test_missing_unexpected_and_reshaped_keys_are_listed(tmp_path):
    policy, _ = tiny("dit_confidence")
    weights = policy.state_dict()
    weights["stranger"] = weights.pop("output_proj.bias")
    weights["final_norm.bias"] = torch.zeros(3)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError) as error:
        load_policy(tmp_path)
    for part in ("missing keys ['output_proj.bias']", "unexpected keys ['stranger']", "final_norm.bias (3,) for (24,)"):
        assert part in str(error.value)


def test_weights_of_another_kind(tmp_path):
    save_file({"transformer.wte.weight": torch.zeros(4, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="holds no policy: found .*wte.*a backbone is given to --model"):
        load_policy(tmp_path)


def test_hidden_size_asked_for(tmp_path):
    save_policy(HiddenMLP(4), tmp_path)
    assert load_policy(tmp_path, hidden_size=4).hidden_size == 4
    with pytest.raises(ValueError, match="width 4, expected 8"):
        load_policy(tmp_path, hidden_size=8)
    save_policy(tiny("dit_projection")[0], tmp_path)
    assert load_policy(tmp_path, hidden_size=6).hidden_size == 6
    with pytest.raises(ValueError, match="width 6, expected 8"):
        load_policy(tmp_path, hidden_size=8)
    save_policy(DitConfidence(hidden_dim=8), tmp_path)
    assert load_policy(tmp_path, hidden_size=8).hidden_size == 0  # fits any width
