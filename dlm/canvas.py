"""Canvases from text: a prompt, a prompt and a suffix, a chat message, a template, or a board."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.board import BoardTokenizer
from dlm.encoding import check_ids, message_ids, messages_ids, model_ids, unwritable
from dlm.masked_lm import MaskedLM

# In a template. The space before a mask belongs to the word that will be generated there; `\[MASK]` is text.
MASKS = re.compile(r" ?(?<!\\)\[MASK(?::(\d+))?\]")
ESCAPED_MASK = re.compile(r"\\(\[MASK(?::\d+)?\])")


def canvas_of(
    model: MaskedLM,
    prefix: str | None = None,
    suffix: str | None = None,
    template: str | None = None,
    length: int | None = None,
    chat: bool = False,
) -> Int[Tensor, "position"]:
    r"""Build one canvas: open positions between `prefix` and `suffix`, or at [MASK:n] of `template`.

    Names of special tokens in a text, the mask token among them, stand for their letters; in a template, \[MASK] is text.

    Args:
        model: its tokenizer and longest canvas.
        prefix: the prompt; for a Sudoku model the puzzle.
        suffix: text at the end of the canvas.
        template: text with [MASK:n] for n open positions.
        length: positions of the canvas. None: the model's longest, or those of the template. A template is continued by
            open positions.
        chat: the prefix is a user's message, formatted by the model's chat template.

    Raises:
        ValueError: text, template or length do not fit the model.
    """
    if isinstance(model.tokenizer, BoardTokenizer):
        if suffix is not None or template is not None or chat:
            raise ValueError("a Sudoku model takes the puzzle as its prompt; leave suffix, template and chat out")
        return _with_something_to_write(_board_row(model, model.tokenizer, prefix, length), model)
    _check_parts(model, prefix, suffix, template, length)
    if template is None:
        length = length or model.max_length
        start, end = _message(model, prefix) if chat else _encode(model, prefix), _encode(model, suffix)
    else:
        start, end = _fill_in(model, template), []
        length = length or len(start)
    given = len(start) + len(end)
    if given > length or length > model.max_length:
        raise ValueError(
            f"the prompt has {given} positions and the canvas {min(length, model.max_length)}; shorten it or raise length "
            f"(at most {model.max_length})"
        )
    return _with_something_to_write([*start, *[model.mask_id] * (length - given), *end], model)


def _board_row(model: MaskedLM, tokenizer: BoardTokenizer, puzzle: str | None, length: int | None) -> list[int]:
    """Return the tokens of a puzzle; those of an empty board without a puzzle."""
    cells = tokenizer.size**2
    if length not in (None, cells):
        raise ValueError(f"length={length} is not that of a board of {cells} cells; leave it out")
    return [model.mask_id] * cells if puzzle is None else tokenizer.encode(puzzle)


def _check_parts(
    model: MaskedLM, prefix: str | None, suffix: str | None, template: str | None, length: int | None
) -> None:
    """Refuse parts of a canvas that contradict each other or the model: ValueError."""
    if template is not None and (prefix is not None or suffix is not None):
        raise ValueError("template stands for the whole canvas; leave prefix and suffix out, or write them into it")
    if model.causal and (suffix is not None or template is not None):
        raise ValueError("a causal model cannot see what stands to the right of a mask; give it a prefix only")
    if length is not None and not 1 <= length <= model.max_length:
        raise ValueError(f"length={length} must be from 1 to the model's {model.max_length}; change it")


def chat_canvas(
    model: MaskedLM, messages: Sequence[Mapping[str, str]], length: int | None = None
) -> Int[Tensor, "position"]:
    """Build the canvas of a conversation in the model's chat template, up to the beginning of the answer. ValueError
    without a template.
    """
    if model.tokenizer is None or model.tokenizer.chat_template is None:
        raise ValueError(f"{model.label} has no chat template; give the prompt as text")
    start, length = messages_ids(model.tokenizer, messages), length or model.max_length
    check_ids(model, start, "the messages")
    if len(start) > length or length > model.max_length:
        raise ValueError(
            f"the messages have {len(start)} positions and the canvas {min(length, model.max_length)}; shorten them or raise "
            f"length (at most {model.max_length})"
        )
    return _with_something_to_write([*start, *[model.mask_id] * (length - len(start))], model)


def _with_something_to_write(row: list[int], model: MaskedLM) -> Int[Tensor, "position"]:
    if model.mask_id not in row:
        raise ValueError(f"the prompt fills all {len(row)} positions; leave some to write")
    return torch.tensor(row)


def _encode(model: MaskedLM, text: str | None) -> list[int]:
    if not text:
        return []
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.label} cannot be loaded, so it takes no prompt; add tokenizer.json")
    if lost := unwritable(model.tokenizer, text):
        raise ValueError(
            f"the prompt {text[-60:]!r} holds {lost!r}, for which the tokenizer of {model.label} has no token; leave it out, "
            "and write [MASK:n] in a template (--template) for positions to fill"
        )
    return model_ids(model, text, "the prompt")


def _message(model: MaskedLM, message: str | None) -> list[int]:
    """Return the token ids of a user's message in the model's chat template, up to the beginning of the answer. ValueError
    without a template."""
    if message is None or model.tokenizer is None or model.tokenizer.chat_template is None:
        what = "there is no prompt" if message is None else f"{model.label} has no chat template"
        raise ValueError(f"--chat makes a message of the prompt, and {what}; leave --chat out")
    tokens = message_ids(model.tokenizer, message)
    check_ids(model, tokens, f"the prompt {message[-60:]!r}")
    return tokens


def _fill_in(model: MaskedLM, template: str) -> list[int]:
    if not MASKS.search(template):
        raise ValueError(f"the template {template!r} has nothing to fill; write [MASK:n] where n tokens are to stand")
    counts = [int(match[1] or 1) for match in MASKS.finditer(template)]
    if min(counts) < 1:
        raise ValueError(f"the template {template!r} has [MASK:0]; write [MASK:n] with n of at least 1")
    if sum(counts) > model.max_length:
        raise ValueError(
            f"the template {template!r} asks for too many positions; shorten it (at most {model.max_length})"
        )
    row: list[int] = []
    at = 0
    for match in [*MASKS.finditer(template), None]:
        text = template[at : match.start() if match else len(template)]
        row += _encode(model, ESCAPED_MASK.sub(r"\1", text))
        if match:
            row += [model.mask_id] * int(match[1] or 1)
            at = match.end()
    return row
