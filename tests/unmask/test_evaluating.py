"""Evaluation, comparison and measures from Python."""

import json
import math

import pytest
import torch

import unmask
from policy.networks import DitConfidence
from samplers.heuristics import Confident
from unmask.commands import evaluate as evaluate_command

FEW = {"n_test": 4, "gen_length": 8}


@pytest.fixture(scope="module")
def model():
    return unmask.load("example/chain", device="cpu")


def answers(directory):
    """Generations of an evaluation without clocks."""
    lines = (directory / "generations.jsonl").read_text().splitlines()
    return [{k: v for k, v in json.loads(line).items() if "seconds" not in k} for line in lines]


def test_rules_and_policies_side_by_side(model, tmp_path, capsys):
    torch.manual_seed(0)
    policy = DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8).eval()
    settings = unmask.SamplerSettings(strategy="threshold", threshold=0.5)
    found = unmask.evaluate(
        model, strategy=["threshold", settings, policy, Confident()], seeds=[1, 2], run_dir=tmp_path / "python", **FEW
    )
    assert capsys.readouterr().out == ""
    assert [row["name"] for row in found.rows] == ["threshold-0.9", "threshold-0.5", "DitConfidence", "Confident"]
    assert all(row["num_seeds"] == 2 and row["samples"] == 4 and 0 <= row["accuracy_mean"] <= 1 for row in found.rows)
    assert found.rows[1]["evaluations_mean"] <= found.rows[0]["evaluations_mean"]
    shown = repr(found).splitlines()
    assert shown[0] == f"<Evaluation in {tmp_path / 'python'}" and shown[1].startswith(
        "  threshold-0.9 chain accuracy="
    )
    line = ["--strategy", "threshold", "--settings", "0.5", "--seeds", "1", "--n_test", "4", "--gen_length", "8"]
    assert evaluate_command.main([*line, "--device", "cpu", "--save_path", str(tmp_path / "command")]) == 0
    name = "threshold-0.5_chain_seed1"
    assert answers(tmp_path / "python" / name) == answers(tmp_path / "command" / name)
    assert (tmp_path / "python" / "summary_statistics.csv").is_file()
    (compared,) = unmask.compare(tmp_path / "python" / "threshold-0.5", tmp_path / "command")
    assert compared["dataset"] == "chain" and compared["questions"] == 4 and compared["only_a_right"] == 0
    with pytest.raises(ValueError, match="holds several rules; give one of"):
        unmask.compare(found, tmp_path / "command")


class Counting:
    """Prompts, of which an answer is right that has an A."""

    def __iter__(self):
        return iter(["3 A +3 B ?", "2 A +3 B ?", "1 A +3 B ?"])

    def check(self, prompt, answer):
        return 0.0 if prompt.startswith("3") else 1


def test_a_users_questions(model, tmp_path):
    found = unmask.evaluate(model, dataset=Counting(), run_dir=tmp_path / "own", gen_length=8)
    assert found.rows[0]["accuracy_mean"] == pytest.approx(2 / 3) and found.rows[0]["dataset"] == "Counting"


class Broken(Counting):
    def check(self, prompt, answer):
        raise KeyError("mine")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": "chian"}, ValueError, "data set chian is unknown; use one of gsm8k"),
        ({"dataset": 5}, ValueError, "the task 5 of type int has no `__iter__`"),
        ({"dataset": iter(["a"])}, ValueError, "the task list_iterator has no `check`"),
        ({"dataset": Broken()}, KeyError, "mine"),
        ({"strategy": 3}, ValueError, "strategy=3 is of type int, which has no `choose`"),
        ({"strategy": "euler"}, ValueError, "steps on the scores of a SEDD"),
        ({"nfe": 3}, ValueError, "evaluate has no setting nfe; use one of checkpoints"),
        ({"gen_length": 1000}, ValueError, "1000"),
    ],
)
def test_what_is_wrong_is_one_sentence(model, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        unmask.evaluate.__wrapped__(model, **{"run_dir": tmp_path / "x", **FEW, **arguments})


def test_measures_of_texts_from_anywhere():
    found = unmask.metrics(["a b a b", "a c"])
    assert found["samples"] == 2 and found["words"] == 3 and found["gen_ppl"] is None
    assert found["entropy"] == pytest.approx(math.log(2)) and found["distinct_1"] == pytest.approx(3 / 6)
    judged = unmask.metrics(["Once upon a time there was a cat.", "The dog ran home."], judge="example/stories_causal")
    assert judged["gen_ppl"] > 1 and judged["judge"] == "example/stories_causal"
    for wrong in ([], "a text"):
        with pytest.raises(ValueError, match="must be a list of at least one text"):
            unmask.metrics.__wrapped__(wrong)
