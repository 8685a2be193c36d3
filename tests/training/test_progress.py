"""Progress bars: where there is a terminal, and nowhere else."""

import io

from rich.console import Console

from training.progress import progress


def terminal() -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=100)


def test_a_terminal_sees_how_much_is_done():
    console = terminal()
    with progress("solving", 3, console=console) as advance:
        advance()
        advance(2)
    assert "solving" in console.file.getvalue() and "3/3" in console.file.getvalue()


def test_no_terminal_and_a_quiet_process_see_nothing():
    for console, quiet in ((Console(file=io.StringIO()), False), (terminal(), True)):
        with progress("solving", 3, quiet=quiet, console=console) as advance:
            advance(2)
        assert console.file.getvalue() == ""


def test_inner_work_is_a_line_of_the_same_bar():
    outer, inner = terminal(), terminal()
    with progress("training", 2, console=outer) as advance:
        with progress("exact samples", 5, console=inner) as step:
            step(5)
        advance()
    with progress("again", 1, console=inner):
        pass
    assert "exact samples" in outer.file.getvalue() and "exact samples" not in inner.file.getvalue()
    assert "again" in inner.file.getvalue()
