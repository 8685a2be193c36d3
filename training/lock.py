"""One process at a time in a run directory: `RUN/lock` names the host and the process that has it.

The kernel holds the lock for the process and drops it when that ends, however it ends; the words in the file are for the message,
and for a directory that several hosts share, where a kernel may not see the other's lock.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from pathlib import Path

NAME = "lock"
NO_LINKS = os.O_NOFOLLOW if sys.platform != "win32" else 0


class Lock:
    """The lock on a directory, taken. `release` gives it back."""

    def __init__(self, directory: Path):
        """Raises ValueError where another process has it, naming that process, or where one of another host left it."""
        self.file = directory / NAME
        self.descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | NO_LINKS, 0o666)
        try:
            held = not _locked(self.descriptor) or not os.path.samestat(os.fstat(self.descriptor), os.stat(self.file))
            host, process = _holder(os.pread(self.descriptor, 4096, 0))
            if held:
                raise ValueError(
                    f"{directory} is in use by process {process} on {host}; wait until it ends, stop it (kill {process}), or "
                    "give another run_dir"
                )
            if host not in (None, socket.gethostname()):
                raise ValueError(
                    f"{directory} is in use by process {process} on the host {host}, which cannot be asked from here; if that "
                    f"process has ended, delete {self.file}"
                )
        except ValueError:
            os.close(self.descriptor)
            raise
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)

    def release(self) -> None:
        """Give the lock back. A second call does nothing."""
        if self.descriptor >= 0:
            self.file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


def _locked(descriptor: int) -> bool:
    """Whether the kernel gave this process the lock. True where its file system has none (and on Windows)."""
    try:
        import fcntl  # Windows has none
    except ImportError:
        return True
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        return True
    return True


def _holder(content: bytes) -> tuple[str | None, int | None]:
    """(host, process) in a lock file; (None, None) for a new one, or one whose writer was killed in its first moment."""
    try:
        told = json.loads(content or b"{}")
        return str(told["host"]), int(told["process"])
    except (ValueError, KeyError, TypeError):
        return None, None
