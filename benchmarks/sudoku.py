"""Sudoku: quality against network evaluations of every rule, and what the learned policies gain.

    python -m benchmarks.sudoku --puzzles 1000 --seeds 3 --policies example/sudoku6_grpo

Held-out minimal puzzles (other grid classes than the training grids), greedy tokens. Every heuristic is swept; the base is
measured by margin at one cell a step, its gap by random order. E is the lowest mean number of evaluations at which a threshold
rule comes within one point of the best heuristic. Prints tables, writes --out DIR/sudoku.{json,csv,png}, ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from data.sudoku import blanked, is_solved, make
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from evaluation.intervals import wilson
from evaluation.report import plot_pareto, print_table, write_csv, write_json
from load_model import load_model
from policy.networks import load_policy
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker, sample
from samplers.where import WHERE, Confident, EntropyBound, Factor, Random, Threshold

THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 0.9999)
FACTORS = (0.25, 0.5, 1.0, 2.0)
BOUNDS = (0.1, 0.5, 1.0, 2.0)
COUNTS = (2, 3, 4, 5, 6)
KNOBS = (
    (1.0, 0.25),
    (1.0, 0.5),
    (1.0, 0.7),
    (1.0, 1.0),
    (0.5, 1.0),
    (0.25, 1.0),
    (1.0, 1.5),
    (1.0, 2.0),
)  # temperature, beta


def heuristics(cells: int) -> list[tuple[str, str, Unmasker, int]]:
    """(method, setting, rule, planned steps)."""
    rules: list[tuple[str, str, Unmasker, int]] = [
        (name, "one cell a step", WHERE[name](), cells) for name in ("confidence", "random")
    ]
    rules += [("threshold", f"{value}", Threshold(value), cells) for value in THRESHOLDS]
    rules += [("factor", f"{value}", Factor(value), cells) for value in FACTORS]
    rules += [("entropy_bound", f"{value}", EntropyBound(value), cells) for value in BOUNDS]
    for count in COUNTS:
        rules += [(score, f"{count} steps", Confident(score), count) for score in ("margin", "top_prob")]
        rules.append(("random", f"{count} steps", Random(), count))
    return rules


def policy_rules(path: str, cells: int) -> list[tuple[str, str, Unmasker, int]]:
    """The policy with Apple's test-time knobs, and at fixed counts (its best scores first: a low temperature)."""
    network = load_policy(path)
    name = Path(path).name
    rules: list[tuple[str, str, Unmasker, int]] = [
        (name, f"temperature {t}, beta {b}", PolicyUnmasker(network, "bernoulli_argmax", t, b), cells) for t, b in KNOBS
    ]
    return rules + [(name, f"{count} steps", PolicyUnmasker(network, "fixed", 0.05), count) for count in COUNTS]


def measure(
    model: MaskedLM, rule: Unmasker, steps: int, canvas: torch.Tensor, box: tuple[int, int], seeds: int
) -> dict[str, float]:
    """Solve rate with its 95 % interval, mean evaluations and tokens/s over seeds."""
    solved, evaluations, seconds, written = [], [], 0.0, 0
    for seed in range(seeds):
        samples = sample(UnmaskingEnvironment(model, steps), Strategy(rule, TokenRule(0.0)), canvas, seed)
        solved.append(is_solved(samples.tokens, box))
        evaluations.append(samples.evaluations.float())
        seconds, written = seconds + samples.seconds, written + int(samples.generated.sum())
    # The seeds of a deterministic rule are one: the interval is that of the puzzles, not of puzzles times seeds.
    rate = wilson(int(torch.stack(solved).float().mean(0).sum().round()), len(canvas))
    return {
        "solved": float(torch.stack(solved).float().mean()), "low": rate.low, "high": rate.high,
        "nfe": float(torch.stack(evaluations).mean()), "tokens_per_s": written / seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/sudoku6")
    parser.add_argument("--policies", nargs="*", default=["example/sudoku6_grpo"])
    parser.add_argument("--puzzles", type=int, default=1000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="docs/results/sudoku")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    box = (2, 3) if model.max_length == 36 else (3, 3)
    puzzles = make(box, arguments.puzzles, None, seed=2027, split="test")
    canvas = blanked(puzzles, box)
    records = []
    for method, setting, rule, steps in heuristics(canvas.shape[1]) + [
        rule for path in arguments.policies for rule in policy_rules(path, canvas.shape[1])
    ]:
        stochastic = method == "random" or isinstance(rule, PolicyUnmasker)
        records.append({"method": method, "setting": setting, **measure(
            model, rule, steps, canvas, box, arguments.seeds if stochastic else 1)})  # fmt: skip
    print_table(records, title=f"{arguments.puzzles} held-out minimal {box[0] * box[1]}x{box[0] * box[1]} puzzles")

    learned = {Path(path).name for path in arguments.policies}
    rules = [r for r in records if r["method"] not in learned]
    best = max(r["solved"] for r in rules)
    within = [r["nfe"] for r in rules if r["method"] == "threshold" and r["solved"] >= best - 0.01]
    policy_within = [r["nfe"] for r in records if r["method"] in learned and r["solved"] >= best - 0.01]
    wins = 0
    for count in COUNTS:
        at = [r for r in records if r["setting"] == f"{count} steps"]
        heuristic = max((r for r in at if r["method"] not in learned), key=lambda r: r["solved"])
        policy = max((r for r in at if r["method"] in learned), key=lambda r: r["solved"], default=heuristic)
        wins += policy["low"] > heuristic["high"]
    one = {r["method"]: r["solved"] for r in records if r["setting"] == "one cell a step"}
    result = {
        "margin": one["confidence"], "random": one["random"], "best_heuristic": best, "E": min(within, default=None),
        "policy_evaluations": min(policy_within, default=None), "fixed_counts_won": wins,
    }  # fmt: skip
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"result": result, "records": records}, out / "sudoku.json")
    write_csv(records, out / "sudoku.csv")
    front = [{"name": r["method"], "x": r["nfe"], "y": r["solved"], "lo": r["low"], "hi": r["high"]} for r in records
             if r["setting"] != "one cell a step"]  # fmt: skip
    plot_pareto(front, out / "sudoku.png", y_label="puzzles solved", title="Held-out minimal puzzles")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
