"""train-quality end to end on tiny models: labels of both kinds, files, resuming, refusals, the shipped heads."""

import json
import subprocess
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors.torch import load_file

import unmask
from load_model import load_model
from samplers.quality import load_quality
from tests.policy_runs import ROOT, assert_equal, command, record, saved
from unmask.runs import train_quality

QUICK = ["run_dir=RUN", "device=cpu", "wandb.mode=disabled", "training.n_iters=2", "training.eval_freq=2", "training.snapshot_freq=2",
         "training.log_freq=1", "training.batch_size=4", "eval.batch_size=4", "quality.width=16", "quality.heads=2", "quality.canvases=2",
         "quality.left_out=1"]  # fmt: skip
KINDS = {  # the tiny models of tests/policy_runs.py
    "sudoku": ["data=puzzles", "quality.positions=true"],
    "chain": ["dlm=chain", "data=chain"],
    "text": ["data=stories", "quality.share=1", "quality.embed=false"],
}
EXPERIMENTS = {"sudoku6_quality": "sudoku", "chain_quality": "chain", "stories_quality": "text"}


def run(directory: Path, *overrides: str) -> Path:
    """The command in this process; RUN in an override is `directory`."""
    asked = [override.replace("RUN", str(directory)) for override in (*QUICK, *overrides)]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_quality", asked)
    return train_quality.run(config, asked)


def small(kind: str, tiny: dict[str, list[str]]) -> list[str]:
    """Overrides for one of the tiny models, without those of rewards."""
    return [word for word in tiny[kind] if not word.startswith("reward")]


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments(experiment, tiny, tmp_path):
    directory = run(tmp_path / "run", f"experiment={experiment}", *small(EXPERIMENTS[experiment], tiny))
    assert "eval_data_auroc" in record(directory)[2] and (directory / "quality" / "model.safetensors").is_file()


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_has_a_head_its_calibration_and_the_picture(kind, tiny, tmp_path, capsys):
    directory = run(tmp_path / "run", *KINDS[kind], *small(kind, tiny))
    metrics, labels = record(directory), ["data"] if kind == "text" else ["data", "decoding"]
    assert {"loss", "accuracy", "grad_norm"} <= metrics[1].keys()
    for name in ("auroc", "ece", "brier", "log_loss", "right"):
        assert all(f"eval_{label}_{name}" in metrics[2] for label in labels)
    found = json.loads((directory / "calibration.json").read_text())
    assert found.keys() == {"head", "seen", "leave-one-out"} and all(list(each) == labels for each in found.values())
    one = found["head"]["data"]
    assert (
        one["auroc"] == pytest.approx(metrics[2]["eval_data_auroc"], abs=1e-6)
        and sum(b["count"] for b in one["bins"]) == one["count"]
    )
    assert (directory / "reliability.png").read_bytes().startswith(b"\x89PNG")
    assert "head, data: AUROC" in capsys.readouterr().out
    model = load_model(ROOT / "example/chain" if kind == "chain" else small(kind, tiny)[0].partition("=")[2])[0]
    head = load_quality(directory, model)
    assert (head.position_embed is not None) == (kind == "sudoku") and (head.token_embed is None) == (kind == "text")
    assert head.reads_rows and head.reads_seen


def test_a_head_learns_and_knows_more_than_the_seen_probability(tmp_path):
    """Chain arithmetic with the shipped model: tokens of its own decodings at a low threshold, a few in a hundred of them wrong."""
    directory = run(tmp_path / "run", *KINDS["chain"], "quality.blocks=0", "quality.share=0", "quality.width=32", "quality.thresholds=[0.3]",
                    "training.n_iters=60", "training.batch_size=32", "training.eval_freq=60", "training.snapshot_freq=60",
                    "eval.batch_size=64", "optim.lr=1e-2", "optim.warmup=0", "quality.left_out=0")  # fmt: skip
    measured = record(directory)
    found = json.loads((directory / "calibration.json").read_text())
    assert measured[60]["eval_decoding_auroc"] > 0.85
    assert found["head"]["decoding"]["ece"] < 0.05 < found["seen"]["decoding"]["ece"]


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path):
    few = [*KINDS["chain"], "optim.schedule=constant", "optim.warmup=0"]
    whole = run(tmp_path / "whole", *few, "training.n_iters=4")
    half = run(tmp_path / "half", *few)
    unfinished = load_file(half / "quality" / "model.safetensors")
    run(half, *few, "resume=RUN", "training.n_iters=4")
    states = [
        {key: value for key, value in saved(each).items() if key not in ("run", "checksum")} for each in (whole, half)
    ]
    assert_equal(*states)
    assert record(whole) == record(half) | {2: record(whole)[2]} or record(whole).keys() == record(half).keys()
    done = [load_file(each / "quality" / "model.safetensors") for each in (whole, half)]
    assert_equal(*done)
    assert any(not torch.equal(unfinished[name], value) for name, value in done[0].items())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["dlm=stories_causal", "data=stories"],
            "dlm.path=example/stories_causal is causal: it has one order and nothing to learn",
        ),
        (["dlm=stories", "data=stories"], "TextTask has prompts with many right texts, .*; set quality.share=1"),
        (
            ["dlm=chain", "data=puzzles", "data.base_puzzles=4", "data.valid_puzzles=2"],
            "the data has 6 tokens and example/chain writes",
        ),
        (
            ["dlm=chain", "data=chain", "quality.share=1.5"],
            "quality.share=1.5 must be a finite number of at least 0 and at most 1",
        ),
        (
            ["dlm=chain", "data=chain", "quality.width=18"],
            "width 18 must be a multiple of 2 \\* heads = 4; change one of them",
        ),
        (["dlm=chain", "data=chain", "quality.filled=0"], "quality.filled=0 must be a whole number of at least 1"),
        (["dlm=chain", "data=chain", "quality.thresholds=[]"], "quality.thresholds="),
    ],
)
def test_refusals_name_the_setting_and_make_no_run(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *overrides)
    assert not (tmp_path / "run").exists()


def test_questions_have_no_right_text(tmp_path):
    with pytest.raises(
        ValueError, match="compares tokens with a right text and QuestionTask knows none; use data=puzzles, chain or"
    ):
        run(tmp_path / "run", "dlm=smollm2", "dlm.path=example/smollm2_masked", "data=questions", "data.datasets=[chain]",
            "data.count=8", "data.valid_rows=2", "data.answer_length=8")  # fmt: skip
    assert not (tmp_path / "run").exists()


def test_the_command_itself(tmp_path):
    """In a process of its own; a mistake is one line and status 2."""
    words = [word.replace("RUN", str(tmp_path / "run")) for word in QUICK]
    arguments, environment = command("-m", "unmask", "train-quality", *KINDS["chain"], *words, "training.n_iters=1")
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0 and "head, decoding: AUROC" in done.stdout, done.stderr
    assert (tmp_path / "run" / "quality" / "model.safetensors").is_file()
    again = [*arguments, f"run_dir={tmp_path / 'again'}", "quality.blocks=-1"]
    done = subprocess.run(again, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.strip().splitlines()[-1].startswith(
        "error: quality.blocks=-1 must be a whole number"
    )


def test_from_python_on_own_texts(tmp_path):
    model = unmask.load("example/stories", device="cpu")
    texts = [f"Once upon a time there were {number} cats who lived in a small house." for number in range(20)]
    settings = {
        "training.batch_size": 4,
        "eval.batch_size": 2,
        "quality": {"width": 16, "heads": 2, "left_out": 0},
        "sampler.length": 24,
    }
    run = unmask.train_quality(model, data=texts, iterations=2, run_dir=tmp_path / "run", settings=settings)
    assert run.metrics[-1]["step"] == 2 and run.result.hidden_size == model.hidden_size
    assert load_quality(tmp_path / "run", model).config == run.result.config
    with pytest.raises(ValueError, match="was trained on example/stories, and example/chain has other tokens"):
        load_quality(tmp_path / "run", unmask.load("example/chain", device="cpu"))
