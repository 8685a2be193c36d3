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
from jaxtyping import Bool, Float, Int
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

    def prepared(self, model: MaskedLM, prompts: Prompts, options: DecodeOptions) -> DecodeOptions:
        """Return the options that this decoder needs."""
        return options

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
        options = self.prepared(model, prompts, options)
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
    options = observation.environment.options
    if options.budget is None and options.max_steps is None:
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
class Reviser(StepDecoder):
    """A decoder that may open committed positions again or replace their tokens. Subclasses implement `revise`.

    Decoding ends with any subclass: the last step that budget or `max_steps` allow commits all open positions, opens none and
    replaces none.
    """

    token_sampler: TokenRule

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        """Return the decoding steps within which every row ends. None: as the budget says.

        Args:
            opened: largest number of open positions of a row at the start.
        """
        return None

    def prepared(self, model: MaskedLM, prompts: Prompts, options: DecodeOptions) -> DecodeOptions:
        """Return the options with revision, within the steps that this decoder takes."""
        opened = int(prompts.open_positions(model.mask_id).sum(1).amax()) if len(prompts.canvas) else 0
        return replace(options, revise=True, max_steps=self.most_steps(options, opened))

    @abstractmethod
    def revise(self, observation: Observation, draws: Draws) -> Decision:
        """Choose the positions to commit or replace now, their tokens, and the positions to open again."""

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        decision, last = self.revise(observation, draws), observation.last
        closing = observation.writable & last.unsqueeze(1)
        tokens, log_tokens = observation.draw(closing, self.token_sampler, draws)
        reopened = decision.reopened
        return Decision(
            torch.where(last.unsqueeze(1), closing.long(), decision.order),
            torch.where(closing, tokens, decision.tokens),
            decision.log_positions.masked_fill(last, 0.0),
            torch.where(last, log_tokens, decision.log_tokens),
            None if reopened is None else reopened & ~last.unsqueeze(1),
            None if decision.unfinished is None else decision.unfinished & ~last,
        )


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
    revisions = Revisions()
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
        selected, at = decision.selected, unmasked_at[place]
        if environment.options.revise:
            selected, at = revisions.add(observation, decision, at, place)
        unmasked_at[place] = torch.where(selected, observation.row_step.unsqueeze(1), at)
        observation = environment.step(decision)
        if on_step is not None:
            on_step(observation, place)
    return Samples(
        tokens, prompt, unmasked_at, evaluations, steps, environment.forwards, environment.rows_evaluated,
        *stopwatch.seconds(environment.measuring), None if recorder is None else recorder.trajectory(),
        environment.options.ends, exact=environment.exact, drift=environment.drift,
        history=revisions.history() if environment.options.revise else None,
    )  # fmt: skip


class Revisions:
    """Collects the tokens of a batch that were replaced or whose positions were opened again (`Samples.history`)."""

    def __init__(self):
        self.events: list[Int[Tensor, "event 5"]] = []

    def add(
        self,
        observation: Observation,
        decision: Decision,
        at: Int[Tensor, "active position"],
        place: Int[Tensor, "active"],
    ) -> tuple[Bool[Tensor, "active position"], Int[Tensor, "active position"]]:
        """Add the revisions of one step.

        Args:
            at: step at which each position was committed, -1 where it is open.
            place: number of each active row in the batch.

        Returns:
            The selected positions whose token is new there, and `at` with -1 where a position is opened again.
        """
        assert observation.revisable is not None
        reopened = torch.zeros_like(observation.masked)
        if decision.reopened is not None:
            reopened = decision.reopened & observation.revisable & ~observation.last.unsqueeze(1)
        selected = decision.selected & (observation.masked | (decision.tokens != observation.tokens))
        row, position = (reopened | (selected & observation.revisable)).nonzero().unbind(1)
        events = (place[row], position, observation.tokens[row, position], at[row, position], observation.row_step[row])
        self.events.append(torch.stack(events, 1))
        return selected, at.masked_fill(reopened, -1)

    def history(self) -> Int[Tensor, "event 5"]:
        """Return all revisions, in the order of their steps."""
        return torch.cat(self.events) if self.events else torch.zeros(0, 5, dtype=torch.long)


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
        writable, opened = observation.writable, {}
        if observation.revisable is not None:
            writable, opened = writable | observation.revisable, {"opened": writable[:, self.first :]}
        step = {
            "row": place, "step": observation.row_step, "writable": writable[:, self.first :], **opened,
            "order": decision.order[:, self.first :], "log_positions": decision.log_positions, "log_tokens": decision.log_tokens,
            **self.record(observation.response()),
        }  # fmt: skip
        chose = ~observation.last
        options = observation.environment.options
        limited = options.budget is not None or options.revise
        self.steps.append({name: value[chose] for name, value in step.items()} if limited else step)

    def trajectory(self) -> Trajectory | None:
        """Return all steps, one after the other; None without any."""
        if not self.steps:
            return None
        whole = {name: torch.cat([step[name] for step in self.steps]) for name in self.steps[0]}
        names = ("row", "step", "writable", "order", "log_positions", "log_tokens", "opened")
        fixed = {name: whole.pop(name) for name in names if name in whole}
        return Trajectory(**fixed, inputs=whole)
