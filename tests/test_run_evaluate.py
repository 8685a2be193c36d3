"""run_evaluate.py: figures, files, resuming, and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest

import run_evaluate
from data.questions import canvases, load_questions
from evaluation.candidates import checkpoint_files
from load_model import load_model
from run_evaluate import main

ROOT = Path(__file__).parents[1]
TINY = ["--n_test", "6", "--batch_size", "4", "--gen_length", "24"]


def read(file):
    with file.open() as opened:
        return list(csv.DictReader(opened))


def test_a_rule_swept_over_seeds(tmp_path):
    argv = [
        "--strategy",
        "threshold",
        "--settings",
        "0.3,0.9",
        "--datasets",
        "chain",
        "--seeds",
        "1,2",
        "--block_length",
        "4",
    ]
    assert main([*argv, *TINY, "--save_path", str(tmp_path)]) == 0
    rows = read(tmp_path / "detailed_results.csv")
    assert [(row["name"], row["seed"]) for row in rows] == [
        (f"threshold-{t}", s) for t in ("0.3", "0.9") for s in ("1", "2")
    ]
    for row in rows:
        directory = tmp_path / f"{row['name']}_chain_seed{row['seed']}"
        records = [json.loads(line) for line in (directory / "generations.jsonl").read_text().splitlines()]
        assert [record["row"] for record in records] == list(range(6))
        assert float(row["accuracy"]) == sum(record["right"] for record in records) / 6
        for record in records:
            answer = record["generation"].split("<eos>")[0].split()
            right = "=" in answer and answer[answer.index("=") + 1 :][:1] == [record["ground_truth"]]
            assert record["right"] == right and 6 <= record["nfe"] <= 24
    summary = read(tmp_path / "summary_statistics.csv")
    assert [row["num_seeds"] for row in summary] == ["2", "2"]
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_an_evaluation_that_was_cut_goes_on(tmp_path, monkeypatch):
    argv = ["--strategy", "confidence", *TINY, "--save_path"]
    main([*argv, str(tmp_path / "whole")])
    main([*argv, str(tmp_path / "cut")])
    file = tmp_path / "cut" / "confidence_chain_seed42" / "generations.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join(lines[:4]) + "\n")
    asked = []
    sample = run_evaluate.sample
    monkeypatch.setattr(run_evaluate, "sample", lambda *a, **k: asked.append(len(a[2])) or sample(*a, **k))
    main([*argv, str(tmp_path / "cut")])
    assert asked == [2]
    strip = lambda file: [
        {k: v for k, v in json.loads(line).items() if k != "seconds"} for line in file.read_text().splitlines()
    ]
    assert strip(file) == strip(tmp_path / "whole" / "confidence_chain_seed42" / "generations.jsonl")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--strategy", "threshold"], "needs --settings"),
        (["--strategy", "treshold", "--settings", "1"], "did you mean 'threshold'"),
        (["nowhere"], "is not a run"),
        ([], "exactly one of"),
        (["--strategy", "random", "--model_path", "example/nothing"], "example/nothing"),
    ],
)
def test_bad_input(argv, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main([*argv, "--save_path", str(tmp_path)])


def test_checkpoints_that_are_not_there_are_listed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for number in (50, 100):
        (tmp_path / "checkpoints" / f"checkpoint_{number}.pth").touch()
    named = lambda asked: [file.name for file in checkpoint_files(tmp_path, asked)]
    assert named("first") == ["checkpoint_50.pth"] and named("last") == ["checkpoint_100.pth"]
    assert named("100,50") == ["checkpoint_100.pth", "checkpoint_50.pth"]
    with pytest.raises(ValueError, match=r"\[7\] not there; .* has 50, 100"):
        checkpoint_files(tmp_path, "50,7")


def test_where_every_evaluation_fails_the_status_is_1(tmp_path):
    command = [sys.executable, "run_evaluate.py", "--strategy", "random", "--datasets", "gsm8k", "--data_dir", str(tmp_path), "--save_path", str(tmp_path)]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "JSONL with `question` and `answer`" in done.stderr and "Traceback" not in done.stderr


def test_prompts_are_padded_on_the_left_and_what_does_not_fit_names_its_row():
    model, _ = load_model(ROOT / "example" / "chain")
    asked = [question.prompt for question in load_questions("chain", "test", None, 2)]
    prompts = canvases(model, [asked[0], "3 A +1 ?"], 24)
    assert prompts.prompt_length == 18 and prompts.start.tolist() == [0, 14]
    assert (prompts.canvas[:, 18:] == model.mask_id).all()
    with pytest.raises(ValueError, match="prompt 1 has 18 tokens, with 30 to write more than the model's 42"):
        canvases(model, ["3 ?", asked[0]], 30)
    with pytest.raises(ValueError, match="prompt 0 holds the mask token"):
        canvases(model, ["3 <mask> ?"], 24)


def test_a_file_of_questions_in_place_of_the_hub(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "two #### 2"}) + "\n")
    (question,) = load_questions("gsm8k", "test", str(tmp_path))
    assert question.prompt.endswith("1+1?") and "<answer>" in question.prompt
    assert question.is_right("<answer>2</answer>", question.truth) and not question.is_right("3", question.truth)
