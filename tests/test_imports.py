"""Arrows between the rooms point one way, and pyproject.toml lists what is there."""

import ast
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]


def test_rooms_import_one_way():
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    linted = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout + linted.stderr
    assert " kept, 0 broken." in linted.stdout


def test_losses_know_tensors_only():
    tree = ast.parse((ROOT / "losses.py").read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}
    roots = {name.partition(".")[0] for name in names}
    assert "torch" in roots
    assert roots - sys.stdlib_module_names <= {"torch", "jaxtyping", "einops"}


def test_every_package_and_module_is_installed():
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    inside = {
        ".".join(path.relative_to(ROOT).parent.parts)
        for room in packages
        for path in ROOT.glob(f"{room}/**/__init__.py")
    }
    assert inside | {"configs"} == set(SETUPTOOLS["packages"])
    assert {path.stem for path in ROOT.glob("*.py")} <= set(SETUPTOOLS["py-modules"])
    checked = PROJECT["tool"]["pytest"]["ini_options"]["addopts"][-1].partition("=")[2].split(",")
    assert packages <= set(checked), "a package whose shapes are not checked under pytest"
    assert packages == set(PROJECT["tool"]["importlinter"]["root_packages"])


def imported(path: Path) -> set[str]:
    """Names of the modules that a file imports, anywhere in it."""
    tree = ast.parse(path.read_text())
    names = {name.name for node in ast.walk(tree) if isinstance(node, ast.Import) for name in node.names}
    return names | {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module}


def product_files() -> list[Path]:
    """Every module of the product: rooms, commands and benchmarks."""
    rooms = [path for name in SETUPTOOLS["packages"] for path in (ROOT / name.replace(".", "/")).rglob("*.py")]
    return [*rooms, *(ROOT / f"{name}.py" for name in SETUPTOOLS["py-modules"])]


def test_no_command_imports_a_command():
    commands = {f"unmask.commands.{path.stem}" for path in (ROOT / "unmask" / "commands").glob("*.py")}
    for path in product_files():
        if ROOT / "benchmarks" not in path.parents:  # which run commands as a user does
            assert not imported(path) & {*commands, "unmask.commands"}, path


# Modules above the command line that still take a whole configuration; the list only gets shorter.
CONFIGURED = {
    "evaluation/sweeps.py",
    "evaluation/kl_report.py",
    "rewards/latex.py",
    "training/compatibility.py",
    "training/ranges.py",
    "training/stored.py",
    "training/usage.py",
    "unmask/lm_eval.py",
}


def test_configurations_and_flags_stop_at_the_command_line():
    """Whole configurations (DictConfig) and parsed flags are read by commands, `unmask/build.py` and `training/run.py` alone."""
    allowed = {
        *(ROOT / "unmask" / "commands").glob("*.py"),
        *(ROOT / "unmask" / "runs").glob("*.py"),
        ROOT / "unmask" / "build.py",
        ROOT / "training" / "run.py",
    }
    allowed |= set((ROOT / "benchmarks").rglob("*.py"))
    found = {
        str(path.relative_to(ROOT)) for path in product_files()
        if path not in allowed and imported(path) & {"omegaconf", "argparse"}
    }  # fmt: skip
    assert found == CONFIGURED


SLOW = {"transformers", "datasets", "pandas", "sympy", "wandb", "matplotlib"}
HELP = """import contextlib, sys
from unmask.__main__ import COMMANDS, main
def loaded():
    return " ".join({name.partition(".")[0] for name in sys.modules})
for name in COMMANDS:
    with contextlib.suppress(SystemExit):
        main([name, "--help"])
with contextlib.suppress(SystemExit):
    main(["evaluate", "--task", "reward", "--help"])
print(loaded())
import load_model
print(loaded())
"""


def test_loading_and_help_import_no_slow_library():
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    run = subprocess.run([sys.executable, "-c", HELP], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    help_imports, loading_imports = (set(line.split()) for line in run.stdout.splitlines()[-2:])
    assert "unmask" in help_imports and not help_imports & {*SLOW, "torch"}
    assert "torch" in loading_imports and not loading_imports & SLOW
