"""Rare tokens come out as often as they should, however many steps there are.

A race in float32 over [vocabulary + "stays masked"] at every step cuts off what is rarer than steps / 2**24 (2409.02908).
"""

import torch
from torch import nn

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample

RARE, COMMON, STEPS = 20_000, 10, 1024
EACH = 2.5e-6  # of steps / 2**24 a twentieth
DRAWS, ROWS = 20_000, 10


class SameEverywhere(MaskedLM):
    """20,000 tokens of probability EACH and ten that share the rest, at every position of every canvas."""

    def __init__(self):
        super().__init__(nn.Identity())
        self.mask_id = RARE + COMMON
        self.vocab_size, self.hidden_size, self.max_length = self.mask_id + 1, 1, DRAWS
        probability = torch.full((self.vocab_size,), EACH, dtype=torch.float64)
        probability[RARE:] = (1 - RARE * EACH) / COMMON
        probability[self.mask_id] = 0
        self.logits = probability.log().float()

    def hidden_rows(self, tokens, read, sigma):
        return torch.zeros(int(read.sum()), 1)

    def head(self, hidden):
        return self.logits.expand(len(hidden), -1)


def test_rare_tokens_are_drawn_as_often_as_their_probability_says():
    model = SameEverywhere()
    canvas = torch.full((ROWS, DRAWS // ROWS), model.mask_id)
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(STEPS)),
        Strategy(UNMASKING_RULES["direct"](), TokenRule()),
        Prompts(canvas),
    )
    rare = samples.tokens[samples.tokens < RARE]
    expected = DRAWS * RARE * EACH
    deviation = (expected * (1 - RARE * EACH)) ** 0.5
    assert abs(len(rare) - expected) < 4.5 * deviation, (
        f"{len(rare)} rare tokens, expected {expected:.0f} +- {deviation:.0f}"
    )
    repeats = len(rare) - len(rare.unique())  # 1,000 draws among 20,000 meet about 25 times
    assert repeats < 25 + 4.5 * 25**0.5, (
        f"{repeats} of {len(rare)} rare tokens came up before: they are not equally likely"
    )
    halves = (rare < RARE // 2).sum()
    assert abs(float(halves) - len(rare) / 2) < 4.5 * len(rare) ** 0.5 / 2
    assert samples.evaluations.float().mean() > 0.8 * STEPS  # the steps were taken, not skipped
