"""Tokenizers of checkpoints: boards of digits, and those of transformers, which is imported when one of them is read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlm.board import BoardTokenizer
from dlm.checkpoints.files import fetch, is_there
from training.hub import prepare
from training.usage import readable


def board_tokenizer(config: dict[str, Any]) -> BoardTokenizer | None:
    """Return the tokenizer of the board that config.json describes; None if it describes none. It has no files."""
    return BoardTokenizer(tuple(config["puzzle"]["box"])) if "puzzle" in config else None


def read_tokenizer(folder: str, plain: bool = False) -> Any:
    """Return the tokenizer of a directory or hub repository.

    Args:
        folder: directory or hub id.
        plain: read tokenizer.json directly. transformers would choose a class by the model's name.

    Returns:
        None if there is no tokenizer or the hub cannot be reached: the model then works on token ids.

    Raises:
        ValueError: the tokenizer is damaged; names the file.
    """
    if is_there(folder, "tokenizer.json"):
        from transformers import AutoTokenizer, PreTrainedTokenizerFast

        with readable(fetch(folder, "tokenizer.json")):
            kind = PreTrainedTokenizerFast if plain else AutoTokenizer
            return kind.from_pretrained(folder, trust_remote_code=False)
    if Path(folder).is_dir():
        return None
    from transformers import AutoTokenizer

    prepare(folder, "tokenizer")
    try:  # in the layouts that came before tokenizer.json
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError):  # the hub is out of reach
        return None
