"""The tests for a GPU on the emulated CUDA device (tests/helpers/emulated_cuda.py), in a process of their own: once it has the device
it cannot give it up, and other tests of this process would see a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.helpers.emulated_cuda import library_path, missing

ROOT = Path(__file__).parents[1]
PLAIN = [
    "-p",
    "no:xdist",
    "-p",
    "no:cacheprovider",
    "-o",
    "addopts=--import-mode=importlib",
]  # shapes are checked on the CPU


@pytest.mark.skipif(missing() is not None, reason=str(missing()))
@pytest.mark.parametrize("which", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_what_runs_on_the_cpu_runs_on_a_gpu(which):
    command = [sys.executable, "-m", "pytest", "-q", *PLAIN, "-p", "tests.helpers.emulated_cuda", "-m", which,
               "tests/emulated_cuda_cases.py", "tests/test_cuda.py"]  # fmt: skip
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert " passed" in done.stdout and "skipped" not in done.stdout
    assert not torch.cuda.is_available()


def test_without_a_compiler_the_reason_is_named(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert missing() == "the emulated CUDA device is compiled once, and there is no C++ compiler no-such-compiler"


def test_the_library_is_compiled_once_beside_its_place_and_renamed(tmp_path, monkeypatch):
    """Into the user's cache. The compiler writes another file than the one that other processes look for."""
    compiler = tmp_path / "compiler"
    compiler.write_text(
        '#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho "$2" >> "$CALLS"\n[ -z "$FAILS" ] || { echo broken >&2; exit 1; }\n'
        'touch "$2"\n'
    )
    compiler.chmod(0o755)
    for name, value in {"CXX": compiler, "CALLS": tmp_path / "calls", "XDG_CACHE_HOME": tmp_path / "cache"}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("FAILS", "1")
    with pytest.raises(RuntimeError, match="does not compile with PyTorch .*:\nbroken"):
        library_path()
    monkeypatch.setenv("FAILS", "")
    built = library_path()
    assert built.parent == tmp_path / "cache" / "unmask" and list(built.parent.iterdir()) == [built]
    assert library_path() == built
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 2 and str(built) not in calls and str(os.getpid()) in calls[0]
