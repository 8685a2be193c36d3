"""Train a reward model on preference pairs: of whole answers, of prefixes, or of canvases with masks.

    python -m unmask make-preferences --prefer vader --out output/preferences
    python -m unmask train-reward data.train=output/preferences/train.jsonl reward.kind=mask
    python -m unmask train-reward init=gpt2 reward.kind=prefix data.train=tldr
    python -m unmask train-reward reward.head=vocabulary init=example/stories reward.kind=mask data.train=pairs.jsonl
    python -m unmask train-reward resume=output/2026.01.31/120000

The command writes a run directory (training/run.py); `reward=learned reward.model=RUN` loads it. TRL's RewardTrainer trains
sequence models, and rl/vocabulary_head.py trains vocabulary heads.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_reward", list(arguments))
