"""One process or many under torchrun: gloo on CPU, nccl on CUDA. Gradients are averaged by one flat all-reduce an update.

That is data parallelism without a wrapper: the networks here are called by several methods, which a DistributedDataParallel
module would not see, and a process with nothing to learn from (all advantages zero) still joins the sum. Every batch is drawn
whole, by the number of its step alone, and each process takes its share: what is learnt does not depend on how many they are.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

from training.watch import watch

PATIENCE = timedelta(
    hours=6
)  # of processes that wait while the first one evaluates; one that stops ends it (training/watch.py)
# What queues, terminals and launchers send to a run that should end (Windows has some of them).
STOPPING = [getattr(signal, name) for name in ("SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1") if hasattr(signal, name)]


@dataclass
class Processes:
    """rank: this one's number; world: how many there are; device: where this one computes.

    join: run before anything is exchanged; where the frozen model is sharded, it takes part in the others' forwards until all
    have come here (training/sharding.py). heard: the signal that told the run to stop; 0 before.
    """

    rank: int
    world: int
    device: torch.device
    join: Callable[[], None] | None = None
    heard: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """Replace the tensor by its sum over processes."""
        if self.world > 1:
            if self.join is not None:
                self.join()
            dist.all_reduce(tensor)
        return tensor

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace the tensors by their mean over processes."""
        if self.world == 1:
            return
        flat = self.sum_(_flatten_dense_tensors(tensors))
        flat /= self.world
        for tensor, mean in zip(tensors, _unflatten_dense_tensors(flat, tensors), strict=True):
            tensor.copy_(mean)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each value over processes."""
        if self.world == 1:
            return values
        flat = self.sum_(torch.tensor(list(values.values()), dtype=torch.float64, device=self.device))
        return dict(zip(values, (flat / self.world).tolist(), strict=True))

    def moments(self, values: Tensor) -> tuple[float, Tensor, Tensor]:
        """(how many a process has on average, their mean, their standard deviation) of all processes' values, [N] here."""
        total = torch.stack((values.new_tensor(float(len(values))).double(), values.double().sum()))
        count, whole = self.sum_(total)
        mean = whole / count.clamp(min=1)
        squares = self.sum_((values.double() - mean).square().sum())
        deviation = (squares / count.clamp(min=1)).sqrt()
        return float(count) / self.world, mean.to(values.dtype), deviation.to(values.dtype)

    def everywhere(self, values: Tensor) -> Tensor:
        """Rows of all processes, in the order of the batch; each has as many, `values` here."""
        if self.world == 1:
            return values
        whole = values.new_zeros(self.world, *values.shape)
        whole[self.rank] = values
        return self.sum_(whole).flatten(0, 1)  # what the others hold is zero here, so that the sum is exact

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in the order of their numbers: names, lists of strings."""
        if self.world == 1:
            return [value]
        if self.join is not None:
            self.join()
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: str) -> str:
        """The first process's string, everywhere."""
        box = [value]
        if self.world > 1:
            if self.join is not None:
                self.join()
            dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait for the others: gloo aborts a process whose peer has left."""
        self.sum_(torch.zeros(1, device=self.device))

    def share(self, batch: int, what: str) -> int:
        """This process's part of a global batch: how many rows."""
        if batch < 1:
            raise ValueError(f"{what}={batch} must be at least 1")
        if batch % self.world:
            raise ValueError(
                f"{what}={batch} is not divisible by the {self.world} processes; choose a multiple of {self.world}"
            )
        return batch // self.world

    def part(self, batch: int) -> slice:
        """This process's part of a batch of so many rows: which."""
        size = batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def stop_asked(self) -> bool:
        """Whether any process was told to stop: all hear the same answer, and the same signal."""
        told = self.gather_numbers(int(self.heard))
        if number := max(told):
            self.heard = number
        return bool(number)

    def gather_numbers(self, number: int) -> list[int]:
        """The number that each process has."""
        found = torch.zeros(self.world, device=self.device)
        found[self.rank] = number
        return [int(one) for one in self.sum_(found).tolist()]

    def hear(self, number: int, *_) -> None:
        """A signal that asks the run to end: it does after its iteration, saved. Launchers may send it twice; whoever presses
        Ctrl-C twice at a run of one process does not wait for the save."""
        if self.heard == number == signal.SIGINT and self.world == 1:
            raise KeyboardInterrupt
        if self.first and not self.heard:
            os.write(2, f"{signal.Signals(number).name}: the run saves and ends after this iteration\n".encode())
        self.heard = self.heard or number


def device_of_rank(device: str, world: int, local: int) -> torch.device:
    """The device of one of `world` processes, the `local`-th of its machine: a card of its own on CUDA.

    Raises:
        ValueError: several processes for one card.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if world > 1 and kind.startswith("cuda:"):
        raise ValueError(
            f"device={device} names one card for {world} processes; use device=cuda, which gives each process a card of its own"
        )
    if kind == "cuda" and local >= (cards := torch.cuda.device_count()):
        raise ValueError(
            f"device={device} gives each process a card of its own, and this machine has {cards} for more processes; start at "
            f"most {cards} on it, or use device=cpu"
        )
    return torch.device(f"cuda:{local}" if kind == "cuda" else kind)


ALONE = Processes(0, 1, torch.device("cpu"))


@contextmanager
def processes(device: str = "auto", saves: bool = True):
    """Join the process group that torchrun describes, or be the only process; leave it at the end.

    `device`: auto (CUDA where there is one), cpu, cuda, or one of several (cuda:1) for a single process. saves: the signals of
    `STOPPING` are heard meanwhile, for a loop that asks `stop_asked` and saves; else they end the process at once, as they do by
    default.
    """
    world, rank, local = (int(os.environ.get(name, default)) for name, default in
                          (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))  # fmt: skip
    where = device_of_rank(device, world, local)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    watching = None
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if where.type == "cuda" else "gloo", timeout=PATIENCE)
        watching = watch(rank, world)
    group = Processes(rank, world, where)
    before = {number: signal.signal(number, group.hear) for number in STOPPING} if saves else {}
    try:
        yield group
        group.barrier()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if watching is not None:
            watching.stop()
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()
