"""A run that was stopped or killed goes on bit for bit; what is refused on the way, and how a run fails."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import dlm.pretrain
from dlm.masked_lm import LlamaLM
from load_model import load_model
from training.run import new_directory, step_seed
from training.storage import CHECKSUM
from training.usage import exit_on_bad_input
from unmask.runs import train_dlm

TINY = [
    "experiment=sudoku6", "device=cpu", "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.dropout=0.1",
    "data.base_grids=5", "data.valid_grids=4", "wandb.mode=disabled",
    "training.batch_size=4", "training.accum=2", "training.n_iters=6", "training.log_freq=1", "training.eval_freq=2",
    "training.snapshot_freq=3", "training.snapshot_freq_for_preemption=2", "eval.samples=2", "eval.steps=4",
    "optim.warmup=2", "optim.lr=0.02", "optim.schedule=constant",
]  # fmt: skip


def train(*overrides):
    with initialize_config_dir(str(Path(train_dlm.__file__).parents[2] / "configs"), version_base=None):
        config = compose("train_dlm", overrides=list(overrides))
    return train_dlm.run(config, list(overrides))


def record(run):
    """{(step, name): value} of metrics.jsonl; the last of a step counts, clocks do not."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line.items() if name != "seconds"}


def weights(run, step=6):
    return torch.load(run / "checkpoints" / f"checkpoint_{step}.pth", weights_only=True)


def flat(state):
    """Every tensor and number of a nested state."""
    if isinstance(state, dict):
        return {f"{key}.{name}": value for key, inner in state.items() for name, value in flat(inner).items()}
    if isinstance(state, list | tuple):
        return flat(dict(enumerate(state)))
    return {"": state}


def check_equal(run, whole, but=()):
    assert {key: value for key, value in record(run).items() if key not in but} == record(whole)
    ours, theirs = flat(weights(run)), flat(weights(whole))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        equal = torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name]
        assert equal, name


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    return train(*TINY, f"run_dir={tmp_path_factory.mktemp('whole')}")


def test_a_run_writes_what_its_page_says(whole):
    metrics = record(whole)
    assert [step for step in range(1, 7) if (step, "loss") in metrics] == [1, 2, 3, 4, 5, 6]
    assert [step for step in range(1, 7) if (step, "valid_loss") in metrics] == [2, 4, 6]
    assert len({metrics[step, "loss"] for step in range(1, 7)}) == 6
    assert {file.name for file in (whole / "checkpoints").iterdir()} == {"checkpoint_3.pth", "checkpoint_6.pth"}
    assert len(list((whole / "samples" / "iter_6").glob("sample_*.txt"))) == 2
    assert (whole / ".hydra" / "overrides.yaml").exists()
    assert not list(whole.rglob("*.part"))


def test_a_run_is_read_back_with_its_averaged_weights(whole):
    model, _ = load_model(whole)
    averaged = weights(whole)["ema"]["shadow_params"]
    assert all(torch.equal(p, a) for p, a in zip(model.backbone.parameters(), averaged, strict=True))
    shared, _ = load_model(whole / "model")  # in bfloat16
    canvas = torch.full((1, 36), model.mask_id)
    assert (shared(canvas)[..., :-1] - model(canvas)[..., :-1]).abs().max() < 0.05
    assert model.tokenizer is not None


def test_a_run_that_was_stopped_goes_on_with_the_same_losses_and_weights(whole, tmp_path):
    stopped = train(*(o for o in TINY if "n_iters" not in o), "training.n_iters=3", f"run_dir={tmp_path}")
    assert (3, "loss") in record(stopped)
    assert (4, "loss") not in record(stopped)
    train(f"resume={stopped}", "training.n_iters=6")
    check_equal(stopped, whole, but={(3, "valid_loss")})  # the end of the first part was evaluated


@pytest.mark.parametrize("killed_at", [0, 3, 5])
def test_a_run_that_was_killed_goes_on_with_the_same_losses_and_weights(whole, tmp_path, monkeypatch, killed_at):
    """In the middle of a step, between checkpoints or before the first one: what was lost is done again, alike."""
    left, loss_of = [2 * killed_at + 1], dlm.pretrain.loss_of  # two accumulated batches a step

    def killing(model, *rest):
        if model.training:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
        return loss_of(model, *rest)

    monkeypatch.setattr(dlm.pretrain, "loss_of", killing)
    with pytest.raises(KeyboardInterrupt):
        train(*TINY, f"run_dir={tmp_path}")
    monkeypatch.undo()
    assert (killed_at + 1, "loss") not in record(tmp_path) if killed_at else not (tmp_path / "metrics.jsonl").exists()
    assert train(f"resume={tmp_path}") == tmp_path
    check_equal(tmp_path, whole)


def test_resuming_a_finished_run_does_nothing(whole):
    before = weights(whole), record(whole)
    train(f"resume={whole}")
    assert flat(before[0]).keys() == flat(weights(whole)).keys()
    assert before[1] == record(whole)


def test_resuming_with_another_configuration_lists_the_differences(whole):
    with pytest.raises(ValueError, match="was started with another configuration") as error:
        train(f"resume={whole}", "optim.lr=0.5", "model.hidden_size=16", "training.batch_size=8")
    assert error.match("optim.lr: the run has 0.02, the command asks for 0.5")
    assert error.match("training.batch_size: the run has 4, the command asks for 8")
    assert "hidden_size" not in str(error.value)  # the same as before
    with pytest.raises(ValueError, match="the run was not started with experiment=stories"):
        train(f"resume={whole}", "experiment=stories")
    with pytest.raises(ValueError, match=r"resume=nowhere is not a run directory: nowhere.*config.yaml does not exist"):
        train("resume=nowhere")


def test_a_loss_that_is_not_a_number_stops_the_run_and_says_where(tmp_path, monkeypatch):
    loss_of, calls = dlm.pretrain.loss_of, []

    def poisoned(model, *rest):
        calls.append(model.training)
        return loss_of(model, *rest) * (float("nan") if sum(calls) == 6 else 1)  # the second half of step 2

    monkeypatch.setattr(dlm.pretrain, "loss_of", poisoned)
    with pytest.raises(FloatingPointError, match="the loss is nan at step 2; the last good checkpoint is ") as error:
        train(*TINY, f"run_dir={tmp_path}")
    checkpoint = tmp_path / "checkpoints-meta" / "checkpoint.pth"
    assert str(error.value).endswith(str(checkpoint))
    assert torch.load(checkpoint, weights_only=True)["step"] == 2
    calls.clear()
    calls.extend([True] * 5)
    with pytest.raises(FloatingPointError, match="at step 0; no checkpoint was written yet"):
        train(*TINY, f"run_dir={tmp_path / 'other'}")


@pytest.mark.parametrize(
    "override, message",
    [
        ("training.accum=3", "a process's batch of 4 is not divisible by training.accum=3"),
        ("loss=mse", "loss='mse' is unknown; use one of t_DCE, lambda_DCE, k_DCE, masked_CE, DSE, ar"),
        ("loss=ar", "loss=ar does not fit a masked model"),
        ("training.ema=1.5", "training.ema=1.5 must be a finite number of at least 0 and at most 1"),
        ("model.n_heads=3", "model.hidden_size=16 must be an even multiple of model.n_heads=3"),
    ],
)
def test_bad_settings_are_refused_before_the_first_step(tmp_path, override, message):
    with pytest.raises(ValueError, match=message):
        train(*TINY, override, f"run_dir={tmp_path}")
    assert not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize("error, status", [(ValueError("bad value"), 2), (FloatingPointError("it failed"), 1)])
def test_the_exit_status_tells_bad_input_from_failure(capsys, error, status):
    with pytest.raises(SystemExit) as stop, exit_on_bad_input():
        raise error
    assert stop.value.code == status
    assert capsys.readouterr().err == f"error: {error}\n"
    with pytest.raises(KeyError), exit_on_bad_input():
        raise KeyError("a defect keeps its traceback")


def test_steps_and_processes_have_seeds_of_their_own():
    seeds = {step_seed(seed, step, rank) for seed in (0, 1, 7) for step in range(200) for rank in range(16)}
    assert len(seeds) == 3 * 200 * 16


def test_a_small_llada_learns_chain_arithmetic_and_is_what_load_model_reads(tmp_path):
    few = [
        "training.n_iters=4",
        "training.batch_size=8",
        "training.log_freq=1",
        "training.eval_freq=4",
        "training.snapshot_freq=4",
    ]
    small = [
        "model.hidden_size=16",
        "model.n_blocks=1",
        "model.n_heads=2",
        "data.valid_rows=8",
        "wandb.mode=disabled",
        "device=cpu",
    ]
    directory = train("experiment=chain", f"run_dir={tmp_path / 'run'}", *few, *small)
    model, noise = load_model(directory / "model")
    assert isinstance(model, LlamaLM) and noise is not None and model.max_length == 42
    assert model.tokenizer.mask_token_id == model.mask_id
    again, _ = load_model(directory)  # the run itself: its averaged weights
    tokens = torch.randint(20, (2, 42))
    assert torch.allclose(again.log_probs(tokens), model.log_probs(tokens), atol=0.05)  # stored in bfloat16


def copied(whole, tmp_path, change):
    """The run as somebody else might hand it on, its configuration changed."""
    run = shutil.copytree(whole, tmp_path / "run")
    config = OmegaConf.load(run / ".hydra" / "config.yaml")
    for key, value in change.items():
        OmegaConf.update(config, key, value, force_add=True)
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    checkpoint = run / "checkpoints-meta" / "checkpoint.pth"
    state = torch.load(checkpoint, weights_only=True)
    torch.save({name: state[name] for name in state if name not in ("run", CHECKSUM)}, checkpoint)  # which fit no more
    return run


def test_a_run_from_elsewhere_goes_on_where_the_command_says_and_reads_no_secret(whole, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SECRET", "s3cr3t")
    storage = f"file://{tmp_path}/stolen"
    change = {
        "run_dir": storage + "/${oc.env:SECRET}",
        "wandb.name": "${oc.env:SECRET}",
        "wandb.mode": "online",
        "wandb.entity": "x",
    }
    run = copied(whole, tmp_path, change)
    started = []
    monkeypatch.setattr("wandb.init", lambda **settings: started.append(settings))
    assert train(f"resume={run}", "wandb.mode=disabled") == run
    assert not (tmp_path / "stolen").exists() and not started
    told = capsys.readouterr()
    assert "not taken from" in told.err and "s3cr3t" not in told.err + told.out
    with pytest.raises(ValueError, match=r"config.yaml sets data.box=.*may refer to its own keys only.*give data.box="):
        train(f"resume={copied(whole, tmp_path / 'other', {'data.box': '${oc.env:SECRET}'})}")


def test_a_run_whose_files_lead_elsewhere_is_not_gone_on_with(whole, tmp_path):
    run = copied(whole, tmp_path, {})
    (tmp_path / "precious").write_text("mine\n")
    (run / "metrics.jsonl").unlink()
    (run / "metrics.jsonl").symlink_to(tmp_path / "precious")
    with pytest.raises(ValueError, match="metrics.jsonl is a link to .*precious, outside of the run"):
        train(f"resume={run}")
    assert (tmp_path / "precious").read_text() == "mine\n"


def test_a_resumed_run_is_the_same_run_in_wandb(tmp_path, monkeypatch):
    started = []

    class Recorded:
        def log(self, *_, **__): ...
        def finish(self): ...

    monkeypatch.setattr("wandb.init", lambda **settings: started.append(settings) or Recorded())
    logged = [*(o for o in TINY if "wandb" not in o and "n_iters" not in o), "wandb.mode=offline", "wandb.project=mine"]
    train(*logged, "training.n_iters=2", "optim.warmup=1", f"run_dir={tmp_path / 'run'}")
    train(f"resume={tmp_path / 'run'}", "training.n_iters=4", "wandb.project=mine")
    assert [one["project"] for one in started] == ["mine", "mine"]
    assert len({one["id"] for one in started}) == 1 and len(started[0]["id"]) == 8


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_that_end_a_run_save_it_first(number, whole, tmp_path, monkeypatch, capsys):
    loss_of, calls = dlm.pretrain.loss_of, []

    def interrupted(model, *rest):
        calls.append(model.training)
        if sum(calls) == 6:  # in step 3 of 6
            os.kill(os.getpid(), number)
        return loss_of(model, *rest)

    monkeypatch.setattr(dlm.pretrain, "loss_of", interrupted)
    with pytest.raises(SystemExit) as left:
        train(*TINY, f"run_dir={tmp_path / 'run'}")
    monkeypatch.undo()
    assert left.value.code == 128 + number and not (tmp_path / "run" / "lock").exists()
    assert f"stopped by {number.name} after step 3, which is saved; resume=" in capsys.readouterr().out
    train(f"resume={tmp_path / 'run'}")
    check_equal(tmp_path / "run", whole)


def test_two_runs_of_one_second_have_a_directory_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("time.strftime", lambda _: "2026.01.31/120000")
    found = {str(new_directory()) for _ in range(5)}
    assert len(found) == 5 and "output/2026.01.31/120000" in found


def test_a_killed_run_has_each_step_once(whole, tmp_path):
    run = copied(whole, tmp_path, {})
    shutil.copy(
        run / "checkpoints" / "checkpoint_3.pth", run / "checkpoints-meta" / "checkpoint.pth"
    )  # saved last at 3
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # and killed in the middle of a line
    (run / "model.part").mkdir()
    (run / "checkpoints-meta" / "checkpoint.pth.part").touch()
    train(f"resume={run}")
    steps = [
        line["step"] for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()) if "loss" in line
    ]
    assert steps == [1, 2, 3, 4, 5, 6] and not list(run.rglob("*.part"))
    check_equal(run, whole)
