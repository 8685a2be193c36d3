"""Detection of a stopped process of the group, and the end of the others.

A process that dies closes its connections, which the others notice at once. A process that is stopped, or whose machine is
lost, closes nothing, and the others would wait as long as an evaluation in the first process may take (hours). Therefore
each process increments a counter in the store that formed the group. If a counter stands still for SILENCE seconds, every
process that notices it ends.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import torch.distributed as dist

from training.launcher import tell_launcher

BEAT = 10.0  # seconds between two counts
SILENCE = 300.0  # seconds after which a process counts as stopped; more than any call that keeps Python's other threads waiting


@runtime_checkable
class Counts(Protocol):
    """Interface of a store: add to a number that all processes see, and return it."""

    def add(self, key: str, amount: int, /) -> int: ...


class Silence:
    """Number of consecutive reads at which the counters of the other processes have not changed."""

    def __init__(self, rank: int, world: int):
        self.others = [other for other in range(world) if other != rank]
        self.counts, self.looks = dict.fromkeys(self.others, -1), dict.fromkeys(self.others, 0)

    def look(self, counts: dict[int, int]) -> dict[int, int]:
        """Record the current counters. Return, for each counter, the number of reads without a change."""
        for other in self.others:
            now = counts.get(other, self.counts[other])
            self.looks[other] = 0 if now != self.counts[other] else self.looks[other] + 1
            self.counts[other] = now
        return self.looks


class Watch:
    """Two threads of one process: one increments and reads counters, which a lost store may delay; the other one compares
    them. `stop` ends both."""

    def __init__(self, store: Counts, rank: int, world: int, end: Callable[[str], None], beat: float = BEAT,
                 silence: float = SILENCE):  # fmt: skip
        self.store, self.rank, self.world, self.end = store, rank, world, end
        self.beat, self.silence = beat, silence
        self.counts: dict[int, int] = {}
        self.over = threading.Event()
        for work in (self._count, self._judge):
            threading.Thread(target=work, daemon=True).start()

    def stop(self) -> None:
        """End both threads: the work of the group is done."""
        self.over.set()

    def _count(self) -> None:
        while not self.over.is_set():
            try:
                self.store.add(f"{prefix()}{self.rank}", 1)
                self.counts = {other: self.store.add(f"{prefix()}{other}", 0) for other in range(self.world)}
            except RuntimeError:  # the store's process has ended, which connections show: there is nothing to judge
                self.over.set()
            self.over.wait(self.beat)

    def _judge(self) -> None:
        silence = Silence(self.rank, self.world)
        while not self.over.wait(self.beat):
            still = {other: looks for other, looks in silence.look(self.counts).items()
                     if looks * self.beat >= self.silence}  # fmt: skip
            if still:
                names = ", ".join(map(str, still))
                self.end(
                    f"process {names} of {self.world} has not answered process {self.rank} for {self.silence:.0f} s: it is "
                    "stopped, or its machine is gone; start the run again with resume=RUN, which goes on from its last save"
                )
                return


def prefix() -> str:
    """Return the key prefix of this start of the group: a launcher may restart it in the same store."""
    return f"unmask/beat/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/"


def leave(message: str) -> None:
    """End this process, whose main thread waits for a connection that will not answer."""
    print(f"error: {message}", file=sys.stderr, flush=True)
    tell_launcher(f"error: {message}")
    os._exit(1)


def watch(rank: int, world: int) -> Watch:
    """Watch the process group at the address in MASTER_ADDR and MASTER_PORT."""
    address = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return Watch(dist.TCPStore(*address, is_master=False, wait_for_workers=False), rank, world, leave)
