"""Draws: equal to a plain SplitMix64, uniform, independent between counters, and a race that samples the softmax."""

import numpy as np
import pytest
import torch
from scipy.stats import chisquare, kstest

import dlm.draws
from dlm.draws import STREAMS, Draws

BITS = 2**64
GOLDEN = 0x9E3779B97F4A7C15


def mix(z):
    """SplitMix64's finaliser on Python's unbounded integers (Steele, Lea, Flood 2014)."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % BITS
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % BITS
    return z ^ (z >> 31)


def reference_key(seed, stream, *counters):
    key = mix((seed * GOLDEN + STREAMS[stream]) % BITS)
    for counter in counters:
        key = mix(((key ^ counter % BITS) + GOLDEN) % BITS)
    return key


def reference_uniform(seed, stream, row, step, position):
    return ((mix((reference_key(seed, stream, row, step) + (position + 1) * GOLDEN) % BITS) >> 12) + 0.5) / 2**52


def long(*values):
    return torch.tensor(values, dtype=torch.long)


def test_the_reference_is_the_published_generator():
    """First outputs of splitmix64 from the seed 1234567, as printed in its test vectors."""
    outputs = [mix((1234567 + n * GOLDEN) % BITS) for n in range(1, 4)]
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize("seed, row, step", [(0, 0, 0), (1, 2, 3), (-5, 10**6, 1023), (2**62, 2**63 - 1, 7)])
@pytest.mark.parametrize("stream", STREAMS)
def test_uniforms_equal_the_reference(seed, row, step, stream):
    ours = Draws(seed).uniform(stream, long(row), long(step), 5)[0].tolist()
    assert ours == [reference_uniform(seed, stream, row, step, position) for position in range(5)]


def test_keys_equal_the_reference():
    """With the signs of int64 in every place where a shift could drag them along."""
    generator = torch.Generator().manual_seed(0)
    counters = torch.randint(-(2**63), 2**63 - 1, (3, 50), generator=generator)
    ours = Draws(-3).keys("what", *counters)
    expected = [reference_key(-3, "what", *column) for column in counters.T.tolist()]
    assert [key % BITS for key in ours.tolist()] == expected


def test_uniforms_are_uniform_and_never_reach_the_ends():
    draws = Draws(7).uniform("where", torch.arange(200), torch.zeros(200, dtype=torch.long), 500).flatten()
    assert kstest(draws.numpy(), "uniform").pvalue > 1e-4
    ends = dlm.draws._uniform(long(0, -1, 2**63 - 1, -(2**63)))
    assert ((ends > 0) & (ends < 1)).all()
    assert ends.min() < 1e-15
    assert ends.max() > 1 - 1e-15


def test_uniforms_of_neighbouring_counters_are_independent():
    """Rows, steps, positions, seeds and streams that differ by one: no correlation, none in the squares either."""
    rows, steps, ones = torch.arange(300), torch.full((300,), 4), torch.ones(300, dtype=torch.long)
    base = Draws(1).uniform("where", rows, steps, 300)
    others = {
        "row": Draws(1).uniform("where", rows + 1, steps, 300),
        "step": Draws(1).uniform("where", rows, steps + ones, 300),
        "seed": Draws(2).uniform("where", rows, steps, 300),
        "stream": Draws(1).uniform("tie", rows, steps, 300),
        "position": base.roll(1, 1),
        "row and step swapped": Draws(1).uniform("where", steps, rows, 300),
    }
    for name, other in others.items():
        for power in (1, 2):
            x, y = ((u - 0.5) ** power for u in (base, other))
            correlation = np.corrcoef(x.flatten().numpy(), y.flatten().numpy())[0, 1]
            assert abs(correlation) < 4.5 / base.numel() ** 0.5, name


def test_normals_are_normal():
    draws = Draws(3).normal("noise", torch.arange(100), torch.zeros(100, dtype=torch.long), 300).flatten()
    assert draws.isfinite().all()
    assert kstest(draws.numpy(), "norm").pvalue > 1e-4


def categorical(logits, seed=0, row=0, count=20_000):
    positions = torch.arange(count)
    return Draws(seed).categorical(
        logits.expand(count, -1), torch.full_like(positions, row), torch.zeros_like(positions), positions
    )


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0])
def test_categorical_samples_the_softmax(scale):
    logits = scale * torch.randn(12, generator=torch.Generator().manual_seed(1)) + 500  # a shift changes nothing
    counts = torch.bincount(categorical(logits), minlength=12)
    expected = logits.double().softmax(0) * 20_000
    enough = expected >= 5
    assert chisquare(
        [*counts[enough].tolist(), int(counts[~enough].sum()) + 1e-9], [*expected[enough].tolist(), float(expected[~enough].sum()) + 1e-9]
    ).pvalue > 1e-4  # fmt: skip


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf])
    assert set(categorical(logits).tolist()) == {0, 2}
    one = torch.full((9,), -torch.inf)
    one[4] = -300.0
    assert set(categorical(one, count=100).tolist()) == {4}


def test_categorical_equals_a_plain_race():
    """argmax p / E with E the exponential of the reference's uniform for (row, step, position, token)."""
    logits = torch.randn(6, 5, generator=torch.Generator().manual_seed(2))
    rows, steps, positions = long(0, 1, 2, 3, 4, 5), long(9, 9, 0, 1, 2, 3), long(3, 3, 3, 7, 8, 0)
    drawn = Draws(11).categorical(logits, rows, steps, positions)
    for logit, row, step, position, token in zip(
        logits, rows.tolist(), steps.tolist(), positions.tolist(), drawn, strict=True
    ):
        key = reference_key(11, "what", row, step, position)
        uniforms = [((mix((key + (v + 1) * GOLDEN) % BITS) >> 12) + 0.5) / 2**52 for v in range(5)]
        race = logit.double().softmax(0).numpy() / -np.log(uniforms)
        assert int(token) == race.argmax()


def test_categorical_does_not_depend_on_how_it_is_cut(monkeypatch):
    logits = torch.randn(100, 30, generator=torch.Generator().manual_seed(3))
    counters = torch.arange(100), torch.zeros(100, dtype=torch.long), torch.arange(100) % 7
    whole = Draws(0).categorical(logits, *counters)
    for size in (30, 31, 90, 1):
        monkeypatch.setitem(dlm.draws.TOKENS_PER_CHUNK, "cpu", size)
        assert torch.equal(Draws(0).categorical(logits, *counters), whole)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(4))
    assert torch.equal(Draws(0).categorical(logits[order], *(c[order] for c in counters)), whole[order])
    assert Draws(0).categorical(logits[:0], *(c[:0] for c in counters)).shape == (0,)


def test_a_small_change_of_one_logit_moves_few_tokens():
    """Inverting the distribution function instead would move about every boundary: hundreds of draws here, not one or two."""
    logits = torch.randn(1000, generator=torch.Generator().manual_seed(5))
    moved = logits.clone()
    moved[0] += 1e-3
    changed = categorical(logits, count=4000) != categorical(moved, count=4000)
    assert changed.sum() <= 2
