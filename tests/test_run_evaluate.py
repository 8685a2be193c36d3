"""run_evaluate.py: figures, files, resuming, and what it refuses."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import run_evaluate
from data.questions import canvases, load_questions
from load_model import load_model
from policy.checkpoints import save_policy
from policy.networks import DitConfidence
from rewards import sandbox
from rewards.sandbox import check_sandbox
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


def test_a_policy_for_many_alphas_and_budgets(tmp_path):
    """One evaluation of each alpha and budget, which is not passed."""
    torch.manual_seed(0)
    network = DitConfidence(hidden_dim=8, feedforward_dim=8, time_embed_dim=4, smart_init=0.0, alpha_conditioned=True)
    save_policy(network, tmp_path / "many")
    argv = ["--policy_path", str(tmp_path / "many"), *TINY, "--seeds", "1"]
    assert main([*argv, "--alpha", "0,3", "--budget", "1,3", "--save_path", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out" / "detailed_results.csv")
    assert [row["name"] for row in rows] == ["many-T1-a0-K1", "many-T1-a0-K3", "many-T1-a3-K1", "many-T1-a3-K3"]
    assert [float(row["evaluations"]) for row in rows[::2]] == [1, 1]
    assert all(float(row["evaluations"]) <= 3 for row in rows)
    with pytest.raises(ValueError, match="told the weight of speed and alpha is None"):
        main([*argv, "--save_path", str(tmp_path / "none")])
    with pytest.raises(ValueError, match="alpha=1.0 is read by policies"):
        main(["--strategy", "random", "--alpha", "1", *TINY, "--save_path", str(tmp_path / "rule")])


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
    named = lambda asked: [file.name for file in run_evaluate.checkpoint_files(tmp_path, asked)]
    assert named("first") == ["checkpoint_50.pth"] and named("last") == ["checkpoint_100.pth"]
    assert named("100,50") == ["checkpoint_100.pth", "checkpoint_50.pth"]
    with pytest.raises(ValueError, match=r"\[7\] not there; .* has 50, 100"):
        run_evaluate.checkpoint_files(tmp_path, "50,7")


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


def test_all_is_text_and_code():
    assert run_evaluate.ALL == ("gsm8k", "math", "humaneval", "mbpp")


def test_code_is_refused_before_any_work_without_a_sandbox(tmp_path, monkeypatch, capsys):
    check_sandbox.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(run_evaluate, "sample", lambda *given, **named: pytest.fail("texts were written"))
    argv = ["--strategy", "random", "--datasets", "mbpp", "--data_dir", str(ROOT / "tests" / "questions"), "--save_path", str(tmp_path)]  # fmt: skip
    assert main(argv) == 1
    assert "install it" in (told := capsys.readouterr().err) and "--unsandboxed" in told


def test_code_is_judged_by_its_tests(tmp_path, monkeypatch):
    """The model's words replaced by a right and a wrong function; nothing else is."""
    texts = iter(["def add(a, b):\n    return a + b\n```\nDone.", "def add(a, b):\n    return 0\n```"])
    model, _ = load_model(ROOT / "example" / "stories")
    monkeypatch.setattr(run_evaluate, "load_model", lambda *given: (model, None))
    monkeypatch.setattr(model.tokenizer, "batch_decode", lambda tokens: [next(texts)])
    argv = ["--strategy", "random", "--datasets", "mbpp", "--data_dir", str(ROOT / "tests" / "questions"), "--seeds", "1,2", "--gen_length", "8", "--steps", "1", "--unsandboxed", "--save_path", str(tmp_path)]  # fmt: skip
    assert main(argv) == 0
    assert [float(row["accuracy"]) for row in read(tmp_path / "detailed_results.csv")] == [1.0, 0.0]
