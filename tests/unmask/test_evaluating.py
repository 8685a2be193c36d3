"""Evaluation, comparison and measures from Python."""

import json
import math

import pytest
import torch

import unmask
from evaluation.text import load_judge, perplexity
from policy.networks import DitConfidence
from samplers.heuristics import Confident
from training.hub import shipped
from unmask.commands import evaluate as evaluate_command

FEW = {"n_test": 4, "answer_length": 8}


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
    settings = unmask.SamplerSettings(strategy="threshold", threshold=0.5, temperature=0)
    found = unmask.evaluate(
        model, strategy=["threshold", settings, policy, Confident()], seeds=[1, 2], run_dir=tmp_path / "python", **FEW
    )
    assert capsys.readouterr().out == ""
    assert [row["name"] for row in found.rows] == [
        "threshold-0.9",
        "threshold-0.5-temperature0",
        "DitConfidence",
        "Confident",
    ]
    assert (
        unmask.evaluate(model, seeds=[1, 1], dataset=["chain", "chain"], run_dir=tmp_path / "once", **FEW).rows[0][
            "num_seeds"
        ]
        == 1
    )
    assert all(row["num_seeds"] == 2 and row["samples"] == 4 and 0 <= row["accuracy_mean"] <= 1 for row in found.rows)
    assert found.rows[1]["evaluations_mean"] <= found.rows[0]["evaluations_mean"]
    shown = repr(found).splitlines()
    assert shown[0] == f"<Evaluation in {tmp_path / 'python'}" and shown[1].startswith(
        "  threshold-0.9 chain accuracy="
    )
    line = ["--strategy", "threshold", "--settings", "0.5", "--seeds", "1", "--n_test", "4", "--length", "8"]
    assert evaluate_command.main([*line, "--device", "cpu", "--out", str(tmp_path / "command")]) == 0
    ours, theirs = answers(tmp_path / "python" / "threshold-0.5-temperature0_chain_seed1"), tmp_path / "command"
    assert ours == answers(theirs / "threshold-0.5_chain_seed1")
    assert (tmp_path / "python" / "summary_statistics.csv").is_file()
    (compared,) = unmask.compare(tmp_path / "python" / "threshold-0.5-temperature0", tmp_path / "command")
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
    found = unmask.evaluate(model, dataset=Counting(), run_dir=tmp_path / "own", answer_length=8)
    assert found.rows[0]["accuracy_mean"] == pytest.approx(2 / 3) and found.rows[0]["dataset"] == "Counting"


def leftmost(count):
    """An unmasking rule that commits so many positions a step, from the left."""

    class Leftmost:
        def choose(self, observation, draws):
            rank = observation.writable.cumsum(1) * observation.writable
            return rank * (rank <= count), torch.zeros(len(rank), dtype=torch.float64)

    return Leftmost()


def test_strategies_of_one_kind_need_names(model, tmp_path):
    found = unmask.evaluate(
        model, dataset=Counting(), answer_length=8, run_dir=tmp_path, strategy={"one": leftmost(1), "all": leftmost(8)}
    )
    nfe = {row["name"]: row["evaluations_mean"] for row in found.rows}
    assert nfe.keys() == {"one", "all"} and nfe["all"] == 1 < nfe["one"]
    for two in ([leftmost(1), leftmost(8)], ["threshold", unmask.SamplerSettings(strategy="threshold")]):
        with pytest.raises(
            ValueError, match="2 strategies would be named '.*'; give a dictionary with a name for each"
        ):
            unmask.evaluate(model, strategy=two, run_dir=tmp_path / "new", **FEW)


def test_settings_decode_as_they_do_in_sample(model, tmp_path):
    settings = unmask.SamplerSettings(strategy="confidence", steps=2, temperature=0.0, block_length=4)
    found = unmask.evaluate(model, strategy=settings, run_dir=tmp_path / "a", **FEW)
    assert found.rows[0]["name"] == "confidence-K2-block_length4-temperature0"
    records = answers(tmp_path / "a" / f"{found.rows[0]['name']}_chain_seed42")
    assert [record["nfe"] for record in records] == [2, 2, 2, 2]
    prompts = [record["question"] for record in records]
    out = unmask.sample(model, prompts, strategy=settings, seed=42, length=len(model.tokenizer.encode(prompts[0])) + 8)
    assert [record["generation"].split() for record in records] == [text.split() for text in out.responses]
    given = {"steps": 2, "temperature": 0.0, "block_length": 4}
    same = unmask.evaluate(model, strategy="confidence", run_dir=tmp_path / "b", **given, **FEW)
    assert answers(tmp_path / "b" / "confidence_chain_seed42") == records and same.rows[0]["block_length"] == 4


def test_a_policy_uses_the_settings_of_its_action(model, tmp_path):
    torch.manual_seed(0)
    policy = DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8).eval()
    strict, bold = (
        unmask.evaluate(
            model,
            strategy=policy,
            policy={"action": "threshold", "threshold": threshold},
            run_dir=tmp_path / str(threshold),
            **FEW,
        ).rows[0]
        for threshold in (0.99, 0.01)
    )
    assert bold["evaluations_mean"] < strict["evaluations_mean"] and bold["sampling_mode"] == "threshold"
    fixed = unmask.evaluate(model, strategy=policy, steps=4, run_dir=tmp_path / "fixed", **FEW).rows[0]
    assert fixed["evaluations_mean"] == 4 and fixed["sampling_mode"] == "fixed"
    torch.manual_seed(1)
    other = DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8).eval()
    with pytest.raises(ValueError, match="holds an evaluation with weights="):
        unmask.evaluate(model, strategy=other, steps=4, run_dir=tmp_path / "fixed", **FEW)


def test_a_trained_policy_is_evaluated_with_the_action_and_budgets_of_its_training(model, tmp_path):
    small = {"training.batch_size": 4, "algorithm.group_size": 2, "eval.batch_size": 2, "algorithm.action": "plackett_luce",
             "sampler.budgets": [2, 4], "policy.hidden_dim": 16, "policy.feedforward_dim": 16}  # fmt: skip
    run = unmask.train_policy(
        model, task="chain", iterations=1, answer_length=8, run_dir=tmp_path / "run", settings=small
    )
    rows = unmask.evaluate(model, strategy=run, run_dir=tmp_path / "answers", **FEW).rows
    assert [(row["name"], row["budget"]) for row in rows] == [("run-budget2", 2), ("run-budget4", 4)]
    assert all(row["evaluations_mean"] <= row["budget"] and row["sampling_mode"] == "plackett_luce" for row in rows)
    warm = unmask.evaluate(model, strategy=run, policy={"temperature": 0.7}, run_dir=tmp_path / "warm", **FEW).rows[0]
    assert warm["temperature"] == 0.7 and warm["sampling_mode"] == "plackett_luce"


def test_answers_of_a_callers_objects_are_not_taken_for_those_of_another(model, tmp_path):
    for given in ({"dataset": Counting()}, {"strategy": leftmost(8), "n_test": 2}):
        place = tmp_path / str(len(given))
        unmask.evaluate(model, answer_length=8, run_dir=place, **given)
        with pytest.raises(ValueError, match="holds answers already, and a rule or a checker of your own"):
            unmask.evaluate(model, answer_length=8, run_dir=place, **given)


class Broken(Counting):
    """Questions whose checker fails."""

    def __init__(self, error):
        self.error = error

    def check(self, prompt, answer):
        raise self.error


class Failing:
    """An unmasking rule that fails."""

    def choose(self, observation, draws):
        raise ValueError("of the user")


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"dataset": "chian"}, ValueError, "data set chian is unknown; use one of gsm8k"),
        ({"dataset": 5}, ValueError, "the task 5 of type int has no `__iter__`"),
        ({"dataset": iter(["a"])}, ValueError, "the task list_iterator has no `check`"),
        ({"dataset": Broken(KeyError("mine"))}, KeyError, "mine"),
        ({"dataset": Broken(ValueError("mine"))}, ValueError, "^mine$"),
        ({"strategy": [Failing(), "confidence"]}, ValueError, "^of the user$"),
        ({"strategy": 3}, ValueError, "strategy=3 is of type int, which has no `choose`"),
        ({"strategy": "euler"}, ValueError, "steps on the scores of a SEDD"),
        ({"nfe": 3}, ValueError, "nfe"),
        ({"answer_length": 1000}, ValueError, "1000"),
        ({"answer_length": 0}, ValueError, "answer_length=0 must be"),
        ({"n_test": -3}, ValueError, "n_test=-3 must be"),
        ({"seeds": "a"}, ValueError, "seeds='a' must be"),
        ({"model": "example/sudoku6"}, ValueError, "is a model of boards, and questions are text"),
        ({"seeds": []}, ValueError, "seeds=.. must be"),
        ({"strategy": []}, ValueError, "strategy is empty; give at least one"),
        ({"strategy": {"a/b": "direct"}}, ValueError, "names a directory"),
        ({"strategy": "best_of_n"}, ValueError, "strategy 'best_of_n' is unknown"),
        (
            {"strategy": "confidence", "threshold": 0.5},
            ValueError,
            "threshold would do nothing with strategy confidence",
        ),
        ({"strategy": ["confidence", leftmost(1)], "window": 3}, ValueError, "window would do nothing"),
        ({"few_shot": 2}, ValueError, "few_shot shows worked answers, which chain lacks"),
        ({"dataset": Counting(), "few_shot": 2}, ValueError, "few_shot shows worked answers, which Counting lacks"),
        ({"stop": True}, ValueError, "stop would do nothing in an evaluation"),
    ],
)
def test_what_is_wrong_is_one_sentence(model, tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        model = unmask.load(arguments["model"], device="cpu") if "model" in arguments else model
        unmask.evaluate.__wrapped__(**{"run_dir": tmp_path / "x", **FEW, **arguments, "model": model})


def test_measures_of_texts_from_anywhere():
    found = unmask.metrics(["a b a b", "a c"])
    assert found["samples"] == 2 and found["words"] == 3 and found["gen_ppl"] is None
    assert found["entropy"] == pytest.approx(math.log(2)) and found["distinct_1"] == pytest.approx(3 / 6)
    texts = ["Once upon a time there was a cat.", "The dog ran home."]
    judged = unmask.metrics(texts, judge="example/stories_causal")
    each = perplexity(load_judge(shipped("example/stories_causal"), "cpu"), texts)
    assert judged["gen_ppl"] == pytest.approx(float(each.mean())) and judged["judge"] == "example/stories_causal"
    assert unmask.metrics([*texts, ""], judge="example/stories_causal")["gen_ppl"] == pytest.approx(judged["gen_ppl"])
    for wrong in ([], "a text"):
        with pytest.raises(ValueError, match="must be a list of at least one text"):
            unmask.metrics.__wrapped__(wrong)
