"""The written figures, derived again at small size from the shipped weights: their intervals must meet."""

import csv
import json
from itertools import product
from pathlib import Path
from typing import cast

import pytest
from omegaconf import DictConfig, OmegaConf

from benchmarks import stories
from benchmarks.chain import heuristics, learned, measure, problems, with_cost
from benchmarks.latex import answered, questions
from data.sudoku import blanked, make
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.cost import evaluation_flop, flop_of
from evaluation.intervals import wilson
from evaluation.latex import formula_measures
from load_model import load_model
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from rewards.models import TextReward, VaderReward, load_reward
from rewards.sudoku import is_solved
from samplers.heuristics import EntropyBound, Factor, Threshold
from samplers.loop import Strategy, sample
from training.usage import composed
from twist.evaluate import proposal_samples
from twist.network import load_twist
from twist.settings import TwistTrainingSettings
from twist.tail import with_tail
from unmask.build import build_source, read_settings
from unmask.runs.guide import run as guide
from unmask.runs.make_preferences import prompts_of

ROOT = Path(__file__).parents[1]
BOX = (2, 3)
SUDOKU = json.loads((ROOT / "docs/results/sudoku/sudoku.json").read_text())
CHAIN = json.loads((ROOT / "docs/results/chain/chain.json").read_text())
CHAIN_COST = json.loads((ROOT / "docs/results/chain/cost/chain.json").read_text())
SHIPPED = {"shipped_alpha_3": "chain_policy", "shipped_budget": "chain_budget", "blocks_alpha_1": "chain_blocks"}
IN_BLOCKS = json.loads((ROOT / "docs/results/chain/in_blocks/chain.json").read_text())
LATEX = json.loads((ROOT / "docs/results/latex/latex.json").read_text())["records"]
BOUND = (ROOT / "docs/results/stories/grid/bound.jsonl").read_text().splitlines()


def solves(rule, puzzles, budget=None):
    """Interval of the solve rate, evaluations and equivalent evaluations, on puzzles of another seed than the written ones."""
    model, _ = load_model(ROOT / "example/sudoku6")
    canvas = blanked(make(BOX, puzzles, None, seed=4711, split="test"), BOX)
    environment = UnmaskingEnvironment(model, DecodeOptions(budget or 36, budget=budget))
    samples, flop = flop_of(lambda: sample(environment, Strategy(rule, TokenRule(0.0)), Prompts(canvas)))
    rate = wilson(int(is_solved(samples.tokens, BOX).sum()), puzzles)
    return rate, float(samples.evaluations.float().mean()), flop / evaluation_flop(model, 36) / puzzles


def sudoku_rule(record):
    """What a written record of the Sudoku benchmark was measured with."""
    rules = {"threshold": Threshold, "factor": Factor, "entropy_bound": EntropyBound}
    if record["method"] in rules:
        return rules[record["method"]](float(record["setting"]))
    network = load_policy(ROOT / "example" / record["method"])
    if record["setting"] == "bernoulli_argmax":
        return PolicyUnmasker(network, "bernoulli_argmax")
    return PolicyUnmasker(network, "threshold", threshold=float(record["setting"].split()[-1]))


def agrees(record, puzzles):
    rate, evaluations, equivalent = solves(sudoku_rule(record), puzzles, record["budget"])
    low, high = record["interval"]
    assert rate.low <= high and low <= rate.high
    assert abs(evaluations - record["nfe"]) < 0.3 and abs(equivalent - record["equivalent"]) < 0.3
    return equivalent


@pytest.mark.parametrize("threshold", ["0.7", "0.98"])
def test_sudoku_by_threshold(threshold):
    agrees(next(r for r in SUDOKU["records"] if r["method"] == "threshold" and r["setting"] == threshold), 150)


@pytest.mark.parametrize("target", [0.8, 0.95])
def test_the_sudoku_policy_solves_as_many_at_lower_cost(target):
    """At equal solve rate: both written records hold, and the whole decoding of the policy costs less."""
    pair = {row["side"]: row for row in SUDOKU["at_equal_rate"] if row["target"] == target}
    ours, theirs = (agrees(pair[side], 200) for side in ("sudoku6_agreement", "rule"))
    assert ours < 0.9 * theirs


@pytest.mark.parametrize("budget", [2, 3])
def test_sudoku_within_a_budget_after_reinforcement_learning(budget):
    rows = SUDOKU["at_equal_budget"]
    agrees(next(r for r in rows if r["side"] == "sudoku6_agreement_rl" and r["target"] == budget), 200)


def chain_setting(method, setting, block):
    """What a written record of chain arithmetic was measured with; policies are those that are shipped."""
    policies = [f"{ROOT / 'example'}/{path}={name}" for name, path in SHIPPED.items()]
    found = [*heuristics(), *learned(policies)]
    return next(one for one in found if (one.method, one.setting, one.block) == (method, setting, block))


@pytest.mark.parametrize(
    "method, setting, block",
    [
        ("threshold", "0.5", 24),
        ("threshold", "0.4", 4),
        ("leftmost", "3 steps", 24),
        ("window", "0.4, window 4", 24),
        ("shipped_alpha_3", "T=0.5", 24),
        ("shipped_budget", "T=0.5, budget 3", 24),
        ("shipped_budget", "T=0.5, budget 6", 24),
        ("blocks_alpha_1", "T=0.5", 4),
    ],
)
def test_chain_arithmetic(method, setting, block):
    """Problems of another seed than the written ones."""
    record = next(
        r
        for r in [*CHAIN["records"], *IN_BLOCKS["records"], *CHAIN_COST["records"]]
        if (r["method"], r["setting"], r["block"]) == (method, setting, block)
    )
    model, _ = load_model(ROOT / "example/chain")
    again = measure(model, chain_setting(method, setting, block), [problems(200, 4711)])
    assert again["low"] <= record["high"] and record["low"] <= again["high"]
    assert abs(again["nfe"] - record["nfe"]) < 0.5


@pytest.mark.parametrize("side", ["shipped_budget", "window", "threshold, blocks of 2 or 4"])
def test_chain_arithmetic_costs_what_is_written(side):
    written = next(r for r in CHAIN_COST["contest"] if (r["count"], r["side"]) == (8, side))
    setting = chain_setting(side.split(",")[0], written["setting"], 4 if "blocks" in side else 24)
    model, _ = load_model(ROOT / "example/chain")
    again = with_cost(model, setting, [problems(100, 4711)])
    assert again["equivalent"] == pytest.approx(written["equivalent"], rel=0.1)
    assert again["low"] <= written["high"] and written["low"] <= again["high"]


@pytest.mark.parametrize("name", ["SFT", "RL"])
def test_validity_of_formulas_before_and_after_reinforcement_learning(name):
    record = next(r for r in LATEX if (r["model"], r["training_seed"], r["steps"]) == (name, 0, 64))
    model, _ = load_model(ROOT / "example" / f"latex_{name.lower()}")
    _, texts = answered(model, questions(96, model, model.max_length, seed=4711), 64, seed=5)
    measures = formula_measures(texts)
    rate = wilson(round(measures["validity"] * len(texts)), len(texts))
    assert rate.low <= record["high"] and record["low"] <= rate.high
    assert abs(measures["length"] - record["length"]) < 6


@pytest.mark.parametrize(
    "model, reward, methods, count",
    [
        ("stories", "reward_stories", ["unguided", "args", "pargs"], 24),
        ("masked", "reward_stories_masks", ["unguided", "pargs"], 16),
    ],
)
def test_stories_by_the_shipped_reward_models_and_without(model, reward, methods, count, tmp_path):
    """Beginnings of stories of another seed than the written ones; VADER, whose preferences the reward models learnt, and the
    shipped judge."""
    judges: dict[str, TextReward] = {"vader": VaderReward()}
    if model == "stories":
        judges["judge"] = load_reward(str(ROOT / "example/reward_stories_judge"))
    prompts = prompts_of("stories", 10, count, seed=4711)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    words = [f"experiment=pargs_{model}_decode", f"rewards.partial=example/{reward}", "selector=null", f"out={tmp_path}",
             f"prompts.count={count}", f"prompts.file={tmp_path}/prompts.jsonl", "device=cpu"]  # fmt: skip
    others = [name for name in composed("guide", words).methods if name not in methods]
    guide(composed("guide", words + [f"~methods.{name}" for name in others]))
    for judge, name in product(judges, methods):
        with (ROOT / f"docs/results/guidance/{model}_{judge}.csv").open() as file:
            written = next(row for row in csv.DictReader(file) if row["method"] == name)
        answers = json.loads((tmp_path / f"generation_{name}.json").read_text())
        found = (
            judges[judge].score_texts([row["prompt"] for row in answers], [row["result"] for row in answers]).double()
        )
        error = (float(found.var()) / count + float(written["judge_se"]) ** 2) ** 0.5
        assert abs(float(found.mean()) - float(written["judge_mean"])) < 4.5 * error, (judge, name)


@pytest.mark.parametrize(
    "name, f, score",
    [
        ("twist_sentiment", -3.54, -3.54),
        ("twist_sentiment_masked", -3.40, -3.40),
        ("twist_infilling", -12.12, -12.12),
        ("twist_infilling_masked", -12.08, -12.08),
    ],
)
def test_shipped_twists_write_texts_as_fitting_and_as_likely_as_they_did(name, f, score):
    """F = E_q[log p phi / q] and the mean log potential, from other samples; above those of the model alone, which are given."""
    directory = ROOT / "example" / name
    written = json.loads((directory / "evaluations.json").read_text())[-1]
    stored = OmegaConf.load(directory / ".hydra" / "config.yaml")
    assert isinstance(stored, DictConfig)
    today = composed("train_twist", [f"target={stored.target.kind}"])  # with the keys that are newer than the run
    OmegaConf.set_struct(today, False)
    config = read_settings(TwistTrainingSettings, cast(DictConfig, OmegaConf.merge(today, stored)))
    model = with_tail(load_model(ROOT / config.dlm.path)[0], config.target.values())
    twist, _ = load_twist(directory, model)
    drawn = proposal_samples(build_source(config, model, twist), 200, seed=4711)[:2]
    for key, values, alone in zip(("f", "log_phi"), drawn, (f, score), strict=True):
        record = (
            written[key] if key in written else written["score"]
        )  # records from before the score was of log phi / beta
        error = (float(values.var()) / len(values) + ((record["high"] - record["low"]) / 3.92) ** 2) ** 0.5
        assert abs(float(values.mean()) - record["value"]) < 4.5 * error
        assert record["value"] > alone


def test_held_out_stories_revealed_in_the_order_of_each_rule():
    """The written nats a token, to the last digits that rounding leaves: any other rule, policy or model gives others, and the
    shipped policy is between `direct` and `dilated` at few steps."""
    written = {r["rule"]: r for r in map(json.loads, BOUND) if (r["steps"], r["length"]) == (8, 128)}
    model, _ = load_model(ROOT / "example/stories")
    rules = stories.rules([str(ROOT / "example/014609")], sweep=False, noise=1.0)
    text = stories.held_out(model, 128, written["direct"]["texts"])
    found = {name: float(stories.bound(model, rules[name], text, 8).mean()) for name in written}
    for name, nats in found.items():
        assert abs(nats - written[name]["nats"]) < 2e-3, name
    assert found["dilated"] + 0.05 < found["014609 T=0.5"] < found["direct"] - 0.05
