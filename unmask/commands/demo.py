"""The whole main job, small: learn where to unmask, sample, compare, look.

    ./demo [--out output/demo] [--iterations 300] [--puzzles 200] [--stories 16]

1. Trains an unmasking policy on the shipped Sudoku backbone, from random weights: which of the backbone's best tokens are right.
2. Solves held-out puzzles and 3. writes stories with direct, confidence, threshold, dilated (which learns nothing) and policy.
Prints one table of quality and cost; writes a Pareto plot, the samples, and an HTML page that replays the unmasking step by step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from training.interrupt import imported
from training.ranges import ROWS


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m unmask demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", default="output/demo", help="where to write (a folder a run)")
    made.add_argument("--iterations", type=ROWS, default=300, help="updates of the policy")
    made.add_argument("--puzzles", type=ROWS, default=200, help="held-out puzzles")
    made.add_argument("--stories", type=ROWS, default=16, help="samples a strategy")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the demo with the settings of the command line."""
    given = parser().parse_args(arguments)
    imported("unmask.runs.demo").run(given)
