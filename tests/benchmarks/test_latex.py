"""The comparison of formula models: questions nobody saw, texts cut at their end, and a KL that is one."""

from pathlib import Path

import pytest
import torch

from benchmarks.latex import SEED, answered, distinct_trigrams, kl, questions
from data.formulas import is_held_out
from load_model import load_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def sft():
    return load_model(ROOT / "example/latex_sft")[0]


def test_questions_are_held_out_and_their_answers_are_not_shown(sft):
    canvas = questions(20, sft, sft.max_length)
    assert len(torch.unique(canvas, dim=0)) > 15
    for tokens in canvas:
        given = tokens[tokens != sft.mask_id]
        text = sft.tokenizer.decode(given)
        assert text.startswith("Question: ") and text.endswith("Solution:")
        assert is_held_out(text.removeprefix("Question: ").removesuffix("\nSolution:")) and SEED


def test_answers_end_at_the_end_of_text(sft):
    samples, texts = answered(sft, questions(4, sft, sft.max_length), 4, seed=0)
    assert not (samples.tokens == sft.mask_id).any() and len(texts) == 4
    assert all("endoftext" not in text and "Question" not in text[:8] for text in texts)


def test_the_kl_is_none_to_oneself_and_positive_to_another(sft):
    other = load_model(ROOT / "example/latex_rl")[0]
    samples, _ = answered(sft, questions(24, sft, sft.max_length), 8, seed=0)
    assert kl(sft, sft, samples) == 0
    assert kl(sft, other, samples) > 0.05


def test_trigrams():
    assert distinct_trigrams(["abcd", "abcd"]) == 0.5 and distinct_trigrams(["ab"]) == 0
