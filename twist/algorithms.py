"""One update of each twist objective: draw sequences without gradients, then compute log psi everywhere in one
teacher-forced pass.

Weights come from the pass that drew the sequences, so the differentiated part of CTL, SIXO and FUDGE never computes the
vocabulary. RL, DPG and PPO need the log-normalizer of the proposal, whose logits exist for a chunk of positions at a time.
Batches are defined over all processes, each of which takes its share; weights are normalized over all of them.

Samples that stand for the target (`positives`): sis, weighted samples of q; smc, a particle filter; exact, samples of the
target (in infilling the model's own text gives them); csmc, a particle filter around an exact sample. What differs from the
published code (2404.17546): every condition has its own noise; PPO is our own implementation, with a value head on the
twist's features.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from losses import clipped_policy_loss, gae, over_deviation, value_loss
from samplers.smc import Trajectories
from training.learner import Learner
from training.processes import Processes
from training.run import step_seed
from twist.bounds import Posterior
from twist.objectives import (
    IDENTIFIED,
    PROPOSAL_ONLY,
    Densities,
    contrastive_loss,
    dpg_loss,
    final_log_weight,
    fudge_loss,
    normalised,
    ppo_rewards,
    prefix_labels,
    sixo_loss,
    soft_q_loss,
)
from twist.paths import (
    canvases,
    each_step,
    joined,
    path_densities,
    path_features,
    path_log_psi,
    path_states,
    reordered,
    rows_of,
)
from twist.settings import ClassSettings, InfillingTarget, TargetSettings, TwistTrainingSettings
from twist.source import Source, Swept

POSITIVES = {  # the allowed `positives` of each method; first the published ones, of one class and of infilling
    "ctl": ("sis", "csmc", "smc", "exact"),
    "rl": ("none", "exact", "sis", "smc", "csmc"),
    "sixo": ("smc", "exact", "sis", "csmc"),
    "fudge": ("none", "exact"),
    "dpg": ("sis", "exact"),  # particles would be resampled by its own twist
    "ppo": ("none", "none"),
}
FROM_EXACT = ("exact", "csmc")  # of these, those that need exact samples
STREAMS = {"twist": 0, "base": 1, "target": 2, "rollouts": 3, "conditions": 4}  # seeds of a step


def condition_of(target: TargetSettings) -> str:
    """Return the kind of input that each row has: tokens (infilling), class (a target with classes and no label), or none."""
    if isinstance(target, InfillingTarget):
        return "tokens"
    return "class" if isinstance(target, ClassSettings) and target.label is None else "none"


def positives_of(config: TwistTrainingSettings) -> str:
    """Return `positives`, or the published choice for the method."""
    return config.positives or POSITIVES[config.method][condition_of(config.target) != "none"]


def check_method(config: TwistTrainingSettings) -> None:
    """Refuse, before any work, combinations that cannot be trained: ValueError."""
    if config.method not in IDENTIFIED:
        raise ValueError(f"method={config.method!r} is unknown; use one of {', '.join(IDENTIFIED)}")
    positives = positives_of(config)
    if positives not in POSITIVES[config.method]:
        known = ", ".join(sorted(set(POSITIVES[config.method])))
        raise ValueError(f"positives={positives!r} is not for method={config.method}; use one of {known}")
    if config.twist.state and config.method in PROPOSAL_ONLY:
        raise ValueError(
            f"method={config.method} says nothing of states ({IDENTIFIED[config.method]}), so a state head has nothing to learn "
            "from; take ctl, rl, sixo or fudge, or leave twist.state out"
        )
    if config.twist.state and config.length < 2:
        raise ValueError("twist.state=true learns of states on the way, and length=1 has none; raise length")
    batch, particles = config.training.batch_size, config.training.particles
    conditional = condition_of(config.target) != "none"
    if not conditional and particles != 1:
        raise ValueError(
            f"training.particles={particles} is how many sequences share a condition, and this target has none; leave it out"
        )
    if batch % particles:
        raise ValueError(
            f"training.batch_size={batch} is not divisible by training.particles={particles}; change either"
        )
    several = config.method == "ctl" or positives in ("sis", "smc", "csmc")
    if conditional and several and particles < 2:
        raise ValueError(
            f"method={config.method} with positives={positives} compares the sequences of a condition, and "
            f"training.particles={particles}; give at least 2"
        )


@dataclass
class Rows:
    """Sequences for a loss. weight: of each in the target, for this process's rows; the weights of all processes sum to
    their number.
    """

    path: Trajectories
    weight: Float[Tensor, "row"]


def check_shares(source: Source, config: TwistTrainingSettings, processes: Processes) -> None:
    """Refuse a batch that does not divide among processes: ValueError, before a run directory is created."""
    size = config.training.batch_size
    processes.share(size, "training.batch_size")
    if source.conditional:
        processes.share(size // config.training.particles, "training.batch_size / training.particles")


class TwistLearning:
    """The updates of one method. posterior: exact samples of a target without conditions, if positives are drawn from
    them.
    """

    def __init__(
        self,
        source: Source,
        learner: Learner,
        value: nn.Linear | None,
        config: TwistTrainingSettings,
        posterior: Posterior | None = None,
    ):
        self.source, self.learner, self.value, self.config, self.posterior = source, learner, value, config, posterior
        self.twist, self.processes = source.twist, learner.processes
        self.positives = positives_of(config)
        self.seen_last: Trajectories | None = None  # of this update, sequences of q or of the model
        self.figures: dict[str, float] = {}  # effective: effective sample size of the sequences of a condition
        self.anew = config.posterior.order == "uniform"
        size = config.training.batch_size
        self.groups = size // config.training.particles if source.conditional else 1
        self.particles = size // self.groups
        self.rows = size // self.processes.world

    @property
    def part(self) -> slice:
        return self.processes.part(self.config.training.batch_size)

    def seed(self, step: int, stream: str) -> int:
        return step_seed(self.config.seed, step, STREAMS[stream])

    def weights(self, log_weight: Tensor) -> Tensor:
        """Normalize the weights of this process's rows over the batch.

        The weights of all processes sum to their number, because gradients are averaged.
        """
        whole = normalised(self.processes.everywhere(log_weight), self.groups)
        if whole.dim() == 1:
            own = (whole * self.groups).view(self.groups, -1)
            self.figures["effective"] = float(own.square().sum(1).reciprocal().nan_to_num(posinf=0.0).mean())
        return (whole[self.part] * self.processes.world).float()

    @property
    def even(self) -> Float[Tensor, "row"]:
        return torch.full((self.rows,), 1 / self.rows, device=self.source.prompt.device)

    # -------------------------------------------------------------------------------------------------------------- sequences

    def conditions(self, step: int) -> tuple[Tensor | None, Trajectories | None]:
        """Return the conditions of this process's groups, and an exact sample of the target for each; (None, None) without
        conditions.
        """
        if not self.source.conditional:
            return None, None
        part = self.processes.part(self.groups)
        exact, given = self.source.pairs(part.stop - part.start, self.seed(step, "conditions"), part.start)
        if self.anew:
            exact = reordered(exact, self.seed(step, "target"), part.start)
        return given, exact

    def proposed(self, step: int, given: Tensor | None, scored: bool) -> Swept:
        """Return this process's samples of q."""
        seed = self.seed(step, "twist")
        if given is None:  # one sample of many particles, of which this process has its part
            return self.source.sweep(1, self.rows, seed, None, self.processes.rank, scored=scored)
        first = self.processes.part(self.groups).start
        return self.source.sweep(len(given), self.particles, seed, given, first, scored=scored)

    def exact(self, step: int, rows: int) -> Trajectories:
        """Draw `rows` of the posterior samples."""
        assert self.posterior is not None
        generator = torch.Generator().manual_seed(self.seed(step, "target"))
        kept = self.posterior.rows(torch.randint(len(self.posterior), (rows,), generator=generator))
        path, _ = self.source.exact(kept)
        return reordered(path, self.seed(step, "target")) if self.anew else path

    def target(self, step: int, given: Tensor | None, exact: Trajectories | None, drawn: Swept | None) -> Rows:
        """Return sequences that stand for the target. drawn: this step's samples of q."""
        if self.positives == "sis":
            assert drawn is not None
            return Rows(drawn.path, self.weights(drawn.log_weight))
        if self.positives == "exact":
            if exact is None:
                return Rows(rows_of(self.exact(step, self.config.training.batch_size), self.part), self.even)
            each = torch.arange(len(exact.tokens), device=exact.tokens.device).repeat_interleave(self.particles)
            return Rows(Trajectories(exact.tokens[each], exact.unmasked_at[each]), self.even)
        seed, pinned = self.seed(step, "target"), self.positives == "csmc"
        if given is None:  # resampling mixes all rows: every process runs the whole filter, and learns from its part
            pin = self.exact(step, 1) if pinned else None
            swept = self.source.sweep(1, self.particles, seed, resample="every", exact=pin)
            weight = normalised(swept.log_weight)[self.part] * self.processes.world
            return Rows(rows_of(swept.path, self.part), weight.float())
        first = self.processes.part(self.groups).start
        pin = exact if pinned else None
        swept = self.source.sweep(len(given), self.particles, seed, given, first, resample="every", exact=pin)
        return Rows(swept.path, self.weights(swept.log_weight))

    # ---------------------------------------------------------------------------------------------------------------- the pass

    def encoded(self, given: Tensor | None) -> Tensor | None:
        """Return the condition of each row of a set."""
        return None if given is None else self.twist.encode(given).repeat_interleave(self.particles, 0)

    def whole(self, given: Tensor | None, paths: tuple[Trajectories, ...]) -> tuple[Trajectories, int, Tensor | None]:
        """Concatenate sets of rows. Returns the rows, their number of steps, and the condition of each row."""
        condition = self.encoded(given)
        return joined(*paths), self.source.length, None if condition is None else condition.repeat(len(paths), 1)

    def log_psi(self, given: Tensor | None, *paths: Trajectories) -> list[Float[Tensor, "row step"]]:
        """Return log psi of every step, of one or several sets of rows, in one pass."""
        return list(path_log_psi(self.twist, *self.whole(given, paths)).chunk(len(paths)))

    def seen(self, given: Tensor | None, *paths: Trajectories, states: Tensor | None = None) -> list[Densities]:
        """Return log p, log psi and log-normalizer of several sets of equal size. states: hidden states of the frozen
        model, if known.
        """
        whole = path_densities(self.twist, *self.whole(given, paths), states)
        return [whole.take(slice(start, start + self.rows)) for start in range(0, len(paths) * self.rows, self.rows)]

    # ---------------------------------------------------------------------------------------------------------------- methods

    def iteration(self, step: int) -> dict[str, float]:
        """Make one update (PPO: several) from new samples."""
        given, exact = self.conditions(step)
        if self.config.method == "ppo":
            return self.ppo(step, given)
        loss = getattr(self, self.config.method)(step, given, exact)
        if self.twist.state_head is not None:
            assert self.seen_last is not None
            own = self.state_loss(given, self.seen_last)
            loss, self.figures["state_loss"] = loss + own, float(own.detach())
        loss.backward()
        return {"loss": float(loss.detach()), **self.figures, **self.learner.update()}

    def state_loss(self, given: Tensor | None, path: Trajectories) -> Tensor:
        """Loss of the scalar head: squared distance of log psi of each state of a path to the log-normalizer there.

        The log-normalizer is the twist of the tokens' expectation at that state: a mean over positions and tokens of the
        model. For psi = psi* both are equal.
        """
        with torch.no_grad():
            (seen,) = self.seen(given, path)
        states = canvases(path, self.source.model.mask_id, 1, self.source.length)
        condition = each_step(self.encoded(given), self.source.length - 1)
        psi = self.twist.of_states(states, condition).view(len(path.tokens), -1)
        return (psi - seen.log_normalizer[:, 1:]).square().mean()

    def ctl(self, step: int, given: Tensor | None, exact: Trajectories | None) -> Tensor:
        drawn = self.proposed(step, given, self.positives == "sis")
        self.seen_last = drawn.path
        positive = self.target(step, given, exact, drawn)
        same = positive.path is drawn.path  # one pass over them then serves both
        psi = self.log_psi(given, *([drawn.path] if same else [positive.path, drawn.path]))
        last = self.log_p_over_q(drawn, given).unsqueeze(1) + psi[-1][:, -1:].detach()
        return contrastive_loss(psi[0], positive.weight, psi[-1], self.weights(torch.cat((drawn.prefix, last), 1)))

    @torch.no_grad()
    def log_p_over_q(self, drawn: Swept, given: Tensor | None) -> Float[Tensor, "row"]:
        """Return log p / q of rows of the proposal, from their weights. Where the potential is 0, rows are evaluated
        again.
        """
        found, dead = drawn.log_weight - drawn.log_phi, drawn.log_phi == -torch.inf
        if not bool(dead.any()):
            return found
        (seen,) = self.seen(given, drawn.path)
        again = final_log_weight(seen.log_p.double(), seen.log_q.double(), torch.zeros_like(found).double())
        return torch.where(dead, again.to(found.dtype), found)

    def finite_phi(self, log_phi: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return log phi unchanged. ValueError for a potential of 0, which a loss in log phi cannot use."""
        if bool((log_phi == -torch.inf).any()):
            raise ValueError(
                f"the potential is 0 on {int((log_phi == -torch.inf).sum())} of {len(log_phi)} texts and method="
                f"{self.config.method} learns from its logarithm; give it a floor, as 1e-16, or take ctl, dpg or sixo"
            )
        return log_phi

    def rl(self, step: int, given: Tensor | None, exact: Trajectories | None) -> Tensor:
        drawn = self.proposed(step, given, True)
        self.seen_last = drawn.path
        self.finite_phi(drawn.log_phi)
        if self.positives == "none":
            (seen,) = self.seen(given, drawn.path)
            return soft_q_loss(seen.log_psi, seen.log_normalizer, drawn.log_phi.float(), self.even)
        positive = self.target(step, given, exact, drawn)
        each = None if given is None else given.repeat_interleave(self.particles, 0)
        of_q, of_target = self.seen(given, drawn.path, positive.path)
        loss = soft_q_loss(of_q.log_psi, of_q.log_normalizer, drawn.log_phi.float(), self.even)
        log_phi = self.source.log_phi(positive.path.tokens, each)
        return loss + soft_q_loss(of_target.log_psi, of_target.log_normalizer, log_phi, positive.weight)

    def sixo(self, step: int, given: Tensor | None, exact: Trajectories | None) -> Tensor:
        drawn = self.proposed(step, given, True) if self.positives == "sis" else None
        positive = self.target(step, given, exact, drawn)
        negative = self.source.prior(self.rows, self.seed(step, "base"), self.part.start)
        self.seen_last = negative
        of_target, of_model = self.log_psi(given, positive.path, negative)
        return sixo_loss(of_target, positive.weight, of_model, self.even)

    def fudge(self, step: int, given: Tensor | None, exact: Trajectories | None) -> Tensor:
        each = None if given is None else given.repeat_interleave(self.particles, 0)
        drawn = self.source.prior(self.rows, self.seed(step, "base"), self.part.start)
        self.seen_last = drawn
        log_phi = self.source.log_phi(drawn.tokens, each)
        if float(log_phi.max()) > 1e-6:
            raise ValueError(
                f"the log potential reaches {float(log_phi.max()):.4g} and method=fudge learns a probability; take a potential "
                "that stays below 1, or another method"
            )
        if self.positives == "none":
            (psi,) = self.log_psi(given, drawn)
            return fudge_loss(psi, log_phi.unsqueeze(1).expand_as(psi), self.even)
        positive = self.target(step, given, exact, None)
        label = self.labels(step, positive.path, each)
        psi, of_target = self.log_psi(given, drawn, positive.path)
        return 0.5 * (
            fudge_loss(psi, log_phi.unsqueeze(1).expand_as(psi), self.even)
            + fudge_loss(of_target, label, positive.weight)
        )

    @torch.no_grad()
    def labels(self, step: int, path: Trajectories, each: Tensor | None) -> Float[Tensor, "row step"]:
        """Return log phi of a completion by p of every state of the rows but the last.

        A label belongs to the text behind the token that is scored.
        """
        states = self.source.length - 1
        blanks = canvases(path, self.source.model.mask_id, 1, states + 1)
        rolled = self.source.completed(blanks, self.seed(step, "rollouts"), self.part.start * states).tokens
        given = None if each is None else torch.cat((each.repeat_interleave(states, 0), each))
        whole = self.source.target.log_phi(torch.cat((rolled, path.tokens)), given)
        return prefix_labels(whole[: len(rolled)], whole[len(rolled) :])

    def dpg(self, step: int, given: Tensor | None, exact: Trajectories | None) -> Tensor:
        drawn = self.proposed(step, given, True) if self.positives == "sis" else None
        positive = self.target(step, given, exact, drawn)
        (seen,) = self.seen(given, positive.path)
        return dpg_loss(seen.log_psi, seen.log_normalizer, positive.weight)

    def ppo(self, step: int, given: Tensor | None) -> dict[str, float]:
        """Make clipped updates on one set of samples, with advantages by a value head. Every step earns log p - log q, the
        last also log phi.
        """
        settings, length, value = self.config.ppo, self.source.length, self.value
        assert value is not None
        drawn = self.proposed(step, given, True)
        row = torch.arange(self.rows, device=drawn.path.tokens.device).repeat_interleave(length)
        place = torch.arange(length, device=row.device).repeat(self.rows)
        weight = torch.full((len(row),), 1 / len(row), device=row.device)
        states = path_states(self.twist, drawn.path, length)  # the frozen model's, once for all epochs

        def valued() -> Float[Tensor, "step"]:
            """Return values. The features are detached, so that only the value head learns from its loss."""
            with torch.no_grad():
                features = path_features(self.twist, drawn.path, length, states)
                condition = each_step(self.encoded(given), length)
                inputs = features if condition is None else torch.cat((features, condition), 1)
            return value(inputs).squeeze(1)

        with torch.no_grad():
            (old,) = self.seen(given, drawn.path, states=states)
            rewards = ppo_rewards(old.log_p, old.log_q, self.finite_phi(drawn.log_phi).float())
            advantage, goal = gae(rewards.flatten(), valued(), row, place, 1.0, settings.gae_decay)
            _, mean, deviation = self.processes.moments(advantage)
            advantage, old_log_q = over_deviation(advantage - mean, deviation, mean.abs()), old.log_q.flatten()
        metrics: dict[str, float] = {"log_weight": float(rewards.sum(1).mean())}
        for _ in range(settings.epochs):
            (seen,) = self.seen(given, drawn.path, states=states)
            policy = clipped_policy_loss(seen.log_q.flatten(), old_log_q, advantage, weight, settings.clip)
            loss = policy + settings.value_weight * value_loss(valued(), goal, weight)
            loss.backward()
            metrics |= {"loss": float(loss.detach()), **self.learner.update()}
        return metrics
