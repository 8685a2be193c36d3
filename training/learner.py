"""A network that learns, with what it needs for an update."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from training.optim import MovingAverage, Optimiser
from training.processes import Processes


@dataclass
class Learner:
    """The network, its optimiser and its moving average; one `update` averages gradients over processes and steps."""

    network: nn.Module
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
