"""A lock on a run directory: `RUN/lock` names the host and the process that use it.

The kernel holds the lock for the process and drops it when the process ends in any way. The text in the file is for the
message, and for a directory that several hosts share, whose kernels may not see each other's locks.
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
    """A held lock on a directory. `release` releases it."""

    def __init__(self, directory: Path):
        """Take the lock.

        Raises:
            ValueError: another process has it (named in the message), or a process of another host left it.
        """
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
                    f"{directory} is in use by process {process} on the host {host}, which cannot be reached from here; if that "
                    f"process has ended, delete {self.file}"
                )
        except ValueError:
            os.close(self.descriptor)
            raise
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode(), 0)

    def release(self) -> None:
        """Release the lock. A second call does nothing."""
        if self.descriptor >= 0:
            self.file.unlink(missing_ok=True)
            os.close(self.descriptor)
            self.descriptor = -1


def _locked(descriptor: int) -> bool:
    """Return whether the kernel gave this process the lock. True if the file system has no locks (and on Windows)."""
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
    """Return (host, process) of a lock file; (None, None) for a new one, or one whose writer was killed immediately."""
    try:
        holder = json.loads(content or b"{}")
        return str(holder["host"]), int(holder["process"])
    except (ValueError, KeyError, TypeError):
        return None, None
