"""The interface between environment and decoders: observation, readout, decision."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.token_rule import TokenRule


@dataclass
class Readout:
    """Outputs of the model, dense over the canvas and valid at the requested positions.

    The k best tokens with their log-probabilities at temperature 1, best first, and on request the entropy (nats).
    """

    top_tokens: Int[Tensor, "*place best"]
    top_log_probs: Float[Tensor, "*place best"]
    entropy: Float[Tensor, "*place"] | None

    def cut(self, best: int) -> Readout:
        """Keep the first `best` tokens. Another component may have requested more."""
        return Readout(self.top_tokens[..., :best], self.top_log_probs[..., :best], self.entropy)


@runtime_checkable
class Readable(Protocol):
    """The methods that an observation calls: those of the environment, or of its part behind the prompt."""

    model: MaskedLM
    options: DecodeOptions
    prompt_length: int

    @property
    def tokens(self) -> Int[Tensor, "row position"]: ...

    @property
    def given(self) -> Bool[Tensor, "row position"]: ...

    @property
    def start(self) -> Int[Tensor, "row"] | None: ...

    def read(self, positions: Bool[Tensor, "row position"], best: int, entropy: bool) -> Readout: ...

    def hidden(self, positions: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]: ...

    def hidden_of(
        self, tokens: Int[Tensor, "canvas position"], rows: Int[Tensor, "canvas"], read: Bool[Tensor, "canvas position"]
    ) -> Float[Tensor, "canvas position width"]: ...

    def draw(
        self, positions: Bool[Tensor, "row position"], rule: TokenRule, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]: ...

    def logits(self, hidden: Float[Tensor, "read width"]) -> Float[Tensor, "read vocabulary"]: ...

    def summarised(self, logits: Float[Tensor, "read vocabulary"], best: int, entropy: bool) -> Readout: ...

    def written_last(self, tokens: Int[Tensor, "read"]) -> Bool[Tensor, "read"]: ...

    @property
    def chunk(self) -> int: ...

    def log_prob(
        self, positions: Bool[Tensor, "row position"], text: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row"]: ...


@dataclass
class Outputs:
    """Hidden states of the canvases that a decision leads to, valid at `positions`, from evaluations that are counted already."""

    hidden: Float[Tensor, "row position width"]
    positions: Bool[Tensor, "row position"]


@dataclass
class Decision:
    """Positions to commit with their tokens and, in decoding with revision, positions to open again.

    order: rank of each selected position from 1, 0 elsewhere. A selected open position is committed; a selected committed
    position gets another token. tokens: valid at the selected positions; log_positions: log-probability of the choice of
    positions, those to open again included; log_tokens: log-probability of the tokens. Both are 0 for deterministic choices.
    reopened: committed positions to open again, whatever their rank (None: none); unfinished: rows that go on in their block
    although no position of it will be open (None: none); outputs: of the canvases that the decision leads to, if the decoder
    evaluated them.
    """

    order: Int[Tensor, "row position"]
    tokens: Int[Tensor, "row position"]
    log_positions: Float[Tensor, "row"]
    log_tokens: Float[Tensor, "row"]
    reopened: Bool[Tensor, "row position"] | None = None
    unfinished: Bool[Tensor, "row"] | None = None
    outputs: Outputs | None = None

    @property
    def selected(self) -> Bool[Tensor, "row position"]:
        """Mark the positions that are committed or replaced."""
        return self.order > 0 if self.reopened is None else (self.order > 0) & ~self.reopened

    @property
    def changed(self) -> Bool[Tensor, "row position"]:
        """Mark the positions that are committed, replaced or opened again."""
        return self.order > 0 if self.reopened is None else (self.order > 0) | self.reopened


@dataclass
class Observation:
    """The state of the rows that are still being decoded, with methods that evaluate the model on them.

    row_id: id of the row for random draws; row_step: decoding steps so far; block_step, block_masks: steps in the current
    block, and its open positions at its start; evaluations: NFE of the row so far; to_write: open positions at the start;
    time: evaluations / to_write, at most 1; writable: selectable positions (open, in the current block); done: no open
    position, or out of steps; steps: planned steps per block; left: evaluations that the row's budget still allows,
    including the current one. With a budget, time is 1 / left, so that a policy knows its remaining evaluations.
    last: rows whose decision must commit all open positions; in_block: positions of the current block; revisable: committed
    positions that a decision may open again or replace (None: decoding without revision); reopened: how often each position was
    opened again (None likewise); memory: tensors with one entry per
    row that a rule keeps between steps. The environment selects rows of them as of everything else.
    """

    environment: Readable = field(repr=False)
    tokens: Int[Tensor, "row position"]
    masked: Bool[Tensor, "row position"]
    writable: Bool[Tensor, "row position"]
    row_id: Int[Tensor, "row"]
    row_step: Int[Tensor, "row"]
    block_step: Int[Tensor, "row"]
    block_masks: Int[Tensor, "row"]
    evaluations: Int[Tensor, "row"]
    to_write: Int[Tensor, "row"]
    time: Float[Tensor, "row"]
    done: Bool[Tensor, "row"]
    left: Int[Tensor, "row"]
    last: Bool[Tensor, "row"]
    steps: int
    memory: dict[str, Tensor] = field(repr=False)
    in_block: Bool[Tensor, "row position"]
    revisable: Bool[Tensor, "row position"] | None = None
    reopened: Int[Tensor, "row position"] | None = None
    start: Int[Tensor, "row"] | None = None  # first position of each row behind its padding; None: no padding
    alpha: Float[Tensor, "row"] | None = None  # weight of speed, which a policy may be conditioned on

    def response(self) -> Observation:
        """Return the input of a policy: this observation without the prompt, as if the canvas began behind it."""
        first = self.environment.prompt_length
        if first == 0:
            return self
        return replace(
            self, environment=Response(self.environment, first), tokens=self.tokens[:, first:],
            masked=self.masked[:, first:], writable=self.writable[:, first:], start=None,
            in_block=self.in_block[:, first:],
            revisable=None if self.revisable is None else self.revisable[:, first:],
            reopened=None if self.reopened is None else self.reopened[:, first:],
        )  # fmt: skip

    def read(self, positions: Bool[Tensor, "row position"], best: int = 2, entropy: bool = False) -> Readout:
        return self.environment.read(positions, best, entropy)

    def hidden(self, positions: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """Return hidden states at the requested positions, zero elsewhere."""
        known = self.environment.hidden(positions)[
            ..., : self.environment.model.hidden_size
        ]  # guided: the prompted half
        return known.masked_fill(~positions.unsqueeze(-1), 0.0)

    def draw(
        self, positions: Bool[Tensor, "row position"], rule: TokenRule, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        return self.environment.draw(positions, rule, draws)

    def log_prob(
        self, positions: Bool[Tensor, "row position"], text: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row"]:
        return self.environment.log_prob(positions, text)

    def count(self) -> Int[Tensor, "row"]:
        """Return the number of positions to commit now, for `steps` equal steps per block. The remainder goes to the first
        steps.

        A row whose budget allows fewer evaluations spreads its open positions evenly over those.
        """
        even, extra = self.block_masks // self.steps, self.block_masks % self.steps
        spread = -(-self.masked.sum(1) // self.left.clamp(min=1))
        return torch.minimum(torch.maximum(even + (self.block_step < extra), spread), self.writable.sum(1))


class Response:
    """The environment restricted to the positions behind the prompt."""

    def __init__(self, environment: Readable, first: int):
        self.whole, self.first = environment, first
        self.model, self.options, self.prompt_length = environment.model, environment.options, 0

    @property
    def tokens(self) -> Int[Tensor, "row position"]:
        return self.whole.tokens[:, self.first :]

    @property
    def given(self) -> Bool[Tensor, "row position"]:
        return self.whole.given[:, self.first :]

    @property
    def start(self) -> Int[Tensor, "row"] | None:
        return None  # padding is in front of the prompts

    def _whole(self, positions: Bool[Tensor, "row position"]) -> Bool[Tensor, "row longer"]:
        return F.pad(positions, (self.first, 0))

    def read(self, positions: Bool[Tensor, "row position"], best: int, entropy: bool) -> Readout:
        whole = self.whole.read(self._whole(positions), best, entropy)
        entropies = None if whole.entropy is None else whole.entropy[:, self.first :]
        return Readout(whole.top_tokens[:, self.first :], whole.top_log_probs[:, self.first :], entropies)

    def hidden(self, positions: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        return self.whole.hidden(self._whole(positions))[:, self.first :]

    def hidden_of(
        self, tokens: Int[Tensor, "canvas position"], rows: Int[Tensor, "canvas"], read: Bool[Tensor, "canvas position"]
    ) -> Float[Tensor, "canvas position width"]:
        prompt = self.whole.tokens[rows, : self.first]
        return self.whole.hidden_of(torch.cat((prompt, tokens), 1), rows, self._whole(read))[:, self.first :]

    def logits(self, hidden: Float[Tensor, "read width"]) -> Float[Tensor, "read vocabulary"]:
        return self.whole.logits(hidden)

    def summarised(self, logits: Float[Tensor, "read vocabulary"], best: int, entropy: bool) -> Readout:
        return self.whole.summarised(logits, best, entropy)

    def written_last(self, tokens: Int[Tensor, "read"]) -> Bool[Tensor, "read"]:
        return self.whole.written_last(tokens)

    @property
    def chunk(self) -> int:
        return self.whole.chunk

    def draw(
        self, positions: Bool[Tensor, "row position"], rule: TokenRule, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        tokens, log_tokens = self.whole.draw(self._whole(positions), rule, draws)
        return tokens[:, self.first :], log_tokens

    def log_prob(
        self, positions: Bool[Tensor, "row position"], text: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row"]:
        return self.whole.log_prob(self._whole(positions), F.pad(text, (self.first, 0)))
