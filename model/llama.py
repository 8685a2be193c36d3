"""A bidirectional Llama: LLaDA (Nie et al., 2502.09992) and Dream (Ye et al., 2508.15487) are this network with two key
maps.

RMSNorm, rotary positions (half-rotation), grouped queries, a gated SiLU; no causal mask. LLaDA has no biases; Dream has
them on queries, keys and values (as Qwen2). What differs from the published modules: no remote code; hidden states and head
are separate, and the last block's queries, output and MLP run only at requested positions; keys and values can be cached
(`Memory`) and a span of positions run against them, as in prefix and dual caches (Fast-dLLM, 2505.22618); rows of different
lengths, and different spans of them, run together without padding; `ahead` lets a causal network attend to later positions
gradually, while it is trained to be bidirectional.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from model.radd import READ_MULTIPLE, rotate
from model.shadow import shadow_attention, shadow_places

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
    """Return our parameter name in a published layout: `blocks.3.query.weight` is
    `model.layers.3.self_attn.q_proj.weight`.
    """
    first, *rest = name.split(".")
    if first != "blocks":
        return ".".join((keys[first], *rest))
    number, part, *rest = rest
    return ".".join((keys["blocks."] + number, keys[part], *rest))


@dataclass
class LlamaShape:
    """Sizes of the network (vocabulary columns included), and the differences between the two families."""

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


Memory = list[tuple[Float[Tensor, "kept head canvas key"], Float[Tensor, "kept head canvas value"]]]


class RMSNorm(nn.Module):
    """Root-mean-square norm, computed in float32 whatever the precision of the weights."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        return self.weight * F.rms_norm(x.float(), self.weight.shape, eps=self.eps).to(x.dtype)


@dataclass
class Span:
    """Rows (their ascending places in the memory) that run the same positions [start, end) of their canvas, which begins
    behind `pad` columns.
    """

    rows: list[int]
    pad: int
    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start

    @property
    def index(self) -> slice | list[int]:
        """Return `rows`, as a slice if possible, which makes a view of the memory."""
        first, last = self.rows[0], self.rows[-1] + 1
        return slice(first, last) if last - first == len(self.rows) else self.rows


@dataclass
class RowByRow:
    """Attention within consecutive rows, span by span, with nothing computed between them. Positions behind the last span
    are unused.
    """

    spans: list[Span]
    seen: Bool[Tensor, "position position"] | None = None  # which may be attended, query by key; None: all

    def __call__(
        self,
        query: Float[Tensor, "requested head part"],
        key: Float[Tensor, "position head_of_keys part"],
        value: Float[Tensor, "position head_of_keys part"],
        width: int | None,
        memory: tuple[Tensor, Tensor] | None,
    ) -> Float[Tensor, "answered both"]:
        """Apply attention.

        Args:
            width: queries of each row; None: one for each position that runs.
            memory: keys and values of whole rows. Those of the spans are replaced first, then all are attended to.
        """
        mixed, offset, run = [], 0, 0
        for span in self.spans:
            count, size, rows = len(span.rows), width or span.size, span.index
            ask, offset = slice(offset, offset + count * size), offset + count * size
            own, run = slice(run, run + count * span.size), run + count * span.size
            keys, values = (x[own].unflatten(0, (count, span.size)).transpose(1, 2) for x in (key, value))
            if memory is not None:
                for kept, new in zip(memory, (keys, values), strict=True):
                    kept[rows, :, span.start : span.end] = new
                keys, values = (kept[rows, :, span.pad :] for kept in memory)
            queries = query[ask].unflatten(0, (count, size)).transpose(1, 2)
            grouped = queries.shape[1] != keys.shape[1]
            out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self.seen, enable_gqa=grouped)
            mixed.append(out.transpose(1, 2).flatten(2).flatten(0, 1))
        return torch.cat(mixed) if len(mixed) > 1 else mixed[0]


class Padded:
    """Attention by one call for all rows, padded to the longest and masked: fewer and larger kernels, for a GPU."""

    def __init__(self, spans: list[Span], device: torch.device):
        shapes = [(row, span.start, span.size, span.pad) for span in spans for row in span.rows]
        self.rows, start, self.size, self.pad = torch.tensor(shapes, device=device).unbind(1)
        self.valid = torch.arange(max(span.size for span in spans), device=device) < self.size.unsqueeze(1)
        row, within = self.valid.nonzero(as_tuple=True)
        self.slots = row * self.valid.shape[1] + within
        self.run = (self.rows[row], slice(None), start[row] + within)

    def __call__(self, query, key, value, width, memory):
        if memory is None:
            keys, values, seen = self.padded(key), self.padded(value), self.valid
        else:
            memory[0][self.run], memory[1][self.run] = key[: len(self.slots)], value[: len(self.slots)]
            keys, values = memory[0][self.rows], memory[1][self.rows]
            seen = torch.arange(keys.shape[2], device=keys.device) >= self.pad.unsqueeze(1)
        queries = self.padded(query) if width is None else query.unflatten(0, (-1, width)).transpose(1, 2)
        grouped = queries.shape[1] != keys.shape[1]
        mixed = F.scaled_dot_product_attention(queries, keys, values, attn_mask=seen[:, None, None], enable_gqa=grouped)
        mixed = mixed.transpose(1, 2).flatten(2).flatten(0, 1)
        return mixed if width is not None else mixed[self.slots]

    def padded(self, x: Float[Tensor, "position head part"]) -> Float[Tensor, "row head longest part"]:
        room = x.new_zeros(self.valid.numel(), *x.shape[1:]).index_copy(0, self.slots, x[: len(self.slots)])
        return room.unflatten(0, self.valid.shape).transpose(1, 2)


class LlamaBlock(nn.Module):
    """Attention over the whole row (or over its cached part) and a gated MLP."""

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
        x: Float[Tensor, "position width"],
        turn: tuple[Float[Tensor, "position half"], Float[Tensor, "position half"]],
        attend: RowByRow | Padded,
        memory: tuple[Tensor, Tensor] | None = None,
        at: Int[Tensor, "requested"] | None = None,
        width: int | None = None,
    ) -> Float[Tensor, "requested width"]:
        """Return the block's output at `at`, `width` positions of each row (None: all). Keys and values are computed for
        all of `x`.
        """
        normed = self.attention_norm(x)
        key, value = self._turned(self.key(normed), *turn), self._heads(self.value(normed))
        if at is not None:
            x, normed = x.index_select(0, at), normed.index_select(0, at)
            turn = turn[0].index_select(0, at), turn[1].index_select(0, at)
        mixed = attend(self._turned(self.query(normed), *turn), key, value, width, memory)
        if len(mixed) < len(x):
            mixed = F.pad(mixed, (0, 0, 0, len(x) - len(mixed)))
        x = x + self.out(mixed)
        inner = self.mlp_norm(x)
        return x + self.down(F.silu(self.gate(inner)) * self.up(inner))

    def _heads(self, x: Float[Tensor, "position both"]) -> Float[Tensor, "position head part"]:
        return x.unflatten(-1, (-1, self.head_width))

    def _turned(
        self, x: Float[Tensor, "position both"], cos: Tensor, sin: Tensor
    ) -> Float[Tensor, "position head part"]:
        return rotate(self._heads(x).unsqueeze(0), cos, sin).squeeze(0)


class BidirectionalLlama(nn.Module):
    """The network. `body` returns hidden states after the final norm; `head` is linear, and untied unless the shape ties
    it.
    """

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
        """Draw normal weights of standard deviation 0.64 / sqrt(width).

        That is 0.01 at LLaDA's size; narrow networks hardly start to learn with 0.02. Weights that write into the residual
        stream are smaller with depth.
        """
        deviation = 0.64 / self.shape.width**0.5
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                small = name.split(".")[-2] in ("out", "down")
                parameter.normal_(0.0, deviation / (2 * self.shape.layers) ** 0.5 if small else deviation)

    def angles(self, place: Int[Tensor, "position"]) -> tuple[Tensor, Tensor]:
        """Return cosines and sines of these positions, in float32."""
        half = self.shape.width // self.shape.heads // 2
        frequency = self.shape.theta ** (-torch.arange(half, device=place.device, dtype=torch.float32) / half)
        angle = torch.outer(place.float(), frequency)
        return angle.cos(), angle.sin()

    def new_memory(self, rows: int, length: int, dtype: torch.dtype, device: torch.device) -> Memory:
        """Allocate memory for every layer's keys and values."""
        head = self.shape.width // self.shape.heads
        room = (rows, self.shape.key_heads, length, head)
        return [(torch.zeros(room, dtype=dtype, device=device), torch.zeros(room, dtype=dtype, device=device))
                for _ in self.blocks]  # fmt: skip

    def attention(self, length: int, device: torch.device) -> Bool[Tensor, "position position"] | None:
        """Return the attention mask: None (full), or, while annealing, previous positions and a random share `ahead` of
        later ones.
        """
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
        """Return hidden states: `[row, position, width]`, or `[M, width]` at `read`, row by row.

        Args:
            memory: keys and values of whole rows, of which `tokens` are the positions from `start` on; theirs are replaced.
        """
        rows, length = tokens.shape
        span = Span(list(range(rows)), 0, start, start + length)
        hidden = self.run(tokens.flatten(), None if read is None else read.flatten(), [span], memory)
        return hidden if read is not None else hidden.unflatten(0, (rows, length))

    def run(
        self,
        tokens: Int[Tensor, "position"],
        read: Bool[Tensor, "position"] | None,
        spans: list[Span],
        memory: Memory | None = None,
    ) -> Float[Tensor, "read width"]:
        """Return hidden states at `read`, of consecutive rows, span by span."""
        device, total = tokens.device, len(tokens)
        place = torch.cat(
            [torch.arange(s.start - s.pad, s.end - s.pad, device=device).repeat(len(s.rows)) for s in spans]
        )
        more = -total % READ_MULTIPLE  # unused positions: matrix products with fewer rows round differently
        turn = self.angles(F.pad(place, (0, more)))
        x = F.pad(self.embed(tokens), (0, 0, 0, more)) if more else self.embed(tokens)
        seen = self.attention(spans[0].size, device)
        attend = Padded(spans, device) if device.type == "cuda" and len(spans) > 1 else RowByRow(spans, seen)
        *blocks, last = self.blocks
        kept: list = [None] * len(self.blocks) if memory is None else memory
        for block, own in zip(blocks, kept, strict=False):
            x = block(x, turn, attend, own)
        if read is None:
            return self.norm(last(x, turn, attend, kept[-1])[:total])
        size = torch.tensor([s.size for s in spans for _ in s.rows], device=device)
        row = torch.arange(len(size), device=device).repeat_interleave(size, output_size=total)
        counts = torch.zeros_like(size).index_add_(0, row, read.long())
        width = -(-int(counts.max()) // READ_MULTIPLE) * READ_MULTIPLE
        if width == 0 or seen is not None:
            return self.norm(last(x, turn, attend, kept[-1])[:total][read])
        found = read.nonzero().squeeze(1)
        number = torch.arange(len(found), device=device) - (counts.cumsum(0) - counts)[row[found]]
        slots = row[found] * width + number
        at = (size.cumsum(0) - size).repeat_interleave(width).index_copy(0, slots, found)  # the others are not used
        return self.norm(last(x, turn, attend, kept[-1], at, width)[slots])

    def body_shadow(
        self, tokens: Int[Tensor, "row position"], mask_id: int, first: int, size: int
    ) -> Float[Tensor, "row longer width"]:
        """Return hidden states of canvases with a shadow block behind them: masks at positions first to first + size
        (`shadow_attention`).
        """
        (rows, length), device = tokens.shape, tokens.device
        more = -rows * (length + size) % READ_MULTIPLE
        turn = self.angles(F.pad(shadow_places(length, first, size, device).repeat(rows), (0, more)))
        x = F.pad(self.embed(F.pad(tokens, (0, size), value=mask_id).flatten()), (0, 0, 0, more))
        attend = RowByRow([Span(list(range(rows)), 0, 0, length + size)], shadow_attention(length, first, size, device))
        for block in self.blocks:
            x = block(x, turn, attend)
        return self.norm(x[: rows * (length + size)]).unflatten(0, (rows, length + size))

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position columns"]:
        """Return raw logits at every position, not shifted."""
        return self.head(self.body(tokens))
