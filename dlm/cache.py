"""Keys and values that are kept between evaluations: exact for a causal model, approximate for a bidirectional one.

Bidirectional (Fast-dLLM, 2505.22618): the first evaluation of a block runs the whole row and keeps every layer's keys and
values. Later evaluations run from the block to the end of the row (`prefix`) or the block only (`dual`), against the kept
keys and values. What differs: each row moves through its blocks independently, and `refresh` also runs the whole row every
so many evaluations. Outside the window, rules and policies see the values of the last full forward pass, so a policy of the
whole canvas works with every cache.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.causal_lm import CausalLM
from dlm.masked_lm import POSITIONS_PER_FORWARD, LlamaLM, MaskedLM, groups, in_order, numbered
from model.llama import Memory

CACHES = ("prefix", "dual")


@dataclass
class KeyValueCache:
    """Cached keys and values of a batch.

    kind: prefix, dual or causal; refresh: evaluations between two full runs of a row (None: at block starts only); fresh:
    number of positions from the start of the row that are cached (causal), or whether all are (bidirectional); age:
    evaluations since the last full run; slot: for a causal model, the place of each row in `memory`. Copied rows share a
    place until one of them changes. All other fields are per row.
    """

    model: LlamaLM | CausalLM
    kind: str
    refresh: int | None
    memory: Memory
    fresh: Int[Tensor, "row"]
    age: Int[Tensor, "row"]
    slot: Int[Tensor, "row"]

    def select(self, index: Int[Tensor, "kept"]) -> None:
        """Keep, copy or reorder rows."""
        if self.kind != "causal":
            self._gather(index)
        self.fresh, self.age, self.slot = self.fresh[index], self.age[index], self.slot[index]

    def _gather(self, index: Int[Tensor, "place"]) -> None:
        self.memory = [(key.index_select(0, index), value.index_select(0, index)) for key, value in self.memory]

    def share(self, source: Int[Tensor, "requested"], rows: Int[Tensor, "requested"]) -> None:
        """Let `rows` use the cached values of `source` (causal models)."""
        for of_row in (self.fresh, self.age, self.slot):
            of_row[rows] = of_row[source]

    def make_room(self, rows: Int[Tensor, "requested"]) -> None:
        """Give each of `rows`, and each other row with cached values, its own place in memory, in order (causal models).

        Nothing moves if the places are already so.
        """
        keep = (self.fresh > 0).index_fill(0, rows, True).nonzero().squeeze(1)
        places = len(self.memory[0][0])
        source = self.slot[keep].clamp(max=places - 1)  # the place of a row that knew nothing may be gone
        place = torch.arange(len(keep), device=rows.device)
        if len(keep) != places or not torch.equal(source, place):
            self._gather(source)
            self.slot[keep] = place

    def due(self) -> Bool[Tensor, "row"]:
        """Mark rows that must run in full at their next evaluation."""
        if self.kind == "causal":
            return torch.zeros_like(self.fresh, dtype=torch.bool)
        due = self.fresh == 0
        return due if self.refresh is None else due | (self.age >= self.refresh)

    def spans(
        self, read: Bool[Tensor, "row position"], rows: Int[Tensor, "requested"], first: Tensor, block: int
    ) -> tuple[Int[Tensor, "requested"], Int[Tensor, "requested"]]:
        """Return the span [start, end) of the canvas that each of `rows` must run. first: start of the current block."""
        length = read.shape[1]
        place = torch.arange(length, device=read.device)
        lowest = torch.where(read[rows], place, length).amin(1)
        highest = torch.where(read[rows], place, -1).amax(1) + 1
        if self.kind == "causal":
            return torch.minimum(self.fresh[rows], lowest), highest
        start = first[rows]
        end = start + block if self.kind == "dual" else torch.full_like(start, length)
        whole = self.due()[rows] | (lowest < start) | (highest > end)  # what was never read is not known from before
        return torch.where(whole, 0, start), torch.where(whole, length, end)

    def run(
        self, tokens: Int[Tensor, "row position"], read: Bool[Tensor, "row position"], rows: Int[Tensor, "requested"],
        pad: Int[Tensor, "requested"], first: Int[Tensor, "requested"], last: Int[Tensor, "requested"],
    ) -> Float[Tensor, "read width"]:  # fmt: skip
        """Run [first, last) of each of `rows`, behind its padding, and cache the keys and values. Returns the hidden
        states at `read`.
        """
        first = torch.maximum(first, pad)
        if isinstance(self.model, LlamaLM):
            states = self.model.hidden_spans(tokens[rows], read[rows], pad, first, last, self.memory, rows)
        else:
            states = self.run_causal(tokens[rows], read[rows], rows, pad, first, last)
        if self.kind == "causal":
            self.fresh[rows] = last
        else:
            whole = rows[(first == pad) & (last == tokens.shape[1])]
            self.fresh[whole], self.age[whole] = 1, 0
        self.age[rows] += 1
        return states

    def run_causal(self, tokens, read, rows, pad, first, last) -> Float[Tensor, "read width"]:
        """Run rows with equal padding and equal span together; see `run`."""
        assert isinstance(self.model, CausalLM)
        self.make_room(rows)
        number, places, states = numbered(read), [], []
        for (skip, start, end), group in groups(pad, first, last):
            for part in group.split(max(1, POSITIONS_PER_FORWARD[tokens.device.type] // (end - start))):
                own = self.slot[rows[part]]
                whole = len(own) == len(self.memory[0][0])
                memory = [(key[:, :, skip:end], value[:, :, skip:end]) for key, value in self.memory]
                if not whole:
                    memory = [(key.index_select(0, own), value.index_select(0, own)) for key, value in memory]
                states.append(
                    self.model.hidden_span(tokens[part, skip:], read[part, skip:], memory, start - skip, end - skip)
                )
                places.append(number[part][read[part]])
                for kept, new in zip(self.memory, [] if whole else memory, strict=not whole):
                    for room, changed in zip(kept, new, strict=True):
                        room[own, :, start:end] = changed[:, :, start - skip : end - skip]
        return in_order(torch.cat(states), torch.cat(places))


def new_cache(model: MaskedLM, kind: str, refresh: int | None, rows: int, length: int, device) -> KeyValueCache:
    """Return an empty cache. ValueError for a model without support for caches."""
    if not isinstance(model, LlamaLM | CausalLM):
        raise ValueError(
            f"cache={kind} needs LLaDA, Dream or a causal model; {type(model).__name__} keeps no keys and values"
        )
    zeros = torch.zeros(rows, dtype=torch.long, device=device)
    return KeyValueCache(model, kind, refresh, model.new_memory(rows, length, device), zeros, zeros.clone(),
                         torch.arange(rows, device=device))  # fmt: skip
