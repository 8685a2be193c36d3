"""What the page of commands prints is what a shell runs."""

import re
from pathlib import Path

from benchmarks.commands import COMMANDS, SHORT, head, lines_of, ran

PAGE = (Path(__file__).parents[2] / "docs" / "results" / "commands.md").read_text()


def test_the_page_shows_the_commands_and_their_variables():
    commands = [line for line in lines_of(COMMANDS) if not line.startswith("#")]
    assert re.findall(r"^\$ (.*)$", PAGE, re.MULTILINE) == commands
    assert PAGE.startswith("\n".join(head()))


def test_python_or_a_launcher_stands_before_every_script(tmp_path):
    """As bash reads the command: the variables hold no interpreter, and a prompt in one of them stays one word."""
    for command in lines_of(COMMANDS):
        if not command.startswith("#"):
            status, _, lines = ran(f"printf '%s\\n' {command}", tmp_path)
            assert status == 0 and "$" not in "".join(lines), command
            first, *rest = ran(f"echo {command}", tmp_path)[2][0].split()
            assert first in ("python", "torchrun", "accelerate") and "python" not in rest, command
    _, _, lines = ran("printf '%s\\n' python $SAMPLE --prompt \"$PROMPT\" RUNS/x", tmp_path)
    assert lines[-2:] == [SHORT["PROMPT"], "RUNS/x"]


def test_the_page_defines_its_variables_for_bash(tmp_path):
    block = PAGE.split("as bash reads them:\n\n```bash\n")[1].split("```")[0]
    _, _, lines = ran(f'unset {" ".join(SHORT)}\n{block}echo $TRAIN; echo "$PROMPT"', tmp_path)
    assert lines == [SHORT["TRAIN"], SHORT["PROMPT"]]
