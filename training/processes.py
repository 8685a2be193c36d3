"""One process or many under torchrun: gloo on CPU, nccl on CUDA. Gradients are averaged by one flat all-reduce per update.

This is data parallelism without a wrapper. The networks are called by several methods, which a DistributedDataParallel
module would not see, and a process without rows to learn from (all advantages zero) still joins the sum. Every batch is
drawn as a whole, from the number of its step only, and each process takes its share, so the result does not depend on the
number of processes.
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
    """The processes of a run. rank: number of this one; world: number of processes; device: of this one.

    join: is called before every exchange. If the frozen model is sharded, it takes part in the others' forward passes until
    all have arrived (training/sharding.py). heard: the received signal that stops the run; 0 before.
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
        """Return the mean of each value over processes."""
        if self.world == 1:
            return values
        flat = self.sum_(torch.tensor(list(values.values()), dtype=torch.float64, device=self.device))
        return dict(zip(values, (flat / self.world).tolist(), strict=True))

    def moments(self, values: Tensor) -> tuple[float, Tensor, Tensor]:
        """Return (mean number of values per process, their mean, their standard deviation) over the values of all processes;
        `values` are those of this process."""
        total = torch.stack((values.new_tensor(float(len(values))).double(), values.double().sum()))
        count, whole = self.sum_(total)
        mean = whole / count.clamp(min=1)
        squares = self.sum_((values.double() - mean).square().sum())
        deviation = (squares / count.clamp(min=1)).sqrt()
        return float(count) / self.world, mean.to(values.dtype), deviation.to(values.dtype)

    def everywhere(self, values: Tensor) -> Tensor:
        """Return the rows of all processes, in the order of the batch. `values` are the rows of this process; every process
        has equally many."""
        if self.world == 1:
            return values
        whole = values.new_zeros(self.world, *values.shape)
        whole[self.rank] = values
        return self.sum_(whole).flatten(0, 1)  # what the others hold is zero here, so that the sum is exact

    def gather(self, value: Any) -> list[Any]:
        """Return each process's value, in the order of ranks: names, lists of strings."""
        if self.world == 1:
            return [value]
        if self.join is not None:
            self.join()
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, value)
        return found

    def broadcast(self, value: str) -> str:
        """Return the first process's string, in all processes."""
        box = [value]
        if self.world > 1:
            if self.join is not None:
                self.join()
            dist.broadcast_object_list(box)
        return box[0]

    def barrier(self) -> None:
        """Wait for all processes: gloo aborts a process whose peer has left."""
        self.sum_(torch.zeros(1, device=self.device))

    def share(self, batch: int, what: str) -> int:
        """Return the number of rows of this process's part of a global batch."""
        if batch < 1:
            raise ValueError(f"{what}={batch} must be at least 1")
        if batch % self.world:
            raise ValueError(
                f"{what}={batch} is not divisible by the {self.world} processes; choose a multiple of {self.world}"
            )
        return batch // self.world

    def part(self, batch: int) -> slice:
        """Return the slice of this process's part of a batch."""
        size = batch // self.world
        return slice(self.rank * size, (self.rank + 1) * size)

    def stop_requested(self) -> bool:
        """Return whether any process received a stop signal. All processes get the same answer, and the same signal."""
        signals = self.gather_numbers(int(self.heard))
        if number := max(signals):
            self.heard = number
        return bool(number)

    def gather_numbers(self, number: int) -> list[int]:
        """Return the number of each process."""
        found = torch.zeros(self.world, device=self.device)
        found[self.rank] = number
        return [int(one) for one in self.sum_(found).tolist()]

    def hear(self, number: int, *_) -> None:
        """Handle a signal that ends the run: remember it, so that the run saves and ends after its current iteration.

        Launchers may send the signal twice. A second Ctrl-C at a run of one process ends it without a save.
        """
        if self.heard == number == signal.SIGINT and self.world == 1:
            raise KeyboardInterrupt
        if self.first and not self.heard:
            os.write(2, f"{signal.Signals(number).name}: the run saves and ends after this iteration\n".encode())
        self.heard = self.heard or number


def device_of_rank(device: str, world: int, local: int) -> torch.device:
    """Return the device of one of `world` processes, number `local` on its machine: its own GPU on CUDA.

    Raises:
        ValueError: several processes would share one GPU.
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
    """Context manager: join the process group that torchrun describes, or be the only process; leave it at the end.

    Args:
        device: auto (CUDA if there is one), cpu, cuda, or one of several (cuda:1) for a single process.
        saves: handle the signals of `STOPPING` for a loop that checks `stop_requested` and saves; otherwise they end the
            process at once.
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
