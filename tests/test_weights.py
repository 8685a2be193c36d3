"""Weights that are not finite are neither written nor read, and a checkpoint whose bytes changed is refused."""

import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from load_model import load_model
from policy.checkpoints import load_policy, save_policy
from policy.networks import DitConfidence
from tests.policy_runs import run as run_policy
from tests.policy_runs import tiny_models
from tests.training.test_run import TINY, train
from training.optim import Optimiser
from weights import CHECKSUM, check_written, checksum, load_checkpoint, not_finite

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
