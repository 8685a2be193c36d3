"""The command line: `python -m unmask COMMAND ...`. A command is imported when it is chosen, so that `--help` is fast."""

from __future__ import annotations

from training.interrupt import end_in_one_line

if __name__ == "__main__":
    end_in_one_line()

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import NoReturn

COMMANDS = {  # the module of a command has `main(arguments)`; behind it, one line for --help
    "plot": ("unmask.commands.plot", "draw the curves of training runs together"),
}


def usage() -> str:
    """What `--help` prints."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, (_, about) in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m unmask COMMAND ...", "", *lines, "", "python -m unmask COMMAND --help describes a command."]
    )


def refuse(name: str) -> NoReturn:
    """Leave with status 2: no command has this name."""
    near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
    print(f"error: {name!r} is no command of unmask; {hint}", file=sys.stderr)
    sys.exit(2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names. arguments: by default those of the process."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return
    name, *rest = words
    if name not in COMMANDS:
        refuse(name)
    command = import_module(COMMANDS[name][0])
    from training.usage import exit_on_bad_input  # seconds to import

    with exit_on_bad_input():
        command.main(rest)


if __name__ == "__main__":
    main()
