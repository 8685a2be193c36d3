"""LLaDA, Dream and MDLM in their published layouts: parity, strict keys, the shift, streaming, families, saving."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from dlm.checkpoints.llama import llama_shape
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from dlm.masked_lm import LlamaLM, RaddLM
from load_model import load_model
from model.llama import LlamaShape

VECTORS = Path(__file__).parent / "vectors"
LLADA, DREAM, MDLM = (VECTORS / f"{name}-tiny" for name in ("llada", "dream", "mdlm"))


def expected(directory):
    return load_file(directory / "expected.safetensors")


@pytest.mark.parametrize("directory", [LLADA, DREAM], ids=lambda d: d.name)
def test_raw_logits_are_the_published_ones(directory):
    model, _ = load_model(directory)
    known = expected(directory)
    assert isinstance(model, LlamaLM) and model.mask_id == 120
    assert torch.allclose(model.backbone(known["tokens"]), known["logits"], atol=1e-4)


def test_llada_predicts_in_place_and_dream_one_to_the_left():
    for directory, shift in ((LLADA, 0), (DREAM, 1)):
        model, _ = load_model(directory)
        known = expected(directory)
        logits = known["logits"].clone()
        if shift:
            logits = torch.cat((logits[:, :1], logits[:, :-1]), 1)
        logits[..., 120] = -torch.inf
        assert torch.allclose(model.log_probs(known["tokens"]), logits.log_softmax(-1), atol=1e-4)


@pytest.mark.parametrize("read", [[0], [1], [0, 1], [0, 2, 23], [5, 6, 7], list(range(24))])
@pytest.mark.parametrize("directory", [LLADA, DREAM], ids=lambda d: d.name)
def test_reading_some_positions_is_reading_all_and_taking_those(directory, read):
    model, _ = load_model(directory)
    tokens = expected(directory)["tokens"]
    everywhere = model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool)).view(*tokens.shape, -1)
    positions = torch.zeros_like(tokens, dtype=torch.bool)
    positions[1, read] = True
    positions[2, read[:1]] = True
    assert torch.allclose(model.hidden(tokens, positions), everywhere[positions], atol=1e-5)


def test_mdlm_folds_into_radd():
    model, noise = load_model(MDLM)
    known = expected(MDLM)
    assert isinstance(model, RaddLM) and noise is not None
    logits = known["logits"].clone()
    logits[..., -1] = -torch.inf
    assert torch.allclose(model.log_probs(known["tokens"]), logits.log_softmax(-1), atol=1e-4)


def test_an_mdlm_with_a_time_input_is_refused(tmp_path):
    config = json.loads((MDLM / "config.json").read_text()) | {"time_conditioning": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    shutil.copy(MDLM / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="time_conditioning"):
        load_model(tmp_path)


def test_the_published_sizes():
    llada = LlamaShape(4096, 32, 32, 32, 12288, 126_464)
    with torch.device("meta"):
        from model.llama import BidirectionalLlama

        assert sum(p.numel() for p in BidirectionalLlama(llada).parameters()) == 8_015_581_184


def test_weights_are_of_the_type_asked_for_and_so_are_states():
    model, _ = load_model(LLADA, dtype="bfloat16")
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tokens = expected(LLADA)["tokens"]
    assert model.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool)).dtype == torch.bfloat16
    full = load_model(LLADA)[0].log_probs(tokens)
    assert model.log_probs(tokens).dtype == torch.float32
    assert (model.log_probs(tokens).exp() - full.exp()).abs().max() < 0.05


@pytest.fixture
def dream_with_words(tmp_path):
    """Dream's files: vocab.json, merges.txt, the special tokens in tokenizer_config.json, code for a tokenizer."""
    shutil.copytree(DREAM, tmp_path / "dream", copy_function=shutil.copyfile)
    characters = [chr(code) for code in (*range(33, 127), *range(269, 289))]  # the last, \u0120, is a space
    vocabulary = {word: number for number, word in enumerate([*characters, "th", "the", "\u0120the"])}
    (tmp_path / "dream" / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "dream" / "merges.txt").write_text("#version: 0.2\nt h\nth e\n\u0120 the\n")
    special = {117: "<|endoftext|>", 118: "<|im_start|>", 119: "<|im_end|>", 120: "<|mask|>"}
    spelt = {"lstrip": False, "rstrip": False, "normalized": False, "single_word": False, "special": True}
    (tmp_path / "dream" / "tokenizer_config.json").write_text(json.dumps({
        "added_tokens_decoder": {number: {"content": word, **spelt} for number, word in special.items()},
        "additional_special_tokens": ["<|im_start|>", "<|im_end|>"], "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>",
        "auto_map": {"AutoTokenizer": ["tokenization_dream.DreamTokenizer", None]}, "tokenizer_class": "DreamTokenizer",
        "chat_template": "{{ messages[0]['content'] }}<|im_end|>",
    }))  # fmt: skip
    (tmp_path / "dream" / "tokenization_dream.py").write_text("raise SystemExit('code of the checkpoint was run')")
    return tmp_path / "dream"


def test_dream_reads_and_writes_text_without_the_code_that_it_comes_with(dream_with_words, tmp_path):
    model, _ = load_model(dream_with_words)
    tokenizer = model.tokenizer
    tokens = tokenizer.encode("the 12 the<|im_end|><|mask|>")
    assert [tokenizer.decode(token) for token in tokens] == ["the", " ", "1", "2", " the", "<|im_end|>", "<|mask|>"]
    assert tokens[-2:] == [119, 120] and tokenizer.mask_token_id == model.mask_id == 120
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)) == (117, 117, 121)
    assert tokenizer.apply_chat_template([{"role": "user", "content": "the"}], tokenize=False) == "the<|im_end|>"
    save_model(model, model.config, tmp_path / "ours")  # with a tokenizer.json
    again = load_model(tmp_path / "ours")[0].tokenizer
    assert again.encode("the 12 the<|im_end|><|mask|>") == tokens and again.mask_token_id == 120


def test_dream_reads_text_by_its_hub_id(dream_with_words, tmp_path, monkeypatch):
    folder = tmp_path / "hub" / "models--Dream-org--Dream-v0"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    shutil.copytree(dream_with_words, folder / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    tokenizer = load_model("Dream-org/Dream-v0")[0].tokenizer
    assert tokenizer.encode("the<|mask|>")[-1] == tokenizer.mask_token_id == 120


@pytest.mark.parametrize(("directory", "other"), [(LLADA, "Dream"), (DREAM, "llada")])
def test_a_checkpoint_of_another_family_is_refused(directory, other):
    with pytest.raises(ValueError, match=f"configuration is for {other}"):
        load_model(directory, model_type=other)


def test_a_missing_key_an_extra_one_and_another_shape_are_named(tmp_path):
    shutil.copytree(LLADA, tmp_path / "m", copy_function=shutil.copyfile)
    shard = tmp_path / "m" / "model-00004-of-00004.safetensors"
    weights = load_file(shard)
    name = sorted(weights)[0]
    save_file({k: v for k, v in weights.items() if k != name} | {"more": torch.zeros(1)}, shard)
    with pytest.raises(ValueError, match=r"missing \[.*unexpected \['more'\]"):
        load_model(tmp_path / "m")
    save_file(weights | {name: torch.zeros(3)}, shard)
    with pytest.raises(ValueError, match="expected"):
        load_model(tmp_path / "m")


def test_a_variant_of_llada_that_is_another_network_is_refused():
    config = json.loads((LLADA / "config.json").read_text()) | {"alibi": True}
    with pytest.raises(ValueError, match="alibi"):
        llama_shape(config)
    with pytest.raises(ValueError, match="config.json lacks d_model, rope_theta"):
        llama_shape({key: value for key, value in config.items() if key not in ("d_model", "rope_theta")})


@pytest.mark.parametrize("directory", [LLADA, DREAM], ids=lambda d: d.name)
def test_saving_keeps_the_published_layout(directory, tmp_path):
    model, _ = load_model(directory)
    assert isinstance(model, LlamaLM)
    save_model(model, model.config, tmp_path, torch.float32)
    assert (
        load_file(tmp_path / "model.safetensors").keys()
        == json.loads((directory / "model.safetensors.index.json").read_text())["weight_map"].keys()
    )
    again, _ = load_model(tmp_path)
    tokens = expected(directory)["tokens"]
    assert torch.equal(again.log_probs(tokens), model.log_probs(tokens))


def test_a_new_model_of_a_config_is_trainable_and_tied_weights_are_saved_once(tmp_path):
    config = json.loads((LLADA / "config.json").read_text()) | {"weight_tying": True}
    model, noise = build_model(config, "float32", None)
    assert isinstance(model, LlamaLM) and noise is not None
    save_model(model, config, tmp_path, torch.float32)
    assert "model.transformer.ff_out.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(tmp_path)[0]
    assert again.backbone.head.weight is again.backbone.embed.weight
    tokens = expected(LLADA)["tokens"]
    assert torch.equal(again.log_probs(tokens), model.log_probs(tokens))
    model.log_probs(tokens)[..., 0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_while_attention_is_annealed_nothing_ahead_is_seen_at_first():
    model = load_model(LLADA)[0].backbone.train()
    tokens = expected(LLADA)["tokens"]
    changed = tokens.clone()
    changed[:, -1] = 5
    for ahead, same in ((0.0, True), (1.0, False)):
        model.ahead = ahead
        first, second = model(tokens)[:, :-1], model(changed)[:, :-1]
        assert torch.allclose(first, second, atol=1e-6) == same
