"""Mutation testing: each row of `benchmarks.mutation_table` puts a mistake into the code, and the tests of the row must fail.

    python -m benchmarks.mutations [--only PREFIX ...] [--jobs 1]

The tests are collected once. A forked child process replaces the code of the loaded functions by that of the mutated ones, so
that every importing module uses it, and runs the named tests until one fails. No file is changed. Each mutation is

* killed: a test failed;
* hung: a test took CPU_SECONDS of CPU time, or all of them SECONDS on the wall clock (counts as killed);
* survived: all tests passed;
* stale: the text to replace is missing, occurs more than once, or changes no function;
* broken: its tests do not exist.

One more child runs all of these tests on the unchanged code, and they must pass (`unmutated`). The command prints the survivors
and ends with one line of JSON. The exit status is 1 for a survivor that is not in KNOWN, a stale or broken mutation, or a test
that fails without a mutation.
"""

from __future__ import annotations

import argparse
import gc
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from benchmarks.mutation_table import KNOWN, ROWS
from training.ranges import Whole

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 300  # on the wall clock, after which a mutation has made a test hang: one that waits takes no CPU time
CPU_SECONDS = 90  # of one test, after which a mutation has made it hang
OPTIONS = (
    "-q",
    "-s",
    "-n",
    "0",
    "-p",
    "no:cacheprovider",
    "-m",
    "not slow and not cuda",
    "-W",
    "ignore::pytest.PytestAssertRewriteWarning",
)
PASSED, FAILED, STALE = 0, 1, 3  # exit statuses of a child


@dataclass(frozen=True)
class Mutation:
    """Replace `old`, which occurs in `file` exactly once, by `new`; `tests` are arguments of pytest."""

    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.file}: {self.old.strip()!r} -> {self.new.strip()!r}"


MUTATIONS = tuple(Mutation(file, old, new, tuple(tests)) for file, rows in ROWS.items() for old, new, *tests in rows)


def functions_of(code: CodeType, within: str = "") -> Iterator[tuple[str, CodeType]]:
    """Return the functions of a module and of its classes by qualified name; nested functions are part of their outer
    function."""
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            name = within + inner.co_name
            if inner.co_flags & 2:  # CO_NEWLOCALS: a function; a class has none
                yield name, inner
            else:
                yield from functions_of(inner, name + ".")


def loaded() -> list[FunctionType]:
    """Return the loaded functions of the project. It is computed once, since a search of all objects copies a child's memory."""
    gc.unfreeze()  # the tests freeze modules, whose functions the collector then no longer lists
    functions = [thing for thing in gc.get_objects() if type(thing) is FunctionType]
    return [one for one in functions if one.__code__.co_filename.startswith(f"{ROOT}{os.sep}")]


def apply(mutation: Mutation, functions: Sequence[FunctionType]) -> bool:
    """Replace the code of the loaded functions by the mutated code. Return False if there is nothing to replace."""
    path = ROOT / mutation.file
    source = path.read_text(encoding="utf-8")
    if source.count(mutation.old) != 1:
        return False
    before = dict(functions_of(compile(source, str(path), "exec", dont_inherit=True)))
    after = dict(
        functions_of(compile(source.replace(mutation.old, mutation.new), str(path), "exec", dont_inherit=True))
    )
    changed = {name: code for name, code in after.items() if name in before and body(before[name]) != body(code)}
    replaced = 0
    for function in functions:
        if function.__code__.co_filename == str(path) and function.__qualname__ in changed:
            function.__code__ = changed[function.__qualname__]
            replaced += 1
    return replaced > 0


def body(code: CodeType) -> tuple:
    """Return the behaviour of a function, independent of its place in the file."""
    constants = [body(inner) if isinstance(inner, CodeType) else repr(inner) for inner in code.co_consts]
    return code.co_code, constants, code.co_names, code.co_varnames, code.co_freevars


class Mutator:
    """Plugin of pytest that runs the mutations instead of the tests."""

    def __init__(self, mutations: Sequence[Mutation | None], jobs: int):
        self.mutations, self.jobs = mutations, jobs
        self.verdicts: dict[int, str] = {}
        self.functions: list[FunctionType] = []

    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for file in {mutation.file for mutation in self.mutations if mutation is not None}:
            importlib.import_module(file.removesuffix(".py").replace("/", "."))  # some are imported when they are used
        self.functions = loaded()
        gc.freeze()  # a collection in a child copies no memory
        running: dict[int, tuple[int, float]] = {}  # process -> (number, when it has to end)
        waiting = list(range(len(self.mutations)))
        while waiting or running:
            while waiting and len(running) < self.jobs:
                number = waiting.pop(0)
                running[self.started(session, number)] = (number, time.monotonic() + SECONDS)
            done, status = os.waitpid(-1, os.WNOHANG)
            for process, (_, end) in running.items():
                if not done and time.monotonic() > end and self.mutations[running[process][0]] is not None:
                    os.kill(process, 9)
            if done in running:
                self.keep(running.pop(done)[0], os.waitstatus_to_exitcode(status))
            time.sleep(0.02)
        return True

    def started(self, session: pytest.Session, number: int) -> int:
        """Start the child process that judges one mutation, or (None) the unchanged code."""
        mutation = self.mutations[number]
        items = [item for item in session.items if mutation is None or named(item.nodeid, mutation.tests)]
        child = os.fork()
        if child:
            return child
        status = 4
        try:
            nowhere, heard = os.open(os.devnull, os.O_WRONLY), os.dup(2)
            os.dup2(nowhere, 1), os.dup2(nowhere, 2)
            if mutation is not None and not apply(mutation, self.functions):
                status = STALE
            elif items:
                status = run(session, items, None if mutation else heard)
        except BaseException:
            os.write(heard, traceback.format_exc().encode())
        finally:  # whatever happens, the child ends here and not in the parent's loop
            os._exit(status)

    def keep(self, number: int, status: int) -> None:
        hung = {-signal.SIGKILL: "hung", -signal.SIGXCPU: "hung"}
        found = {PASSED: "survived", FAILED: "killed", STALE: "stale", **hung}.get(status, "broken")
        mutation = self.mutations[number]
        if mutation is None:
            found = "passes" if status == PASSED else "fails"
        self.verdicts[number] = found
        sys.__stdout__.write(f"{found:9} {mutation or 'unmutated'}\n")  # pyright: ignore[reportOptionalMemberAccess]
        sys.__stdout__.flush()  # pyright: ignore[reportOptionalMemberAccess]


def named(node: str, tests: Sequence[str]) -> bool:
    return any(node == test or node.startswith((test + "[", test + "::")) for test in tests)


def run(session: pytest.Session, items: list[pytest.Item], heard: int | None) -> int:
    """Return the exit status: of the first test that fails, or, if `heard` collects their names, of all tests."""
    import resource  # not on Windows, where nothing forks either

    for item, following in zip(items, [*items[1:], None], strict=True):
        failed = session.testsfailed
        if heard is None:
            spent, hardest = time.process_time(), resource.getrlimit(resource.RLIMIT_CPU)[1]
            resource.setrlimit(resource.RLIMIT_CPU, (int(spent) + CPU_SECONDS, hardest))
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
        if session.testsfailed > failed:
            if heard is None:
                return FAILED
            os.write(heard, f"fails unmutated: {item.nodeid}\n".encode())
    return FAILED if session.testsfailed else PASSED


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=[""], nargs="+", help="mutations whose file begins so")
    parser.add_argument("--jobs", type=Whole(1, 1_000_000), default=1, help="mutations at a time")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    chosen = [mutation for mutation in MUTATIONS if mutation.file.startswith(tuple(arguments.only))]
    tests = sorted({test for mutation in chosen for test in mutation.tests})
    mutator = Mutator([*chosen, None], arguments.jobs)
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "training")]:
        del sys.modules[name]  # jaxtyping checks what is imported under pytest
    status = pytest.main([*OPTIONS, *tests], plugins=[mutator])
    if len(mutator.verdicts) <= len(chosen):
        return int(status) or 1  # the tests could not be collected
    verdicts = [mutator.verdicts[number] for number in range(len(chosen))]
    counts = Counter(verdicts)
    left = [str(one) for one, verdict in zip(chosen, verdicts, strict=True) if verdict == "survived"]
    for name in left:
        print(f"survivor: {name}: {KNOWN.get(name, 'no reason known')}")
    unmutated = mutator.verdicts[len(chosen)]
    share = round((counts["killed"] + counts["hung"]) / max(1, len(chosen)), 4)
    print(json.dumps({"mutations": len(chosen), **counts, "killed_share": share, "unmutated": unmutated}))
    wrong = counts["stale"] + counts["broken"] + (unmutated == "fails")
    return int(bool(set(left) - KNOWN.keys()) or wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
