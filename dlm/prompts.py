"""Canvases to be decoded, with the data that their reward needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor


@dataclass
class Prompts:
    """Canvases to be decoded, one a row.

    Args:
        canvas: token ids; open positions hold the mask token.
        rows: the rows of the data set that belong to the canvases (solutions of puzzles, say).
        text: the right text of each canvas, where it is known.
        prompt_length: columns before the first position to decode. Prompts of different lengths are padded on the left, so that
            they end at this column. Policies see the columns behind it, and blocks begin there.
        start: the column at which each row begins behind its padding. None: no padding.
        first_row: number of the first row in the whole batch, of which each process decodes its share.
        open: positions to decode. None: those that hold the mask token. It is given where a prompt contains the mask token as
            text, which is then kept.
    """

    canvas: Int[Tensor, "row position"]
    rows: dict[str, Tensor] = field(default_factory=dict)
    text: Int[Tensor, "row position"] | None = None
    prompt_length: int = 0
    start: Int[Tensor, "row"] | None = None
    first_row: int = 0
    open: Bool[Tensor, "row position"] | None = None

    @classmethod
    def from_ids(cls, prompts: Sequence[Sequence[int]], length: int, mask_id: int) -> Prompts:
        """Pad prompts of different lengths on the left, with `length` open positions behind each. ValueError without any
        prompt.
        """
        if not prompts:
            raise ValueError("there are no prompts; give at least one")
        longest = max(map(len, prompts))
        canvas = torch.full((len(prompts), longest + length), mask_id)
        for row, tokens in zip(canvas, prompts, strict=True):
            row[:longest] = torch.tensor([0] * (longest - len(tokens)) + list(tokens))
        start = torch.tensor([longest - len(tokens) for tokens in prompts])
        is_open = (torch.arange(longest + length) >= longest).expand(canvas.shape)
        return cls(canvas, prompt_length=longest, start=start, open=is_open)

    def open_positions(self, mask_id: int) -> Bool[Tensor, "row position"]:
        """Mark the positions to decode, without padding."""
        is_open = self.canvas == mask_id if self.open is None else self.open
        if self.start is None:
            return is_open
        return is_open & (torch.arange(is_open.shape[1], device=is_open.device) >= self.start.unsqueeze(1))

    def repeat(self, times: int) -> Prompts:
        """Repeat each prompt `times` times, copies next to each other."""
        repeated = self.take(torch.arange(len(self.canvas)).repeat_interleave(times))
        return replace(repeated, first_row=times * self.first_row)

    def share(self, part: slice) -> Prompts:
        """Return one process's part of the batch."""
        return replace(self.take(torch.arange(len(self.canvas))[part]), first_row=part.start)

    def first(self, count: int) -> Prompts:
        """Return the first `count` prompts."""
        return self.take(torch.arange(len(self.canvas))[:count])

    def to(self, device: torch.device) -> Prompts:
        """Move everything to the device, except `rows`."""
        moved = {name: value.to(device) for name, value in self._tensors().items()}
        return replace(self, **moved)

    def take(self, index: Int[Tensor, "kept"]) -> Prompts:
        """Return some of the prompts."""
        rows = {name: value[index] for name, value in self.rows.items()}
        return replace(self, rows=rows, **{name: value[index] for name, value in self._tensors().items()})

    def _tensors(self) -> dict[str, Tensor]:
        """The fields with a value for each row, but for `rows`."""
        named = {entry.name: getattr(self, entry.name) for entry in fields(self)}
        return {name: value for name, value in named.items() if isinstance(value, Tensor)}
