"""Tune a causal model to preferences, as a baseline of guided decoding: DPO and KTO on pairs, RLOO on a reward.

    python -m unmask train-preference init=smollm2 data.train=output/preferences/train.jsonl
    python -m unmask train-preference init=smollm2 preference.algorithm=rloo preference.reward=vader data.train=pairs.jsonl
    python -m unmask train-preference resume=output/2026.01.31/120000

TRL trains the model, with LoRA by peft. The command writes a run directory (training/run.py). RUN/model holds the model including
the merged updates; load_model and `--model` load it. RLOO (2402.14740) is REINFORCE with the mean reward of the other answers as
baseline. It replaces PPO, which TRL no longer has.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_preference", list(arguments))
