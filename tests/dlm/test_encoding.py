"""User text as token ids: whatever it spells, it is text, and every part of the project agrees on that."""

import json
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.answers import encode_pairs
from data.chain import chain_tokenizer
from data.pairs import load_pairs
from data.prompt_file import load_prompt_rows
from data.questions import canvases
from data.text import train_bpe
from dlm.encoding import (
    batch_ids,
    hidden_names,
    message_ids,
    model_ids,
    rendered_ids,
    text_ids,
    unwritable,
    without_surrogates,
)
from rewards.template import encode as encode_preference

NAMES = ("<|im_start|>", "<|im_end|>", "<mask>")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | trim }}<|im_end|>\n{% endfor %}"
    "<|im_start|>assistant\n"
)
SPELLED = "What is <|im_end|>, \ud83d, <mask> or <|endoftext|>?"
CLEAN = SPELLED.replace("\ud83d", "\ufffd")


@pytest.fixture(scope="module")
def tokenizer():
    tokenizer = train_bpe(["What is the mark of the user or assistant in a chat?"] * 3, 280)
    tokenizer.add_special_tokens({"additional_special_tokens": list(NAMES[:2]), "mask_token": NAMES[2]})
    tokenizer.chat_template = CHAT
    return tokenizer


@pytest.fixture(scope="module")
def model(tokenizer):
    return SimpleNamespace(
        tokenizer=tokenizer, mask_id=tokenizer.mask_token_id, vocab_size=len(tokenizer), max_length=200
    )


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=40))
@settings(max_examples=60, deadline=None)
def test_text_without_surrogates_is_any_text_that_a_file_can_hold(text):
    assert without_surrogates(text) == text
    assert without_surrogates(f"{text}\ud83d") == f"{text}\ufffd"
    assert without_surrogates("\ud83d\ude00") == "😀"


def test_names_of_special_tokens_are_letters_in_every_reader(model, tokenizer, tmp_path):
    special = set(tokenizer.all_special_ids)
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps({"prompt": SPELLED, "chosen": SPELLED, "rejected": "no"}) + "\n", encoding="utf-8")
    pairs = load_pairs(str(file), tokenizer, 180, model.mask_id)
    end = tokenizer.eos_token_id
    rows, prompts, _ = encode_pairs([(SPELLED, SPELLED)], tokenizer, 180, end, False)
    read = {
        "text_ids": text_ids(tokenizer, SPELLED),
        "batch_ids": batch_ids(tokenizer, [SPELLED])[0],
        "model_ids": model_ids(model, SPELLED, "the prompt"),
        "data.pairs": [token for token in pairs.chosen[0].tolist() if token != end],
        "data.answers": [token for token in rows[0].tolist() if token != end],
        "data.preferences": encode_preference(tokenizer, SPELLED, SPELLED)[0],
        "data.questions": canvases(SimpleNamespace(**vars(model) | {"tokenizer": bare(tokenizer)}), [SPELLED], 3)
        .canvas[0, :-3].tolist(),
    }  # fmt: skip
    for reader, ids in read.items():
        assert not special & set(ids), reader
        assert CLEAN in tokenizer.decode(ids), reader
    assert int(prompts) == len(text_ids(tokenizer, f"Question: {SPELLED}\nSolution:"))


def bare(tokenizer):
    """The tokenizer without its chat template."""
    copied = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    copied.chat_template = None
    return copied


def test_the_template_alone_writes_special_tokens(tokenizer):
    ids = message_ids(tokenizer, f"  {SPELLED} ", answer="I say <|im_end|>")
    start, end = tokenizer.convert_tokens_to_ids(list(NAMES[:2]))
    assert (ids.count(start), ids.count(end), ids.count(tokenizer.mask_token_id)) == (2, 1, 0)
    assert tokenizer.decode(ids) == (
        f"<|im_start|>user\n{CLEAN}<|im_end|>\n<|im_start|>assistantI say <|im_end|>"
    )  # what a message names is there, in letters


@given(st.text(st.characters(exclude_categories=("Cs", "Co")), max_size=30))
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_an_ordinary_message_has_the_tokens_of_the_rendered_chat(tokenizer, message):
    chat = [{"role": "user", "content": message}]
    plain = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert message_ids(tokenizer, message) == tokenizer.encode(plain, add_special_tokens=False)
    assert rendered_ids(tokenizer, hidden_names(tokenizer, message)) == tokenizer.encode(
        message, add_special_tokens=False
    )


def test_what_a_tokenizer_cannot_write_is_named(tokenizer):
    assert unwritable(tokenizer, f"any text, {SPELLED}") == ""  # bytes write everything
    chain = chain_tokenizer()
    assert unwritable(chain, "3 A +1 B *2 ?") == "" and unwritable(chain, "3 <eos>") == ""
    assert unwritable(chain, "3 A hello world") == "hello"


def test_ids_that_a_model_has_not_are_refused(model, tokenizer):
    small = SimpleNamespace(tokenizer=tokenizer, mask_id=270, vocab_size=271, max_length=9)
    with pytest.raises(ValueError, match=r"the suffix 'user or assistant' has the token 27\d and the model 271 tokens"):
        model_ids(small, "user or assistant", "the suffix")
    chain = chain_tokenizer()
    words = SimpleNamespace(tokenizer=chain, mask_id=chain.mask_token_id, vocab_size=len(chain), max_length=9)
    with pytest.raises(ValueError, match="holds the mask token as a word"):
        model_ids(words, "3 <mask>", "the prompt")


def test_a_prompt_of_a_file_is_taken_letter_by_letter(tmp_path):
    r"""A backslash and an n in JSON text are two letters, and `${...}` is no interpolation."""
    file = tmp_path / "prompts.jsonl"
    file.write_text(json.dumps({"prompt": r"a\nb ${seed}"}) + "\n", encoding="utf-8")
    assert load_prompt_rows(str(file))[0].prompt == r"a\nb ${seed}"
