"""unmask evaluate: figures, files, resuming, and what it refuses."""

import json
import re
import shlex
import shutil
import statistics
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import samplers.loop
from data.questions import canvases, check_questions, load_questions
from evaluation.few_shot import with_examples, worked
from evaluation.intervals import bootstrap_mean, wilson
from evaluation.names import ALIASES
from evaluation.summary import IDENTITY, result_row, summary_row
from evaluation.sweeps import _policy_files, candidates, checkpoint_files
from load_model import load_model
from policy.checkpoints import load_policy, save_policy
from policy.dit_hidden import DitHidden
from policy.networks import DitConfidence
from rewards import sandbox
from rewards.sandbox import check_sandbox
from samplers.heuristics import UNMASKING_RULES, Threshold
from tests.evaluation.test_generations import ROOT, TINY, read, strip
from tests.helpers.commands import status_of
from tests.tiny_text import backbone
from training.stored import plain_description
from training.usage import composed
from unmask.commands import evaluate as evaluate_command
from unmask.commands.evaluate import main
from unmask.runs import evaluate as evaluate_run


def no_reviser(settings):
    raise AssertionError(f"{settings.strategy} does not revise")


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
    assert main([*argv, *TINY, "--out", str(tmp_path)]) == 0
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
            assert record["right"] == right and 3 <= record["nfe"] <= 24
            assert record["tokens"] == len(answer)  # what stands before the end of sequence
    summary = read(tmp_path / "summary_statistics.csv")
    assert [row["num_seeds"] for row in summary] == ["2", "2"]
    assert (tmp_path / "pareto.png").stat().st_size > 10_000


def test_a_decoder_that_revises_is_swept_over_all_its_settings(tmp_path):
    argv = ["--strategy", "edit", "--settings", "0.5,0.9", "--sampler", "edit.edit_threshold=0.8,1", "edit.remask=true"]
    assert main([*argv, *TINY, "--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in read(tmp_path / "detailed_results.csv")}
    names = [f"edit-edit_threshold{other}-remask_true-{value}" for value in ("0.5", "0.9") for other in ("0.8", "1")]
    assert [*rows] == names and [row["setting"] for row in rows.values()] == ["0.5", "0.5", "0.9", "0.9"]
    assert float(rows[names[2]]["evaluations"]) > float(rows[names[0]]["evaluations"]) > 3
    settings = json.loads((tmp_path / f"{names[1]}_chain_seed42" / "generations.json").read_text())["settings"]
    assert settings["revision"] == {"edit": {"threshold": 0.5, "edit_threshold": 1, "rounds": 16, "remask": True}}


def test_a_decoder_that_remembers_is_swept_with_budgets(tmp_path):
    argv = ["--strategy", "klass", "--settings", "0.5", "--sampler", "klass.kl=0.01,0.5", "--budgets", "3"]
    assert main([*argv, *TINY, "--out", str(tmp_path)]) == 0
    rows = {row["name"]: row for row in read(tmp_path / "detailed_results.csv")}
    assert [*rows] == ["klass-kl0.01-0.5-budget3", "klass-kl0.5-0.5-budget3"]
    assert all(float(row["evaluations"]) <= 3 for row in rows.values())


def test_a_policy_for_many_alphas_and_budgets(tmp_path):
    """One evaluation of each alpha and budget, which is not passed."""
    torch.manual_seed(0)
    network = DitConfidence(hidden_dim=8, feedforward_dim=8, time_embed_dim=4, smart_init=0.0, alpha_conditioned=True)
    save_policy(network, tmp_path / "many")
    argv = ["--policy", str(tmp_path / "many"), *TINY, "--seeds", "1"]
    assert main([*argv, "--alpha", "0,3", "--budget", "1,3", "--out", str(tmp_path / "out")]) == 0
    rows = read(tmp_path / "out" / "detailed_results.csv")
    assert [row["name"] for row in rows] == [
        "many-T1-a0-budget1",
        "many-T1-a0-budget3",
        "many-T1-a3-budget1",
        "many-T1-a3-budget3",
    ]
    assert [float(row["evaluations"]) for row in rows[::2]] == [1, 1]
    assert all(float(row["evaluations"]) <= 3 for row in rows)
    with pytest.raises(ValueError, match="weight of speed is an input of this policy and alpha is None"):
        main([*argv, "--out", str(tmp_path / "none")])
    config = {"reward": {"alphas": [0, 3]}, "sampler": {"budgets": [1, 2]}}
    request = evaluate_command.request([*argv, "--out", "x"])
    model, _ = load_model(ROOT / "example" / "chain")
    trained_with = [(0, 1), (0, 2), (3, 1), (3, 2)]
    assert [(one.alpha, one.budget) for one in candidates(request, model, config, no_reviser)] == trained_with
    request = evaluate_command.request([*argv, "--alphas", "1,1", "--budgets", "none", "--out", "x"])
    assert [(one.alpha, one.budget) for one in candidates(request, model, config, no_reviser)] == [(1, None)]


def test_a_published_policy_of_hidden_states_takes_its_heads_from_the_model(tmp_path):
    vectors = ROOT / "tests" / "vectors"
    shutil.copy(vectors / "policy-tiny" / "hidden_model.safetensors", tmp_path / "model.safetensors")
    request = evaluate_command.request(["--policy", str(tmp_path), "--out", "x"])
    (found,) = candidates(request, load_model(vectors / "llada-tiny")[0], None, no_reviser)
    assert isinstance(found.rule.network, DitHidden)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--strategy", "threshold"], "needs --settings"),
        (["--strategy", "treshold", "--settings", "1"], "did you mean 'threshold'"),
        (["nowhere"], "is not a run"),
        ([], "exactly one of"),
        (["--strategy", "random", "--datasets", "chain,gsm8"], "data set gsm8 is unknown"),
        (["--strategy", "random", "--settings", "4"], "random has no setting to sweep; give --steps"),
        (["--strategy", "threshold", "--settings", "1.5"], r"\[1.5\] of threshold must be from 0 to 1.0"),
        (["--strategy", "random", "--seeds", "1;2"], "whole numbers"),
        (["--strategy", "random", "--few_shot", "2"], "worked answers, which chain lacks"),
        (["--strategy", "policy"], "give RUN or --policy"),
        (["--strategy", "random", "--config", "nothing.yaml"], "nothing.yaml does not exist"),
        (["--strategy", "random", "--model", "example/nothing"], "example/nothing"),
        (["--strategy", "random", "--temperatures", "0.5"], "--temperatures would do nothing with --strategy"),
        (["--strategy", "random", "--betas", "1", "--alphas", "1"], "--betas, --alphas would do nothing"),
        (["--strategy", "random", "--sampling_mode", "dpls"], "--sampling_mode would do nothing"),
        (["--strategy", "random", "--checkpoints", "last"], "--checkpoints would do nothing with --strategy"),
        (["--policy", "x", "--checkpoints", "last"], "--checkpoints would do nothing with a policy"),
        (["--policy", "example/chain_policy", "--alphas", "1"], "alpha=1.0 is read by policies"),
        (
            ["--policy", "example/chain_policy", "--steps", "4"],
            "--steps of a policy are those of --sampling_mode fixed",
        ),
        (["--strategy", "threshold", "--settings", "0.5", "--steps", "4"], "threshold takes as many steps as it needs"),
        (["--strategy", "random", "--block_length", "5"], "block_length=5 does not divide the length 24"),
        (["--strategy", "random", "--steps", "4,5", "--block_length", "6"], "steps=5 is not divisible by the 4 blocks"),
        (["--strategy", "random", "--drift"], "there is no cache; give cache=prefix or cache=dual, or leave drift out"),
        (["--strategy", "random", "--refresh", "2"], "refresh=2 must be at least 1 evaluation, and needs a cache"),
        (["--strategy", "random", "--budgets", "2", "--block_length", "4"], "not with blocks"),
        (["--strategy", "random", "--seeds", ","], "give one at least"),
        (["--strategy", "window", "--settings", "1.5"], r"\[1.5\] of window must be from 0 to 1.0"),
        (["--strategy", "window", "--settings", "0.5", "--windows", "0"], "--windows=0 must be a whole number"),
        (
            ["--strategy", "threshold", "--settings", "0.5", "--windows", "4"],
            "--windows would do nothing with --strategy",
        ),
        (["--policy", "example/chain_policy", "--windows", "4"], "--windows would do nothing with a policy"),
        (
            ["--strategy", "random", "--confidence_eos_eot_inf"],
            "--confidence_eos_eot_inf would do nothing with --strategy random",
        ),
        (["--strategy", "random", "--data_dir", "x"], "--data_dir would do nothing with --datasets chain"),
        (
            ["--strategy", "random", "--math_by", "string", "--datasets", "chain,gsm8k"],
            "--math_by would do nothing with --datasets chain,gsm8k",
        ),
        (["--strategy", "random", "--sampler", "edit.rounds=2"], "--sampler would do nothing with --strategy random"),
        (["--strategy", "edit", "--steps", "4"], "edit takes as many steps as it needs"),
        (["--strategy", "edit", "--sampler", "edit.round=4"], "sampler.edit.round is unknown; did you mean"),
        (
            ["--strategy", "edit", "--sampler", "rounds=4"],
            "must be SECTION.KEY=VALUES, such as edit.edit_threshold=0,0.5",
        ),
        (
            ["--strategy", "edit", "--sampler", "remdm.eta=0.1"],
            "--sampler remdm.eta would do nothing with --strategy edit",
        ),
        (
            ["--strategy", "remdm", "--sampler", "remdm.schedule=loop", "--settings", "0.3"],
            "eta=0.3 must be from 0 to 0.1111",
        ),
        (["--strategy", "edit", "--confidence", "sampling"], "edit reads none"),
        (["--strategy", "random", "--unsandboxed"], "--unsandboxed would do nothing with --datasets chain"),
    ],
)
def test_bad_input(argv, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        main([*argv, "--out", str(tmp_path)])
    assert not list(tmp_path.iterdir())  # the corrected command finds nothing in its way


def test_a_cache_says_how_far_it_was_off(tmp_path):
    argv = ["--strategy", "confidence", "--block_length", "12", "--cache", "dual", "--refresh", "2", *TINY]
    assert main([*argv, "--out", str(tmp_path / "unmeasured")]) == 0
    (row,) = read(tmp_path / "unmeasured" / "summary_statistics.csv")
    assert row["exact"] == "False" and row["drift"] == ""
    assert main([*argv, "--drift", "--out", str(tmp_path)]) == 0
    whole = json.loads((tmp_path / "confidence_chain_seed42" / "generations.json").read_text())
    (row,) = read(tmp_path / "summary_statistics.csv")
    assert whole["metrics"]["exact"] is False and row["exact"] == "False"
    assert 0 < float(row["drift"]) == whole["metrics"]["drift"] < 1


def test_other_questions_are_refused_and_bad_ones_named_before_any_work(tmp_path, monkeypatch, capsys):
    model, _ = load_model(ROOT / "example" / "stories")
    monkeypatch.setattr(evaluate_run, "load_model", lambda *given: (model, None))
    argv = ["--strategy", "random", "--datasets", "gsm8k", "--length", "8", "--steps", "1", "--batch_size", "1"]
    argv += ["--data_dir", str(tmp_path), "--out", str(tmp_path / "out")]
    file = tmp_path / "gsm8k" / "test.jsonl"
    file.parent.mkdir()

    def status(*questions):
        file.write_text("".join(json.dumps({"question": asked, "answer": "#### 2"}) + "\n" for asked in questions))
        return main(argv), capsys.readouterr().err

    assert "gsm8k row 1 (" in (told := status("1?", "Why? " * 200)[1]) and "Why? ') has" in told
    assert not (tmp_path / "out").exists()
    assert status("1?", "2?")[0] == 0 == status("1?", "2?")[0]
    code, told = status("1?", "3?")
    assert code == 1 and "holds an evaluation with questions=" in told


def test_checkpoints_that_are_not_there_are_listed(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for number in (50, 100):
        (tmp_path / "checkpoints" / f"checkpoint_{number}.pth").touch()
    named = lambda asked: [file.name for file in checkpoint_files(tmp_path, asked)]
    assert named("first") == ["checkpoint_50.pth"] and named("last") == ["checkpoint_100.pth"]
    assert named("100,50") == ["checkpoint_100.pth", "checkpoint_50.pth"]
    with pytest.raises(ValueError, match=r"\[7\] not there; .* has 50, 100"):
        checkpoint_files(tmp_path, "50,7")
    (tmp_path / "checkpoints" / "checkpoint_best.pth").touch()  # a file of somebody else's is passed over
    assert named("last") == ["checkpoint_100.pth"]
    with pytest.raises(ValueError, match="not there"):
        checkpoint_files(tmp_path, "²")
    with pytest.raises(ValueError, match="or one policy by --policy"):
        checkpoint_files(tmp_path / "checkpoints", "last")


def test_a_configuration_file_of_the_published_code_is_read(tmp_path):
    file = tmp_path / "theirs.yaml"
    file.write_text(
        "model_path: example/chain\nblock_length: 6\nmax_completion_length: 18\nreport_to: wandb\nbf16: false\n"
    )
    request = evaluate_command.request(["--policy", "x", "--config", str(file), "--out", "y"])
    config = evaluate_run.configuration(request)
    assert config.dlm.path == "example/chain" and config.model.dtype == "float32"
    assert config.dlm.model_type == "llada"
    decoding = evaluate_run.decoding_of(request, config, "gsm8k")
    assert (decoding.length, decoding.block_length) == (18, 6)
    for text, message in (("report_to: wandb", "has neither `dlm`"), ("- a", "is no list of settings")):
        file.write_text(text)
        with pytest.raises(ValueError, match=message):
            evaluate_run.configuration(request)


@pytest.mark.parametrize(
    "theirs, own", [("Dream-org/Dream-v0-Instruct-7B", "llada"), ("GSAI-ML/LLaDA-8B-Base", "dream")]
)
def test_their_configuration_of_another_family_is_refused(tmp_path, theirs, own):
    file = tmp_path / "theirs.yaml"
    file.write_text(f"model_path: {theirs}\nblock_length: 8\n")
    model = backbone(own, tmp_path / own)
    with pytest.raises(ValueError, match="checkpoint by its config.json, and the configuration is for"):
        main(["--strategy", "random", "--config", str(file), "--model", str(model), "--out", str(tmp_path)])


def test_a_policy_file_of_the_working_directory_is_named_after_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("model.safetensors").touch()
    request = evaluate_command.request(["--policy", "model.safetensors", "--out", "y"])
    assert _policy_files(request)[0][0] == tmp_path.name


def test_where_every_evaluation_fails_the_status_is_1(tmp_path, capsys):
    argv = ["--strategy", "random", "--datasets", "gsm8k", "--length", "8", "--data_dir", str(tmp_path), "--out", str(tmp_path)]  # fmt: skip
    assert status_of("unmask/__main__.py", "evaluate", *argv) == 1
    told = capsys.readouterr().err
    assert "JSONL with `question` and `answer`" in told and "Traceback" not in told


def test_prompts_are_padded_on_the_left_and_what_does_not_fit_names_its_row():
    model, _ = load_model(ROOT / "example" / "chain")
    asked = [question.prompt for question in load_questions("chain", "test", None, 2)]
    prompts = canvases(model, [asked[0], "3 A +1 ?"], 24)
    assert prompts.prompt_length == 18 and prompts.start.tolist() == [0, 14]
    assert (prompts.canvas[:, 18:] == model.mask_id).all()
    with pytest.raises(
        ValueError, match=r"prompt 1 \('.* \?'\) has 18 tokens, with 30 to write more than the model's 42"
    ):
        canvases(model, ["3 ?", asked[0]], 30)
    with pytest.raises(ValueError, match=r"prompt 0 \('3 <mask> \?'\) holds the mask token"):
        canvases(model, ["3 <mask> ?"], 24)
    asked = load_questions("chain", "test", None, 2)
    asked[1].prompt = "3 <mask> ?"
    with pytest.raises(ValueError, match=r"chain row 1 \('3 <mask> \?'\) holds the mask token"):
        check_questions(model, asked, 24)


def test_a_file_of_questions_in_place_of_the_hub(tmp_path):
    (tmp_path / "gsm8k").mkdir()
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps({"question": "1+1?", "answer": "two #### 2"}) + "\n")
    (question,) = load_questions("gsm8k", "test", str(tmp_path))
    assert question.prompt.endswith("1+1?") and "<answer>" in question.prompt
    assert question.is_right("<answer>2</answer>", question.truth) and not question.is_right("3", question.truth)


def test_all_is_text_and_code():
    assert evaluate_run.ALL == ("gsm8k", "math", "humaneval", "mbpp")


def test_code_is_refused_before_any_work_without_a_sandbox(tmp_path, monkeypatch, capsys):
    check_sandbox.cache_clear()
    monkeypatch.setattr(sandbox.shutil, "which", lambda name: None)
    monkeypatch.setattr(samplers.loop, "sample", lambda *given, **named: pytest.fail("texts were written"))
    argv = ["--strategy", "random", "--datasets", "mbpp", "--length", "8", "--data_dir", str(ROOT / "tests" / "questions"), "--out", str(tmp_path)]  # fmt: skip
    assert main(argv) == 1
    assert "install it" in (told := capsys.readouterr().err) and "--unsandboxed" in told


def test_code_is_judged_by_its_tests(tmp_path, monkeypatch):
    """The model's words replaced by a right and a wrong function; nothing else is."""
    texts = iter(["def add(a, b):\n    return a + b\n```\nDone.", "def add(a, b):\n    return 0\n```"])
    model, _ = load_model(ROOT / "example" / "stories")
    monkeypatch.setattr(evaluate_run, "load_model", lambda *given: (model, None))
    monkeypatch.setattr(model.tokenizer, "batch_decode", lambda tokens, skip_special_tokens: [next(texts)])
    argv = ["--strategy", "random", "--datasets", "mbpp", "--data_dir", str(ROOT / "tests" / "questions"), "--seeds", "1,2", "--length", "8", "--steps", "1", "--unsandboxed", "--out", str(tmp_path)]  # fmt: skip
    assert main(argv) == 0
    assert [float(row["accuracy"]) for row in read(tmp_path / "detailed_results.csv")] == [1.0, 0.0]


def make_run(directory):
    """A run of run_train_policy.py on chain arithmetic, in blocks of 6 with a cache, with two checkpoints."""
    network = load_policy(ROOT / "example/chain_policy")
    (directory / "checkpoints").mkdir(parents=True)
    for number in (10, 20):
        saved = {"policy_model": network.state_dict(), "config": network.config}
        torch.save(saved, directory / "checkpoints" / f"checkpoint_{number}.pth")
    (directory / ".hydra").mkdir()
    config = composed("train_policy", ["experiment=chain_grpo"])
    config.sampler.update(block_length=6, cache="dual", length=12)
    OmegaConf.save(config, directory / ".hydra" / "config.yaml")
    return directory


def test_a_run_is_evaluated_as_it_was_trained(tmp_path):
    run = make_run(tmp_path / "run")
    argv = [
        str(run),
        "--checkpoints",
        "first,last",
        "--temperatures",
        "1.0,0.5",
        "--n_test",
        "3",
        "--out",
        str(tmp_path / "out"),
    ]
    assert main(argv) == 0
    rows = read(tmp_path / "out" / "detailed_results.csv")
    assert [(row["checkpoint"], row["temperature"]) for row in rows] == [
        (c, t) for c in ("10", "20") for t in ("1.0", "0.5")
    ]
    assert {(row["block_length"], row["cache"], row["sampling_mode"]) for row in rows} == {
        ("6", "dual", "bernoulli-argmax")
    }
    assert all(float(row["generated_tokens"]) <= 12 for row in rows)
    settings = json.loads((tmp_path / "out" / "run-checkpoint_20-T1_chain_seed42" / "settings.json").read_text())
    assert settings["model"] == "example/chain" and settings["length"] == 12 and len(settings["weights"]) == 16
    config = plain_description(run / ".hydra" / "config.yaml")
    config["eval"]["temperature"] = 0.5
    model, _ = load_model(ROOT / "example" / "chain")
    request = evaluate_command.request([str(run), "--out", "x"])
    assert [one.name for one in candidates(request, model, config, no_reviser)] == ["run-checkpoint_20-T0.5"]
    request = evaluate_command.request(
        [str(run), "--block_length", "12", "--cache", "none", "--length", "24", "--out", "x"]
    )
    found = evaluate_run.decoding_of(request, evaluate_run.configuration(request), "chain")
    assert (found.block_length, found.cache, found.refresh, found.length) == (12, None, None, 24)


def test_one_file_by_a_configuration(tmp_path):
    file = make_run(tmp_path / "run") / ".hydra" / "config.yaml"
    policy = ROOT / "example/chain_policy/model.safetensors"
    argv = [
        "--policy",
        str(policy),
        "--dataset",
        "chain",
        "--seed",
        "42",
        "--temperature_policy",
        "1.0",
        "--n_test",
        "2",
    ]
    assert main([*argv, "--config", str(file), "--out", str(tmp_path / "out")]) == 0
    (row,) = read(tmp_path / "out" / "detailed_results.csv")
    assert (row["name"], row["block_length"]) == ("chain_policy-T1", "6")
    request = evaluate_command.request([*argv, "--config", "chain_grpo", "--out", "x"])
    config = evaluate_run.configuration(request)
    assert config.dlm.path == "example/chain" and evaluate_run.decoding_of(request, config, "chain").length == 24
    OmegaConf.update(config, "dlm.model_type", "Dream", force_add=True)
    OmegaConf.save(config, file)
    with pytest.raises(ValueError, match="example/chain is a llada checkpoint .* configuration is for Dream"):
        main([*argv, "--config", str(file), "--out", str(tmp_path / "out")])


def test_the_published_names_of_rules_are_ours(tmp_path):
    published = ["--remasking", "low_confidence", "--diffusion_steps", "4,8", "--out", str(tmp_path / "a")]
    ours = ["--strategy", "top_prob", "--steps", "4,8", "--out", str(tmp_path / "b")]
    for argv in (published, ours):
        assert main([*argv, *TINY, "--n_test", "2", "--dataset", "chain"]) == 0
    for steps in (4, 8):
        name = f"top_prob-K{steps}_chain_seed42/generations.jsonl"
        assert strip(tmp_path / "a" / name) == strip(tmp_path / "b" / name)
        assert {record["nfe"] for record in strip(tmp_path / "a" / name)} <= set(range(1, steps + 1))
    model, _ = load_model(ROOT / "example" / "chain")
    request = evaluate_command.request(["--remasking", "fastdllm", "--thres", "0.7", "--budgets", "2,4", "--out", "x"])
    assert [(one.name, one.rule, one.budget) for one in candidates(request, model, None, no_reviser)] == [
        ("threshold-0.7-budget2", Threshold(0.7), 2),
        ("threshold-0.7-budget4", Threshold(0.7), 4),
    ]
    assert set(ALIASES.values()) <= set(UNMASKING_RULES) and not set(ALIASES) & set(UNMASKING_RULES)


def test_statistics_over_seeds():
    seeds = [[1, 1, 0, 1], [0, 1, 0, 1], [1, 1, 0, 0]]
    records = [[{"row": row, "right": bool(hit), "nfe": 4 + seed, "tokens": 10, "seconds": 0.5, "cpu_seconds": 0.25, "exact": False, "drift": [None, 0.25][row % 2]} for row, hit in enumerate(own)]
               for seed, own in enumerate(seeds)]  # fmt: skip
    settings = dict.fromkeys(IDENTITY) | {"name": "rule"}
    rows = [result_row(settings | {"seed": seed}, own, 2.0 + seed) for seed, own in enumerate(records)]
    assert [row["accuracy"] for row in rows] == [0.75, 0.5, 0.5]
    assert (rows[0]["accuracy_low"], rows[0]["accuracy_high"]) == wilson(3, 4)[1:]
    found = summary_row(rows, records)
    assert found["num_seeds"] == 3 and found["samples"] == 4
    assert found["exact"] is False and found["drift"] == rows[0]["drift"] == 0.25
    assert found["accuracy_mean"] == pytest.approx(7 / 12) and found["accuracy_std"] == pytest.approx(
        statistics.stdev([0.75, 0.5, 0.5])
    )
    assert (found["accuracy_min"], found["accuracy_max"]) == (0.5, 0.75)
    assert (
        found["evaluations_mean"],
        found["evaluations_std"],
        found["evaluations_min"],
        found["evaluations_max"],
    ) == (5, 1, 4, 6)
    assert found["cpu_seconds_mean"] == 0.25 and (found["equivalent_mean"], found["equivalent_max"]) == (3, 4)
    assert found["seconds_mean"] == 0.5 and found["generated_tokens_max"] == 10
    assert (found["accuracy_low"], found["accuracy_high"]) == bootstrap_mean([2 / 3, 1, 0, 2 / 3])[1:]
    assert summary_row(rows[:1], records[:1])["accuracy_std"] == 0


def test_worked_examples_stand_before_a_question(tmp_path):
    lines = {"train": [("2+2?", "Add <<2+2=4>>4.\n#### 4"), ("1+2?", "#### 3")], "test": [("1+1?", "two #### 2")]}
    (tmp_path / "gsm8k").mkdir()
    for split, own in lines.items():
        text = "".join(json.dumps({"question": asked, "answer": answer}) + "\n" for asked, answer in own)
        (tmp_path / "gsm8k" / f"{split}.jsonl").write_text(text)
    (question,) = with_examples(
        load_questions("gsm8k", "test", str(tmp_path)), load_questions("gsm8k", "train", str(tmp_path), 1)
    )
    shown, asked = question.prompt.split("</answer>\n\n", 1)[0], question.prompt
    assert asked.endswith("1+1?") and "2+2?\n<reasoning>\nAdd 4.\n</reasoning>\n<answer>\n4\n</answer>\n\n" in asked
    assert "1+2?" not in asked and shown and question.truth == "two #### 2"
    shown = worked("We have $x=2$. So $\\boxed{2}$.")
    assert shown == "<reasoning>\nWe have $x=2$. So $\\boxed{2}$.\n</reasoning>\n<answer>\n\\boxed{2}\n</answer>"


def test_every_command_of_the_pages_is_understood(monkeypatch):
    monkeypatch.setattr(evaluate_run, "policy_file", lambda path: path)  # runs that a page names need not be here
    pages = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
    found = {
        words
        for page in pages
        for words in re.findall(r"unmask evaluate ([^\n`|]+)", page.read_text())
        if "--" in words
    }
    assert len(found) > 5
    for words in found:
        if words.startswith("--task "):  # of texts (evaluation/reward_task.py, pairwise.py), tested there
            continue
        evaluate_run.check(evaluate_command.request(shlex.split(words, comments=True)))
