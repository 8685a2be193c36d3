"""Twists on tiny transformers: one pass says what the steps say, what is saved is what is loaded, and what is refused."""

import json

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from dlm.causal_lm import CausalLM
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES, Leftmost
from samplers.smc import particle_filter
from samplers.twisted import TwistedTokens
from tests.enumerable import random_radd, random_sedd
from twist.network import TwistModel, densities, load_twist, save_twist
from twist.potential import TwistPotential
from twist.tail import BeforeTail
from twist.targets import RewardTarget


def tiny_causal(vocabulary=13, width=16, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=33, bos_token_id=0, eos_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    return CausalLM(LlamaForCausalLM(config), 0).requires_grad_(False).eval()


def twist_on(model, **settings):
    torch.manual_seed(1)
    twist = TwistModel(model, **settings)
    for head in (twist.head, twist.state_head):
        if head is not None:
            for layer in (head.last, head.level):
                if layer is not None:
                    torch.nn.init.normal_(layer.weight, std=0.5)
    for name, parameter in twist.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    return twist


def token_sum(tokens):
    return tokens.float().sum(1).sin()


SETTINGS = [{}, {"layers": 3}, {"trunk": "separate"}, {"trunk": "lora", "layers": 2}, {"bounded": True, "level": True}]


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_one_pass_says_what_the_filter_found_step_by_step(settings):
    """Without resampling the weights are log p phi / q of one teacher-forced pass: caches, reordering and all."""
    model, prompt, written = tiny_causal(), 3, 6
    twist = twist_on(model, **settings)
    potential = TwistPotential(twist, RewardTarget(token_sum), particles=5)
    canvas = torch.tensor([[4, 1, 7]]).repeat(2, 1)
    canvas = torch.nn.functional.pad(canvas, (0, written), value=model.mask_id)
    proposal = TwistedTokens(Leftmost(), TokenRule(), potential.logit_bias)
    for resample in ("never", "every"):
        environment = UnmaskingEnvironment(twist.sampled(), DecodeOptions(written))
        found = particle_filter(environment, proposal, potential, Prompts(canvas), 5, resample)
        tokens = found.samples.tokens
        with torch.no_grad():
            log_p, log_psi, log_normalizer = densities(twist, tokens, prompt)
            assert torch.allclose(twist.log_psi_all(tokens, prompt), log_psi, atol=1e-5)
        log_q = log_p + log_psi - log_normalizer
        assert torch.allclose(found.log_phi.float(), token_sum(tokens))
        if resample == "never":
            assert torch.allclose(
                found.weights.log.flatten().float(), (log_p - log_q).sum(1) + token_sum(tokens), atol=1e-4
            )
        else:  # the last weights alone: log mass_T - log psi_T-1 + log phi - log psi_T, whoever the ancestors are
            last = log_normalizer[:, -1] - log_psi[:, -2] + token_sum(tokens) - log_psi[:, -1]
            assert torch.allclose(found.weights.log.flatten().float(), last, atol=1e-4)
        by_model = model.log_probs(tokens)[:, prompt:].gather(2, tokens[:, prompt:, None]).squeeze(2)
        assert torch.allclose(by_model, log_p, atol=1e-4)


def test_particles_that_coincide_share_evaluations():
    model = tiny_causal()
    twist = twist_on(model, trunk="separate")
    potential = TwistPotential(twist, RewardTarget(token_sum), particles=64)
    environment = UnmaskingEnvironment(twist.sampled(), DecodeOptions(4))
    canvas = torch.full((1, 4), model.mask_id)
    particle_filter(
        environment,
        TwistedTokens(Leftmost(), TokenRule(), potential.logit_bias),
        potential,
        Prompts(canvas),
        64,
        "every",
    )
    assert environment.forwards == 4
    assert environment.rows_evaluated <= 1 + 13 + 64 + 64


@pytest.mark.parametrize(
    "settings", [*SETTINGS, {"condition": "tokens"}, {"condition": "class", "classes": 3}], ids=str
)
def test_what_is_saved_is_what_is_loaded(settings, tmp_path):
    model = tiny_causal()
    twist = twist_on(model, **settings)
    save_twist(twist, tmp_path, {"model": "tiny", "method": "ctl"})
    again, about = load_twist(tmp_path, model)
    assert about["model"] == "tiny"
    tokens = torch.randint(13, (4, 7))
    condition = {"tokens": tokens[:, :3], "class": torch.tensor([0, 1, 2, 1])}.get(settings.get("condition"))
    with torch.no_grad():
        given = None if condition is None else twist.encode(condition)
        assert torch.equal(twist.log_psi_all(tokens, 2, given), again.log_psi_all(tokens, 2, given))
        if given is not None:
            assert not torch.equal(twist.log_psi_all(tokens, 2, given), twist.log_psi_all(tokens, 2, given.roll(1, 0)))


def test_a_twist_of_other_weights_is_refused(tmp_path):
    model, other = tiny_causal(), tiny_causal()
    with torch.no_grad():
        next(other.parameters()).add_(1)
    save_twist(twist_on(model), tmp_path, {"model": "tiny", "method": "ctl"})
    with pytest.raises(
        ValueError, match="was trained on the model as it was then, whose weights have changed; give the model"
    ):
        load_twist(tmp_path, other)
    file = tmp_path / "config.json"
    about = json.loads(file.read_text())
    del about["trained_on"]
    file.write_text(json.dumps(about))
    load_twist(tmp_path, other)  # saved before there were fingerprints


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": None}, "has no text as model"),
        ({"method": 3, "prompt": []}, "has no text as method and prompt"),
        ({"twist": {"foo": 1}}, "has twist.foo=1, which is no setting of a twist"),
        ({"twist": {"layers": "x"}}, "has twist.layers='x', which is no setting of a twist"),
    ],
)
def test_a_twist_of_other_settings_is_refused(change, message, tmp_path):
    save_twist(twist_on(tiny_causal()), tmp_path, {"model": "tiny", "method": "ctl"})
    file = tmp_path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        load_twist(tmp_path, tiny_causal())


def test_a_twist_with_a_flipped_bit_is_refused(tmp_path):
    model = tiny_causal()
    save_twist(twist_on(model), tmp_path, {"model": "tiny", "method": "ctl"})
    file = tmp_path / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-4] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"model.safetensors is damaged: its checksum is not that of its tensors"):
        load_twist(tmp_path, model)


def test_a_trained_trunk_learns_and_the_model_stays():
    model = tiny_causal()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    tokens = torch.randint(13, (4, 7))
    for settings in SETTINGS:
        twist = twist_on(model, **settings)
        names = dict(twist.named_parameters())
        log_p, log_psi, log_normalizer = densities(twist, tokens, 2)
        (log_psi.mean() + log_normalizer.mean()).backward()
        trained = [name for name, parameter in names.items() if parameter.requires_grad]
        assert all(names[name].grad is not None for name in trained), [n for n in trained if names[n].grad is None]
        assert any("trunk" in name for name in trained) == ("trunk" in settings)
        assert not log_p.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("tail", [0, 2])
def test_low_rank_updates_of_a_masked_model_are_all_read(tail):
    """Of RADD those of its output projections and MLPs; with text behind that is masked, the same."""
    model = random_radd(width=16, length=8, blocks=2)
    model = BeforeTail(model, tail) if tail else model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    twist = twist_on(model, trunk="lora", layers=2)
    trained = {name: p for name, p in twist.named_parameters() if p.requires_grad}
    added = [name for name in trained if "lora_" in name]
    assert len(added) == 2 * 3 * 2 and not any("attn_qkv" in name for name in added)  # A and B of three layers a block
    with torch.no_grad():
        for name in added:
            trained[name].normal_(std=0.1)  # B is zero at first, and A then without a gradient
    order = torch.zeros(3, 6, dtype=torch.long)
    order[:, 2] = 1
    twist.of_writes(torch.full((3, 6), model.mask_id), order, torch.ones(3, 6, dtype=torch.long)).sum().backward()
    assert all(trained[name].grad.abs().sum() > 0 for name in added)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("trunk", ["own", "separate"])
def test_masked_models_read_the_twist_beside_the_model(trunk):
    model = random_radd(width=16, length=6, blocks=1)
    twist = twist_on(model, trunk=trunk, state=True)
    potential = TwistPotential(twist, RewardTarget(token_sum), particles=4)
    canvas = torch.full((2, 6), model.mask_id)
    for steps, reads_state in ((6, False), (2, True)):
        proposal = TwistedTokens(UNMASKING_RULES["random"](), TokenRule(), potential.logit_bias, reads_state)
        environment = UnmaskingEnvironment(twist.sampled(), DecodeOptions(steps))
        found = particle_filter(environment, proposal, potential, Prompts(canvas), 4, "never")
        tokens, unmasked_at = found.samples.tokens, found.samples.unmasked_at
        assert environment.forwards == steps
        total = token_sum(tokens)
        with torch.no_grad():
            for step in range(steps):
                state = tokens.masked_fill(unmasked_at >= step, model.mask_id)
                order = (unmasked_at == step).long()
                if reads_state:
                    hidden = twist.reader.hidden(state, order > 0)
                    index = tokens[order > 0]
                    log_psi = twist.log_psi_next(hidden)
                    log_p = model.log_probs(state)[order > 0]
                    log_q = (log_p + log_psi).log_softmax(1)
                    each = (log_p - log_q).gather(1, index.unsqueeze(1)).view(len(tokens), -1).sum(1)
                    total = total + each
                else:
                    row, position = (order > 0).nonzero().unbind(1)
                    log_psi = twist.of_writes(state, order, tokens)
                    head = twist.log_psi_next(twist.reader.hidden(state, order > 0))
                    total = total + (model.log_probs(state)[row, position] + head).logsumexp(1) - log_psi
        assert torch.allclose(found.weights.log.flatten().float(), total, atol=1e-3)
        if reads_state:
            some = tokens.masked_fill(unmasked_at >= 1, model.mask_id)
            with torch.no_grad():
                assert len(twist.of_states(some).unique()) > 1


def test_what_is_refused():
    model = tiny_causal()
    with pytest.raises(ValueError, match="twist.trunk='new' is unknown"):
        TwistModel(model, trunk="new")
    with pytest.raises(ValueError, match="classes=1 must be at least 2"):
        TwistModel(model, condition="class", classes=1)
    with pytest.raises(ValueError, match="leave state out"):
        TwistModel(model, state=True)
    with pytest.raises(ValueError, match="layers=0 is none"):
        TwistModel(model, layers=0)
    masked = random_radd(width=16, length=6, blocks=1)
    with pytest.raises(ValueError, match="this one is a SEDD; use separate"):
        TwistModel(random_sedd(), trunk="lora")
    potential = TwistPotential(twist_on(masked), RewardTarget(token_sum), particles=2)
    with pytest.raises(ValueError, match="commits 3 at once; use as many steps as there are masks"):
        particle_filter(UnmaskingEnvironment(masked, DecodeOptions(2)), TwistedTokens(UNMASKING_RULES["random"](), TokenRule(), potential.logit_bias),
                        potential, Prompts(torch.full((1, 6), masked.mask_id)), 2)  # fmt: skip
    with pytest.raises(ValueError, match="temperature 0"):
        TwistedTokens(Leftmost(), TokenRule(0), potential.logit_bias)
