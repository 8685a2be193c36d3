"""Causal models of transformers, of every shape: as saved, with an exact key-value cache; and what memory streaming takes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.causal_lm import CausalLM
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from load_model import load_model
from samplers.heuristics import Leftmost
from samplers.loop import Strategy, sample
from unmask.runs import train_dlm

ENDS = {"vocab_size": 31, "bos_token_id": 3, "eos_token_id": 3}
KINDS = {
    "gpt2": {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 17},
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4,
              "num_key_value_heads": 2, "max_position_embeddings": 17},
    # TinyStories' shape; the window of the local layer is shorter than a row
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "window_size": 4, "max_position_embeddings": 17},
    # those that multiply, divide and bound what the head says
    "cohere": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
               "max_position_embeddings": 17, "logit_scale": 0.25},
    "granite": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                "max_position_embeddings": 17, "logits_scaling": 3.0},
    "gemma2": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
               "num_key_value_heads": 1, "head_dim": 8, "max_position_embeddings": 17, "sliding_window": 4,
               "final_logit_softcapping": 2.0},
    # those that name the length otherwise
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2, "seq_length": 17},
    # those whose keys are not as wide as their values, or whose head not as the blocks
    "opt": {"hidden_size": 16, "word_embed_proj_dim": 8, "ffn_dim": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
            "max_position_embeddings": 17, "dropout": 0.0, "pad_token_id": 1},
    "deepseek_v3": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2,
                    "num_key_value_heads": 2, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4,
                    "v_head_dim": 6, "first_k_dense_replace": 2, "max_position_embeddings": 17},
    # one without keys and values
    "mamba": {"hidden_size": 16, "num_hidden_layers": 2, "state_size": 4, "max_position_embeddings": 17},
    "mpt": {"d_model": 16, "n_layers": 2, "n_heads": 2, "max_seq_len": 17},
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS)
def saved(request, tmp_path_factory):
    """(directory, the model of transformers)."""
    directory = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(2)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(request.param, **ENDS, **KINDS[request.param])).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.0 if request.param == "mamba" else 4.0)  # so that what was attended shows
    model.save_pretrained(directory, max_shard_size="8KB")
    return directory, model


def test_a_saved_model_predicts_as_transformers_does(saved):
    directory, known = saved
    assert (directory / "model.safetensors.index.json").is_file()
    model, noise = load_model(directory)
    assert isinstance(model, CausalLM) and noise is None and (model.mask_id, model.max_length) == (31, 16)
    tokens = torch.randint(31, (3, 16))
    with torch.no_grad():
        logits = known(input_ids=torch.cat((torch.full((3, 1), 3), tokens[:, :-1]), 1)).logits
    assert (model.log_probs(tokens) - logits.log_softmax(-1)).abs().max() < 1e-5


def test_a_model_that_does_not_say_how_long_it_is_is_refused():
    config = {"model_type": "bloom", **ENDS, "hidden_size": 16, "n_layer": 2, "n_head": 2}
    with pytest.raises(ValueError, match="this bloom does not say how many positions it has; add seq_length"):
        build_model(config, "float32", None)


def test_a_frozen_model_is_kept_in_the_type_asked_for(saved):
    """Frozen weights are the stored ones, rounded; hidden states are float32, since what is trained reads them."""
    directory, known = saved
    full, half = load_model(directory)[0], load_model(directory, dtype="bfloat16")[0]
    stored = known.state_dict()
    assert all(torch.equal(tensor, stored[name]) for name, tensor in full.backbone.state_dict().items())
    for name, parameter in half.backbone.named_parameters():
        assert torch.equal(parameter, stored[name].bfloat16())
    assert {buffer.dtype for name, buffer in half.backbone.named_buffers() if "inv_freq" in name} <= {torch.float32}
    tokens = torch.randint(31, (2, 16))
    hidden = half.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool))
    assert hidden.dtype == half.log_probs(tokens).dtype == torch.float32
    assert (half.log_probs(tokens).exp() - full.log_probs(tokens).exp()).abs().mean() < 0.01


def test_training_in_half_precision_keeps_weights_in_full(tmp_path):
    """Updates of a millionth, which bfloat16 weights would lose."""
    config = {"model_type": "llama", **ENDS, **KINDS["llama"], "max_position_embeddings": 43}
    save_model(build_model(config, "float32", None)[0], config, tmp_path / "base")
    overrides = [
        f"init={tmp_path / 'base'}", f"run_dir={tmp_path / 'run'}", "data=chain", "data.valid_rows=2", "loss=ar", "device=cpu",
        "model.dtype=bfloat16", "optim.lr=1e-6", "optim.warmup=0", "training.batch_size=4", "training.n_iters=1",
        "eval.samples=1", "wandb.mode=disabled",
    ]  # fmt: skip
    with initialize_config_dir(str(Path(train_dlm.__file__).parents[2] / "configs"), version_base=None):
        run = train_dlm.run(compose("train_dlm", overrides=overrides), overrides)
    trained = torch.load(run / "checkpoints" / "checkpoint_1.pth", weights_only=True)["model"]
    before = load_file(tmp_path / "base" / "model.safetensors")
    moved = {name: float((trained[name] - tensor.float()).abs().mean()) for name, tensor in before.items()}
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(0 < size < 2e-6 for size in moved.values()), moved
    assert {p.dtype for p in load_model(run, dtype="bfloat16")[0].parameters()} == {torch.bfloat16}


def test_keys_and_values_are_exact(saved):
    """The same tokens, greedy and drawn, with prompts of different lengths; with the cache each position runs once."""
    model, _ = load_model(saved[0])
    keeps = not saved[0].name.startswith("mamba")
    canvas = torch.full((4, 14), model.mask_id)
    canvas[0, :3], canvas[1, :3], canvas[2, 2:3] = torch.tensor([1, 2, 4]), torch.tensor([5, 6, 7]), 9
    start = torch.tensor([0, 0, 2, 3])
    for rule in (TokenRule(0.0), TokenRule()):
        written, ran = {}, {}
        for kept in (True, False):
            environment = UnmaskingEnvironment(model, DecodeOptions(11))
            assert environment.exact and environment.cache_kind == ("causal" if keeps else None)
            environment.cache_kind = "causal" if kept and keeps else None
            written[kept] = sample(
                environment, Strategy(Leftmost(), rule), Prompts(canvas, prompt_length=3, start=start), 3
            ).tokens
            ran[kept] = environment.positions_run
        assert torch.equal(written[True], written[False]) and (not keeps or ran[True] < ran[False] / 3)
    with torch.no_grad():  # and greedy is what a plain loop over the model of transformers writes
        row = torch.tensor([[3, 1, 2, 4]])
        for _ in range(11):
            row = torch.cat((row, saved[1](input_ids=row).logits[:, -1:].argmax(-1)), 1)
    model_greedy = sample(
        UnmaskingEnvironment(model, DecodeOptions(11)),
        Strategy(Leftmost(), TokenRule(0.0)),
        Prompts(canvas[:1], prompt_length=3),
    )
    assert model_greedy.tokens[0].tolist() == row[0, 1:].tolist()


@pytest.mark.parametrize("seed", range(6))
def test_rows_that_share_and_leave_and_wait_know_what_they_would_know_alone(saved, seed):
    """Any rows write, are copied, leave and are asked, in any order: hidden states are those without keys and values kept."""
    model, _ = load_model(saved[0])
    generator = torch.Generator().manual_seed(seed)
    draw = lambda high, size: torch.randint(high, size, generator=generator)
    environment = UnmaskingEnvironment(model, DecodeOptions(10))
    observation = environment.reset(Prompts(torch.full((4, 10), model.mask_id)), torch.arange(4))
    for _ in range(12):
        rows = len(observation.tokens)
        first = observation.masked.long().argmax(1)
        asked = torch.zeros_like(observation.masked)
        asked[torch.arange(rows), first] = (draw(3, (rows,)) > 0) & observation.masked.any(1)
        if bool(asked.any()):
            with torch.no_grad():
                alone = model.hidden(observation.tokens, asked)
            torch.testing.assert_close(environment.hidden(asked)[asked], alone, atol=1e-4, rtol=1e-4)
        order = (asked & (draw(2, (rows, 1)) > 0)).long()
        zero = torch.zeros(rows)
        observation = environment.step(Decision(order, draw(3, tuple(order.shape)), zero, zero))
        if int(draw(2, (1,))):
            observation = environment.select(draw(rows, (int(draw(5, (1,))) + 1,)))


MEASURED = """
import json, re, sys
from pathlib import Path
import torch
import load_model

def kilobytes(what):
    return int(re.search(what + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])

load_model.load_model(sys.argv[1], dtype=sys.argv[3])  # what loading imports
Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here on
before = kilobytes("VmRSS")
model = load_model.load_model(sys.argv[2], dtype=sys.argv[3])[0]
size = sum(p.numel() * p.element_size() for p in model.parameters())
touched = sum(float(p.sum()) for p in model.parameters())  # what is mapped and was never read takes no memory yet
print(json.dumps({"ratio": (kilobytes("VmHWM") - before) * 1024 / size, "size": size}))
"""


def random_shards(directory, layers, width, dtype):
    """A LLaDA of random weights, a shard a layer, and one of almost no size: 64 width^2 bytes a layer in float32."""
    directory.mkdir()
    config = json.loads((Path(__file__).parents[1] / "vectors" / "llada-tiny" / "config.json").read_text())
    config |= {
        "d_model": width,
        "n_layers": layers,
        "n_heads": 4,
        "n_kv_heads": 4,
        "mlp_hidden_size": 4 * width,
        "vocab_size": 128,
    }
    config |= {"embedding_size": 128, "mask_token_id": 120, "weight_tying": False}
    (directory / "config.json").write_text(json.dumps(config))
    rest = {name: torch.zeros(shape, dtype=dtype) for name, shape in (
        ("model.transformer.wte.weight", (128, width)), ("model.transformer.ln_f.weight", (width,)),
        ("model.transformer.ff_out.weight", (128, width)))}  # fmt: skip
    parts = {"q_proj": (width, width), "k_proj": (width, width), "v_proj": (width, width), "attn_out": (width, width),
             "ff_proj": (4 * width, width), "up_proj": (4 * width, width), "ff_out": (width, 4 * width),
             "attn_norm": (width,), "ff_norm": (width,)}  # fmt: skip
    shards = {"shard-rest.safetensors": rest} | {
        f"shard-{n}.safetensors": {
            f"model.transformer.blocks.{n}.{part}.weight": torch.randn(shape).to(dtype) for part, shape in parts.items()
        }
        for n in range(layers)
    }
    for name, weights in shards.items():
        save_file(weights, directory / name)
    listed = {tensor: name for name, weights in shards.items() for tensor in weights}
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the peak of a process's memory is read as Linux tells it")
@pytest.mark.parametrize("stored, asked", [("bfloat16", "float32"), ("float32", "float32"), ("float32", "bfloat16")])
def test_streaming_shards_takes_little_more_memory_than_the_weights(tmp_path, stored, asked):
    """In a fresh process: 200 MB of float32 (100 of bfloat16) in 16 shards; the peak rises by less than 1.2 times the weights."""
    random_shards(tmp_path / "small", 1, 16, getattr(torch, stored))
    random_shards(tmp_path / "large", 16, 448, getattr(torch, stored))
    root = Path(__file__).parents[2]
    run = subprocess.run([sys.executable, "-c", MEASURED, tmp_path / "small", tmp_path / "large", asked], cwd=root, text=True,
                         capture_output=True, env={**os.environ, "PYTHONPATH": str(root)}, timeout=240)  # fmt: skip
    assert run.returncode == 0, run.stderr
    measured = json.loads(run.stdout)
    assert measured["size"] > (190e6 if asked == "float32" else 95e6)
    assert 0.9 < measured["ratio"] < 1.2, measured
