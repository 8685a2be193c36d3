"""One process or many under torchrun: gloo on CPU, nccl on CUDA. Gradients are averaged by one flat all-reduce an update.

That is data parallelism without a wrapper: the networks here are called by several methods, which a DistributedDataParallel
module would not see, and a process with nothing to learn from (all advantages zero) still joins the sum.
"""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors


@dataclass(frozen=True)
class Processes:
    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def average_(self, tensors: list[Tensor]) -> None:
        """Replace the tensors by their mean over processes."""
        if self.world == 1:
            return
        flat = _flatten_dense_tensors(tensors)
        dist.all_reduce(flat)
        flat /= self.world
        for tensor, mean in zip(tensors, _unflatten_dense_tensors(flat, tensors), strict=True):
            tensor.copy_(mean)

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Mean of each value over processes."""
        if self.world == 1:
            return values
        flat = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        if self.device.type == "cuda":
            flat = flat.float()
        dist.all_reduce(flat)
        return dict(zip(values, (flat / self.world).tolist(), strict=True))

    def broadcast(self, value: str) -> str:
        """The first process's string, everywhere."""
        box = [value]
        if self.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def share(self, batch: int, what: str) -> int:
        """This process's part of a global batch."""
        if batch < 1:
            raise ValueError(f"{what}={batch} must be at least 1")
        if batch % self.world:
            raise ValueError(
                f"{what}={batch} is not divisible by the {self.world} processes; choose a multiple of {self.world}"
            )
        return batch // self.world


@contextmanager
def processes(device: str = "auto"):
    """Join the process group that torchrun describes, or be the only process; leave it at the end.

    `device`: auto (CUDA where there is one), cpu, cuda.
    """
    kind = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    world, rank, local = (int(os.environ.get(name, default)) for name, default in
                          (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))  # fmt: skip
    where = torch.device(f"cuda:{local}" if kind == "cuda" else kind)
    if kind == "cuda":
        torch.cuda.set_device(where)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo")
    try:
        yield Processes(rank, world, where)
        if world > 1:
            dist.barrier()  # gloo aborts a process whose peer has left
    finally:
        if world > 1 and dist.is_initialized():
            dist.destroy_process_group()
