"""Two gloo processes take the steps that one process takes on the mean of their gradients."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from dlm.pretrain import loss_of
from tests.training.two_processes import BATCH, SEED, STEPS, SomeRows, config, network
from training.optim import Optimiser
from training.processes import Processes
from training.run import step_seed

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The directory that two processes have written to."""
    directory = tmp_path_factory.mktemp("two")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {
        **os.environ,
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "tests.training.two_processes", str(directory)]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**environment, "RANK": rank, "LOCAL_RANK": rank}, stderr=subprocess.PIPE, text=True
        )
        for rank in "01"
    ]
    for process in started:
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
    return directory


def one_process_on_the_mean():
    """The parameters after the same steps, by hand: both shares' gradients, their mean, one update."""
    model = network().requires_grad_(True).train()
    settings, sources = config("unused"), [SomeRows(0), SomeRows(1)]
    parameters = list(model.parameters())
    optimiser = Optimiser(parameters, settings.optim, STEPS)
    losses = []
    for step in range(STEPS):
        values = []
        for rank, rows in enumerate(sources):
            generator = torch.Generator().manual_seed(step_seed(SEED, step, rank))
            loss = loss_of(model, rows.next(BATCH // 2), "lambda_DCE", None, generator)
            (loss / 2).backward()
            values.append(float(loss.detach()))
        Optimiser.gradients(parameters)
        optimiser.step(step)
        losses.append(sum(values) / 2)
    return [p.detach() for p in parameters], losses


def test_two_processes_take_the_steps_of_one(finished):
    first, second = (torch.load(finished / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    expected, losses = one_process_on_the_mean()
    start = list(network().parameters())
    for ours, theirs, by_hand, before in zip(first["parameters"], second["parameters"], expected, start, strict=True):
        assert torch.equal(ours, theirs)  # the processes never drift apart
        assert (ours - by_hand).abs().max() < 1e-5
        assert (by_hand - before).abs().max() > 1e-3  # there were steps to agree on
    lines = map(json.loads, (finished / "run0" / "metrics.jsonl").read_text().splitlines())
    assert [line["loss"] for line in lines if "loss" in line] == pytest.approx(losses, rel=1e-4)


def test_only_the_first_process_writes(finished):
    assert not (finished / "run1").exists()
    said = [torch.load(finished / f"rank{rank}.pt", weights_only=True)["said"] for rank in (0, 1)]
    assert (
        said[0]
        == said[1]
        == {"directory": str(finished / "run0"), "mean": {"rank": 0.5, "one": 1.0}, "share": BATCH // 2}
    )


def test_a_batch_that_the_processes_do_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="training.batch_size=5 is not divisible by the 2 processes; choose a multiple of 2"
    ):
        Processes(0, 2, torch.device("cpu")).share(5, "training.batch_size")


def test_one_process_changes_nothing():
    alone, gradient = Processes(0, 1, torch.device("cpu")), torch.ones(2)
    alone.average_([gradient])
    assert gradient.tolist() == [1, 1]
    assert alone.mean({"loss": 3.0}) == {"loss": 3.0}
    assert alone.broadcast("here") == "here"
    assert alone.first
