"""Programs in the sandbox: what they cannot reach, what bounds them, what does not count as passing, and what is refused."""

import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rewards import sandbox
from rewards.sandbox import Limits, Program, SandboxError, check_sandbox, run_programs
from rewards.seccomp import program_filter

HERE = Path(__file__).resolve()


def usable() -> bool:
    """Whether programs can be run here as a user would run them."""
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


needs_bwrap = pytest.mark.skipif(not usable(), reason="bubblewrap is not here, or makes no sandbox")
QUICK = Limits(seconds=4)


def verdict(code: str, tests: str = "", limits: Limits = QUICK, **told) -> sandbox.Verdict:
    (given,) = run_programs([Program(code, tests, **told)], limits=limits)
    return given


@needs_bwrap
def test_right_and_wrong_programs_in_order():
    code = "def f(x):\n    return x + 1"
    right, wrong = Program(code, "assert f(1) == 2"), Program(code, "assert f(1) == 3, 'not three'")
    given = run_programs([right, wrong, right, Program(code, "from solution import f\nassert f(0) == 1")])
    assert [v.passed for v in given] == [True, False, True, True]
    assert given[1].reason == "AssertionError: not three"
    assert run_programs([]) == []


@needs_bwrap
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import socket; socket.create_connection(('1.1.1.1', 53), 2)", "unreachable"),
        ("open('/etc/passwd')", "No such file"),
        (f"open({str(HERE)!r})", "No such file"),
        ("import os; os.listdir(os.path.expanduser('~root'))", ""),
        ("open('/written', 'w')", "Read-only"),
        ("open('/usr/lib/written', 'w')", "Read-only"),
        ("import numpy", "No module named 'numpy'"),
    ],
)  # fmt: skip
def test_what_a_program_cannot_reach(code, reason):
    given = verdict(code)
    assert not given.passed and reason in given.reason


@needs_bwrap
def test_its_world_is_empty():
    world = """
import os, socket
assert [name for _, name in socket.if_nameindex()] == ["lo"]
assert set(os.environ) <= {"HOME", "PWD", "LC_CTYPE", "PYTHONHASHSEED", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"}
assert os.getcwd() == "/tmp" and os.listdir("/tmp") == []
assert set(os.listdir("/")) <= {"usr", "lib", "lib64", "etc", "dev", "tmp", os.path.normpath(BASE).split("/")[1]}
assert not os.path.exists("/proc") and os.getpid() < 10
"""
    given = verdict(f"BASE = {sys.base_prefix!r}\n{world}")
    assert given.passed, given.reason


@needs_bwrap
def test_written_files_are_gone_with_the_program():
    assert verdict("open('/tmp/mine', 'w').write('a')", "assert open('/tmp/mine').read() == 'a'").passed
    assert not verdict("open('/tmp/mine')").passed
    assert not Path("/tmp/mine").exists()


@needs_bwrap
@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("while True: pass", "not done after"),
        ("import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\nwhile True: pass", ""),
        ("import time; time.sleep(60)", "not done after 6 seconds"),
        ("held = bytearray(2**34)", "MemoryError"),
        ("open('/tmp/large', 'wb').write(bytes(2**25))", "File too large"),
        ("for n in range(40): open(f'/tmp/{n}', 'wb').write(bytes(2**22))", "No space left"),
        ("def f(x): return f(x)\nf(1)", "RecursionError"),
        ("import ctypes; ctypes.string_at(0)", "before the last test"),
    ],
)
def test_what_bounds_a_program(code, reason):
    started = time.monotonic()
    given = verdict(code, limits=Limits(seconds=1) if "while" in code or "sleep" in code else QUICK)
    assert not given.passed and reason in given.reason
    assert time.monotonic() - started < 40


FORKED = """
import os, time
def f():
    for n in range(6):
        if os.fork() == 0:
            held = bytearray(b'x') * (2 ** 27)
            time.sleep(20)
            os._exit(0)
    time.sleep(20)
"""


@pytest.mark.parametrize("unsandboxed", [pytest.param(False, marks=needs_bwrap), True])
def test_memory_is_bounded_for_all_processes_together(unsandboxed):
    """Six processes of 128 MiB are within the bound of each, and not within that of the program."""
    few = FORKED.replace("range(6)", "range(2)").replace("sleep(20)", "sleep(0.5)")
    limits = Limits(seconds=3, memory=2**29)
    given = run_programs([Program(code, "f()") for code in (FORKED, few)], unsandboxed, limits)
    assert [each.passed for each in given] == [False, True], given
    assert f"holds more than {2**29} bytes" in given[0].reason


def test_time_and_memory_of_a_family_of_processes():
    middle = subprocess.Popen([sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '5'])"])
    try:
        for _ in range(100):
            if len(family := sandbox.descendants(middle.pid)) == 2:
                break
            time.sleep(0.05)
        assert len(family) == 2 and family[0] == middle.pid and family[1] in sandbox.descendants(os.getpid())
        assert sandbox.memory_of(family) > sandbox.memory_of(family[1:]) > 0
    finally:
        for each in family:
            os.kill(each, signal.SIGKILL)
        middle.wait()
    assert sandbox.descendants(middle.pid) == [middle.pid] and sandbox.memory_of([middle.pid]) == 0
    spent = os.times()
    assert abs(sandbox.processor_seconds([os.getpid()]) - sum(spent[:4])) < 0.5


@needs_bwrap
@pytest.mark.parametrize(
    "code",
    [
        "import os; held = os.memfd_create('held')",
        "import ctypes; held = ctypes.CDLL(None).shmget(0, 2**20, 0o1600); assert held >= 0",
        "for n in range(9): open(f'/dev/shm/{n}', 'wb').write(bytes(2**23))",
        "import ctypes; assert ctypes.CDLL(None).unshare(0x10000000) == 0",
        "import ctypes; assert ctypes.CDLL(None).syscall(56, 0x10000000 | 17, 0, 0, 0, 0) >= 0",
        "import ctypes, os; assert ctypes.CDLL(None).ptrace(16, os.getppid(), 0, 0) == 0",
    ],
)
def test_what_system_calls_give_no_program(code):
    """Memory outside the limits, a namespace of its own, a look into the process of the tests."""
    assert not verdict(code).passed


@needs_bwrap
def test_a_verdict_repeats():
    code = "def f():\n    return list({'a', 'b', 'c', 'd', 'e', 'f', 'g'})"
    given = run_programs([Program(code, "assert f() == []\n"), *[Program(code, "raise ValueError(f())")] * 6])
    assert len({each.reason for each in given[1:]}) == 1


@needs_bwrap
def test_a_fork_bomb_stays_small():
    bomb = """
import os, time
started = 1
try:
    while os.fork():
        started += 1
    time.sleep(60)
except OSError:
    raise RuntimeError(f"{started} processes")
"""
    given = verdict(bomb)
    assert not given.passed and given.reason.startswith("RuntimeError:")
    assert 1 <= int(given.reason.split()[1]) <= Limits().processes


@needs_bwrap
def test_output_goes_nowhere_and_does_no_harm():
    loud = "import sys\nfor n in range(20000): print('x' * 1000); sys.stderr.write('y' * 1000)"
    assert verdict(loud, limits=Limits(seconds=30)).passed
    flood = "import os\nfor stream in range(3, 30):\n  try:\n    while True: os.write(stream, b'x' * 2**20)\n  except OSError: pass"
    given = verdict(flood)
    assert not given.passed and len(given.reason) <= 1000


@needs_bwrap
@pytest.mark.parametrize(
    "code",
    [
        "print('passed'); raise SystemExit(0)",
        "import sys; sys.exit(0)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import builtins; builtins.exec = builtins.compile = lambda *given: None",
        "import os; os.write(1, b'passed'); os.close(3)",
        "import sys; sys.modules['solution'] = None",
        "import os\nif os.fork() == 0: pass\nelse: os._exit(0)",
        "def f(): import os; os._exit(0)",
        "import threading, os; threading.Timer(0.05, os._exit, (0,)).start()\nimport time; time.sleep(1)",
    ],
)
def test_what_does_not_count_as_passing(code):
    assert not verdict(code, "f() if 'f' in globals() else None\nassert False").passed


@needs_bwrap
def test_installed_packages_on_request():
    assert verdict("", "import pytest, numpy", packages=True, limits=Limits(seconds=20)).passed


@pytest.mark.parametrize("code", ["while True: pass", "import os; os._exit(0)", "held = bytearray(2**34)"])
def test_unsandboxed_programs_are_bounded_too(code):
    given = run_programs([Program("def f(): return 1", "assert f() == 1"), Program(code, "")], True, Limits(seconds=2))
    assert [v.passed for v in given] == [True, False]


def test_without_bubblewrap_nothing_runs_unless_asked_to(monkeypatch, tmp_path):
    check_sandbox.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    left = tmp_path / "left"
    leave = Program(f"open({str(left)!r}, 'w').close()", "")
    with pytest.raises(SandboxError, match="bubblewrap.* is not here; install it .* or give --unsandboxed"):
        run_programs([leave])
    assert not left.exists()
    assert run_programs([leave], unsandboxed=True)[0].passed and left.exists()


def test_a_bubblewrap_that_makes_no_sandbox_is_refused_with_its_reason(monkeypatch, tmp_path):
    check_sandbox.cache_clear()
    broken = tmp_path / "bwrap"
    broken.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace' >&2\nexit 1\n")
    broken.chmod(0o755)
    monkeypatch.setattr(shutil, "which", lambda name: str(broken))
    with pytest.raises(SandboxError, match="No permissions to create new namespace.*--unsandboxed"):
        run_programs([Program("", "")])
    broken.write_text("#!/bin/sh\nexit 3\n")
    with pytest.raises(SandboxError, match="ended with status 3"):
        run_programs([Program("", "")])


@pytest.mark.parametrize("unsandboxed", [pytest.param(False, marks=needs_bwrap), True])
def test_nothing_lives_on(unsandboxed):
    marker = f"unmask-{time.time_ns()}"
    running = lambda: (
        marker in subprocess.run(["ps", "-ewwo", "args"], capture_output=True, text=True, check=True).stdout
    )
    start = f"import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)', {marker!r}])"
    seen = []
    with ThreadPoolExecutor(1) as pool:
        stays = Program(start, "child.wait()")
        done = pool.submit(run_programs, [stays], unsandboxed, Limits(seconds=1))
        while not done.done():
            seen.append(running())
            time.sleep(0.1)
    assert any(seen), done.result()
    assert "not done" in done.result()[0].reason
    leaves = Program(start, "assert child.poll() is None")
    assert run_programs([leaves], unsandboxed)[0].passed
    for _ in range(50):
        if not running():
            return
        time.sleep(0.1)
    raise AssertionError("a process outlived its program")


def test_a_machine_whose_system_calls_are_not_known_has_no_sandbox(monkeypatch, tmp_path):
    check_sandbox.cache_clear()
    sandbox._filter.cache_clear()
    monkeypatch.setattr(shutil, "which", lambda name: str(tmp_path))
    monkeypatch.setattr(sandbox.platform, "machine", lambda: "abacus")
    with pytest.raises(SandboxError, match="no filter of system calls for this machine \\(abacus\\).*--unsandboxed"):
        run_programs([Program("", "")])


def test_the_filter_is_a_list_of_instructions():
    for machine in ("x86_64", "aarch64"):
        made = program_filter(machine)
        assert made is not None and len(made) % 8 == 0 and made.endswith((0x7FFF0000).to_bytes(4, sys.byteorder))
    assert program_filter("abacus") is None
