"""Infilling by a masked model: masks behind the text while it is generated, and the continuation revealed from the left
afterwards.

p(text) is the distribution of the model with that many masks behind the text, and the continuation, token by token, is an
exact sample given the text: infilling as in Zhao et al. (2404.17546), for a masked model. What differs from decoding with
the continuation on the canvas: there each conditional uses it already, and they belong to no known joint distribution.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

from dlm.encoding import text_ids
from dlm.masked_lm import MaskedLM

FOLLOWED = ("infilling", "continuation")  # targets that ask what comes behind the text


class BeforeTail(MaskedLM):
    """The model `whole` on canvases that are followed by `tail` masks, which it sees and which are never committed or
    requested.
    """

    def __init__(self, whole: MaskedLM, tail: int):
        super().__init__(whole.backbone, str(whole.dtype).removeprefix("torch."))
        self.vocab_size, self.mask_id, self.hidden_size = whole.vocab_size, whole.mask_id, whole.hidden_size
        self.tokenizer, self.model_id, self.time_conditioned = whole.tokenizer, whole.model_id, whole.time_conditioned
        self.whole, self.tail, self.max_length = whole, tail, whole.max_length - tail

    def hidden(self, tokens, read, sigma=None, start=None):
        return self.whole.hidden(*self._followed(tokens, read), sigma, start)

    def hidden_rows(self, tokens, read, sigma):
        return self.whole.hidden_rows(*self._followed(tokens, read), sigma)

    def head(self, hidden):
        return self.whole.head(hidden)

    def _followed(self, tokens, read):
        return F.pad(tokens, (0, self.tail), value=self.mask_id), F.pad(read, (0, self.tail))


def with_tail(model: MaskedLM, target: Mapping[str, Any]) -> MaskedLM:
    """Return the model for this target: for a masked model and a target of continuations, with masks behind the text."""
    if model.causal or target["kind"] not in FOLLOWED:
        return model
    if target["kind"] == "infilling":
        return BeforeTail(model, target["tokens"])
    return BeforeTail(model, len(text_ids(model.tokenizer, target["text"])))
