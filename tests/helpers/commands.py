"""Commands in this process: an exit status without the seconds that a process takes to import."""

import runpy
import signal
import sys
from pathlib import Path
from unittest.mock import patch

ROOT = Path(__file__).resolve().parents[2]


def status_of(script: str, *argv: str) -> int:
    """Run `python SCRIPT ARGV...` here, from its first line to `sys.exit`; return the exit status."""
    before = signal.getsignal(signal.SIGINT)
    try:
        with patch.object(sys, "argv", [script, *argv]):
            runpy.run_path(str(ROOT / script), run_name="__main__")
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    finally:
        signal.signal(signal.SIGINT, before)
    return 0
