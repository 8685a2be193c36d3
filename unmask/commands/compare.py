"""Compare two evaluations of the same questions: is their difference larger than chance?

    python -m unmask compare DIR_A DIR_B

Each DIR is a directory that unmask evaluate wrote: --out if it holds one rule, otherwise --out/NAME, or one directory
of generations. For each data set in both, the command prints a table and one line of JSON with:

* the differences of accuracy and of network evaluations (A - B), averaged over seeds, with a 95 % paired bootstrap interval over
  questions;
* the p-value of McNemar's exact two-sided test (1947). The test uses the questions that only A or only B answered right. If A and
  B are equally good, the two numbers are equal on average.

With several seeds a question counts for the evaluation that answered it right more often. Both evaluations then contribute the
same number of seeds, because a mean over more seeds differs from one over fewer seeds without being better.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.interrupt import imported


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
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
