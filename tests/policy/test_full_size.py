"""One whole iteration of GRPO on a language model of 135M parameters, on a CPU, through the command's own main."""

import json
import math
import re
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from dlm.adapt import AdapterLM, adapter_config, give_mask, mask_of
from dlm.checkpoints.adapter import load_bidirectional
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.smollm2 import smollm2_folder
from policy.checkpoints import load_policy
from training.usage import CONFIGS
from unmask.runs import train_policy


@pytest.mark.slow
def test_an_iteration_of_grpo_on_the_adapted_smollm2(tmp_path):
    """Adapted without a step: what this shows is that it runs and learns, not that it writes well. Prints seconds and memory."""
    try:
        smollm2_folder()
    except ValueError as missing:
        pytest.skip(str(missing))
    model = load_bidirectional("smollm2", length=16)
    give_mask(model, mask_of(model.tokenizer))
    adapter = AdapterLM(model, adapter_config("smollm2", model.mask_id, 16, 32, 0.0, ["q_proj", "v_proj"]))
    save_model(adapter, model.config, tmp_path / "adapted")
    del model, adapter
    overrides = [
        f"dlm.path={tmp_path / 'adapted'}", "data.tokenizer=model", "reward.judge=smollm2", "device=cpu",
        "policy=dit_confidence", "algorithm=grpo", "algorithm.group_size=4", "training.batch_size=8", "training.n_iters=1",
        "eval.batch_size=2", "training.log_freq=1", "training.ema=0.0", "wandb.mode=disabled", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    with initialize_config_dir(str(CONFIGS), version_base=None):
        config = compose("train_policy", overrides)
    began, worked = time.perf_counter(), time.process_time()
    directory = train_policy.run(config, overrides)
    took, worked = time.perf_counter() - began, time.process_time() - worked
    metrics = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        metrics |= json.loads(line)
    peak = int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]) / 2**20
    print(f"\n{took:.0f} s, of which {worked:.0f} s of one thread; peak memory {peak:.2f} GiB; {metrics}")
    assert metrics["step"] == 1 and all(math.isfinite(value) for value in metrics.values())
    assert metrics["grad_norm"] > 0
    learnt = load_policy(directory / "policy").state_dict()
    assert all(tensor.isfinite().all() for tensor in learnt.values())
