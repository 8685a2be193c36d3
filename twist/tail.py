"""A masked model whose texts go on: what follows them is masked while they are written, and revealed from the left afterwards.

p(text) is then that of the model with so many masks behind it, and what follows, token by token, an exact sample of what the
model says of it: infilling of a masked model as Zhao et al. (2404.17546) have it of a causal one. What differs from writing what
follows on the canvas: there each conditional is of it already, and no joint law is known that it is a conditional of.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F

from dlm.encoding import text_ids
from dlm.masked_lm import MaskedLM

FOLLOWED = ("infilling", "continuation")  # targets that ask what comes behind the text


class BeforeTail(MaskedLM):
    """`whole` on canvases that `tail` masks follow, which it sees and nobody writes or reads."""

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
    """The model that writes towards this target: where it asks a masked one what follows, with masks for that."""
    if model.causal or target["kind"] not in FOLLOWED:
        return model
    if target["kind"] == "infilling":
        return BeforeTail(model, target["tokens"])
    return BeforeTail(model, len(text_ids(model.tokenizer, target["text"])))
