"""train-reward end to end: every kind and head, encoders and language models, resuming, refusals."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors import safe_open
from safetensors.torch import load_file

from load_model import load_model
from rewards.models import load_head, load_reward
from tests.policy_runs import ROOT, command, record
from tests.preference_pairs import tiny, write_pairs
from training.storage import CHECKSUM
from unmask.runs import train_reward

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # TRL's own use of transformers
QUICK = ["run_dir=RUN", "device=cpu", "wandb.mode=disabled", "data.train=PAIRS", "training.n_iters=2", "training.eval_freq=2",
         "training.snapshot_freq=2", "training.log_freq=1", "training.batch_size=4", "eval.batch_size=4", "data.valid_count=4",
         "encoder.hidden_size=16", "encoder.intermediate_size=32", "encoder.num_layers=1", "encoder.num_heads=2"]  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> Path:
    return write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", 200)


def run(directory: Path, pairs: Path, *overrides: str) -> Path:
    """The command in this process; RUN and PAIRS in an override are the directory and the file."""
    asked = [override.replace("RUN", str(directory)).replace("PAIRS", str(pairs)) for override in (*QUICK, *overrides)]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_reward", asked)
    return train_reward.run(config, asked)


LEARN = ["training.n_iters=30", "training.batch_size=16", "training.eval_freq=30", "training.snapshot_freq=30", "optim.lr=1e-2",
         "data.valid_count=16", "data.rows=4"]  # fmt: skip


@pytest.mark.parametrize("kind", ["full", "prefix", "mask"])
def test_a_new_encoder_learns_what_is_preferred(kind, pairs, tmp_path):
    directory = run(tmp_path / "run", pairs, *LEARN, f"reward.kind={kind}", "data.canvas=24")
    found = json.loads((directory / "accuracy.json").read_text())
    assert found["full"] > 0.9 and found["by_prefix_length"][-1]["accuracy"] > 0.6
    assert ("by_masked_share" in found) == (kind == "mask")
    if kind == "mask":
        shares = found["by_masked_share"]
        assert shares[0]["accuracy"] > 0.9 and shares[0]["from"] == 0
    reward = load_reward(str(directory))
    assert reward.kind == kind
    good, bad = reward.score_texts(["One day"] * 2, [" the happy cat ran lovely.", " the sad cat ran awful."]).tolist()
    assert good > bad
    measured = record(directory)
    assert measured[30]["eval_accuracy"] > 0.7 and {"loss", "accuracy", "learning_rate"} <= measured[2].keys()
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_mask_is_where_a_masked_model_on_the_same_tokens_has_it(pairs, tmp_path):
    reward = load_reward(str(run(tmp_path / "run", pairs, "reward.kind=mask")))
    assert reward.tokenizer.mask_token_id == load_model(ROOT / "example/stories")[0].mask_id
    assert reward.tokenizer.pad_token_id not in (reward.tokenizer.mask_token_id, reward.tokenizer.eos_token_id)
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as weights:
        assert CHECKSUM in weights.metadata()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "deberta"])
def test_models_of_transformers_become_reward_models(kind, pairs, tmp_path):
    init = tiny(kind, tmp_path / kind)
    more = ["training.gradient_checkpointing=true"] if kind == "deberta" else []
    directory = run(
        tmp_path / "run", pairs, f"init={init}", "reward.kind=prefix", "data.rows=2", "training.accum=2", *more
    )
    reward = load_reward(str(directory))
    assert reward.causal == (kind != "deberta")
    assert reward.tokenizer.pad_token_id != reward.tokenizer.eos_token_id
    assert reward.score_texts(["a"], [" b"]).isfinite().all()
    again = run(tmp_path / "again", pairs, f"init={directory}", "optim.lr=0", "reward.kind=full")
    assert_same(directory / "model", again / "model")


def assert_same(one: Path, other: Path) -> None:
    first, second = (load_file(folder / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("head", ["sequence", "vocabulary"])
def test_a_resumed_run_is_the_uninterrupted_one(head, pairs, tmp_path):
    more = ["reward.kind=mask", "optim.lr=1e-2", "optim.schedule=constant"]
    more += ["reward.head=vocabulary", "init=example/stories", "data.canvas=24"] if head == "vocabulary" else []
    whole = run(tmp_path / "whole", pairs, *more, "training.n_iters=4")
    half = run(tmp_path / "half", pairs, *more)
    unfinished = load_file(half / "model" / "model.safetensors")
    run(half, pairs, *more, "resume=RUN", "training.n_iters=4")
    assert_same(whole / "model", half / "model")
    done = load_file(half / "model" / "model.safetensors")
    assert any(not torch.equal(done[name], unfinished[name]) for name in done)


@pytest.mark.parametrize("kind, init", [("mask", "example/stories"), ("prefix", "example/stories_causal")])
def test_a_head_learns_on_the_frozen_model(kind, init, pairs, tmp_path):
    more = ["reward.head=vocabulary", f"reward.kind={kind}", f"init={init}", "data.canvas=24", "training.n_iters=20",
            "training.batch_size=16", "optim.lr=1e-2", "training.eval_freq=20", "training.snapshot_freq=20", "data.valid_count=16",
            "training.ema=0.5"]  # fmt: skip
    directory = run(tmp_path / "run", pairs, *more)
    measured = record(directory)
    assert measured[1]["accuracy"] <= 0.5 and measured[20]["eval_accuracy"] > 0.65
    name = "by_masked_share" if kind == "mask" else "by_prefix_length"
    assert list(json.loads((directory / "accuracy.json").read_text())) == [name]
    head = load_head(directory)
    model = load_model(ROOT / init)[0]
    assert head.kind == kind and head.trunk == init
    happy, sad = (model.tokenizer.encode(word)[0] for word in (" happy", " sad"))
    canvas = torch.full((1, 24), model.mask_id)
    canvas[0, :2] = torch.tensor(model.tokenizer.encode("One day"))[:2]
    read = torch.zeros_like(canvas, dtype=torch.bool)
    read[0, 2] = True
    value = head(model.hidden(canvas, read))[0]
    assert value[happy] > value[sad]


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["reward.kind=suffix"], "reward.kind='suffix' is unknown; use one of full, prefix, mask"),
        (["reward.head=token"], "reward.head='token' is unknown; use one of sequence, vocabulary"),
        (["reward.head=vocabulary", "reward.kind=mask"], "is a layer on a frozen language model: give it as init"),
        (["reward.head=vocabulary", "reward.kind=mask", "init=example/stories_causal"], "does not fit init=example/stories_causal; use reward.kind=prefix"),
        (["reward.kind=mask", "init=example/stories_causal"], "reads both sides of a mask and init=example/stories_causal is causal"),
        (["init=example/stories"], "init=example/stories with the tokenizer of .* is no checkpoint of transformers"),
        (["data.max_length=3"], "no pair is left of 180"),
        (["data.held_out=0.999"], "has 200 pairs, too few to hold some out; give data.valid"),
        (["training.accum=3"], "a process's batch of 4 is not divisible by training.accum=3"),
        (["encoder.num_heads=3"], "encoder.hidden_size=.* is not divisible by encoder.num_heads=3; change either"),
        (["optim.optimiser=lion"], "optim.optimiser='lion' is unknown; use one of adamw, rmsprop"),
        (["data.train=nowhere.jsonl"], "the preferences nowhere.jsonl are no file"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(overrides, message, pairs, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", pairs, *overrides)
    assert not (tmp_path / "run").exists()


def test_what_trl_would_choose_is_chosen_here(pairs, tmp_path):
    """bfloat16, gradient checkpointing, no dropout, 1e-4: none of them by default."""
    run(tmp_path / "run", pairs, "training.dropout=true", "optim.lr=3e-4")
    settings = torch.load(tmp_path / "run/checkpoints/checkpoint-2/training_args.bin", weights_only=False)
    assert (settings.bf16, settings.gradient_checkpointing, settings.disable_dropout) == (False, False, False)
    assert settings.learning_rate == 3e-4


def test_the_command_itself_says_what_is_wrong(tmp_path):
    argv, environment = command("-m", "unmask", "train-reward", "reward.kindd=full")
    told = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 2 and "did you mean reward.kind?" in told.stderr and len(told.stderr.splitlines()) == 1
