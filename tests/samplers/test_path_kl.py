"""What each proposal leaves of KL(q || sigma) at the optimal twist, over all paths of three tokens at three positions.

sigma(path) = p(path) phi / Z; a step of p takes k positions, any with the same chance, and writes them independently. Positions and
tokens twisted together leave nothing. Positions as they come leave nothing only where one is written at a time and the conditionals
are those of one joint; and what independent tokens leave on top of that is that of the best ones (those with sigma's marginals).
The same divergences come out of the filter's weights, which are p phi / q of a path.
"""

from functools import cache
from itertools import combinations, product
from math import exp, log, prod

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.smc import Trajectories, particle_filter
from samplers.twisted import TwistedJoint, TwistedTokens
from tests.enumerable import dependent_joint, from_joint
from tests.samplers.test_smc import ExactLM, TableTwist, tables

V = L = 3
FULL = list(product(range(V), repeat=L))


class Exact:
    """The reference that writes `at_once` positions a step, its optimal twist and three proposals, in plain Python."""

    def __init__(self, consistent, at_once, seed):
        table, log_phi = tables(V, L, seed)
        joint = dependent_joint(V, L, seed)
        self.model = ExactLM(from_joint(joint).table.detach() if consistent else table)
        self.twist, self.at_once = TableTwist(self.model, log_phi), at_once
        self.psi, self.paths, self.twisted = cache(self.psi), cache(self.paths), cache(self.twisted)

    def place(self, state):
        return int(self.model.state(torch.tensor([state])))

    def token_law(self, state, position):
        return self.model.table[self.place(state), position].exp().tolist()

    def subsets(self, state):
        free = [i for i in range(L) if state[i] == V]
        return list(combinations(free, min(self.at_once, len(free))))

    def writes(self, state, subset):
        """{tokens: (their chance, the state with them)}"""
        laws = {i: self.token_law(state, i) for i in subset}
        found = {}
        for tokens in product(range(V), repeat=len(subset)):
            new = list(state)
            for i, token in zip(subset, tokens, strict=True):
                new[i] = token
            found[tokens] = (prod(laws[i][v] for i, v in zip(subset, tokens, strict=True)), tuple(new))
        return found

    def psi(self, state):
        if V not in state:
            return exp(self.twist.psi[self.place(state)])
        subsets = self.subsets(state)
        return sum(p * self.psi(new) for a in subsets for p, new in self.writes(state, a).values()) / len(subsets)

    def twisted(self, state, subset):
        """The law of the tokens at `subset`, all of them together."""
        weights = {tokens: p * self.psi(new) for tokens, (p, new) in self.writes(state, subset).items()}
        return {tokens: m / sum(weights.values()) for tokens, m in weights.items()}

    def marginal(self, state, subset, position):
        law, at = self.twisted(state, subset), subset.index(position)
        return [sum(p for tokens, p in law.items() if tokens[at] == token) for token in range(V)]

    def chance(self, proposal, state, subset, tokens):
        """q(positions, tokens | state)."""
        count = len(self.subsets(state))
        if proposal == "positions and tokens":
            p, new = self.writes(state, subset)[tokens]
            return p / count * self.psi(new) / self.psi(state)
        if proposal == "tokens together":
            return self.twisted(state, subset)[tokens] / count
        return prod(self.marginal(state, subset, i)[v] for i, v in zip(subset, tokens, strict=True)) / count

    def divergences(self, log_q):
        """KL(q || sigma), KL(sigma || q) of log q of every path."""
        z, kl, reverse, total = self.psi((V,) * L), 0.0, 0.0, 0.0
        for (order, row), (p, _) in self.paths().items():
            log_sigma = log(p) + float(self.twist.psi[self.place(row)]) - log(z)
            q = log_q[order, row]
            kl, reverse, total = (
                kl + exp(q) * (q - log_sigma),
                reverse + exp(log_sigma) * (log_sigma - q),
                total + exp(q),
            )
        assert abs(total - 1) < 1e-12
        return kl, reverse

    def orders(self, state=(V,) * L):
        """Every way to part the positions over the steps."""
        if V not in state:
            return [()]
        found = []
        for subset in self.subsets(state):
            new = tuple(0 if i in subset else token for i, token in enumerate(state))
            found += [(subset, *rest) for rest in self.orders(new)]
        return found

    def paths(self):
        """{(positions of each step, what is written in the end): (its chance, [(state, positions, tokens)])}"""
        found = {}
        for order, row in product(self.orders(), FULL):
            state, p, steps = (V,) * L, 1.0, []
            for subset in order:
                tokens = tuple(row[i] for i in subset)
                chance, new = self.writes(state, subset)[tokens]
                p *= chance / len(self.subsets(state))
                steps.append((state, subset, tokens))
                state = new
            found[order, row] = (p, steps)
        return found

    def enumerated(self, proposal):
        return self.divergences(
            {
                path: sum(log(self.chance(proposal, *step)) for step in steps)
                for path, (_, steps) in self.paths().items()
            }
        )

    def filtered(self, proposal_of):
        """The same of the law that `proposal_of(order)` has, by the weights of the filter on each path."""
        log_q, every = {}, self.paths()
        for order in self.orders():
            at = torch.tensor([next(n for n, subset in enumerate(order) if i in subset) for i in range(L)])
            given = Trajectories(torch.tensor(FULL), at.expand(len(FULL), L))
            blank = torch.full((len(FULL), L), V)
            environment = UnmaskingEnvironment(self.model, DecodeOptions(len(order)))
            found = particle_filter(
                environment, proposal_of(order), self.twist, Prompts(blank), 1, "never", "multinomial", given=given
            )
            for row, weight, log_phi in zip(FULL, found.weights.log.flatten(), found.log_phi, strict=True):
                log_q[order, row] = log(every[order, row][0]) + float(log_phi) - float(weight)
        return self.divergences(log_q)

    def set_optimal(self):
        """psi* into the table that the filter's potential and tilts look up."""
        for state in product(range(V + 1), repeat=L):
            if V in state and (self.at_once == 1 or state.count(V) != 2):  # writing two of three never leaves two
                self.twist.psi[self.place(state)] = log(self.psi(state))


class InOrder:
    """Positions of a fixed order of steps."""

    def __init__(self, order):
        self.order = order

    def choose(self, observation, draws):
        written = L - int(observation.masked[0].sum())
        step = next(n for n in range(len(self.order)) if sum(map(len, self.order[:n])) == written)
        order = torch.zeros_like(observation.tokens)
        order[:, list(self.order[step])] = 1
        self.subset = self.order[step]
        return order, torch.zeros(len(order))


def best_independent(exact):
    """Independent tokens with sigma's marginals given the positions of the step, which a head of the state cannot know."""

    def proposal(order):
        rule = InOrder(order)

        def logit_bias(hidden, row):
            state, position = hidden.long().unbind(1)
            found = []
            for number, at in zip(state.tolist(), position.tolist(), strict=True):
                canvas = next(s for s in product(range(V + 1), repeat=L) if exact.place(s) == number)
                wanted = torch.tensor(exact.marginal(canvas, rule.subset, at), dtype=torch.float64)
                found.append(wanted.log() - exact.model.table[number, at])
            return torch.nn.functional.pad(torch.stack(found), (0, 1))  # the mask is never drawn

        return TwistedTokens(rule, TokenRule(), logit_bias, reads_state=True)

    return proposal


@pytest.mark.parametrize("consistent", [True, False])
@pytest.mark.parametrize("at_once", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_divergences_of_paths_at_the_optimal_twist(consistent, at_once, seed):
    exact = Exact(consistent, at_once, seed)
    both = exact.enumerated("positions and tokens")
    together = exact.enumerated("tokens together")
    alone = exact.enumerated("independent tokens")
    assert max(map(abs, both)) < 1e-12
    assert (abs(together[0]) < 1e-10) == (consistent and at_once == 1)  # conditionals from float32
    if at_once == 1:
        assert alone == pytest.approx(together, abs=1e-12)
    else:
        assert alone[0] > together[0] > 1e-4 and alone[1] > together[1] > 1e-4

    exact.set_optimal()
    assert exact.filtered(best_independent(exact)) == pytest.approx(alone, abs=1e-12)
    if at_once == 1:
        twisted_tokens = lambda order: TwistedTokens(InOrder(order), TokenRule(), exact.twist.logit_bias)
        assert exact.filtered(twisted_tokens) == pytest.approx(together, abs=1e-12)
        assert max(map(abs, exact.filtered(lambda order: TwistedJoint(TokenRule(), exact.twist.logit_bias)))) < 1e-12
