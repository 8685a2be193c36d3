r"""Equality in value of two LaTeX expressions, by math-verify (SymPy), in a separate process.

    equal_in_value(r"(-\infty, 2)", "x < 2")    # True

SymPy needs unbounded time and memory for some answers (`9^{9^{9}}`), and only the end of its process stops it; time limits
by signal work in a main thread only. One worker process serves all threads of this process. A question may use TIME_LIMIT
seconds of CPU time, so that a busy machine changes no verdict. If it takes longer, the worker ends, the answer counts as
wrong, and the next question starts another worker.
"""

from __future__ import annotations

import atexit
import json
import math
import os
import subprocess
import sys
import threading
import time
from functools import lru_cache
from select import select

TIME_LIMIT = 3  # seconds of the processor a question
PATIENCE = 60  # seconds by the clock a question; a worker that waits for something uses no processor
MEMORY = 4 << 30  # bytes of address space


class Worker:
    """The worker of one process, found by the process id: a fork must not write into the pipe of its parent."""

    def __init__(self):
        self.owner = os.getpid()
        self.process = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0,
            start_new_session=True,
        )  # fmt: skip

    def ask(self, gold: str, answer: str, seconds: int) -> bool | None:
        """Ask for a verdict. None if the worker has ended without an answer, or is stopped."""
        reply = b""
        try:
            reply = self._reply(json.dumps([gold, answer, seconds]).encode() + b"\n")
        finally:
            if not reply.endswith(b"\n"):
                self.end()
        return json.loads(reply) if reply.endswith(b"\n") else None

    def _reply(self, question: bytes) -> bytes:
        """Return one line; less if the worker has ended or PATIENCE is over."""
        assert self.process.stdin and self.process.stdout
        deadline, reply = time.monotonic() + PATIENCE, b""
        try:
            self.process.stdin.write(question)
        except BrokenPipeError:
            return reply
        while (
            not reply.endswith(b"\n")
            and select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))[0]
        ):
            if not (part := os.read(self.process.stdout.fileno(), 100)):
                break
            reply += part
        return reply

    def end(self) -> None:
        """Stop the worker if it still runs."""
        self.process.kill()
        self.process.communicate()


_lock = threading.Lock()
_worker: Worker | None = None


@atexit.register
def end_worker() -> None:
    """Stop the worker of this process; the next question starts another."""
    global _worker
    if _worker is not None and _worker.owner == os.getpid():
        _worker.end()
    _worker = None


@lru_cache(maxsize=10_000)  # rollouts of one question often agree
def equal_in_value(gold: str, answer: str) -> bool:
    """Return whether two LaTeX expressions in normal form (rewards/values.py) have the same value.

    Elements of a set may have any order, and an interval may be an inequality. False if either is not an expression or
    takes too long.
    """
    global _worker
    with _lock:
        if _worker is None or _worker.owner != os.getpid():
            _worker = Worker()
        found = _worker.ask(gold, answer, TIME_LIMIT)
        if found is None:
            _worker = None
        return bool(found)


# --------------------------------------------------------------------------------------------------------------- the worker


def serve() -> None:
    """Answer the questions of standard input, one line of JSON each, until it ends."""
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no reply
    import resource
    import warnings

    warnings.simplefilter("ignore")
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for line in sys.stdin:
        gold, answer, seconds = json.loads(line)
        own = resource.getrusage(resource.RUSAGE_SELF)
        until = math.ceil(own.ru_utime + own.ru_stime) + seconds
        resource.setrlimit(resource.RLIMIT_CPU, (until, resource.RLIM_INFINITY))
        try:
            found = _equal(gold, answer)
        except (MemoryError, RecursionError):
            found = False
        print(json.dumps(found), file=replies, flush=True)


def _equal(gold: str, answer: str) -> bool:
    from math_verify import LatexExtractionConfig, parse, verify
    from sympy import Basic, Or
    from sympy.core.relational import Relational
    from sympy.logic.boolalg import And

    def parsed(text: str) -> list:
        # Only LaTeX: math-verify's other reader takes a number out of a text that it cannot read.
        found = parse(f"${text}$", [LatexExtractionConfig()], parsing_timeout=None)  # pyright: ignore[reportArgumentType]
        for place, each in enumerate(found):  # `x < 1 or x > 2` is read as a set of two inequalities
            parts = each.args if isinstance(each, Basic) and type(each).__name__ == "FiniteSet" else ()
            inequalities = [part for part in parts if isinstance(part, (Relational, And))]
            if parts and len(inequalities) == len(parts) and len(each.free_symbols) == 1:
                found[place] = Or(*inequalities).as_set()
        return found

    left, right = parsed(gold), parsed(answer)
    return bool(verify(left, right, timeout_seconds=None, allow_set_relation_comp=True))


if __name__ == "__main__":
    serve()
