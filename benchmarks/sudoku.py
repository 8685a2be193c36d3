"""Sudoku: puzzles solved against the cost of decoding, for every rule and the learned policies.

    python -m benchmarks.sudoku --puzzles 1000 --tuning 200 --contest 2000

The puzzles are held-out minimal ones (their grid classes contain no training grid), and tokens are greedy. Every rule and policy
is swept in the same way: without a budget, and with a budget of K = 2 to 6 evaluations, the last of which commits all open cells.
There are four tables:

* every setting without a budget on --puzzles puzzles;
* at equal solve rate: for each target the cheapest setting of each side, in equivalent evaluations, whose solve rate on the
  tuning puzzles reaches it, measured on --contest other puzzles;
* at equal evaluations: for each K the best setting of each side whose mean evaluations are at most K, chosen and measured
  likewise;
* at equal budget: for each K the best setting of each side with a budget of K for every puzzle, likewise.

There are three costs: evaluations of the model (NFE), equivalent evaluations (FLOP of everything, divided by those of one whole
evaluation, `evaluation/cost.py`), and CPU seconds of the whole decoding of 1,000 puzzles, the least of --repeats runs in which
all settings of a table alternate. Intervals of 95 % resample grids up to a renaming of digits (`interval`) and, wider, the
held-out symmetry classes (`interval_over_classes`), because puzzles of one grid are not independent. The command writes --out
DIR/sudoku.{json,csv,png} and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor

from data.sudoku import blanked, class_key, make
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.aup import Outcomes, sweep_aup, tokens_per_forward
from evaluation.cost import evaluation_flop, flop_of
from evaluation.intervals import Interval, bootstrap_groups
from evaluation.report import plot_pareto, plot_tpf, print_table, write_csv, write_json
from evaluation.summary import named
from load_model import load_model
from policy.checkpoints import load_policy
from policy.networks import HiddenMLP
from policy.unmasker import PolicyUnmasker
from rewards.sudoku import Box, is_solved
from samplers.heuristics import Confident, EntropyBound, Factor, Random, Threshold
from samplers.loop import Strategy, Unmasker, sample
from samplers.samples import Samples
from training.ranges import ROWS, Whole

THRESHOLDS = (
    0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.985, 0.99, 0.995, 0.997, 0.998, 0.999, 0.9995, 0.9999,
)  # fmt: skip
FACTORS = (0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0)
BOUNDS = (0.005, 0.02, 0.1, 0.5, 1.0, 2.0)
BUDGETS = (2, 3, 4, 5, 6)
TRUST = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9999)
TARGETS = (0.8, 0.9, 0.95, 0.96, 0.97)
POLICIES = ("sudoku6_agreement", "sudoku6_agreement_rl")
EARLIER = (("sudoku6_answers", 0.7), ("sudoku6_answers", 0.95), ("sudoku6_budget", 0.8), ("sudoku6_budget", 0.97))
COUNTED = 256  # puzzles whose decoding is counted in FLOP


@dataclass(frozen=True)
class Setting:
    """One decoding method with its settings. side: "rule", or the name of the policy; budget: largest number of evaluations of
    a puzzle."""

    side: str
    method: str
    setting: str
    rule: Unmasker = field(repr=False, compare=False)
    budget: int | None = None


@dataclass(frozen=True)
class Puzzles:
    """canvas: the clues; grid: group of puzzles with the same solution up to a renaming of digits; symmetry: group of one
    symmetry class."""

    canvas: Int[Tensor, "puzzle cell"]
    grid: np.ndarray
    symmetry: np.ndarray
    box: Box


def puzzles(box: Box, count: int, seed: int) -> Puzzles:
    """Return held-out minimal puzzles with the groups that their intervals resample."""
    made = make(box, count, None, seed=seed, split="test")
    solutions = made["solutions"].numpy()
    first = solutions[:, : box[0] * box[1]]  # the first row holds every digit once: renamed to 0, 1, 2, ...
    renamed = np.take_along_axis(first.argsort(1), solutions, 1)
    _, grid = np.unique(renamed, axis=0, return_inverse=True)
    _, symmetry = np.unique([class_key(solution, box) for solution in solutions], return_inverse=True)
    return Puzzles(blanked(made, box), grid.ravel(), symmetry.ravel(), box)


def heuristics(budget: int | None) -> list[Setting]:
    """Return the untrained rules: those that decide how many positions to commit and, with a budget, those that commit equal
    parts."""
    adaptive: list[tuple[str, str, Unmasker]] = [
        *(("threshold", str(value), Threshold(value)) for value in THRESHOLDS),
        *(("factor", str(value), Factor(value)) for value in FACTORS),
        *(("entropy_bound", str(value), EntropyBound(value)) for value in BOUNDS),
    ]
    equal: list[tuple[str, str, Unmasker]] = [
        *((score, "equal parts", Confident(score)) for score in ("margin", "top_prob", "entropy")),
        ("random", "equal parts", Random()),
    ]
    return [Setting("rule", *rule, budget) for rule in adaptive + (equal if budget else [])]


def learned(path: str, budget: int | None) -> list[Setting]:
    """Return a policy with thresholds, with its own distribution and, with a budget, with equal parts (the only way of
    hidden_mlp)."""
    network, name = load_policy(path), Path(path).name
    rules = [("equal parts", PolicyUnmasker(network, "fixed", 0.05))] if budget else []
    if not isinstance(network, HiddenMLP):
        rules += [(f"threshold {t}", PolicyUnmasker(network, "threshold", threshold=t)) for t in TRUST]
        rules += [("bernoulli_argmax", PolicyUnmasker(network, "bernoulli_argmax"))]
    return [Setting(name, name, *rule, budget) for rule in rules]


def decode(model: MaskedLM, one: Setting, canvas: Int[Tensor, "row cell"], seed: int = 0) -> Samples:
    """Decode with greedy tokens."""
    environment = UnmaskingEnvironment(model, DecodeOptions(one.budget or canvas.shape[1], budget=one.budget))
    return sample(environment, Strategy(one.rule, TokenRule(0.0)), Prompts(canvas), seed)


def quick(model: MaskedLM, one: Setting, on: Puzzles) -> dict[str, float]:
    """Return means on tuning puzzles, without intervals and CPU time."""
    samples, flop = flop_of(partial(decode, model, one, on.canvas))
    return {
        "solved": float(is_solved(samples.tokens, on.box).double().mean()),
        "nfe": float(samples.evaluations.double().mean()),
        "equivalent": flop / evaluation_flop(model, on.canvas.shape[1]) / len(on.canvas),
    }


def equivalent_of(model: MaskedLM, one: Setting, on: Puzzles, nfe: Float64[Tensor, "puzzle"]) -> float:
    """Return the mean equivalent evaluations: those of the first COUNTED puzzles per evaluation, times the mean evaluations of
    all."""
    few = on.canvas[:COUNTED]
    _, flop = flop_of(partial(decode, model, one, few))
    return flop / evaluation_flop(model, few.shape[1]) / float(nfe[:COUNTED].sum()) * float(nfe.mean())


def measure(
    model: MaskedLM, settings: list[Setting], on: Puzzles, repeats: int
) -> tuple[list[dict], dict[Setting, Outcomes]]:
    """Return one record per setting, solve rate and costs with intervals, and the results of each puzzle. CPU time is the least
    of `repeats` runs in alternation."""
    seconds = np.full(len(settings), np.inf)
    records, decoded, outcomes = [], {}, {}
    for _ in range(repeats):
        for place, one in enumerate(settings):
            decoded[one] = decode(model, one, on.canvas)
            seconds[place] = min(seconds[place], decoded[one].cpu_seconds)
    for one, cpu in zip(settings, seconds.tolist(), strict=True):
        samples = decoded[one]
        solved, nfe = is_solved(samples.tokens, on.box), samples.evaluations.double()
        equivalent = equivalent_of(model, one, on, nfe)
        tokens = samples.answer.sum(1).double().numpy()
        outcomes[one] = Outcomes(solved.double().numpy(), tokens, nfe.numpy())
        tpf = tokens_per_forward(tokens, nfe.numpy(), on.grid)
        records.append(
            {
                "method": one.method, "setting": one.setting, "budget": one.budget, **solve_rate(solved, on),
                "nfe": float(nfe.mean()), "nfe_interval": _pair(bootstrap_groups(nfe.numpy(), on.grid)),
                "tpf": tpf.value, "tpf_interval": _pair(tpf),
                "equivalent": equivalent, "cpu_s_per_1000": 1000 * cpu / len(on.canvas), "puzzles": len(on.canvas),
            }
        )  # fmt: skip
    return records, outcomes


def aup_of(outcomes: dict[Setting, Outcomes], on: Puzzles) -> list[dict]:
    """Return accuracy under parallelism of every method without budgets, with intervals that resample grids.

    y_max is the best solve rate of all of them.
    """
    series: dict[str, list[Outcomes]] = {}
    for one, found in outcomes.items():
        series.setdefault(one.method, []).append(found)
    return [
        {
            "series": name, "settings": found.points, "left_out": found.left_out,
            "first_tpf": min(own.point[0] for own in series[name]), **named("aup", found.aup),
        }
        for name, found in sweep_aup(series, groups=on.grid).items()
    ]  # fmt: skip


def solve_rate(solved: Bool[Tensor, "puzzle"], on: Puzzles) -> dict:
    """Return the share of solved puzzles, with intervals that resample grids and symmetry classes."""
    values = solved.double().numpy()
    by_grid = bootstrap_groups(values, on.grid)
    by_class = bootstrap_groups(values, on.symmetry)
    return {"solved": by_grid.value, "interval": _pair(by_grid), "interval_over_classes": _pair(by_class)}


def _pair(interval: Interval) -> list[float]:
    return [round(interval.low, 5), round(interval.high, 5)]


def chosen(
    tuned: list[tuple[dict, Setting]],
    sides: list[str],
    fits: Callable[[dict, Setting], bool],
    worth: Callable[[dict], float],
) -> list[Setting | None]:
    """Return the best setting of each side among those that fit; None for a side without one."""
    best = []
    for side in sides:
        own = [(record, one) for record, one in tuned if one.side == side and fits(record, one)]
        best.append(max(own, key=lambda entry: worth(entry[0]))[1] if own else None)
    return best


def contest(
    model: MaskedLM, tuned: list[tuple[dict, Setting]], sides: list[str], on: Puzzles, repeats: int
) -> dict[str, list[dict]]:
    """Return the tables at equal solve rate, evaluations and budget: a record for each side and target."""
    entries: list[tuple[str, float, str, Setting | None]] = []
    kinds: list[tuple[str, float, Callable[[dict, Setting], bool], Callable[[dict], float]]] = [
        *(("rate", t, lambda r, _, t=t: r["solved"] >= t, lambda r: -r["equivalent"]) for t in TARGETS),
        *(("evaluations", k, lambda r, _, k=k: r["nfe"] <= k, lambda r: r["solved"]) for k in BUDGETS),
        *(("budget", k, lambda _, one, k=k: one.budget == k, lambda r: r["solved"]) for k in BUDGETS),
    ]
    for kind, target, fits, worth in kinds:
        found = chosen(tuned, sides, fits, worth)
        entries += [(kind, target, side, one) for side, one in zip(sides, found, strict=True)]
    settings = list(dict.fromkeys(one for *_, one in entries if one is not None))
    records = dict(zip(settings, measure(model, settings, on, repeats)[0], strict=True))
    tables: dict[str, list[dict]] = {"at_equal_rate": [], "at_equal_evaluations": [], "at_equal_budget": []}
    for kind, target, side, one in entries:
        if one is not None:
            tables[f"at_equal_{kind}"].append({"target": target, "side": side, **records[one]})
    return tables


def counts_above(table: list[dict], ours: str, theirs: str) -> int:
    """Return the number of targets of a table at which the interval of `ours` is above that of `theirs`."""
    found = {(row["target"], row["side"]): row["interval"] for row in table}
    pairs = [(found.get((k, ours)), found.get((k, theirs))) for k in {row["target"] for row in table}]
    return sum(first[0] > second[1] for first, second in pairs if first and second)


def headline(tables: dict[str, list[dict]], policy: str, after: str | None) -> dict:
    """Return the figures of the last line: costs of `policy` divided by those of the rules at equal solve rate; the numbers of
    counts and budgets at which its interval is above theirs, and that of `after`, the policy after reinforcement learning,
    above its own."""
    result = {}
    for target in TARGETS:
        found = {row["side"]: row for row in tables["at_equal_rate"] if row["target"] == target}
        if {"rule", policy} <= found.keys():
            ours, theirs = found[policy], found["rule"]
            for cost in ("nfe", "equivalent", "cpu_s_per_1000"):
                result[f"{cost}_ratio_at_{target}"] = round(ours[cost] / theirs[cost], 3)
    for kind in ("evaluations", "budget"):
        result[f"{kind}_won"] = counts_above(tables[f"at_equal_{kind}"], policy, "rule")
        if after is not None:
            result[f"{kind}_won_by_rl"] = counts_above(tables[f"at_equal_{kind}"], after, policy)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/sudoku6")
    parser.add_argument("--policies", nargs="*", default=[f"example/{name}" for name in POLICIES])
    parser.add_argument("--puzzles", type=ROWS, default=1000)
    parser.add_argument("--tuning", type=ROWS, default=200, help="other puzzles, on which settings are chosen")
    parser.add_argument(
        "--contest", type=Whole(0, 1_000_000), default=2000, help="others again, for the chosen settings"
    )
    parser.add_argument("--repeats", type=ROWS, default=1, help="runs of each setting of a contest, for the CPU time")
    parser.add_argument("--out", default="docs/results/sudoku")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    box = (2, 3) if model.max_length == 36 else (3, 3)
    sets = [puzzles(box, count, seed) for count, seed in (
        (arguments.puzzles, 2027), (arguments.tuning, 2028), (arguments.contest, 2029))]  # fmt: skip
    first, tuning, others = sets
    sides = ["rule", *(Path(path).name for path in arguments.policies)]

    settings = [one for budget in (None, *BUDGETS) for one in heuristics(budget)]
    settings += [one for budget in (None, *BUDGETS) for path in arguments.policies for one in learned(path, budget)]
    tuned = [(quick(model, one, tuning), one) for one in settings]
    whole = [
        Setting("rule", "margin", "one cell a step", Confident()),
        Setting("rule", "random", "one cell a step", Random()),
    ]
    if arguments.model == "example/sudoku6":
        for name, trust in EARLIER:
            rule = PolicyUnmasker(load_policy(f"example/{name}"), "threshold", threshold=trust)
            whole.append(Setting(name, name, f"threshold {trust}", rule))
    records, outcomes = measure(model, whole + [one for _, one in tuned if one.budget is None], first, 1)
    print_table(records, title=f"{len(first.canvas)} held-out minimal puzzles, as many evaluations as it takes")
    areas = aup_of(outcomes, first)
    print_table(areas, title="accuracy under parallelism (AUP) of every method on them")
    tables = contest(model, tuned, sides, others, arguments.repeats)
    for name, table in tables.items():
        print_table(table, title=f"the best setting of each side {name.replace('_', ' ')}, chosen on other puzzles")

    result = headline(tables, sides[1], sides[2] if len(sides) > 2 else None)
    result |= {"grids": len(set(others.grid.tolist())), "classes": len(set(others.symmetry.tolist()))}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    kept = [{"side": one.side, "setting": one.setting, "method": one.method, "budget": one.budget, **record}
            for record, one in tuned]  # fmt: skip
    write_json({"result": result, "records": records, "aup": areas, **tables, "tuning": kept}, out / "sudoku.json")
    write_csv(records, out / "sudoku.csv")
    front = [{"name": r["method"], "x": r["equivalent"], "y": r["solved"], "lo": r["interval"][0], "hi": r["interval"][1]}
             for r in records if r["setting"] not in ("one cell a step", "bernoulli_argmax")]  # fmt: skip
    plot_pareto(
        front, out / "sudoku.png", y_label="puzzles solved", title="Held-out minimal puzzles",
        x_label="equivalent evaluations per puzzle (FLOP of model and policy)",
    )  # fmt: skip
    speeds = [{**point, "x": r["tpf"], "x_lo": r["tpf_interval"][0], "x_hi": r["tpf_interval"][1]} for r, point in zip(
        (r for r in records if r["setting"] not in ("one cell a step", "bernoulli_argmax")), front, strict=True)]  # fmt: skip
    plot_tpf(speeds, out / "sudoku_tpf.png", y_label="puzzles solved", title="Held-out minimal puzzles")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
