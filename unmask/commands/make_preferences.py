"""Make preference pairs with a known ground truth: continuations of prompts by a language model, ranked by a reward.

    python -m unmask make-preferences --prefer vader --out output/preferences
    python -m unmask make-preferences --model smollm2 --prefer brevity --count 200 --out output/short

A prompt is the beginning of a story. The model (causal or masked) generates `--samples` continuations. The best is preferred to
the worst, the second best to the second worst, and so on. Pairs of equal texts or equal scores are dropped and counted.
DIR/train.jsonl, judge.jsonl (for a held-out judge) and valid.jsonl have different prompts. A line is JSON with "prompt",
"chosen", "rejected", and for both answers their score (_score) and whether the text reached its end (_ends). The same command
writes the same files.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.compatibility import current_flags
from training.interrupt import imported
from training.ranges import ROWS, Number, Whole


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask make-preferences", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="a directory")
    made.add_argument("--prefer", default="vader", help="vader, profanity, brevity, or any reward of rewards/models.py")
    made.add_argument(
        "--model", default="example/stories_causal", help="smollm2, a hub id or a directory; causal or masked"
    )
    made.add_argument(
        "--texts", default="stories", help="texts whose beginnings are the prompts: stories, or a file of texts"
    )
    made.add_argument("--words", type=Whole(0), default=4, help="words of a prompt; 0: no prompt")
    made.add_argument("--count", type=Whole(), default=500, help="number of prompts")
    made.add_argument("--samples", type=Whole(2, 1_000_000), default=4, help="continuations of each prompt")
    made.add_argument("--length", type=ROWS, default=64, help="tokens of prompt and continuation together")
    made.add_argument("--strategy", default=None, help="rule of a masked model: any rule of unmask sample")
    made.add_argument("--steps", type=ROWS, default=32, help="decoding steps of a masked model")
    made.add_argument("--temperature", type=Number(0, 1e6), default=1.0)
    made.add_argument("--top_p", type=Number(0, 1, open_low=True), default=1.0)
    made.add_argument("--batch_size", dest="batch", type=ROWS, default=128)
    made.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0)
    made.add_argument("--device", default="auto")
    return made


def main(arguments: Sequence[str]) -> None:
    """Write the preferences with the settings of the command line."""
    given = parser().parse_args(current_flags(arguments, "make-preferences"))
    imported("unmask.runs.make_preferences").run(given)
