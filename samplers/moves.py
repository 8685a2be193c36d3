"""Moves of particles that leave the target invariant: a committed position is opened again and its token drawn anew.

Metropolis within Gibbs: one committed position is chosen uniformly, its token is drawn from p(token | all other tokens), the
reference model's conditional on the canvas with that position masked, and the new canvas is accepted with probability
min(1, psi(new) / psi(old)). With conditionals of one joint distribution m, this keeps m(tokens) psi(tokens) for every set of
committed positions (tests/samplers/test_moves.py, to 1e-12). The order of positions must not depend on the tokens, as with the
rules of `ORDERS`. A network's conditionals belong to no single joint, so that the target is then kept approximately.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.observation import Observation
from dlm.token_rule import TokenRule
from samplers.heuristics import Dilated, Direct, FirstHitting, Leftmost, Random
from samplers.smc import Potential

# Rules whose order does not depend on tokens.
ORDERS = {"direct": Direct, "first_hitting": FirstHitting, "random": Random, "dilated": Dilated, "leftmost": Leftmost}


@dataclass
class GibbsMove:
    """Draw committed tokens anew, one position of each particle at a time.

    Args:
        moves: positions of each particle that are tried after a weighting; each costs an evaluation, and accepted ones another.
        token_sampler: the distribution of tokens in the reference.
    """

    moves: int = 1
    token_sampler: TokenRule = field(default_factory=TokenRule)

    def __post_init__(self):
        if self.moves < 1:
            raise ValueError(f"moves={self.moves} must be at least 1; leave it out for none")

    def __call__(
        self,
        environment: UnmaskingEnvironment,
        observation: Observation,
        potential: Potential,
        log_psi: Float64[Tensor, "row"],
        draws: Draws,
        number: int,
    ) -> tuple[Observation, Float64[Tensor, "row"]]:
        """Move every particle.

        Args:
            log_psi: log potential of the current states.
            number: of the decoding step, for the random draws.

        Returns:
            The observation of the new states and their log potential.
        """
        for move in range(self.moves):
            step = torch.full_like(observation.row_id, number * self.moves + move)
            observation, log_psi = self._moved(environment, observation, potential, log_psi, draws, step)
        return observation, log_psi

    def _moved(self, environment, observation, potential, log_psi, draws, step):
        before = observation.tokens.clone()
        changed = self.proposed(environment, draws, step)
        if bool((changed == before).all()):
            return observation, log_psi
        observation = environment.replace_tokens(changed)
        new = states_log_psi(potential, observation)
        uniform = draws.uniform("accept", observation.row_id, step, 1).squeeze(1)
        accepted = uniform.log() < new - log_psi
        observation = environment.replace_tokens(torch.where(accepted.unsqueeze(1), changed, before))
        return observation, torch.where(accepted, new, log_psi)

    def proposed(
        self, environment: UnmaskingEnvironment, draws: Draws, step: Int[Tensor, "row"]
    ) -> Int[Tensor, "row position"]:
        """Return the canvases with one committed token of each row drawn anew."""
        tokens, committed = environment.tokens, ~environment.open & ~environment.given
        uniforms = draws.uniform("revise", environment.row_id, step, tokens.shape[1])
        rows = committed.any(1).nonzero().squeeze(1)
        position = uniforms.masked_fill(~committed, -1.0).argmax(1)[rows]
        if len(rows) == 0:
            return tokens.clone()
        read = torch.zeros_like(committed[rows]).scatter_(1, position.unsqueeze(1), True)
        masked = tokens[rows].masked_fill(read, environment.model.mask_id)
        logits = self.token_sampler(environment.logits(environment.hidden_of(masked, rows, read)[read]))
        own = position if environment.start is None else position - environment.start[rows]
        drawn = draws.categorical(logits, environment.row_id[rows], step[rows], own, stream="revise")
        return tokens.index_put((rows, position), drawn)


def states_log_psi(potential: Potential, observation: Observation) -> Float64[Tensor, "row"]:
    """Return log psi of unfinished states and log phi of finished ones."""
    done = observation.done
    log_psi = potential.log_psi(observation).double()
    if bool(done.any()):
        rows = done.nonzero().flatten()
        log_psi = log_psi.masked_scatter(done, potential.final(observation.tokens[done], rows).double())
    return log_psi
