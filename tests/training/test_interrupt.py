"""Ctrl-C while a command imports, and once it has begun: one line and status 130."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import unmask.__main__
from training import interrupt
from training.usage import exit_on_bad_input

ROOT = Path(__file__).parents[2]
COMMANDS = [
    *([path.name] for path in sorted(ROOT.glob("run_*.py"))),
    *(["-m", "unmask", name] for name in unmask.__main__.COMMANDS),
    *(["-m", name] for name in ("evaluation.kl_report", "unmask.lm_eval", "rewards.latex")),
]
# What every command imports first, replaced by a module in whose import the user presses Ctrl-C.
PRESSED = "import os, signal, time\nos.kill(os.getpid(), signal.SIGINT)\ntime.sleep(20)\n"


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[-1])
def test_ctrl_c_during_the_imports_of_a_command_is_one_line(command, tmp_path):
    for name in ("argparse", "json", "torch"):
        (tmp_path / f"{name}.py").write_text(PRESSED)
    ended = subprocess.run(
        [sys.executable, *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True,
        timeout=20,
    )  # fmt: skip
    assert (ended.returncode, ended.stderr, ended.stdout) == (130, "interrupted\n", "")


def test_a_command_that_has_begun_is_interrupted_as_python_does_it(capsys):
    before = signal.getsignal(signal.SIGINT)
    interrupt.end_in_one_line()
    try:
        with pytest.raises(SystemExit) as ended, exit_on_bad_input():
            os.kill(os.getpid(), signal.SIGINT)
        assert ended.value.code == 130 and capsys.readouterr().err == "interrupted\n"
        assert signal.getsignal(signal.SIGINT) is interrupt.end
    finally:
        signal.signal(signal.SIGINT, before)
