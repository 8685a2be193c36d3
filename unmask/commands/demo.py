"""Train a policy, sample, and compare it with rules, in some minutes on a CPU.

    ./demo [--out output/demo] [--iterations 300] [--puzzles 200] [--stories 16]

1. Train an unmasking policy from random weights on the shipped Sudoku model. It learns which of the model's best tokens are
right. 2. Solve held-out puzzles with direct, confidence, threshold, dilated (which has no training) and the policy. 3. Generate
stories with the same rules and a shipped policy.

The command prints one table of quality and cost. It writes a Pareto plot, the samples, and HTML pages that replay the decoding
step by step.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from training.interrupt import imported
from training.ranges import ROWS


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask demo", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--out", default="output/demo", help="directory of the outputs; each run gets a subdirectory")
    made.add_argument("--iterations", type=ROWS, default=300, help="updates of the policy")
    made.add_argument("--puzzles", type=ROWS, default=200, help="number of held-out puzzles")
    made.add_argument("--stories", type=ROWS, default=16, help="stories per rule")
    return made


def main(arguments: Sequence[str]) -> None:
    """Run the demo with the settings of the command line."""
    given = parser().parse_args(arguments)
    imported("unmask.runs.demo").run(given)
