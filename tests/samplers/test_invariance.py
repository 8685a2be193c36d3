"""A row does not know its batch, and what was evaluated once is not evaluated again.

(a) With each row evaluated by itself, tokens are equal alone, in any batch, in any order. (b) In float32 on one thread hidden
states are bit-equal and tokens equal. (c) Reuse gives the tokens of a loop that reuses nothing, and counts what it says.
"""

import random
from dataclasses import fields

import pytest
import torch

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES, ConfidentNoisy, EntropyBound, Factor, Threshold, Window
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM, random_radd

CASES = 1000
LOOK = ("confidence", "confidence_noisy", "top_prob", "entropy", "threshold", "window", "factor", "entropy_bound")
BLIND = ("direct", "first_hitting", "random", "dilated", "leftmost")
BY_ROW = ("tokens", "prompt", "unmasked_at", "evaluations", "steps")


def canvases(rows, length, vocabulary, mask, generator, share=0.7):
    tokens = torch.randint(vocabulary, (rows, length), generator=generator)
    return tokens.masked_fill(torch.rand(rows, length, generator=generator) < share, mask)


def random_where(name, rng):
    settings = {
        "confidence_noisy": lambda: ConfidentNoisy(rng.choice([0.1, 1.0])),
        "threshold": lambda: Threshold(rng.choice([0.3, 0.5, 0.9])),
        "window": lambda: Window(rng.choice([0.3, 0.9]), rng.choice([1, 2, 3])),
        "factor": lambda: Factor(rng.choice([0.7, 1.0, 2.0])),
        "entropy_bound": lambda: EntropyBound(rng.choice([0.1, 1.0, 3.0])),
    }
    return settings.get(name, UNMASKING_RULES[name])()


def random_what(rng):
    return TokenRule(rng.choice([0.0, 0.5, 1.0, 1.0, 2.0]), rng.choice([0.6, 0.9, 1.0]), rng.choice([0, 0, 2, 3]))


def same(samples, rows, reference, places):
    for name in BY_ROW:
        ours, theirs = getattr(samples, name)[rows], getattr(reference, name)[places]
        assert torch.equal(ours, theirs), f"{name}: {ours} in this batch, {theirs} in the other"


def test_tokens_do_not_depend_on_the_batch_in_1000_random_cases():
    """A case: random canvases, rule, token rule, steps, blocks, seed; a batch against one of its rows alone, or some shuffled."""
    rng = random.Random(0)
    seen = set()
    for case in range(CASES):
        generator = torch.Generator().manual_seed(case)
        name, vocabulary = rng.choice(list(UNMASKING_RULES)), rng.choice([2, 3, 6])
        causal = rng.random() < 0.2
        length, rows = rng.choice([2, 4, 6]), rng.choice([2, 3, 5])
        block = rng.choice([None, 2, length // 2])
        steps = (length // (block or length)) * rng.choice([1, 2, 3])
        model = RandomLM(vocabulary, causal=causal, seed=case % 7)
        strategy = Strategy(random_where(name, rng), random_what(rng))
        canvas = canvases(rows, length, vocabulary, model.mask_id, generator, rng.choice([0.5, 1.0]))
        row_id = torch.randint(10**6, (rows,), generator=generator)
        decode = lambda places: sample(
            UnmaskingEnvironment(model, DecodeOptions(steps, block)),
            strategy,
            Prompts(canvas[places]),
            case,
            row_id[places],
        )
        whole = decode(torch.arange(rows))
        others = torch.randperm(rows, generator=generator)[: 1 if case % 2 else max(2, rows - 1)]
        same(decode(others), torch.arange(len(others)), whole, others)
        seen.add((name, strategy.token_sampler.temperature == 0, causal, block is None))
    assert len(seen) > 60, "the cases are not varied"  # of 12 rules x greedy x causal x blocks = 96
    print(f"{CASES} cases, all equal")


def test_other_rows_other_steps_and_other_seeds_draw_differently():
    """The test above would pass if nothing was drawn at all."""
    model = RandomLM(6)
    canvas = torch.full((1, 12), model.mask_id)
    decode = lambda seed, row: sample(
        UnmaskingEnvironment(model, DecodeOptions(4)),
        Strategy(UNMASKING_RULES["random"](), TokenRule()),
        Prompts(canvas),
        seed,
        torch.tensor([row]),
    )
    first = decode(0, 0)
    assert not torch.equal(first.tokens, decode(1, 0).tokens)
    assert not torch.equal(first.tokens, decode(0, 1).tokens)
    assert not torch.equal(first.unmasked_at, decode(0, 1).unmasked_at)


# --------------------------------------------------------------------------------------------------------- (b) float32


@pytest.mark.parametrize("length, share", [(8, 0.2), (24, 0.1), (37, 0.3), (64, 0.05), (64, 1.0)])
def test_hidden_states_and_logits_of_a_row_are_bit_equal_in_every_batch(length, share):
    model, generator = random_radd(), torch.Generator().manual_seed(length)
    rows = 40  # of 64 positions: more than go through the blocks at once
    tokens = torch.randint(model.vocab_size, (rows, length), generator=generator)
    read = torch.rand(rows, length, generator=generator) < share
    read[:, 0] |= ~read.any(1)
    alone = [model.hidden(tokens[i : i + 1], read[i : i + 1]) for i in range(rows)]
    alone_logits = [model.head(hidden) for hidden in alone]
    for size in (2, 3, 5, rows):
        for places in torch.randperm(rows, generator=generator).split(size):
            hidden = model.hidden(tokens[places], read[places])
            counts = read[places].sum(1).tolist()
            for i, ours, logits in zip(
                places.tolist(), hidden.split(counts), model.head(hidden).split(counts), strict=True
            ):
                assert torch.equal(ours, alone[i])
                assert torch.equal(logits, alone_logits[i])


@pytest.mark.parametrize("name", ["direct", "random", "confidence_noisy", "top_prob", "threshold", "leftmost"])
def test_float32_tokens_are_equal_in_every_batch(name):
    model, generator = random_radd(), torch.Generator().manual_seed(1)
    canvas = canvases(6, 24, 11, model.mask_id, generator, share=0.9)
    canvas[4] = canvas[1]  # identical rows share evaluations in the batch, and cannot when alone
    strategy = Strategy(UNMASKING_RULES[name](), TokenRule(0.9, 0.95))
    decode = lambda places: sample(
        UnmaskingEnvironment(model, DecodeOptions(6)), strategy, Prompts(canvas[places]), 0, places
    )
    whole = decode(torch.arange(6))
    for places in ([0], [4], [5, 1], [3, 2, 4, 1, 0]):
        same(decode(torch.tensor(places)), torch.arange(len(places)), whole, torch.tensor(places))


# ------------------------------------------------------------------------------------------------------------ (c) reuse


class Counting(RandomLM):
    """Keeps every (canvas, positions read) that it was asked for."""

    def __init__(self, vocabulary, **settings):
        super().__init__(vocabulary, **settings)
        self.asked = []

    def hidden_rows(self, tokens, read, sigma):
        for row, positions in zip(tokens, read, strict=True):
            self.asked.append((tuple(row.tolist()), tuple(positions.nonzero().flatten().tolist())))
        return super().hidden_rows(tokens, read, sigma)


class Forgetful(UnmaskingEnvironment):
    """The plain loop: every row at every position at every step, each by itself; nothing kept, nothing shared."""

    def hidden(self, positions):
        everywhere = torch.ones_like(self.tokens[:1], dtype=torch.bool)
        return torch.stack([self.model.hidden(row.unsqueeze(0), everywhere) for row in self.tokens])

    def step(self, decision):
        self._readout = None
        self._readout_known = torch.zeros_like(self._readout_known)
        return super().step(decision)


@pytest.mark.parametrize("name", UNMASKING_RULES)
@pytest.mark.parametrize("token_sampler", [TokenRule(), TokenRule(0.0)], ids=["categorical", "greedy"])
def test_reuse_gives_the_tokens_of_a_loop_that_reuses_nothing(name, token_sampler):
    model = Counting(5)
    canvas = canvases(6, 8, 5, model.mask_id, torch.Generator().manual_seed(3))
    canvas[3] = canvas[0]
    strategy = Strategy(UNMASKING_RULES[name](), token_sampler)
    ours = sample(UnmaskingEnvironment(model, DecodeOptions(16 if name == "direct" else 4)), strategy, Prompts(canvas))
    asked, model.asked = model.asked, []
    plain = sample(Forgetful(model, DecodeOptions(16 if name == "direct" else 4)), strategy, Prompts(canvas))
    assert torch.equal(ours.tokens, plain.tokens)
    assert torch.equal(ours.unmasked_at, plain.unmasked_at)
    assert ours.rows_evaluated == len(asked)
    assert len(asked) < len(model.asked) or name in ("threshold", "window", "factor", "entropy_bound")
    assert all(model.mask_id in row for row, _ in asked), "a finished row was evaluated"
    assert ours.forwards <= int(ours.steps.max())


def test_a_row_that_did_not_change_is_not_evaluated_again():
    """`direct` at 64 steps on 6 masks, greedy or not, alone: as many evaluations as there were canvases with writes."""
    for temperature in (0.0, 1.0):
        model = Counting(5)
        canvas = torch.full((1, 6), model.mask_id)
        samples = sample(
            UnmaskingEnvironment(model, DecodeOptions(64)),
            Strategy(UNMASKING_RULES["direct"](), TokenRule(temperature)),
            Prompts(canvas),
        )
        writes = len(samples.unmasked_at.unique())
        assert (
            len(model.asked)
            == len({row for row, _ in model.asked})
            == writes
            == int(samples.evaluations)
            == samples.forwards
        )
        assert int(samples.steps) > writes


class EverySecondStep:
    """Looks at every step; rows of an odd number write at odd steps only: what a learned Bernoulli rule may do."""

    def choose(self, observation, draws):
        order, log_positions = Threshold(0.5).choose(observation, draws)
        waits = (observation.row_id % 2 == 1) & (observation.row_step % 2 == 0)
        return order.masked_fill(waits.unsqueeze(1), 0), log_positions


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_row_that_was_looked_at_and_waited_is_not_evaluated_again(temperature):
    model = Counting(5)
    canvas = canvases(4, 6, 5, model.mask_id, torch.Generator().manual_seed(8))
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(6)),
        Strategy(EverySecondStep(), TokenRule(temperature)),
        Prompts(canvas),
    )
    writes = [len(row[row >= 0].unique()) for row in samples.unmasked_at]
    assert samples.evaluations.tolist() == writes
    assert samples.steps.tolist() == [writes[0], 2 * writes[1], writes[2], 2 * writes[3]]
    assert len(model.asked) == len({row for row, _ in model.asked}) == sum(writes)


def test_what_was_read_is_not_read_again():
    """Asked again on the same canvas, for fewer, other or more of the best: the network runs once."""
    model = Counting(5)
    observation = UnmaskingEnvironment(model, DecodeOptions(4)).reset(Prompts(torch.full((2, 4), model.mask_id)))
    everywhere = torch.ones(2, 4, dtype=torch.bool)
    first = observation.read(everywhere, 2, entropy=True)
    top = first.top_log_probs.clone()
    for _ in range(3):
        again = observation.read(everywhere, 1)
        observation.hidden(everywhere)
        observation.draw(everywhere, TokenRule(), Draws(0))
        assert torch.equal(again.top_log_probs, top[..., :1])
    observation.read(everywhere, 3)  # more of the best: the head runs again, the network does not
    assert len(model.asked) == 1
    assert observation.environment.evaluations.tolist() == [1, 1]


@pytest.mark.parametrize("name", LOOK)
def test_identical_rows_share_their_evaluation(name):
    model = Counting(5)
    canvas = torch.full((7, 6), model.mask_id)
    environment = UnmaskingEnvironment(model, DecodeOptions(3))
    observation = environment.reset(Prompts(canvas))
    UNMASKING_RULES[name]().choose(observation, Draws(0))
    assert environment.rows_evaluated == len(model.asked) == 1
    assert environment.evaluations.tolist() == [1] * 7  # each still spent one of its own
    assert environment.positions_read == (Window.window if name == "window" else 6)


@pytest.mark.parametrize("name", BLIND)
def test_rules_that_do_not_look_read_only_what_they_write(name):
    model = Counting(7)
    canvas = canvases(5, 10, 7, model.mask_id, torch.Generator().manual_seed(4))
    environment = UnmaskingEnvironment(model, DecodeOptions(4))
    samples = sample(environment, Strategy(UNMASKING_RULES[name](), TokenRule()), Prompts(canvas))
    assert len(canvas.unique(dim=0)) == 5  # else rows would share
    assert environment.positions_read == int(samples.generated.sum()) == int((canvas == model.mask_id).sum())
    assert sum(len(read) for _, read in model.asked) == environment.positions_read
    environment.reset(Prompts(canvas))
    UNMASKING_RULES[name]().choose(environment._observe(), Draws(0))
    assert environment.forwards == environment.positions_read == 0


def test_identical_rows_that_read_elsewhere_share_and_are_not_mixed_up():
    """Three rows of one canvas ask for other positions: one evaluation at the union, each hears its own."""
    model = Counting(5)
    environment = UnmaskingEnvironment(model, DecodeOptions(1))
    observation = environment.reset(Prompts(torch.full((4, 5), model.mask_id)))
    positions = torch.tensor([[1, 0, 0, 0, 0], [0, 0, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]], dtype=torch.bool)
    hidden = observation.hidden(positions)
    assert model.asked == [((5, 5, 5, 5, 5), (0, 2, 3))]
    assert environment.evaluations.tolist() == [1, 1, 1, 0]
    expected = model.hidden(environment.tokens, torch.ones_like(positions)).view(4, 5, 1)
    assert torch.equal(hidden, expected.masked_fill(~positions.unsqueeze(-1), 0))


def test_select_copies_drops_and_reorders_everything_of_a_row():
    model = Counting(5)
    environment = UnmaskingEnvironment(model, DecodeOptions(2))
    canvas = canvases(4, 6, 5, model.mask_id, torch.Generator().manual_seed(6))
    observation = environment.reset(Prompts(canvas), torch.tensor([10, 11, 12, 13]))
    observation.read(observation.writable, 2, entropy=True)
    observation = environment.step(Strategy(UNMASKING_RULES["random"](), TokenRule()).decide(observation, Draws(0)))
    readout = observation.read(observation.writable, 2, entropy=True)
    index = torch.tensor([3, 1, 1])
    names = {field.name for field in fields(observation)} - {
        "environment",
        "steps",
        "time",
        "start",
        "alpha",
        "memory",
        "revisable",
        "reopened",
    }
    environment.memory["seen"] = torch.tensor([5, 6, 7, 8])
    expected = {name: getattr(observation, name)[index] for name in names}
    top, entropy = readout.top_log_probs[index], readout.entropy[index]
    selected = environment.select(index)
    for name, value in expected.items():
        assert torch.equal(getattr(selected, name), value), name
    assert selected.memory["seen"].tolist() == [8, 6, 6]
    assert torch.equal(selected.time, selected.evaluations / (canvas[index] == model.mask_id).sum(1))
    asked = len(model.asked)
    again = selected.read(selected.writable, 2, entropy=True)
    assert len(model.asked) == asked  # what was read went along
    assert torch.equal(again.top_log_probs[selected.writable], top[selected.writable])
    assert torch.equal(again.entropy[selected.writable], entropy[selected.writable])


def test_finished_rows_leave():
    """One row with one mask, one with six, one position an evaluation: 6 evaluations of rows besides the first one's single one."""
    model = Counting(5)
    canvas = torch.full((2, 6), model.mask_id)
    canvas[0, 1:] = 2
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(6)),
        Strategy(UNMASKING_RULES["confidence"](), TokenRule()),
        Prompts(canvas),
    )
    assert samples.evaluations.tolist() == samples.steps.tolist() == [1, 6]
    assert samples.rows_evaluated == len(model.asked) == 7
    assert samples.forwards == 6
