"""Weights in every layout that load_model promises give one model; what leads out of a directory or is damaged is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

from data.text import train_bpe
from dlm.checkpoints.weights import stored, stored_names, unwrapped, weight_files
from load_model import load_model

VECTORS = Path(__file__).parents[1] / "vectors"
FAMILIES = ("radd", "sedd", "mdlm", "llada", "dream", "causal")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """A checkpoint of each family."""
    causal = tmp_path_factory.mktemp("causal")
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = LlamaConfig(vocab_size=64, max_position_embeddings=16, bos_token_id=0, eos_token_id=0, **shape)
    LlamaForCausalLM(settings).save_pretrained(causal)
    return {name: VECTORS / f"{name}-tiny" for name in FAMILIES[:-1]} | {"causal": causal}


def state_of(folder: Path) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for file in weight_files(str(folder)) for name, tensor in stored(file)}


def write(folder: Path, state: dict[str, torch.Tensor], layout: str) -> None:
    """layout: safetensors or bin, in one file or (sharded) in two with an index."""
    kind, parts = layout.partition(" ")[0], 2 if "sharded" in layout else 1
    stem, end = ("model", "safetensors") if kind == "safetensors" else ("pytorch_model", "bin")
    names, place = sorted(state), {}
    for number in range(parts):
        file = f"{stem}-{number + 1:05}-of-{parts:05}.{end}" if parts > 1 else f"{stem}.{end}"
        own = {name: state[name].contiguous() for name in names[number::parts]}
        place |= dict.fromkeys(own, file)
        save_file(own, folder / file, {"format": "pt"}) if end == "safetensors" else torch.save(own, folder / file)
    if parts > 1:
        (folder / f"{stem}.{end}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))


def scores(folder: Path) -> torch.Tensor:
    model = load_model(folder)[0]
    tokens = torch.tensor([[1, 2, model.mask_id, 3]]) if not model.causal else torch.tensor([[1, 2, 4, 3]])
    return model.log_probs(tokens)


@pytest.mark.parametrize("layout", ["safetensors sharded", "bin", "bin sharded"])
@pytest.mark.parametrize("name", FAMILIES)
def test_every_layout_gives_the_same_model(originals, tmp_path, name, layout):
    shutil.copy(originals[name] / "config.json", tmp_path)
    write(tmp_path, state_of(originals[name]), layout)
    torch.testing.assert_close(scores(tmp_path), scores(originals[name]))


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "backbone.", "model.", "net.student."]
)
@pytest.mark.parametrize("name", ["radd", "llada", "dream", "causal"])
def test_weights_of_a_wrapped_model_load(originals, tmp_path, name, prefix):
    shutil.copy(originals[name] / "config.json", tmp_path)
    state = {prefix + key: tensor for key, tensor in state_of(originals[name]).items()}
    write(tmp_path, state, "safetensors sharded")
    assert torch.equal(scores(tmp_path), scores(originals[name]))


def test_a_compiled_block_has_its_wrapper_inside_the_name(originals, tmp_path):
    shutil.copy(originals["radd"] / "config.json", tmp_path)
    state = {
        key.replace("blocks.0.", "blocks.0._orig_mod."): value for key, value in state_of(originals["radd"]).items()
    }
    write(tmp_path, state, "safetensors")
    assert torch.equal(scores(tmp_path), scores(originals["radd"]))


def test_two_copies_of_the_weights_are_not_one():
    names = ["model.a.weight", "ema.a.weight", "model.b", "ema.b"]
    assert sorted(unwrapped(names, ["a.weight", "b"]).values()) == ["a.weight", "b", "model.a.weight", "model.b"]


def outside(folder: Path, name: str) -> str:
    return name.replace("ABSOLUTE", str(folder.parent / "secret.bin"))


@pytest.mark.parametrize(
    "place", ["../secret.bin", "ABSOLUTE", "a/../../secret.bin", "..\\secret.bin", "C:\\secret.bin", "link.bin"]
)
@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("name", ["radd", "llada", "causal"])
def test_an_index_cannot_lead_out_of_its_directory(originals, tmp_path, name, index, place):
    folder = tmp_path / "checkpoint"
    (folder / "a").mkdir(parents=True)
    shutil.copy(originals[name] / "config.json", folder)
    torch.save(state_of(originals[name]), tmp_path / "secret.bin")
    (folder / "link.bin").symlink_to(tmp_path / "secret.bin")
    (folder / index).write_text(json.dumps({"weight_map": {"x": outside(folder, place)}}))
    with pytest.raises(ValueError, match="which is outside its directory") as refused:
        load_model(folder)
    assert str(folder / index) in str(refused.value)


def test_the_links_of_the_hubs_cache_are_followed(originals, tmp_path):
    blobs, folder = tmp_path / "blobs", tmp_path / "snapshots" / "0123"
    blobs.mkdir()
    folder.mkdir(parents=True)
    shutil.copy(originals["llada"] / "config.json", folder)
    write(blobs, state_of(originals["llada"]), "safetensors sharded")
    for file in blobs.iterdir():
        (folder / file.name).symlink_to(file)
    assert torch.equal(scores(folder), scores(originals["llada"]))


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model.safetensors.index.json", b"{", "cannot be read"),
        ("model.safetensors.index.json", b'{"weight_map": {}}', "names no file of weights"),
        ("model.safetensors.index.json", b'{"weight_map": {"x": 3}}', "names no file of weights"),
        ("model.safetensors", b"junk", "cannot be read"),
        ("pytorch_model.bin", b"junk", "cannot be read"),
        ("config.json", b"{", "cannot be read"),
        ("config.json", b"[]", "holds a list, expected names and values"),
        ("config.json", b'{"model_type": "llada"}', "config.json lacks d_model"),
        ("config.json", b'{"model_type": "mdlm"}', "cannot be read"),
        ("config.json", b'{"model_type": "mdlm", "noise": null}', "cannot be read"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}', "cannot be read"),
        ("tokenizer.json", b"{", "cannot be read"),
        ("tokenizer.json", b'{"version": "1.0"}', "cannot be read"),
    ],
)
def test_a_damaged_file_is_named(originals, tmp_path, file, content, message):
    (tmp_path / "config.json").write_bytes((originals["llada"] / "config.json").read_bytes())
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=message) as refused:
        load_model(tmp_path)
    assert file in str(refused.value) and str(tmp_path) in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("family", ["radd", "llada", "causal"])
def test_a_broken_tokenizer_of_any_family_is_refused(originals, tmp_path, family):
    for file in originals[family].iterdir():
        shutil.copy(file, tmp_path)
    train_bpe(["a text"] * 3, 257).save_pretrained(tmp_path)
    text = (tmp_path / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match=r"tokenizer.json cannot be read"):
        load_model(tmp_path)


@pytest.mark.parametrize("name", ["radd", "llada"])
@pytest.mark.parametrize("change", ["shape", "kind"])
def test_a_weight_that_does_not_fit_is_named_with_its_file(originals, tmp_path, name, change):
    shutil.copy(originals[name] / "config.json", tmp_path)
    state = state_of(originals[name])
    wrong = sorted(state)[0]
    state[wrong] = state[wrong][:-1] if change == "shape" else (state[wrong] * 9).to(torch.int8)
    write(tmp_path, state, "safetensors")
    with pytest.raises(ValueError, match="expected") as refused:
        load_model(tmp_path)
    message = str(refused.value)
    assert wrong in message and "model.safetensors" in message and ("int8" in message) == (change == "kind")


def test_pickled_code_is_not_run(originals, tmp_path):
    class Code:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    shutil.copy(originals["sedd"] / "config.json", tmp_path)
    torch.save({"x": Code()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pytorch_model.bin cannot be read"):
        load_model(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_a_pickle_that_holds_no_weights_is_refused(tmp_path):
    torch.save([torch.zeros(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="holds no weights by name"):
        stored_names([tmp_path / "pytorch_model.bin"])
    torch.save({"epoch": 3, "state_dict": {"a": torch.zeros(2)}}, tmp_path / "pytorch_model.bin")  # Lightning's layout
    assert stored_names([tmp_path / "pytorch_model.bin"]) == ["a"]
