"""WINO: what a shadow block sees, its outputs, and the rule against plain Python."""

from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import LlamaLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from model.llama import BidirectionalLlama, LlamaShape
from samplers.editing import WINO
from tests.enumerable import RandomLM, TableLM, inconsistent, random_radd

V, LENGTH = 11, 8


def random_llama(layers=1, shifted=False):
    torch.manual_seed(1)
    network = BidirectionalLlama(LlamaShape(32, layers, 2, 1, 48, V + 1))
    for parameter in network.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    return LlamaLM(network, V, 64, shifted).requires_grad_(False).eval()


MODELS = {
    "radd": lambda layers: random_radd(width=32, vocabulary=V, blocks=layers, length=16),
    "board": lambda layers: random_radd(width=32, vocabulary=V, blocks=layers, length=16, learned_positions=True),
    "llama": random_llama,
}


def canvas(seed=0, rows=3):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(V, (rows, LENGTH), generator=generator)
    return tokens.masked_fill(torch.rand(rows, LENGTH, generator=generator) < 0.3, V)


@pytest.mark.parametrize("name", MODELS)
def test_the_shadow_of_a_position_does_not_see_its_token(name):
    """Bit for bit with one layer. Behind several layers other positions tell of it, as in the published code."""
    tokens, first = canvas(), torch.full((3,), 2)
    for layers in (1, 2):
        model = MODELS[name](layers)
        before = model.hidden_shadow(tokens, first, 4)[:, LENGTH:]
        for place in range(2, 6):
            changed = tokens.clone()
            changed[:, place] = (changed[:, place] + 1) % V
            after = model.hidden_shadow(changed, first, 4)[:, LENGTH:]
            same = torch.equal(before[:, place - 2], after[:, place - 2])
            assert same == (layers == 1)
            others = [other for other in range(4) if other != place - 2]
            assert not torch.allclose(before[:, others], after[:, others], atol=1e-4)


@pytest.mark.parametrize("name", MODELS)
def test_nothing_sees_the_shadows_and_a_lone_shadow_is_the_masked_position(name):
    model, tokens = MODELS[name](2), canvas()
    everywhere = torch.ones_like(tokens, dtype=torch.bool)
    whole = model.hidden_shadow(tokens, torch.full((3,), 4), 4)
    assert torch.allclose(whole[:, :LENGTH], model.hidden(tokens, everywhere).view(3, LENGTH, -1), atol=1e-5)
    one = MODELS[name](1)  # of one layer: the shadow sees what the masked position would see
    for place in range(LENGTH):
        shadow = one.hidden_shadow(tokens, torch.full((3,), place), 1)[:, LENGTH]
        left = tokens.clone()
        left[:, place] = V
        read = torch.zeros_like(everywhere)
        read[:, place] = True
        assert torch.allclose(shadow, one.hidden(left, read), atol=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_padding_and_blocks_of_rows_change_nothing(name):
    model, tokens, first = MODELS[name](2), canvas(), torch.tensor([2, 4, 4])
    whole = model.hidden_shadow(tokens, first, 2)
    padded = model.hidden_shadow(
        torch.cat((torch.zeros(3, 1, dtype=torch.long), tokens), 1), first + 1, 2, torch.ones(3, dtype=torch.long)
    )
    assert torch.allclose(whole, padded[:, 1:], atol=1e-5) and not padded[:, 0].any()
    for row in range(3):
        alone = model.hidden_shadow(tokens[row : row + 1], first[row : row + 1], 2)
        assert torch.allclose(whole[row], alone[0], atol=1e-5)


class ShadowTable(TableLM):
    """A table whose shadow of a position is its exact prediction without the token: the doubled masks are ignored."""

    has_shadow = True

    def shadow_rows(self, tokens, first, size):
        length = tokens.shape[1]
        place = torch.arange(length).expand_as(tokens)
        real = torch.stack((self.state(tokens)[:, None].expand_as(tokens), place), 2)
        left = tokens[:, None].repeat(1, size, 1)
        left[:, torch.arange(size), first + torch.arange(size)] = self.mask_id
        states = self.state(left.flatten(0, 1)).view(len(tokens), size)
        return torch.cat((real, torch.stack((states, place[:, first : first + size]), 2)), 1).float()


MASK, CELLS = 2, 6
TABLE = ShadowTable(inconsistent(MASK, CELLS, seed=7).table.detach())


def played(canvas, threshold, remask_threshold, block=CELLS):
    """(finished canvas, evaluations) of one row in plain Python."""
    table, given, row, evaluations = TABLE.table.detach().double().exp(), [t != MASK for t in canvas], list(canvas), 0

    def predicted(tokens):
        return table[int(TABLE.state(torch.tensor([tokens])))]

    for first in range(0, CELLS, block):
        places = [i for i in range(first, first + block) if not given[i]]
        last = 30
        while masked := [i for i in places if row[i] == MASK]:
            evaluations += 1
            best = {i: predicted(row)[i].max(0) for i in masked}
            most = min(max(int(len(masked) * 0.7), 5), 20)
            ordered = sorted(masked, key=lambda i: -float(best[i].values))
            accepted = [i for i in ordered if best[i].values > threshold][:most] or ordered[:1]
            seen = {}
            for i in places:
                if row[i] != MASK:
                    left = [MASK if j == i else token for j, token in enumerate(row)]
                    seen[i] = float(predicted(left)[i, row[i]])
            doubtful = sorted((i for i in seen if seen[i] < remask_threshold), key=lambda i: seen[i])
            if len(accepted) < 2:
                doubtful = []
            elif len(doubtful) >= last:
                doubtful = doubtful[: last - 1]
            for i in accepted:
                row[i] = int(best[i].indices)
            for i in doubtful:
                row[i] = MASK
            last = len(accepted)
    return row, evaluations


def table_canvases(rows, seed):
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(MASK, (rows, CELLS), generator=generator)
    return tokens.masked_fill(torch.rand(rows, CELLS, generator=generator) < 0.9, MASK)


@pytest.mark.parametrize("block", [3, 6])
@pytest.mark.parametrize("threshold, remask_threshold", [(0.7, 0.9), (0.8, 0.6), (0.8, 0.0), (0.7, 1.0)])
def test_every_row_is_that_of_the_rule_in_plain_python(threshold, remask_threshold, block):
    tokens = table_canvases(60, seed=block)
    options = DecodeOptions(CELLS, block_length=None if block == CELLS else block)
    samples = WINO(TokenRule(0.0), threshold, remask_threshold).decode(TABLE, Prompts(tokens), options, seed=1)
    for row in range(len(tokens)):
        expected, evaluations = played(tokens[row].tolist(), threshold, remask_threshold, block)
        assert samples.tokens[row].tolist() == expected and int(samples.evaluations[row]) == evaluations
    # In a block of three no step that commits two follows one that committed two.
    assert bool(samples.revisions.any()) == (remask_threshold > 0 and block == CELLS)


@dataclass
class ShadowRandom:
    """RandomLM with a shadow."""

    @staticmethod
    def model(seed):
        made = RandomLM(6, seed=seed, spread=3.0)
        made.has_shadow = True

        def shadow_rows(tokens, first, size):
            real = made.hidden_rows(tokens, torch.ones_like(tokens, dtype=torch.bool), None).view(*tokens.shape, 1)
            left = (tokens[:, None] + torch.eye(tokens.shape[1], dtype=torch.long)[first : first + size]) % 6
            terms = (left.sum(2) * 7919 + torch.arange(size)) % len(made.rows)
            return torch.cat((real, terms.unsqueeze(2).float()), 1)

        made.shadow_rows = shadow_rows
        return made


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 10**6), threshold=st.floats(0, 1), remask=st.floats(0, 1), block=st.sampled_from([4, 12, None])
)
def test_it_ends_within_as_many_steps_as_positions_and_masks_fewer_than_it_committed(seed, threshold, remask, block):
    model, length, counts = ShadowRandom.model(seed % 5), 12, []

    def look(observation, rows):
        for row, place in enumerate(rows.tolist()):
            counts.append((place, int(observation.masked[row].sum()), int(observation.block_step[row])))

    rule = WINO(TokenRule(0.0), threshold, remask)
    samples = rule.decode(model, Prompts(torch.full((4, length), 6)), DecodeOptions(length, block), seed, on_step=look)
    assert (samples.steps <= length).all() and not (samples.tokens == 6).any()
    assert torch.equal(samples.evaluations, samples.steps)
    history = samples.history
    for row in range(4):
        steps = samples.unmasked_at[row].tolist() + history[history[:, 0] == row][:, 3].tolist()
        opened = history[history[:, 0] == row][:, 4].tolist()
        for step in set(opened):
            if block is None:
                assert opened.count(step) < steps.count(step - 1)


def test_without_remasking_it_is_threshold_decoding_with_a_cap():
    model = ShadowRandom.model(1)
    samples = WINO(TokenRule(0.0), 0.0, 0.0).decode(model, Prompts(torch.full((2, 12), 6)), DecodeOptions(12))
    committed = [(samples.unmasked_at == step).sum(1).tolist() for step in range(3)]
    assert committed == [[8, 8], [4, 4], [0, 0]]  # 0.7 of 12, and at least 5


def test_an_evaluation_with_a_shadow_counts_once_and_is_longer():
    model, tokens = random_radd(width=32, vocabulary=V, length=16), canvas()
    environment = UnmaskingEnvironment(model, DecodeOptions(LENGTH, revise=True, max_steps=9))
    observation = environment.reset(Prompts(tokens, prompt_length=0))
    environment.hidden_shadow()
    observation.read(observation.writable, 1)
    assert environment.evaluations.tolist() == [1, 1, 1] and environment.rows_evaluated == 3
    assert environment.positions_run == 3 * 2 * LENGTH


def test_rows_decode_the_same_alone_and_within_a_budget():
    model = random_radd(width=32, vocabulary=V, length=16)
    tokens, rule = table_canvases(6, 2).masked_fill(table_canvases(6, 2) == MASK, V), WINO(TokenRule(), 0.9, 0.5)
    whole = rule.decode(model, Prompts(tokens), DecodeOptions(CELLS), seed=3)
    for row in range(6):
        alone = rule.decode(
            model, Prompts(tokens[row : row + 1]), DecodeOptions(CELLS), seed=3, row_id=torch.tensor([row])
        )
        assert torch.equal(alone.tokens[0], whole.tokens[row]) and alone.evaluations[0] == whole.evaluations[row]
    short = rule.decode(model, Prompts(tokens), DecodeOptions(CELLS, budget=2), seed=3)
    assert int(short.evaluations.max()) == 2 and not (short.tokens == V).any()


def test_models_without_a_shadow_are_refused():
    with pytest.raises(ValueError, match="a shadow block needs RADD, MDLM or LLaDA"):
        WINO(TokenRule()).decode(inconsistent(3, 4), Prompts(torch.full((1, 4), 3)), DecodeOptions(4))
    with pytest.raises(ValueError, match="a shadow block needs RADD, MDLM or LLaDA"):
        random_llama(shifted=True).hidden_shadow(canvas(), torch.zeros(3, dtype=torch.long), 4)
    with pytest.raises(ValueError, match="runs with neither guidance nor a cache"):
        WINO(TokenRule()).decode(random_llama(), Prompts(torch.full((1, 4), V)), DecodeOptions(4, guidance=1.0))
