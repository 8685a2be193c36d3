"""AdamW with linear warm-up, gradient clipping, and an exponential moving average of the weights.

The average has RADD's format: `{decay, num_updates, shadow_params}`, the list in `parameters()` order, and a decay that
starts low, min(decay, (1 + n) / (10 + n)).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from training.settings import OptimSettings


class MovingAverage:
    """Shadow copies of the parameters that require a gradient."""

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float):
        if not 0 <= decay <= 1:
            raise ValueError(f"training.ema={decay} must be between 0 and 1")
        self.decay, self.num_updates = decay, 0
        self.shadow_params = [p.detach().clone() for p in parameters if p.requires_grad]

    @torch.no_grad()
    def update(self, parameters: Iterable[nn.Parameter]) -> None:
        self.num_updates += 1
        decay = min(self.decay, (1 + self.num_updates) / (10 + self.num_updates))
        torch._foreach_lerp_(self.shadow_params, [p.detach() for p in parameters if p.requires_grad], 1 - decay)

    @torch.no_grad()
    def copy_to(self, parameters: Iterable[nn.Parameter]) -> None:
        for shadow, parameter in zip(self.shadow_params, (p for p in parameters if p.requires_grad), strict=True):
            parameter.copy_(shadow)

    def state_dict(self) -> dict:
        return {"decay": self.decay, "num_updates": self.num_updates, "shadow_params": self.shadow_params}

    def load_state_dict(self, state: dict) -> None:
        self.decay, self.num_updates = state["decay"], state["num_updates"]
        for average, saved in zip(self.shadow_params, state["shadow_params"], strict=True):
            average.copy_(saved)


class Optimiser:
    """AdamW with linear warm-up, clipping, and optionally a linear or cosine decay to zero over `total` steps. One `step`
    per update.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], config: OptimSettings, total: int):
        self.parameters = [p for p in parameters if p.requires_grad]
        self.adamw = torch.optim.AdamW(
            self.parameters,
            lr=config.lr,
            betas=(config.betas[0], config.betas[1]),
            eps=config.eps,
            weight_decay=config.weight_decay,
        )
        self.config, self.total = config, total

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of update number `step`, counted from 0."""
        warm = min(1.0, (step + 1) / self.config.warmup) if self.config.warmup else 1.0
        if self.config.schedule == "linear":
            warm *= max(0.0, 1 - step / self.total)
        if self.config.schedule == "cosine":
            warm *= 0.5 * (1 + float(torch.cos(torch.tensor(torch.pi * min(1.0, step / self.total)))))
        return self.config.lr * warm

    def step(self, step: int) -> dict[str, float]:
        """Clip, update, and clear the gradients. Returns the learning rate and the gradient norm before clipping.

        A gradient that is not finite leaves the weights unchanged. The norm shows it, and Run.check stops the run.
        """
        norm = nn.utils.clip_grad_norm_(self.parameters, self.config.grad_clip)
        for group in self.adamw.param_groups:
            group["lr"] = self.learning_rate(step)
        if bool(norm.isfinite()):
            self.adamw.step()
        self.adamw.zero_grad(set_to_none=True)
        return {"lr": self.learning_rate(step), "grad_norm": float(norm)}

    @staticmethod
    def gradients(parameters: list[nn.Parameter]) -> list[Tensor]:
        """Return one gradient per parameter; zero for a parameter that took no part."""
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        return gradients
