"""Handle Ctrl-C while a command imports torch and transformers: one line and status 130, as during its work."""

from __future__ import annotations

import os
import signal
from importlib import import_module
from types import FrameType, ModuleType


def end(number: int, _: FrameType | None) -> None:
    """Print that the command was interrupted, and exit: no work has begun."""
    os.write(2, b"interrupted\n")
    os._exit(128 + number)


def end_in_one_line() -> None:
    """Handle Ctrl-C by `end`, until `exit_on_bad_input` (training/usage.py) takes over. A command calls it before its imports."""
    signal.signal(signal.SIGINT, end)


def imported(name: str) -> ModuleType:
    """Import a module that takes seconds; Ctrl-C meanwhile is handled by `end`."""
    before = signal.signal(signal.SIGINT, end)
    try:
        return import_module(name)
    finally:
        signal.signal(signal.SIGINT, before)
