"""A user's unmasking rule or decoder, whose results are checked: a mistake there is one sentence that names the object."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.loop import Decoder, OnStep, Record, StepDecoder, Unmasker
from samplers.samples import Samples


def described(value: object) -> str:
    """Return the shape and the type of a tensor, or the type of another object."""
    return (
        f"shape {list(value.shape)} and type {value.dtype}" if isinstance(value, Tensor) else f"{type(value).__name__}"
    )


def check_order(order: Any, observation: Observation, name: str) -> None:
    """Refuse ranks of another shape than the canvases, selected positions that are not open, and decoding without an end.

    With revision, committed positions may be selected too. Without it, a row may remain without a selected position in some
    steps, because a rule may choose at random. It is refused after as many steps as are planned plus one for each position that
    was open at the start.

    Args:
        name: of the object that chose, for the message.

    Raises:
        ValueError: names the object, the sample and the position.
    """
    expected = list(observation.tokens.shape)
    if not isinstance(order, Tensor) or list(order.shape) != expected or order.is_floating_point():
        raise ValueError(
            f"{name} returned ranks of {described(order)}; return whole numbers of shape {expected}, 0 for positions to leave"
        )
    allowed = observation.writable if observation.revisable is None else observation.writable | observation.revisable
    wrong = (order > 0) & ~allowed
    late = observation.row_step >= observation.environment.options.steps + observation.to_write
    idle = late & ~(order > 0).any(1) & ~observation.last  # the loop itself commits all positions of a row's last step
    if observation.revisable is not None:  # the number of steps is limited
        idle = torch.zeros_like(idle)
    if not bool(wrong.any() | idle.any()):  # one read of the device
        return
    if bool(wrong.any()):
        row, position = (int(place) for place in wrong.nonzero()[0])
        raise ValueError(
            f"{name} selected position {position} of sample {int(observation.row_id[row])}, which is not open; select positions "
            "where observation.writable is True"
        )
    row = int(idle.nonzero()[0])
    raise ValueError(
        f"{name} selected no position of sample {int(observation.row_id[row])} in step {int(observation.row_step[row])}, where "
        f"{int(observation.masked[row].sum())} positions are open; select at least one position in every step"
    )


def check_log_prob(values: Any, rows: int, name: str) -> None:
    """Refuse log-probabilities that are not one floating-point number for each row: ValueError. name: of the object."""
    if not isinstance(values, Tensor) or list(values.shape) != [rows] or not values.is_floating_point():
        raise ValueError(
            f"{name} returned log-probabilities of {described(values)}; return floating-point numbers of shape [{rows}], one for "
            "each canvas"
        )


def check_tokens(
    tokens: Any, selected: Bool[Tensor, "row position"], rows: Int[Tensor, "row"], model: MaskedLM, name: str
) -> None:
    """Refuse committed tokens that are no tokens of the model, or its mask token.

    Args:
        selected: positions at which `tokens` are committed.
        rows: ids of the rows, for the message.
        name: of the object that chose, for the message.

    Raises:
        ValueError: names the object, the sample, the position and the token.
    """
    expected = list(selected.shape)
    if not isinstance(tokens, Tensor) or list(tokens.shape) != expected or tokens.is_floating_point():
        raise ValueError(f"{name} returned tokens of {described(tokens)}; return token ids of shape {expected}")
    wrong = selected & ((tokens < 0) | (tokens >= model.vocab_size) | (tokens == model.mask_id))
    if bool(wrong.any()):
        row, position = (int(place) for place in wrong.nonzero()[0])
        raise ValueError(
            f"{name} committed token {int(tokens[row, position])} at position {position} of sample {int(rows[row])}; commit "
            f"tokens from 0 to {model.vocab_size - 1}, and not the mask token {model.mask_id}"
        )


def check_revision(decision: Decision, observation: Observation, name: str) -> None:
    """Refuse positions to open again that are not committed ones of the response, and a last step that leaves one open.

    Args:
        name: of the object that chose, for the message.

    Raises:
        ValueError: names the object, the sample and the position.
    """
    revisable = observation.revisable
    if revisable is None:
        if decision.reopened is not None or decision.unfinished is not None:
            raise ValueError(
                f"{name} opens positions again; derive it from samplers.loop.Reviser, which decodes with revision"
            )
        return
    wrong = torch.zeros_like(observation.masked)
    for value, expected in ((decision.reopened, observation.masked), (decision.unfinished, observation.last)):
        if value is not None and (value.shape != expected.shape or value.dtype != torch.bool):
            raise ValueError(f"{name} returned {described(value)} for rows or positions to revise; return booleans of "
                             f"shape {list(expected.shape)}")  # fmt: skip
    if decision.reopened is not None:
        wrong = decision.reopened & ~revisable
    left = observation.masked & ~(decision.order > 0) & observation.last.unsqueeze(1)
    if bool((wrong | left).any()):
        row, position = (int(place) for place in (wrong | left).nonzero()[0])
        sample, reason = int(observation.row_id[row]), "is open or part of the prompt"
        if bool(left[row, position]):
            raise ValueError(f"{name} left position {position} of sample {sample} open in its last step; commit every open "
                             "position where observation.last is True")  # fmt: skip
        raise ValueError(
            f"{name} opens position {position} of sample {sample} again, which {reason}; choose among observation.revisable"
        )


@dataclass
class CheckedRule:
    """An unmasking rule whose selected positions are checked."""

    rule: Unmasker

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        """Return the choice of the rule. ValueError for a choice that cannot be committed."""
        name = f"the unmasking rule {type(self.rule).__name__}"
        found: Any = self.rule.choose(observation, draws)
        if not isinstance(found, tuple) or len(found) != 2:
            raise ValueError(f"`choose` of {name} returned {type(found).__name__}; return ranks and log-probabilities")
        order, log_positions = found
        check_order(order, observation, name)
        check_log_prob(log_positions, len(observation.tokens), name)
        return order.to(torch.long), log_positions


@dataclass
class CheckedStepDecoder(StepDecoder):
    """A step decoder whose decisions are checked."""

    decoder: StepDecoder

    def prepared(self, model: MaskedLM, prompts: Prompts, options: DecodeOptions) -> DecodeOptions:
        """Return the options that the decoder needs."""
        return self.decoder.prepared(model, prompts, options)

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        """Return the decision of the decoder. ValueError for one that cannot be committed."""
        name = f"the decoder {type(self.decoder).__name__}"
        decision: Any = self.decoder.decide(observation, draws)
        if not isinstance(decision, Decision):
            raise ValueError(
                f"`decide` of {name} returned {type(decision).__name__}; return a dlm.observation.Decision"
            )
        check_order(decision.order, observation, name)
        model = observation.environment.model
        check_tokens(decision.tokens, decision.order > 0, observation.row_id, model, name)
        for values in (decision.log_positions, decision.log_tokens):
            check_log_prob(values, len(observation.tokens), name)
        check_revision(decision, observation, name)
        return replace(decision, order=decision.order.to(torch.long))


@dataclass
class CheckedDecoder:
    """A decoder of whole canvases whose samples are checked."""

    decoder: Decoder

    def decode(
        self,
        model: MaskedLM,
        prompts: Prompts,
        options: DecodeOptions,
        seed: int = 0,
        row_id: Int[Tensor, "row"] | None = None,
        record: Record | None = None,
        on_step: OnStep | None = None,
    ) -> Samples:
        """Return the samples of the decoder (`samplers.loop.Decoder.decode`). ValueError for samples of other canvases."""
        name = f"the decoder {type(self.decoder).__name__}"
        samples: Any = self.decoder.decode(model, prompts, options, seed, row_id, record, on_step)
        if not isinstance(samples, Samples):
            raise ValueError(f"`decode` of {name} returned {type(samples).__name__}; return samplers.samples.Samples")
        rows = torch.arange(len(prompts.canvas)) if row_id is None else row_id
        check_tokens(samples.tokens, prompts.open_positions(model.mask_id), rows, model, name)
        return samples
