"""Train a masked-diffusion model by reinforcement learning: PPO, GRPO, and Diffusion-DPO on preference pairs.

    python -m unmask train-rl experiment=chain_rl
    python -m unmask train-rl init=RUN rl.algorithm=ppo rl.batch_size=4 rl.kl_beta=0.1 rl.ppo_epochs=3 rl.reward_freq=10
    python -m unmask train-rl init=RUN rl.algorithm=vrpo data=pairs data.pairs=pairs.jsonl
    torchrun --nproc-per-node 8 -m unmask train-rl init=RUN rl.batch_size=64
    python -m unmask train-rl resume=output/2026.01.31/120000

The command writes a run directory (training/run.py). load_model, `unmask sample --model` and `init=` load its subdirectory
RUN/model.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_rl", list(arguments))
