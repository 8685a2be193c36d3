"""A quality head: from a frozen model's hidden states to the log-odds that the token shown at a position is right.

Source: PRISM (2510.01384), which puts LayerNorm, linear, GELU, linear(1) on the last hidden state and trains the model with it.
What differs: the model stays frozen. It was never trained at committed positions, so that its hidden state there says little
about the token shown. The head may therefore have transformer blocks of its own, in which positions read each other again, and
embeddings of the tokens shown, of the prompt and of the positions.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn

from model.layers import Layers
from model.radd import READ_MULTIPLE, Block, Rotary

LEAST, SCALE = -15.0, 5.0  # of log-probabilities: what is below is as improbable; nats of one unit
POSITIONS = {"cpu": 4096, "cuda": 262_144}  # that go through the blocks at a time


class QualityHead(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="unmask",
    tags=["masked-diffusion"],
):
    """Log-odds that the token shown at a position is right.

    LayerNorm and linear to `width`, plus embeddings; `blocks` transformer blocks over the whole row; then GELU and linear(1)
    (with blocks behind a LayerNorm and a linear layer). The last layer starts at 0, so that every position has probability 1/2.

    Args:
        hidden_size: width of the model's hidden states.
        tokens: number of token ids, the mask token included: embeddings of the token shown, and of whether it belongs to the
            prompt. 0: none.
        length: positions with a learned embedding each, for canvases whose positions are absolute, such as boards. 0: none.
        width: inner width, a multiple of 2 * heads.
        blocks: transformer blocks. 0: the head reads each position alone, as PRISM's.
        heads: attention heads of a block.
        seen: the head reads the model's log-probabilities of the token shown and of the best token too.
    """

    def __init__(
        self, hidden_size: int, tokens: int = 0, length: int = 0, width: int = 64, blocks: int = 1, heads: int = 4,
        seen: bool = False,
    ):  # fmt: skip
        super().__init__()
        if blocks and width % (2 * heads):
            raise ValueError(f"width {width} must be a multiple of 2 * heads = {2 * heads}; change one of them")
        self.hidden_size = hidden_size
        self.norm_in = nn.LayerNorm(hidden_size)
        self.linear_in = nn.Linear(hidden_size, width)
        self.seen_in = nn.Linear(2, width, bias=False) if seen else None
        self.token_embed = nn.Embedding(tokens, width) if tokens else None
        self.given_embed = nn.Embedding(2, width) if tokens else None
        self.position_embed = nn.Parameter(torch.randn(length, width) * 0.1) if length else None
        self.blocks: Layers[Block] = Layers(Block(width, heads, 0.0) for _ in range(blocks))
        self.rotary = Rotary(width // heads) if blocks else None
        self.norm_out = nn.LayerNorm(width) if blocks else None
        self.linear_mid = nn.Linear(width, width) if blocks else None
        self.linear_out = nn.Linear(width, 1)
        nn.init.zeros_(self.linear_out.weight)
        nn.init.zeros_(self.linear_out.bias)

    @property
    def config(self) -> dict[str, Any]:
        """Contents of config.json: the arguments of the constructor, and the fingerprint of the model."""
        assert isinstance(self._hub_mixin_config, dict)
        return self._hub_mixin_config

    @property
    def reads_rows(self) -> bool:
        """Return True if the head reads the hidden states of whole rows, and not only those of the requested positions."""
        return len(self.blocks) > 0

    @property
    def reads_seen(self) -> bool:
        """Return True if the head reads log-probabilities."""
        return self.seen_in is not None

    def forward(
        self,
        hidden: Float[Tensor, "row position width"],
        tokens: Int[Tensor, "row position"],
        given: Bool[Tensor, "row position"],
        seen: Float[Tensor, "row position two"],
        positions: Bool[Tensor, "row position"],
    ) -> Float[Tensor, "read"]:
        """Return the log-odds at `positions`, row by row.

        Args:
            hidden: hidden states, of all positions if the head `reads_rows`, else valid at `positions`.
            tokens: the tokens shown.
            given: positions of the prompt.
            seen: log-probabilities of the token shown and of the best token, valid at `positions` and 0 elsewhere; read if
                `reads_seen`.
            positions: requested positions.
        """
        rows, columns = (
            max(1, POSITIONS[tokens.device.type] // tokens.shape[1]),
            (hidden, tokens, given, seen, positions),
        )
        parts = zip(*(column.split(rows) for column in columns), strict=True)
        return torch.cat([self._of_rows(*part) for part in parts])

    def _of_rows(
        self,
        hidden: Float[Tensor, "row position width"],
        tokens: Int[Tensor, "row position"],
        given: Bool[Tensor, "row position"],
        seen: Float[Tensor, "row position two"],
        positions: Bool[Tensor, "row position"],
    ) -> Float[Tensor, "read"]:
        place = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        if self.rotary is None:
            columns = (hidden, tokens, given, seen, place)
            return self.score(self.embedded(*(padded(column[positions]) for column in columns)))[: int(positions.sum())]
        x = self.embedded(hidden, tokens, given, seen, place)
        cos, sin = self.rotary(tokens.shape[1])
        for block in self.blocks:
            x = block(x, cos, sin)
        return self.score(padded(x[positions]))[: int(positions.sum())]

    def embedded(
        self,
        hidden: Float[Tensor, "*batch width"],
        tokens: Int[Tensor, "*batch"],
        given: Bool[Tensor, "*batch"],
        seen: Float[Tensor, "*batch two"],
        place: Int[Tensor, "*batch"],
    ) -> Float[Tensor, "*batch inner"]:
        """Return the input of the blocks."""
        x = self.linear_in(self.norm_in(hidden))
        if self.token_embed is not None and self.given_embed is not None:
            x = x + self.token_embed(tokens) + self.given_embed(given.long())
        if self.seen_in is not None:
            x = x + self.seen_in(seen.clamp(min=LEAST) / SCALE)
        return x if self.position_embed is None else x + self.position_embed[place]

    def score(self, x: Float[Tensor, "read inner"]) -> Float[Tensor, "read"]:
        """Return the log-odds."""
        if self.norm_out is not None and self.linear_mid is not None:
            x = self.linear_mid(self.norm_out(x))
        return self.linear_out(F.gelu(x)).squeeze(-1)


def padded(x: Shaped[Tensor, "read *rest"]) -> Shaped[Tensor, "more *rest"]:
    """Append zeros up to a multiple of 16 rows, so that a row's result does not depend on their number."""
    return torch.cat((x, x.new_zeros(-len(x) % READ_MULTIPLE, *x.shape[1:])))
