"""The loop: observe, decide where and what, commit; rows that are finished leave.

Direct, confidence, threshold, learned and autoregressive decoding are choices of *where* and *what* (`samplers/where.py`,
`dlm.token_rule.TokenRule`); nothing else differs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision, Observation
from samplers.samples import Samples, Stopwatch, Trajectory


@runtime_checkable
class Unmasker(Protocol):
    """Where: ranks of the picks (0 untouched) among `observation.writable`, and the log-probability of the choice."""

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]: ...


def all_at_last(
    observation: Observation, order: Int[Tensor, "row position"], log_where: Float[Tensor, "row"]
) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
    """Where the budget ends, every mask is written whatever the rule says, with probability one."""
    if observation.environment.allowed is None:
        return order, log_where
    last = observation.last
    return torch.where(last[:, None], observation.writable.long(), order), log_where.masked_fill(last, 0.0)


@runtime_checkable
class Decoder(Protocol):
    """Where and what, in one decision."""

    def decide(self, observation: Observation, draws: Draws) -> Decision: ...


@dataclass
class Strategy:
    """Where composed with what."""

    where: Unmasker
    what: TokenRule

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        order, log_where = all_at_last(observation, *self.where.choose(observation, draws))
        tokens, log_what = observation.draw(order > 0, self.what, draws)
        return Decision(order, tokens, log_where, log_what)


@dataclass
class TeacherForced:
    """Where as a rule says; what is written there is a given text. The sum of `log_what` is, on average over the rule, a bound on
    log p(text) of the sampler that this rule makes of the model. `row_id` numbers the rows of `text`."""

    where: Unmasker
    text: Int[Tensor, "row position"]

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        order, log_where = all_at_last(observation, *self.where.choose(observation, draws))
        text = self.text[observation.row_id]
        return Decision(order, text, log_where, observation.log_prob(order > 0, text))


@torch.no_grad()
def sample(
    environment: UnmaskingEnvironment,
    strategy: Decoder,
    canvas: Int[Tensor, "row position"],
    seed: int = 0,
    row_id: Int[Tensor, "row"] | None = None,
    record: Callable[[Observation], dict[str, Tensor]] | None = None,
    on_step: Callable[[Observation, Int[Tensor, "active"]], None] | None = None,
    start: Int[Tensor, "row"] | None = None,
    first_row: int = 0,
) -> Samples:
    """Decode every row of `canvas`.

    row_id names the rows for the draws (default: their numbers, counted from first_row on: that of the first one in a batch that
    several processes share); start: where each row begins behind its padding; `record` returns what the trajectory keeps of each
    step at which there was a choice; `on_step` sees each new observation and the rows' places in `canvas` (progress, a live
    view).
    """
    draws = Draws(seed, first=first_row)
    stopwatch = Stopwatch()
    observation = environment.reset(canvas, row_id, start)
    first = environment.prompt_length  # a trajectory is of what a policy sees: the positions behind the prompt
    tokens, written_at = canvas.clone(), torch.full_like(canvas, -1)
    evaluations = torch.zeros(len(canvas), dtype=torch.long, device=canvas.device)
    steps = torch.zeros_like(evaluations)
    place = torch.arange(len(canvas), device=canvas.device)  # of each active row in `canvas`
    kept: list[dict[str, Tensor]] = []
    while len(place):
        if bool(observation.done.any()):
            tokens[place] = observation.tokens
            evaluations[place], steps[place] = observation.evaluations, observation.row_step
            going_on = (~observation.done).nonzero().squeeze(1)
            if len(going_on) == 0:
                break
            place = place[going_on]
            observation = environment.select(going_on)
        if observation.start is not None:
            draws = replace(draws, start=observation.start)
        decision = strategy.decide(observation, draws)
        if record is not None:
            step = {
                "row": place, "step": observation.row_step, "writable": observation.writable[:, first:],
                "order": decision.order[:, first:], "log_where": decision.log_where, "log_what": decision.log_what,
                **record(observation.response()),
            }  # fmt: skip
            chose = ~observation.last
            kept.append(step if environment.allowed is None else {name: value[chose] for name, value in step.items()})
        written_at[place] = torch.where(decision.order > 0, observation.row_step.unsqueeze(1), written_at[place])
        observation = environment.step(decision)
        if on_step is not None:
            on_step(observation, place)
    trajectory = None
    if kept:
        whole = {name: torch.cat([step[name] for step in kept]) for name in kept[0]}
        fixed = {name: whole.pop(name) for name in ("row", "step", "writable", "order", "log_where", "log_what")}
        trajectory = Trajectory(**fixed, inputs=whole)
    return Samples(
        tokens, canvas != environment.model.mask_id, written_at, evaluations, steps,
        environment.forwards, environment.rows_evaluated, *stopwatch.seconds(environment.measuring), trajectory,
        environment.ends,
    )  # fmt: skip
