"""Moves of particles: the kernel keeps the target of states to 1e-12, and log Z stays unbiased."""

from itertools import product

import pytest
import torch

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import Random
from samplers.loop import Strategy
from samplers.moves import GibbsMove
from samplers.smc import Plain, particle_filter
from tests.enumerable import dependent_joint, from_joint

V, LENGTH = 2, 3
JOINT = dependent_joint(V, LENGTH, seed=4).double()
MODEL = from_joint(JOINT)


class Table:
    """psi of a canvas, looked up; phi of a finished one likewise."""

    def __init__(self, seed=0):
        self.log_values = 1.5 * torch.randn((V + 1) ** LENGTH, generator=torch.Generator().manual_seed(seed)).double()

    def of(self, tokens):
        return self.log_values[(tokens * (V + 1) ** torch.arange(LENGTH)).sum(1)]

    def log_psi(self, observation):
        return self.of(observation.tokens).float()

    def final(self, tokens, rows):
        return self.of(tokens).float()

    def select(self, index):
        pass


class Scripted(Draws):
    """Chooses the position, the token and the uniform number of the acceptance as it is told."""

    def __init__(self, position, token, uniform):
        super().__init__(0)
        for name, value in (("position", position), ("token", token), ("value", uniform), ("laws", [])):
            object.__setattr__(self, name, value)

    def uniform(self, stream, row_id, row_step, positions):
        if stream == "accept":
            return torch.full((len(row_id), positions), self.value, dtype=torch.float64)
        found = torch.full((len(row_id), positions), 0.1, dtype=torch.float64)
        found[:, self.position] = 0.9
        return found

    def categorical(self, logits, row_id, row_step, position, names=None, stream="what"):
        self.laws.append(logits.double().softmax(1))
        return torch.full_like(position, self.token)


def at(canvas):
    """An environment whose single row has this canvas: what is committed was committed by steps."""
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH))
    environment.reset(Prompts(torch.full((1, LENGTH), V)))
    tokens = torch.tensor([canvas])
    zeros = torch.zeros(1)
    return environment, environment.step(Decision((tokens < V).long(), tokens, zeros, zeros))


def marginal(canvas):
    return float(JOINT[tuple(slice(None) if token == V else token for token in canvas)].sum())


@pytest.mark.parametrize("committed", [(0,), (0, 2), (1, 2)])
def test_the_kernel_keeps_the_target_of_every_set_of_committed_positions(committed):
    potential = Table(3)
    states = []
    for tokens in product(range(V), repeat=len(committed)):
        canvas = [V] * LENGTH
        for position, token in zip(committed, tokens, strict=True):
            canvas[position] = token
        states.append(tuple(canvas))
    target = torch.tensor(
        [marginal(s) * float(potential.of(torch.tensor([s])).exp()) for s in states], dtype=torch.float64
    )
    target = target / target.sum()
    kernel = torch.zeros(len(states), len(states), dtype=torch.float64)
    for number, canvas in enumerate(states):
        for position in committed:
            masked = tuple(V if place == position else token for place, token in enumerate(canvas))
            law = [marginal((*masked[:position], token, *masked[position + 1 :])) for token in range(V)]
            for token in range(V):
                new = (*masked[:position], token, *masked[position + 1 :])
                share = law[token] / sum(law) / len(committed)
                ratio = float((potential.of(torch.tensor([new])) - potential.of(torch.tensor([canvas]))).exp())
                accept = min(1.0, ratio)
                for uniform, probability in ((accept * 0.999, accept), (accept + 1e-3 * (1 - accept), 1 - accept)):
                    if probability <= 0 or uniform >= 1:
                        continue
                    environment, observation = at(canvas)
                    move = GibbsMove(1)
                    log_psi = potential.log_psi(observation).double()
                    draws = Scripted(position, token, max(uniform, 1e-12))
                    found, new_psi = move(environment, observation, potential, log_psi, draws, 1)
                    state = tuple(found.tokens[0].tolist())
                    assert torch.allclose(new_psi, potential.of(found.tokens), atol=1e-6)
                    kernel[number, states.index(state)] += share * probability
    torch.testing.assert_close(kernel.sum(1), torch.ones(len(states), dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(target @ kernel, target, atol=1e-12, rtol=0)
    assert (kernel - torch.eye(len(states))).abs().max() > 0.05  # it moves


def test_tokens_are_drawn_from_the_conditional_given_all_others():
    environment, _ = at((0, V, 1))
    draws = Scripted(2, 0, 0.5)
    GibbsMove(1).proposed(environment, draws, torch.zeros(1, dtype=torch.long))
    law = JOINT[0, :, :].sum(0)
    torch.testing.assert_close(draws.laws[0][0, :V], law / law.sum(), atol=1e-6, rtol=0)
    assert environment.evaluations.tolist() == [1]


@pytest.mark.parametrize("resample", ["every", "ess"])
def test_log_z_stays_unbiased(resample):
    """Z = sum of m(tokens) phi(tokens), for the mean over many filters, within 4.5 standard errors."""
    potential, filters = Table(7), 3000
    exact = sum(
        marginal(tokens) * float(potential.of(torch.tensor([tokens])).exp())
        for tokens in product(range(V), repeat=LENGTH)
    )
    environment = UnmaskingEnvironment(MODEL, DecodeOptions(LENGTH))
    prompts = Prompts(torch.full((filters, LENGTH), V))
    proposal = Plain(Strategy(Random(), TokenRule()))
    found = particle_filter(
        environment, proposal, potential, prompts, 3, resample=resample, seed=2, move=GibbsMove(2, TokenRule())
    )
    z = found.log_z.exp()
    assert abs(float(z.mean()) - exact) < 4.5 * float(z.std()) / filters**0.5
    assert environment.evaluations.float().mean() > LENGTH + 2  # moves are counted


def test_bad_input():
    with pytest.raises(ValueError, match="moves=0 must be at least 1"):
        GibbsMove(0)
