"""Common parts of policy networks: the condition of a row (time, weight of speed), how often positions were opened again, and
the pooled input of a value head."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dlm.observation import Observation


def time_features(time: Float[Tensor, "row"], width: int, period: float | int) -> Float[Tensor, "row width"]:
    """Return cosines and sines of the time in [0, 1], rounded to bfloat16 as in the published networks."""
    half = width // 2
    frequency = torch.exp(-math.log(period) * torch.arange(half, device=time.device).float() / half)
    angle = time.float()[:, None] * frequency
    return torch.cat([angle.cos(), angle.sin()], dim=-1).bfloat16().float()


def time_mlp(time_embed_dim: int, width: int) -> nn.Sequential:
    """Build the network from `time_features` to the condition."""
    if time_embed_dim % 2:
        raise ValueError(f"time_embed_dim {time_embed_dim} must be even (cosines and sines); add or take one")
    return nn.Sequential(nn.Linear(time_embed_dim, width), nn.SiLU(), nn.Linear(width, width))


class AlphaEmbedding(nn.Sequential):
    """Maps alpha, the weight of speed, to a vector that is added to the condition, so that one policy serves many weights.

    It starts at zero, so that training continues from a policy without this input.
    """

    def __init__(self, width: int, inner: int = 32):
        super().__init__(nn.Linear(1, inner), nn.SiLU(), nn.Linear(inner, width))
        for parameter in self[2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, alpha: Float[Tensor, "row"]) -> Float[Tensor, "row width"]:
        return super().forward(alpha.float().log1p()[:, None])


def alpha_input(network, observation) -> dict[str, Tensor]:
    """Return {"alpha": one value per row} for a network that reads alpha, otherwise {}. ValueError if the observation has no
    alpha."""
    if network.alpha_embedding is None:
        return {}
    if observation.alpha is None:
        raise ValueError(
            "this policy was trained for many weights of speed and needs one: sampler.alpha=1, or --alpha 1"
        )
    return {"alpha": observation.alpha}


def zero_(layer: nn.Linear) -> None:
    """Set weights and bias to zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def mean_over(
    x: Float[Tensor, "row position width"], masked: Bool[Tensor, "row position"]
) -> Float[Tensor, "row width"]:
    """Return the mean of the vectors at the masked positions; zero for a row without any."""
    return (x * masked[..., None]).sum(dim=1) / masked.sum(dim=1).clamp(min=1)[:, None]


def revision_inputs(network, observation: Observation) -> dict[str, Tensor]:
    """Return, for a network that revises, the committed positions that it may open again and how often each position was
    opened again; otherwise {}.
    """
    if not network.revises:
        return {}
    revisable, reopened = observation.revisable, observation.reopened
    if revisable is None or reopened is None:  # decoding without revision
        revisable, reopened = torch.zeros_like(observation.masked), torch.zeros_like(observation.tokens)
    return {"revisable": revisable, "reopened": reopened}
