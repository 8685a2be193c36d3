"""A user's model: its attributes and outputs are checked once, before it is decoded from."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm.masked_lm import MaskedLM
from training.ranges import LENGTH, SIZE, Whole, as_text

ATTRIBUTES = {"vocab_size": Whole(1), "mask_id": Whole(0), "max_length": LENGTH, "hidden_size": SIZE}


@torch.no_grad()
def check_model(model: Any) -> None:
    """Refuse an object that is no model, and a model whose outputs cannot be decoded from.

    A model that `load_model` did not load is evaluated once, on two canvases of masks. Later steps are not checked.

    Raises:
        ValueError: names the model, the attribute or method, and what is expected.
    """
    if not isinstance(model, MaskedLM):
        raise ValueError(
            f"model={as_text(model)} is of type {type(model).__name__}; give a model that unmask.load returns, or a subclass of "
            "dlm.masked_lm.MaskedLM"
        )
    if model.is_checked:
        return
    name = f"the model {type(model).__name__}"
    _check_attributes(model, name)
    tokens = torch.full((2, min(3, model.max_length)), model.mask_id, device=model.device)
    read = torch.ones_like(tokens, dtype=torch.bool)
    read[int(not model.causal) :, 1:] = False  # a causal model reads behind committed tokens only
    hidden = model.hidden(tokens, read)
    _check_rows(
        hidden, [int(read.sum()), model.hidden_size], f"`hidden_rows` of {name}", "hidden_size", "read position"
    )
    if not bool(hidden.isfinite().all()):
        raise ValueError(f"`hidden_rows` of {name} returned NaN or infinite values; return finite numbers")
    logits = model.head(hidden.float())
    _check_rows(logits, [len(hidden), model.vocab_size], f"`head` of {name}", "vocab_size", "hidden state")
    if bool((logits.isnan() | (logits == torch.inf)).any()) or bool((logits == -torch.inf).all(1).any()):
        raise ValueError(
            f"`head` of {name} returned logits that are NaN, +inf, or -inf for every token; return finite logits"
        )
    if model.mask_id < model.vocab_size and bool((logits[:, model.mask_id] > -torch.inf).any()):
        raise ValueError(
            f"`head` of {name} returned a finite logit of the mask token {model.mask_id}, which would be committed; return -inf "
            "in this column"
        )
    model.is_checked = True


def _check_attributes(model: MaskedLM, name: str) -> None:
    """Refuse missing attributes and methods: ValueError."""
    for attribute, allowed in ATTRIBUTES.items():
        value = getattr(model, attribute, None)
        if not allowed.holds(value):
            raise ValueError(f"{name} has {attribute}={as_text(value)}, which must be {allowed.allowed}; set it")
    if model.mask_id > model.vocab_size:
        raise ValueError(
            f"{name} has mask_id={model.mask_id} and vocab_size={model.vocab_size}; the mask token is a column of the logits, or "
            "vocab_size itself for a network without such a column"
        )
    inherited = {
        "hidden_rows": type(model).hidden_rows is MaskedLM.hidden_rows,
        "head": type(model).head is MaskedLM.head and "head" not in dir(model.backbone),
    }
    if missing := [method for method, is_missing in inherited.items() if is_missing]:
        raise ValueError(f"{name} has no method `{missing[0]}`; define it as docs/adding.md describes")


def _check_rows(found: object, expected: list[int], name: str, columns: str, rows: str) -> None:
    """Refuse an output that is not one floating-point row for each position: ValueError."""
    if not isinstance(found, Tensor) or not found.is_floating_point() or list(found.shape) != expected:
        shape = (
            f"shape {list(found.shape)} and type {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        )
        raise ValueError(
            f"{name} returned {shape}; return floating-point numbers of shape {expected}, a row of {columns} for each {rows}"
        )
