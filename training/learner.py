"""A network in training, with its optimizer and moving average."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from training.optim import MovingAverage, Optimiser
from training.processes import Processes
from training.settings import OptimSettings

Network = TypeVar("Network", bound=nn.Module)


@dataclass
class Learner(Generic[Network]):
    """The network, its optimiser and its moving average; one `update` averages gradients over processes and steps."""

    network: Network
    optimiser: Optimiser
    average: MovingAverage
    processes: Processes
    updates: int = 0

    def update(self) -> dict[str, float]:
        self.processes.average_(Optimiser.gradients(self.optimiser.parameters))
        metrics = self.optimiser.step(self.updates)
        self.average.update(self.network.parameters())
        self.updates += 1
        return metrics

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Context manager: the network has the moving average of its weights inside the block."""
        parameters = self.optimiser.parameters
        own = [parameter.detach().clone() for parameter in parameters]
        self.average.copy_to(parameters)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, own, strict=True):
                    parameter.copy_(value)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer and of the moving average, by their keys in a checkpoint."""
        return {"optimizer": self.optimiser.adamw.state_dict(), "ema": self.average.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state from a checkpoint. A checkpoint without `updates` has one update per iteration."""
        self.optimiser.adamw.load_state_dict(state["optimizer"])
        self.average.load_state_dict(state["ema"])
        self.updates = state.get("updates", state["step"])


def new_learner(
    network: Network, optim: OptimSettings, updates: int, ema: float, processes: Processes
) -> Learner[Network]:
    """Return a learner of the parameters that require a gradient.

    Args:
        optim: settings of the optimiser (`Optimiser`).
        updates: of the whole run, over which the learning rate decays.
        ema: decay of the moving average.
    """
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    return Learner(network, Optimiser(parameters, optim, updates), MovingAverage(parameters, ema), processes)
