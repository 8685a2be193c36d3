"""Make a corpus of LaTeX formulas with descriptions to learn from; offline and without end (data/formulas.py).

    python -m unmask make-formulas --rows 50000 --out output/formulas
    python -m unmask make-formulas --rows 50000 --out output/formulas --broken 0.3 --seed 1

Writes train.jsonl and valid.jsonl, a {"question", "answer"} a line. `--broken` is the share of answers that are no valid
formulas, so that there is something left to learn by reward. The same seed gives the same rows,
and more of them begin with the same ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.interrupt import imported
from training.ranges import Number, Whole


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        "python -m unmask make-formulas", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--rows", type=Whole(), default=50_000)
    made.add_argument("--out", type=Path, required=True, help="a directory")
    made.add_argument("--broken", type=Number(0, 1), default=0.0, help="share of answers that are broken, 0 to 1")
    made.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0)
    made.add_argument("--depth", type=Whole(1, 20), default=2, help="structures within each other, at most")
    return made


def main(arguments: Sequence[str]) -> None:
    """Write the formulas that the command line asks for."""
    given = parser().parse_args(arguments)
    imported("unmask.runs.make_formulas").run(given)
