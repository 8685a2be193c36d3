"""The program of the sandbox: two processes, one for a generated program, one for its tests.

The process of the program is forked before the tests are read. It contains neither the tests nor the place of the verdict, and
answers by messages (sandbox_wire.py). Both processes belong to one user, so each may write, read and remove files of the other.
The verdict is a random token, which only the process of the tests knows and writes after the last test.
"""

from __future__ import annotations

import _signal as signal  # pyright: ignore[reportMissingImports]  # without the enumerations around it, which take longer to import than to use
import os
import resource
import sys
import time

from rewards.sandbox_wire import Channel, ProtocolError, loads

TYPE_CHECKING = False  # what `typing` says; importing it takes as long as all that a short program does
if TYPE_CHECKING:
    from typing import Any


def main(settings: dict[str, Any]) -> None:
    """Run a job. settings: limits, user and packages, which both processes may know. The job with code and tests is read from
    fd 0."""
    out = os.dup(1)
    to_program, from_tests = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        keep = {to_program[0], from_tests[1]}
        _quiet(0, 1, 2)
        for file in {out, *to_program, *from_tests} - keep:
            os.close(file)
        _bounded(settings, settings["user"])
        os.cpu_count = lambda: 4  # workers by default; as many processes as a large machine has cores are not allowed
        from rewards.sandbox_program import ProgramSide

        ProgramSide(Channel(to_program[0], from_tests[1])).run()
    os.close(to_program[0])
    os.close(from_tests[1])
    job = loads(_all_of(0))
    _quiet(0, 1, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _bounded(settings, settings["user"])
    ends = os.pidfd_open(child) if sys.platform == "linux" else None
    verdict = _verdict(job, Channel(from_tests[0], to_program[1], ends), child)
    os.write(out, verdict[:1000].encode(errors="replace"))
    os._exit(0)


def _verdict(job: dict[str, Any], channel: Channel, child: int) -> str:
    """The token where all tests pass, else the reason."""
    from rewards.sandbox_judge import TestsSide, run_tests

    side = TestsSide(channel, job["entry"], frozenset(job["functions"]))
    try:
        run_tests(side, job["code"], job["tests"], job["modules"], job["collect"], job["seeds"])
    except ProtocolError:
        pass
    except BaseException as error:  # whatever a test or a program raises, SystemExit among it, is a failure
        if not channel.ended:
            return f"{type(error).__name__}: {error}"[:500]
    return _end_of(channel.ended, child) if channel.ended else job["token"]


def _end_of(reason: str, child: int) -> str:
    """Why a program cannot answer any more; by which signal it ended, where it did."""
    for _ in range(50):  # its pipe closes a little before it ends
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            break
        time.sleep(0.01)
    if done and os.WIFSIGNALED(status):
        if os.WTERMSIG(status) == signal.SIGXCPU:
            return "not done after the seconds of the processor that it has"
        return f"{reason} (signal {os.WTERMSIG(status)})"
    return reason


def _quiet(*streams: int) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for stream in streams:
        os.dup2(null, stream)
    if null not in streams:
        os.close(null)


def _bounded(settings: dict[str, Any], user: int | None) -> None:
    limits = {
        resource.RLIMIT_AS: (settings["memory"], settings["memory"]),
        resource.RLIMIT_FSIZE: (settings["file"], settings["file"]),
        resource.RLIMIT_CORE: (0, 0),
        # A signal that has a name, then one without appeal.
        resource.RLIMIT_CPU: (settings["cpu"], settings["cpu"] + 1),
    }
    if settings["processes"]:
        limits[resource.RLIMIT_NPROC] = (settings["processes"], settings["processes"])
    if user:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
    for kind, most in limits.items():
        resource.setrlimit(kind, most)
    if settings["packages"]:
        sys.path.append(settings["packages"])


def _all_of(file: int) -> bytes:
    parts = []
    while part := os.read(file, 2**20):
        parts.append(part)
    return b"".join(parts)
