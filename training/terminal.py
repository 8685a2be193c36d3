"""Safe display of text from models, prompts and files in a terminal."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

# C0 but newline and tab, DEL, C1 (ESC [ and its kin move the cursor, change titles, write to the clipboard), and the marks that
# reverse the direction of the text beside them.
CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""Write control characters out, such as \x1b, so that a terminal displays them and does not obey them."""
    return CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


_is_quiet: ContextVar[bool] = ContextVar("is_quiet", default=False)


@contextmanager
def quietly(quiet: bool) -> Iterator[None]:
    """Within the block, `print_line` prints nothing if `quiet`. What a user's own function prints is still printed."""
    before = _is_quiet.set(quiet)
    try:
        yield
    finally:
        _is_quiet.reset(before)


def is_quiet() -> bool:
    """Return whether lines about the work are to be left out."""
    return _is_quiet.get()


def print_line(text: str, on_stderr: bool = False) -> None:
    """Print a line about the work, except in a block of `quietly`."""
    if not is_quiet():
        print(printable(text), file=sys.stderr if on_stderr else sys.stdout, flush=True)


def say_if_newline_is_spelled(text: str | None, setting: str) -> None:
    r"""Print a note to stderr if a text contains `\n` as a backslash and an n, which a shell does not convert.

    Prompts are used unchanged, on the command line and in files. `\neq` and `\nabla` are text, and cause no note.

    Args:
        setting: the name of the text, for the message.
    """
    if text is not None and re.search(r"(?<!\\)\\n(?![a-z])", text):
        print(
            f"{setting} holds \\n as a backslash and an n, and stays as it is; a new line is $'...\\n...' in bash, and \\n "
            "between double quotes in YAML and JSON",
            file=sys.stderr,
        )
