"""Every number on the command line of every argparse command has a range."""

import argparse

import pytest

from benchmarks.fuzz_settings import ROOT, parser_of
from training.ranges import Number, Whole

COMMANDS = [("demo",), ("evaluate",), ("make-formulas",), ("make-preferences",), ("make-stories",), ("perplexity",), ("compare",), ("aup",),
            ("plot",), ("evaluate", "--task", "pairwise"), ("evaluate", "--task", "reward"), ("evaluation/kl_report",)]  # fmt: skip
BENCHMARKS = [(f"benchmarks/{file.stem}",) for file in sorted((ROOT / "benchmarks").glob("*.py"))
              if "__main__" in file.read_text(encoding="utf-8")]  # fmt: skip


@pytest.mark.parametrize("command", [*COMMANDS, *BENCHMARKS], ids=" ".join)
def test_every_number_of_a_command_line_has_a_range(command):
    parser = parser_of(*command)
    assert parser._actions
    for action in parser._actions:
        assert action.type not in (int, float), action.option_strings
        if isinstance(action.type, Whole | Number):
            defaults = action.default if isinstance(action.default, list) else [action.default]
            assert all(value is None or action.type.holds(value) for value in defaults), action.option_strings
            for text in ("nan", "inf", "-inf", "1e400", "", "abc", "9" * 30, "[1]"):
                with pytest.raises(argparse.ArgumentTypeError, match="must be a (whole|finite) number"):
                    action.type(text)


def test_a_log_z_that_is_no_number_is_refused_by_name(capsys):
    parser = parser_of("evaluation/kl_report")
    with pytest.raises(SystemExit) as left:
        parser.parse_args(["RUN", "--log_z=inf"])
    assert left.value.code == 2
    assert (
        "argument --log_z: 'inf' must be a finite number of at least -1e+12 and at most 1e+12"
        in capsys.readouterr().err
    )
