"""Fingerprints of the model and the tokens that a policy, a twist or a head was trained on.

A `Fingerprint` stands under `trained_on` in the config.json beside the weights and in the checkpoints of a run. It is written on
save and compared on load with the model that the weights are to be used with. Published weights and older ones have none.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEY = "trained_on"  # of a config.json
EXAMPLES = Path(__file__).resolve().parents[1] / "example"
SAMPLED = 1024  # values of each tensor
PRECISIONS = (torch.bfloat16, torch.float16)
NOTHING = "the model"  # the name of a model that has none


def token_digest(tokenizer: Any) -> str:
    """Return the SHA-256 (16 hex digits) of a tokenizer's tokens with their ids and of its end of sequence.

    Token ids of one tokenizer have the same meaning for any other tokenizer with this digest. The mask token is left out,
    because a model adds its own to its tokenizer.
    """
    tokens = {token: number for token, number in tokenizer.get_vocab().items() if token != tokenizer.mask_token}
    written = json.dumps([sorted(tokens.items()), tokenizer.eos_token])
    return hashlib.sha256(written.encode()).hexdigest()[:16]


def weight_digests(weights: Iterable[tuple[str, Tensor]]) -> dict[str, str]:
    """Return the SHA-256 (16 hex digits) of names, shapes and up to 1,024 evenly spaced values of each tensor. Not a full
    hash.

    There is one digest for each precision of `PRECISIONS`, of the values rounded to it. Weights read in float32 and weights
    read in bfloat16 share the digest of bfloat16. Weights in float16 have only their own.
    """
    digests = {dtype: hashlib.sha256() for dtype in PRECISIONS}
    for name, tensor in sorted(weights, key=lambda named: named[0]):
        sampled = tensor.detach().reshape(-1)[:: max(1, tensor.numel() // SAMPLED)].cpu()
        for dtype in list(digests):
            if sampled.dtype not in (torch.float32, dtype):
                del digests[dtype]
                continue
            values = sampled.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()
            digests[dtype].update(f"{name}{tuple(tensor.shape)}".encode() + values)
    return {str(dtype).removeprefix("torch."): digest.hexdigest()[:16] for dtype, digest in digests.items()}


@dataclass(frozen=True)
class Fingerprint:
    """model: its path or hub id, for messages; weights: `weight_digests`; tokens: `token_digest`, None without a tokenizer."""

    model: str
    weights: dict[str, str]
    tokens: str | None
    mask_id: int

    def difference(self, other: Fingerprint) -> str:
        """Return how the models differ, "tokens" or "weights"; empty if they are the same, as far as both are known."""
        if self.mask_id != other.mask_id or (self.tokens and other.tokens and self.tokens != other.tokens):
            return "tokens"
        common = self.weights.keys() & other.weights.keys()
        return "weights" if common and all(self.weights[key] != other.weights[key] for key in common) else ""

    def as_dict(self) -> dict:
        return asdict(self)


def fingerprint_of(model: Any) -> Fingerprint:
    """Return the fingerprint of a MaskedLM as it was read. A model with an adapter differs from its base."""
    tokens = None if model.tokenizer is None else token_digest(model.tokenizer)
    return Fingerprint(short_path(model.model_id or NOTHING), digests_of(model), tokens, model.mask_id)


def digests_of(model: Any) -> dict[str, str]:
    """Return `weight_digests` of a MaskedLM as it was read."""
    return model.read_weights or weight_digests(model.backbone.named_parameters())


def digest_of(digests: dict[str, str]) -> str:
    """Return the one of `weight_digests` that all models have whose precision is not float16."""
    return digests.get("bfloat16") or next(iter(digests.values()), "")


def joined_digests(base: dict[str, str], adapter: dict[str, str]) -> dict[str, str]:
    """Return the digests of a base with an adapter, in the precisions that both have."""
    return {
        key: hashlib.sha256(f"{base[key]} {adapter[key]}".encode()).hexdigest()[:16] for key in base if key in adapter
    }


def short_path(path: str | Path) -> str:
    """Return the path or hub id; shipped checkpoints as example/NAME, independently of this repository's location."""
    if Path(path).is_absolute() and Path(path).is_relative_to(EXAMPLES):
        return f"example/{Path(path).relative_to(EXAMPLES)}"
    return str(path)


def stored_fingerprint(config: dict, file: str | Path) -> Fingerprint | None:
    """Return the fingerprint in a config.json; None if there is none. ValueError names `file` if it is malformed."""
    stored = config.get(KEY)
    if stored is None:
        return None
    if isinstance(stored, dict) and stored.keys() == Fingerprint.__dataclass_fields__.keys():
        weights, tokens = stored["weights"], stored["tokens"]
        named = isinstance(weights, dict) and all(isinstance(word, str) for pair in weights.items() for word in pair)
        typed = isinstance(stored["model"], str) and isinstance(stored["mask_id"], int)
        if named and typed and (tokens is None or isinstance(tokens, str)):
            return Fingerprint(**stored)
    raise ValueError(
        f"{file} has a {KEY} that is no fingerprint of a model; take {KEY} out, or give another checkpoint"
    )


def mismatch(known: Fingerprint, now: Fingerprint) -> str:
    """Return the words "was trained on MODEL, and MODEL has other tokens (or weights)"; empty if both are the same."""
    differing = known.difference(now)
    if not differing:
        return ""
    if known.model == now.model:
        return f"was trained on {known.model} as it was then, whose {differing} have changed"
    return f"was trained on {known.model}, and {now.model} has other {differing}"
