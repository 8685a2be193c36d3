"""A progress bar on stderr for work that takes more than some seconds; nothing where stderr is no terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

Advance = Callable[..., None]  # (units of work that were done, by default 1)
_shown: list[Progress] = []  # the bar on the screen, to which inner work adds a line


def nothing(count: int = 1) -> None:
    """Show no progress."""


@contextmanager
def progress(title: str, total: int, quiet: bool = False, console: Console | None = None) -> Iterator[Advance]:
    """Show a bar while the block runs. The block calls the function that it gets when units of work are done, of `total`.

    Bars inside bars share the screen: the inner bar is a line below, and disappears when its block ends.

    Args:
        quiet: show nothing, as in all processes but the first.
    """
    if quiet:
        yield nothing
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield nothing
        return
    if _shown:
        bar = _shown[-1]
        task = bar.add_task(title, total=total)
        try:
            yield partial(bar.advance, task)
        finally:
            bar.remove_task(task)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    # Lines of the work on stdout stay on stdout where it is a pipe or a file.
    with Progress(*columns, console=console, transient=True, redirect_stdout=sys.stdout.isatty()) as bar:
        task = bar.add_task(title, total=total)
        _shown.append(bar)
        try:
            yield partial(bar.advance, task)
        finally:
            _shown.pop()
