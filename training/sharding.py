"""A frozen network whose blocks are split over the processes (FSDP2); each block is gathered only while it runs.

A rollout takes as many forward passes as its rows need, so processes have different numbers of them. Before each forward
pass the processes exchange who needs one. A process without one, because its rows are finished, runs the network on one
token, so that the others get its part of the weights. This ends when all processes have reached the next exchange. Outputs
equal those of the whole network, bit for bit.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from model.radd import Block
from training.processes import Processes


def shard(network: nn.Module, blocks: nn.ModuleList, forward: str, example: tuple, processes: Processes) -> None:
    """Split `blocks` of `network` over the processes; everything else stays whole on each process's device.

    Args:
        forward: the method, a function of tensors, that runs each block once.
        example: the smallest arguments of `forward`.

    Raises:
        ValueError: there is only one process.
    """
    if processes.world == 1:
        raise ValueError(
            "model.sharded=true splits the model over processes and there is one; start several "
            "(torchrun --nproc-per-node N), or leave it out"
        )
    mesh = init_device_mesh(processes.device.type, (processes.world,))
    for block in blocks:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
        if isinstance(block, Block):  # the last block may run at some positions only
            register_fsdp_forward_method(block, "at")
    whole = set(network.parameters()) - set(blocks.parameters())
    for parameter in whole:
        parameter.data = parameter.data.to(processes.device)
    fully_shard(
        network, mesh=mesh, ignored_params=whole
    )  # the root: lets a block's weights come while the one before runs
    register_fsdp_forward_method(network, forward)
    run = getattr(network, forward)

    def anybody(here: bool) -> bool:
        count = torch.tensor([float(here)], device=processes.device)
        dist.all_reduce(count)
        return float(count) > 0

    def in_step(*arguments, **settings) -> Tensor:
        anybody(True)
        return run(*arguments, **settings)

    @torch.no_grad()
    def join() -> None:
        while anybody(False):
            run(*example)

    setattr(network, forward, in_step)
    processes.join = join
