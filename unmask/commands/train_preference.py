"""Tune a causal model to preferences: DPO and KTO on pairs, RLOO on a reward; what guided decoding is compared with.

    python -m unmask train-preference init=smollm2 data.train=output/preferences/train.jsonl
    python -m unmask train-preference init=smollm2 preference.algorithm=rloo preference.reward=vader data.train=pairs.jsonl
    python -m unmask train-preference resume=output/2026.01.31/120000

By TRL, with LoRA by peft. Writes a run directory (see training/run.py); RUN/model, the updates merged in, is what load_model and
`--model` read. RLOO (2402.14740) is REINFORCE with the mean of the other answers as baseline: it stands where PPO stood, which
TRL has no more.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_preference", list(arguments))
