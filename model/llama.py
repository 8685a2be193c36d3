"""A bidirectional Llama: LLaDA (Nie et al., 2502.09992) and Dream (Ye et al., 2508.15487) are this network under two key maps.

RMSNorm, rotary positions (half-rotation), grouped queries, a gated SiLU; no causal mask. LLaDA has no biases; Dream has them on
queries, keys and values (the shape of Qwen2). What differs from the published modules: no remote code; hidden states and the
head are separate, and the last block's queries, output and MLP run only where somebody reads; keys and values can be kept
(`Memory`) and a span of positions run against them, which is what prefix and dual caches are (Fast-dLLM, 2505.22618);
`ahead` lets a network that was causal see what follows little by little, while it is trained to be bidirectional.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.radd import READ_MULTIPLE, rotate

LLADA_KEYS = {
    "embed": "model.transformer.wte",
    "norm": "model.transformer.ln_f",
    "head": "model.transformer.ff_out",
    "blocks.": "model.transformer.blocks.",
    "attention_norm": "attn_norm",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "out": "attn_out",
    "mlp_norm": "ff_norm",
    "gate": "ff_proj",
    "up": "up_proj",
    "down": "ff_out",
}
DREAM_KEYS = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "blocks.": "model.layers.",
    "attention_norm": "input_layernorm",
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "out": "self_attn.o_proj",
    "mlp_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
}


def published_name(name: str, keys: dict[str, str]) -> str:
    """Our parameter name in a published layout: `blocks.3.query.weight` is `model.layers.3.self_attn.q_proj.weight`."""
    first, *rest = name.split(".")
    if first != "blocks":
        return ".".join((keys[first], *rest))
    number, part, *rest = rest
    return ".".join((keys["blocks."] + number, keys[part], *rest))


@dataclass
class LlamaShape:
    """Sizes, the vocabulary's columns among them, and what differs between the two families."""

    width: int
    layers: int
    heads: int
    key_heads: int
    mlp: int
    columns: int
    theta: float = 500_000.0
    eps: float = 1e-5
    biases: bool = False  # on queries, keys and values
    tied: bool = False  # the head is the embedding

    def __post_init__(self):
        if self.width % self.heads or (self.width // self.heads) % 2 or self.heads % self.key_heads:
            raise ValueError(
                f"width {self.width} must be an even multiple of {self.heads} heads, which {self.key_heads} key heads must divide"
            )


Memory = list[tuple[Float[Tensor, "row head whole part"], Float[Tensor, "row head whole part"]]]


class RMSNorm(nn.Module):
    """Root-mean-square norm, in float32 whatever the weights are stored in."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)


class LlamaBlock(nn.Module):
    """Attention over the whole row (or over what `memory` holds of it) and a gated MLP."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        head = shape.width // shape.heads
        self.head_width = head
        self.attention_norm = RMSNorm(shape.width, shape.eps)
        self.query = nn.Linear(shape.width, shape.width, bias=shape.biases)
        self.key = nn.Linear(shape.width, shape.key_heads * head, bias=shape.biases)
        self.value = nn.Linear(shape.width, shape.key_heads * head, bias=shape.biases)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.mlp_norm = RMSNorm(shape.width, shape.eps)
        self.gate = nn.Linear(shape.width, shape.mlp, bias=False)
        self.up = nn.Linear(shape.width, shape.mlp, bias=False)
        self.down = nn.Linear(shape.mlp, shape.width, bias=False)

    def forward(
        self,
        x: Float[Tensor, "row position width"],
        cos: Float[Tensor, "position half"],
        sin: Float[Tensor, "position half"],
        at: Int[Tensor, "row read"] | None = None,
        memory: tuple[Tensor, Tensor] | None = None,
        span: slice = slice(None),
        seen: Bool[Tensor, "position position"] | None = None,
    ) -> Float[Tensor, "row read width"]:
        """The block's output at `at` (None: everywhere); keys and values are of all of `x`.

        memory: keys and values of the whole row; those of `span`, where `x` stands, are replaced, and attention sees all.
        seen: which positions may be attended, query by key; None: all.
        """
        normed = self.attention_norm(x)
        key, value = (rearrange(part(normed), "row position (head width) -> row position head width", width=self.head_width)
                      for part in (self.key, self.value))  # fmt: skip
        key = rearrange(rotate(key, cos, sin), "row position head width -> row head position width")
        value = rearrange(value, "row position head width -> row head position width")
        if memory is not None:
            memory[0][:, :, span], memory[1][:, :, span] = key, value
            key, value = memory
        if at is None:
            asked, turn = normed, (cos, sin)
        else:
            expanded = at.unsqueeze(-1).expand(-1, -1, x.shape[-1])
            x, asked, turn = x.gather(1, expanded), normed.gather(1, expanded), (cos[at], sin[at])
        query = rearrange(self.query(asked), "row read (head width) -> row read head width", width=self.head_width)
        query = rearrange(rotate(query, *turn), "row read head width -> row head read width")
        grouped = query.shape[1] != key.shape[1]
        mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=seen, enable_gqa=grouped)
        x = x + self.out(rearrange(mixed, "row head read width -> row read (head width)"))
        inner = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(inner)) * self.up(inner))


class BidirectionalLlama(nn.Module):
    """The network. `body` gives hidden states after the final norm; `head` is linear, untied unless the shape says so."""

    def __init__(self, shape: LlamaShape):
        super().__init__()
        self.shape = shape
        self.embed = nn.Embedding(shape.columns, shape.width)
        self.blocks = nn.ModuleList(LlamaBlock(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.width, shape.eps)
        self.head = nn.Linear(shape.width, shape.columns, bias=False)
        if shape.tied:
            self.head.weight = self.embed.weight
        self.ahead = 1.0  # share of what follows that a position may see while training; see `attention`

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Normal weights of deviation 0.64 / sqrt(width) (0.01 at LLaDA's size; narrow networks hardly start to learn with 0.02),
        those that write into the residual stream smaller with depth."""
        deviation = 0.64 / self.shape.width**0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                small = name.split(".")[-2] in ("out", "down")
                parameter.normal_(0.0, deviation / (2 * self.shape.layers) ** 0.5 if small else deviation)

    def angles(self, start: int, end: int, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosines and sines of positions start..end - 1, float32."""
        half = self.shape.width // self.shape.heads // 2
        frequency = self.shape.theta ** (-torch.arange(half, device=device, dtype=torch.float32) / half)
        angle = torch.outer(torch.arange(start, end, device=device, dtype=torch.float32), frequency)
        return angle.cos(), angle.sin()

    def new_memory(self, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """Room for every layer's keys and values."""
        head = self.shape.width // self.shape.heads
        room = (rows, self.shape.key_heads, length, head)
        return [(torch.zeros(room, dtype=dtype, device=device), torch.zeros(room, dtype=dtype, device=device))
                for _ in self.blocks]  # fmt: skip

    def attention(self, length: int, device: torch.device) -> Bool[Tensor, "position position"] | None:
        """None (all see all), or, while annealing, what precedes and a random share `ahead` of the positions that follow."""
        if not self.training or self.ahead >= 1:
            return None
        causal = torch.ones(length, length, dtype=torch.bool, device=device).tril()
        return causal | (torch.rand(length, device=device) < self.ahead)

    def body(
        self,
        tokens: Int[Tensor, "row position"],
        read: Bool[Tensor, "row position"] | None = None,
        memory: Memory | None = None,
        start: int = 0,
    ) -> Float[Tensor, "*read width"]:
        """Hidden states: `[row, position, width]`, or `[M, width]` where `read`, row-major.

        memory: keys and values of whole rows, of which `tokens` are the positions from `start` on; theirs are replaced.
        """
        length = tokens.shape[1]
        cos, sin = self.angles(start, start + length, tokens.device)
        span, seen = slice(start, start + length), self.attention(length, tokens.device)
        x = self.embed(tokens)
        *blocks, last = self.blocks
        kept: list = [None] * len(self.blocks) if memory is None else memory
        for block, own in zip(blocks, kept, strict=False):
            x = block(x, cos, sin, None, own, span, seen)
        if read is None:
            return self.norm(last(x, cos, sin, None, kept[-1], span, seen))
        counts = read.sum(1)
        width = -(-int(counts.max()) // READ_MULTIPLE) * READ_MULTIPLE
        if width >= length or seen is not None:
            return self.norm(last(x, cos, sin, None, kept[-1], span, seen)[read])
        index = torch.argsort(read, dim=1, descending=True, stable=True)[
            :, :width
        ]  # the read positions first, in order
        valid = torch.arange(width, device=tokens.device) < counts.unsqueeze(1)
        return self.norm(last(x, cos, sin, index, kept[-1], span)[valid])

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position columns"]:
        """Raw logits at every position, not shifted."""
        return self.head(self.body(tokens))
