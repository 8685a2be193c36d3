"""Train a twist of a causal or masked model for a target: CTL, RL, SIXO, FUDGE, DPG, PPO (Zhao et al., 2404.17546).

    python -m unmask train-twist method=ctl target=infilling training.particles=10
    python -m unmask train-twist experiment=tox_collect
    python -m unmask train-twist experiment=tox_ctl posterior.path=RUN/posterior.safetensors
    torchrun --nproc-per-node 8 -m unmask train-twist experiment=sent_dpg training.batch_size=104
    python -m unmask train-twist experiment=infill15_samples compare=[RUN,RUN,RUN]
    python -m unmask train-twist resume=output/2026.01.31/120000

The command writes a run directory with the twist (RUN/twist) and its evaluations (RUN/evaluations.json), which `python -m
evaluation.kl_report` reads.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_twist", list(arguments))
