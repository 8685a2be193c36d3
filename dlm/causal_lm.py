"""CausalLM: any causal model of transformers as a MaskedLM that is decoded from left to right.

The prediction for a position is read one position to its left. Masks are never embedded: only the leftmost one may be
requested (`mask_id` is a virtual id past the vocabulary). Keys and values of committed tokens are cached exactly.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor

from dlm.masked_lm import MaskedLM
from model.llama import Memory


class CausalLM(MaskedLM):
    """Any causal model of transformers. Position 0 is predicted from the start token.

    Hidden states are float32 whatever the precision of the network, because trained heads read them.
    """

    causal = True

    def __init__(self, backbone: Any, start_id: int, dtype: str = "float32", tokenizer=None, model_id: str = ""):
        from dlm.room import filled_cache, sizes_of  # of transformers, as the backbone is: other models do without it

        super().__init__(backbone, dtype)
        self.filled_cache, self.sizes_of = filled_cache, sizes_of
        config = backbone.config
        self.vocab_size = self.mask_id = config.vocab_size
        self.max_length = positions_of(config) - 1
        self.hidden_size = backbone.get_output_embeddings().weight.shape[1]  # where OPT projects, not the blocks' width
        self.start_id, self.tokenizer, self.model_id = start_id, tokenizer, model_id

    def hidden_rows(self, tokens, read, sigma):
        last = int(read.any(0).nonzero().max()) + 1  # nothing to the right of the last position read is attended
        start = torch.full_like(tokens[:, :1], self.start_id)
        inputs = torch.cat((start, tokens[:, : last - 1]), 1)
        inputs = inputs.masked_fill(inputs == self.mask_id, self.start_id)  # unread: causal attention never looks there
        with self.autocast(tokens.device):
            states = self.backbone.base_model(input_ids=inputs, use_cache=False).last_hidden_state
        return states[read[:, :last]].float()

    @cached_property
    def rooms(self) -> list[list[tuple[int, int]]]:
        """Return (heads, width) of every layer's keys and values, from those of one token.

        Empty if layers keep another state (Mamba, RWKV): such a model runs in full at every evaluation.
        """
        parameter = next(self.backbone.parameters())
        token = torch.full((1, 1), self.start_id, device=parameter.device)
        with torch.no_grad(), self.autocast(parameter.device):
            output = self.backbone.base_model(input_ids=token, use_cache=True)
        return self.sizes_of(output.get("past_key_values"))

    def new_memory(self, rows: int, length: int, device: torch.device) -> Memory:
        """Allocate memory for keys and values; the start token has the first place."""
        dtype = next(self.backbone.parameters()).dtype if self.dtype == torch.float32 else self.dtype

        def room(heads: int, width: int) -> Tensor:
            return torch.zeros(rows, heads, length, width, dtype=dtype, device=device)

        return [(room(*keys), room(*values)) for keys, values in self.rooms]

    def hidden_span(self, tokens, read, memory: Memory, start: int, end: int):
        """Run the inputs [start, end) only; `memory` holds the exact keys and values before them. See `hidden_rows`."""
        inputs = F.pad(tokens, (1, 0), value=self.start_id)[:, start:end]
        inputs = inputs.masked_fill(inputs == self.mask_id, self.start_id)
        kept = self.filled_cache(memory, start)
        with self.autocast(tokens.device):
            states = self.backbone.base_model(input_ids=inputs, past_key_values=kept, use_cache=True).last_hidden_state
        return states[read[:, start:end]].float()

    def head(self, hidden):
        head = self.backbone.get_output_embeddings()
        with self.autocast(hidden.device):
            logits = head(self.padded(hidden.to(head.weight.dtype)))[: len(hidden)].float()
        return scaled(logits, self.backbone.config)

    def next_token_logits(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position vocabulary"]:
        """Teacher forcing for training: logits at position i predict token i + 1."""
        with self.autocast(tokens.device):
            return self.backbone(input_ids=tokens, use_cache=False).logits.float()


def positions_of(config: Any) -> int:
    """Return the longest input of a causal model, from its config.json. ValueError if it is missing."""
    for name in ("max_position_embeddings", "max_seq_len", "seq_length", "n_positions"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    raise ValueError(
        f"the config.json of this {config.model_type} does not say how many positions it has; add seq_length to it"
    )


def scaled(logits: Float[Tensor, "read vocabulary"], config: Any) -> Float[Tensor, "read vocabulary"]:
    """Apply the operation of some families behind the head: Cohere multiplies, Granite divides, Gemma 2 bounds the logits."""
    settings = vars(config)
    if factor := settings.get("logit_scale"):
        logits = logits * factor
    if divisor := settings.get("logits_scaling"):
        logits = logits / divisor
    if most := settings.get("final_logit_softcapping"):
        logits = most * torch.tanh(logits / most)
    return logits


def sequence_log_prob(
    model: CausalLM, tokens: Int[Tensor, "row position"], batch: int = 32
) -> Float[Tensor, "row position"]:
    """Return log p(token | previous tokens) at every position, the first given the start token, in float32."""
    out = []
    for part in tokens.split(batch):
        hidden = model.hidden_rows(part, torch.ones_like(part, dtype=torch.bool), None)
        targets = part.flatten()
        pieces = zip(hidden.split(model.chunk(part.device)), targets.split(model.chunk(part.device)), strict=True)
        out.append(
            torch.cat([-F.cross_entropy(model.head(h), t, reduction="none") for h, t in pieces]).view(part.shape)
        )
    return torch.cat(out)
