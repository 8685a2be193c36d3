"""A sandbox for generated programs and their tests, without network and files: bubblewrap.

Inside are the Python interpreter with its standard library and an empty /tmp in memory: no home, no network, no other
process, an empty environment. Time, memory, file sizes and the number of processes are bounded for the whole program, and
its output is dropped.

Tests run in another process than the program, and compare copies of its results, of exactly the built-in types
(sandbox_judge.py). A program passes if a random token comes back, which only the test process knows and writes after the
last test.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import json
import marshal
import os
import platform
import re
import secrets
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

from rewards.seccomp import program_filter

INSIDE = ("sandbox_wire", "sandbox_program", "sandbox_judge", "sandbox_pytest", "sandbox_runner")
# The runner, taken from the input without reading a byte more: the job that follows is for the process of the tests alone.
START = """
import marshal, os, sys
def take(length):
    data = b""
    while len(data) < length:
        data += os.read(0, length - len(data))
    return data
settings, codes = marshal.loads(take(int.from_bytes(take(8), "little")))
class Finder:
    @staticmethod
    def find_spec(name, path=None, target=None):
        if name in codes or name == "rewards":
            return type(sys.__spec__)(name, Finder, is_package=name == "rewards")
    @staticmethod
    def create_module(spec):
        return None
    @staticmethod
    def exec_module(module):
        if module.__name__ in codes:
            exec(marshal.loads(codes[module.__name__]), module.__dict__)
sys.meta_path.insert(0, Finder)
import rewards.sandbox_runner
rewards.sandbox_runner.main(settings)
"""
# A fixed seed of hashes, so that the order of sets, and with it a verdict, is the same each time.
ENVIRONMENT = {"HOME": "/tmp", "PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
SHORT = {"np": "numpy", "pd": "pandas"}
DEVICES = ("null", "zero", "full", "random", "urandom")
TIME_ZONES = Path("/usr/share/zoneinfo")
PERIOD = 0.05  # seconds between two looks at memory and time
SHARED_FROM = 2**28  # bytes
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")  # shared libraries
PACKAGES = "/packages"
WAY_OUT = (
    "install it (apt install bubblewrap, version 0.7 or later), or give --unsandboxed (in training data.unsandboxed=true), with "
    "which programs "
    "that a model wrote run with your own rights, bounded in time and memory alone"
)


class SandboxError(ValueError):
    """There is no sandbox on this machine; the message has the reason and the alternative."""


@dataclass(frozen=True)
class Program:
    """Code, and the tests that it must pass.

    The code runs as a module named `solution`. Tests run in another process, where the names of that module stand for its
    contents. packages: both can import installed packages (read-only), not only the standard library; collect: tests are
    functions and classes for pytest or unittest, not only statements; entry: the requested name, also if it is that of a
    built-in; functions: names of functions, which have no instances.
    """

    code: str
    tests: str
    packages: bool = False
    collect: bool = False
    entry: str = ""
    functions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """passed: all tests ran without an error; reason: why not, else empty."""

    passed: bool
    reason: str = ""


@dataclass(frozen=True)
class Limits:
    """Limits of one program with its tests.

    CPU seconds (and six times as many wall-clock seconds, so that a busy machine changes no verdict), bytes of memory of
    all its processes together (also the address space of each), bytes per file, processes and threads.
    """

    seconds: int = 5
    memory: int = 2**30
    file: int = 2**24
    processes: int = 64


def run_programs(programs: Sequence[Program], unsandboxed: bool = False, limits: Limits | None = None) -> list[Verdict]:
    """Return a verdict per program, in order. As many run at a time as this process has cores.

    Args:
        unsandboxed: run them as ordinary processes of this user.

    Raises:
        SandboxError: bubblewrap is missing or cannot make a sandbox, and `unsandboxed` is False.
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
    """Raise SandboxError unless an empty program passes in the sandbox."""
    if shutil.which("bwrap") is None:
        raise SandboxError(f"programs run in a sandbox only, and its tool `bwrap` (bubblewrap) is not here; {WAY_OUT}")
    verdict = _run(Program("", ""), False, Limits())
    if not verdict.passed:
        raise SandboxError(f"bwrap makes no sandbox here ({verdict.reason}); mend that, or {WAY_OUT}")


def _run(program: Program, unsandboxed: bool, limits: Limits) -> Verdict:
    token = secrets.token_hex(16)
    root = not unsandboxed and _is_root()
    command = [str(_executable()), "-s", "-P", "-S", "-B", "-X", "utf8", "-c", START]
    job = asdict(program) | {"token": token, "modules": _own_modules(program.tests), "seeds": _seeded(program.tests)}
    given = _settings(program, unsandboxed, limits, root) + json.dumps(job).encode()
    with contextlib.ExitStack() as stack:
        passed = []
        if not unsandboxed:
            passed = [stack.enter_context(_file_of(_filter())).fileno()]
            command = [*_sandbox(root, program.packages), "--seccomp", str(passed[0]), *command]
        out = stack.enter_context(tempfile.TemporaryFile())
        directory = stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True))
        with _file_of(given) as job_file:  # closed here before the program starts, which could look for it
            process = stack.enter_context(subprocess.Popen(
                command, stdin=job_file, stdout=out, stderr=subprocess.PIPE, cwd=directory, start_new_session=True,
                pass_fds=passed, env=ENVIRONMENT,
            ))  # fmt: skip
        try:
            complained = _watched(process, limits)
        finally:
            if process.returncode is None or unsandboxed:  # an unsandboxed program may leave others behind
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
        if isinstance(complained, Verdict):
            return complained
        out.seek(0)
        reply, complaint = out.read(1000).decode(errors="replace"), complained.decode(errors="replace").strip()
    if reply == token:
        return Verdict(True)
    if complaint.startswith("bwrap:"):  # the program's own errors go nowhere: this is no verdict on it
        raise SandboxError(f"bwrap makes no sandbox here ({complaint.splitlines()[0]}); mend that, or {WAY_OUT}")
    if process.returncode in (-signal.SIGXCPU, 128 + signal.SIGXCPU):
        return Verdict(False, f"not done after {limits.seconds} seconds of the processor")
    return Verdict(False, reply or complaint[-500:] or f"ended with status {process.returncode} before the last test")


def _file_of(data: bytes) -> IO[bytes]:
    file = tempfile.TemporaryFile()  # noqa: SIM115 (the caller closes it)
    file.write(data)
    file.seek(0)
    return file


def _watched(process: subprocess.Popen, limits: Limits) -> bytes | Verdict:
    """Return the error output of a process at its end; a verdict if it exceeds time or memory before."""
    deadline = time.monotonic() + 6 * limits.seconds
    while True:
        try:
            return process.communicate(timeout=PERIOD)[1]
        except subprocess.TimeoutExpired:
            if time.monotonic() > deadline:
                return Verdict(False, f"not done after {6 * limits.seconds} seconds")
        family = descendants(process.pid)
        if (
            processor_seconds(family) > limits.seconds + 1
        ):  # RLIMIT_CPU, which comes first, applies to each process separately
            return Verdict(False, f"not done after {limits.seconds} seconds of the processor")
        if memory_of(family) > limits.memory:
            return Verdict(False, f"MemoryError: the program holds more than {limits.memory} bytes")


@functools.cache
def _filter() -> bytes:
    made = program_filter()
    if made is None:
        raise SandboxError(f"there is no filter of system calls for this machine ({platform.machine()}); {WAY_OUT}")
    return made


@functools.cache
def _compiled() -> dict[str, bytes]:
    """Return the code of the inner modules, by name."""
    files = {name: Path(__file__).with_name(f"{name}.py") for name in INSIDE}
    return {f"rewards.{name}": marshal.dumps(compile(file.read_text(encoding="utf-8"), name, "exec", dont_inherit=True))
            for name, file in files.items()}  # fmt: skip


def _settings(program: Program, unsandboxed: bool, limits: Limits, root: bool) -> bytes:
    """Return the settings that both inner processes may know: eight bytes of length, then the settings and the code of the
    runner.
    """
    packages = sysconfig.get_path("purelib") if unsandboxed else PACKAGES
    # The limit on processes is per user: with root each sandbox is a separate user.
    user = 10**9 + secrets.randbelow(10**9) if root else None
    settings = {
        "packages": packages if program.packages else None, "cpu": limits.seconds, "memory": limits.memory, "file": limits.file,
        "processes": None if unsandboxed else limits.processes, "user": user,
    }  # fmt: skip
    sent = marshal.dumps((settings, _compiled()))
    return len(sent).to_bytes(8, "little") + sent


def _own_modules(tests: str) -> dict[str, str]:
    """Return modules that tests use without an import, whose names the program could rebind: those of the standard
    library, `np` and `pd`.
    """
    try:
        tree = ast.parse(tests)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return {}  # they fail inside, with the reason
    read = {
        node.value.id for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }
    return {name: SHORT.get(name, name) for name in read if name in SHORT or name in sys.stdlib_module_names}


def _seeded(tests: str) -> list[str]:
    """Return modules whose random generator the tests seed."""
    found = re.findall(r"\b(np\.random|numpy\.random|random)\.seed\(", tests)
    return sorted({name.replace("np.", "numpy.") for name in found})


def descendants(pid: int) -> list[int]:
    """Return a process and all processes that it has started, directly or not."""
    found = [pid]
    for each in found:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            for task in os.listdir(f"/proc/{each}/task"):
                found += map(int, Path(f"/proc/{each}/task/{task}/children").read_text(encoding="utf-8").split())
    return found


def processor_seconds(family: Sequence[int]) -> float:
    """Return the CPU seconds of some processes and of the children that they have waited for."""
    ticks = 0
    for each in family:
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            ticks += sum(
                map(int, Path(f"/proc/{each}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[11:15])
            )
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_of(family: Sequence[int]) -> int:
    """Return the bytes of memory that some processes hold together. Above SHARED_FROM bytes, shared pages are counted once,
    which is slower."""
    sizes = [_resident(each) for each in family]
    return sum(sizes) if sum(sizes) < SHARED_FROM else sum(map(_proportional, family, sizes))


def _resident(pid: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _proportional(pid: int, size: int) -> int:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        pages = re.search(
            r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8"), re.MULTILINE
        )
        return int(pages[1]) * 1024 if pages else size
    return size


def _executable() -> Path:
    """Return the interpreter; in a virtual environment, the one that it was made from."""
    return Path(vars(sys)["_base_executable"]).resolve()  # of CPython


def _time_zones() -> Path:
    """Return the tables of zoneinfo: those of the machine, else of the package tzdata."""
    packaged = Path(sysconfig.get_path("purelib")) / "tzdata" / "zoneinfo"
    return packaged if packaged.is_dir() and not TIME_ZONES.is_dir() else TIME_ZONES


def _is_root() -> bool:
    """Return whether this is root of the machine (not of a user namespace), which may become any user."""
    users = Path("/proc/self/uid_map")
    return (
        os.geteuid() == 0 and users.is_file() and users.read_text(encoding="utf-8").split() == ["0", "0", "4294967295"]
    )


def _binds(packages: bool) -> tuple[dict[Path, Path], list[str]]:
    """Return where each part of the machine's file system appears in the sandbox, and the arguments for symbolic links."""
    base = Path(sys.base_prefix) / "lib"
    binds = {_executable(): _executable(), base: base, Path("/etc/ld.so.cache"): Path("/etc/ld.so.cache"),
             _time_zones(): TIME_ZONES}  # fmt: skip
    links = []
    for directory in map(Path, SYSTEM):
        if directory.is_symlink():
            links += ["--symlink", os.readlink(directory), str(directory)]
        else:
            binds[directory] = directory
    if packages:
        binds[Path(sysconfig.get_path("purelib"))] = Path(PACKAGES)
    return {source: place for source, place in binds.items() if source.exists()}, links


def _hidden(binds: dict[Path, Path]) -> list[Path]:
    """Return the directories of Python packages inside those that the sandbox shows."""
    base = Path(sys.base_prefix) / "lib"
    packages = [base / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages",
                Path("/usr/lib/python3/dist-packages"), Path("/usr/local/lib/python3/dist-packages")]  # fmt: skip
    return [place for place in packages if place.is_dir() and any(place.is_relative_to(bound) for bound in binds)]


def _parents(places: list[Path]) -> list[Path]:
    """Return the directories above some paths, without the root directory."""
    return sorted({parent for place in places for parent in place.parents if parent != Path("/")})


def _sandbox(root: bool, packages: bool) -> list[str]:
    """Return the call of bwrap. Root keeps its user namespace and the right to drop root, which the runner does first:
    limits on processes do not apply to root.
    """
    binds, links = _binds(packages)
    devices = [Path("/dev") / name for name in DEVICES]
    apart = ["--unshare-all"]
    if root:
        apart = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--unshare-cgroup-try",
                 "--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]  # fmt: skip
    return [
        shutil.which("bwrap") or "bwrap", *apart, "--die-with-parent", "--new-session",
        *(word for parent in _parents([*binds.values(), *devices]) for word in ("--perms", "0755", "--dir", str(parent))),
        *(word for source, place in binds.items() for word in ("--ro-bind", str(source), str(place))),
        *links,
        *(word for place in _hidden(binds) for word in ("--tmpfs", str(place), "--remount-ro", str(place))),
        *(word for device in devices for word in ("--dev-bind", str(device), str(device))),
        "--perms", "1777", "--size", str(2**26), "--tmpfs", "/tmp", "--symlink", "/tmp", "/dev/shm",  # one bound for both
        "--chdir", "/tmp", "--remount-ro", "/",
    ]  # fmt: skip
