"""The launchers: torchrun and accelerate start processes that train together, and stop together."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

ROOT = Path(__file__).parents[2]
TINY = [
    "run_train_policy.py", "dlm=chain", "data=chain", "reward=right", "algorithm=grpo", "algorithm.group_size=2",
    "policy=dit_confidence", "policy.hidden_dim=16", "policy.feedforward_dim=16", "policy.time_embed_dim=8", "device=cpu",
    "training.batch_size=4", "training.n_iters=2", "training.eval_freq=2", "training.snapshot_freq=2", "eval.batch_size=2",
    "sampler.steps=4", "wandb.mode=disabled",
]  # fmt: skip
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1"}
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [sys.executable, "-m", "accelerate.commands.launch", "--config_file"]


def reached(run: Path) -> int:
    return torch.load(run / "checkpoints-meta" / "checkpoint.pth", weights_only=True)["step"]


def test_accelerate_launch_starts_two_processes(tmp_path):
    """A sharded model, which one process would refuse."""
    pytest.importorskip("accelerate")
    command = [*ACCELERATE, "configs/accelerate/cpu.yaml", *TINY, "model.sharded=true", f"run_dir={tmp_path / 'run'}"]
    done = subprocess.run(command, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert reached(tmp_path / "run") == 2


@pytest.mark.parametrize("name, processes", [("1gpu", 1), ("8gpu_ddp", 8), ("cpu", 2)])
def test_accelerate_reads_its_configurations(name, processes):
    pytest.importorskip("accelerate")
    from accelerate.commands.config.config_args import load_config_from_file

    file = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    read = load_config_from_file(str(file))
    assert read.num_processes == processes and read.num_machines == 1
    assert yaml.safe_load(file.read_text())["mixed_precision"] == "no"  # model.dtype says it


@pytest.mark.slow
def test_torchrun_stops_all_its_processes_together_and_goes_on(tmp_path):
    run = tmp_path / "run"
    long = [o if "n_iters" not in o else "training.n_iters=100000" for o in TINY]
    command = [*TORCHRUN, *long, f"run_dir={run}", "training.eval_freq=1000", "training.snapshot_freq=100000"]
    log = tmp_path / "log"
    with open(log, "w") as file:
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=file, stderr=file)
    record, deadline = run / "metrics.jsonl", time.monotonic() + 240
    while not (record.exists() and record.read_text().count("\n") >= 2):
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=120) != 0
    told = (run / "logs" / "run.log").read_text()
    last = [json.loads(line) for line in record.read_text().splitlines()][-1]["step"]
    assert reached(run) == last and f"stopped by SIGTERM after step {last}, which is saved" in told
    more = [*TORCHRUN, "run_train_policy.py", f"resume={run}", f"training.n_iters={last + 2}"]
    done = subprocess.run(more, cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert reached(run) == last + 2
