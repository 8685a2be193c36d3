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
    assert packages | {"configs"} == set(SETUPTOOLS["packages"])
    assert {path.stem for path in ROOT.glob("*.py")} <= set(SETUPTOOLS["py-modules"])
    checked = PROJECT["tool"]["pytest"]["ini_options"]["addopts"][-1].partition("=")[2].split(",")
    assert packages <= set(checked), "a package whose shapes are not checked under pytest"
    assert packages == set(PROJECT["tool"]["importlinter"]["root_packages"])
