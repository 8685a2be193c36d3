"""From a configuration to a particle filter: strategies twisted_smc and fk of run_sample.py.

Settings are those of `smc` in configs/sampler/default.yaml; everything wrong with them is refused here, before any work.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float, Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dlm.draws import Draws
from dlm.encoding import model_ids
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.observation import Observation
from policy.build import build_strategy, check_known, shipped
from samplers.fk import Steering
from samplers.loop import Strategy
from samplers.particles import RESAMPLE, SCHEMES
from samplers.samples import Samples
from samplers.smc import Diagnostics, Finish, Plain, Potential, Proposal, particle_filter
from samplers.twisted import TwistedJoint, TwistedTokens
from twist.learning import check_resampling
from twist.model import TwistModel, load_twist, read_about
from twist.potential import TwistPotential
from twist.tail import BeforeTail, with_tail
from twist.targets import Target, build_target, check_continuation, text_reward

PROPOSALS = ("joint", "tokens", "base")
PICKS = ("draw", "best")


def check_smc(settings: DictConfig) -> None:
    """Refuse what no filter could be asked for. Raises ValueError."""
    for key in ("particles", "completions", "interval"):
        if isinstance(settings[key], bool) or not isinstance(settings[key], int) or settings[key] < 1:
            raise ValueError(f"sampler.smc.{key}={settings[key]} must be a whole number of at least 1; change it")
    if not isinstance(settings.scale, int | float) or not math.isfinite(settings.scale):
        raise ValueError(f"sampler.smc.scale={settings.scale} must be a number; change it")
    if not isinstance(settings.exponent, int | float) or not 0 <= settings.exponent < math.inf:
        raise ValueError(f"sampler.smc.exponent={settings.exponent} must be a number of at least 0; change it")
    if settings.proposal == "base" and settings.exponent != 1:
        raise ValueError(
            f"proposal base is not bent by the twist, and sampler.smc.exponent={settings.exponent} says how much; leave one out"
        )
    known = {"resample": RESAMPLE, "scheme": tuple(SCHEMES), "pick": PICKS, "proposal": (None, *PROPOSALS)}
    for key, values in known.items():
        if settings[key] not in values:
            names = ", ".join(str(value) for value in values if value is not None)
            raise ValueError(f"sampler.smc.{key}={settings[key]!r} is unknown; use one of {names}")
    check_known(settings.unmask)


def twist_directory(path: str) -> str:
    """Of a run of run_train_twist.py, its twist."""
    path = shipped(path)
    return str(Path(path) / "twist") if (Path(path) / "twist").is_dir() else path


def model_of_twist(settings: DictConfig) -> dict:
    """What the twist was learnt for: its model, prompt and length, which are the defaults of what is sampled."""
    if settings.twist is None:
        raise ValueError("strategy twisted_smc needs a twist; give --twist RUN, a run of run_train_twist.py")
    return read_about(twist_directory(settings.twist))


@dataclass
class ParticleFilter:
    """A filter as it was asked for. model: what the environment is to be built on; parts: proposal and potential of so many
    samples. What was found of the samples so far: log_z, effective (particles, at the end), resamplings; dead: names of those
    that lost all their particles."""

    model: MaskedLM
    parts: Callable[[int], tuple[Proposal, Potential]]
    settings: DictConfig
    log_z: list[float] = field(default_factory=list)
    log_phi: list[float] = field(default_factory=list)
    effective: list[float] = field(default_factory=list)
    resamplings: list[int] = field(default_factory=list)
    dead: list[int] = field(default_factory=list)

    def decode(
        self, environment: UnmaskingEnvironment, canvas: Int[Tensor, "row position"], seed: int, row_id: Int[Tensor, "row"],
        on_step: Callable[[Observation, Int[Tensor, "particle"]], None] | None = None,
    ) -> Samples:  # fmt: skip
        """One sample of each row: a particle drawn by weight, or the one of highest potential. Its evaluations are those of all
        particles."""
        smc, seen = self.settings, Diagnostics()
        proposal, potential = self.parts(len(canvas))
        found = particle_filter(
            environment, proposal, potential, canvas, smc.particles, smc.resample, smc.scheme, seed, row_id,
            interval=smc.interval, collect=seen, on_step=on_step,
        )  # fmt: skip
        rows = found.best() if smc.pick == "best" else found.drawn(Draws(seed), row_id)
        self.log_z += found.log_z.tolist()
        self.log_phi += found.log_phi[rows].tolist()
        self.effective += found.weights.effective.tolist()
        self.dead += row_id[found.dead].tolist()
        self.resamplings += torch.stack(seen.resampled).sum(0).tolist()
        evaluations = found.samples.evaluations.view(len(canvas), -1).sum(1)
        return replace(found.samples.take(rows), evaluations=evaluations)

    def record(self) -> dict:
        """Of all samples: log Z and log phi of each (None: -inf), the dead ones, and on average what is left of the particles."""
        log_z, log_phi = ([x if math.isfinite(x) else None for x in values] for values in (self.log_z, self.log_phi))
        return {
            "particles": self.settings.particles, "log_z": log_z, "log_phi": log_phi, "dead": self.dead,
            "effective": sum(self.effective) / len(self.effective),
            "resamplings": sum(self.resamplings) / len(self.resamplings),
        }  # fmt: skip


def build_filter(config: DictConfig, model: MaskedLM, canvas: Int[Tensor, "position"]) -> ParticleFilter:
    """The filter that `config.sampler` asks for, for canvases like this one. Raises ValueError for anything that does not fit."""
    smc = config.sampler.smc
    check_smc(smc)
    if config.sampler.stop:
        raise ValueError("particles are compared at one length; leave sampler.stop out")
    if config.sampler.strategy == "fk":
        return _steered(config, model, canvas)
    if config.sampler.guidance != 0:
        raise ValueError(
            f"sampler.guidance={config.sampler.guidance} mixes two hidden states of each canvas, and the twist reads one; leave "
            "sampler.guidance out"
        )
    model = with_tail(model, read_about(twist_directory(smc.twist))["target"])
    twist, about = load_twist(twist_directory(smc.twist), model)
    if smc.resample != "never":
        check_resampling(str(about.get("method")), smc.twist)
    masks = (canvas == model.mask_id).nonzero().squeeze(1)
    prompt, written = int(masks[0]), len(masks)  # what stands behind the first mask is part of the text
    target = build_target(about["target"], model, prompt, written)
    given = _given(config, model, about, prompt, written)
    return _twisted(config, model, twist, target, given)


def _base(config: DictConfig, model: MaskedLM, default: str) -> Strategy:
    """The strategy that particles go by."""
    asked = OmegaConf.merge(config, {"sampler": {"strategy": config.sampler.smc.unmask or default}})
    assert isinstance(asked, DictConfig)
    return build_strategy(asked, model)


def _steered(config: DictConfig, model: MaskedLM, canvas: Int[Tensor, "position"]) -> ParticleFilter:
    smc = config.sampler.smc
    reward = config.sampler.guide.reward
    if smc.twist is not None:
        raise ValueError(
            "strategy fk weighs states by a reward and reads no twist; leave --twist out, or take twisted_smc"
        )
    if reward is None:
        raise ValueError("strategy fk needs a reward; give --reward R, such as vader or a run of run_train_reward.py")
    if model.tokenizer is None:
        raise ValueError(
            f"a reward reads text and the tokenizer of {model.model_id} cannot be loaded; add tokenizer.json"
        )
    score = text_reward(str(reward), model, int((canvas == model.mask_id).nonzero()[0]))
    strategy = _base(config, model, "leftmost" if model.causal else "direct")
    scale = float(smc.scale)

    def finished(tokens: Tensor, rows: Tensor) -> Float[Tensor, "finished"]:
        return scale * score(tokens)

    def parts(samples: int) -> tuple[Proposal, Potential]:
        if smc.resample == "never":  # nobody looks at states
            return Plain(strategy), Finish(finished)
        return Plain(strategy), Steering(score, scale, smc.potential, smc.completions, strategy.what, config.seed)

    Steering(score, scale, smc.potential, smc.completions)  # refuses what is unknown
    return ParticleFilter(model, parts, smc)


def _twisted(
    config: DictConfig, model: MaskedLM, twist: TwistModel, target: Target, given: Int[Tensor, "*token"] | None
) -> ParticleFilter:
    smc, of_state = config.sampler.smc, twist.state_head is not None
    kind = smc.proposal or ("tokens" if model.causal or of_state else "joint")
    if kind == "joint" and (model.causal or smc.unmask is not None):
        raise ValueError(
            "proposal joint lets the twist choose among the positions of a masked model, and here "
            + ("the model is causal" if model.causal else f"sampler.smc.unmask={smc.unmask} does")
            + "; use sampler.smc.proposal=tokens"
        )
    if kind == "joint" and config.sampler.budget is not None:
        raise ValueError(
            f"proposal joint writes one position a step, whatever sampler.budget={config.sampler.budget} is; leave it out, "
            "or use sampler.smc.proposal=tokens with a twist that has a state head"
        )
    # Several a step: as many of each particle, whose states then compare whatever the learnt psi leaves open of a step.
    strategy = _base(config, model, "leftmost" if model.causal else "random" if of_state else "first_hitting")

    def parts(samples: int) -> tuple[Proposal, Potential]:
        own = None if given is None else given.expand(samples, *given.shape)
        potential = TwistPotential(twist, target, smc.particles, own)
        if kind == "joint":
            return TwistedJoint(strategy.what, potential.tilt, float(smc.exponent)), potential
        if kind == "base" and of_state:
            return Plain(strategy), potential
        exponent = 0.0 if kind == "base" else float(smc.exponent)
        return TwistedTokens(strategy.where, strategy.what, potential.tilt, of_state, exponent), potential

    parts(1)  # refuses what does not fit
    return ParticleFilter(twist.sampled(), parts, smc)


def _given(config: DictConfig, model: MaskedLM, about: dict, prompt: int, written: int) -> Int[Tensor, "*token"] | None:
    """What the twist is conditioned on: for infilling what follows (`suffix`), or a class."""
    condition, device = about["twist"]["condition"], next(model.parameters()).device
    if condition == "class":
        label, classes = config.sampler.smc.label, about["twist"]["classes"]
        if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < classes:
            raise ValueError(
                f"this twist is told one of {classes} classes and sampler.smc.label={label}; give a number from 0 to "
                f"{classes - 1}"
            )
        return torch.tensor(label, device=device)
    if config.sampler.smc.label is not None:
        raise ValueError(
            f"sampler.smc.label={config.sampler.smc.label} is for twists that are told a class, and this one is not; leave it out"
        )
    if about["target"]["kind"] != "infilling":
        return None
    if not config.suffix:
        raise ValueError("this twist writes towards what follows; give it: --suffix TEXT")
    given = torch.tensor(model_ids(model, str(config.suffix), "--suffix"), device=device)
    learnt_for = about["target"]["tokens"]
    if len(given) != learnt_for:
        raise ValueError(
            f"--suffix {str(config.suffix)!r} is {len(given)} tokens and this twist was learnt for {learnt_for} that follow "
            f"(target.tokens); give a text of {learnt_for}"
        )
    check_continuation(model.whole if isinstance(model, BeforeTail) else model, prompt, written, len(given))
    return given
