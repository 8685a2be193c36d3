"""What always holds of a decoded canvas: prompts stay, masks go, steps are what was asked for; ties, and what is refused."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES, best
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM, TableLM, fits

FIXED_COUNT = ("random", "dilated", "confidence", "confidence_noisy", "top_prob", "entropy", "leftmost")
few = settings(max_examples=30, deadline=None, derandomize=True)
rules = st.sampled_from(sorted(UNMASKING_RULES))
token_samplers = st.builds(
    TokenRule, st.sampled_from([0.0, 1.0, 1.5]), st.sampled_from([0.5, 1.0]), st.sampled_from([0, 1, 2])
)


@st.composite
def canvases(draw, mask, vocabulary, lengths=(1, 2, 4, 6, 12), blank=False):
    length = draw(st.sampled_from(lengths))
    token = st.just(mask) if blank else st.one_of(st.just(mask), st.integers(0, vocabulary - 1))
    rows = draw(st.lists(st.lists(token, min_size=length, max_size=length), min_size=1, max_size=4))
    return torch.tensor(rows)


MASKED, CAUSAL = RandomLM(4), RandomLM(4, causal=True)


@few
@given(
    canvas=canvases(4, 4),
    name=rules,
    token_sampler=token_samplers,
    steps=st.integers(1, 20),
    causal=st.booleans(),
    seed=st.integers(0, 2**62),
)
def test_prompts_stay_masks_go_and_the_mask_is_never_written(canvas, name, token_sampler, steps, causal, seed):
    model = CAUSAL if causal else MASKED
    samples = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        Strategy(UNMASKING_RULES[name](), token_sampler),
        Prompts(canvas),
        seed,
    )
    given_, masked = canvas != model.mask_id, canvas == model.mask_id
    assert torch.equal(samples.tokens[given_], canvas[given_])
    assert ((samples.tokens >= 0) & (samples.tokens < 4)).all()
    assert torch.equal(samples.prompt, given_)
    assert torch.equal(samples.unmasked_at >= 0, masked)
    assert torch.equal(samples.generated, masked.sum(1))
    assert torch.equal(samples.steps, samples.unmasked_at.amax(1) + 1)
    assert (samples.evaluations <= samples.steps).all()
    assert (samples.evaluations <= masked.sum(1)).all()


@few
@given(canvas=canvases(4, 4), name=st.sampled_from(FIXED_COUNT), steps=st.integers(1, 15))
def test_fixed_counts_spread_what_is_left_over_and_spend_the_steps_asked_for(canvas, name, steps):
    samples = sample(
        UnmaskingEnvironment(MASKED, DecodeOptions(steps)),
        Strategy(UNMASKING_RULES[name](), TokenRule()),
        Prompts(canvas),
    )
    for unmasked_at, masks, evaluations in zip(
        samples.unmasked_at, (canvas == 4).sum(1), samples.evaluations, strict=True
    ):
        counts = torch.bincount(unmasked_at[unmasked_at >= 0], minlength=min(steps, int(masks)))
        assert int(counts.sum()) == int(masks)
        if masks:
            assert int(counts.max() - counts.min()) <= 1
            assert torch.equal(counts, counts.sort(descending=True).values)  # the first steps take what does not divide
        assert int(evaluations) == min(steps, int(masks)) == len(counts)


@few
@given(
    canvas=canvases(4, 4, lengths=(4, 8, 12)),
    name=rules,
    blocks=st.sampled_from([2, 4]),
    each=st.integers(1, 4),
    causal=st.booleans(),
)
def test_blocks_are_filled_in_order_in_no_more_than_their_steps(canvas, name, blocks, each, causal):
    model, length = (CAUSAL if causal else MASKED), canvas.shape[1]
    environment = UnmaskingEnvironment(model, DecodeOptions(blocks * each, length // blocks))
    samples = sample(environment, Strategy(UNMASKING_RULES[name](), TokenRule()), Prompts(canvas))
    for row in samples.unmasked_at:
        steps = [block[block >= 0] for block in row.view(blocks, -1)]
        steps = [block for block in steps if len(block)]
        assert all(int(one.max()) < int(next_.min()) for one, next_ in zip(steps, steps[1:], strict=False))
        if name in (*FIXED_COUNT, "direct") and not causal:
            assert all(int(block.max() - block.min()) < each for block in steps)


@few
@given(canvas=canvases(4, 4), name=rules, steps=st.integers(1, 15))
def test_a_causal_model_writes_strictly_from_the_left(canvas, name, steps):
    samples = sample(
        UnmaskingEnvironment(CAUSAL, DecodeOptions(steps)),
        Strategy(UNMASKING_RULES[name](), TokenRule()),
        Prompts(canvas),
    )  # CAUSAL checks reads
    for row in samples.unmasked_at:
        order = row[row >= 0]
        assert (order.diff() > 0).all()


def test_a_causal_model_samples_the_product_of_its_conditionals():
    """Two tokens: the law by hand, whatever the rule."""
    model = RandomLM(3, causal=True, seed=2)
    first = model.head(model.hidden(torch.tensor([[3, 3]]), torch.tensor([[True, False]]))).softmax(1)[0]
    second = [
        model.head(model.hidden(torch.tensor([[v, 3]]), torch.tensor([[False, True]]))).softmax(1)[0] for v in range(3)
    ]
    law = {(v, w): float(first[v] * second[v][w]) for v in range(3) for w in range(3)}
    for name in ("leftmost", "confidence"):
        samples = sample(
            UnmaskingEnvironment(model, DecodeOptions(2)),
            Strategy(UNMASKING_RULES[name](), TokenRule()),
            Prompts(torch.full((5000, 2), 3)),
        )
        fits(samples.tokens, law)


def test_a_limit_ends_a_row_with_masks_left():
    """Rollouts of a policy that may select nothing; sampling itself has no limit."""

    class Never:
        def choose(self, observation, draws):
            return torch.zeros_like(observation.tokens), torch.zeros(len(observation.tokens))

    canvas = torch.full((2, 3), 4)
    samples = sample(
        UnmaskingEnvironment(MASKED, DecodeOptions(3, patience=1)), Strategy(Never(), TokenRule()), Prompts(canvas)
    )
    assert samples.steps.tolist() == [3, 3]  # one step a position
    assert samples.evaluations.tolist() == [0, 0]
    assert torch.equal(samples.tokens, canvas)


def test_nothing_to_write_and_no_rows():
    full = torch.tensor([[0, 1], [2, 3]])
    samples = sample(
        UnmaskingEnvironment(MASKED, DecodeOptions(2)),
        Strategy(UNMASKING_RULES["random"](), TokenRule()),
        Prompts(full),
    )
    assert torch.equal(samples.tokens, full)
    assert samples.forwards == 0
    empty = sample(
        UnmaskingEnvironment(MASKED, DecodeOptions(2)),
        Strategy(UNMASKING_RULES["random"](), TokenRule()),
        Prompts(full[:0]),
    )
    assert empty.tokens.shape == (0, 2)


def test_the_expected_evaluations_of_direct():
    """E-NFE = T (1 - (1 - 1/T)^L): RADD, section 3.3."""
    steps, length, rows = 16, 12, 3000
    canvas = torch.full((rows, length), 4)
    samples = sample(
        UnmaskingEnvironment(RandomLM(4, seed=1), DecodeOptions(steps)),
        Strategy(UNMASKING_RULES["direct"](), TokenRule()),
        Prompts(canvas),
    )
    expected = steps * (1 - (1 - 1 / steps) ** length)
    spent = samples.evaluations.double()
    assert abs(float(spent.mean()) - expected) < 4.5 * float(spent.std()) / rows**0.5
    uniform = torch.bincount(samples.unmasked_at.flatten(), minlength=steps).double()  # every step is equally likely
    assert (
        (uniform - rows * length / steps) ** 2 / (rows * length / steps)
    ).sum() < 50  # chi-square, 15 degrees: p = 1e-5


# ---------------------------------------------------------------------------------------------------------------- ties

TIED = TableLM(torch.zeros(4**4, 4, 3) + torch.tensor([0.3, 0.0, -0.2]))


@pytest.mark.parametrize("name", sorted(UNMASKING_RULES.keys() - {"direct", "leftmost", "dilated", "confidence_noisy"}))
def test_a_wholly_tied_canvas_is_ordered_by_the_tie_stream(name):
    """Every position is equally often first, and every pair of first and second."""
    settings_ = {"threshold": 0.99} if name == "threshold" else {"factor": 0.01} if name == "factor" else {}
    rule = UNMASKING_RULES[name](bound=0.0) if name == "entropy_bound" else UNMASKING_RULES[name](**settings_)
    samples = sample(
        UnmaskingEnvironment(TIED, DecodeOptions(4)),
        Strategy(rule, TokenRule()),
        Prompts(torch.full((6000, 4), 3)),
    )
    orders = samples.unmasked_at.argsort(1)
    assert torch.equal(samples.unmasked_at.sort(1).values, torch.arange(4).expand(6000, 4))
    pairs = {(i, j): 1 / 12 for i in range(4) for j in range(4) if i != j}
    fits(orders[:, :2], pairs)


def test_dilated_picks_are_as_far_apart_as_can_be_and_the_next_lie_half_way_between_them():
    """16 positions in 4 steps: every fourth one from an offset o, then from o + 2, then from o + 1 and o + 3."""
    rows = 4000
    samples = sample(
        UnmaskingEnvironment(MASKED, DecodeOptions(4)),
        Strategy(UNMASKING_RULES["dilated"](), TokenRule()),
        Prompts(torch.full((rows, 16), 4)),
    )
    places = samples.unmasked_at.argsort(dim=1, stable=True).view(rows, 4, 4)  # of each step, from the left
    assert torch.equal(samples.unmasked_at.sort(1).values, torch.arange(4).repeat_interleave(4).expand(rows, -1))
    assert (places.diff(dim=2) == 4).all()
    offset = places[:, :, 0]
    assert torch.equal(offset, (offset[:, :1] + torch.tensor([0, 2, 1, 3])) % 4)
    fits(offset[:, :1], {(place,): 1 / 4 for place in range(4)})


def test_ties_are_drawn_apart_from_the_offset_of_dilated():
    """Five positions in 4 steps, two at the first one: from offset 2 it is position 2 and, evenly, 0 or 4, which tie."""
    canvas = torch.full((4000, 5), 4)
    unmasked_at = sample(
        UnmaskingEnvironment(MASKED, DecodeOptions(4)),
        Strategy(UNMASKING_RULES["dilated"](), TokenRule()),
        Prompts(canvas),
    ).unmasked_at
    first = (unmasked_at == 0).long().sort(dim=1, descending=True, stable=True).indices[:, :2]
    fits(first, {(0, 4): 1 / 4, (1, 3): 1 / 2, (0, 2): 1 / 8, (2, 4): 1 / 8})


def picks(scores, count, rows=2000, writable=None):
    ties = Draws(0).uniform("tie", torch.arange(rows), torch.zeros(rows, dtype=torch.long), len(scores))
    writable = torch.tensor(writable or [True] * len(scores)).expand(rows, -1)
    order = best(torch.tensor(scores, dtype=torch.float64).expand(rows, -1), writable, torch.full((rows,), count), ties)
    assert torch.equal(order.sort(1).values[:, -count:], torch.arange(1, count + 1).expand(rows, -1))
    return (order > 0).double().mean(0).tolist()


def window_by_a_plain_loop(model, canvas, threshold, width):
    """Greedy decoding of one row: of its leftmost `width` masks, those whose best token has the threshold, else the best one."""
    row, order = canvas.clone(), torch.full_like(canvas, -1)
    for step in range(len(row)):
        masks = (row == model.mask_id).nonzero().squeeze(1).tolist()[:width]
        if not masks:
            break
        best = {i: model.log_probs(row.unsqueeze(0))[0, i].max(0) for i in masks}
        surest = max(masks, key=lambda i: float(best[i].values))
        for i in masks:
            if float(best[i].values.exp()) >= threshold or i == surest:
                row[i], order[i] = best[i].indices, step
    return row, order


@pytest.mark.parametrize("width", [1, 2, 3, 9])
@pytest.mark.parametrize("threshold", [0.3, 0.45, 0.99])
def test_window_is_a_threshold_among_the_leftmost_masks_of_each_row(threshold, width):
    """Rows of which other positions are given, whose windows stand at other places."""
    model = RandomLM(4, seed=5)
    canvas = torch.full((5, 9), 4)
    canvas[1, 0], canvas[2, 3:6], canvas[3, [0, 2, 4, 6]], canvas[4, 8] = 1, 2, 0, 3
    rule = UNMASKING_RULES["window"](threshold, width)
    samples = sample(UnmaskingEnvironment(model, DecodeOptions(9)), Strategy(rule, TokenRule(0.0)), Prompts(canvas))
    for tokens, unmasked_at, row in zip(samples.tokens, samples.unmasked_at, canvas, strict=True):
        expected, order = window_by_a_plain_loop(model, row, threshold, width)
        assert torch.equal(tokens, expected)
        assert torch.equal(unmasked_at, order)


def test_scores_within_1e_5_tie_and_others_do_not():
    near, far = 0.9e-5, 1.1e-5
    assert picks([0.5, 0.5 + far, 0.1], 1) == [0, 1, 0]
    shared = picks([0.5, 0.5 + near, 0.1], 1)
    assert shared[2] == 0
    assert shared[0] == pytest.approx(0.5, abs=0.06)
    assert picks([0.9, 0.5, 0.5 - near, 0.5 - far], 2)[0] == 1  # sure of its place, whoever ties behind it
    assert picks([0.9, 0.5, 0.5 - near, 0.5 - far], 2)[3] == 0
    assert picks([0.9, 0.5, 0.5 - near], 3) == [1, 1, 1]
    assert picks([0.9, 0.5, 0.4], 1, writable=[False, True, True]) == [0, 1, 0]
    assert picks([1.0, 1.0, 1.0], 2, writable=[False, True, True]) == [0, 1, 1]


def test_best_takes_nothing_where_the_count_is_zero():
    order = best(torch.zeros(1, 3), torch.ones(1, 3, dtype=torch.bool), torch.tensor([0]), torch.rand(1, 3).double())
    assert order.tolist() == [[0, 0, 0]]


# ------------------------------------------------------------------------------------------------- densities and errors


def test_the_decision_carries_the_density_of_its_tokens():
    """log_tokens is the log-probability of the tokens drawn, under the rule that drew them; greedy has none."""
    canvas, everywhere = torch.full((3, 5), 4), torch.ones(3, 5, dtype=torch.bool)
    rule = TokenRule(0.7, 0.9, 3)
    tokens, log_tokens = (
        UnmaskingEnvironment(MASKED, DecodeOptions(1)).reset(Prompts(canvas)).draw(everywhere, rule, Draws(0))
    )
    log_probs = rule(MASKED.log_probs(canvas).flatten(0, 1)).log_softmax(-1).view(3, 5, -1)
    expected = log_probs.gather(2, tokens.unsqueeze(2)).sum((1, 2))
    assert torch.allclose(log_tokens, expected, atol=1e-5)
    assert (log_tokens < 0).all()
    greedy, nothing = (
        UnmaskingEnvironment(MASKED, DecodeOptions(1)).reset(Prompts(canvas)).draw(everywhere, TokenRule(0.0), Draws(0))
    )
    assert torch.equal(greedy, MASKED.log_probs(canvas).argmax(2))
    assert nothing.tolist() == [0, 0, 0]


def test_a_step_writes_the_picks_only():
    environment = UnmaskingEnvironment(MASKED, DecodeOptions(1))
    environment.reset(Prompts(torch.tensor([[4, 1, 4]])))
    observation = environment.step(
        Decision(torch.tensor([[0, 0, 1]]), torch.tensor([[3, 3, 3]]), torch.zeros(1), torch.zeros(1))
    )
    assert observation.tokens.tolist() == [[4, 1, 3]]
    assert observation.masked.tolist() == [[True, False, False]]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: UnmaskingEnvironment(MASKED, DecodeOptions(0)), "steps=0 must be at least 1"),
        (lambda: UnmaskingEnvironment(MASKED, DecodeOptions(-3)), "steps=-3"),
        (
            lambda: UnmaskingEnvironment(MASKED, DecodeOptions(4, 5)).reset(Prompts(torch.full((1, 12), 4))),
            "block_length=5 does not divide the length 12",
        ),
        (
            lambda: UnmaskingEnvironment(MASKED, DecodeOptions(4, -4)).reset(Prompts(torch.full((1, 12), 4))),
            "block_length=-4",
        ),
        (
            lambda: UnmaskingEnvironment(MASKED, DecodeOptions(5, 4)).reset(Prompts(torch.full((1, 12), 4))),
            "steps=5 is not divisible by the 3 blocks",
        ),
        (
            lambda: UnmaskingEnvironment(MASKED, DecodeOptions(4)).reset(Prompts(torch.full((1, 65), 4))),
            "65 positions, more than the model's 64",
        ),
        (lambda: TokenRule(temperature=-0.1), "temperature=-0.1 must be 0"),
        (lambda: TokenRule(temperature=float("nan")), "temperature=nan"),
        (lambda: TokenRule(top_p=0.0), "top_p=0.0 must be in"),
        (lambda: TokenRule(top_p=1.1), "top_p=1.1 must be in"),
        (lambda: TokenRule(top_k=-1), "top_k=-1 must be at least 0"),
    ],
    ids=lambda value: value if isinstance(value, str) else "call",
)
def test_bad_input_is_refused_in_one_sentence_that_names_the_value(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_what_is_hardly_above_the_last_one_taken_is_tied_with_it():
    scores, ties = torch.tensor([[0.5 + 8e-6, 0.5, 0.5]]), torch.tensor([[0.1, 0.8, 0.9]], dtype=torch.float64)
    assert best(scores, torch.ones(1, 3, dtype=torch.bool), torch.tensor([2]), ties).tolist() == [[0, 2, 1]]
