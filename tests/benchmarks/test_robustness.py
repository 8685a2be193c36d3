"""The driver of kills: it sees a run that loses something, and a training command loses nothing under it."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import benchmarks.robustness
from benchmarks.hostile import Bench
from benchmarks.robustness import NAMES, Command, check_command, commands
from training.files import replacing

STEPS = 3
SEED = 0  # of the moments of kills, some of which are between two saves
# Python 3.12 warns of a fork beside threads of a library; the driver forks before it computes anything.
pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


def in_one_move(file: Path, content: bytes) -> None:
    with replacing(file) as part:
        part.write_bytes(content)


def in_place(file: Path, content: bytes) -> None:
    file.write_bytes(content)


def counting(write: Callable[[Path, bytes], None], again: int) -> Command:
    """A run that counts to STEPS, and saves each step. again: steps that it repeats when it is resumed."""

    def main(config: DictConfig, overrides: list[str]) -> None:
        directory = Path(config.run_dir)
        checkpoint, metrics = directory / "checkpoints-meta" / "checkpoint.pth", directory / "metrics.jsonl"
        checkpoint.parent.mkdir(parents=True, exist_ok=True)
        first = 0
        if "resume" in config and checkpoint.exists():
            first = max(0, torch.load(checkpoint, weights_only=True)["step"] - again)
        for step in range(first, STEPS):
            before = metrics.read_text().splitlines()[: step + again] if step else []
            lines = [*before, json.dumps({"step": step, "loss": float(step)})]
            write(metrics, "".join(f"{line}\n" for line in lines).encode())
            content = io.BytesIO()
            torch.save({"step": step + 1, "weights": torch.full((9,), float(step)), "run": {}}, content)
            write(checkpoint, content.getvalue())

    return Command("counting", "train_dlm", main, ())


@pytest.mark.parametrize(
    "write, again, is_lossy",
    [(in_one_move, 0, False), (in_place, 0, True), (in_one_move, 1, True)],
    ids=["whole", "written in place", "a step twice"],
)
def test_the_driver_sees_a_loss(write, again, is_lossy, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(benchmarks.robustness, "composed", lambda name, words: OmegaConf.from_dotlist(words))
    (count,) = check_command(counting(write, again), tmp_path / "runs", 5, False, SEED)
    assert count.trials == 5 and bool(count.lost) == is_lossy
    assert is_lossy == ("killed at operation" in capfd.readouterr().err)


def test_a_killed_training_command_loses_nothing(tmp_path):
    every = {command.name: command for command in commands(Bench(*[tmp_path / "none"] * 5))}
    assert every.keys() == set(NAMES) - {"sample", "evaluate"}
    (count,) = check_command(every["train_dlm"], tmp_path / "runs", 1, False, 0)
    assert count.trials == 1 and not count.lost and not count.tracebacks
