"""The decoding loop: observe, decide which positions to commit and with which tokens, commit; finished rows leave.

Direct, confidence, threshold, learned and autoregressive decoding are choices of an unmasking rule and a token sampler
(`samplers/heuristics.py`, `dlm.token_rule.TokenRule`); nothing else differs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.samples import Samples, Stopwatch, Trajectory

Record = Callable[[Observation], dict[str, Tensor]]
OnStep = Callable[[Observation, Int[Tensor, "active"]], None]


@runtime_checkable
class Decoder(Protocol):
    """Decodes prompts: rules and policies with a token sampler, guided decoders, particle filters, SEDD's own samplers."""

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
        """Decode every prompt.

        Args:
            model: the frozen model.
            prompts: canvases with their open positions.
            options: steps, blocks, budget, cache, guidance, end of sequence.
            seed: of the random draws. The draws of a row depend only on the seed and its row id.
            row_id: ids of the rows (default: their numbers, counted from `prompts.first_row`).
            record: what the trajectory stores of each step that had a choice. None: no trajectory.
            on_step: is called with each new observation and the numbers of its rows among the prompts.
        """
        ...


class StepDecoder(ABC):
    """A decoder whose rows are independent: one decision per step. Subclasses implement `decide`."""

    @abstractmethod
    def decide(self, observation: Observation, draws: Draws) -> Decision:
        """Choose the positions to commit now, and their tokens."""

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
        """Decode every prompt by the loop; see `Decoder.decode`."""
        return sample(UnmaskingEnvironment(model, options), self, prompts, seed, row_id, record, on_step)


@runtime_checkable
class Unmasker(Protocol):
    """An unmasking rule. `choose` returns the rank of each selected position among `observation.writable` (0: not now) and
    the log-probability of the choice.
    """

    def choose(
        self, observation: Observation, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]: ...


def all_at_last(
    observation: Observation, order: Int[Tensor, "row position"], log_positions: Float[Tensor, "row"]
) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
    """Commit all open positions of rows on their last allowed evaluation, with probability one, whatever the rule chose."""
    if observation.environment.options.budget is None:
        return order, log_positions
    last = observation.last
    return torch.where(last[:, None], observation.writable.long(), order), log_positions.masked_fill(last, 0.0)


@dataclass
class Strategy(StepDecoder):
    """An unmasking rule and a token sampler."""

    rule: Unmasker
    token_sampler: TokenRule

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        order, log_positions = all_at_last(observation, *self.rule.choose(observation, draws))
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        return Decision(order, tokens, log_positions, log_tokens)


@dataclass
class TeacherForced(StepDecoder):
    """An unmasking rule that reveals given texts in its own order. `row_id` is the number of a row's text.

    The mean over the rule of the sum of `log_tokens` is a lower bound on log p(text) of the sampler that consists of rule and
    model.
    """

    rule: Unmasker
    text: Int[Tensor, "row position"]

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        order, log_positions = all_at_last(observation, *self.rule.choose(observation, draws))
        text = self.text[observation.row_id]
        return Decision(order, text, log_positions, observation.log_prob(order > 0, text))


@torch.no_grad()
def sample(
    environment: UnmaskingEnvironment,
    decoder: StepDecoder,
    prompts: Prompts,
    seed: int = 0,
    row_id: Int[Tensor, "row"] | None = None,
    record: Record | None = None,
    on_step: OnStep | None = None,
) -> Samples:
    """Decode every prompt in the environment. Arguments are those of `Decoder.decode`."""
    draws, stopwatch = Draws(seed, first=prompts.first_row), Stopwatch()
    observation = environment.reset(prompts, row_id)
    prompt, tokens = ~observation.masked, observation.tokens.clone()
    unmasked_at = torch.full_like(tokens, -1)
    evaluations = torch.zeros(len(tokens), dtype=torch.long, device=tokens.device)
    steps = torch.zeros_like(evaluations)
    place = torch.arange(len(tokens), device=tokens.device)  # of each active row among the prompts
    recorder = None if record is None else Recorder(record, prompts.prompt_length)
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
        decision = decoder.decide(observation, draws)
        if recorder is not None:
            recorder.add(observation, decision, place)
        unmasked_at[place] = torch.where(decision.order > 0, observation.row_step.unsqueeze(1), unmasked_at[place])
        observation = environment.step(decision)
        if on_step is not None:
            on_step(observation, place)
    return Samples(
        tokens, prompt, unmasked_at, evaluations, steps, environment.forwards, environment.rows_evaluated,
        *stopwatch.seconds(environment.measuring), None if recorder is None else recorder.trajectory(),
        environment.options.ends, exact=environment.exact, drift=environment.drift,
    )  # fmt: skip


class Recorder:
    """Collects the trajectory of a batch: the steps at which rows had a choice.

    Args:
        record: what is stored of each step besides the decision.
        first: the first position that policies see, behind the prompt.
    """

    def __init__(self, record: Record, first: int):
        self.record, self.first = record, first
        self.steps: list[dict[str, Tensor]] = []

    def add(self, observation: Observation, decision: Decision, place: Int[Tensor, "active"]) -> None:
        """Add one decision. Rows on their last allowed evaluation had no choice and are left out."""
        step = {
            "row": place, "step": observation.row_step, "writable": observation.writable[:, self.first :],
            "order": decision.order[:, self.first :], "log_positions": decision.log_positions, "log_tokens": decision.log_tokens,
            **self.record(observation.response()),
        }  # fmt: skip
        chose = ~observation.last
        limited = observation.environment.options.budget is not None
        self.steps.append({name: value[chose] for name, value in step.items()} if limited else step)

    def trajectory(self) -> Trajectory | None:
        """Return all steps, one after the other; None without any."""
        if not self.steps:
            return None
        whole = {name: torch.cat([step[name] for step in self.steps]) for name in self.steps[0]}
        fixed = {name: whole.pop(name) for name in ("row", "step", "writable", "order", "log_positions", "log_tokens")}
        return Trajectory(**fixed, inputs=whole)
