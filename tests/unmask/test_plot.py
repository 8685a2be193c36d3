"""`python -m unmask`: the table of commands, and `plot`."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.training.test_curves import written
from unmask.__main__ import COMMANDS, main

ROOT = Path(__file__).resolve().parents[2]


def run_of(directory: Path, *records) -> Path:
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "config.yaml").write_text("seed: 0\n")
    written(directory, *records)
    return directory


@pytest.fixture
def runs(tmp_path, monkeypatch) -> list[Path]:
    monkeypatch.chdir(tmp_path)
    return [run_of(Path(name), {"step": 1, "loss": 1.0}, {"step": 1, "valid_loss": 2.0}) for name in ("one", "two")]


def test_runs_are_drawn_together_and_the_path_is_printed(runs, capsys):
    main(["plot", "one", "two"])
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    assert capsys.readouterr().out == "2 runs drawn to curves.png\n"
    main(["plot", "one", "one/", "--out", "two/picture.PNG"])
    assert Path("two/picture.PNG").exists() and capsys.readouterr().out == "1 run drawn to two/picture.PNG\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nowhere"], "nowhere is not a run directory (nowhere/.hydra/config.yaml does not exist)"),
        (["one", "bare"], "bare has no metrics.jsonl"),
        (["broken"], "broken/metrics.jsonl line 2 is no record of an iteration; take that line out"),
        (["empty"], "empty/metrics.jsonl is empty"),
        (["one", "--out", "picture.pdf"], "--out picture.pdf is no PNG; give a name that ends in .png"),
        (["one", "--out", "no/picture.png"], "--out no/picture.png: the directory no does not exist"),
    ],
)
def test_bad_input_is_one_sentence_and_status_2(words, message, runs, capsys):
    (run_of(Path("bare")) / "metrics.jsonl").unlink()
    run_of(Path("empty"))
    with (run_of(Path("broken"), {"step": 1, "loss": 1.0}) / "metrics.jsonl").open("a") as file:
        file.write("{}\n")
    with pytest.raises(SystemExit) as left:
        main(["plot", *words])
    told = capsys.readouterr().err
    assert left.value.code == 2 and told.startswith(f"error: {message}") and told.count("\n") == 1
    assert not Path("curves.png").exists()


def test_help_lists_every_command_and_imports_none():
    command = [sys.executable, "-X", "importtime", "-m", "unmask", "--help"]
    shown = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True
    )
    assert shown.returncode == 0 and shown.stdout.startswith("usage: python -m unmask COMMAND")
    assert all(f"  {name} " in shown.stdout for name in COMMANDS)
    imported = {line.rpartition("|")[2].strip() for line in shown.stderr.splitlines()}
    assert "training.interrupt" in imported and not imported & {"torch", "matplotlib", "transformers", "hydra"}
    assert not any(name.startswith("unmask.commands") for name in imported)


@pytest.mark.parametrize(("name", "hint"), [("plots", "did you mean plot?"), ("xyz", "use one of sample")])
def test_an_unknown_command_names_the_nearest(name, hint, capsys):
    with pytest.raises(SystemExit) as left:
        main([name])
    assert left.value.code == 2 and hint in capsys.readouterr().err
