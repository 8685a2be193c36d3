"""Make a corpus of short children's stories by sampling a causal language model, as for the shipped `data/stories`.

    python -m unmask make-stories --count 3000 --out stories.jsonl.gz
    python -m unmask make-stories --split stories.jsonl.gz --out data/stories

The first command samples stories from SmolLM2-135M-Instruct (or `--model`) at temperature 0.6 and top-p 0.9. It cuts each story
at its last full sentence, drops repetitive stories, and appends {prompt, text} line by line. With the same `--out` it continues
where it stopped. The second command holds out about one story in twelve, chosen by a hash of the text, and writes train.jsonl.gz
and valid.jsonl.gz.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.compatibility import current_flags
from training.interrupt import imported
from training.ranges import ROWS, Whole


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask make-stories", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", type=Path, required=True, help="a .jsonl.gz file, or with --split a directory")
    made.add_argument("--split", type=Path, help="do not sample: split this file of stories")
    made.add_argument("--count", type=Whole(), default=3000)
    made.add_argument("--model", default="smollm2", help="smollm2, a causal hub id or a directory")
    made.add_argument("--tokens", type=ROWS, default=160, help="largest number of tokens of a story")
    made.add_argument("--batch_size", dest="batch", type=ROWS, default=32)
    made.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    return made


def main(arguments: Sequence[str]) -> None:
    """Write stories, or split a file of stories."""
    given = parser().parse_args(current_flags(arguments, "make-stories"))
    imported("unmask.runs.make_stories").run(given)
