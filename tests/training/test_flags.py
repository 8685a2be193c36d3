"""Every number on the command line of every argparse command has a range."""

import argparse
import runpy
import sys

import pytest

from training.ranges import Number, Whole
from training.usage import CONFIGS

ROOT = CONFIGS.parent
COMMANDS = ["run_demo", "run_evaluate", "run_make_formulas", "run_make_preferences", "run_make_stories", "run_perplexity",
            "evaluation/kl_report", "evaluation/pairwise", "evaluation/reward_task", "evaluation/compare"]  # fmt: skip
OTHERS = {"evaluation/pairwise": "run_evaluate", "evaluation/reward_task": "run_evaluate"}  # started by another command
TASK = {"evaluation/pairwise": ["--task", "pairwise"], "evaluation/reward_task": ["--task", "reward"]}


class Found(Exception):
    """Carries the parser of a command out of it."""


def parser_of(command: str, monkeypatch) -> argparse.ArgumentParser:
    def stop(self, *_):
        raise Found(self)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", stop)
    monkeypatch.setattr("training.interrupt.end_in_one_line", lambda: None)  # Ctrl-C is pytest's
    monkeypatch.setattr(sys, "argv", [command, *TASK.get(command, [])])
    with pytest.raises(Found) as found:
        runpy.run_path(str(ROOT / f"{OTHERS.get(command, command)}.py"), run_name="__main__")
    return found.value.args[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_of_a_command_line_has_a_range(command, monkeypatch):
    parser = parser_of(command, monkeypatch)
    assert parser._actions
    for action in parser._actions:
        assert action.type not in (int, float), action.option_strings
        if isinstance(action.type, Whole | Number):
            assert action.default is None or action.type.holds(action.default)
            for text in ("nan", "inf", "-inf", "1e400", "", "abc", "9" * 30, "[1]"):
                with pytest.raises(argparse.ArgumentTypeError, match="must be a (whole|finite) number"):
                    action.type(text)


def test_a_log_z_that_is_no_number_is_refused_by_name(monkeypatch, capsys):
    parser = parser_of("evaluation/kl_report", monkeypatch)
    monkeypatch.undo()
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["RUN", "--log_z=inf"])
    assert left.value.code == 2
    assert (
        "argument --log_z: 'inf' must be a finite number of at least -1e+12 and at most 1e+12"
        in capsys.readouterr().err
    )
