"""The command line: `python -m unmask COMMAND ...`. A command is imported when it is chosen, so that `--help` is fast."""

from __future__ import annotations

from training.interrupt import end_in_one_line

if __name__ == "__main__":
    end_in_one_line()

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import NoReturn

COMMANDS = {  # unmask/commands/NAME.py has `main(arguments)`; here, one line for --help
    "sample": "sample text or puzzles from a model, and measure them",
    "train-policy": "learn where to unmask next, on a frozen model",
    "train-dlm": "pre-train or fine-tune a model, or adapt a causal one",
    "train-rl": "reinforcement learning of the model itself",
    "train-reward": "learn a reward model from preference pairs",
    "train-preference": "tune a causal model to preferences (DPO, KTO, RLOO)",
    "train-quality": "learn which committed tokens are right, on a frozen model",
    "train-twist": "learn twists for sequential Monte Carlo",
    "evaluate": "evaluate policies and rules on questions with known answers",
    "compare": "compare two evaluations of the same questions",
    "aup": "score methods by accuracy under parallelism, for a leaderboard",
    "guide": "decode a file of prompts, guided by rewards",
    "perplexity": "zero-shot perplexity of a model on text",
    "plot": "draw the curves of training runs together",
    "make-stories": "make a corpus of short stories",
    "make-preferences": "make preference pairs whose ranking is known",
    "make-formulas": "make a corpus of LaTeX formulas",
    "demo": "train, sample and compare in a few minutes",
}


def usage() -> str:
    """Return the text of `--help`."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {about}" for name, about in COMMANDS.items()]
    return "\n".join(
        ["usage: python -m unmask COMMAND ...", "", *lines, "", "python -m unmask COMMAND --help describes a command."]
    )


def command(name: str) -> ModuleType:
    """Import and return the module of a command."""
    return import_module(f"unmask.commands.{name.replace('-', '_')}")


def refuse(name: str) -> NoReturn:
    """Exit with status 2: no command has this name."""
    near = difflib.get_close_matches(name, ["--help"] if name.startswith("-") else COMMANDS, n=1, cutoff=0.4)
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
    chosen = command(name)
    from training.usage import exit_on_bad_input  # loads Hydra, which --help does not need

    with exit_on_bad_input():
        status = chosen.main(rest)
    if status:
        sys.exit(status)


if __name__ == "__main__":
    main()
