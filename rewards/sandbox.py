"""Programs that a model wrote, run with their tests where they reach neither the network nor files: bubblewrap.

Inside there are the Python interpreter with its standard library, an empty /tmp in memory and nothing else: no home, no network,
no other process, an empty environment. Time, memory, file sizes and the number of processes are bounded, and what is printed goes
nowhere. A program has passed when a random token comes back, which is written after the last test alone.

What this does not do: program and tests share one interpreter, as in every public checker of this kind, so that a program written
against its tests (objects equal to everything, a walk over the frames of the interpreter) can still fool them. It cannot get out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

RUNNER = Path(__file__).with_name("sandbox_runner.py")
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")  # shared libraries
PACKAGES = "/packages"
WAY_OUT = (
    "install it (apt install bubblewrap, version 0.7 or later), or give --unsandboxed (in training data.unsandboxed=true), with "
    "which programs "
    "that a model wrote run with your own rights, bounded in time and memory alone"
)


class SandboxError(ValueError):
    """There is no sandbox here; the message says why, and how to go on."""


@dataclass(frozen=True)
class Program:
    """code runs first, as a module named `solution`; then, in the same module, the tests. packages: installed packages can be
    imported (read-only), not the standard library alone."""

    code: str
    tests: str
    packages: bool = False


@dataclass(frozen=True)
class Verdict:
    """passed: all tests ran through. reason: why not, else empty."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """Of one program: seconds of the processor (and six times as many by the clock: a busy machine makes nothing wrong),
    bytes of address space a process, bytes a file, processes and threads."""

    seconds: int = 5
    memory: int = 2**30
    file: int = 2**24
    processes: int = 8


def run_programs(programs: Sequence[Program], unsandboxed: bool = False, limits: Limits | None = None) -> list[Verdict]:
    """A verdict a program, in order; as many run at a time as this process has cores, of a machine that its ranks share.

    unsandboxed: run them as ordinary processes of this user. Raises SandboxError where that is not asked for and bubblewrap is
    missing or cannot make a sandbox.
    """
    if not programs:
        return []
    if not unsandboxed:
        check_sandbox()
    cores = (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    with ThreadPoolExecutor(max(1, cores)) as pool:
        return list(pool.map(lambda program: _run(program, unsandboxed, limits or Limits()), programs))


@functools.cache
def check_sandbox() -> None:
    """Raises SandboxError unless an empty program passes in the sandbox."""
    if shutil.which("bwrap") is None:
        raise SandboxError(f"programs run in a sandbox only, and its tool `bwrap` (bubblewrap) is not here; {WAY_OUT}")
    verdict = _run(Program("", ""), False, Limits())
    if not verdict.passed:
        raise SandboxError(f"bwrap makes no sandbox here ({verdict.reason}); mend that, or {WAY_OUT}")


def _run(program: Program, unsandboxed: bool, limits: Limits) -> Verdict:
    token = secrets.token_hex(16)
    root = not unsandboxed and _is_root()
    packages = sysconfig.get_path("purelib") if unsandboxed else PACKAGES
    job = {
        "code": program.code, "tests": program.tests, "token": token, "packages": packages if program.packages else None,
        "cpu": limits.seconds, "memory": limits.memory, "file": limits.file,
        # Of one user's processes: each program of a root is a user of its own, other users' sandboxes count by themselves.
        "processes": None if unsandboxed else limits.processes,
        "user": 10**9 + secrets.randbelow(10**9) if root else None,
    }  # fmt: skip
    command = [str(_executable()), "-I", "-S", "-B", "-X", "utf8", "-c", RUNNER.read_text(encoding="utf-8")]
    if not unsandboxed:
        command = [*_sandbox(root, program.packages), *command]
    with (
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryDirectory() as directory,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE, cwd=directory, start_new_session=True,
            env={"HOME": "/tmp", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        ) as process,
    ):  # fmt: skip
        try:
            _, complained = process.communicate(json.dumps(job).encode(), timeout=6 * limits.seconds)
        except subprocess.TimeoutExpired:
            return Verdict(False, f"not done after {6 * limits.seconds} seconds")
        finally:
            if process.returncode is None or unsandboxed:  # an unsandboxed program may leave others behind
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        out.seek(0)
        told, complaint = out.read(1000).decode(errors="replace"), complained.decode(errors="replace").strip()
    if told == token:
        return Verdict(True)
    if complaint.startswith("bwrap:"):  # the program's own errors go nowhere: this is no verdict on it
        raise SandboxError(f"bwrap makes no sandbox here ({complaint.splitlines()[0]}); mend that, or {WAY_OUT}")
    if process.returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return Verdict(False, f"not done after {limits.seconds} seconds of the processor")
    return Verdict(False, told or complaint[-500:] or f"ended with status {process.returncode} before the last test")


def _executable() -> Path:
    """The interpreter itself: in a virtual environment, the one that it was made from."""
    return Path(getattr(sys, "_base_executable", sys.executable)).resolve()


def _is_root() -> bool:
    """Whether this is root of the machine, not of a user namespace, and may thus become any user."""
    users = Path("/proc/self/uid_map")
    return (
        os.geteuid() == 0 and users.is_file() and users.read_text(encoding="utf-8").split() == ["0", "0", "4294967295"]
    )


def _sandbox(root: bool, packages: bool) -> list[str]:
    """The call of bwrap. A root keeps its user namespace, and the right to give up being root, which the runner does first: the
    bound on processes does not hold for root."""
    base = Path(sys.base_prefix) / "lib"
    binds = {_executable(): _executable(), base: base, Path("/etc/ld.so.cache"): Path("/etc/ld.so.cache")}
    links = []
    for directory in map(Path, SYSTEM):
        if directory.is_symlink():
            links += ["--symlink", os.readlink(directory), str(directory)]
        else:
            binds[directory] = directory
    if packages:
        binds[Path(sysconfig.get_path("purelib"))] = Path(PACKAGES)
    binds = {source: place for source, place in binds.items() if source.exists()}
    parents = sorted({parent for place in binds.values() for parent in place.parents if parent != Path("/")})
    hidden = [base / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages",
              Path("/usr/lib/python3/dist-packages"), Path("/usr/local/lib/python3/dist-packages")]  # fmt: skip
    hidden = [place for place in hidden if place.is_dir() and any(place.is_relative_to(bound) for bound in binds)]
    apart = ["--unshare-all"]
    if root:
        apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
                 "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # fmt: skip
    return [
        shutil.which("bwrap") or "bwrap", *apart, "--die-with-parent", "--new-session",
        *(word for parent in parents for word in ("--perms", "0755", "--dir", str(parent))),
        *(word for source, place in binds.items() for word in ("--ro-bind", str(source), str(place))),
        *links,
        *(word for place in hidden for word in ("--tmpfs", str(place), "--remount-ro", str(place))),
        "--dev-bind", "/dev/null", "/dev/null", "--perms", "1777", "--size", str(2**26), "--tmpfs", "/tmp",
        "--chdir", "/tmp", "--remount-ro", "/",
    ]  # fmt: skip
