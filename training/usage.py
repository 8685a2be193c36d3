"""Exit status of the commands: 2 for bad input, said in one sentence; 1 for a failure."""

from __future__ import annotations

import sys
from contextlib import contextmanager


@contextmanager
def exit_on_bad_input():
    """ValueError is bad input: its sentence goes to stderr and the status is 2. FloatingPointError (a loss that is not a
    number) is a failure: status 1. Anything else is a defect and keeps its traceback."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
