"""Decode every prompt of a file with every method, guided by a reward or not.

    python -m unmask guide experiment=pargs_smollm2_decode out=output/guide
    python -m unmask guide dlm=stories prompts.file=prompts.jsonl out=DIR rewards.full=RUN rewards.partial=RUN sampler.steps=16

DIR gets these files:

* generation_METHOD.json of each method: [{"prompt", "result"}];
* rewards.csv: the reward under the selector, one row per prompt and one column per method;
* costs.csv: network evaluations and reward rows per token, and seconds, one row per method;
* METHOD/generations.jsonl: one line per prompt, written when its batch is finished. A killed command continues after these lines.
"""

from __future__ import annotations

from collections.abc import Sequence

from unmask.runs.configured import run_configured


def main(arguments: Sequence[str]) -> None:
    """Run with the settings of the command line."""
    run_configured("guide", list(arguments))
