"""Runs of run_train_policy.py that were cut: resumed, killed, stopped by SIGTERM, and asked to go on as something else."""

import hashlib
import os
import signal
import subprocess
import time

import pytest
import torch
import yaml
from omegaconf import OmegaConf

from policy.checkpoints import load_policy
from policy.train import LEARNING
from tests.policy_runs import DIT, GROUPS, QUICK, REPELLING, ROOT, RULE, assert_equal, command, record, run, saved
from training.compatibility import translated
from training.storage import CHECKSUM, checksum

RESUMED = {
    "grpo": ["algorithm=grpo", "policy=dit_confidence", *DIT, "policy.smart_init=0", *GROUPS, "text", "sampler.length=8"],
    "grpo with a KL": [
        "algorithm=grpo", "policy=hidden_mlp", "algorithm.kl=0.1", "algorithm.warm_start.updates=2", *GROUPS, "text", "sampler.length=8",
    ],
    "ppo": ["algorithm=ppo", "policy=dit_confidence", *DIT, "policy.smart_init=0", "training.batch_size=4", "small"],
    "variational": ["algorithm=variational", "policy=hidden_mlp", "training.batch_size=4", "training.accum=2", "text"],
    "bound": [*REPELLING, "opinion"],
    "imitation": ["algorithm=imitation", "policy=dit_projection", *DIT, "training.batch_size=4", "small"],
    "imitation of a rule": ["algorithm=imitation", *RULE, "policy=hidden_mlp", "training.batch_size=4", "text"],
}  # fmt: skip


@pytest.mark.parametrize("case", RESUMED)
def test_a_resumed_run_is_the_uninterrupted_one(case, tiny, tmp_path):
    overrides = [o for name in RESUMED[case] for o in tiny.get(name, [name])] + ["sampler.steps=3", *QUICK]
    whole = run(tmp_path / "whole", *overrides, "training.n_iters=4")
    half = run(tmp_path / "half", *overrides)
    assert saved(half)["step"] == 2
    assert run(tmp_path / "half", "resume=RUN", "training.n_iters=4") == half
    assert record(half) == record(whole) and record(half).keys() == {1, 2, 3, 4}
    assert_equal(saved(half), saved(whole))
    assert_equal(load_policy(half).state_dict(), load_policy(whole).state_dict())


def test_a_run_with_old_keys_goes_on_and_keeps_them(tiny, tmp_path):
    overrides = [*tiny["text"], "algorithm=grpo", *GROUPS, "sampler.length=8", "sampler.steps=3", *QUICK]
    whole = run(tmp_path / "whole", *overrides, "training.n_iters=4")
    half = run(tmp_path / "half", *overrides)
    file = half / ".hydra" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["sampling"] = config.pop("sampler")
    config["sampling"]["discrete_steps"] = config["sampling"].pop("steps")
    file.write_text(old := yaml.safe_dump(config, sort_keys=False))
    fixed = config | {"run_dir": None, "device": None, "wandb": config["wandb"] | {"mode": None}}
    fixed["training"] = config["training"] | {"n_iters": None, "log_freq": None}
    digest = hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(fixed)).encode()).hexdigest()
    state = saved(half) | {"run": digest[:16]}
    torch.save(state | {CHECKSUM: checksum(state)}, half / "checkpoints-meta" / "checkpoint.pth")
    with pytest.raises(ValueError, match="sampler.steps: the run has 3, the command asks for 4"):
        run(half, "resume=RUN", *translated(["sampling.discrete_steps=4"]))
    assert run(half, "resume=RUN", "training.n_iters=4", *translated(["sampling.discrete_steps=3"])) == half
    assert record(half) == record(whole) and file.read_text() == old
    assert_equal(saved(half)["policy_model"], saved(whole)["policy_model"])


def test_resuming_with_another_configuration_lists_the_differences(tiny, tmp_path):
    overrides = [*tiny["small"], *QUICK, "training.batch_size=4"]
    run(tmp_path / "run", *overrides)
    with pytest.raises(ValueError) as error:
        run(
            tmp_path / "run", "resume=RUN", "training.batch_size=8", "optim.lr=0.5", "seed=0", "experiment=sudoku6_grpo"
        )
    message = str(error.value)
    assert "training.batch_size: the run has 4, the command asks for 8" in message
    assert "optim.lr: the run has 0.001, the command asks for 0.5" in message
    assert "the run was not started with experiment=sudoku6_grpo" in message
    assert "seed" not in message
    with pytest.raises(ValueError, match="is not a run directory"):
        run(tmp_path / "nothing", "resume=RUN")


def test_a_killed_run_goes_on(tiny, tmp_path):
    """kill -9 somewhere after the second of 30 steps, resumed, against a run that was left alone."""
    every = ["training.snapshot_freq_for_preemption=1", "training.snapshot_freq=100", "training.eval_freq=100"]
    every += ["training.batch_size=4", "training.n_iters=30", "sampler.steps=2", "wandb.mode=disabled"]
    overrides = [*tiny["small"], *QUICK, *every]
    whole = run(tmp_path / "whole", *overrides)
    directory = tmp_path / "killed"
    argv, environment = command(
        str(ROOT / "run_train_policy.py"), *(o.replace("RUN", str(directory)) for o in overrides)
    )
    process = subprocess.Popen(argv, env=environment, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    metrics, deadline = directory / "metrics.jsonl", time.monotonic() + 240
    while process.poll() is None and time.monotonic() < deadline:
        if metrics.exists() and metrics.read_text().count("\n") >= 2:
            process.send_signal(signal.SIGKILL)
            break
        time.sleep(0.005)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, errors.decode()
    assert saved(directory)["step"] < 30
    argv, environment = command(str(ROOT / "run_train_policy.py"), f"resume={directory}", "device=cpu")
    resumed = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert resumed.returncode == 0, resumed.stderr
    assert record(directory) == record(whole)
    assert_equal(saved(directory), saved(whole))


@pytest.mark.parametrize("algorithm", ["grpo", "variational"])
def test_sigterm_saves_and_ends_with_143(algorithm, tiny, tmp_path, monkeypatch, capsys):
    """In the middle of step 2 of 4: the step is finished, saved and gone on from, as if nothing had been."""
    overrides = [*tiny["small"], *QUICK, f"algorithm={algorithm}", "training.batch_size=8", "training.n_iters=4"]
    overrides += ["training.eval_freq=4", "training.snapshot_freq=4", "sampler.steps=2"]
    whole = run(tmp_path / "whole", *overrides)
    learning = LEARNING[algorithm]
    iteration = learning.iteration

    def interrupted(self, step):
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return iteration(self, step)

    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(learning, "iteration", interrupted)
    with pytest.raises(SystemExit) as left:
        run(tmp_path / "stopped", *overrides)
    monkeypatch.undo()
    assert left.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    directory = tmp_path / "stopped"
    told = f"stopped by SIGTERM after step 2, which is saved; resume={directory} goes on"
    assert told in capsys.readouterr().out and saved(directory)["step"] == 2
    run(directory, "resume=RUN")
    assert record(directory) == record(whole)
    assert_equal(saved(directory), saved(whole))
