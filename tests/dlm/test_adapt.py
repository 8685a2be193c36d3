"""From causal to diffusion: with nothing trained and nothing ahead seen it is the causal model, shifted; how attention opens; adapters."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
)

import unmask.build
from dlm.adapt import AdapterLM, adapter_config, ahead_at, dream_config, give_mask, mask_of
from dlm.causal_lm import CausalLM
from dlm.checkpoints.adapter import load_bidirectional
from dlm.checkpoints.saving import save_model
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.fingerprint import fingerprint_of
from dlm.masked_lm import LlamaLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from load_model import load_model
from policy.checkpoints import check_fits
from policy.networks import DitConfidence, HiddenMLP
from policy.settings import PolicyTrainingSettings
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from samplers.settings import RULE_SETTINGS
from training.hub import ROOT
from training.usage import composed
from unmask.runs import train_dlm

SHAPE = {"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
         "num_key_value_heads": 2, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 0, "rms_norm_eps": 1e-6,
         "rope_parameters": {"rope_type": "default", "rope_theta": 12_345.0}}  # fmt: skip
KINDS = {
    "llama": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": False}),
    "llama-tied": (LlamaForCausalLM, LlamaConfig, {"tie_word_embeddings": True}),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": False}),
    "qwen2-tied": (Qwen2ForCausalLM, Qwen2Config, {"tie_word_embeddings": True}),
}
TOKENIZER = ROOT / "data" / "stories" / "tokenizer"


def causal_model(directory, kind, **more):
    """A random causal model with biases that are not zero, saved by transformers."""
    torch.manual_seed(1)
    network, settings, of_kind = KINDS[kind]
    model = network(settings(**{**SHAPE, **of_kind, **more})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(1.0 if parameter.dim() == 1 else 0.0, 0.25)
    model.save_pretrained(directory)
    return model


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """{kind: (directory, the model of transformers)}, made once and only read."""
    root = tmp_path_factory.mktemp("bases")
    return {kind: (root / kind, causal_model(root / kind, kind)) for kind in KINDS}


def adapted(directory, mask_id=40, **more):
    model = load_bidirectional(str(directory), **more)
    give_mask(model, mask_id)
    return model


# ------------------------------------------------------------------------------------------------- what is not changed


@pytest.mark.parametrize("kind", KINDS)
def test_with_nothing_ahead_seen_it_is_the_causal_model_shifted_by_one(bases, kind):
    """log p(token at j | tokens before j) at every j > 0, with a mask at j and everything that follows; the mask's own column
    takes no part."""
    directory, causal = bases[kind]
    model = adapted(directory).train()
    model.backbone.ahead = 0.0
    tokens = torch.randint(40, (3, 12))
    with torch.no_grad():
        known = causal(input_ids=tokens).logits.log_softmax(-1)
        assert (model.log_probs(tokens)[:, 1:, :40] - known[:, :-1]).abs().max() < 1e-4
        for place in range(1, 12):
            canvas = tokens.masked_fill(torch.arange(12) >= place, model.mask_id)
            log_probs = model.log_probs(canvas)[:, place]
            assert (log_probs[:, :40] - known[:, place - 1]).abs().max() < 1e-4
            assert (log_probs[:, 40] == -torch.inf).all()


@pytest.mark.parametrize("kind", KINDS)
def test_with_all_seen_it_is_the_causal_models_network_without_its_mask(bases, kind):
    directory, causal = bases[kind]
    model = adapted(directory)
    tokens = torch.randint(40, (3, 12))
    everything = torch.zeros(3, 1, 12, 12)  # added to the scores
    with torch.no_grad():
        known = causal(input_ids=tokens, attention_mask=everything).logits.log_softmax(-1)
        assert (model.log_probs(tokens)[:, 1:, :40] - known[:, :-1]).abs().max() < 1e-4
        assert (causal(input_ids=tokens).logits.log_softmax(-1) - known).abs().max() > 1e-2  # else nothing was tested


def test_a_zero_step_model_agrees_with_the_causal_one_that_we_load(bases):
    directory, _ = bases["llama-tied"]
    causal, model = load_model(directory)[0], adapted(directory).train()
    assert isinstance(causal, CausalLM)
    model.backbone.ahead = 0.0
    tokens = torch.randint(40, (2, 9))
    started = torch.cat((torch.full((2, 1), causal.start_id), tokens), 1)
    assert (model.log_probs(started)[:, 1:, :40] - causal.log_probs(tokens)).abs().max() < 1e-4


# ----------------------------------------------------------------------------------------------------------- the mask


@pytest.mark.parametrize("kind", ["llama", "llama-tied"])
def test_the_masks_row_is_the_mean_of_all_and_a_new_one_or_one_to_spare(bases, kind):
    directory, causal = bases[kind]
    for mask_id, columns in ((40, 41), (37, 40)):
        model = adapted(directory, mask_id)
        assert (model.vocab_size, model.mask_id, model.backbone.shape.columns) == (columns, mask_id, columns)
        table = causal.model.embed_tokens.weight
        torch.testing.assert_close(model.backbone.embed.weight[mask_id], table.mean(0))
        others = torch.arange(40) != mask_id
        assert torch.equal(model.backbone.embed.weight[:40][others], table[others])
        assert (model.backbone.head.weight is model.backbone.embed.weight) == (kind == "llama-tied")
        assert model.config["vocab_size"] == columns and model.config["mask_token_id"] == mask_id
    with pytest.raises(ValueError, match="the mask would be token 43 and the model has rows for 40"):
        adapted(directory, 43)


def test_the_tokenizers_mask_is_its_own_or_the_next_token():
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    size = len(tokenizer)
    assert mask_of(tokenizer) == size == tokenizer.mask_token_id and len(tokenizer) == size + 1
    assert mask_of(tokenizer) == size
    assert tokenizer.encode("<|mask|>", add_special_tokens=False) == [size]  # so that a prompt that holds it is refused
    with pytest.raises(ValueError, match="this data has no tokenizer"):
        mask_of(None)


# ------------------------------------------------------------------------------------------------- attention that opens


def test_the_share_of_what_follows_that_is_seen():
    assert [ahead_at(step, 4) for step in range(7)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert ahead_at(0, 0) == 1.0
    with torch.device("meta"):
        backbone = train_dlm.build_model(
            {"model_type": "Dream", **SHAPE, "rope_theta": 1e4, "tie_word_embeddings": True, "mask_token_id": 5},
            "float32",
            None,
        )[0].backbone
    backbone.train().ahead = 0.25
    torch.manual_seed(0)
    seen = torch.stack([backbone.attention(9, torch.device("cpu")) for _ in range(4000)])
    causal = torch.ones(9, 9, dtype=torch.bool).tril()
    assert seen[:, causal].all()
    assert (seen[:, ~causal].float().mean(0) - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / 4000) ** 0.5
    assert backbone.eval().attention(9, torch.device("cpu")) is None  # evaluation sees all


# ------------------------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    "more, message",
    [
        ({"model_type": "gpt2"}, "type gpt2 cannot be made a masked one, only llama and qwen2 can"),
        ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.0}}, "rope_type.*linear"),
        ({"head_dim": 16}, "'head_dim': 16.*'head_dim': 8"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
    ],
)
def test_a_model_of_another_shape_is_refused(more, message):
    with pytest.raises(ValueError, match=message):
        dream_config({"model_type": "llama", **SHAPE} | more)


def test_a_canvas_longer_than_the_context_is_refused():
    assert dream_config({"model_type": "llama", **SHAPE}, 20)["max_position_embeddings"] == 20
    with pytest.raises(ValueError, match="adapt.length=25 must be from 1 to the model's 24"):
        dream_config({"model_type": "llama", **SHAPE}, 25)


# ------------------------------------------------------------------------------------------------------------- adapters


def random_adapter(directory, mask_id=40, rank=4):
    """A model with an adapter that does something."""
    lora = adapter_config(str(directory), mask_id, rank, 8, 0.0, ["q_proj", "v_proj", "o_proj", "down_proj"])
    model = AdapterLM(adapted(directory, mask_id), lora)
    generator = torch.Generator().manual_seed(5)
    for tensor in model.backbone_state().values():
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_comes_back_merged_as_it_was_saved(bases, kind, tmp_path):
    directory, _ = bases[kind]
    model = random_adapter(directory)
    tokens = torch.randint(41, (3, 12))
    known = model.log_probs(tokens).detach()
    assert (known - adapted(directory).log_probs(tokens)).nan_to_num().abs().max() > 0.1  # it does something
    save_model(model, model.config, tmp_path, torch.float32)
    assert {file.name for file in tmp_path.iterdir()} == {
        "config.json",
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    again, noise = load_model(tmp_path, model_type="Dream")
    assert type(again) is LlamaLM and noise is not None and again.mask_id == 40 and not again.training
    assert not any("lora" in name for name, _ in again.named_parameters())
    assert not any(parameter.requires_grad for parameter in again.parameters())
    assert (again.backbone.head.weight is again.backbone.embed.weight) == kind.endswith("tied")
    assert (again.log_probs(tokens) - known).nan_to_num().abs().max() < 1e-4
    assert torch.equal(again.log_probs(tokens), model.merged().log_probs(tokens))
    assert "peft_type" not in again.config  # saved from here on, it is a whole model
    half, _ = load_model(tmp_path, dtype="bfloat16")
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing`:FutureWarning"
)  # peft asks transformers for its old name
def test_peft_reads_the_adapter_on_the_model_of_transformers(bases, tmp_path):
    """With causal attention peft's model and ours are the same."""
    from peft import PeftModel

    directory, _ = bases["llama"]
    model = random_adapter(directory)
    save_model(model, model.config, tmp_path, torch.float32)
    causal = LlamaForCausalLM.from_pretrained(directory)
    causal.resize_token_embeddings(41, mean_resizing=False)
    theirs = PeftModel.from_pretrained(causal, tmp_path).eval()
    model.train().backbone.ahead = 0.0
    tokens = torch.randint(41, (2, 10))
    tokens[0, 4] = 40
    with torch.no_grad():
        known = theirs(input_ids=tokens).logits[..., :40].log_softmax(-1)
        assert (model.log_probs(tokens)[:, 1:, :40] - known[:, :-1]).abs().max() < 1e-4


def test_a_base_that_is_gone_or_another_one_is_named(bases, tmp_path):
    shutil.copytree(bases["llama"][0], tmp_path / "base")
    model = random_adapter(tmp_path / "base")
    save_model(model, model.config, tmp_path / "adapter", torch.float32)
    load_model(tmp_path / "adapter")
    causal_model(tmp_path / "base", "llama", num_hidden_layers=2)
    with pytest.raises(ValueError, match="made for another base than .*base: config.json differs in num_hidden_layers"):
        load_model(tmp_path / "adapter")
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(
        ValueError, match=r"is an adapter and its base .*base cannot be had .*; set base_model_name_or_path in .*json"
    ):
        load_model(tmp_path / "adapter")


def test_an_adapter_without_a_tokenizer_has_that_of_its_base_and_the_mask(bases, tmp_path):
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(bases["llama"][0], base)
    model = random_adapter(base)
    save_model(model, model.config, adapter, torch.float32)
    for words in (40, 39):
        vocabulary = {f"w{number}": number for number in range(words)}
        tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="w0"))
        tokenizer.pre_tokenizer = WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
        PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(base)
        if words == 40:
            found = load_model(adapter)[0].tokenizer
            assert found.encode("w3 w39") == [3, 39] and found.mask_token_id == 40 == len(found) - 1
            continue
        with pytest.raises(ValueError, match="the tokenizer of .*base has its mask at 39 and .*adapter at 40"):
            load_model(adapter)


def test_a_policy_learns_on_a_model_whose_table_has_spare_rows(bases, tmp_path):
    """The mask is one of them: there are fewer tokens than rows and one more than before the mask."""
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shutil.copytree(bases["llama"][0], base)
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(37)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="w1").save_pretrained(base)
    model = random_adapter(base, mask_id=37)
    assert mask_of(model.tokenizer) == 37
    save_model(model, model.config, adapter, torch.float32)
    loaded, _ = load_model(adapter)
    assert (loaded.mask_id, loaded.vocab_size, len(loaded.tokenizer)) == (37, 40, 38)
    config = composed("train_policy", ["data.tokenizer=model", "sampler.length=8", "eval.batch_size=2"])
    settings = unmask.build.read_settings(PolicyTrainingSettings, config)
    unmask.build.check_data(settings, loaded, unmask.build.build_task(settings, loaded))


def test_an_adapter_is_the_same_model_in_every_precision_and_another_than_its_base(bases, tmp_path):
    """A merged weight rounds by the precision of its base: base and adapter are compared as they were read."""
    model = random_adapter(bases["llama"][0])
    begun, base = (
        fingerprint_of(AdapterLM(adapted(bases["llama"][0]), model.adapter)),
        fingerprint_of(adapted(bases["llama"][0])),
    )
    assert begun.difference(base) == ""
    save_model(model, model.config, tmp_path, torch.float32)
    one, other = (fingerprint_of(load_model(tmp_path, dtype=dtype)[0]) for dtype in ("float32", "bfloat16"))
    assert one.difference(other) == "" and one.weights.keys() & other.weights.keys()
    assert one.difference(base) == "weights"


def test_an_adapters_keys_are_checked_strictly(bases, tmp_path):
    model = random_adapter(bases["llama"][0])
    save_model(model, model.config, tmp_path, torch.float32)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    assert name in weights and "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta" in weights
    for damaged in (
        {k: v for k, v in weights.items() if k != name},
        weights | {"more": torch.zeros(1)},
        weights | {name: torch.zeros(3, 32)},
    ):
        save_file(damaged, file)
        with pytest.raises(ValueError, match="the adapter does not fit its adapter_config.json or its base"):
            load_model(tmp_path)


def test_settings_of_an_adapter_that_cannot_be():
    with pytest.raises(ValueError, match=r"lora.target_modules=\['query'\] is unknown; choose some of q_proj, k_proj"):
        adapter_config("m", None, 4, 8, 0.0, ["query", "q_proj"])
    with pytest.raises(ValueError, match="lora.rank=0 must be a whole number of at least 1"):
        adapter_config("m", None, 0, 8, 0.0, ["q_proj"])


# ---------------------------------------------------------------------------------------------------------- sampled from


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_every_rule_and_every_cache_writes_on_an_adapted_model(bases, cache):
    model = random_adapter(bases["qwen2-tied"][0]).merged()
    for name, rule in UNMASKING_RULES.items():
        unmasking = rule(0.5) if name in RULE_SETTINGS else rule()
        environment = UnmaskingEnvironment(model, DecodeOptions(6, 4 if cache else None, cache=cache))
        written = sample(
            environment, Strategy(unmasking, TokenRule()), Prompts(torch.full((2, 12), model.mask_id))
        ).tokens
        assert (written < 40).all(), name


def test_a_policy_writes_on_an_adapted_model(bases):
    model = random_adapter(bases["llama"][0]).merged()
    small = {"hidden_dim": 16, "feedforward_dim": 16, "time_embed_dim": 8}
    for network, action in (
        (DitConfidence(**small), "bernoulli_argmax"),
        (DitConfidence(**small, hidden_size=32), "plackett_luce"),
        (HiddenMLP(32), "fixed"),
    ):
        check_fits(network, model)
        strategy = Strategy(PolicyUnmasker(network, action), TokenRule())
        assert (
            sample(
                UnmaskingEnvironment(model, DecodeOptions(4)), strategy, Prompts(torch.full((2, 12), model.mask_id))
            ).tokens
            < 40
        ).all()
