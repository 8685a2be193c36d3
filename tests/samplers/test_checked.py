"""Rules and decoders of a user: a result that cannot be committed is one sentence that names the object."""

import pytest
import torch
from torch import nn

import unmask
from dlm.observation import Decision
from dlm.token_rule import TokenRule
from samplers.heuristics import UNMASKING_RULES, nothing
from samplers.loop import StepDecoder, Strategy
from tests.enumerable import RandomLM

MODEL = RandomLM(5, max_length=8)  # tokens 0 to 4, the mask token 5
PROMPT = [1, 2]


class Rule:
    """A rule that returns what a function of the observation returns."""

    def __init__(self, function):
        self.function = function

    def choose(self, observation, draws):
        return self.function(observation)


class Decide(Rule, StepDecoder):
    """A decoder of single steps."""

    choose = None

    def decide(self, observation, draws):
        return self.function(observation)


class Decode(Rule):
    """A decoder of whole canvases."""

    choose = None

    def decode(self, model, prompts, options, seed=0, row_id=None, record=None, on_step=None):
        return self.function(unmask.sample(model, PROMPT, length=8).samples)


def all_open(observation):
    return observation.writable.long(), nothing(observation)


def with_tokens(number):
    """A decision that commits one token everywhere."""
    return lambda seen: Decision(*all_open(seen)[:1], torch.full_like(seen.tokens, number), *[nothing(seen)] * 2)


def changed(decision, **fields):
    """The decision with other fields, which its class does not check."""
    for name, value in fields.items():
        object.__setattr__(decision, name, value)
    return decision


WRONG_RULES = [
    (lambda seen: None, "`choose` of the unmasking rule Rule returned NoneType"),
    (
        lambda seen: (torch.ones_like(seen.tokens), nothing(seen)),
        "Rule selected position 0 of sample 0, which is not open",
    ),
    (
        lambda seen: (seen.writable.float(), nothing(seen)),
        r"Rule returned ranks of shape \[1, 8\] and type torch.float32",
    ),
    (lambda seen: (seen.writable.long(), torch.zeros(7)), r"Rule returned log-probabilities of shape \[7\]"),
    (
        lambda seen: (torch.zeros_like(seen.tokens), nothing(seen)),
        r"Rule selected no position of sample 0 in step (8|12), where 6 positions are open",
    ),
]


@pytest.mark.parametrize(("function", "message"), WRONG_RULES)
def test_a_wrong_rule_is_one_sentence_as_an_object_in_a_strategy_and_by_its_name(function, message, monkeypatch):
    monkeypatch.setitem(UNMASKING_RULES, "wrong", None)
    del UNMASKING_RULES["wrong"]  # removed again after the test
    unmask.register("wrong", lambda: Rule(function))
    for strategy in (Rule(function), Strategy(Rule(function), TokenRule()), "wrong"):
        with pytest.raises(ValueError, match=message):
            unmask.sample(MODEL, PROMPT, strategy=strategy, steps=2, length=8)
    with pytest.raises(ValueError, match=message):
        unmask.sample(MODEL, PROMPT, strategy="top_k", guide={"unmask": "wrong", "k": 2}, steps=2, length=8)


def test_a_rule_may_select_nothing_in_a_few_steps():
    def every_other_step(seen):
        order = seen.writable.cumsum(1).eq(1) & seen.writable & (seen.row_step % 2 == 1).unsqueeze(1)
        return order.long(), nothing(seen)

    out = unmask.sample(MODEL, PROMPT, strategy=Rule(every_other_step), steps=8, length=8)
    assert out.unmasked_at.tolist() == [[-1, -1, 1, 3, 5, 7, 9, 11]]


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (
            Decide(lambda seen: None),
            "`decide` of the decoder Decide returned NoneType; return a dlm.observation.Decision",
        ),
        (
            Decide(with_tokens(5)),
            "the decoder Decide committed token 5 at position 2 of sample 0; commit tokens from 0 to",
        ),
        (Decide(with_tokens(-1)), "committed token -1 at position 2"),
        (Decide(with_tokens(99)), "committed token 99 at position 2"),
        (
            Decide(lambda seen: changed(with_tokens(1)(seen), tokens=torch.zeros(1, 3, dtype=torch.long))),
            r"Decide returned tokens of shape \[1, 3\]",
        ),
        (
            Decide(lambda seen: changed(with_tokens(1)(seen), log_tokens=torch.zeros(7))),
            r"Decide returned log-probabilities of shape \[7\]",
        ),
        (
            Decode(lambda samples: None),
            "`decode` of the decoder Decode returned NoneType; return samplers.samples.Samples",
        ),
        (
            Decode(lambda samples: changed(samples, tokens=torch.full_like(samples.tokens, 5))),
            "the decoder Decode committed token 5 at position 2",
        ),
        (Rule, r"strategy=Rule is a class; give an object of it, Rule\(\)"),
        (nn.Linear(2, 2), r"strategy=Linear\(.*\) is of type Linear, which has neither `decode`"),
    ],
)
def test_a_wrong_decoder_is_one_sentence(strategy, message):
    with pytest.raises(ValueError, match=message):
        unmask.sample.__wrapped__(MODEL, PROMPT, strategy=strategy, steps=2, length=8)


def test_what_a_rule_raises_is_its_own():
    with pytest.raises(ZeroDivisionError):
        unmask.sample(MODEL, PROMPT, strategy=Rule(lambda seen: 1 / 0), steps=2, length=8)


@pytest.mark.parametrize(
    ("name", "rule", "message"),
    [
        (5, lambda: Rule(all_open), "the name 5 of a rule must be text that is not empty"),
        ("own", Rule(all_open), "the rule 'own' is an object of type Rule, which makes no rule; register its class"),
        ("own", lambda: Rule, "'own' makes a type"),
    ],
)
def test_a_registration_without_a_name_or_a_rule_is_one_sentence(name, rule, message):
    with pytest.raises(ValueError, match=message):
        unmask.register.__wrapped__(name, rule)
    assert "own" not in UNMASKING_RULES
