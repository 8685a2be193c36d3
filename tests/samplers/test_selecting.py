"""Decoders that remember steps or evaluate candidate canvases, against the same decoding in plain Python on table models."""

import math
import sys
from dataclasses import replace

import pytest
import torch

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import Confident, Threshold
from samplers.history import Credit, Credits, Klass, SlowFast
from samplers.lookahead import Lopa, Punt
from samplers.loop import Strategy, sample
from samplers.names import SELECTING
from samplers.settings import SamplerSettings, check_given
from tests.enumerable import RandomLM, TableLM, dependent_joint, fits, from_joint
from unmask.decoders import build_step_decoder

V, LENGTH = 3, 6


def table_model(spread, seed=7):
    """Outputs of a position that vary with the canvas by `spread`: a distribution settles sometimes."""
    generator = torch.Generator().manual_seed(seed)
    own = 1.2 * torch.randn(LENGTH, V, generator=generator)
    return TableLM(own + spread * torch.randn((V + 1) ** LENGTH, LENGTH, V, generator=generator))


MODEL = table_model(0.8)
ROUGH = table_model(2.0)
GREEDY = TokenRule(0.0)
DECODERS = {
    "klass": lambda tokens: Strategy(Klass(0.4, 0.5, 1), tokens),
    "slowfast": lambda tokens: Strategy(SlowFast(0.5, 0.5, 3), tokens),
    "credit": lambda tokens: Credit(tokens, 0.6),
    "adaptive": lambda tokens: Credit(tokens, 0.6, adaptive=True),
    "punt": lambda tokens: Punt(tokens, 0.2),
    "lopa": lambda tokens: Lopa(tokens, 0.6, 2),
}


def canvases(rows, seed, length=LENGTH, vocabulary=V):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    return tokens.masked_fill(torch.rand(rows, length, generator=generator) < 0.8, vocabulary)


def predicted(row):
    """p(token) at each position."""
    return MODEL.table.detach().double().exp()[int(MODEL.state(torch.tensor([row])))]


def open_of(row, block):
    first = next(i for i, token in enumerate(row) if token == V) // block * block
    return [i for i in range(first, first + block) if row[i] == V]


def divergence(now, before):
    return float((now * (now / before).log()).sum())


def most_confident(p, places, count):
    return sorted(places, key=lambda i: -float(p[i].max()))[:count]


def plain_klass(canvas, block, steps, threshold, kl, history):
    row, trace, evaluations, settled, before, old = list(canvas), [], 0, {}, None, None
    while V in row:
        places = open_of(row, block)
        if places[0] // block != old:
            old, before, settled, step, masks = places[0] // block, None, {}, 0, len(places)
        p, evaluations = predicted(row), evaluations + 1
        for i in places:
            settled[i] = settled.get(i, 0) + 1 if before is not None and divergence(p[i], before[i]) < kl else 0
        sure = [i for i in places if settled[i] >= history and float(p[i].max()) > threshold]
        count = max(1, masks // steps + (step < masks % steps))
        for i in sure or most_confident(p, places, count):
            row[i] = int(p[i].argmax())
        before, step = p, step + 1
        trace.append(list(row))
    return row, evaluations, trace


def plain_slowfast(canvas, block, threshold, span_threshold, slow_steps, k):
    row, trace, evaluations, old = list(canvas), [], 0, None
    while V in row:
        places = open_of(row, block)
        if places[0] // block != old:
            old, end, ends = places[0] // block, 0, []
        p, evaluations = predicted(row), evaluations + 1
        inside = [i for i in places if i < end]
        if inside:
            sure = [i for i in inside if float(p[i].max()) >= threshold]
            for i in sure or most_confident(p, inside, 1):
                row[i] = int(p[i].argmax())
            trace.append(list(row))
            continue
        ends = [] if end else ends
        ends = [*ends, max([places[0], *(i for i in places if float(p[i].max()) > span_threshold)]) + 1]
        variance = sum((e - sum(ends[-2:]) / 2) ** 2 for e in ends[-2:]) / 2
        stable = len(ends) > 1 and variance < 1
        end = ends[-1] if stable else sum(ends[-2:]) // len(ends[-2:]) if len(ends) >= slow_steps else 0
        for i in most_confident(p, places, k):
            row[i] = int(p[i].argmax())
        trace.append(list(row))
    return row, evaluations, trace


def plain_credit(canvas, block, threshold, alpha, beta, gamma, adaptive):
    row, trace, evaluations, credits, old = list(canvas), [], 0, torch.zeros(LENGTH, V, dtype=torch.float64), None
    while V in row:
        places = open_of(row, block)
        if places[0] // block != old:
            old, masks = places[0] // block, len(places)
        p, evaluations = predicted(row), evaluations + 1
        a, b, g = (1 - len(places) / masks,) * 2 + (1,) if adaptive else (alpha, beta, gamma)
        for i in places:
            credits[i] *= b
            credits[i, int(p[i].argmax())] += float(p[i].max()) ** g
        q = (p.log() + a * credits.log1p()).softmax(-1)
        sure = [i for i in places if float(q[i].max()) >= threshold]
        for i in sure or most_confident(q, places, 1):
            row[i] = int(q[i].argmax())
        trace.append(list(row))
    return row, evaluations, trace


def plain_punt(canvas, block, epsilon, candidates):
    row, trace, evaluations = list(canvas), [], 0
    while V in row:
        p, evaluations = predicted(row), evaluations + 1
        order = most_confident(p, open_of(row, block), candidates or LENGTH)
        alive = set(order)
        for digit in reversed(range((len(order) - 1).bit_length())):
            tested = {i for i in alive if order.index(i) >> digit & 1}
            if tested:
                filled, evaluations = list(row), evaluations + 1
                for i in alive - tested:
                    filled[i] = int(p[i].argmax())
                after = predicted(filled)
                alive -= {i for i in tested if divergence(after[i], p[i]) > epsilon}
        for i in alive:
            row[i] = int(p[i].argmax())
        trace.append(list(row))
    return row, evaluations, trace


def plain_lopa(canvas, block, threshold, branches):
    row, trace, evaluations, known = list(canvas), [], 0, False
    while V in row:
        places, p = open_of(row, block), predicted(row)
        evaluations += not known
        sure = [i for i in places if float(p[i].max()) >= threshold] or most_confident(p, places, 1)
        others = [i for i in most_confident(p, places, LENGTH) if i not in sure]
        ways = [sure, *([*sure, i] for i in others[:branches])]
        known, scores = len(ways) > 1, []
        for way in ways if known else []:
            filled, evaluations = list(row), evaluations + 1
            for i in way:
                filled[i] = int(p[i].argmax())
            left = [float(predicted(filled)[i].max()) for i in places if filled[i] == V]
            scores.append(sum(left) / len(left) if left else 1.0)
        for i in ways[scores.index(max(scores))] if known else sure:
            row[i] = int(p[i].argmax())
        trace.append(list(row))
    return row, evaluations, trace


CASES = [
    *((plain_klass, lambda block, *own: Strategy(Klass(*own[1:]), GREEDY), own)
      for own in [(2, 0.4, 0.3, 1), (4, 0.5, 1.0, 2), (1, 0.4, 0.05, 1), (9, 0.3, 1.0, 1)]),
    *((plain_slowfast, lambda block, *own: Strategy(SlowFast(*own), GREEDY), own)
      for own in [(0.5, 0.6, 3, 1), (0.6, 0.5, 2, 2), (0.5, 0.7, 1, 1), (0.6, 0.9, 3, 1), (0.9, 1.0, 3, 1)]),
    *((plain_credit, lambda block, *own: Credit(GREEDY, *own), own)
      for own in [(0.7, 1.5, 0.8, 0.2, False), (0.8, 0.7, 0.5, 2.0, False), (0.6, 9.0, 9.0, 9.0, True), (0.9999, 3.0, 1.0, 0.0, False)]),
    *((plain_punt, lambda block, *own: Punt(GREEDY, *own), own) for own in [(0.05, 0), (0.4, 0), (0.4, 3)]),
    *((plain_lopa, lambda block, *own: Lopa(GREEDY, *own), own) for own in [(0.7, 2), (0.9, 7), (0.6, 1)]),
]  # fmt: skip


@pytest.mark.parametrize("block, model", [(3, MODEL), (6, MODEL), (6, ROUGH)], ids=["blocks", "settling", "rough"])
@pytest.mark.parametrize("plain, made, own", CASES, ids=lambda each: each.__name__ if callable(each) else str(each))
def test_every_row_is_that_of_the_decoder_in_plain_python(plain, made, own, block, model, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "MODEL", model)
    canvas = canvases(60, seed=block)
    steps = own[0] * (LENGTH // block) if plain is plain_klass else LENGTH
    options = DecodeOptions(steps, block_length=None if block == LENGTH else block)
    samples = made(block, *own).decode(MODEL, Prompts(canvas), options, seed=1)
    for row in range(len(canvas)):
        expected, evaluations, trace = plain(canvas[row].tolist(), block, *own)
        steps = [next((n for n, seen in enumerate(trace) if seen[i] != V), -1) for i in range(LENGTH)]
        steps = [-1 if canvas[row, i] != V else step for i, step in enumerate(steps)]
        assert samples.unmasked_at[row].tolist() == steps, row
        assert samples.tokens[row].tolist() == expected, row
        assert int(samples.evaluations[row]) == evaluations, row


def same(ours, theirs):
    return torch.equal(ours.tokens, theirs.tokens) and torch.equal(ours.evaluations, theirs.evaluations)


@pytest.mark.parametrize("tokens", [GREEDY, TokenRule(0.8)], ids=["greedy", "drawn"])
def test_the_limits_are_the_rules_that_are_known(tokens):
    canvas, decoding = canvases(60, seed=3), DecodeOptions(LENGTH)
    decode = lambda decoder: decoder.decode(MODEL, Prompts(canvas), decoding, seed=5)
    threshold, parts = decode(Strategy(Threshold(0.55), tokens)), decode(Strategy(Confident("top_prob"), tokens))
    assert same(decode(Credit(tokens, 0.55, alpha=0.0)), threshold)
    assert same(decode(Lopa(tokens, 0.55, 0)), threshold)
    assert not same(decode(Credit(tokens, 0.55, alpha=3.0)), threshold) and not same(
        decode(Lopa(tokens, 0.55, 2)), threshold
    )
    assert same(decode(Strategy(Klass(0.4, 0.0, 1), tokens)), parts)  # nothing ever settles
    unlimited = decode(Strategy(Klass(0.55, math.inf, 1), tokens))
    assert torch.equal(unlimited.unmasked_at == 0, parts.unmasked_at == 0)  # a block's first step has no history
    begun = torch.where(unlimited.unmasked_at == 0, unlimited.tokens, canvas)
    if tokens is GREEDY:  # draws of a later step differ
        rest = Strategy(Threshold(0.55), GREEDY).decode(MODEL, Prompts(begun), decoding)
        assert torch.equal(unlimited.tokens, rest.tokens)
        assert torch.equal(unlimited.evaluations, rest.evaluations + (canvas == V).any(1))


@pytest.mark.parametrize("tokens", [GREEDY, TokenRule()], ids=["greedy", "drawn"])
def test_punt_commits_what_is_independent_and_one_of_two_copies(tokens):
    blank = Prompts(torch.full((8, 4), 2))
    independent = from_joint(
        torch.einsum("a,b,c,d->abcd", *torch.tensor([[0.7, 0.3], [0.2, 0.8], [0.6, 0.4], [0.9, 0.1]]).double())
    )
    samples = Punt(tokens).decode(independent, blank, DecodeOptions(4))
    assert (samples.unmasked_at == 0).all()
    assert samples.evaluations.tolist() == [1 + 2] * 8  # one for each binary digit of 0, 1, 2, 3
    copies = from_joint(torch.einsum("ac,bd->abcd", torch.eye(2) / 2, torch.eye(2) / 2).double())
    samples = Punt(tokens).decode(copies, blank, DecodeOptions(4))
    assert ((samples.unmasked_at == 0).sum(1) == 2).all()
    for pair in ([0, 2], [1, 3]):
        assert ((samples.unmasked_at[:, pair] == 0).sum(1) == 1).all()  # one of each pair
        assert torch.equal(samples.tokens[:, pair[0]], samples.tokens[:, pair[1]])
    alone = Punt(tokens, epsilon=1.0).decode(copies, blank, DecodeOptions(4))
    assert (alone.unmasked_at == 0).all()  # a copy tells log 2 nats


def test_the_chosen_canvas_of_lopa_is_not_evaluated_again():
    class Counting(RandomLM):
        def hidden_rows(self, tokens, read, sigma):
            seen.extend(tuple(row) for row in tokens.tolist())
            return super().hidden_rows(tokens, read, sigma)

    seen, model = [], Counting(5)
    environment = UnmaskingEnvironment(model, DecodeOptions(8))
    samples = sample(environment, Lopa(GREEDY, 0.95, 3), Prompts(torch.full((1, 8), 5)))
    assert len(seen) == len(set(seen)) == int(samples.evaluations) == samples.rows_evaluated
    assert samples.forwards == int(samples.steps)  # of the first step two, of the last none
    assert int(samples.steps) >= 4


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("tokens", [GREEDY, TokenRule(0.9)], ids=["greedy", "drawn"])
def test_rows_decode_the_same_alone_and_each_step_commits(name, tokens):
    model, decoder = RandomLM(5), DECODERS[name](tokens)
    canvas = canvases(5, seed=4, length=8, vocabulary=5)
    for block in (None, 4):
        whole = decoder.decode(model, Prompts(canvas), DecodeOptions(8, block), seed=3)
        masked = canvas == 5
        assert not (whole.tokens == 5).any() and torch.equal(whole.tokens[~masked], canvas[~masked])
        for row in range(5):
            alone = decoder.decode(
                model, Prompts(canvas[row : row + 1]), DecodeOptions(8, block), 3, torch.tensor([row])
            )
            assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]
            steps = whole.unmasked_at[row][masked[row]]
            assert set(steps.tolist()) == set(range(int(whole.steps[row])))  # no step without a commit


@pytest.mark.parametrize("name", DECODERS)
def test_a_row_behind_padding_decodes_as_alone(name):
    model, decoder = RandomLM(5), DECODERS[name](TokenRule())
    prompt, length, pad = torch.tensor([[1, 2]]), 6, 3
    alone = torch.cat((prompt, torch.full((1, length), 5)), 1)
    padded = torch.cat((torch.zeros(1, pad, dtype=torch.long), alone), 1)
    ours = decoder.decode(model, Prompts(padded, prompt_length=pad + 2, start=torch.tensor([pad])), DecodeOptions(6), 2)
    theirs = decoder.decode(model, Prompts(alone, prompt_length=2), DecodeOptions(6), 2)
    assert torch.equal(ours.tokens[:, pad:], theirs.tokens) and torch.equal(ours.evaluations, theirs.evaluations)


@pytest.mark.parametrize("name", DECODERS)
@pytest.mark.parametrize("budget", [1, 2, 3, 5])
def test_no_row_spends_more_than_its_budget(name, budget):
    model, decoder = RandomLM(5), DECODERS[name](TokenRule())
    budgets = torch.tensor([budget, 1, 4, 2, budget])
    canvas = torch.full((5, 8), 5)
    samples = decoder.decode(model, Prompts(canvas), DecodeOptions(8, budget=budgets), seed=1)
    assert (samples.evaluations <= budgets).all() and not (samples.tokens == 5).any()
    assert (samples.evaluations[budgets <= 2] == budgets[budgets <= 2]).all()


class Forgetful(Lopa):
    """Evaluates the canvas that it chose again."""

    def decide(self, observation, draws):
        return replace(super().decide(observation, draws), outputs=None)


@pytest.mark.parametrize("ends", [(), (1,)])
@pytest.mark.parametrize("block", [None, 2])
def test_outputs_that_serve_the_next_step_are_those_of_its_canvas(ends, block):
    """Also where an end of sequence fills a canvas up after it was compared."""
    model = from_joint(dependent_joint(3, 4, seed=5))
    options = DecodeOptions(4, block, ends=ends)
    ours, plain = (
        kind(TokenRule(), 0.6, 2).decode(model, Prompts(torch.full((60, 4), 3)), options, seed=2)
        for kind in (Lopa, Forgetful)
    )
    assert torch.equal(ours.tokens, plain.tokens) and torch.equal(ours.unmasked_at, plain.unmasked_at)
    assert (ours.evaluations <= plain.evaluations).all() and (ours.evaluations < plain.evaluations).any()


def test_tokens_of_credit_are_drawn_from_the_changed_logits():
    """All positions in one step: the product of softmax(log p + alpha log(1 + credit)), by enumeration."""
    p = predicted([V] * LENGTH)
    credits = torch.where(p == p.amax(1, keepdim=True), p**0.2, 0.0)
    law = (p.log() + 2.0 * credits.log1p()).softmax(1)
    decoder, blank = Credit(TokenRule(), 0.0, alpha=2.0), Prompts(torch.full((4000, LENGTH), V))
    samples = decoder.decode(MODEL, blank, DecodeOptions(4), seed=3)
    joint = torch.einsum("a,b,c,d,e,f->abcdef", *law)
    fits(samples.tokens, {tuple(index.tolist()): float(joint[tuple(index)]) for index in (joint >= 0).nonzero()})
    decision = decoder.decide(UnmaskingEnvironment(MODEL, DecodeOptions(4)).reset(blank), Draws(3))
    assert torch.equal(decision.tokens, samples.tokens)
    expected = law.log().expand(4000, -1, -1).gather(2, decision.tokens.unsqueeze(2)).sum((1, 2))
    torch.testing.assert_close(decision.log_tokens, expected.float())


def test_credits_by_hand():
    empty = Credits(torch.zeros(1, 2, 0, dtype=torch.long), torch.zeros(1, 2, 0))
    both, first = torch.tensor([[True, True]]), torch.tensor([[True, False]])
    decay = torch.tensor([0.5])
    one = empty.added(decay, both, torch.tensor([[4, 7]]), torch.tensor([[0.6, 0.2]]))
    two = one.added(decay, both, torch.tensor([[4, 2]]), torch.tensor([[0.4, 0.3]]))
    assert two.token.tolist() == [[[4, -1], [7, 2]]]
    torch.testing.assert_close(two.value, torch.tensor([[[0.7, 0.0], [0.1, 0.3]]]))
    three = two.added(decay, first, torch.tensor([[4, 0]]), torch.tensor([[0.1, 0.9]]))
    assert three.token.tolist() == [[[4], [-1]]]  # a committed position has none
    torch.testing.assert_close(three.value[0, 0], torch.tensor([0.45]))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"strategy": "punt", "cache": "dual"}, "sampler.cache=dual approximates the canvas, and strategy 'punt'"),
        ({"strategy": "lopa", "guidance": 1.5}, "sampler.guidance=1.5 evaluates two canvases at once"),
        ({"strategy": "klass", "confidence": "sampling"}, "klass reads none"),
        ({"strategy": "klass", "klass": {"threshold": 1.5}}, "sampler.klass.threshold"),
        ({"strategy": "slowfast", "slowfast": {"k": 0}}, "sampler.slowfast.k"),
        ({"strategy": "lopa", "lopa": {"branches": -1}}, "sampler.lopa.branches"),
    ],
)
def test_what_does_not_fit_is_one_sentence(settings, message):
    with pytest.raises(ValueError, match=message):
        build_step_decoder(SamplerSettings.of(settings), RandomLM(5))


def test_settings_build_the_decoders_with_the_published_defaults():
    built = {
        name: build_step_decoder(SamplerSettings.of({"strategy": name, "temperature": 0.0}), RandomLM(5))
        for name in SELECTING
    }
    assert built == {
        "klass": Strategy(Klass(0.6, 0.01, 2), GREEDY), "slowfast": Strategy(SlowFast(0.85, 0.1, 8, 1), GREEDY),
        "credit": Credit(GREEDY, 0.9, 0.7, 0.8, 0.2, False), "punt": Punt(GREEDY, 0.01, 0), "lopa": Lopa(GREEDY, 0.9, 7),
    }  # fmt: skip
    with pytest.raises(ValueError, match="sampler.credit.alpha would do nothing with sampler.credit.adaptive=True"):
        given = SamplerSettings.of({"strategy": "credit", "credit": {"adaptive": True, "alpha": 0.5}})
        check_given(given, {"sampler.credit.alpha": "sampler.credit.alpha"})
