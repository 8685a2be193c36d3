"""Distance of a proposal q from the target sigma = p phi / Z: bounds on log Z from both sides, and the KL divergence both
ways.

Source: Zhao et al. (2404.17546), section 5. With w = p phi / q and samples of both distributions,

    F = E_q[log w] <= log Z <= E_sigma[log w] = G,    KL(q || sigma) = log Z - F,    KL(sigma || q) = G - log Z.

With K particles both sides become tighter: from below the log of the mean weight (IWAE) or of a particle filter's estimate
(SMC); from above the same with one exact sample of sigma among the particles. Exact samples come from rejection: a sample
of p is kept with probability phi, which needs phi <= 1. A file of exact samples names its target, and is refused for any
other.

What differs from the paper: any potential below 1 has exact samples (its samplers draw classes), a reward at any beta; KL
divergences have intervals. As there, upper bounds of classes and of continuations need beta = 1, where phi is the
probability of something observable.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Float64, Int
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from training.files import replacing
from training.usage import readable

Z95 = 1.959963984540054


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval, by the normal distribution."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Float[Tensor, "sample"]) -> Estimate:
        mean = float(values.double().mean())
        if not math.isfinite(mean):  # of logarithms of what is 0 somewhere: no interval holds a finite mean
            return cls(mean, mean, mean)
        half = Z95 * float(values.double().std()) / len(values) ** 0.5 if len(values) > 1 else math.inf
        return cls(mean, mean - half, mean + half)

    @property
    def half(self) -> float:
        """Half of the length of the interval."""
        return (self.high - self.low) / 2 if math.isfinite(self.value) else 0.0

    def shifted(self, by: float, sign: int = 1) -> Estimate:
        """Return the estimate `by + sign * self`, with its interval."""
        ends = sorted((by + sign * self.low, by + sign * self.high))
        return Estimate(by + sign * self.value, *ends)

    def wider(self, by: float) -> Estimate:
        """Return the estimate with an interval that is `by` longer at each end."""
        return Estimate(self.value, self.low - by, self.high + by)


def difference(one: Estimate, other: Estimate) -> Estimate:
    """Return the difference of two means over independent samples."""
    value = one.value - other.value
    half = math.hypot(one.half, other.half) if math.isfinite(value) else 0.0
    return Estimate(value, value - half, value + half)


@dataclass(frozen=True)
class Bounds:
    """Bounds on log Z, one pair per repetition: on average lower <= log Z <= upper. upper: None without an exact sample."""

    lower: Float64[Tensor, "sweep"]
    upper: Float64[Tensor, "sweep"] | None

    @property
    def gap(self) -> float:
        assert self.upper is not None
        return float(self.upper.mean() - self.lower.mean())

    @property
    def midpoints(self) -> Float64[Tensor, "sweep"]:
        assert self.upper is not None
        return (self.upper + self.lower) / 2

    @property
    def midpoint(self) -> float:
        return float(self.midpoints.mean())

    @property
    def error(self) -> float:
        """Uncertainty of log Z if the midpoint is used: half the gap between the bounds, and their interval over repetitions.

        Infinite for a single repetition, whose spread is unknown.
        """
        return math.hypot(self.gap / 2, Estimate.of(self.midpoints).half)

    def of_each(self, conditions: int) -> Bounds:
        """Return the mean over the repetitions of each condition. Repetition number k belongs to condition k modulo
        `conditions`."""
        index = torch.arange(len(self.lower), device=self.lower.device) % conditions
        count = index.bincount(minlength=conditions)

        def mean(values: Float64[Tensor, "sweep"]) -> Float64[Tensor, "condition"]:
            return values.new_zeros(conditions).index_add(0, index, values) / count

        return Bounds(mean(self.lower), None if self.upper is None else mean(self.upper))


def log_mean_weight(log_weight: Float64[Tensor, "sweep particle"]) -> Float64[Tensor, "sweep"]:
    """Return the log of the mean weight of each repetition."""
    return log_weight.logsumexp(1) - math.log(log_weight.shape[1])


def importance_bounds(log_weight: Float64[Tensor, "sweep particle"], exact: Float64[Tensor, "sweep"] | None) -> Bounds:
    """Return IWAE bounds, both sides.

    Args:
        log_weight: of samples of q.
        exact: of one sample of sigma per repetition, which replaces the first sample in the upper bound.
    """
    if exact is None:
        return Bounds(log_mean_weight(log_weight), None)
    replaced = torch.cat((exact.unsqueeze(1), log_weight[:, 1:]), 1)
    return Bounds(log_mean_weight(log_weight), log_mean_weight(replaced))


def closest(bounds: Mapping[str, Bounds]) -> str | None:
    """Return the name of the closest pair of bounds, whose midpoint estimates log Z. None if no pair is finite."""
    both = {name: abs(own.gap) for name, own in bounds.items() if own.upper is not None and math.isfinite(own.gap)}
    return min(both, key=lambda name: both[name]) if both else None


def kl_both_ways(f: Estimate, g: Estimate, log_z: float) -> tuple[Estimate, Estimate]:
    """Return (KL(q || sigma), KL(sigma || q)). Intervals are those of F and G: log Z is treated as known."""
    return f.shifted(log_z, -1), g.shifted(-log_z)


# ------------------------------------------------------------------------------------------------------ exact samples of sigma


def check_upper(beta: float) -> None:
    """Refuse upper bounds, and results that need them, for a target whose exact samples need beta = 1: ValueError."""
    if beta != 1:
        raise ValueError(
            f"target.beta={beta}: exact samples of the target exist at beta=1 only, and without them there is no upper bound on "
            "log Z and no KL; give posterior.count=0 for lower bounds alone"
        )


def accepted(log_phi: Float[Tensor, "row"], uniform: Float64[Tensor, "row"]) -> Bool[Tensor, "row"]:
    """Mark samples of p that are samples of sigma: each with probability phi. ValueError if phi is not a probability."""
    highest = float(log_phi.max())
    if not highest <= 1e-6:
        raise ValueError(
            f"the log potential reaches {highest:.4g}, so phi is no probability and rejection gives no exact samples; take a "
            "potential that stays below 1, or posterior.count=0"
        )
    return uniform.log() < log_phi.double()


def model_digest(model: nn.Module) -> str:
    """Return the digest of all weights, bit for bit."""
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:32]


def folder_digest(folder: Path) -> str:
    """Return the digest of a saved model: its weights and settings."""
    digest = hashlib.sha256()
    for file in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        digest.update(file.name.encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:32]


@dataclass(frozen=True)
class Origin:
    """Prompt, length, model and target of exact samples."""

    prompt: tuple[int, ...]
    length: int
    model: str  # `model_digest`
    target: str  # its settings, in words, and the digests of what they name

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps([self.prompt, self.length, self.model, self.target]).encode()).hexdigest()

    def differs(self, other: Origin) -> list[str]:
        return [name for name in ("prompt", "length", "model", "target") if getattr(self, name) != getattr(other, name)]


@dataclass(frozen=True)
class Posterior:
    """Exact samples of sigma, without the prompt, and the step that committed each position.

    given: the tokens (infilling) or class that each is conditioned on; tried: number of samples of p that were drawn (the
    log of the kept share estimates log Z).
    """

    tokens: Int[Tensor, "sample position"]
    unmasked_at: Int[Tensor, "sample position"]
    given: Int[Tensor, "sample *condition"] | None
    tried: int

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor | slice) -> Posterior:
        given = None if self.given is None else self.given[index]
        return Posterior(self.tokens[index], self.unmasked_at[index], given, self.tried)

    def save(self, file: Path, origin: Origin) -> None:
        """Write the file; it is moved into place when complete."""
        tensors = {"tokens": self.tokens.cpu().contiguous(), "written_at": self.unmasked_at.cpu().contiguous()}
        if self.given is not None:
            tensors["given"] = self.given.cpu().contiguous()
        about = {"prompt": list(origin.prompt), "length": origin.length, "model": origin.model, "target": origin.target}
        metadata = {"origin": json.dumps(about), "digest": origin.digest, "tried": str(self.tried),
                    "samples": samples_digest(tensors, self.tried)}  # fmt: skip
        file.parent.mkdir(parents=True, exist_ok=True)
        with replacing(file) as part:
            save_file(tensors, part, metadata)


def samples_digest(tensors: Mapping[str, Tensor], tried: int) -> str:
    """Return a digest that identifies exact samples."""
    digest = hashlib.sha256(str(tried).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return digest.hexdigest()[:32]


def load_posterior(file: str | Path, origin: Origin) -> Posterior:
    """Read a file of `Posterior.save`. ValueError if its prompt, length, model or target differs, or if it was changed."""
    if not Path(file).is_file():
        raise ValueError(f"{file} does not exist; give posterior samples that train-twist collected, or null")
    with readable(file), safe_open(str(file), "pt") as opened:
        metadata = opened.metadata() or {}
        tensors = {name: opened.get_tensor(name) for name in list(opened.keys())}
        about = json.loads(metadata["origin"])
        own = Origin(tuple(about["prompt"]), about["length"], about["model"], about["target"])
    samples = samples_digest(tensors, int(metadata["tried"]))
    if (
        metadata["digest"] != own.digest or metadata.get("samples", samples) != samples
    ):  # older files have none of samples
        raise ValueError(f"{file} was changed: its digest is not that of what it says; collect the samples again")
    if metadata["digest"] != origin.digest:
        raise ValueError(
            f"{file} holds exact samples of another {' and '.join(own.differs(origin))} than this run's; collect new ones "
            "(mode=collect), or give those that belong to it"
        )
    return Posterior(tensors["tokens"], tensors["written_at"], tensors.get("given"), int(metadata["tried"]))
