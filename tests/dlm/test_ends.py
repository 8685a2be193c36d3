"""An answer ends at its first end token, of the sequence or of a turn, and every reader of answers sees that end."""

from types import SimpleNamespace

import pytest
import torch

from data.text import train_bpe
from dlm.ends import before_end, end_tokens, has_end
from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from evaluation.decoding import answer_lengths, generations
from evaluation.metrics import quality
from rewards.latex import written
from rewards.learned import LearnedReward
from rewards.measures import unigram_entropy
from samplers.guided import Canvases, Template, Texts
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from samplers.samples import Samples
from tests.enumerable import random_radd
from tests.twist.test_network import tiny_causal
from twist.targets import ClassifiedTexts
from unmask.decoders import answer_texts

TURNS = ["<|eot_id|>", "<|im_end|>"]
MASK = 9999


@pytest.fixture(scope="module")
def tokenizer():
    made = train_bpe(["the cat sat on the mat and the dog ran away from a big red house " * 9] * 3, 270)
    made.add_special_tokens({"additional_special_tokens": TURNS})
    return made


def finished(tokenizer, end: str) -> Samples:
    """A prompt, "the cat sat", the end, other words, the end of sequence to the last position; and a row without an end."""
    prompt, answer, behind = (tokenizer(text)["input_ids"] for text in ("the dog", " the cat sat", "away from a house"))
    eos = tokenizer.eos_token_id
    row = [*prompt, *answer, tokenizer.convert_tokens_to_ids(end), *behind, eos, eos]
    endless = [*prompt, *(answer * len(row))][: len(row)]
    tokens = torch.tensor([row, endless])
    given = (torch.arange(len(row)) < len(prompt)).expand_as(tokens)
    one = torch.ones(2, dtype=torch.long)
    return Samples(
        tokens, given, torch.where(given, -1, 0), one, one, 1, 2, 1.0, 1.0, None, tuple(end_tokens(tokenizer))
    )


def test_ends_are_that_of_the_sequence_and_those_of_turns(tokenizer):
    ids = [tokenizer.convert_tokens_to_ids(turn) for turn in TURNS]
    assert end_tokens(tokenizer) == (tokenizer.eos_token_id, *ids)
    assert end_tokens(SimpleNamespace(eos_token_id=None)) == end_tokens(None) == ()


def test_only_what_was_written_ends_an_answer():
    tokens = torch.tensor([[7, 1, 2, 7, 3], [1, 2, 3, 4, 5], [8, 8, 1, 8, 7]])
    free = torch.tensor([[0, 1, 1, 1, 1], [1, 1, 1, 1, 1], [0, 0, 1, 1, 0]]).bool()
    kept = [[0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [0, 0, 1, 0, 0]]
    assert before_end(tokens, free, (7, 8)).long().tolist() == kept
    assert has_end(tokens, free, (7, 8)).tolist() == [True, False, True]
    assert before_end(tokens, free, ()).tolist() == free.tolist()


def test_an_end_of_the_prompt_ends_no_answer():
    """A chat's prompt has the ends of earlier turns."""
    tokens, given = torch.tensor([[7, 1, 2, 3], [7, 1, 7, 3]]), torch.tensor([[True, True, False, False]] * 2)
    one = torch.ones(2, dtype=torch.long)
    samples = Samples(tokens, given, torch.where(given, -1, 0), one, one, 1, 2, 1.0, 1.0, None, (7,))
    assert samples.ended.tolist() == [False, True]
    assert samples.counted.tolist() == [[True] * 4, [True, True, False, False]]


@pytest.mark.parametrize("end", ["<|endoftext|>", *TURNS])
def test_every_reader_of_answers_stops_at_the_same_place(tokenizer, end):
    samples, model = finished(tokenizer, end), random_radd(width=16, blocks=1)
    model.tokenizer = tokenizer
    first = int(samples.prompt[0].sum())
    answers, length = samples.tokens[:, first:], len(tokenizer(" the cat sat")["input_ids"])
    assert samples.answers(tokenizer)[0] == " the cat sat" and samples.ended.tolist() == [True, False]
    assert samples.answer.sum(1).tolist() == [length, answers.shape[1]] == answer_lengths(model, answers).tolist()
    assert samples.counted.sum(1).tolist() == [first + length, samples.tokens.shape[1]]
    assert samples.take(torch.tensor([0])).answers(tokenizer) == [" the cat sat"]
    assert written(samples.tokens, samples.prompt, tokenizer, MASK)[0] == " the cat sat"
    assert generations(model, answers)[0] == " the cat sat"
    texts, ended = answer_texts(model, answers)
    assert texts[0] == " the cat sat" and ended == [True, False]
    read = ClassifiedTexts(tokenizer, lambda texts: torch.tensor([float(len(text)) for text in texts]), first)
    assert read(samples.tokens)[0] == len("the dog the cat sat")


@pytest.mark.parametrize("end", TURNS)
def test_figures_and_rewards_are_of_the_answer(tokenizer, end):
    samples = finished(tokenizer, end)
    asked = {}

    def score_texts(prompts, texts, finished):
        asked.update(zip(("prompts", "texts", "finished"), (prompts, texts, finished), strict=True))
        return torch.zeros(2)

    output = LearnedReward(SimpleNamespace(score_texts=score_texts), tokenizer, MASK)(samples)
    assert (
        asked["prompts"][0] == "the dog" and asked["texts"][0] == " the cat sat" and asked["finished"] == [True, False]
    )
    alone = samples.tokens[:1][samples.answer[:1]][None]
    assert float(output.terms["entropy"][0]) == pytest.approx(float(unigram_entropy(alone)))
    other = samples.tokens.clone()
    other[0, int(samples.counted[0].sum()) + 1 :] = 5  # behind the end
    record = quality(samples.tokens, [], None, tokenizer, samples.counted)
    assert record == quality(other, [], None, tokenizer, samples.counted)
    assert record["entropy"] != quality(other, [], None, tokenizer)["entropy"]


def test_a_row_is_done_at_any_of_its_ends():
    model = random_radd(width=16, blocks=1)
    canvas = torch.full((64, 5), model.mask_id)
    strategy = Strategy(UNMASKING_RULES["leftmost"](), TokenRule())
    whole = sample(UnmaskingEnvironment(model, DecodeOptions(5)), strategy, Prompts(canvas)).tokens
    ends = (1, 0)
    samples = sample(UnmaskingEnvironment(model, DecodeOptions(5, ends=ends)), strategy, Prompts(canvas))
    for row, tokens in enumerate(whole.tolist()):
        first = next((place for place, token in enumerate(tokens) if token in ends), 5)
        expected = tokens[: first + 1] + [1] * (4 - first)
        assert samples.tokens[row].tolist() == expected and int(samples.evaluations[row]) == min(first + 1, 5)
    assert samples.ends == ends and samples.ended.tolist() == [bool({0, 1} & set(row)) for row in whole.tolist()]
    assert {0, 1} <= {next((t for t in row if t in ends), None) for row in whole.tolist()}, "both ends occur"


def test_a_guiding_reward_reads_the_end_of_a_turn_as_its_own_end():
    """Its rows end with the end of sequence, 0; the language model may write the end of a turn, 8."""
    seen = []

    def score(tokens, real):
        seen.extend(row[kept].tolist() for row, kept in zip(tokens, real, strict=True))
        return torch.zeros(len(tokens))

    model = tiny_causal()
    canvas = torch.tensor([[8, 5, 6, model.mask_id, model.mask_id]])
    observation = UnmaskingEnvironment(model, DecodeOptions(2)).reset(Prompts(canvas))
    row, position, candidates = torch.tensor([0]), torch.tensor([3]), torch.tensor([[8, 0, 4]])
    template = Template(first=1, end=0, turns=(8,))
    Canvases(SimpleNamespace(kind="prefix", score=score), template)(observation, row, position, candidates)
    assert seen == [[8, 5, 6, 0], [8, 5, 6, 0], [8, 5, 6, 4]]
    told = []
    decode = lambda rows: [" ".join(map(str, row)) for row in rows]

    def score_texts(prompts, texts, finished):
        told.extend(zip(prompts, texts, finished, strict=True))
        return torch.zeros(len(texts))

    Texts(score_texts, decode, template, "prefix")(observation, row, position, candidates)
    assert told == [("8", "5 6", True), ("8", "5 6", True), ("8", "5 6 4", False)]
