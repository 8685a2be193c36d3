"""Two evaluations of the same questions against each other: is the difference more than chance?

    python -m unmask compare DIR_A DIR_B

Each DIR is one that unmask evaluate wrote (--save_path, where it holds one rule; else --save_path/NAME), or one directory of
generations. For each data set that both hold: the difference of accuracy and of evaluations (A - B) with a 95 % paired bootstrap
interval over questions, seeds averaged; and McNemar's exact test (1947; two-sided): of the questions that only one of them got
right, as many fall to each side if neither is better. With several seeds a question counts for the one that was right more often,
in as many seeds as both have: a mean over more seeds than the other's differs from it without being worse.
Prints a table, then one line of JSON.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.interrupt import imported


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m unmask compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("a", type=Path, metavar="DIR_A")
    made.add_argument("b", type=Path, metavar="DIR_B")
    return made


def main(arguments: Sequence[str]) -> None:
    """Print the comparison of two evaluations."""
    given = parser().parse_args(arguments)
    imported("evaluation.compare").report(given.a, given.b)
