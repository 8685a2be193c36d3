"""Weights that are not finite are neither written nor read, and a checkpoint whose bytes changed is refused."""

import io
import math
import zipfile

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, LlamaConfig

from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from dlm.checkpoints.weights import stored
from evaluation.text import load_judge
from load_model import load_model
from policy.checkpoints import load_policy, save_policy
from policy.networks import DitConfidence
from rewards.models import VocabularyHead, load_classifier, load_head, load_reward
from tests.policy_runs import run as run_policy
from tests.policy_runs import tiny_models
from tests.preference_pairs import tiny
from tests.training.test_run import TINY, train
from training.optim import Optimiser
from training.storage import (
    CHECKSUM,
    add_checksums,
    check_files,
    check_written,
    checksum,
    load_checkpoint,
    load_weights,
    not_finite,
    save_weights,
)
from unmask.runs.train_preference import load_causal

POLICY = {"hidden_dim": 16, "feedforward_dim": 16, "num_heads": 2, "time_embed_dim": 8}


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_bad_number_is_found_by_its_tensor(dtype, bad):
    weights = {"count": torch.arange(3), "none": torch.zeros(0), "good": torch.ones(2, 3, dtype=dtype)}
    assert not_finite(weights.items()) is None
    weights["bad"] = torch.ones(2, 3, dtype=dtype)
    weights["bad"][1, 2] = bad
    assert not_finite(weights.items()) == "bad"
    with pytest.raises(
        FloatingPointError, match="model.safetensors was not written: bad holds numbers that are not finite"
    ):
        check_written(weights.items(), "model.safetensors")


def test_a_checksum_is_of_every_name_number_and_tensor():
    state = {
        "model": {"w": torch.arange(4.0), "b": torch.zeros(0)},
        "step": 3,
        "ema": [torch.ones(2).bool()],
        "config": None,
    }
    same = {
        "model": {"w": torch.arange(4.0), "b": torch.zeros(0)},
        "step": 3,
        "ema": [torch.ones(2).bool()],
        "config": None,
    }
    assert checksum(state) == checksum(same | {CHECKSUM: "whatever"})
    others = [
        same | {"step": 4}, same | {"config": {}}, same | {"ema": [torch.tensor([True, False])]},
        same | {"model": {"w": torch.arange(4.0).reshape(2, 2), "b": torch.zeros(0)}},
        same | {"model": {"w": torch.arange(4), "b": torch.zeros(0)}}, same | {"more": 1},
    ]  # fmt: skip
    assert len({checksum(state), *map(checksum, others)}) == 1 + len(others)


def test_a_flipped_byte_and_a_bad_weight_are_refused_and_a_published_file_is_read(tmp_path):
    file = tmp_path / "checkpoint_3.pth"
    state = {"model": {"w": torch.arange(100.0)}, "step": 3}
    torch.save(state, file)
    assert load_checkpoint(file, file)["step"] == 3  # no checksum, as in published files
    torch.save(state | {CHECKSUM: checksum(state)}, file)
    assert load_checkpoint(file, file).keys() == state.keys()
    found = bytearray(file.read_bytes())
    at = found.index(torch.tensor(50.0).numpy().tobytes())
    found[at] ^= 1
    file.write_bytes(bytes(found))
    with pytest.raises(ValueError, match=r"checkpoint_3.pth is damaged: its checksum"):
        load_checkpoint(file, file)
    state["model"]["w"][0] = math.nan
    torch.save(state, file)
    with pytest.raises(ValueError, match=r"checkpoint_3.pth holds numbers that are not finite, in model.w"):
        load_checkpoint(file, file)


def flip(file, value: float) -> None:
    """Change the lowest bit of the first float32 of this value."""
    found = bytearray(file.read_bytes())
    at = found.index(torch.tensor(value).numpy().tobytes())
    found[at] ^= 1
    file.write_bytes(bytes(found))


def test_weights_of_ours_carry_a_checksum_and_others_are_read_without(tmp_path):
    file = tmp_path / "model.safetensors"
    weights = {"w": torch.arange(100.0), "none": torch.zeros(0), "one": torch.tensor(2.5, dtype=torch.bfloat16)}
    save_weights(weights, file)
    assert all(torch.equal(value, weights[name]) for name, value in load_weights(file).items())
    check_files(tmp_path)
    before = file.read_bytes()
    flip(file, 50.0)
    for read in (lambda: load_weights(file), lambda: check_files(tmp_path), lambda: dict(stored(file))):
        with pytest.raises(ValueError, match=r"model.safetensors is damaged: its checksum is not that of its tensors"):
            read()
    assert load_file(file)["w"][50] != 50  # what a library reads
    save_file(load_file(file), file)  # as from elsewhere
    assert load_weights(file).keys() == weights.keys()
    check_files(tmp_path)
    save_file(weights, file, {"format": "pt", "about": "x"})
    add_checksums(tmp_path)
    with safe_open(file, "pt") as opened:
        assert opened.metadata().keys() == {"format", "about", CHECKSUM}
    save_weights(dict(reversed(weights.items())), file)
    assert file.read_bytes() == before  # equal weights are equal files
    file.write_bytes(before[:-3])
    with pytest.raises(ValueError, match=r"model.safetensors cannot be read .*; it is damaged or no checkpoint"):
        load_weights(file)
    check_files("owner/name")  # a hub id


def test_everything_that_this_project_saves_is_refused_with_a_flipped_byte(tmp_path):
    policy, head = DitConfidence(**POLICY), VocabularyHead(2, 3, "trunk", "mask")
    for weights in (policy.output_proj.bias, head.linear.bias):
        with torch.no_grad():
            weights.fill_(0.7)
    save_policy(policy, tmp_path / "policy")
    head.save(tmp_path / "head")
    shape = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "length": 8}
    config = {"model_type": "radd", "tokens": 5, "model": shape, "noise": {"type": "loglinear"}}
    model = build_model(config, "float32", None)[0]
    with torch.no_grad():
        next(model.parameters()).view(-1)[0] = 0.7
    save_model(model, config, tmp_path / "model", torch.float32)
    readers = {"policy": load_policy, "head": load_head, "model": load_model}
    for name, read in readers.items():
        read(tmp_path / name)
        flip(tmp_path / name / "model.safetensors", 0.7)
        with pytest.raises(ValueError, match=f"{name}/model.safetensors is damaged"):
            read(tmp_path / name)


def test_what_a_library_saves_and_reads_is_checked_too(tmp_path):
    folder = tiny("llama", tmp_path / "llama")
    config = LlamaConfig(vocab_size=2048, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
                         num_labels=1, pad_token_id=0)  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "reward")
    for file in folder.glob("tokenizer*"):
        (tmp_path / "reward" / file.name).write_bytes(file.read_bytes())
    readers = {
        "llama": (load_model, lambda path: load_judge(str(path)), lambda path: load_causal(str(path))),
        "reward": (lambda path: load_reward(str(path)), lambda path: load_classifier(str(path))),
    }
    for name, reading in readers.items():
        file = tmp_path / name / "model.safetensors"
        weights = load_file(file)
        weights["model.norm.weight"][0] = 0.7
        save_file(weights, file, {"format": "pt"})
        add_checksums(file.parent)
        reading[0](file.parent)
        flip(file, 0.7)
        for read in reading:
            with pytest.raises(ValueError, match=f"{name}/model.safetensors is damaged"):
                read(file.parent)


def test_a_policy_and_a_model_are_neither_saved_nor_loaded_with_a_bad_number(tmp_path):
    policy = DitConfidence(**POLICY)
    save_policy(policy, tmp_path / "policy")
    before = (tmp_path / "policy" / "model.safetensors").read_bytes()
    with torch.no_grad():
        policy.output_proj.bias.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"output_proj.bias holds numbers that are not finite"):
        save_policy(policy, tmp_path / "policy")
    assert (tmp_path / "policy" / "model.safetensors").read_bytes() == before
    save_file(dict(policy.state_dict()), tmp_path / "policy" / "model.safetensors")
    with pytest.raises(
        ValueError, match=r"policy/model.safetensors holds numbers .* in output_proj.bias; give another"
    ):
        load_policy(tmp_path / "policy")
    overrides = tiny_models(tmp_path)["sudoku"]
    folder = overrides[0].removeprefix("dlm.path=")
    weights = load_file(f"{folder}/model.safetensors")
    name = next(iter(weights))
    weights[name].view(-1)[0] = math.inf
    save_file(weights, f"{folder}/model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=f"sudoku .* holds numbers that are not finite, in {name}"):
        load_model(folder)


def test_weights_that_turn_bad_stop_the_run_before_anything_is_saved(tmp_path, monkeypatch):
    step = Optimiser.step

    def ruined(self, number):
        metrics = step(self, number)
        if number == 3:
            self.parameters[0].data.view(-1)[0] = math.nan
        return metrics

    monkeypatch.setattr(Optimiser, "step", ruined)
    with pytest.raises(
        FloatingPointError, match=r"after update 4 \(loss .*, lr 0.02, grad_norm .*\), so nothing was saved; the last"
    ):
        train(*TINY, f"run_dir={tmp_path}")
    kept = load_checkpoint(tmp_path / "checkpoints-meta/checkpoint.pth", "")
    assert kept["step"] == 3 and not_finite(kept["model"].items()) is None


@pytest.mark.parametrize("step", [-5, 10**9, 2.5])
def test_a_step_that_the_run_cannot_have_made_is_refused(tmp_path, step):
    train(*TINY, f"run_dir={tmp_path}", "training.n_iters=1", "optim.warmup=0")
    file = tmp_path / "checkpoints-meta" / "checkpoint.pth"
    state = torch.load(file, weights_only=True)
    del state[CHECKSUM]
    torch.save(state | {"step": step}, file)
    with pytest.raises(ValueError, match=f"checkpoint.pth is of step {step} and this run has made 1 at most"):
        train(f"resume={tmp_path}")


def test_a_policy_that_selects_nothing_stops_with_the_cause(tmp_path):
    tiny = tiny_models(tmp_path)["small"]
    words = ["algorithm=grpo", "policy=dit_confidence", *(f"policy.{key}={value}" for key, value in POLICY.items()),
             "policy.smart_init=-100", "training.batch_size=4", "algorithm.group_size=2", "device=cpu",
             f"run_dir={tmp_path / 'run'}", *tiny]  # fmt: skip
    with pytest.raises(
        FloatingPointError, match="selected no position in any rollout of iteration 0, so there is nothing"
    ):
        run_policy(tmp_path, *words)


def test_a_file_that_stands_for_more_than_it_holds_is_refused(tmp_path):
    file = tmp_path / "model.pth"
    lists: list = []
    for _ in range(40):
        lists = [lists, lists]
    itself: list = []
    itself.append(itself)
    bombs = {
        "has 1,000,000,000,000 elements and stores fewer": {"w": torch.zeros(1).expand(10**12)},
        "lists in lists": {"w": lists},
        "without end": {"w": itself},
    }
    for told, state in bombs.items():
        torch.save(state, file)
        assert file.stat().st_size < 10_000
        with pytest.raises(ValueError, match=f"model.pth .*{told}"):
            load_checkpoint(file, file)
    torch.save({"w": torch.zeros(100_000)}, tmp_path / "plain.pth")
    with zipfile.ZipFile(tmp_path / "plain.pth") as plain, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        for each in plain.namelist():
            packed.writestr(each, plain.read(each))
    for read in (lambda: load_checkpoint(io.BytesIO(file.read_bytes()), file), lambda: dict(stored(file))):
        with pytest.raises(ValueError, match="model.pth is compressed"):
            read()
    shared = torch.arange(6.0)
    torch.save({"tied": shared, "again": shared, "view": shared.view(2, 3).T, "betas": [(0.9, 0.95)] * 3}, file)
    assert load_checkpoint(file, file)["view"].shape == (3, 2)
