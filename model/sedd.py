"""SEDD: a bidirectional transformer with a noise input that returns probability ratios ("concrete scores").

A score is the ratio of probabilities between a canvas and its neighbour that differs in one position. Source: Lou et al.,
"Discrete Diffusion Modeling by Estimating the Ratios of the Data Distribution" (2310.16834). Names and shapes of the
parameters are the published ones, so published checkpoints load unmodified. What differs from the published module: the
noise modulates the final norm in `body`, so that its output only needs the linear head; the last block runs its queries at
requested positions only; scaled_dot_product_attention in place of flash-attn.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.radd import Rotary, VocabEmbedding, attention, attention_at, read_places, taken

GRAPHS = ("absorb", "uniform")
FREQUENCIES = 128  # of the embedding of the noise: as many cosines and sines


class Norm(nn.Module):
    """LayerNorm in float32 with a weight only: the noise input shifts it."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.float(), self.weight.shape, self.weight)


class NoiseEmbedding(nn.Module):
    """Embedding of the total noise sigma (not of the time)."""

    def __init__(self, width: int):
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(2 * FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, sigma: Float[Tensor, "row"]) -> Float[Tensor, "row condition"]:
        with torch.autocast(sigma.device.type, enabled=False):
            place = torch.arange(FREQUENCIES, dtype=torch.float32, device=sigma.device)
            angle = sigma.float().unsqueeze(1) * torch.exp(-math.log(10_000) / FREQUENCIES * place)
            return F.silu(self.mlp(torch.cat((angle.cos(), angle.sin()), 1)))


def modulation(condition: int, width: int, parts: int) -> nn.Linear:
    """Build the layer from the noise to shifts, scales and gates; zero at the start, as published."""
    linear = nn.Linear(condition, parts * width)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Apply the scale and shift of adaptive layer norm."""
    return x * (1 + scale) + shift


class SeddBlock(nn.Module):
    """Attention and MLP (tanh GELU, ratio 4); the noise shifts and scales their norms and gates their outputs."""

    def __init__(self, width: int, heads: int, condition: int, dropout: float | int):
        super().__init__()
        self.heads = heads
        self.norm1 = Norm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = Norm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.adaLN_modulation = modulation(condition, width, 6)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "row position width"],
        condition: Float[Tensor, "row condition"],
        cos: Float[Tensor, "position half"],
        sin: Float[Tensor, "position half"],
        index: Int[Tensor, "row read"] | None = None,
    ) -> Float[Tensor, "row either width"]:
        """Return the block's output. index: the positions of the output; None: all."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.adaLN_modulation(condition).unsqueeze(1).chunk(6, -1)
        normed = modulate(self.norm1(x), shift1, scale1)
        if index is None:
            attended = attention(normed, self.attn_qkv, self.heads, cos, sin)
        else:
            x, attended = taken(x, index), attention_at(normed, self.attn_qkv, self.heads, cos, sin, index)
        x = x + gate1 * self.dropout(self.attn_out(attended))
        return x + gate2 * self.dropout(self.mlp(modulate(self.norm2(x), shift2, scale2)))


class SeddOutput(nn.Module):
    """Final norm, modulated, and an untied linear head with bias, zero at the start."""

    def __init__(self, width: int, columns: int, condition: int):
        super().__init__()
        self.norm_final = Norm(width)
        self.linear = nn.Linear(width, columns)
        self.adaLN_modulation = modulation(condition, width, 2)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)


class SEDD(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="unmask",
    tags=["masked-diffusion"],
):
    """The network.

    `config` is the published nested dictionary: `tokens` (vocabulary without the mask token), `graph.type` (absorb: noise
    masks tokens; uniform: noise replaces them by any token) and `model.{hidden_size, cond_dim, n_blocks, n_heads, length,
    scale_by_sigma}`, optional `model.dropout`; other keys are kept and ignored.
    """

    def __init__(self, config: dict):
        super().__init__()
        shape, self.graph = config["model"], config["graph"]["type"]
        width, heads, condition = shape["hidden_size"], shape["n_heads"], shape["cond_dim"]
        if width % heads or (width // heads) % 2:
            raise ValueError(
                f"model.hidden_size={width} must be an even multiple of model.n_heads={heads}; change either"
            )
        if self.graph not in GRAPHS:
            raise ValueError(f"graph.type={self.graph!r} is unknown; use one of {', '.join(GRAPHS)}")
        self.config, self.scaled = config, shape["scale_by_sigma"]
        if self.scaled and self.graph == "uniform":
            raise ValueError("model.scale_by_sigma=true is for graph.type=absorb; set it to false")
        self.columns = config["tokens"] + (self.graph == "absorb")  # the mask is the last one
        self.vocab_embed = VocabEmbedding(self.columns, width)
        self.sigma_map = NoiseEmbedding(condition)
        self.rotary_emb = Rotary(width // heads)
        dropout = shape.get("dropout", 0.0)
        self.blocks = nn.ModuleList(SeddBlock(width, heads, condition, dropout) for _ in range(shape["n_blocks"]))
        self.output_layer = SeddOutput(width, self.columns, condition)

    def body(
        self,
        tokens: Int[Tensor, "row position"],
        sigma: Float[Tensor, "row"] | None = None,
        read: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "*read width"]:
        """Return the input of the linear head: `[row, position, width]`, or `[M, width]` at `read`. sigma None: no noise."""
        *blocks, last = self.blocks
        sigma = torch.zeros(len(tokens), device=tokens.device) if sigma is None else sigma
        condition = self.sigma_map(sigma)
        x = self.vocab_embed(tokens)
        cos, sin = self.rotary_emb(tokens.shape[1])
        for block in blocks:
            x = block(x, condition, cos, sin)
        places = None if read is None else read_places(read)
        x = last(x, condition, cos, sin, None if places is None else places[0])
        shift, scale = self.output_layer.adaLN_modulation(condition).unsqueeze(1).chunk(2, -1)
        x = modulate(self.output_layer.norm_final(x), shift, scale)
        return x if read is None else x[read if places is None else places[1]]

    def head(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch columns"]:
        """Return log-scores over the vocabulary and the mask column, without `log_scale`."""
        return self.output_layer.linear(hidden)

    def log_scale(self, sigma: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the number to add to the head's output: -log((e^sigma - 1) V) if the network is scaled by sigma.

        The output of such a network is zero where all tokens are equally likely.
        """
        if not self.scaled:
            return torch.zeros_like(sigma)
        return -torch.expm1(sigma).log() - math.log(self.columns - 1)

    def forward(
        self, tokens: Int[Tensor, "row position"], sigma: Float[Tensor, "row"]
    ) -> Float[Tensor, "row position columns"]:
        """Return log-scores as published: zero at the current token."""
        scores = self.head(self.body(tokens, sigma)) + self.log_scale(sigma)[:, None, None]
        return scores.scatter(-1, tokens.unsqueeze(-1), 0.0)
