"""unmask evaluate --task reward: figures by hand, the error of the mean, and a judge that is not the selector."""

import csv
import json

import pytest
import torch

from evaluation.likelihood import log_likelihoods
from evaluation.reward_task import distinct
from load_model import load_model
from tests import tiny_rewards
from tests.test_run_sample import models  # noqa: F401
from unmask.commands import evaluate as evaluate_command


@pytest.fixture
def answers(tmp_path):
    texts = {"one": ["The cat", "A red cat", "red", "The"], "two": ["The cat saw", "happy", "a", "The hill."]}
    for name, results in texts.items():
        rows = [{"prompt": f"Once {n}", "result": result} for n, result in enumerate(results)]
        (tmp_path / f"generation_{name}.json").write_text(json.dumps(rows))
    (tmp_path / "costs.csv").write_text(
        "method,evaluations_per_token,reward_rows_per_token,seconds_per_token,seconds\none,1,10,0.5,3\n"
    )
    return tmp_path


def read(path):
    with path.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("name", ["causal", "text"])
def test_the_figures_of_each_method(models, answers, name):  # noqa: F811
    model = load_model(models[name])[0]
    judge = tiny_rewards.reward(answers / "judge", model.tokenizer)
    status = evaluate_command.main(["--task", "reward", "--generations", str(answers), "--selector", "brevity", "--judge", judge,
                                "--model", models[name], "--draws", "8", "--batch_size", "3"])  # fmt: skip
    assert status == 0
    one, two = read(answers / "evaluation.csv")
    values = torch.tensor([-2.0, -3.0, -1.0, -1.0])
    assert one["method"] == "one" and float(one["selector_mean"]) == values.mean() == -1.75
    assert float(one["selector_se"]) == pytest.approx(float(values.std() / 2)), (
        "the error of the mean, not the deviation"
    )
    assert [float(row["one"]) for row in read(answers / "selector.csv")] == values.tolist()
    judged = [float(row["two"]) for row in read(answers / "judge.csv")]
    assert float(two["judge_mean"]) == pytest.approx(sum(judged) / 4)
    pairs = [tuple(model.tokenizer.encode(text, add_special_tokens=False) for text in (f"Once {n}", answer))
             for n, answer in enumerate(["The cat", "A red cat", "red", "The"])]  # fmt: skip
    found = log_likelihoods(model, pairs, 8)
    expected = sum(each.log_prob / len(answer) for each, (_, answer) in zip(found, pairs, strict=True)) / 4
    assert float(one["log_likelihood_per_token"]) == pytest.approx(expected, abs=1e-5)
    assert float(one["length_mean"]) == sum(len(answer) for _, answer in pairs) / 4
    assert one["reward_rows_per_token"] == "10.0" and two["reward_rows_per_token"] == ""


def test_directories_are_seeds_whose_mean_is_taken_prompt_by_prompt(models, answers, tmp_path):  # noqa: F811
    second = tmp_path / "second"
    second.mkdir()
    texts = {"one": ["a b c d", "a", "a b", "a b c"], "two": ["a", "a", "a", "a"]}
    for name, results in texts.items():
        rows = [{"prompt": f"Once {n}", "result": result} for n, result in enumerate(results)]
        (second / f"generation_{name}.json").write_text(json.dumps(rows))
    (second / "costs.csv").write_text(
        "method,evaluations_per_token,reward_rows_per_token,seconds_per_token,seconds\none,3,10,0.5,5\n"
    )
    command = ["--task", "reward", "--generations", str(answers), str(second), "--judge", "brevity", "--model",
               models["causal"], "--out", str(tmp_path / "both")]  # fmt: skip
    assert evaluate_command.main(command) == 0
    one = read(tmp_path / "both" / "evaluation.csv")[0]
    of_prompts = torch.tensor([-2.0, -3.0, -1.0, -1.0]).add(torch.tensor([-4.0, -1.0, -2.0, -3.0])) / 2
    assert float(one["judge_mean"]) == of_prompts.mean() and one["prompts"] == "4" and one["seeds"] == "2"
    assert float(one["judge_se"]) == pytest.approx(float(of_prompts.std() / 2)) and one["seconds"] == "4.0"
    for name, directories in (("alone", [second]), ("twice", [second, second])):
        of_both = ["--task", "reward", "--generations", *map(str, directories), *command[5:-1], str(tmp_path / name)]
        assert evaluate_command.main(of_both) == 0
    alone, twice = (read(tmp_path / name / "evaluation.csv") for name in ("alone", "twice"))
    for row, again in zip(alone, twice, strict=True):  # the same answers twice are no second sample
        assert row["seeds"] == again["seeds"] == "1"
        for key in ("distinct_1", "distinct_2", "log_likelihood_per_token", "log_likelihood_se", "judge_se"):
            assert (
                again[key] == pytest.approx(row[key])
                if again[key] == ""
                else float(again[key]) == pytest.approx(float(row[key]))
            )
    assert float(one["evaluations_per_token"]) == 2 and len(read(tmp_path / "both" / "judge.csv")) == 8
    (second / "generation_two.json").unlink()
    with pytest.raises(ValueError, match="hold answers of different methods"):
        evaluate_command.main(command)


def test_distinct_by_hand():
    assert distinct([[1, 2, 1, 2], [1, 2], [3]], 1) == 3 / 7
    assert distinct([[1, 2, 1, 2], [1, 2], [3]], 2) == 2 / 4
    assert distinct([[1], []], 2) is None


def test_the_selector_is_no_judge_of_itself_and_other_mistakes(models, answers, tmp_path):  # noqa: F811
    def evaluate(*more):
        evaluate_command.main(["--task", "reward", "--generations", str(answers), "--model", models["causal"], *more])

    with pytest.raises(ValueError, match="--judge brevity is the selector: it cannot see over-optimisation of itself"):
        evaluate("--selector", "brevity", "--judge", "brevity")
    with pytest.raises(ValueError, match="is the selector"):  # however it is written
        evaluate("--selector", str(tmp_path), "--judge", f"{tmp_path}/")
    (answers / "generation_two.json").write_text(json.dumps([{"prompt": "x", "result": "y"}]))
    with pytest.raises(ValueError, match="answer different prompts"):
        evaluate("--judge", "brevity")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds no generation_METHOD.json"):
        evaluate("--judge", "brevity", "--generations", str(tmp_path / "empty"))
