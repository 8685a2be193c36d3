"""From user text to token ids. The name of a special token in a text (`<|im_end|>`, `[MASK]`) stands for its letters.

Every prompt, question, answer, preference and target goes through `text_ids`; chat messages go through `message_ids`, where
only the template writes special tokens.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

if TYPE_CHECKING:
    import transformers

STAND_INS = 0x10F000  # private use: the first of the characters that replace names of special tokens in a message


@runtime_checkable
class Vocabulary(Protocol):
    """The attributes of a model that encoding needs."""

    tokenizer: Any
    mask_id: int
    vocab_size: int


def is_text_tokenizer(tokenizer: object) -> bool:
    """Return whether it is a tokenizer of transformers (which is then already imported)."""
    module = sys.modules.get("transformers.tokenization_utils_base")
    return module is not None and isinstance(tokenizer, module.PreTrainedTokenizerBase)


def without_surrogates(text: str) -> str:
    """Join halves of surrogate pairs, and replace single halves by U+FFFD.

    They come from cut emoji in JSON or from bytes of a command line that are not UTF-8. No tokenizer and no UTF-8 file
    accepts them.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def text_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the ids of a text, without special tokens."""
    return batch_ids(tokenizer, [text])[0]


def batch_ids(tokenizer: Any, texts: Sequence[str], longest: int | None = None) -> list[list[int]]:
    """Apply `text_ids` to many texts, in one call of the tokenizer.

    Args:
        tokenizer: of transformers.
        texts: as a user wrote them.
        longest: None for the text only. Otherwise the tokenizer's special tokens around a text are added, and the row is
            cut to this length.
    """
    if not texts:
        return []
    cleaned = [without_surrogates(text) for text in texts]
    around = {} if longest is None else {"truncation": True, "max_length": longest}
    return tokenizer(
        cleaned, add_special_tokens=longest is not None, split_special_tokens=True, verbose=False, **around
    )["input_ids"]


def model_ids(model: Vocabulary, text: str, name: str) -> list[int]:
    """Apply `text_ids` for a model. name: description of the text in the message.

    Raises:
        ValueError: an id is the mask token, which would be decoded, or has no embedding in the model.
    """
    ids = text_ids(model.tokenizer, text)
    check_ids(model, ids, f"{name} {text[-60:]!r}")
    return ids


def check_ids(model: Vocabulary, ids: Sequence[int], label: str) -> None:
    """Raise ValueError that begins with `label` if ids contain the mask token or an id past the vocabulary."""
    if model.mask_id in ids:
        raise ValueError(f"{label} holds the mask token as a word of its vocabulary; take it out")
    check_embedded(model.vocab_size, ids, label)


def check_embedded(vocab_size: int, ids: Sequence[int], label: str) -> None:
    """Raise ValueError that begins with `label` for an id past the vocabulary of a model."""
    if (past := max(ids, default=0)) >= vocab_size:
        raise ValueError(
            f"{label} has the token {past} and the model {vocab_size} tokens; give the model with its own tokenizer"
        )


def _unknown_token(tokenizer: Any) -> str | None:
    """The unknown token of the model inside a fast tokenizer; None for kinds that have none."""
    from tokenizers.models import BPE, WordLevel, WordPiece

    model = tokenizer.backend_tokenizer.model
    return model.unk_token if isinstance(model, BPE | WordLevel | WordPiece) else None


def unwritable(tokenizer: Any, text: str) -> str:
    """Return the first word or character that the tokenizer drops or replaces by its unknown token; empty if there is
    none.
    """
    if not tokenizer.is_fast:  # no offsets; such tokenizers fall back to bytes or to an unknown token
        return ""
    text = without_surrogates(text)
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True)
    unknown = {tokenizer.unk_token, _unknown_token(tokenizer)}
    written = set()
    tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
    for token, (start, end) in zip(tokens, encoded["offset_mapping"], strict=True):
        if token not in unknown or text[start:end].strip() == token:
            written |= set(range(start, end))
    lost = next((place for place, letter in enumerate(text) if place not in written and not letter.isspace()), None)
    return "" if lost is None else text[lost:].split()[0]


# -------------------------------------------------------------------------------------------------------------------- chats


def message_ids(tokenizer: Any, message: str, answer: str = "") -> list[int]:
    """Return a user's message in the tokenizer's chat template, up to the answer, followed by the beginning of the answer."""
    return messages_ids(tokenizer, [{"role": "user", "content": message}], answer)


def messages_ids(tokenizer: Any, messages: Sequence[Mapping[str, str]], answer: str = "") -> list[int]:
    """Return a conversation in the tokenizer's chat template, up to the next answer, followed by the beginning of the
    answer.
    """
    chat = [{**message, "content": hidden_names(tokenizer, message["content"])} for message in messages]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    return rendered_ids(tokenizer, rendered + hidden_names(tokenizer, answer))


def special_names(tokenizer: transformers.PreTrainedTokenizerBase) -> list[str]:
    """Return the names of the special tokens, in the order of their ids."""
    return [added.content for _, added in sorted(tokenizer.added_tokens_decoder.items()) if added.special]


def hidden_names(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> str:
    """Replace each name of a special token in a message by one private character. The result is the input of a chat
    template.
    """
    stand_in = {name: chr(STAND_INS + number) for number, name in enumerate(special_names(tokenizer))}
    return _any_of(stand_in).sub(lambda found: stand_in[found[0]], without_surrogates(text)) if stand_in else text


def rendered_ids(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    """Return the ids of a rendered chat template. Special tokens of the template are tokens; names in a message are text."""
    names = special_names(tokenizer)
    name = {chr(STAND_INS + number): name for number, name in enumerate(names)}
    if not any(letter in name for letter in text):
        return tokenizer.encode(text, add_special_tokens=False)
    ids: list[int] = []
    at = 0
    for special in [*_any_of(names).finditer(text), None]:
        between = text[at : special.start() if special else len(text)]
        if between:
            ids += text_ids(tokenizer, "".join(name.get(letter, letter) for letter in between))
        if special:
            own = tokenizer.convert_tokens_to_ids([special[0]])
            ids += [own] if isinstance(own, int) else own
            at = special.end()
    return ids


def _any_of(names: Sequence[str] | dict[str, str]) -> re.Pattern[str]:
    return re.compile("|".join(re.escape(name) for name in sorted(names, key=len, reverse=True)))
