"""Decoding that may change its mind: it ends, the prompt stays, what changed is evaluated again, the history is complete."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.loop import Reviser
from samplers.revision import ReMDM
from samplers.samples import joined
from tests.enumerable import TableLM, dependent_joint, from_joint

V, LENGTH = 3, 4


def table_model(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return TableLM(torch.randn((V + 1) ** LENGTH, LENGTH, V, generator=generator))


@dataclass
class Restless(Reviser):
    """Commits, replaces and opens positions again at random, and never says that it is finished."""

    commit: float
    reopen: float
    steps: int | None = None

    def most_steps(self, options, opened):
        return self.steps

    def revise(self, observation, draws):
        rows, step, length = observation.row_id, observation.row_step, observation.tokens.shape[1]
        uniform = draws.uniform("where", rows, step, length)
        selected = (uniform < self.commit) & (observation.writable | observation.revisable)
        reopened = (draws.uniform("revise", rows, step, length) < self.reopen) & observation.revisable & ~selected
        tokens, log_tokens = observation.draw(selected, self.token_sampler, draws)
        going_on = torch.ones_like(observation.last)
        return Decision(selected.long(), tokens, torch.zeros_like(log_tokens), log_tokens, reopened, going_on)


class Watched:
    """The canvases after each step, and what the environment said about them."""

    def __init__(self):
        self.steps = []

    def __call__(self, observation, place):
        self.steps.append(
            (place.clone(), observation.tokens.clone(), observation.masked.clone(), observation.block_step.clone())
        )


def canvases(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (rows, LENGTH), generator=generator)
    return tokens.masked_fill(torch.rand(rows, LENGTH, generator=generator) < 0.7, V)


def canvas_at(samples, row, step):
    """The canvas of a row after the step, from the finished canvas and the history: -1 where a position is open."""
    at, tokens = samples.unmasked_at[row], samples.tokens[row]
    found = torch.where(samples.prompt[row] | ((at >= 0) & (at <= step)), tokens, -1)
    for owner, position, token, first, last in samples.history.tolist():
        if owner == row and first <= step < last:
            assert found[position] == -1  # one token at a time
            found[position] = token
    return found


@settings(max_examples=60, deadline=None)
@given(
    rows=st.integers(1, 4), seed=st.integers(0, 10**6), commit=st.floats(0, 1), reopen=st.floats(0, 1),
    budget=st.one_of(st.none(), st.integers(1, 6)), steps=st.integers(1, 9), block=st.sampled_from([None, 1, 2, 4]),
    temperature=st.sampled_from([0.0, 1.0]), ends=st.booleans(),
)  # fmt: skip
def test_decoding_ends_and_its_history_tells_every_canvas(
    rows, seed, commit, reopen, budget, steps, block, temperature, ends
):
    model, watched = table_model(seed % 3), Watched()
    prompts = Prompts(canvases(rows, seed))
    options = DecodeOptions(LENGTH, budget=budget, block_length=None if budget else block, ends=(2,) if ends else ())
    rule = Restless(TokenRule(temperature), commit, reopen, None if budget else steps)
    samples = rule.decode(model, prompts, options, seed, on_step=watched)
    assert not (samples.tokens == V).any()
    assert torch.equal(samples.tokens[samples.prompt], prompts.canvas[samples.prompt])
    if budget is None:
        assert (samples.steps <= steps).all()
    else:
        assert (samples.evaluations <= budget).all()
        assert (samples.steps <= 4 * budget).all()
    if ends:  # what an end of sequence fills is never unmasked
        return
    for step, (place, tokens, masked, _) in enumerate(watched.steps):
        for number, row in enumerate(place.tolist()):
            assert torch.equal(canvas_at(samples, row, step), tokens[number].masked_fill(masked[number], -1))
    assert samples.revisions.sum() == len(samples.history)


class Fresh(Reviser):
    """Compares what the environment says at every position with the model's own output for the canvas."""

    def revise(self, observation, draws):
        everywhere = torch.ones_like(observation.masked)
        hidden = observation.hidden(everywhere)
        expected = observation.environment.model.hidden(observation.tokens, everywhere).view_as(hidden)
        assert torch.equal(hidden, expected)
        return Restless(self.token_sampler, 0.4, 0.5).revise(observation, draws)


def test_outputs_are_those_of_the_present_canvas_and_unchanged_rows_cost_nothing():
    model = table_model()
    samples = Fresh(TokenRule()).decode(model, Prompts(canvases(5, 3)), DecodeOptions(LENGTH, budget=6), seed=2)
    assert samples.history is not None and len(samples.history) > 10
    assert int(samples.evaluations.max()) == 6


@dataclass
class Scripted(Reviser):
    """Follows a list of (positions to select, positions to open again), one for each step."""

    script: list
    token: int = 0
    staying: bool = True

    def most_steps(self, options, opened):
        return len(self.script) + 1

    def revise(self, observation, draws):
        selected, reopened = [*self.script, ([], [])][int(observation.row_step[0])]
        order, again = torch.zeros_like(observation.tokens), torch.zeros_like(observation.masked)
        order[:, selected], again[:, reopened] = 1, True
        zeros = torch.zeros(len(order))
        going_on = torch.full_like(observation.last, self.staying)
        return Decision(order, torch.full_like(order, self.token), zeros, zeros, again, going_on)


def stepped(model, options, script, token=0, canvas=None, staying=True):
    watched = Watched()
    prompts = Prompts(torch.full((1, LENGTH), V) if canvas is None else canvas)
    samples = Scripted(TokenRule(0.0), script, token, staying).decode(model, prompts, options, on_step=watched)
    return samples, watched.steps


def test_a_position_of_an_earlier_block_that_is_opened_again_takes_the_row_back_there():
    script = [([0], []), ([1], []), ([2], []), ([], [1]), ([1], [])]
    samples, steps = stepped(table_model(), DecodeOptions(4, block_length=2), script, staying=False)
    open_positions = [masked[0].nonzero().flatten().tolist() for _, _, masked, _ in steps]
    assert open_positions == [[1, 2, 3], [2, 3], [3], [1, 3], [3], []]
    assert [int(step) for *_, step in steps] == [1, 0, 1, 0, 0, 1]  # the block's own steps begin anew
    assert samples.unmasked_at[0].tolist() == [0, 4, 2, 5]
    assert samples.history.tolist() == [[0, 1, 0, 1, 3]]


def test_a_row_that_goes_on_stays_in_its_full_block():
    script = [([0, 1], []), ([], []), ([], [1]), ([1], [])]
    _, steps = stepped(table_model(), DecodeOptions(4, block_length=2), script)
    assert [int(step) for *_, step in steps] == [1, 2, 3, 4, 5]
    assert [masked[0].nonzero().flatten().tolist() for _, _, masked, _ in steps[:4]] == [
        [2, 3],
        [2, 3],
        [1, 2, 3],
        [2, 3],
    ]
    assert not steps[-1][2].any()  # the last step commits the positions of all blocks


def test_what_an_end_fills_is_open_again_when_the_end_is_opened_or_replaced():
    options = DecodeOptions(4, ends=(2,))
    script = [([0], []), ([], [0]), ([], [])]
    _, steps = stepped(table_model(), options, script, token=2)
    assert steps[0][1][0].tolist() == [2, 2, 2, 2] and not steps[0][2].any()
    assert steps[1][1][0].tolist() == [V] * 4 and steps[1][2].all()


def test_a_position_before_an_end_may_be_opened_again_and_what_is_behind_stays_filled():
    options = DecodeOptions(4, ends=(2,))
    canvas = torch.tensor([[V, 0, V, V]])
    model = table_model()
    watched = Watched()

    @dataclass
    class Two(Scripted):
        def revise(self, observation, draws):
            decision = super().revise(observation, draws)
            decision.tokens[:, 0], decision.tokens[:, 2] = 1, 2
            return decision

    rule = Two(TokenRule(0.0), [([0, 2], []), ([], [0]), ([], [3])])
    rule.decode(model, Prompts(canvas), options, on_step=watched)
    assert watched.steps[1][2][0].tolist() == [True, False, False, False]
    assert watched.steps[2][2][0].tolist() == [True, False, False, False]  # filled, not committed: it cannot be opened


def test_the_prompt_and_the_last_step_are_not_opened():
    canvas = torch.tensor([[1, V, V, V]])
    samples, steps = stepped(table_model(), DecodeOptions(4), [([1, 2, 3], []), ([], [0, 1])], canvas=canvas)
    assert samples.tokens[0, 0] == 1 and steps[1][2][0].tolist() == [False, True, False, False]
    environment = UnmaskingEnvironment(table_model(), DecodeOptions(4, revise=True, max_steps=2))
    environment.reset(Prompts(canvas))
    one, zeros = torch.tensor([[0, 1, 1, 1]]), torch.zeros(1)
    environment.step(Decision(one, torch.zeros_like(one), zeros, zeros))
    done = environment.step(Decision(0 * one, 0 * one, zeros, zeros, one > 0))
    assert not done.masked.any() and done.done.all()


def test_a_replaced_token_is_a_revision_and_counts_once():
    samples, _ = stepped(table_model(), DecodeOptions(4), [([0, 1, 2, 3], []), ([1], [])], token=1)
    assert samples.revisions.tolist() == [0]  # the token is the one that was there

    @dataclass
    class Counted(Scripted):
        def revise(self, observation, draws):
            decision = super().revise(observation, draws)
            decision.tokens.fill_(int(observation.row_step[0]))
            return decision

    samples = Counted(TokenRule(0.0), [([0, 1, 2, 3], []), ([1], [])]).decode(
        table_model(), Prompts(torch.full((1, LENGTH), V)), DecodeOptions(4)
    )
    assert samples.tokens[0].tolist() == [0, 1, 0, 0]
    assert samples.history.tolist() == [[0, 1, 0, 0, 1]] and samples.revisions.tolist() == [1]
    assert samples.generated.tolist() == [4]


def test_histories_follow_their_rows():
    model, prompts = table_model(), Prompts(canvases(4, 8))
    samples = Restless(TokenRule(), 0.5, 0.5, 6).decode(model, prompts, DecodeOptions(4), seed=1)
    taken = samples.take(torch.tensor([2, 0, 2]))
    assert taken.revisions.tolist() == samples.revisions[[2, 0, 2]].tolist()
    for step in range(6):
        assert torch.equal(canvas_at(taken, 1, step), canvas_at(samples, 0, step))
    both = joined([samples, samples.take(torch.arange(4))])
    assert both.revisions.tolist() == samples.revisions.tolist() * 2


def test_rows_decode_the_same_alone():
    model, prompts = table_model(), Prompts(canvases(5, 4))
    rule = ReMDM(TokenRule(), "cap", 0.5)
    whole = rule.decode(model, prompts, DecodeOptions(6), seed=3)
    for row in range(5):
        alone = rule.decode(
            model, prompts.take(torch.tensor([row])), DecodeOptions(6), seed=3, row_id=torch.tensor([row])
        )
        assert torch.equal(alone.tokens[0], whole.tokens[row])
        assert alone.evaluations[0] == whole.evaluations[row]


def test_other_canvases_count_as_evaluations_of_their_row():
    model = table_model()
    environment = UnmaskingEnvironment(model, DecodeOptions(4, revise=True, max_steps=9))
    observation = environment.reset(Prompts(canvases(3, 5)))
    others, everywhere = torch.randint(V, (4, LENGTH)), torch.ones(4, LENGTH, dtype=torch.bool)
    found = observation.environment.hidden_of(others, torch.tensor([2, 0, 2, 2]), everywhere)
    assert torch.equal(found.flatten(0, 1), model.hidden(others, everywhere))
    assert environment.evaluations.tolist() == [1, 0, 3]
    assert (environment.forwards, environment.rows_evaluated) == (1, 4)


def test_remdm_of_one_position_keeps_the_law_of_the_data():
    model = from_joint(dependent_joint(V, 1, seed=1))
    rows = 4000
    samples = ReMDM(TokenRule(), "cap", 1.0).decode(model, Prompts(torch.full((rows, 1), V)), DecodeOptions(5), seed=7)
    law = model.table[V, 0].exp()
    share = torch.bincount(samples.tokens[:, 0], minlength=V) / rows
    assert (share - law).abs().max() < 4.5 * (0.25 / rows) ** 0.5
    assert samples.revisions.sum() > rows / 4


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="revision without a budget or a schedule may never end"):
        DecodeOptions(4, revise=True)
    with pytest.raises(ValueError, match="cache=dual keeps the keys of earlier blocks"):
        DecodeOptions(4, revise=True, max_steps=4, cache="dual", block_length=2)
    with pytest.raises(ValueError, match="max_steps=3 must be at least 1, and needs revise=True"):
        DecodeOptions(4, max_steps=3)
    environment = UnmaskingEnvironment(table_model(), DecodeOptions(4))
    observation = environment.reset(Prompts(torch.full((1, LENGTH), V)))
    order, zeros = torch.zeros_like(observation.tokens), torch.zeros(1)
    with pytest.raises(ValueError, match="revision is off"):
        environment.step(Decision(order, order, zeros, zeros, order > 0))
