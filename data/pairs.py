"""Preference pairs: a prompt, the preferred (chosen) answer and the rejected answer. One line of JSON each:

    {"prompt": "...", "chosen": "...", "rejected": "..."}

An answer follows its prompt directly, and the end of sequence fills the canvas behind it, as in fine-tuning.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from data.text import json_lines
from dlm.encoding import text_ids

FIELDS = ("prompt", "chosen", "rejected")


@dataclass
class Pairs:
    """N pairs on canvases of one length. free: positions behind the prompt, end of sequence included."""

    chosen: Int[Tensor, "pair position"]
    rejected: Int[Tensor, "pair position"]
    free: Bool[Tensor, "pair position"]

    def __len__(self) -> int:
        return len(self.chosen)

    def take(self, index: Int[Tensor, "kept"]) -> Pairs:
        """Return some of the pairs."""
        return Pairs(self.chosen[index], self.rejected[index], self.free[index])

    def to(self, device: torch.device) -> Pairs:
        return Pairs(self.chosen.to(device), self.rejected.to(device), self.free.to(device))

    def batch(self, count: int, step: int, seed: int) -> Pairs:
        """Return batch number `step`. Every pair comes once before any is repeated, in an order given by the seed."""
        place = torch.arange(step * count, (step + 1) * count)
        orders = {int(epoch): torch.randperm(len(self), generator=torch.Generator().manual_seed(seed + int(epoch)))
                  for epoch in (place // len(self)).unique()}  # fmt: skip
        return self.take(torch.stack([orders[int(p) // len(self)][int(p) % len(self)] for p in place]))


def load_pairs(path: str, tokenizer: Any, length: int, mask_id: int) -> Pairs:
    """Load the pairs of a JSONL file on canvases of `length`.

    Raises:
        ValueError: names a line that is broken, lacks a field, does not fit, or contains the mask token.
    """
    if not Path(path).is_file():
        raise ValueError(f"data.pairs: {path} is no file; give JSONL with the fields {', '.join(FIELDS)}")
    end = None if tokenizer is None else tokenizer.eos_token_id
    if end is None:
        raise ValueError("this model's tokenizer has no end of sequence, which ends an answer; give another model")
    rows: dict[str, list[list[int]]] = {"chosen": [], "rejected": []}
    prompts = []
    for line, record in json_lines(Path(path)):
        if not isinstance(record, dict) or not all(isinstance(record.get(name), str) for name in FIELDS):
            raise ValueError(f"{line}: expected the texts {', '.join(FIELDS)}; mend or delete the line")
        prompt, *answers = (text_ids(tokenizer, record[name]) for name in FIELDS)
        for name, answer in zip(FIELDS[1:], answers, strict=True):
            row = prompt + answer
            if len(row) > length:
                raise ValueError(
                    f"{line}: the prompt with the {name} answer has {len(row)} tokens and the canvas {length}; "
                    "shorten it, or raise data.length"
                )
            if mask_id in row:
                raise ValueError(
                    f"{line}: the {name} row holds the mask token as a word of the vocabulary; leave it out"
                )
            rows[name].append(row + [end] * (length - len(row)))
        if len(prompt) == length:
            raise ValueError(f"{line}: the prompt fills the canvas of {length}; raise data.length")
        prompts.append(len(prompt))
    if not prompts:
        raise ValueError(f"{path} holds no pair; give at least one line")
    place = torch.arange(length)
    free = torch.stack([place >= first for first in prompts])
    return Pairs(torch.tensor(rows["chosen"]), torch.tensor(rows["rejected"]), free)
