"""Train an unmasking policy on a frozen masked-diffusion model.

    torchrun --nproc-per-node 1 -m unmask train-policy training.accum=1 training.batch_size=8 sampler.steps=16
    python -m unmask train-policy experiment=sudoku6_budget
    python -m unmask train-policy experiment=llada_bl32 alpha_compute_reward=3
    python -m unmask train-policy resume=output/2026.01.31/120000

The command also accepts the keys of "Learning Unmasking Policies" (training/compatibility.py). It writes a run directory
(training/run.py). `unmask sample --strategy policy --policy RUN` loads the policy from RUN/policy.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_policy", list(arguments))
