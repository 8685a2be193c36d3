"""Decoding guided by a reward: positions by any unmasking rule, tokens from p(v) * exp(beta * r(text with v)) over the k
best tokens.

Sources: ARGS (2402.01694), PARGS (2406.07780), FaRMA (2502.04517); joint proposals for several positions follow SVDD
(2408.08252). What differs: all candidates of a step are scored in one batch (`Canvases`), in one row of siblings against
cached keys and values (`samplers/siblings.py`), or by one product with a head on the model's own hidden states
(`HeadValues`). The language model keeps its cache. Any order of positions is possible, so masked-diffusion models are
guided like causal ones. Draws do not depend on the batch.

The `kind` of a reward is the input that it was trained on: `mask` (the canvas with its masks), `prefix` (the committed
tokens, with gaps closed), or `full` (whole texts: for a causal model the same as prefix; for a masked model the canvas with
the most probable token at every mask).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dlm.draws import Draws
from dlm.ends import is_end
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from samplers.loop import OnStep, Record, StepDecoder, Unmasker, all_at_last
from samplers.samples import Samples

POSITIONS_PER_CALL = {"cpu": 8192, "cuda": 131_072}  # of a reward
CHOICE = -1  # the position of a draw that belongs to no single position
PROPOSAL = 1 << 40  # between the seeds of two proposals


@dataclass(frozen=True)
class Method:
    """Published settings of a guided decoding method.

    reads: kinds of reward that the method is defined for; beta: weight of the reward; temperature: of the guided
    distribution (0 takes the best candidate).
    """

    reads: tuple[str, ...]
    beta: float
    temperature: float


METHODS = {
    "args": Method(("full",), 1.0, 0.0),
    "args_stochastic": Method(("full",), 1.0, 0.7),
    "pargs": Method(("prefix", "mask"), 2.0, 1.0),
    "pargs_g": Method(("prefix", "mask"), 1.0, 0.0),
    "value_head": Method(("head",), 1.0, 1.0),
}


@runtime_checkable
class CandidateReward(Protocol):
    """A reward of token ids of the language model. kind: full, prefix or mask."""

    kind: str

    def score(
        self, tokens: Int[Tensor, "row position"], real: Bool[Tensor, "row position"] | None = None
    ) -> Float[Tensor, "row"]: ...


@dataclass(frozen=True)
class Template:
    """Special tokens of a reward model's rows, beside prompt and answer.

    front: tokens before the prompt; between: tokens before the answer, which begins at the position `first` of the canvas;
    end: the token that ends an answer (later tokens are ignored); mask: mask token of the reward model; turns: tokens of
    the language model that end an answer too (dlm/ends.py), replaced by `end`.
    """

    front: tuple[int, ...] = ()
    between: tuple[int, ...] = ()
    first: int = 0
    end: int | None = None
    mask: int | None = None
    turns: tuple[int, ...] = ()

    def placed(
        self, canvases: Int[Tensor, "n position"], keep: Bool[Tensor, "n position"]
    ) -> tuple[Int[Tensor, "n longer"], Bool[Tensor, "n longer"]]:
        """Insert the template's tokens into canvases. Returns the rows and which of their tokens are kept."""
        if not self.front and not self.between:
            return canvases, keep
        more = [canvases.new_tensor(tokens).expand(len(canvases), -1) for tokens in (self.front, self.between)]
        both = zip(more, (canvases[:, : self.first], canvases[:, self.first :]), strict=True)
        kept = zip(more, (keep[:, : self.first], keep[:, self.first :]), strict=True)
        return (
            torch.cat([part for pair in both for part in pair], 1),
            torch.cat([part for one, side in kept for part in (torch.ones_like(one, dtype=torch.bool), side)], 1),
        )

    def until_end(self, canvases: Int[Tensor, "n position"]) -> Bool[Tensor, "n position"]:
        """Mark the tokens up to and including the end of the answer."""
        ends = self.ends_of(canvases)
        return ends.cumsum(1) - ends.long() == 0

    def ends_of(self, canvases: Int[Tensor, "n position"]) -> Bool[Tensor, "n position"]:
        """Mark the tokens of the answer that end it."""
        ends = is_end(canvases, self.turns if self.end is None else (self.end, *self.turns))
        ends[:, : self.first] = False
        return ends


class Values:
    """Base class: the value of each candidate token. rows: number of rows that the reward has scored so far."""

    rows = 0

    def read_ahead(self, observation: Observation) -> None:
        """Prefetch the model outputs that the values need, so that they share one forward pass with the rule."""

    def __call__(
        self, observation: Observation, row: Int[Tensor, "n"], position: Int[Tensor, "n"], tokens: Int[Tensor, "n k"]
    ) -> Float[Tensor, "n k"]:
        """Return the value of each candidate token at its (row, position), with the other positions still masked."""
        raise NotImplementedError

    def of_canvases(self, observation: Observation, canvases: Int[Tensor, "n position"]) -> Float[Tensor, "n"]:
        """Return the value of canvases that continue the observed rows: equally many of each row, row after row."""
        raise ValueError(
            "this reward values single tokens, not several that are committed together; use positions=independent"
        )


def closed_up(
    tokens: Int[Tensor, "row position"], keep: Bool[Tensor, "row position"]
) -> tuple[Int[Tensor, "row longest"], Bool[Tensor, "row longest"]]:
    """Move the kept tokens of each row to the left, in order, and pad with 0. Returns the tokens and which columns are
    real.
    """
    count = keep.sum(1)
    order = (~keep).long().argsort(dim=1, stable=True)[:, : max(int(count.max()), 1)]
    real = torch.arange(order.shape[1], device=tokens.device) < count.unsqueeze(1)
    return tokens.gather(1, order).masked_fill(~real, 0), real


def behind_padding(observation: Observation, row: Int[Tensor, "n"]) -> Bool[Tensor, "n position"]:
    """Mark the columns of these rows that are not padding."""
    place = torch.arange(observation.tokens.shape[1], device=observation.tokens.device).expand(len(row), -1)
    return place >= (0 if observation.start is None else observation.start[row].unsqueeze(1))


def written_out(
    observation: Observation,
    row: Int[Tensor, "n"],
    position: Int[Tensor, "n"],
    tokens: Int[Tensor, "n k"],
) -> Int[Tensor, "n k length"]:
    """Build the canvas of each candidate: the observed row with the token at its position."""
    canvases = observation.tokens[row].unsqueeze(1).repeat(1, tokens.shape[1], 1)
    return canvases.scatter(2, position[:, None, None].expand(-1, tokens.shape[1], 1), tokens.unsqueeze(2))


class OfRows(Values):
    """A reward of whole rows, scored in large batches. reads: full, prefix or mask. Subclasses implement `read`."""

    reads: str
    template: Template

    def read(self, canvases: Int[Tensor, "n position"], keep: Bool[Tensor, "n position"]) -> Float[Tensor, "n"]:
        raise NotImplementedError

    def _fills(self, observation: Observation) -> bool:
        return self.reads == "full" and not observation.environment.model.causal

    def read_ahead(self, observation):
        if self._fills(observation):
            observation.read(observation.masked, 1)

    def __call__(self, observation, row, position, tokens):
        canvases = written_out(observation, row, position, tokens).flatten(0, 1)
        return self._score(observation, canvases, row.repeat_interleave(tokens.shape[1])).view(tokens.shape)

    def of_canvases(self, observation, canvases):
        of = torch.arange(len(observation.tokens), device=canvases.device)
        return self._score(observation, canvases, of.repeat_interleave(len(canvases) // max(1, len(of))))

    def _score(
        self, observation: Observation, canvases: Int[Tensor, "n position"], of: Int[Tensor, "n"]
    ) -> Float[Tensor, "n"]:
        """Score canvases. of: the observed row that each canvas continues."""
        keep = behind_padding(observation, of)
        masked = observation.masked[of] & (canvases == observation.environment.model.mask_id)
        if self._fills(observation):
            canvases = torch.where(masked, observation.read(observation.masked, 1).top_tokens[..., 0][of], canvases)
        elif self.reads == "mask":
            canvases = canvases if self.template.mask is None else canvases.masked_fill(masked, self.template.mask)
        else:
            keep = keep & ~masked
        if self.reads != "mask":
            keep = keep & self.template.until_end(canvases)
            if self.template.end is not None:
                canvases = canvases.masked_fill(self.template.ends_of(canvases), self.template.end)
        self.rows += len(canvases)
        return self.read(canvases, keep)


class Canvases(OfRows):
    """A reward of the language model's own token ids."""

    def __init__(self, reward: CandidateReward, template: Template | None = None):
        self.reward, self.reads, self.template = reward, reward.kind, template or Template()

    def read(self, canvases, keep):
        tokens, real = closed_up(*self.template.placed(canvases, keep))
        size = max(1, POSITIONS_PER_CALL[tokens.device.type] // tokens.shape[1])
        pieces = zip(tokens.split(size), real.split(size), strict=True)
        return torch.cat([self.reward.score(part, there).float() for part, there in pieces])


class Texts(OfRows):
    """A reward of text, or of another tokenizer: candidates are decoded, and the reward also gets which of them are
    finished.

    template: in token ids of the language model.
    """

    def __init__(
        self,
        score_texts: Callable[[list[str], list[str], list[bool]], Tensor],
        decode: Callable[[list[list[int]]], list[str]],
        template: Template,
        reads: str = "full",
    ):
        self.score_texts, self.decode, self.template, self.reads = score_texts, decode, template, reads

    def read(self, canvases, keep):
        sides, first = [], self.template.first
        ends = keep & self.template.ends_of(canvases)
        keep = keep & ~ends
        for side in (slice(0, first), slice(first, None)):
            pieces = zip(canvases[:, side].tolist(), keep[:, side].tolist(), strict=True)
            sides.append(self.decode([[t for t, kept in zip(*piece, strict=True) if kept] for piece in pieces]))
        return self.score_texts(sides[0], sides[1], ends[:, first:].any(1).tolist()).float().to(canvases.device)


class Siblings(Values):
    """A causal reward: the text runs once, with its candidates side by side in one row (`samplers/siblings.py`)."""

    def __init__(self, score_siblings: Callable[..., Tensor], template: Template | None = None):
        self.score_siblings, self.template = score_siblings, template or Template()

    def __call__(self, observation, row, position, tokens):
        keep = ~observation.masked[row] & behind_padding(observation, row)
        if self.template.end is not None:  # behind the end nothing is read: all candidates are worth what ended there
            ends = keep & self.template.ends_of(observation.tokens[row])
            keep = keep & (ends.cumsum(1) == 0)
            over = ends.any(1, keepdim=True) | is_end(tokens, self.template.turns)
            tokens = torch.where(over, self.template.end, tokens)
        prefixes, real = closed_up(*self.template.placed(observation.tokens[row], keep))
        self.rows += len(row)
        return self.score_siblings(prefixes, tokens, real).float()


class HeadValues(Values):
    """A vocabulary head on the model's own hidden states: one product gives the value of every token at every position."""

    def __init__(self, head: nn.Module):
        self.head = head

    def __call__(self, observation, row, position, tokens):
        positions = torch.zeros_like(observation.masked)
        positions[row, position] = True
        hidden = observation.hidden(positions)[row, position]
        chunk = observation.environment.model.chunk(hidden.device)
        pieces = zip(hidden.split(chunk), tokens.split(chunk), strict=True)
        return torch.cat([self.head(states).gather(1, few).float() for states, few in pieces])


class RewardGuided(StepDecoder):
    """Base class of decoders whose decisions use the reward of candidate tokens (`values`)."""

    values: Values

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
        """Decode every prompt (`samplers.loop.Decoder.decode`), and count the rows that the reward has scored."""
        before = self.values.rows
        samples = super().decode(model, prompts, options, seed, row_id, record, on_step)
        return replace(samples, reward_rows=self.values.rows - before)


@dataclass
class Guided(RewardGuided):
    """Draw each selected position from softmax((log p + beta * r) / temperature) over the k best tokens, with the other
    positions masked.

    Exact with one position per step. With several positions per step each has its own logit bias, independently of the
    others.
    """

    rule: Unmasker
    values: Values
    beta: float | int
    k: int
    temperature: float | int = 1.0

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        self.values.read_ahead(observation)
        order, log_positions = all_at_last(observation, *self.rule.choose(observation, draws))
        log_tokens = torch.zeros(len(order), device=order.device)
        row, position = (order > 0).nonzero().unbind(1)
        if len(row) == 0:
            return Decision(order, observation.tokens, log_positions, log_tokens)
        best, scores = guided_logits(observation, row, position, self.k, self.beta, self.values)
        tokens = observation.tokens.clone()
        chosen, log_q = drawn(scores, self.temperature, observation, draws, row, own(observation, row, position), best)
        tokens[row, position] = best.gather(1, chosen.unsqueeze(1)).squeeze(1)
        return Decision(order, tokens, log_positions, log_tokens.index_add(0, row, log_q))


@dataclass
class GuidedPair(RewardGuided):
    """Draw position and token together: (i, v) from p(v | i) * exp(beta * r(canvas with v at i)).

    i ranges over the positions that the rule selects, v over the k best tokens of each. One position per row and step is
    committed.
    """

    rule: Unmasker
    values: Values
    beta: float | int
    k: int
    temperature: float | int = 1.0

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        self.values.read_ahead(observation)
        order, log_positions = self.rule.choose(observation, draws)
        row, position = (order > 0).nonzero().unbind(1)
        best, scores = guided_logits(observation, row, position, self.k, self.beta, self.values)
        rows, length = order.shape
        spread = torch.full((rows, length, self.k), -torch.inf, device=scores.device)
        names = torch.zeros(rows, length, self.k, dtype=torch.long, device=scores.device)
        spread[row, position] = scores
        names[row, position] = (
            own(observation, row, position).unsqueeze(1) * observation.environment.model.vocab_size + best
        )
        active = (order > 0).any(1).nonzero().squeeze(1)
        place = torch.full_like(active, CHOICE)
        chosen, log_q = drawn(
            spread.flatten(1)[active], self.temperature, observation, draws, active, place, names.flatten(1)[active]
        )
        at, which = chosen // self.k, chosen % self.k
        tokens, one = observation.tokens.clone(), torch.zeros_like(order)
        tokens[active, at] = observation.read(order > 0, self.k).top_tokens[active, at, which]
        one[active, at] = 1
        return Decision(one, tokens, log_positions, torch.zeros(rows, device=scores.device).index_add(0, active, log_q))


@dataclass
class JointProposals(RewardGuided):
    """Draw `count` proposals for all selected positions from the model and keep one with probability softmax(beta * r).

    As count grows, this converges to the joint distribution p * exp(beta * r). log_tokens is NaN: the probability of the kept
    proposal has no closed form.
    """

    rule: Unmasker
    values: Values
    beta: float | int
    count: int
    token_sampler: TokenRule = field(default_factory=TokenRule)
    temperature: float | int = 1.0

    def decide(self, observation: Observation, draws: Draws) -> Decision:
        self.values.read_ahead(observation)
        order, log_positions = all_at_last(observation, *self.rule.choose(observation, draws))
        seeds = (replace(draws, seed=draws.seed + number * PROPOSAL) for number in range(self.count))
        proposals = torch.stack([observation.draw(order > 0, self.token_sampler, one)[0] for one in seeds], 1)
        found = self.values.of_canvases(observation, proposals.flatten(0, 1)).view(proposals.shape[:2])
        scores = self.beta * finite(found)
        row = torch.arange(len(order), device=order.device)
        chosen, _ = drawn(scores, self.temperature, observation, draws, row, torch.full_like(row, CHOICE), None)
        return Decision(order, proposals[row, chosen], log_positions, torch.full_like(log_positions, torch.nan))


def guided_logits(
    observation: Observation, row: Int[Tensor, "n"], position: Int[Tensor, "n"], k: int, beta: float, values: Values
) -> tuple[Int[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Return the k best tokens at each place and log p + beta * r of them, -inf for tokens that are never committed.

    Raises:
        FloatingPointError: the reward of another token is NaN.
    """
    positions = torch.zeros_like(observation.masked)
    positions[row, position] = True
    top = observation.read(positions, k)
    best, log_probs = top.top_tokens[row, position], top.top_log_probs[row, position]
    rewards = values(observation, row, position, best).masked_fill(log_probs == -torch.inf, 0.0)
    return best, log_probs + beta * finite(rewards)


def finite(rewards: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
    """Return the rewards unchanged.

    Raises:
        FloatingPointError: a reward is NaN.
    """
    if not bool(torch.isfinite(rewards).all()):
        raise FloatingPointError("the reward of a candidate is not a finite number; check the reward model")
    return rewards


def own(observation: Observation, row: Int[Tensor, "n"], position: Int[Tensor, "n"]) -> Int[Tensor, "n"]:
    """Count positions from the column where their row begins."""
    return position if observation.start is None else position - observation.start[row]


def drawn(
    scores: Float[Tensor, "n k"],
    temperature: float | int,
    observation: Observation,
    draws: Draws,
    row: Int[Tensor, "n"],
    place: Int[Tensor, "n"],
    names: Int[Tensor, "n k"] | None,
) -> tuple[Int[Tensor, "n"], Float[Tensor, "n"]]:
    """Draw one column of each row of scores. Returns the columns and their log-probabilities (0 at temperature 0, which
    takes the best).
    """
    if temperature == 0:
        return scores.argmax(1), torch.zeros(len(scores), device=scores.device)
    logits = scores / temperature
    chosen = draws.categorical(logits, observation.row_id[row], observation.row_step[row], place, names)
    return chosen, logits.log_softmax(1).gather(1, chosen.unsqueeze(1)).squeeze(1)


def check_guide(k: object, beta: object, columns: int) -> None:
    """Refuse values of k and beta that are out of range: ValueError. columns: number of tokens that the model can commit."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= columns:
        raise ValueError(f"k={k} must be a whole number from 1 to the model's {columns} tokens; change it")
    if isinstance(beta, bool) or not isinstance(beta, int | float) or not abs(beta) < float("inf"):
        raise ValueError(f"beta={beta} must be a finite number; change it")
