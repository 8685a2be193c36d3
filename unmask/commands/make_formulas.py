"""Make a corpus of LaTeX formulas with descriptions for training; offline and of any size (data/formulas.py).

    python -m unmask make-formulas --rows 50000 --out output/formulas
    python -m unmask make-formulas --rows 50000 --out output/formulas --broken 0.3 --seed 1

The command writes train.jsonl and valid.jsonl, one {"question", "answer"} per line. `--broken` is the share of answers that are
invalid formulas, so that a reward has something to improve. The same seed gives the same rows, and a larger corpus begins with
the rows of a smaller one.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.interrupt import imported
from training.ranges import Number, Whole


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask make-formulas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", type=Whole(), default=50_000)
    made.add_argument("--out", type=Path, required=True, help="a directory")
    made.add_argument("--broken", type=Number(0, 1), default=0.0, help="share of invalid answers, 0 to 1")
    made.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0)
    made.add_argument("--depth", type=Whole(1, 20), default=2, help="largest number of nested structures")
    return made


def main(arguments: Sequence[str]) -> None:
    """Write the formulas with the settings of the command line."""
    given = parser().parse_args(arguments)
    imported("unmask.runs.make_formulas").run(given)
