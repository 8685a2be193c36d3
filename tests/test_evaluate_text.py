"""`evaluate --task text` and `compare` of what it wrote: texts by rules and policies under a judge."""

import csv
import json
from math import log

import pytest
import torch

from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from evaluation.text import load_judge, perplexity
from load_model import load_model
from samplers.heuristics import AsSampled, Confident
from samplers.loop import Strategy
from training.hub import shipped
from unmask.commands import compare, evaluate

FEW = ["--task", "text", "--judge", "example/stories_causal", "--num_samples", "3", "--length", "12", "--batch_size", "2",
       "--device", "cpu"]  # fmt: skip


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    base = tmp_path_factory.mktemp("texts")
    for rule in (["--strategy", "dilated"], ["--policy", "example/stories_policy", "--sampling_mode", "fixed"]):
        assert evaluate.main([*FEW, *rule, "--steps", "2,4", "--prompt", "Once upon", "--out", str(base)]) == 0
    return base


def lines(directory):
    return [json.loads(line) for line in (directory / "generations.jsonl").read_text().splitlines()]


def test_a_row_for_every_rule_and_number_of_steps(results):
    with (results / "text_results.csv").open(newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {"dilated-K2", "dilated-K4", "014609-T1-fixed-K2", "014609-T1-fixed-K4"}
    assert [float(rows[f"dilated-K{steps}"]["nfe"]) for steps in (2, 4)] == [2, 4]
    policy, rule = (float(rows[name]["equivalent"]) for name in ("014609-T1-fixed-K4", "dilated-K4"))
    assert policy > rule  # the policy's own FLOP are counted
    assert (results / "pareto_text.png").read_bytes().startswith(b"\x89PNG")


def test_the_figures_are_those_of_the_texts(results):
    records = lines(results / "dilated-K4_text_seed42")
    assert all(record["text"].startswith("Once upon") for record in records) and len(records) == 3
    model, _ = load_model(shipped("example/stories"), "cpu")
    judge = load_judge("example/stories_causal")
    ids = [model.tokenizer.encode(record["text"]) for record in records]
    # A text that encodes to other ids than those that were drawn has another perplexity.
    whole = [(record, one) for record, one in zip(records, ids, strict=True) if len(one) == 12]
    assert whole
    for record, one in whole:
        again = float(perplexity(judge, torch.tensor([one]))[0])
        assert log(again) == pytest.approx(log(record["perplexity"]), abs=1e-4)


def test_a_finished_evaluation_is_read_and_other_settings_are_refused(results, monkeypatch):
    monkeypatch.setattr("unmask.runs.evaluate_text.write_samples", lambda *_: pytest.fail("evaluated again"))
    again = [*FEW, "--strategy", "dilated", "--steps", "2", "--prompt", "Once upon", "--out", str(results)]
    assert evaluate.main(again) == 0
    with pytest.raises(ValueError, match="prompt=Once upon"):
        evaluate.main([*again, "--prompt", "One day"])


def test_two_rules_are_compared_sample_by_sample(results, capsys):
    compare.main([str(results / "dilated-K4"), str(results / "014609-T1-fixed-K4")])
    record = json.loads(capsys.readouterr().out.splitlines()[-1])["comparisons"][0]
    ours, theirs = (lines(results / f"{name}_text_seed42") for name in ("dilated-K4", "014609-T1-fixed-K4"))
    difference = sum(a["perplexity"] - b["perplexity"] for a, b in zip(ours, theirs, strict=True)) / 3
    assert record["perplexity_difference"] == pytest.approx(difference)
    assert record["perplexity_difference_low"] <= difference <= record["perplexity_difference_high"]
    assert record["nfe_a"] == record["nfe_b"] == 4


def test_texts_with_other_prompts_are_not_compared(results, tmp_path):
    assert evaluate.main([*FEW, "--strategy", "dilated", "--steps", "2", "--out", str(tmp_path)]) == 0
    with pytest.raises(ValueError, match="no data set is in both: text of 12 positions, prompt 'Once upon', judge"):
        compare.main([str(results / "dilated-K2"), str(tmp_path / "dilated-K2")])


def test_one_of_run_policy_and_strategy(tmp_path):
    with pytest.raises(ValueError, match="exactly one of RUN, --policy and --strategy"):
        evaluate.main([*FEW, "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--strategy", "random", "--temperatures", "0.5"], "--temperatures would do nothing with --strategy random"),
        (
            ["--strategy", "random", "--betas", "1", "--alphas", "1"],
            "--betas, --alphas would do nothing with --strategy",
        ),
        (["--strategy", "random", "--sampling_mode", "fixed"], "--sampling_mode would do nothing with --strategy"),
        (["--strategy", "random", "--checkpoints", "last"], "--checkpoints would do nothing with --strategy random"),
        (["--strategy", "random", "--windows", "4"], "--windows would do nothing with --strategy random"),
        (["--strategy", "random", "--other_model"], "--other_model would do nothing with --strategy random"),
        (["--policy", "example/014609", "--windows", "4"], "--windows would do nothing with a policy"),
        (
            ["--policy", "example/014609", "--confidence", "sampling"],
            "--confidence=sampling is for rules that read",
        ),
        (["--strategy", "dilated", "--confidence", "sampling"], "--confidence=sampling is for rules that read"),
        (["--strategy", "random", "--token_temperature", "inf"], "--token_temperature"),
        (["--policy", "missing/policy"], "missing/policy"),
    ],
)
def test_flags_that_do_nothing_are_refused_before_the_model_is_read(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("unmask.runs.evaluate_text.load_model", lambda *_: pytest.fail("the model was read"))
    with pytest.raises((ValueError, SystemExit)) as refused:
        evaluate.main([*FEW, *words, "--out", str(tmp_path / "out")])
    assert message in str(refused.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_confidences_are_those_of_the_token_sampler_on_request(tmp_path):
    flags = [*FEW, "--strategy", "confidence", "--steps", "4", "--token_temperature", "0.5", "--out"]
    for confidence in ("model", "sampling"):
        assert evaluate.main([*flags, str(tmp_path / confidence), "--confidence", confidence]) == 0
    by_model, by_draw = (
        [record["text"] for record in lines(tmp_path / name / "confidence-K4_text_seed42")]
        for name in ("model", "sampling")
    )
    model, _ = load_model(shipped("example/stories"), "cpu")
    rule = AsSampled(Confident(), TokenRule(0.5))
    samples = Strategy(rule, TokenRule(0.5)).decode(
        model, Prompts(torch.full((3, 12), model.mask_id)), DecodeOptions(4), 42
    )
    texts = [
        model.tokenizer.decode(row[kept].tolist()) for row, kept in zip(samples.tokens, samples.counted, strict=True)
    ]
    assert by_draw == texts != by_model
    with pytest.raises(ValueError, match="with confidence=sampling"):
        evaluate.main([*flags, str(tmp_path / "sampling")])
