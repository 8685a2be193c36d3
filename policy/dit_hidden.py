"""`dit_hidden`: a newly initialized block of the frozen model's own kind on its last hidden states.

The hidden-state policy of "Learning Unmasking Policies for Diffusion Language Models" (arXiv 2512.09106): 302.6M parameters
for LLaDA-8B; in the paper an ablation that is worse and less stable than the confidence policy. Published weights load
(`policy.checkpoints`). What differs: it also fits Dream, whose block has biases and fewer key heads, and with given block
sizes any model with hidden states; an optional value head serves PPO.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dlm.masked_lm import MaskedLM
from model.layers import Layers
from model.llama import BidirectionalLlama, LlamaBlock, LlamaShape, RowByRow, Span
from policy.base import PolicyNetwork
from policy.conditions import AlphaEmbedding, alpha_input, mean_over, time_features, time_mlp, zero_


def block_sizes(model: MaskedLM) -> dict:
    """Return the sizes of the model's own blocks, as arguments of `DitHidden`; {} for models that are not bidirectional
    Llamas.
    """
    if not isinstance(model.backbone, BidirectionalLlama):
        return {}
    shape = model.backbone.shape
    return {"num_heads": shape.heads, "key_heads": shape.key_heads, "mlp_size": shape.mlp, "theta": shape.theta,
            "eps": shape.eps, "biases": shape.biases}  # fmt: skip


class DitHidden(PolicyNetwork):
    """Blocks on the hidden states of the response. Mask and time scale and shift the layer norms before each block and
    before the head.

    Args:
        hidden_size: width of the model's hidden states, and of this network.
        num_heads, mlp_size: of the block; also key_heads (default: num_heads), theta, eps, biases. `block_sizes` returns
            the model's.
        num_blocks, time_embed_dim, time_period, smart_init, value_head, alpha_conditioned: as in `DitConfidence`.
    """

    policy_type = "dit_hidden"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        mlp_size: int,
        key_heads: int | None = None,
        theta: float | int = 500_000.0,
        eps: float = 1e-5,
        biases: bool = False,
        num_blocks: int = 1,
        time_embed_dim: int = 128,
        time_period: float | int = 1,
        smart_init: float | int | None = None,
        value_head: bool = False,
        alpha_conditioned: bool = False,
    ):
        super().__init__()
        shape = LlamaShape(hidden_size, num_blocks, num_heads, key_heads or num_heads, mlp_size, 0, theta, eps, biases)
        self.hidden_size, self.head_width, self.theta = hidden_size, hidden_size // num_heads, theta
        self.time_embed_dim, self.time_period = time_embed_dim, time_period
        self.mask_embedding = nn.Embedding(2, hidden_size)
        self.time_mlp = time_mlp(time_embed_dim, hidden_size)
        self.transformer_blocks = nn.ModuleList(LlamaBlock(shape) for _ in range(num_blocks))
        self.norms = nn.ModuleList(
            nn.LayerNorm(hidden_size) for _ in range(num_blocks + 1)
        )  # the last: before the head
        self.ada_linears: Layers[nn.Linear] = Layers(
            nn.Linear(hidden_size, 2 * hidden_size) for _ in range(num_blocks + 1)
        )
        self.output_proj = nn.Linear(hidden_size, 1)
        self.value_proj = nn.Linear(hidden_size, 1) if value_head else None
        self.alpha_embedding = AlphaEmbedding(hidden_size) if alpha_conditioned else None
        if smart_init is not None:
            for layer in self.ada_linears:
                zero_(layer)
            nn.init.constant_(self.output_proj.bias, smart_init)

    @torch.no_grad()
    def inputs(self, observation, everywhere: bool = False) -> dict[str, Tensor]:
        """Return the inputs of `forward` for an observation, as keyword arguments; safe to store and replay.

        Hidden states are stored in the precision of the model. They take nearly all the memory of a rollout. everywhere: for
        networks with a masking channel; this one has none, so it changes nothing.
        """
        hidden = observation.hidden(torch.ones_like(observation.masked)).to(observation.environment.model.dtype)
        inputs = {"masked": observation.masked, "time": observation.time, "hidden": hidden}
        return inputs | alpha_input(self, observation)

    def angles(self, length: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of the positions, in float32."""
        half = self.head_width // 2
        frequency = self.theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(length, device=device, dtype=torch.float32), frequency)
        return angle.cos(), angle.sin()

    def trunk(
        self,
        masked: Bool[Tensor, "row position"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position width"],
        alpha: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position width"]:
        of_row = self.time_mlp(time_features(time, self.time_embed_dim, self.time_period))
        if self.alpha_embedding is not None:
            assert alpha is not None
            of_row = of_row + self.alpha_embedding(alpha)
        condition = self.mask_embedding(masked.long()) + of_row[:, None]
        rows, length = masked.shape
        cos, sin = self.angles(length, masked.device)
        turn, whole = (cos.repeat(rows, 1), sin.repeat(rows, 1)), RowByRow([Span(list(range(rows)), 0, 0, length)])
        x = hidden.float()
        for number, (norm, ada) in enumerate(zip(self.norms, self.ada_linears, strict=True)):
            scale, shift = ada(condition).chunk(2, dim=-1)
            x = norm(x) * (1 + scale) + shift
            if rows and number < len(self.transformer_blocks):  # a process with nothing to learn from has no rows
                x = self.transformer_blocks[number](x.flatten(0, 1), turn, whole).unflatten(0, (rows, length))
        return x

    def forward(
        self,
        masked: Bool[Tensor, "row position"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position width"],
        alpha: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position"]:
        """Return the unmasking logit of every position."""
        return self.output_proj(self.trunk(masked, time, hidden, alpha)).squeeze(-1)

    def forward_with_value(
        self,
        masked: Bool[Tensor, "row position"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position width"],
        alpha: Float[Tensor, "row"] | None = None,
    ) -> tuple[Float[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return logits, and the value of the state: a linear function of the trunk's mean over the masked positions."""
        if self.value_proj is None:
            raise ValueError("value_head is False but a value was requested; build the policy with value_head=True")
        x = self.trunk(masked, time, hidden, alpha)
        return self.output_proj(x).squeeze(-1), self.value_proj(mean_over(x, masked)).squeeze(-1)
