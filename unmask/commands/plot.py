"""Draw the curves of training runs together: loss, reward, network evaluations (NFE) and the values of the evaluations.

    python -m unmask plot output/2026.01.31/120000
    python -m unmask plot RUN OTHER_RUN --out comparison.png

The command writes a PNG. Each run has one colour. Thin lines are training data, lines with dots are held-out data.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from training.curves import CURVES, METRICS, broken_line, curves, read_series, save_figure


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask plot", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("runs", metavar="RUN", nargs="+", help="a run directory")
    made.add_argument("--out", metavar="FILE", default=CURVES, help=f"the picture to write (default: {CURVES})")
    return made


def metrics_of(run: str) -> Path:
    """Return the metrics of a run directory. ValueError if it has none, or a line is not JSON."""
    directory = Path(run)
    if not (directory / ".hydra" / "config.yaml").is_file():
        raise ValueError(
            f"{run} is not a run directory ({run}/.hydra/config.yaml does not exist); give RUN of a training"
        )
    file = directory / METRICS
    if not file.is_file():
        raise ValueError(f"{run} has no {METRICS}, so it made no iteration yet; give a run that did")
    if (number := broken_line(file)) is not None:
        raise ValueError(f"{file} line {number} is no record of an iteration; take that line out")
    if not read_series(file):
        raise ValueError(f"{file} is empty; give a run that made an iteration")
    return file


def main(arguments: Sequence[str]) -> None:
    """Draw the curves of the runs, and print the path of the picture."""
    given = parser().parse_args(arguments)
    runs = list(dict.fromkeys(str(Path(run)) for run in given.runs))
    out = Path(given.out)
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} is no PNG; give a name that ends in .png")
    if not out.absolute().parent.is_dir():
        raise ValueError(f"--out {out}: the directory {out.parent} does not exist; make it, or give another file")
    save_figure(curves({run: metrics_of(run) for run in runs}), out)
    print(f"{len(runs)} run{'s' if len(runs) > 1 else ''} drawn to {out}")
