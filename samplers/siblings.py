"""Rewards of the k candidate tokens of a step, side by side in one row of a causal reward model, with cached keys and
values.

Every candidate has the position behind the text and attends to the text and to itself. k candidates cost k tokens; the
published loop of PARGS runs the whole text k times. Keys and values of the text are kept between steps. Each row reuses the
cached row with the longest common prefix, compared token by token. Rows may therefore leave, change places or be copied,
and no stale entry is used.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

if TYPE_CHECKING:
    import transformers


@lru_cache(maxsize=16)
def _among_new(new: int, k: int, device: torch.device) -> Bool[Tensor, "query key"]:
    """Attention mask of the new tokens: text attends to earlier text, a candidate to all text and to itself."""
    seen = torch.eye(new + k, dtype=torch.bool, device=device)
    seen[:, :new] = torch.ones(new + k, new, dtype=torch.bool, device=device).tril()
    return seen


Memory = list[tuple[Tensor, Tensor]]  # keys and values of each layer, [row, head, position, width]


class SiblingCache:
    """Rewards of the tokens that could follow a text, equal to the rewards of each extended text alone.

    Args:
        trunk: a causal model of transformers without its head.
        score: the reward from the last token's hidden state, [.., d] -> [..].

    positions: number of tokens run so far.
    """

    def __init__(self, trunk: Any, score: Callable[[Tensor], Tensor]):
        # Imported already where the trunk is a model of transformers; other commands do without its seconds.
        from transformers import DynamicCache

        self.new_cache = DynamicCache
        self.trunk: Any = trunk
        self.dtype = next(trunk.parameters()).dtype
        self.score = score
        self.positions = 0
        self.memory: Memory = []
        self.tokens = torch.zeros(0, 0, dtype=torch.long)
        self.length = torch.zeros(0, dtype=torch.long)

    @torch.no_grad()
    def __call__(
        self,
        tokens: Int[Tensor, "row position"],
        siblings: Int[Tensor, "row k"],
        real: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row k"]:
        """Return the reward of each candidate.

        Args:
            tokens: the texts, from column 0 on.
            siblings: the candidates of each text.
            real: False behind the end of shorter texts.
        """
        device = tokens.device
        length = torch.full_like(tokens[:, 0], tokens.shape[1]) if real is None else real.sum(1)
        kept, slot = self._agreement(tokens, length)
        past, new = int(kept.max()), int((length - kept).max())
        place = kept.unsqueeze(1) + torch.arange(new, device=device)  # of what runs anew
        inputs = torch.cat((tokens.gather(1, place.clamp(max=tokens.shape[1] - 1)), siblings), 1)
        places = torch.cat((place.minimum(length.unsqueeze(1)), length.unsqueeze(1).expand_as(siblings)), 1)
        seen = self._visible(kept, length, past, new, siblings.shape[1])
        cache = self.new_cache()
        for layer, pair in enumerate(self.memory):
            key, value = (part[:, :, :past] if self._in_place(slot) else part[slot, :, :past] for part in pair)
            if past:
                cache.update(key, value, layer)
        mask = torch.zeros(seen.shape, dtype=self.dtype, device=device).masked_fill_(~seen, torch.finfo(self.dtype).min)
        states = self.trunk(
            input_ids=inputs,
            position_ids=places,
            attention_mask=mask.unsqueeze(1),
            past_key_values=cache,
            use_cache=True,
        ).last_hidden_state
        self.positions += inputs.numel()
        self._keep(cache, tokens, kept, length, past, new)
        return self.score(states[:, new:]).float()

    def _in_place(self, slot: Int[Tensor, "row"]) -> bool:
        return len(slot) == len(self.length) and bool((slot == torch.arange(len(slot), device=slot.device)).all())

    def _agreement(
        self, tokens: Int[Tensor, "row position"], length: Int[Tensor, "row"]
    ) -> tuple[Int[Tensor, "row"], Int[Tensor, "row"]]:
        """Return the length of the cached common prefix of each text, and the cached row that has it."""
        if len(self.length) == 0:
            return torch.zeros_like(length), torch.zeros_like(length)
        columns = min(tokens.shape[1], self.tokens.shape[1])
        same = self.tokens[:, :columns].unsqueeze(0) == tokens[:, :columns].unsqueeze(1)
        agreed = same.long().cumprod(2).sum(2)
        agreed = agreed.minimum(self.length.unsqueeze(0)).minimum(length.unsqueeze(1))
        own = torch.arange(len(agreed), device=tokens.device)
        best = agreed.max(1)
        if len(agreed) == len(self.length) and bool((agreed[own, own] == best.values).all()):
            return best.values, own  # the usual step: nothing moves
        return best.values, best.indices

    @staticmethod
    def _visible(
        kept: Int[Tensor, "row"], length: Int[Tensor, "row"], past: int, new: int, k: int
    ) -> Bool[Tensor, "one_or_row query key"]:
        """Attention mask: which keys (cached, new, candidates) each query (new, candidates) attends to; one row if all are
        equal.
        """
        device, rows = kept.device, len(kept)
        if bool((kept == past).all()) and bool((length == past + new).all()):  # the usual step
            return F.pad(_among_new(new, k, device), (past, 0), value=True).unsqueeze(0)
        anew = torch.arange(new, device=device)
        of_past = (torch.arange(past, device=device) < kept.unsqueeze(1)).unsqueeze(1).expand(-1, new + k, -1)
        there = anew < (length - kept).unsqueeze(1)
        to_new = torch.cat((
            (anew.unsqueeze(1) >= anew).expand(rows, -1, -1), there.unsqueeze(1).expand(-1, k, -1)
        ), 1)  # fmt: skip
        itself = torch.eye(k, dtype=torch.bool, device=device).expand(rows, -1, -1)
        to_siblings = torch.cat((torch.zeros(rows, new, k, dtype=torch.bool, device=device), itself), 1)
        return torch.cat((of_past, to_new, to_siblings), 2)

    def _keep(
        self, cache: transformers.DynamicCache, tokens: Int[Tensor, "row position"], kept: Int[Tensor, "row"],
        length: Int[Tensor, "row"], past: int, new: int,
    ) -> None:  # fmt: skip
        """Store the keys and values of the texts; those of the candidates are dropped."""
        longest = int(length.max())
        self.tokens, self.length = tokens[:, :longest], length
        layers: list[Any] = cache.layers
        pairs: Memory = [(layer.keys, layer.values) for layer in layers]
        if bool((kept == past).all()):  # the usual step: the new entries are already in place
            self.memory = [(key[:, :, : past + new], value[:, :, : past + new]) for key, value in pairs]
            return
        place = torch.arange(longest, device=tokens.device)
        source = torch.where(place < kept.unsqueeze(1), place, past + place - kept.unsqueeze(1)).clamp(
            max=past + new - 1
        )
        row = torch.arange(len(kept), device=tokens.device).unsqueeze(1)
        self.memory = [
            (key[row, :, source].transpose(1, 2), value[row, :, source].transpose(1, 2)) for key, value in pairs
        ]
