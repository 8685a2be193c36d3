"""One of the processes of test_two_processes.py: python -m tests.training.ranks CASES.json RANK, or (no rank) all of them alone.

Each case is a command in this process: {name, script, overrides, port}. What each process ends with goes to NAME.RANK.pt.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from hydra import compose, initialize_config_dir

import policy.train
from rewards.rules import RewardOutput
from training.trainer import Trainer
from unmask.runs import train_dlm, train_policy, train_rl, train_twist

CONFIGS = Path(__file__).parents[2] / "configs"
SCRIPTS = {"train_policy": train_policy, "train_dlm": train_dlm, "train_rl": train_rl,
           "train_twist": train_twist}  # fmt: skip


def half_constant(rollout):
    """Rollouts whose second half earns the same, whatever it does: nothing to learn from for the process that has it."""

    def rewarded(*arguments, **settings):
        samples, reward = rollout(*arguments, **settings)
        if samples.trajectory is None:  # an evaluation
            return samples, reward
        earned = samples.tokens.float().mean(1)
        rank = dist.get_rank() if dist.is_initialized() else 0
        if rank == 1:
            earned = torch.zeros_like(earned)
        elif not dist.is_initialized():
            earned[len(earned) // 2 :] = 0.0
        return samples, RewardOutput(earned, reward.terms)

    return rewarded


def run(case: dict, rank: int, directory: Path) -> None:
    """Run one case, and keep the weights that it ends with and how many forwards were made."""
    script = SCRIPTS[case["script"]]
    train, rollout = Trainer.train, policy.train.rollout
    seen = {"forwards": 0}

    def kept(trainer):
        model = trainer.algorithm.model

        def counted(forward):
            def counting(*arguments, **settings):
                seen["forwards"] += 1
                return forward(*arguments, **settings)

            return counting

        for name in ("hidden_rows", "hidden_spans"):
            if hasattr(model, name):
                setattr(model, name, counted(getattr(model, name)))
        train(trainer)
        weights = [p.detach().clone() for p in trainer.learner.network.parameters()]
        local = [p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in model.backbone.parameters()]
        torch.save({"weights": weights, "backbone": sum(local), **seen}, directory / f"{case['name']}.{rank}.pt")

    Trainer.train = kept
    if case.get("half_constant"):
        policy.train.rollout = half_constant(rollout)
    overrides = [*case["overrides"], f"run_dir={directory / case['name']}"]
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            config = compose(case["script"], overrides)
        script.run(config, overrides)
    finally:
        Trainer.train, policy.train.rollout = train, rollout


if __name__ == "__main__":
    torch.set_num_threads(1)
    cases, rank = Path(sys.argv[1]), int(sys.argv[2])
    for case in json.loads(cases.read_text()):
        os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT=case["port"])  # fmt: skip
        run(case, rank, cases.parent)
