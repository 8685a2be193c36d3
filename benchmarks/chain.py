"""Chain arithmetic: right answers against network evaluations, with and without blocks, heuristics and learned policies.

    python -m benchmarks.chain --problems 1000 --tuning 500 --seeds 3 --policies DIR...

Held-out problems, greedy tokens, rows end at their end of sequence. Every heuristic is swept, without blocks, too;
policies run without blocks, by their own law at two temperatures, and those that read a budget with every budget. At each count K
of evaluations the best heuristic and the best policy, among settings whose mean evaluations are at most K, are chosen on tuning
problems and measured on others, three sets of them. Prints tables, writes --out DIR/chain.{json,csv,png}, ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from data.chain import EOS, Chains, chains, is_right, prompt_length
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from evaluation.intervals import wilson
from evaluation.report import plot_pareto, print_table, write_csv, write_json
from load_model import load_model
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker, sample
from samplers.where import Confident, EntropyBound, Factor, Random, Threshold

PROBLEM_STEPS, LENGTH = 8, 24
COUNTS = (2, 3, 4, 5, 6, 8, 12)
BLOCKS = (24, 4, 2)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99, 0.999)
FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0)
BOUNDS = (0.02, 0.1, 0.5, 1.0, 2.0)


@dataclass
class Setting:
    """One way to decode."""

    method: str
    setting: str
    rule: Unmasker
    steps: int = LENGTH
    block: int = LENGTH
    budget: int | None = None
    learned: bool = False


def heuristics() -> list[Setting]:
    """Every rule, swept, at every block length; without blocks also with budgets."""
    found = []
    for block in BLOCKS:
        for steps in (2, 3, 4, 5, 6, 8, 12, 24):
            if steps % (LENGTH // block) == 0:
                scores = [(score, Confident(score)) for score in ("top_prob", "margin", "entropy")]
                rules: list[tuple[str, Unmasker]] = [("random", Random()), *scores]
                found += [Setting(name, f"{steps} steps", rule, steps, block) for name, rule in rules]
        adaptive: list[tuple[str, float, Unmasker]] = [("threshold", v, Threshold(v)) for v in THRESHOLDS]
        adaptive += [("factor", v, Factor(v)) for v in FACTORS] + [
            ("entropy_bound", v, EntropyBound(v)) for v in BOUNDS
        ]
        for name, value, rule in adaptive:
            found.append(Setting(name, str(value), rule, block=block))
            if block == LENGTH:
                found += [Setting(name, f"{value}, budget {count}", rule, budget=count) for count in COUNTS]
    return found


def learned(paths: list[str]) -> list[Setting]:
    """Policies without blocks: by their own law; where the run had budgets (its config says), with each of them."""
    found = []
    for path in paths:
        network, name = load_policy(path), Path(path).name
        for temperature in (0.5, 1.0):
            rule = PolicyUnmasker(network, "bernoulli_argmax", temperature)
            budgets = COUNTS if "budget" in name else (None,)
            found += [
                Setting(
                    name, f"T={temperature}" + (f", budget {count}" if count else ""), rule, budget=count, learned=True
                )
                for count in budgets
            ]
    return found


def measure(model: MaskedLM, setting: Setting, sets: list[Chains]) -> dict:
    """Right answers over all sets of problems, one sampling seed a set, with the interval over problems; mean evaluations."""
    right, evaluations = [], []
    for seed, problems in enumerate(sets):
        canvas = torch.cat((problems.prompts(), torch.full((len(problems.start), LENGTH), model.mask_id)), 1)
        prompt = prompt_length(PROBLEM_STEPS)
        block = None if setting.budget else setting.block
        environment = UnmaskingEnvironment(
            model, setting.steps, block, budget=setting.budget, prompt_length=prompt, stop_id=EOS
        )
        samples = sample(environment, Strategy(setting.rule, TokenRule(0.0)), canvas, seed)
        right.append(is_right(samples.tokens[:, prompt:], problems.values()[:, -1]))
        evaluations.append(samples.evaluations.float())
    whole = torch.cat(right)
    rate = wilson(int(whole.sum()), len(whole))
    return {
        "method": setting.method, "setting": setting.setting, "block": setting.block, "learned": setting.learned,
        "right": float(whole.mean()), "low": rate.low, "high": rate.high, "nfe": float(torch.cat(evaluations).mean()),
    }  # fmt: skip


def problems(count: int, seed: int) -> Chains:
    return chains(count, PROBLEM_STEPS, torch.Generator().manual_seed(seed), held_out=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/chain")
    parser.add_argument("--policies", nargs="*", default=["example/chain_policy"])
    parser.add_argument("--problems", type=int, default=1000, help="in each of the sets that are measured")
    parser.add_argument("--tuning", type=int, default=500, help="others, on which settings are chosen")
    parser.add_argument("--seeds", type=int, default=3, help="sets")
    parser.add_argument("--out", default="docs/results/chain")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    tuning = [problems(arguments.tuning, 4001)]
    sets = [problems(arguments.problems, 5001 + number) for number in range(arguments.seeds)]
    settings = [*heuristics(), *learned(arguments.policies)]
    tuned = [(measure(model, setting, tuning), setting) for setting in settings]

    contest = []
    names = list(dict.fromkeys(setting.method for setting in settings if setting.learned))
    for count in COUNTS:
        sides = [("best heuristic, no blocks", lambda s: not s.learned and s.block == LENGTH),
                 ("threshold, blocks of 2 or 4", lambda s: s.method == "threshold" and s.block < LENGTH),
                 *((name, lambda s, name=name: s.method == name) for name in names)]  # fmt: skip
        for side, of in sides:
            fits = [(record, s) for record, s in tuned if of(s) and record["nfe"] <= count]
            if fits:
                _, setting = max(fits, key=lambda pair: (pair[0]["right"], -pair[0]["nfe"]))
                contest.append({"count": count, "side": side, **measure(model, setting, sets)})
    print_table(contest, title="the best of each at a mean of at most so many evaluations, chosen on other problems")
    records = [record for record, _ in tuned]
    print_table(records, title=f"every setting on {arguments.tuning} tuning problems")

    def best(count: int, ours: bool) -> dict | None:
        """Of one side at one count; None where nothing of it is so cheap."""
        own = [
            c for c in contest if c["count"] == count and (c["side"] in names) == ours and "blocks of" not in c["side"]
        ]
        return max(own, key=lambda c: c["right"], default=None)

    result: dict[str, float | int | None] = {}
    won = 0
    for count in COUNTS:
        theirs, mine = best(count, False), best(count, True)
        result[f"heuristic_{count}"] = theirs["right"] if theirs else None
        result[f"policy_{count}"] = mine["right"] if mine else None
        won += bool(mine and (theirs is None or mine["low"] > theirs["high"]))
    result["counts_won"] = won
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"result": result, "contest": contest, "records": records}, out / "chain.json")
    write_csv(records, out / "chain.csv")
    shown = [r for r in records if r["learned"] or r["method"] in ("random", "top_prob", "threshold")]
    front = [
        {"name": r["method"] + ("" if r["learned"] else f", block {r['block']}"), "x": r["nfe"], "y": r["right"]}
        | {"lo": r["low"], "hi": r["high"]}
        for r in shown
    ]
    plot_pareto(front, out / "chain.png", y_label="right answers", title="Chain arithmetic, held-out problems")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
