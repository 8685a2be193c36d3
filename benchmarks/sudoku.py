"""Sudoku: quality against network evaluations of every rule, and what the learned policies gain.

    python -m benchmarks.sudoku --puzzles 1200 --tuning 250 --contest 4000 --seeds 3

Held-out minimal puzzles (other grid classes than the training grids), greedy tokens. Every rule is swept, as it is and with a
budget of K = 2 to 6 evaluations, the last of which writes all that is left; learned policies too. E is the lowest mean number of
evaluations at which a threshold rule comes within one point of the best heuristic. At each count K the best heuristic and the
best policy, among all settings whose mean evaluations are at most K, are chosen on tuning puzzles and measured on --contest
others. Prints tables, writes --out DIR/sudoku.{json,csv,png}, ends with flat JSON.
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
from policy.checkpoints import load_policy
from policy.networks import HiddenMLP
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker, sample
from samplers.where import Confident, EntropyBound, Factor, Random, Threshold

THRESHOLDS = (
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.997, 0.998, 0.999, 0.9995, 0.9999,
)  # fmt: skip
FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0)
BOUNDS = (0.02, 0.1, 0.5, 1.0, 2.0)
BUDGETS = (2, 3, 4, 5, 6)
TRUST = (0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99)


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


def learned(path: str, budget: int | None) -> list[tuple[str, str, Unmasker]]:
    """A policy by what it trusts, by its own law and, within a budget, by equal parts (all that hidden_mlp can)."""
    network, name = load_policy(path), Path(path).name
    ranked: list[tuple[str, str, Unmasker]] = (
        [(name, "equal parts", PolicyUnmasker(network, "fixed", 0.05))] if budget else []
    )
    if isinstance(network, HiddenMLP):
        return ranked
    trusted = [(name, f"threshold {t}", PolicyUnmasker(network, "threshold", threshold=t)) for t in TRUST]
    return [*trusted, (name, "bernoulli_argmax", PolicyUnmasker(network, "bernoulli_argmax")), *ranked]


def measure(
    model: MaskedLM, rule: Unmasker, steps: int, budget: int | None, canvas: Int[Tensor, "row cell"], box: Box, seeds: int
) -> dict[str, float]:  # fmt: skip
    """Solve rate with its 95 % interval, and mean evaluations, over seeds where the rule draws."""
    draws = isinstance(rule, Random) or (isinstance(rule, PolicyUnmasker) and rule.action != "threshold")
    solved, evaluations, seconds, written = [], [], 0.0, 0
    for seed in range(seeds if draws else 1):
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
    parser.add_argument("--policies", nargs="*", default=["example/sudoku6_answers", "example/sudoku6_budget"])
    parser.add_argument("--puzzles", type=int, default=1200)
    parser.add_argument("--tuning", type=int, default=250, help="other puzzles, on which settings are chosen")
    parser.add_argument("--contest", type=int, default=4000, help="others again, for the best at each count")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", default="docs/results/sudoku")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    box = (2, 3) if model.max_length == 36 else (3, 3)
    canvas = blanked(make(box, arguments.puzzles, None, seed=2027, split="test"), box)
    tuning = blanked(make(box, arguments.tuning, None, seed=2028, split="test"), box)
    others = blanked(make(box, arguments.contest, None, seed=2029, split="test"), box)
    cells, seeds = canvas.shape[1], arguments.seeds
    names = {Path(path).name for path in arguments.policies}

    def evaluate(name: str, setting: str, rule: Unmasker, budget: int | None, on: torch.Tensor, seeds: int) -> dict:
        measures = measure(model, rule, budget or cells, budget, on, box, seeds)
        return {"method": name, "setting": setting, "budget": budget, **measures}

    rules = [(*rule, None) for rule in adaptive()]
    rules += [(*rule, budget) for budget in BUDGETS for rule in (*adaptive(), *equal_parts())]
    rules += [
        (*rule, budget) for budget in (None, *BUDGETS) for path in arguments.policies for rule in learned(path, budget)
    ]
    tuned = [(evaluate(*rule, tuning, 1), rule) for rule in rules]

    records = [evaluate(*rule, None, canvas, seeds) for rule in (
        ("margin", "one cell a step", Confident()), ("random", "one cell a step", Random()))]  # fmt: skip
    records += [evaluate(*rule, canvas, seeds) for _, rule in tuned if rule[3] is None]
    print_table(records, title=f"{len(canvas)} held-out minimal {cells}-cell puzzles, as many evaluations as it takes")
    contest = []
    for count in BUDGETS:
        fits = [(record["solved"], rule) for record, rule in tuned if record["nfe"] <= count]
        for side in (False, True):  # heuristics, policies
            _, rule = max((entry for entry in fits if (entry[1][0] in names) == side), key=lambda entry: entry[0])
            contest.append({"count": count, "learned": side, **evaluate(*rule, others, seeds)})
    print_table(contest, title="the best of each at a mean of at most so many evaluations, chosen on other puzzles")

    heuristics = [r for r in records + contest if r["method"] not in names]
    policies = [r for r in records + contest if r["method"] in names]
    best = max(r["solved"] for r in heuristics)
    threshold = [r["nfe"] for r in heuristics if r["method"] == "threshold" and r["solved"] >= best - 0.01]
    policy = [r["nfe"] for r in policies if r["solved"] >= best - 0.01]
    pairs = list(zip(contest[::2], contest[1::2], strict=True))
    one = {r["method"]: r["solved"] for r in records if r["setting"] == "one cell a step"}
    result = {
        "margin": one["margin"], "random": one["random"], "best_heuristic": best, "E": min(threshold, default=None),
        "policy_evaluations": min(policy, default=None),
        "counts_won": sum(ours["low"] > theirs["high"] for theirs, ours in pairs),
    }  # fmt: skip
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"result": result, "records": records, "contest": contest}, out / "sudoku.json")
    write_csv(records, out / "sudoku.csv")
    front = [{"name": r["method"], "x": r["nfe"], "y": r["solved"], "lo": r["low"], "hi": r["high"]}
             for r in records if r["setting"] not in ("one cell a step", "bernoulli_argmax")]  # fmt: skip
    plot_pareto(front, out / "sudoku.png", y_label="puzzles solved", title="Held-out minimal puzzles")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
