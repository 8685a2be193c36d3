"""Learn a reward model from preference pairs: of whole answers, of prefixes, or of canvases with masks.

    python -m unmask make-preferences --prefer vader --out output/preferences
    python -m unmask train-reward data.train=output/preferences/train.jsonl reward.kind=mask
    python -m unmask train-reward init=gpt2 reward.kind=prefix data.train=tldr
    python -m unmask train-reward reward.head=vocabulary init=example/stories reward.kind=mask data.train=pairs.jsonl
    python -m unmask train-reward resume=output/2026.01.31/120000

Writes a run directory (see training/run.py); RUN is what `reward=learned reward.model=RUN` reads. Sequence models learn by TRL's
RewardTrainer, vocabulary heads by rl/vocabulary_head.py.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("train_reward", list(arguments))
