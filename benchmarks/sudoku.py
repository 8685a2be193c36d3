"""Sudoku: quality against network evaluations of every rule, and what the learned policies gain.

    python -m benchmarks.sudoku --puzzles 3000 --tuning 800 --seeds 3 --policies example/sudoku6_budget

Held-out minimal puzzles (other grid classes than the training grids), greedy tokens. Two questions. As many evaluations as a
rule takes: the base by margin at one cell an evaluation, its gap to random order, and E, the lowest mean number of evaluations
at which a threshold rule comes within one point of the best heuristic. At most K evaluations, K = 2 to 6: every rule may spend K
and writes all that is left with the last; the setting of every rule, learned ones included, is chosen on tuning puzzles and
measured on others. Prints tables, writes --out DIR/sudoku.{json,csv,png}, ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from data.sudoku import Box, blanked, is_solved, make
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from evaluation.intervals import wilson
from evaluation.report import plot_pareto, print_table, write_csv, write_json
from load_model import load_model
from policy.networks import HiddenMLP, load_policy
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker, sample
from samplers.where import Confident, EntropyBound, Factor, Random, Threshold

THRESHOLDS = (
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.997, 0.998, 0.999, 0.9995, 0.9999,
)  # fmt: skip
FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0)
BOUNDS = (0.02, 0.1, 0.5, 1.0, 2.0)
BUDGETS = (2, 3, 4, 5, 6)
LARGER = (8, 12)  # budgets that only a policy needs: it is asked how much to spend by one
TEMPERATURES = (1.0, 0.5, 0.2)


def adaptive() -> list[tuple[str, str, Unmasker]]:
    """(method, setting, rule) of the heuristics that decide how many to write."""
    return [
        *(("threshold", str(value), Threshold(value)) for value in THRESHOLDS),
        *(("factor", str(value), Factor(value)) for value in FACTORS),
        *(("entropy_bound", str(value), EntropyBound(value)) for value in BOUNDS),
    ]


def equal_parts() -> list[tuple[str, str, Unmasker]]:
    """Heuristics that write an equal part a step."""
    scores = [(score, "equal parts", Confident(score)) for score in ("margin", "top_prob", "entropy")]
    return [*scores, ("random", "equal parts", Random())]


def learned(path: str) -> list[tuple[str, str, Unmasker]]:
    """A policy at Apple's test-time temperatures; one that only ranks positions writes equal parts, its best first."""
    network, name = load_policy(path), Path(path).name
    if isinstance(network, HiddenMLP):
        return [(name, "equal parts", PolicyUnmasker(network, "fixed", 0.05))]
    bernoulli = [(name, f"temperature {t}", PolicyUnmasker(network, "bernoulli_argmax", t)) for t in TEMPERATURES]
    return [*bernoulli, (name, "equal parts", PolicyUnmasker(network, "fixed", 0.05))]


def measure(
    model: MaskedLM, rule: Unmasker, steps: int, budget: int | None, canvas: Int[Tensor, "row cell"], box: Box, seeds: int
) -> dict[str, float]:  # fmt: skip
    """Solve rate with its 95 % interval, and mean evaluations, over seeds where the rule draws."""
    solved, evaluations, seconds, written = [], [], 0.0, 0
    for seed in range(seeds if isinstance(rule, PolicyUnmasker | Random) else 1):
        environment = UnmaskingEnvironment(model, steps, budget=budget)
        samples = sample(environment, Strategy(rule, TokenRule(0.0)), canvas, seed)
        solved.append(is_solved(samples.tokens, box))
        evaluations.append(samples.evaluations.float())
        seconds, written = seconds + samples.seconds, written + int(samples.generated.sum())
    # Seeds share the puzzles: the interval is that of the puzzles, not of puzzles times seeds.
    rate = wilson(int(torch.stack(solved).float().mean(0).sum().round()), len(canvas))
    return {
        "solved": float(torch.stack(solved).float().mean()), "low": rate.low, "high": rate.high,
        "nfe": float(torch.stack(evaluations).mean()), "tokens_per_s": written / seconds,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/sudoku6")
    parser.add_argument("--policies", nargs="*", default=["example/sudoku6_budget"])
    parser.add_argument("--puzzles", type=int, default=3000)
    parser.add_argument("--tuning", type=int, default=800, help="other puzzles, on which settings are chosen")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="docs/results/sudoku")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    box = (2, 3) if model.max_length == 36 else (3, 3)
    canvas = blanked(make(box, arguments.puzzles, None, seed=2027, split="test"), box)
    tuning = blanked(make(box, arguments.tuning, None, seed=2028, split="test"), box)
    cells, seeds = canvas.shape[1], arguments.seeds
    policies = [rule for path in arguments.policies for rule in learned(path)]
    names = {name for name, _, _ in policies}

    free = [("margin", "one cell a step", Confident()), ("random", "one cell a step", Random()), *adaptive()]
    records = [
        {"method": name, "setting": setting, "budget": None, **measure(model, rule, cells, None, canvas, box, seeds)}
        for name, setting, rule in free
    ]
    print_table(records, title=f"{len(canvas)} held-out minimal {cells}-cell puzzles, as many evaluations as it takes")

    def tuned(rules: list[tuple[str, str, Unmasker]], budget: int) -> list[dict]:
        """For each method the setting that solves most tuning puzzles within the budget, measured on the others."""
        found: dict[str, tuple[float, str, Unmasker]] = {}
        for name, setting, rule in rules:
            score = measure(model, rule, budget, budget, tuning, box, 1)["solved"]
            found[name] = max(found.get(name, (-1.0, "", rule)), (score, setting, rule), key=lambda entry: entry[0])
        return [{"method": name, "setting": setting, "budget": budget, "tuning": score,
                 **measure(model, rule, budget, budget, canvas, box, seeds)}
                for name, (score, setting, rule) in found.items()]  # fmt: skip

    within = [r for budget in BUDGETS for r in tuned([*adaptive(), *equal_parts(), *policies], budget)]
    within += [r for budget in LARGER for r in tuned(policies, budget)]
    print_table(within, title="at most so many evaluations, settings chosen on other puzzles")
    records += within

    best = max(r["solved"] for r in records if r["method"] not in names)
    threshold = [r["nfe"] for r in records if r["method"] == "threshold" and r["solved"] >= best - 0.01]
    policy = [r["nfe"] for r in records if r["method"] in names and r["solved"] >= best - 0.01]
    wins = 0
    for budget in BUDGETS:
        at = [r for r in within if r["budget"] == budget]
        heuristic = max((r for r in at if r["method"] not in names), key=lambda r: r["solved"])
        ours = max((r for r in at if r["method"] in names), key=lambda r: r["solved"], default=heuristic)
        wins += ours["low"] > heuristic["high"]
    one = {r["method"]: r["solved"] for r in records if r["setting"] == "one cell a step"}
    result = {
        "margin": one["margin"], "random": one["random"], "best_heuristic": best, "E": min(threshold, default=None),
        "policy_evaluations": min(policy, default=None), "fixed_counts_won": wins,
    }  # fmt: skip
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"result": result, "records": records}, out / "sudoku.json")
    write_csv(records, out / "sudoku.csv")
    # A learned policy's line is that over its budgets; equal parts stay out of the picture, being below everything.
    shown = [r for r in records if (r["budget"] is None) != (r["method"] in names)]
    front = [{"name": r["method"], "x": r["nfe"], "y": r["solved"], "lo": r["low"], "hi": r["high"]}
             for r in shown if r["setting"] not in ("one cell a step", "equal parts")]  # fmt: skip
    plot_pareto(front, out / "sudoku.png", y_label="puzzles solved", title="Held-out minimal puzzles")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
