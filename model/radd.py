"""RADD: a bidirectional transformer that predicts the clean token at every masked position, without a time input.

Source: Ou et al., "Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions of Clean Data"
(2406.03736). Names and shapes of the parameters are the published ones, so published checkpoints load unmodified. What
differs from the published module: `body` returns hidden states and can run the last block's queries at requested positions
only; `head` is separate, so that logits exist only where they are requested; the LayerNorm is one fused call; cosines and
sines follow the tokens' device at every call instead of being kept from the first one.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.layers import Layers
from model.shadow import shadow_attention, shadow_places

try:  # CUDA only, extra `cuda`; scaled_dot_product_attention computes the same elsewhere
    from flash_attn import flash_attn_func  # pyright: ignore[reportMissingImports]
except ImportError:
    flash_attn_func = None

READ_MULTIPLE = 16  # gathers are padded to it: matrix products over fewer rows take other kernels and round otherwise


class LayerNorm(nn.Module):
    """LayerNorm in float32 with a bias that starts at one, as published."""

    def __init__(self, width: int):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.bias = nn.Parameter(torch.ones(width))

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        with torch.autocast(x.device.type, enabled=False):
            return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias)


class VocabEmbedding(nn.Module):
    """A bare parameter named `embedding`, because the checkpoints name it so."""

    def __init__(self, columns: int, width: int):
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(columns, width))
        nn.init.kaiming_uniform_(self.embedding, a=5**0.5)

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        return F.embedding(tokens, self.embedding)


class Rotary(nn.Module):
    """Rotary position embedding, base 10,000, half-rotation (NeoX) layout."""

    inv_freq: Tensor

    def __init__(self, head_width: int):
        super().__init__()
        self.register_buffer("inv_freq", 1.0 / 10_000 ** (torch.arange(0, head_width, 2).float() / head_width))

    def forward(self, length: int) -> tuple[Float[Tensor, "position half"], Float[Tensor, "position half"]]:
        angle = torch.outer(
            torch.arange(length, device=self.inv_freq.device, dtype=torch.float32), self.inv_freq.float()
        )
        return angle.cos(), angle.sin()


def rotate(
    x: Float[Tensor, "row position head width"],
    cos: Float[Tensor, "*position half"],
    sin: Float[Tensor, "*position half"],
) -> Float[Tensor, "row position head width"]:
    """Rotate each pair (x[i], x[i + width/2]) by its position's angle."""
    first, second = x.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype).unsqueeze(-2), sin.to(x.dtype).unsqueeze(-2)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)


def attend(
    query: Float[Tensor, "row read head width"],
    key: Float[Tensor, "row position head width"],
    value: Float[Tensor, "row position head width"],
    seen: Bool[Tensor, "read position"] | None = None,
) -> Float[Tensor, "row read both"]:
    """Apply full attention, or attention to `seen`, query by key. All positions belong to the row, so there is no padding to
    mask.
    """
    if (
        flash_attn_func is not None
        and seen is None
        and query.is_cuda
        and query.dtype in (torch.float16, torch.bfloat16)
    ):
        return flash_attn_func(query, key, value).flatten(-2)
    query, key, value = (
        rearrange(x, "row position head width -> row head position width") for x in (query, key, value)
    )
    out = F.scaled_dot_product_attention(query, key, value, attn_mask=seen)
    return rearrange(out, "row head read width -> row read (head width)")


def attention(
    normed: Float[Tensor, "row position width"],
    qkv: nn.Linear,
    heads: int,
    cos: Float[Tensor, "position half"],
    sin: Float[Tensor, "position half"],
    seen: Bool[Tensor, "position position"] | None = None,
) -> Float[Tensor, "row position width"]:
    """Apply self-attention to normalized input, without the output projection."""
    query, key, value = rearrange(
        qkv(normed), "row position (three head width) -> three row position head width", three=3, head=heads
    )
    return attend(rotate(query, cos, sin), rotate(key, cos, sin), value, seen)


def attention_at(
    normed: Float[Tensor, "row position width"],
    qkv: nn.Linear,
    heads: int,
    cos: Float[Tensor, "position half"],
    sin: Float[Tensor, "position half"],
    index: Int[Tensor, "row read"],
) -> Float[Tensor, "row read width"]:
    """Apply `attention` at `index` only: keys and values everywhere, queries there."""
    width = normed.shape[-1]
    weight_query, weight_key_value = qkv.weight.split((width, 2 * width))
    query = rearrange(
        F.linear(taken(normed, index), weight_query), "row read (head width) -> row read head width", head=heads
    )
    key, value = rearrange(
        F.linear(normed, weight_key_value), "row position (two head width) -> two row position head width",
        two=2, head=heads,
    )  # fmt: skip
    return attend(rotate(query, cos[index], sin[index]), rotate(key, cos, sin), value)


def taken(x: Float[Tensor, "row position width"], index: Int[Tensor, "row read"]) -> Float[Tensor, "row read width"]:
    """Gather the positions `index` of each row."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


def read_places(
    read: Bool[Tensor, "row position"],
) -> tuple[Int[Tensor, "row longest"], Bool[Tensor, "row longest"]] | None:
    """Return the requested positions of each row, in order and padded to the largest number, and which are not padding.

    None if these would be all positions.
    """
    counts = read.sum(1)
    width = -(-int(counts.max()) // READ_MULTIPLE) * READ_MULTIPLE
    if width >= read.shape[1]:
        return None
    index = torch.argsort(read, dim=1, descending=True, stable=True)[:, :width]
    return index, torch.arange(width, device=read.device) < counts.unsqueeze(1)


class Block(nn.Module):
    """Pre-norm attention and MLP (tanh GELU, ratio 4)."""

    def __init__(self, width: int, heads: int, dropout: float | int):
        super().__init__()
        self.heads = heads
        self.norm1 = LayerNorm(width)
        self.attn_qkv = nn.Linear(width, 3 * width, bias=False)
        self.attn_out = nn.Linear(width, width, bias=False)
        self.norm2 = LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU("tanh"), nn.Linear(4 * width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "row position width"],
        cos: Float[Tensor, "position half"],
        sin: Float[Tensor, "position half"],
        seen: Bool[Tensor, "position position"] | None = None,
    ) -> Float[Tensor, "row position width"]:
        return self._rest(x, attention(self.norm1(x), self.attn_qkv, self.heads, cos, sin, seen))

    def at(
        self,
        x: Float[Tensor, "row position width"],
        cos: Float[Tensor, "position half"],
        sin: Float[Tensor, "position half"],
        index: Int[Tensor, "row read"],
    ) -> Float[Tensor, "row read width"]:
        """Return this block's output at `index` only: keys and values everywhere, queries and MLP there."""
        out = attention_at(self.norm1(x), self.attn_qkv, self.heads, cos, sin, index)
        return self._rest(taken(x, index), out)

    def _rest(self, x: Tensor, attended: Tensor) -> Tensor:
        x = x + self.dropout(self.attn_out(attended))
        return x + self.dropout(self.mlp(self.norm2(x)))


class OutputLayer(nn.Module):
    """Final norm and an untied linear head with bias, zero at the start."""

    def __init__(self, width: int, columns: int):
        super().__init__()
        self.norm_final = LayerNorm(width)
        self.linear = nn.Linear(width, columns)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch columns"]:
        return self.linear(self.norm_final(hidden))


class RADD(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="unmask",
    tags=["masked-diffusion"],
):
    """The network.

    `config` is the published nested dictionary: `tokens` (vocabulary without the mask token) and `model.{hidden_size,
    n_blocks, n_heads, length}`, optional `model.dropout`; other keys are kept and ignored. `model.learned_positions` (not
    in the published models) adds a learned vector for each position. Rotary embeddings encode distances only; a board,
    whose rows and boxes are absolute, is not learnable without learned positions.
    """

    def __init__(self, config: dict):
        super().__init__()
        shape = config["model"]
        width, heads = shape["hidden_size"], shape["n_heads"]
        if width % heads or (width // heads) % 2:
            raise ValueError(
                f"model.hidden_size={width} must be an even multiple of model.n_heads={heads}; change either"
            )
        self.config = config
        self.columns = config["tokens"] + 1  # the mask is the last one
        self.vocab_embed = VocabEmbedding(self.columns, width)
        learned = shape.get("learned_positions", False)
        self.position_embed = nn.Parameter(torch.randn(shape["length"], width) * 0.1) if learned else None
        self.rotary_emb = Rotary(width // heads)
        self.blocks: Layers[Block] = Layers(
            Block(width, heads, shape.get("dropout", 0.0)) for _ in range(shape["n_blocks"])
        )
        self.output_layer = OutputLayer(width, self.columns)

    def body(
        self, tokens: Int[Tensor, "row position"], read: Bool[Tensor, "row position"] | None = None
    ) -> Float[Tensor, "*read width"]:
        """Return the output of the last block, before the final norm: `[row, position, width]`, or `[M, width]` at `read`."""
        *blocks, last = self.blocks
        x = self.vocab_embed(tokens)
        if self.position_embed is not None:
            x = x + self.position_embed[: tokens.shape[1]]
        cos, sin = self.rotary_emb(tokens.shape[1])
        for block in blocks:
            x = block(x, cos, sin)
        if read is None:
            return last(x, cos, sin)
        places = read_places(read)
        if places is None:
            return last(x, cos, sin)[read]
        index, valid = places
        return last.at(x, cos, sin, index)[valid]

    def body_shadow(
        self, tokens: Int[Tensor, "row position"], first: int, size: int
    ) -> Float[Tensor, "row longer width"]:
        """Return `body` of canvases with a shadow block behind them: masks at positions first to first + size
        (`shadow_attention`).
        """
        place = shadow_places(tokens.shape[1], first, size, tokens.device)
        x = self.vocab_embed(F.pad(tokens, (0, size), value=self.columns - 1))
        if self.position_embed is not None:
            x = x + self.position_embed[place]
        cos, sin = (angles[place] for angles in self.rotary_emb(tokens.shape[1]))
        seen = shadow_attention(tokens.shape[1], first, size, tokens.device)
        for block in self.blocks:
            x = block(x, cos, sin, seen)
        return x

    def head(self, hidden: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch columns"]:
        """Return raw logits over the vocabulary and the mask column."""
        return self.output_layer(hidden)

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position columns"]:
        """Return raw logits at every position (the published module normalizes them over all columns but the last)."""
        return self.head(self.body(tokens))
