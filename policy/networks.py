"""Policy networks: from a frozen model's outputs on a canvas to one unmasking logit per position.

`DitConfidence` is the confidence policy of "Learning Unmasking Policies for Diffusion Language Models" (arXiv 2512.09106,
its `dit_confidence`); `HiddenMLP` is the hidden-state policy of sjchen0/genpolicy. Published checkpoints of both load
unmodified (`policy.checkpoints`). What differs: confidences at committed positions are zeros unless `read_all` (the
published confidence policy reads them, which costs a head product at every committed position); an optional value head
serves PPO.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from model.layers import Layers
from model.radd import RADD, Block, Rotary
from policy.base import PolicyNetwork
from policy.conditions import AlphaEmbedding, alpha_input, mean_over, time_features, time_mlp, zero_


class DitBlock(nn.Module):
    """Pre-norm transformer block; the condition (mask and time) scales, shifts and gates it at each position."""

    inv_freq: Tensor

    def __init__(self, hidden_dim: int, feedforward_dim: int, num_heads: int):
        super().__init__()
        head_dim = hidden_dim // num_heads
        self.num_heads = num_heads
        self.ada_conditioning = nn.Linear(hidden_dim, 6 * hidden_dim)
        self.q_proj = nn.Linear(hidden_dim, hidden_dim)
        self.k_proj = nn.Linear(hidden_dim, hidden_dim)
        self.v_proj = nn.Linear(hidden_dim, hidden_dim)
        self.out_proj = nn.Linear(hidden_dim, hidden_dim)
        self.linear1 = nn.Linear(hidden_dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, hidden_dim)
        self.norm1 = nn.LayerNorm(hidden_dim)
        self.norm2 = nn.LayerNorm(hidden_dim)
        # Persistent because the published checkpoints hold it.
        self.register_buffer("inv_freq", 10000.0 ** (-torch.arange(0, head_dim, 2).float() / head_dim))

    def rotate(self, heads: Float[Tensor, "row head position width"]) -> Float[Tensor, "row head position width"]:
        """Apply the rotary embedding to (even, odd) pairs. The result keeps them as two halves; queries and keys agree, so
        products are unchanged.
        """
        angle = torch.arange(heads.shape[-2], device=heads.device).float()[:, None] * self.inv_freq
        even, odd = heads[..., 0::2], heads[..., 1::2]
        return torch.cat([even * angle.cos() - odd * angle.sin(), even * angle.sin() + odd * angle.cos()], dim=-1)

    def attention(self, x: Float[Tensor, "row position width"]) -> Float[Tensor, "row position width"]:
        query, key, value = (
            projection(x).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
            for projection in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = F.scaled_dot_product_attention(self.rotate(query), self.rotate(key), value)
        return self.out_proj(mixed.transpose(1, 2).flatten(-2))

    def forward(
        self, x: Float[Tensor, "row position width"], condition: Float[Tensor, "row position width"]
    ) -> Float[Tensor, "row position width"]:
        scale1, shift1, gate1, scale2, shift2, gate2 = self.ada_conditioning(condition).chunk(6, dim=-1)
        # Gates are 1 + alpha: with a zeroed ada_conditioning this is a plain block, not adaLN-Zero's identity.
        x = x + (1 + gate1) * self.attention(self.norm1(x) * (1 + scale1) + shift1)
        feedforward = self.linear2(F.gelu(self.linear1(self.norm2(x) * (1 + scale2) + shift2)))
        return x + (1 + gate2) * feedforward


class DitConfidence(PolicyNetwork):
    """One transformer block over the model's confidences; mask and time enter through adaptive layer norms only.

    331,265 parameters at the defaults; state-dict names are the published ones without their `base_policy.` prefix.

    Args:
        hidden_dim, feedforward_dim, num_heads, num_blocks, time_embed_dim: sizes.
        confidences_top_p: number of largest probabilities per position that are inputs.
        time_period: longest period of the time embedding. At the published default of 1 every frequency is 1.
        smart_init: initial logit. The ada layers start at zero and the head's bias at this value, so that about
            `sigmoid(smart_init)` of the selectable positions are committed in the first steps (published: -2). None:
            torch's initialization.
        read_all: also read confidences at committed positions, as the published policies do.
        value_head: add a scalar value (for PPO), returned by `forward_with_value`.
        repulsion: learn how much a selected position lowers the others of its step, at distances 1 to this number
            (`actions.FixedCount`); 0: none.
        hidden_size: width of the model's hidden states, which are then read at every position and added to the confidences
            by a projection (`policy=dit_projection`); 0: not read, and the policy fits any model.
        alpha_conditioned: the weight of speed is part of the condition (set by training with reward.alphas).
    """

    policy_type = "dit_confidence"

    def __init__(
        self,
        hidden_dim: int = 128,
        feedforward_dim: int = 512,
        num_heads: int = 2,
        time_embed_dim: int = 128,
        confidences_top_p: int = 1,
        num_blocks: int = 1,
        time_period: float | int = 1,
        smart_init: float | int | None = None,
        read_all: bool = False,
        value_head: bool = False,
        repulsion: int = 0,
        hidden_size: int = 0,
        alpha_conditioned: bool = False,
    ):
        super().__init__()
        if hidden_dim % (2 * num_heads):
            raise ValueError(
                f"hidden_dim {hidden_dim} must be a multiple of 2 * num_heads = {2 * num_heads}; change one of them"
            )
        self.confidences_top_p = confidences_top_p
        self.time_embed_dim = time_embed_dim
        self.time_period = time_period
        self.read_all = read_all
        self.hidden_size = hidden_size
        self.confidence_proj = nn.Linear(confidences_top_p, hidden_dim)
        self.mask_embedding = nn.Embedding(2, hidden_dim)
        self.time_mlp = time_mlp(time_embed_dim, hidden_dim)
        self.transformer_blocks: Layers[DitBlock] = Layers(
            DitBlock(hidden_dim, feedforward_dim, num_heads) for _ in range(num_blocks)
        )
        self.final_norm = nn.LayerNorm(hidden_dim)
        self.output_proj = nn.Linear(hidden_dim, 1)
        self.value_proj = nn.Linear(hidden_dim, 1) if value_head else None
        self.repulsion = nn.Parameter(torch.zeros(repulsion)) if repulsion else None
        self.hidden_norm = nn.LayerNorm(hidden_size) if hidden_size else None
        self.hidden_proj = nn.Linear(hidden_size, hidden_dim) if hidden_size else None
        self.alpha_embedding = AlphaEmbedding(hidden_dim) if alpha_conditioned else None
        if smart_init is not None:
            for block in self.transformer_blocks:
                zero_(block.ada_conditioning)
            nn.init.constant_(self.output_proj.bias, smart_init)

    @torch.no_grad()
    def inputs(self, observation, everywhere: bool = False) -> dict[str, Tensor]:
        """Return the inputs of `forward` for an observation, as keyword arguments; safe to store and replay.

        everywhere: for networks with a masking channel; this one has none, so it changes nothing.
        """
        everything = torch.ones_like(observation.masked)
        positions = everything if self.read_all else observation.masked
        # Requested first, so that confidences come from the same evaluation.
        hidden = {"hidden": observation.hidden(everything)} if self.hidden_size else {}
        readout = observation.read(positions=positions, best=self.confidences_top_p)
        # A readout holds anything outside `positions`.
        confidences = readout.top_log_probs.float().exp().masked_fill(~positions[..., None], 0.0)
        alpha = alpha_input(self, observation)
        return {"masked": observation.masked, "confidences": confidences, "time": observation.time} | hidden | alpha

    def trunk(
        self,
        masked: Bool[Tensor, "row position"],
        confidences: Float[Tensor, "row position best"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position hidden"] | None = None,
        alpha: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position width"]:
        of_row = self.time_mlp(time_features(time, self.time_embed_dim, self.time_period))
        if self.alpha_embedding is not None:
            assert alpha is not None
            of_row = of_row + self.alpha_embedding(alpha)
        condition = self.mask_embedding(masked.long()) + of_row[:, None]
        x = self.confidence_proj(confidences.float())
        if self.hidden_proj is not None and self.hidden_norm is not None:
            assert hidden is not None
            x = x + self.hidden_proj(self.hidden_norm(hidden.float()))
        for block in self.transformer_blocks:
            x = block(x, condition)
        return self.final_norm(x)

    def forward(
        self,
        masked: Bool[Tensor, "row position"],
        confidences: Float[Tensor, "row position best"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position hidden"] | None = None,
        alpha: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position"]:
        """Return the unmasking logit of every position, committed ones included.

        Args:
            confidences: probabilities, largest first.
            time: share of the allowed evaluations that is used.
        """
        return self.output_proj(self.trunk(masked, confidences, time, hidden, alpha)).squeeze(-1)

    def forward_with_value(
        self,
        masked: Bool[Tensor, "row position"],
        confidences: Float[Tensor, "row position best"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position hidden"] | None = None,
        alpha: Float[Tensor, "row"] | None = None,
    ) -> tuple[Float[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return logits, and the value of the state: a linear function of the trunk's mean over the masked positions."""
        if self.value_proj is None:
            raise ValueError("value_head is False but a value was requested; build the policy with value_head=True")
        x = self.trunk(masked, confidences, time, hidden, alpha)
        return self.output_proj(x).squeeze(-1), self.value_proj(mean_over(x, masked)).squeeze(-1)


class HiddenMLP(PolicyNetwork):
    """Two hidden layers on [hidden state; time] at each position separately; 444,290 parameters at width 768.

    Channel 0 scores the position for masking (the forward process of the variational bound), channel 1 for unmasking.
    Source: sjchen0/genpolicy, `PolicyNet`. Time is that of the masking process: after k of K steps (k / (K + 1)) **
    time_exponent. In sampling it is computed from the share of masked positions.
    """

    policy_type = "hidden_mlp"
    extensible = False  # its last layer has two channels, and it takes no value head

    def __init__(self, hidden_size: int = 768, time_exponent: float | int = 0.9):
        super().__init__()
        self.hidden_size, self.time_exponent = hidden_size, time_exponent
        half = hidden_size // 2
        self.mlp = nn.Sequential(
            nn.Linear(hidden_size + 1, half), nn.ReLU(), nn.Linear(half, half), nn.ReLU(), nn.Linear(half, 2)
        )

    @torch.no_grad()
    def inputs(self, observation, everywhere: bool = False) -> dict[str, Tensor]:
        """Return the inputs of `scores` for an observation, as keyword arguments; safe to store and replay.

        everywhere: also return hidden states of committed positions, which the masking channel needs; sampling needs masked
        positions only.
        """
        masks_left = observation.masked.sum(1) / observation.to_write.clamp(min=1)
        time = (masks_left * observation.steps / (observation.steps + 1)) ** self.time_exponent
        positions = torch.ones_like(observation.masked) if everywhere else observation.masked
        return {"hidden": observation.hidden(positions), "time": time}

    def forward(
        self, hidden: Float[Tensor, "row position width"], time: Float[Tensor, "row"]
    ) -> Float[Tensor, "row position 2"]:
        clock = time.float()[:, None, None].expand(*hidden.shape[:2], 1)
        return self.mlp(torch.cat([hidden.float(), clock], dim=-1))

    def scores(self, **inputs: Tensor) -> Float[Tensor, "row position"]:
        """Return channel 1: the unmasking logits."""
        return self(**inputs)[..., 1]

    @staticmethod
    def masking_log_probs(
        logits: Float[Tensor, "row position 2"], eligible: Bool[Tensor, "row position"]
    ) -> Float[Tensor, "row position"]:
        """Return the log-softmax of channel 0 over the eligible positions of each row, -inf elsewhere."""
        return _log_softmax_over(logits[..., 0], eligible)

    @staticmethod
    def unmasking_log_probs(
        logits: Float[Tensor, "row position 2"], eligible: Bool[Tensor, "row position"]
    ) -> Float[Tensor, "row position"]:
        """Return the log-softmax of channel 1 over the eligible positions of each row, -inf elsewhere."""
        return _log_softmax_over(logits[..., 1], eligible)


class HiddenBlocks(PolicyNetwork):
    """Copies of the frozen model's last blocks, trained on its hidden states to predict at which positions its best token is
    right.

    Close to the published `dit_hidden` (one newly initialized block). What differs: the blocks start as copies (`start_from`), so
    that they can use the positions from the first update; mask and time are added to the hidden states, through layers that start
    at zero; the head also reads log(p / (1 - p)) of the best token, and starts close to this value.

    Args:
        hidden_size, num_heads: those of the model (RADD); the network fits that model only.
        num_blocks: number of last blocks that are copied.
        time_embed_dim: width of the layer between the time and its contribution.
        smart_init: initial bias of the head; None: torch's initialization.
        value_head: add a scalar value (for PPO), returned by `forward_with_value`.
        alpha_conditioned: the weight of speed is added too (set by training with reward.alphas).
    """

    policy_type = "hidden_blocks"

    def __init__(
        self,
        hidden_size: int,
        num_heads: int,
        num_blocks: int = 2,
        time_embed_dim: int = 64,
        smart_init: float | int | None = None,
        value_head: bool = False,
        alpha_conditioned: bool = False,
    ):
        super().__init__()
        self.hidden_size, self.num_heads = hidden_size, num_heads
        self.mask_embedding = nn.Embedding(2, hidden_size)
        self.time_mlp = nn.Sequential(nn.Linear(1, time_embed_dim), nn.SiLU(), nn.Linear(time_embed_dim, hidden_size))
        self.rotary = Rotary(hidden_size // num_heads)
        self.blocks = nn.ModuleList(Block(hidden_size, num_heads, 0.0) for _ in range(num_blocks))
        self.final_norm = nn.LayerNorm(hidden_size)
        self.output_proj = nn.Linear(hidden_size + 1, 1)
        self.value_proj = nn.Linear(hidden_size, 1) if value_head else None
        self.alpha_embedding = AlphaEmbedding(hidden_size) if alpha_conditioned else None
        for parameter in (self.mask_embedding.weight, *self.time_mlp[2].parameters()):
            nn.init.zeros_(parameter)
        nn.init.ones_(
            self.output_proj.weight[:, -1]
        )  # close to the model's own confidence, until something better is learnt
        if smart_init is not None:
            nn.init.constant_(self.output_proj.bias, smart_init)

    def start_from(self, backbone: RADD) -> None:
        """Copy the backbone's last blocks. ValueError if it has fewer blocks than this network."""
        if not 1 <= len(self.blocks) <= len(backbone.blocks):
            raise ValueError(
                f"num_blocks={len(self.blocks)} must be from 1 to the model's {len(backbone.blocks)}; change it"
            )
        for block, source in zip(self.blocks, list(backbone.blocks)[-len(self.blocks) :], strict=True):
            block.load_state_dict(source.state_dict())

    @torch.no_grad()
    def inputs(self, observation, everywhere: bool = False) -> dict[str, Tensor]:
        """Return the inputs of `forward` for an observation, as keyword arguments; safe to store and replay.

        everywhere: for networks with a masking channel; this one has none, so it changes nothing.
        """
        hidden = observation.hidden(
            torch.ones_like(observation.masked)
        )  # first: confidences are of the same evaluation
        readout = observation.read(positions=observation.masked, best=1)
        confidences = readout.top_log_probs[..., 0].float().exp().masked_fill(~observation.masked, 0.0)
        inputs = {"masked": observation.masked, "confidences": confidences, "time": observation.time, "hidden": hidden}
        return inputs | alpha_input(self, observation)

    def trunk(
        self,
        masked: Bool[Tensor, "row position"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position width"],
        alpha: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position width"]:
        of_row = self.time_mlp(time.float()[:, None])
        if self.alpha_embedding is not None:
            assert alpha is not None
            of_row = of_row + self.alpha_embedding(alpha)
        x = hidden.float() + self.mask_embedding(masked.long()) + of_row[:, None]
        cos, sin = self.rotary(masked.shape[1])
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.final_norm(x)

    def _logits(
        self, x: Float[Tensor, "row position width"], confidences: Float[Tensor, "row position"]
    ) -> Float[Tensor, "row position"]:
        return self.output_proj(torch.cat([x, confidences.logit(1e-5)[..., None]], dim=-1)).squeeze(-1)

    def forward(
        self,
        masked: Bool[Tensor, "row position"],
        confidences: Float[Tensor, "row position"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position width"],
        alpha: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row position"]:
        """Return the unmasking logit of every position. confidences: probabilities of the best tokens."""
        return self._logits(self.trunk(masked, time, hidden, alpha), confidences)

    def forward_with_value(
        self,
        masked: Bool[Tensor, "row position"],
        confidences: Float[Tensor, "row position"],
        time: Float[Tensor, "row"],
        hidden: Float[Tensor, "row position width"],
        alpha: Float[Tensor, "row"] | None = None,
    ) -> tuple[Float[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return logits, and the value of the state: a linear function of the trunk's mean over the masked positions."""
        if self.value_proj is None:
            raise ValueError("value_head is False but a value was requested; build the policy with value_head=True")
        x = self.trunk(masked, time, hidden, alpha)
        return self._logits(x, confidences), self.value_proj(mean_over(x, masked)).squeeze(-1)


def _log_softmax_over(
    scores: Float[Tensor, "row position"], eligible: Bool[Tensor, "row position"]
) -> Float[Tensor, "row position"]:
    # A finite floor inside, so that rows with nothing eligible carry neither NaN nor a gradient.
    floor = torch.finfo(scores.dtype).min
    return scores.masked_fill(~eligible, floor).log_softmax(dim=-1).masked_fill(~eligible, -torch.inf)
