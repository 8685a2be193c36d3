"""Make a corpus of LaTeX formulas with descriptions to learn from; offline and without end (data/formulas.py).

    python run_make_formulas.py --rows 50000 --out output/formulas
    python run_make_formulas.py --rows 50000 --out output/formulas --broken 0.3 --seed 1

Writes train.jsonl and valid.jsonl, a {"question", "answer"} a line. `--broken` is the share of answers that are no valid
formulas, so that there is something left to learn by reward. The same seed gives the same rows,
and more of them begin with the same ones.
"""

if __name__ == "__main__":
    from training.interrupt import end_in_one_line

    end_in_one_line()  # before the imports below, which take seconds

import argparse
import json
import time
from pathlib import Path

from data.formulas import is_held_out, row
from training.files import make_directory, replacing
from training.ranges import Number, Whole
from training.usage import exit_on_bad_input


def make_formulas(rows: int, out: Path, broken: float, seed: int, depth: int) -> dict[str, int]:
    """Write both files, whole or not at all; counts of what was written."""
    make_directory(out, f"--out {out}")
    counts = {"train": 0, "valid": 0, "broken": 0}
    with (
        replacing(out / "train.jsonl") as train_part,
        replacing(out / "valid.jsonl") as valid_part,
        train_part.open("w", encoding="utf-8", newline="") as train,
        valid_part.open("w", encoding="utf-8", newline="") as valid,
    ):
        for number in range(rows):
            made, is_broken = row(seed, number, broken, depth)
            held_out = is_held_out(made["question"])
            (valid if held_out else train).write(json.dumps(made, ensure_ascii=False) + "\n")
            counts["valid" if held_out else "train"] += 1
            counts["broken"] += is_broken
    return counts


def main(arguments: list[str] | None = None) -> None:
    """Write the formulas that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Whole(), default=50_000)
    parser.add_argument("--out", type=Path, required=True, help="a directory")
    parser.add_argument("--broken", type=Number(0, 1), default=0.0, help="share of answers that are broken, 0 to 1")
    parser.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0)
    parser.add_argument("--depth", type=Whole(1, 20), default=2, help="structures within each other, at most")
    options = parser.parse_args(arguments)
    start = time.perf_counter()
    counts = make_formulas(options.rows, options.out, options.broken, options.seed, options.depth)
    speed = options.rows / (time.perf_counter() - start)
    print(
        f"{counts['train']} training and {counts['valid']} held-out rows in {options.out}, {counts['broken']} broken; "
        f"{speed:,.0f} rows a second"
    )


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
