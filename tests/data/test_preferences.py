"""Preferences read from published layouts, and the rows made of them: prefixes of one length, one mask for both sides."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, DatasetDict
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from data.preferences import SHAPES, Preference, draw_mask, load_preferences, mask_rows, preference_rows, prefix_rows
from rewards.template import encode

ROOT = Path(__file__).resolve().parents[2]
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "<end>", "<start>", *"abcdefgh"]
PAIRS = [Preference("a b", "c d e", "c f"), Preference("", "a", "b b b"), Preference("a", "c", "c")]


def tokenizer(**marks) -> PreTrainedTokenizerFast:
    """A token a word."""
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, **marks)


ENCODER = {"cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]", "pad_token": "[PAD]"}
CAUSAL = {"eos_token": "<end>", "bos_token": "<start>", "mask_token": "[MASK]"}


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


# ------------------------------------------------------------------------------------------ loading


def tldr_row(post="I lost a shoe.", choice=1) -> dict:
    return {
        "info": {"id": "1", "post": post, "title": "Shoe", "subreddit": "advice", "site": None, "article": None},
        "summaries": [{"text": " one", "policy": "ref", "note": None}, {"text": "two ", "policy": "sup", "note": None}],
        "choice": choice,
    }


def saved(folder: Path, name: str, **splits) -> Path:
    DatasetDict({split: Dataset.from_list(rows) for split, rows in splits.items()}).save_to_disk(str(folder / name))
    return folder


def test_tldr_has_one_template_and_rows_without_a_post_are_counted(tmp_path):
    same = tldr_row()
    same["summaries"][0]["text"] = "two"
    saved(tmp_path, "tldr", train=[tldr_row(), tldr_row(post=None), same], validation=[tldr_row(choice=0)])
    found, dropped = load_preferences("tldr", "train", tmp_path)
    assert found == [Preference("SUBREDDIT: r/advice\nTITLE: Shoe\nPOST: I lost a shoe.\nTL;DR:", " two", " one")]
    assert dropped == {"no post": 1, "identical": 1}
    assert load_preferences("tldr", "valid", tmp_path)[0][0].chosen == " one"


def test_hh_is_cut_at_the_last_turn(tmp_path):
    start = "\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: A joke!\n\nAssistant:"
    good = {"chosen": start + " Knock knock.", "rejected": start + " No."}
    other = {"chosen": "\n\nHuman: A\n\nAssistant: x", "rejected": "\n\nHuman: B\n\nAssistant: y"}
    saved(tmp_path, "hh", train=[good, other], test=[good])
    found, dropped = load_preferences("hh", "train", tmp_path)
    assert found == [Preference(start, " Knock knock.", " No.")] and dropped == {"prompts differ": 1}


def test_local_lines_and_what_is_wrong_with_them(tmp_path):
    file = tmp_path / "pairs.jsonl"
    lines = [
        {"prompt": "a", "chosen": "b", "rejected": "c", "chosen_ends": False},
        {"prompt": "a", "chosen": "b", "rejected": "b "},
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found, dropped = load_preferences(str(file), "train")
    assert found == [Preference("a", "b", "c", False, True)] and dropped == {"identical": 1}
    file.write_text(json.dumps(lines[1]) + "\n")
    with pytest.raises(ValueError, match=r"leaves no pair to learn from \(1 identical\)"):
        load_preferences(str(file), "train")
    file.write_text('{"prompt": "a", "chosen": "b"}\n')
    with pytest.raises(ValueError, match="line 1: expected the texts prompt, chosen, rejected"):
        load_preferences(str(file), "train")
    file.write_text('{"prompt": "a", "chosen": "b", "rejected": "c", "chosen_ends": "yes"}\n')
    with pytest.raises(ValueError, match="line 1: chosen_ends='yes' must be true or false"):
        load_preferences(str(file), "train")
    with pytest.raises(ValueError, match="give one of tldr, hh, or JSONL"):
        load_preferences("tldrr", "train")


def test_a_subset_is_drawn_by_the_seed(tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": str(n), "chosen": "b", "rejected": "c"}) + "\n" for n in range(50)))
    draw = lambda seed: [p.prompt for p in load_preferences(str(file), "train", None, 10, seed)[0]]
    assert draw(0) == draw(0) != draw(1) and len(set(draw(0))) == 10


def test_a_hub_that_cannot_be_reached_is_said(tmp_path, monkeypatch):
    def refuse(**_):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", refuse)
    with pytest.raises(
        ValueError, match=r"'hh' \(hub id Anthropic/hh-rlhf\) cannot be reached: check the network, or put"
    ):
        load_preferences("hh", "train", tmp_path)


# ------------------------------------------------------------------------------------------ the template


def test_one_template():
    assert encode(tokenizer(**ENCODER), "a b", "c") == (ids("[CLS] a b [SEP]"), ids("c [SEP]"))
    assert encode(tokenizer(**ENCODER), "", "c", False) == (ids("[CLS]"), ids("c"))
    assert encode(tokenizer(**CAUSAL), "a", "c") == (ids("a"), ids("c <end>"))
    with pytest.raises(ValueError, match="no end of sequence"):
        encode(tokenizer(), "a", "c")


def test_prompt_and_answer_are_encoded_apart_as_they_are_decoded():
    stories = AutoTokenizer.from_pretrained(ROOT / "example/stories")
    prompt, answer = encode(stories, "Once upon", " a time", False)
    assert prompt == stories.encode("Once upon") and answer == stories.encode(" a time")


# ------------------------------------------------------------------------------------------ rows


def test_full_rows_end():
    rows, dropped = preference_rows(PAIRS, tokenizer(**CAUSAL), "full", 20)
    assert rows["chosen_ids"] == [ids("a b c d e <end>"), ids("a <end>")]
    assert rows["rejected_ids"] == [ids("a b c f <end>"), ids("b b b <end>")] and dropped == {"identical ids": 1}
    cut = [Preference("a", "b", "c d", chosen_ends=False)]
    rows, _ = preference_rows(cut, tokenizer(**CAUSAL), "full", 20)
    assert (rows["chosen_ids"], rows["rejected_ids"]) == ([ids("a b")], [ids("a c d <end>")])


def test_prefixes_have_one_length_no_end_that_was_not_there_and_no_decoding():
    rows, dropped = preference_rows(PAIRS, tokenizer(**CAUSAL), "prefix", 20)
    pairs = list(zip(rows["chosen_ids"], rows["rejected_ids"], rows["length"], strict=True))
    assert pairs == [
        (ids("a b c d"), ids("a b c f"), 2),  # length 1 is the same on both sides
        (ids("a b c d e"), ids("a b c f <end>"), 3),
        (ids("a"), ids("b"), 1),
        (ids("a <end>"), ids("b b"), 2),
    ]
    assert dropped == {"identical ids": 1}


def test_prefixes_of_tokens_that_no_text_has():
    """A piece of a UTF-8 character is cut as it is: decoded and encoded again it would be another row."""
    stories = AutoTokenizer.from_pretrained(ROOT / "example/stories")
    pair = Preference("", "☃☃", "☂☂☂")
    rows, _ = preference_rows([pair], stories, "prefix", 50)
    whole = encode(stories, "", pair.chosen)[1]
    assert all(row == whole[: len(row)] for row in rows["chosen_ids"]) and len(rows) > 2
    assert any(stories.encode(stories.decode(row)) != row for row in rows["chosen_ids"])


def test_some_lengths_of_each_pair_are_drawn():
    rng = np.random.default_rng(0)
    made = list(prefix_rows([], list(range(0, 20)), list(range(20, 40)), rng, 5))
    assert len({row["length"] for row in made}) == 5 and all(len(row["chosen_ids"]) == row["length"] for row in made)


@pytest.mark.parametrize("canvas", [None, 12])
def test_both_sides_have_the_same_mask_and_differ_where_it_is_not(canvas):
    prompt, chosen, rejected = ids("a b"), ids("c d e <end>"), ids("c f <end>")
    end, mask = WORDS.index("<end>"), WORDS.index("[MASK]")
    made = list(mask_rows(prompt, chosen, rejected, np.random.default_rng(0), 60, canvas, end, mask))
    length = 6 if canvas is None else canvas
    assert made[0]["masked"] == 0 and len(made) > 20
    for row in made:
        one, other = np.array(row["chosen_ids"]), np.array(row["rejected_ids"])
        assert len(one) == len(other) == length and (one[:2] == prompt).all()
        assert ((one == mask) == (other == mask)).all() and (one != other).any()
        assert row["masked"] == pytest.approx((one == mask)[2:].mean())
        assert (one[7:][one[7:] != mask] == end).all()


def test_masks_keep_away_from_one_and_have_their_shapes():
    rng = np.random.default_rng(0)
    shares = {shape: [draw_mask(64, shape, rng) for _ in range(600)] for shape in SHAPES}
    for shape, masks in shares.items():
        mean = np.mean([mask.mean() for mask in masks])
        assert abs(mean - 1 / 3) < 0.06, shape  # Beta(1, 2)
    assert all(
        not mask[: mask.argmax()].any() and (mask[mask.argmax() :].all() or not mask.any()) for mask in shares["prefix"]
    )
    block = next(mask for mask in shares["block"] if 0 < mask.sum() < 64 and mask[-1])
    assert not block[: block.argmax()].any()
    assert np.mean([mask.mean() > 0.9 for masks in shares.values() for mask in masks]) < 0.03


def test_what_is_too_long_or_the_same_is_dropped_and_counted():
    rows, dropped = preference_rows(PAIRS, tokenizer(**CAUSAL), "mask", 5, 3)
    assert dropped == Counter({"longer than 5": 1, "identical ids": 1}) and len(rows) <= 4
    with pytest.raises(ValueError, match=r"no pair is left of 3 \(3 longer than 2\); raise data.max_length"):
        preference_rows(PAIRS, tokenizer(**CAUSAL), "full", 2)


def test_what_is_drawn_for_a_pair_is_its_own():
    marks = tokenizer(**CAUSAL)
    alone, _ = preference_rows(PAIRS[:1], marks, "mask", 20, 4, seed=3)
    among, _ = preference_rows(PAIRS, marks, "mask", 20, 4, seed=3)
    assert alone.to_list() == among.to_list()[: len(alone)]
    other, _ = preference_rows(PAIRS[:1], marks, "mask", 20, 4, seed=4)
    assert alone.to_list() != other.to_list()
