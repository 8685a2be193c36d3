"""Canvases to be decoded, with what their reward needs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass
class Prompts:
    """Canvases to be decoded, the rows of the data set that go with them (solutions of puzzles, say), and the right text where
    it is known."""

    canvas: Int[Tensor, "row position"]
    rows: dict[str, Tensor]
    text: Int[Tensor, "row position"] | None = None
    prompt_length: int = 0  # columns before the first position to write: prompts, padded on the left
    start: Int[Tensor, "row"] | None = None  # where each row begins behind its padding
    first_row: int = 0  # number of the first row in the whole batch, of which each process decodes its share

    def repeat(self, times: int) -> Prompts:
        """Each prompt `times` times in a row."""
        repeated = self.take(torch.arange(len(self.canvas)).repeat_interleave(times))
        return replace(repeated, first_row=times * self.first_row)

    def share(self, part: slice) -> Prompts:
        """One process's part of the batch."""
        return replace(self.take(torch.arange(len(self.canvas))[part]), first_row=part.start)

    def to(self, device: torch.device) -> Prompts:
        """Canvas, text and start on the device; `rows` stay where they are."""
        moved = {
            name: None if (value := getattr(self, name)) is None else value.to(device) for name in ("text", "start")
        }
        return replace(self, canvas=self.canvas.to(device), **moved)

    def first(self, count: int) -> Prompts:
        """The first `count` prompts."""
        return self.take(torch.arange(len(self.canvas))[:count])

    def take(self, index: Int[Tensor, "kept"]) -> Prompts:
        """Those prompts."""
        rows = {name: value[index] for name, value in self.rows.items()}
        kept = {name: None if (value := getattr(self, name)) is None else value[index] for name in ("text", "start")}
        return replace(self, canvas=self.canvas[index], rows=rows, **kept)
