"""Chain arithmetic: right answers against network evaluations, with and without blocks, for heuristics and learned policies.

    python -m benchmarks.chain --problems 200 --tuning 100 --seeds 3 --policies RUN/policy=alpha_1 RUN/policy=alpha_1 ...

The problems are held out, tokens are greedy, and rows end at their end of sequence. Every heuristic is swept, with and without
blocks. Policies use their own action distribution at two temperatures. Policies whose name contains `budget` run with every
budget and without blocks, the others with blocks too (those whose name contains `blocks` are plotted with blocks). Policies of
one name are training seeds of one method.

For each number of evaluations K the best setting of each side with at most K mean evaluations is chosen on tuning problems, for
each training seed. It is measured on three other sets, with its cost: equivalent evaluations (evaluation/cost.py) and CPU seconds
of a thousand problems. Before this the command prints two tests of the base model: the gate (its accuracy at single positions,
and in blocks of two), and the effect of the order: random positions against the most confident ones at equal steps. The command
prints the accuracy under parallelism (AUP) of every method, writes --out DIR/chain.{json,csv,png}, chain_tpf.png and
chain_cost.png, and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import process_time

import torch
from jaxtyping import Bool
from torch import Tensor

from data.chain import EOS, MASK, MODULUS, Chains, chains, is_right, prompt_length
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.aup import Outcomes, sweep_aup, tokens_per_forward
from evaluation.cost import equivalent_evaluations
from evaluation.intervals import wilson
from evaluation.report import plot_pareto, plot_tpf, print_table, write_csv, write_json
from evaluation.summary import named
from load_model import load_model
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import Confident, Dilated, EntropyBound, Factor, Leftmost, Random, Threshold, Window, nothing
from samplers.loop import Samples, Strategy, Unmasker
from training.ranges import ROWS, Whole

PROBLEM_STEPS, LENGTH = 8, 24
COUNTS = (2, 3, 4, 5, 6, 7, 8, 12)
BLOCKS = (24, 4, 2)
THRESHOLDS = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.97, 0.99, 0.999)
FACTORS = (0.1, 0.25, 0.5, 1.0, 2.0)
WINDOWS = (2, 4, 6, 8)
BOUNDS = (0.02, 0.1, 0.5, 1.0, 2.0)


@dataclass
class Setting:
    """One decoding method with its settings."""

    method: str
    setting: str
    rule: Unmasker
    steps: int = LENGTH
    block: int = LENGTH
    budget: int | None = None
    run: str | None = None  # of a policy: where it lies


def heuristics() -> list[Setting]:
    """Return every rule, swept, at every block length; without blocks also with budgets."""
    found = []
    for block in BLOCKS:
        for steps in (2, 3, 4, 5, 6, 8, 12, 24):
            if steps % (LENGTH // block) == 0:
                scores = [(score, Confident(score)) for score in ("top_prob", "margin", "entropy")]
                rules: list[tuple[str, Unmasker]] = [("random", Random()), ("dilated", Dilated()), *scores]
                found += [Setting(name, f"{steps} steps", rule, steps, block) for name, rule in rules]
        if block == LENGTH:  # so many positions at once from the left: blocks of a step each
            for steps in range(2, LENGTH + 1):
                found.append(Setting("leftmost", f"{steps} steps", Leftmost(), steps, block))
        adaptive: list[tuple[str, float | str, Unmasker]] = [("threshold", v, Threshold(v)) for v in THRESHOLDS]
        adaptive += [("factor", v, Factor(v)) for v in FACTORS]
        adaptive += [("entropy_bound", v, EntropyBound(v)) for v in BOUNDS]
        if block == LENGTH:  # a window stands in the place of blocks
            adaptive += [("window", f"{v}, window {w}", Window(v, w)) for v in THRESHOLDS for w in WINDOWS]
        for name, value, rule in adaptive:
            found.append(Setting(name, str(value), rule, block=block))
            if block == LENGTH:
                found += [Setting(name, f"{value}, budget {count}", rule, budget=count) for count in COUNTS]
    return found


def learned(policies: list[str]) -> list[Setting]:
    """Return policies (PATH or PATH=NAME) under their own distribution, at every block length; those with budgets at each
    budget, without blocks."""
    found = []
    for policy in policies:
        path, _, name = policy.partition("=")
        network, name = load_policy(path), name or Path(path).name
        for temperature in (0.5, 1.0):
            rule = PolicyUnmasker(network, "bernoulli_argmax", temperature)
            if "budget" in name:
                found += [Setting(name, f"T={temperature}, budget {k}", rule, budget=k, run=path) for k in COUNTS]
            else:
                found += [Setting(name, f"T={temperature}", rule, block=block, run=path) for block in BLOCKS]
    return found


def prompts_of(model: MaskedLM, problems: Chains) -> Prompts:
    canvas = torch.cat((problems.prompts(), torch.full((len(problems.start), LENGTH), model.mask_id)), 1)
    return Prompts(canvas, prompt_length=prompt_length(PROBLEM_STEPS))


def decoded(model: MaskedLM, setting: Setting, prompts: Prompts, seed: int) -> Samples:
    block = None if setting.budget else setting.block
    options = DecodeOptions(setting.steps, block, budget=setting.budget, ends=(EOS,))
    return Strategy(setting.rule, TokenRule(0.0)).decode(model, prompts, options, seed)


def measure(model: MaskedLM, setting: Setting, sets: list[Chains]) -> dict:
    """Return right answers over all sets of problems (one sampling seed per set) with the interval over problems, mean
    evaluations, tokens per forward with their interval, and CPU seconds of a thousand problems."""
    return measured(model, setting, sets)[0]


def measured(model: MaskedLM, setting: Setting, sets: list[Chains]) -> tuple[dict, Outcomes]:
    """Return the record of `measure` and the results of each problem."""
    right, evaluations, tokens, spent = [], [], [], 0.0
    for seed, problems in enumerate(sets):
        prompts = prompts_of(model, problems)
        started = process_time()
        samples = decoded(model, setting, prompts, seed)
        spent += process_time() - started
        right.append(is_right(samples.tokens[:, prompt_length(PROBLEM_STEPS) :], problems.values()[:, -1]))
        evaluations.append(samples.evaluations.float())
        tokens.append(samples.answer.sum(1))
    whole = torch.cat(right)
    rate = wilson(int(whole.sum()), len(whole))
    found = Outcomes(*(torch.cat(parts).double().numpy() for parts in (right, tokens, evaluations)))
    record = {
        "method": setting.method, "setting": setting.setting, "block": setting.block, "learned": setting.run is not None,
        "run": setting.run,
        "right": float(whole.mean()), "low": rate.low, "high": rate.high, "nfe": float(torch.cat(evaluations).mean()),
        "cpu_s": 1000 * spent / len(whole), **named("tpf", tokens_per_forward(found.tokens, found.evaluations)),
    }  # fmt: skip
    return record, found


def aup_of(results: list[tuple[dict, Outcomes]]) -> list[dict]:
    """Return accuracy under parallelism with its interval for every method at every block length. Rules have no budgets here,
    policies of budgets have theirs. A policy's training seeds are series of their own.

    y_max is the best accuracy of all of them. The problems are those on which all settings were measured.
    """
    series: dict[str, list[Outcomes]] = {}
    for record, found in results:
        if "budget" not in record["setting"] or record["learned"]:
            run = f", {record['run']}" if record["learned"] else ""
            series.setdefault(f"{record['method']}, block {record['block']}{run}", []).append(found)
    return [
        {
            "series": name, "settings": found.points, "left_out": found.left_out,
            "first_tpf": min(one.point[0] for one in series[name]), **named("aup", found.aup),
        }
        for name, found in sweep_aup(series).items()
    ]  # fmt: skip


def with_cost(model: MaskedLM, setting: Setting, sets: list[Chains]) -> dict:
    """Return the result of `measure` with the equivalent evaluations of a row, including the policy."""
    equivalent = equivalent_evaluations(
        model, lambda part: decoded(model, setting, part, 0), prompts_of(model, sets[0])
    )
    return measure(model, setting, sets) | {"equivalent": equivalent}


@dataclass
class Planned:
    """Rule that commits given positions behind the prompt first, and all others at the second evaluation, for every problem."""

    first: Bool[Tensor, "position"]

    def choose(self, observation, draws):
        behind = torch.nn.functional.pad(self.first, (observation.tokens.shape[1] - len(self.first), 0))
        selected = observation.writable & (behind | (observation.row_step > 0).unsqueeze(1))
        return selected.long(), nothing(observation)


def climbed(model: MaskedLM, tuning: Chains, starts: int) -> tuple[dict, Setting]:
    """Return the best plan of two evaluations by hill climbing, which changes one position at a time, from the leftmost eight
    positions and from `starts` random sets. It is the best known order that ignores the problem."""

    def of(first: Bool[Tensor, "position"]) -> tuple[dict, Setting]:
        name = " ".join(str(place) for place in first.nonzero().squeeze(1).tolist())
        setting = Setting("plan", name, Planned(first), 2)
        return measure(model, setting, [tuning]), setting

    generator = torch.Generator().manual_seed(0)
    ends = []
    for first in (torch.arange(LENGTH) < 8, *(torch.rand(starts, LENGTH, generator=generator) < 0.5)):
        best, since = of(first), 0
        order = torch.randperm(LENGTH, generator=generator).tolist()
        while since < LENGTH:  # until no change of one position helps
            first = best[1].rule.first.clone()  # pyright: ignore[reportAttributeAccessIssue]
            first[order[0]] ^= True
            order, since = [*order[1:], order[0]], since + 1
            found = of(first)
            if found[0]["right"] > best[0]["right"]:
                best, since = found, 0
        ends.append(best)
    return max(ends, key=lambda end: end[0]["right"])


def problems(count: int, seed: int) -> Chains:
    return chains(count, PROBLEM_STEPS, torch.Generator().manual_seed(seed), held_out=True)


@torch.no_grad()
def gate(model: MaskedLM, count: int) -> dict[str, float]:
    """Return the tests that the base model must pass before a policy is trained: accuracy of a step of the solution, of a step
    that follows its predecessor, and of the answer, each masked alone; and of decoding in blocks of two."""
    held_out = problems(count, 6001)
    kept = torch.rand(held_out.step.shape, generator=torch.Generator().manual_seed(1)) < 0.7
    text, prompt = held_out.answers(kept, LENGTH), prompt_length(PROBLEM_STEPS)
    right = {"step": [], "next_step": [], "answer": []}
    for place in range(1, LENGTH, 2):
        canvas = torch.cat((held_out.prompts(), text), 1)
        canvas[:, prompt + place] = MASK
        hit = model.log_probs(canvas)[:, prompt + place].argmax(-1) == text[:, place]
        is_answer = kept.sum(1) == place // 2
        right["answer"].append(hit[is_answer])
        is_step = ~is_answer & (text[:, place] < MODULUS)
        right["step"].append(hit[is_step])
        number = [(kept & (kept.cumsum(1) == n)).long().argmax(1) for n in (place // 2, place // 2 + 1)]
        follows = number[1] == (number[0] + 1 if place > 1 else 0)
        right["next_step"].append(hit[is_step & follows])
    blocks = measure(model, Setting("threshold", "0.7", Threshold(0.7), block=2), [held_out])
    return {**{f"gate_{name}": float(torch.cat(hits).float().mean()) for name, hits in right.items()},
            "gate_blocks_of_two": blocks["right"]}  # fmt: skip


def orders(model: MaskedLM, sets: list[Chains]) -> list[dict]:
    """Return, without blocks and in blocks of two, the results of random positions and of those with the most probable best
    token, at equal steps."""
    rules: dict[str, Unmasker] = {"random": Random(), "top_prob": Confident("top_prob")}
    return [
        measure(model, Setting(name, f"{steps} steps", rule, steps, block), sets)
        for block, counts in ((LENGTH, (2, 3, 4, 5, 6, 8, 12)), (2, (12,)))
        for steps in counts
        for name, rule in rules.items()
    ]


Tuned = list[tuple[dict, Setting]]


def contest_at(model: MaskedLM, count: int, tuned: Tuned, sets: list[Chains]) -> list[dict]:
    """Return the best setting of each side with at most `count` mean evaluations: one record per side, over its training
    seeds."""
    sides: dict[str, Callable[[Setting], bool]] = {
        "best heuristic, no blocks": lambda s: s.run is None and s.block == LENGTH,
        "window": lambda s: s.method == "window",
        "other rules, no blocks": lambda s: (
            s.run is None and s.block == LENGTH and s.method not in ("leftmost", "window")
        ),
        "threshold, blocks of 2 or 4": lambda s: s.method == "threshold" and s.block < LENGTH,
    }
    for name in dict.fromkeys(setting.method for _, setting in tuned if setting.run):
        sides[name] = lambda s, name=name: s.run is not None and s.method == name and s.block == LENGTH
        sides[f"{name}, blocks of 2 or 4"] = lambda s, name=name: (
            s.run is not None and s.method == name and s.block < LENGTH
        )
    out = []
    for side, of in sides.items():
        found = []
        for run in dict.fromkeys(setting.run for _, setting in tuned if of(setting)):
            fits = [(record, s) for record, s in tuned if of(s) and s.run == run and record["nfe"] <= count]
            if fits:
                _, setting = max(fits, key=lambda pair: (pair[0]["right"], -pair[0]["nfe"]))
                found.append(with_cost(model, setting, sets))
        if found:
            answers = sum(len(problems.start) for problems in sets) * len(found)
            rate = wilson(round(sum(record["right"] for record in found) / len(found) * answers), answers)
            out.append({
                "count": count, "side": side, "setting": "; ".join(record["setting"] for record in found),
                "seeds": len(found), "right": rate.value, "low": rate.low, "high": rate.high,
                **{name: sum(record[name] for record in found) / len(found)
                   for name in ("nfe", "equivalent", "cpu_s", "tpf", "tpf_low", "tpf_high")},
                "of_each_seed": [record["right"] for record in found],
            })  # fmt: skip
    return out


def summary(contest: list[dict], names: set[str]) -> dict[str, float | int | None]:
    """Return, for each number of evaluations, the best rule and the best policy without blocks (with blocks if all policies
    have them), and the number of cases in which the interval of the policy is above that of the rule."""
    found: dict[str, float | int | None] = {}
    in_blocks = all("blocks" in name for name in names)
    rule = "threshold, blocks of 2 or 4" if in_blocks else "best heuristic, no blocks"
    sides = {f"{name}, blocks of 2 or 4" if in_blocks else name for name in names}
    won = 0
    for count in COUNTS:
        here = {record["side"]: record for record in contest if record["count"] == count}
        theirs, ours = here.get(rule), [record for side, record in here.items() if side in sides]
        best_policy = max(ours, key=lambda record: record["right"], default=None)
        found[f"heuristic_{count}"] = theirs["right"] if theirs else None
        found[f"policy_{count}"] = best_policy["right"] if best_policy else None
        won += bool(best_policy and (theirs is None or best_policy["low"] > theirs["high"]))
    return found | {"counts_won": won}


def draw(records: list[dict], path: Path) -> None:
    """Plot the threshold rule at every block length, and policies and a few other rules without blocks; policies named
    `blocks` with them."""

    def is_plotted(record: dict) -> bool:
        if record["learned"]:
            return ("blocks" in record["method"]) == (record["block"] < LENGTH)
        return record["method"] == "threshold" or (
            record["block"] == LENGTH and record["method"] in ("random", "top_prob", "leftmost", "window")
        )

    def name(record: dict) -> str:
        in_blocks = not record["learned"] or "blocks" in record["method"]
        return record["method"] + (f", block {record['block']}" if in_blocks else "")

    front = [
        {"name": name(r), "x": r["nfe"], "y": r["right"], "lo": r["low"], "hi": r["high"]}
        for r in records
        if is_plotted(r)
    ]
    title = "Chain arithmetic, held-out problems"
    plot_pareto(front, path, y_label="right answers", title=title)
    speeds = [{"x": r["tpf"], "x_lo": r["tpf_low"], "x_hi": r["tpf_high"]} for r in records if is_plotted(r)]
    whole = [point | speed for point, speed in zip(front, speeds, strict=True)]
    plot_tpf(whole, path.with_stem(f"{path.stem}_tpf"), y_label="right answers", title=title)


def draw_cost(contest: list[dict], path: Path) -> None:
    """Plot the chosen settings against the cost of the whole decoding."""
    names = {
        "best heuristic, no blocks": "best rule, no blocks",
        "other rules, no blocks": "rules but leftmost, window",
    }
    front = [
        {
            "name": names.get(r["side"], r["side"]),
            "x": r["equivalent"],
            "y": r["right"],
            "lo": r["low"],
            "hi": r["high"],
        }
        for r in contest
    ]
    plot_pareto(
        front, path, y_label="right answers", title="Chain arithmetic, held-out problems",
        x_label="equivalent evaluations per sample",
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/chain")
    parser.add_argument("--policies", nargs="*", default=["example/chain_policy", "example/chain_budget"])
    names = list(dict.fromkeys(setting.method for setting in heuristics()))
    parser.add_argument("--rules", nargs="*", choices=names, default=names, help="of the heuristics these alone")
    parser.add_argument("--problems", type=ROWS, default=1000, help="in each of the sets that are measured")
    parser.add_argument("--tuning", type=ROWS, default=500, help="others, on which settings are chosen")
    parser.add_argument("--seeds", type=ROWS, default=3, help="sets")
    parser.add_argument(
        "--plans",
        type=Whole(0, 1_000_000),
        default=0,
        metavar="N",
        help="also climb to a plan of two evaluations, from N sets",
    )
    parser.add_argument("--out", default="docs/results/chain")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    tuning = [problems(arguments.tuning, 4001)]
    sets = [problems(arguments.problems, 5001 + number) for number in range(arguments.seeds)]
    known = gate(model, arguments.problems)
    print(json.dumps(known))
    ordered = orders(model, sets)
    print_table(ordered, title="random places against the surest first, on the problems that are measured")
    plans = []
    if arguments.plans:
        plans = [measure(model, climbed(model, tuning[0], arguments.plans - 1)[1], sets)]
        print_table(plans, title="two evaluations by the best plan that was climbed to on tuning problems")
    rules = [setting for setting in heuristics() if setting.method in arguments.rules]
    settings = [*rules, *learned(arguments.policies)]
    results = [measured(model, setting, tuning) for setting in settings]
    tuned = [(record, setting) for (record, _), setting in zip(results, settings, strict=True)]

    contest = [record for count in COUNTS for record in contest_at(model, count, tuned, sets)]
    print_table(contest, title="the best of each at a mean of at most so many evaluations, chosen on other problems")
    records = [record for record, _ in tuned]
    print_table(records, title=f"every setting on {arguments.tuning} tuning problems")
    areas = aup_of(results)
    print_table(areas, title="accuracy under parallelism (AUP) of every method on them")

    names = {setting.method for _, setting in tuned if setting.run}
    result = known | summary(contest, names)
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json(
        {"result": result, "orders": ordered, "plans": plans, "contest": contest, "records": records, "aup": areas},
        out / "chain.json",
    )
    write_csv(records, out / "chain.csv")
    draw(records, out / "chain.png")
    draw_cost(contest, out / "chain_cost.png")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
