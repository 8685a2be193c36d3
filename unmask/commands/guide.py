"""Decode every prompt of a file with every method, guided by rewards or not.

    python -m unmask guide experiment=pargs_smollm2_decode out=output/guide
    python -m unmask guide dlm=stories prompts.file=prompts.jsonl out=DIR rewards.full=RUN rewards.partial=RUN sampler.steps=16

DIR has generation_METHOD.json ([{"prompt", "result"}]) of each method, rewards.csv (a row a prompt, a column a method: reward
under the selector) and costs.csv (a row a method: evaluations and reward rows a token, seconds). One line of
DIR/METHOD/generations.jsonl a prompt, written as its batch finishes: what was killed goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("guide", list(arguments))
