"""Compute the zero-shot perplexity of a model on held-out text: exp of the bound on -log p per token.

    python -m unmask perplexity --model JingyangOu/radd-t-dce --data wikitext2 lambada ptb wikitext103 lm1b
    python -m unmask perplexity --model example/stories --data stories

For masked models the value is a Monte Carlo estimate of the lambda-DCE bound with `--noises` low-discrepancy mask rates per row,
and its standard error over rows. For causal models it is exact. A value that is not a finite number (the standard error of a
single row, for example) is null. Text is packed into rows of the model's length, as in RADD's zero-shot table.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from evaluation.names import NOISES
from training.compatibility import current_flags
from training.interrupt import imported
from training.ranges import ROWS, Whole


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask perplexity", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--model", default="example/stories", help="hub id, directory, run or .pth of a run")
    made.add_argument(
        "--data", nargs="+", default=["stories"], help="lambada wikitext2 ptb wikitext103 lm1b, a hub id, a file"
    )
    made.add_argument("--split", default="valid", help="train, valid or test")
    made.add_argument("--rows", type=Whole(2), default=None, help="rows to score (default: all)")
    made.add_argument("--length", type=ROWS, default=None, help="positions per row (default: the model's)")
    made.add_argument(
        "--noises", type=ROWS, help=f"mask rates per row of a masked model ({NOISES}); the published script uses 1,024"
    )
    made.add_argument("--batch_size", type=ROWS, default=16)
    made.add_argument("--seed", type=Whole(0, 2**63 - 1), help="seed of the mask rates and masks of a masked model (0)")
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--cache_dir", default=None)
    return made


def main(arguments: Sequence[str]) -> None:
    """Print the perplexity bound of a model on data sets."""
    given = parser().parse_args(current_flags(arguments, "perplexity"))
    imported("unmask.runs.perplexity").run(given)
