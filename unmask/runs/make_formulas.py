"""The work of `make-formulas`: write training and held-out formulas."""

import argparse
import json
import time
from pathlib import Path

from data.formulas import is_held_out, row
from training.files import make_directory, replacing


def make_formulas(rows: int, out: Path, broken: float, seed: int, depth: int) -> dict[str, int]:
    """Write both files, each as a whole; return the numbers of rows."""
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


def run(options: argparse.Namespace) -> None:
    """Write the formulas, and print how many."""
    start = time.perf_counter()
    counts = make_formulas(options.rows, options.out, options.broken, options.seed, options.depth)
    speed = options.rows / (time.perf_counter() - start)
    print(
        f"{counts['train']} training and {counts['valid']} held-out rows in {options.out}, {counts['broken']} broken; "
        f"{speed:,.0f} rows a second"
    )
