"""Score methods by accuracy under parallelism (AUP): one number for a curve of accuracy against tokens per forward.

    python -m unmask aup output/rules
    python -m unmask aup leaderboard.yaml
    python -m unmask aup leaderboard.yaml --add ours=output/rules --task GSM8K --save leaderboard.yaml

A leaderboard is a YAML mapping task -> method -> list of [tokens per forward, accuracy in percent], as published with arXiv
2601.07568. A source of points is a leaderboard, the --out of unmask evaluate, its summary_statistics.csv, a CSV file with the
columns tpf and accuracy (percent; optionally method and task), or a JSON list of pairs.

The command prints a table with the AUP of each method on each task, and one line of JSON. The weight of an accuracy depends on
the best accuracy of any method on the task, so a new method can change the AUP of others. Methods of an evaluation have a 95 %
bootstrap interval over questions. `docs/measures.md` has the formula.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.interrupt import imported
from training.ranges import Number


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask aup", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("file", nargs="?", type=Path, metavar="SOURCE", help="a leaderboard, or another source of points")
    made.add_argument(
        "--add", action="append", default=[], metavar="[METHOD=]SOURCE",
        help="more points, under the name METHOD (default: their own names); they replace those of a method of that name",
    )  # fmt: skip
    made.add_argument("--task", help="name of the task of the added points (default: their own)")
    made.add_argument(
        "--alpha", type=Number(0, 1e6), default=3.0, help="how fast the weight of lost accuracy falls (3)"
    )
    made.add_argument("--save", type=Path, metavar="FILE.yaml", help="write all points into this leaderboard")
    return made


def main(arguments: Sequence[str]) -> None:
    """Print the table of a leaderboard."""
    given = parser().parse_args(arguments)
    imported("evaluation.leaderboard").run(given.file, given.add, given.task, given.alpha, given.save)
