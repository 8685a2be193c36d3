"""Sequences for losses and bounds: of the model p, of the twisted proposal q, of particle filters, of the target.

All have the same prompt and length, and no gradients. A causal model generates from the left. For a masked model p commits
one position per step, any with equal probability, and q proposes position and token together. Random draws are numbered
over the whole batch, so they do not depend on the process that makes them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Float64, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy
from samplers.smc import FilterStep, Particles, Proposal, Trajectories, particle_filter
from samplers.twisted import TwistedJoint, TwistedTokens
from training.progress import progress
from twist.bounds import Posterior, accepted
from twist.network import TwistModel
from twist.paths import joined
from twist.potential import TwistPotential
from twist.tail import BeforeTail
from twist.targets import ClassTarget, Target

PROPOSALS = ("twist", "base")


@dataclass
class Unscored(TwistPotential):
    """A potential without phi, for sequences whose potential is not needed."""

    def final(self, tokens, rows):
        return torch.zeros(len(tokens), device=tokens.device)


@dataclass(frozen=True)
class Swept:
    """Rows of a particle filter, sample by sample.

    prefix: log-weights after each step but the last, p psi_t / q (without resampling); log_weight: p phi / q since the last
    resampling; log_z: of each sample.
    """

    path: Trajectories
    prefix: Float64[Tensor, "row before_last"]
    log_weight: Float64[Tensor, "row"]
    log_phi: Float64[Tensor, "row"]
    log_z: Float64[Tensor, "filter"]


@dataclass
class Source:
    """Model, twist, target and the common prompt of all rows.

    length: positions to generate; condition: number of tokens behind the text that each row is conditioned on (infilling);
    0 for a target with a class per row.
    """

    twist: TwistModel
    target: Target
    prompt: Int[Tensor, "token"]
    length: int
    condition: int = 0

    @property
    def conditional(self) -> bool:
        """Return whether each row has its own target."""
        return self.condition > 0 or (isinstance(self.target, ClassTarget) and self.target.label is None)

    @property
    def model(self) -> MaskedLM:
        return self.twist.model

    @property
    def reference(self) -> Strategy:
        """Return p as a decoder: one position per step."""
        return Strategy(UNMASKING_RULES["leftmost" if self.model.causal else "random"](), TokenRule())

    @property
    def first(self) -> int:
        """First position that is generated."""
        return len(self.prompt)

    def blank(self, rows: int, length: int) -> Int[Tensor, "row position"]:
        return F.pad(self.prompt, (0, length), value=self.model.mask_id).expand(rows, -1)

    def completed(self, canvas: Int[Tensor, "row position"], seed: int, first_row: int = 0) -> Trajectories:
        """Complete canvases by p. Returns the tokens and the steps of their commits."""
        if len(canvas) == 0:
            return Trajectories(canvas, canvas)
        steps = self.length + (self.condition if self.model.causal else 0)
        prompts = Prompts(canvas, first_row=first_row)
        samples = self.reference.decode(self.model, prompts, DecodeOptions(steps), seed)
        return Trajectories(samples.tokens, samples.unmasked_at)

    def prior(self, rows: int, seed: int, first_row: int = 0) -> Trajectories:
        """Draw samples of p."""
        return self.completed(self.blank(rows, self.length), seed, first_row)

    def pairs(self, rows: int, seed: int, first_row: int = 0) -> tuple[Trajectories, Int[Tensor, "row *token"]]:
        """Draw texts with conditions of which they are exact samples: p generates both, or the classifier draws the class."""
        if not self.condition:
            assert isinstance(self.target, ClassTarget)
            path, number = (
                self.prior(rows, seed, first_row),
                torch.arange(first_row, first_row + rows, device=self.prompt.device),
            )
            zero = torch.zeros_like(number)
            return path, Draws(seed).categorical(self.target.log_probs(path.tokens), number, zero, zero, stream="pick")
        if isinstance(self.model, BeforeTail):
            path = self.prior(rows, seed, first_row)
            canvas = F.pad(path.tokens, (0, self.condition), value=self.model.mask_id)
            prompts, from_left = (
                Prompts(canvas, first_row=first_row),
                Strategy(UNMASKING_RULES["leftmost"](), TokenRule()),
            )
            revealed = from_left.decode(self.model.whole, prompts, DecodeOptions(self.condition), seed)
            return path, revealed.tokens[:, -self.condition :]
        whole = self.completed(self.blank(rows, self.length + self.condition), seed, first_row)
        end = -self.condition
        return Trajectories(whole.tokens[:, :end], whole.unmasked_at[:, :end]), whole.tokens[:, end:]

    def log_phi(self, canvas: Int[Tensor, "row position"], given: Tensor | None = None) -> Float[Tensor, "row"]:
        """Return log phi of finished rows. FloatingPointError if it is NaN, or 0 potential everywhere."""
        log_phi = self.target.log_phi(canvas, given)
        if bool(log_phi.isnan().any()) or bool((log_phi == torch.inf).any()):
            raise FloatingPointError(
                f"the log potential is NaN or +inf on {int((log_phi.isnan() | (log_phi == torch.inf)).sum())} of {len(log_phi)} "
                "texts; check the classifier or the reward on such text, or temper the potential (a smaller target.beta)"
            )
        self._refuse_dead(log_phi)
        return log_phi

    def _refuse_dead(self, log_phi: Float[Tensor, "row"]) -> None:
        """Raise FloatingPointError if every text has potential 0: nothing can be learned or measured."""
        if bool((log_phi == -torch.inf).all()):
            raise FloatingPointError(
                f"all {len(log_phi)} texts have potential 0 (log potential -inf); take more of them at once, temper the "
                "potential (a smaller target.beta), or one that is nowhere 0"
            )

    def sweep(
        self, samples: int, particles: int, seed: int, given: Tensor | None = None, first_sample: int = 0,
        proposal: str = "twist", resample: str = "never", exact: Trajectories | None = None, scored: bool = True,
    ) -> Swept:  # fmt: skip
        """Run a particle filter: `samples` sets of `particles` rows.

        Args:
            given: condition of each sample.
            proposal: twist (q) or base (p).
            resample: never, ess, every.
            exact: a sample of the target for each, which its first particle follows (resampling is then multinomial, else
                systematic).
            scored: compute phi of finished rows.

        Raises:
            FloatingPointError: all rows of all samples have weight 0. A single sample whose rows all have weight 0 has log
                Z = -inf.
        """
        kind = TwistPotential if scored else Unscored
        potential = kind(self.twist, self.target, particles, given)
        logit_bias, rule = potential.logit_bias, TokenRule()
        one_at_a_time = TwistedTokens(
            self.reference.rule, rule, logit_bias, exponent=1.0 if proposal == "twist" else 0.0
        )
        joint = proposal == "twist" and not self.model.causal  # position and token together
        chosen: Proposal = TwistedJoint(rule, logit_bias) if joint else one_at_a_time
        weights: list[Float64[Tensor, "row"]] = []

        def keep(step: FilterStep) -> None:
            weights.append(step.weights.log.flatten())

        number = torch.arange(first_sample, first_sample + samples, device=self.prompt.device)
        environment = UnmaskingEnvironment(self.twist.sampled(), DecodeOptions(self.length))
        found: Particles = particle_filter(
            environment, chosen, potential, Prompts(self.blank(samples, self.length)), particles, resample,
            "systematic" if exact is None else "multinomial", seed, number, exact, collect=keep,
        )  # fmt: skip
        if scored and bool(found.dead.all()):
            self._refuse_dead(found.weights.log.flatten())
        path = Trajectories(found.samples.tokens, found.samples.unmasked_at)
        before_last = torch.stack(weights, 1)[:, :-1]
        return Swept(path, before_last, found.weights.log.flatten(), found.log_phi, found.log_z)

    def exact(self, posterior: Posterior) -> tuple[Trajectories, Tensor | None]:
        """Return exact samples of the target as paths, and their conditions."""
        device = self.prompt.device
        rows, none = self.prompt.expand(len(posterior), -1), torch.full((len(posterior), self.first), -1, device=device)
        path = Trajectories(
            torch.cat((rows, posterior.tokens.to(device)), 1), torch.cat((none, posterior.unmasked_at.to(device)), 1)
        )
        return path, None if posterior.given is None else posterior.given.to(device)


def collect_posterior(source: Source, count: int, batch: int, seed: int, most: int = 10_000_000) -> Posterior:
    """Draw `count` exact samples of the target, by rejection in batches of `batch`; pairs for a target with conditions.

    Raises:
        ValueError: phi is not a probability, or `most` samples of p did not suffice.
    """
    device, paths, given = source.prompt.device, [], []
    kept = tried = 0
    with progress("exact samples of the target", count) as advance:
        while kept < count:
            if tried >= most:
                raise ValueError(
                    f"rejection kept {kept} of {tried} samples of the model, {count} were requested; the target is too rare for "
                    "exact samples: give posterior.count=0, or fewer"
                )
            if source.conditional:
                path, follows = source.pairs(batch, seed, tried)
                given.append(follows)
            else:
                path = source.prior(batch, seed, tried)
                number = torch.arange(tried, tried + batch, device=device)
                uniform = Draws(seed).uniform("pick", number, torch.zeros_like(number), 1).squeeze(1)
                kept_rows = accepted(source.target.log_phi(path.tokens), uniform)
                path = Trajectories(path.tokens[kept_rows], path.unmasked_at[kept_rows])
                if kept + len(path.tokens) >= count:  # those behind the last one were not needed
                    batch = int(kept_rows.nonzero()[count - kept - 1]) + 1
            paths.append(path)
            kept, tried = kept + len(path.tokens), tried + batch
            advance(len(path.tokens))
    tokens, unmasked_at = (whole[:count, source.first :] for whole in vars(joined(*paths)).values())
    return Posterior(tokens, unmasked_at, torch.cat(given)[:count] if given else None, tried)
