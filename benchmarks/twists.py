"""Six training objectives of twists on three tasks that run on a CPU: KL between proposal and target, over training seeds.

    OMP_NUM_THREADS=1 python -m benchmarks.twists --tasks infilling sentiment masked --seeds 5
    OMP_NUM_THREADS=1 python -m benchmarks.twists --tasks sentiment --sweep 3e-4 1e-3 3e-3

The frozen models are the shipped ones of stories; a text has LENGTH tokens. The tasks are

* infilling: generate text before two given tokens, with the causal model;
* sentiment: VADER's sentiment as an exact potential, with the causal model;
* masked: the same potential with the masked model; position and token are drawn together.

Twists are heads of three layers on the frozen hidden states. Runs are those of train-twist, kept under --runs and not repeated;
all runs of a task share their exact samples. With --sweep each method is trained for --sweep_updates at each learning rate, with
a separate seed, and the command prints G - F, the sum of both KLs. The command writes --out DIR/TASK (evaluation/kl_report.py)
and prints its table.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from pathlib import Path

import torch

from benchmarks.steering import loaded
from evaluation import kl_report
from evaluation.intervals import Z95
from evaluation.report import print_table, write_csv
from training.ranges import ROWS, Number
from training.usage import composed
from twist.evaluate import sandwich
from unmask.runs.train_twist import run as train_twist

LENGTH = 10
METHODS = ("ctl", "rl", "sixo", "fudge", "dpg", "ppo")
TASKS = {
    "infilling": [
        "target=infilling",
        "target.tokens=2",
        "training.batch_size=50",
        "optim.schedule=cosine",
    ],
    "sentiment": ["target=vader", "training.batch_size=50", "optim.schedule=cosine"],
    "masked": ["dlm=stories", "target=vader", "training.batch_size=32", "optim.schedule=cosine"],
}
# Chosen by --sweep, for each task and method.
RATES = {
    "infilling": {"ctl": 1e-3, "rl": 1e-3, "sixo": 3e-3, "fudge": 1e-4, "dpg": 3e-3, "ppo": 1e-4},
    "sentiment": {"ctl": 3e-4, "rl": 1e-3, "sixo": 3e-4, "fudge": 3e-3, "dpg": 1e-3, "ppo": 3e-3},
    "masked": {"ctl": 3e-4, "rl": 3e-4, "sixo": 1e-3, "fudge": 3e-3, "dpg": 3e-3, "ppo": 1e-3},
}
# CTL compares the sequences of a condition; the others, as published, take one of each.
PAIRED = {("infilling", "ctl"): ["training.particles=10"]}
SWEPT = 100  # the seed of sweeps
PARTICLES = 32  # of each condition, for log Z of infilling
MANY, SETS = 256, 100  # particles, and sets of them, for log Z of the others


def exact_samples(task: str, runs: Path, count: int) -> Path:
    """Return the file of a task's exact samples; collect them if it does not exist."""
    directory = runs / task / "exact"
    file = directory / "posterior.safetensors"
    if not file.is_file():
        trained([*TASKS[task], "mode=collect", f"posterior.count={count}", f"run_dir={directory}"])
    return file


def trained(overrides: list[str]) -> None:
    train_twist(composed("train_twist", [*overrides, f"length={LENGTH}", "wandb.mode=disabled"]), overrides)


def run(task: str, method: str, seed: int, rate: float, updates: int, directory: Path, shared: list[str]) -> dict:
    """Return the last evaluation of a run, which is made if it does not exist. shared: overrides of all runs of a task. The
    run's bounds on log Z are loose, because `log_z_of` gives a better estimate."""
    file = directory / "evaluations.json"
    known = json.loads(file.read_text(encoding="utf-8-sig")) if file.is_file() else []
    if not any(record["updates"] == updates for record in known):
        trained([
            *TASKS[task], *PAIRED.get((task, method), []), *shared,
            f"method={method}", f"seed={seed}", f"optim.lr={rate}", "twist.layers=3",
            "training.log_freq=1000", "eval.particles=[8]", "eval.sweeps=2", f"run_dir={directory}",
        ])  # fmt: skip
    return json.loads(file.read_text(encoding="utf-8-sig"))[-1]


def log_z_of(task: str, records: list[dict], directories: list[Path]) -> tuple[float, float]:
    """Return (log Z, its uncertainty), by the twist that is closest to its target. For infilling log Z is the mean over all
    conditions of the exact samples: conditions differ by nats, so few of them are not enough. The bounds are by importance
    sampling."""
    best = min(range(len(records)), key=lambda run: records[run]["g"]["value"] - records[run]["f"]["value"])
    source, posterior, _ = loaded(str(directories[best]))
    of_pairs = task == "infilling"
    particles, sets = (PARTICLES, len(posterior)) if of_pairs else (MANY, SETS)
    bounds = sandwich(source, posterior, particles, sets, "twist", False, SWEPT)["iwae"]
    if not of_pairs:
        kept, tried = len(posterior), posterior.tried
        print(f"by rejection: log Z = {math.log(kept / tried):.3f} +- {Z95 * math.sqrt((1 - kept / tried) / kept):.3f}")
    print(
        f"log Z = {bounds.midpoint:.3f} +- {bounds.error:.3f}, {particles} particles, {sets} sets, by {directories[best]}"
    )
    return bounds.midpoint, bounds.error


def with_earlier(rows: list[dict], file: Path) -> list[dict]:
    """Return the methods in their order, at all swept rates; methods without a new sweep are those of the file."""
    known = {}
    if file.is_file():
        with file.open(encoding="utf-8-sig") as lines:
            known = {
                row["method"]: {name: value for name, value in row.items() if value} for row in csv.DictReader(lines)
            }
    for row in rows:
        known[row["method"]] = known.get(row["method"], {}) | row
    rates = sorted({name for row in known.values() for name in row} - {"task", "method"}, key=float)
    return [
        {"task": row["task"], "method": row["method"], **{rate: row.get(rate, "") for rate in rates}}
        for row in (known[method] for method in METHODS if method in known)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--seeds", type=ROWS, default=5)
    parser.add_argument("--updates", type=ROWS, default=120)
    parser.add_argument("--epochs", type=ROWS, default=2, help="evaluations are made before each and at the end")
    parser.add_argument("--exact", type=ROWS, default=2000, help="exact samples of each target")
    parser.add_argument("--eval_samples", type=ROWS, default=500, help="of the proposal and of the target, for F and G")
    parser.add_argument("--sweep", type=Number(0, 10, open_low=True), nargs="+", metavar="RATE", help="learning rates")
    parser.add_argument("--sweep_updates", type=ROWS, default=40)
    parser.add_argument("--runs", type=Path, default=Path("output/twists"))
    parser.add_argument("--out", type=Path, default=Path("docs/results/twists"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    for task in options.tasks:
        exact = exact_samples(task, options.runs, options.exact)
        epochs, updates = (1, options.sweep_updates) if options.sweep else (options.epochs, options.updates)
        shared = [f"posterior.path={exact}", f"posterior.count={options.exact}", f"eval.samples={options.eval_samples}",
                  f"training.epochs={epochs}", f"training.updates_per_epoch={updates // epochs}"]  # fmt: skip
        if options.sweep:
            rows = []
            for method in options.methods:
                gaps = {}
                for rate in options.sweep:
                    directory = options.runs / task / f"sweep_{method}_{rate}"
                    last = run(task, method, SWEPT, rate, updates, directory, [*shared, "eval.every=null"])
                    gaps[f"{rate:g}"] = round(last["g"]["value"] - last["f"]["value"], 3)
                rows.append({"task": task, "method": method, **gaps})
            print_table(rows, title=f"{task}: G - F after {options.sweep_updates} updates, by learning rate")
            options.out.mkdir(parents=True, exist_ok=True)
            write_csv(with_earlier(rows, options.out / f"sweep_{task}.csv"), options.out / f"sweep_{task}.csv")
            continue
        records, directories = [], []
        for seed in range(options.seeds):
            for method in options.methods:
                directory = options.runs / task / f"{method}_{seed}"
                records.append(run(task, method, seed, RATES[task][method], updates, directory, shared))
                directories.append(directory)
        log_z, error = log_z_of(task, records, directories)
        kl_report.report(directories, options.out / task, log_z, error)


if __name__ == "__main__":
    main()
