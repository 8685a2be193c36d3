"""A frozen MaskedLM as an environment: canvases with masks in, positions and tokens to write in, new canvases out.

The model runs when somebody reads, at the positions read, once for each distinct canvas: a row that did not change is not
evaluated again, identical rows share one evaluation, and rows that are finished are dropped by `select`. All of it is exact.
Blocks (semi-autoregressive decoding) restrict what may be written now; a causal model may write its leftmost mask only.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.draws import Draws
from dlm.masked_lm import MaskedLM


@dataclass
class Readout:
    """What the model says, dense over the canvas and valid where it was read: the k best tokens with their
    log-probabilities at temperature 1, best first, and the entropy (nats) where asked for."""

    top_tokens: Int[Tensor, "row position best"]
    top_log_probs: Float[Tensor, "row position best"]
    entropy: Float[Tensor, "row position"] | None

    def cut(self, best: int) -> Readout:
        """The `best` first tokens only: more may have been read for somebody else."""
        return Readout(self.top_tokens[..., :best], self.top_log_probs[..., :best], self.entropy)


@dataclass
class TokenRule:
    """What to write: categorical at a temperature (0 is greedy), cut to the nucleus of mass top_p and the top_k best (0: all)."""

    temperature: float | int = 1.0
    top_p: float | int = 1.0
    top_k: int = 0

    def __post_init__(self):
        if not self.temperature >= 0:
            raise ValueError(f"temperature={self.temperature} must be at least 0 (0 writes the most likely token)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p={self.top_p} must be in (0, 1]; 1 keeps every token")
        if self.top_k < 0:
            raise ValueError(f"top_k={self.top_k} must be at least 0; 0 keeps every token")

    def __call__(self, logits: Float[Tensor, "read vocabulary"]) -> Float[Tensor, "read vocabulary"]:
        """Logits of what is drawn from; not for the greedy rule."""
        logits = logits / self.temperature if self.temperature != 1 else logits
        if self.top_k and self.top_k < logits.shape[1]:
            worst = logits.topk(self.top_k, dim=1).values[:, -1:]
            logits = logits.masked_fill(logits < worst, -torch.inf)
        if self.top_p < 1:
            ordered, index = logits.softmax(1).sort(dim=1, descending=True)
            before = ordered.double().cumsum(1) - ordered  # the token that crosses top_p stays in
            logits = logits.masked_fill((before >= self.top_p).gather(1, index.argsort(1)), -torch.inf)
        return logits


@dataclass
class Decision:
    """Which positions to write and what: `order` 0 untouched, else the rank of the pick (from 1); `tokens` valid at the picks;
    log-probabilities of the choice of positions and of the tokens drawn, 0 where the rule is deterministic."""

    order: Int[Tensor, "row position"]
    tokens: Int[Tensor, "row position"]
    log_where: Float[Tensor, "row"]
    log_what: Float[Tensor, "row"]


@dataclass
class Observation:
    """The state of the rows that are still being decoded, and the means to ask the model about it.

    row_id: the caller's; row_step: steps taken; block_step, block_masks: steps taken in the current block and the masks that it
    began with; evaluations: evaluations of the row; to_write: its masks at the start; time: evaluations / to_write, at most 1;
    writable: masks of the current block; done: nothing left to write, or out of steps; steps: planned steps a block.
    last: the evaluation at hand is the last that the row's budget allows, so that all its masks are written from it; with a
    budget, time is 1 / (evaluations left), the one at hand among them, which tells a policy what it may spend.
    """

    environment: UnmaskingEnvironment = field(repr=False)
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
    last: Bool[Tensor, "row"]
    steps: int

    def read(self, where: Bool[Tensor, "row position"], best: int = 2, entropy: bool = False) -> Readout:
        return self.environment.read(where, best, entropy)

    def hidden(self, where: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """Hidden states where asked, zero elsewhere."""
        known = self.environment.hidden(where)
        return known.masked_fill(~where.unsqueeze(-1), 0.0)

    def draw(
        self, where: Bool[Tensor, "row position"], rule: TokenRule, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        return self.environment.draw(where, rule, draws)

    def log_prob(self, where: Bool[Tensor, "row position"], text: Int[Tensor, "row position"]) -> Float[Tensor, "row"]:
        return self.environment.log_prob(where, text)

    def count(self) -> Int[Tensor, "row"]:
        """Positions to write now when `steps` equal steps fill the block: what does not divide goes to the first steps."""
        even, extra = self.block_masks // self.steps, self.block_masks % self.steps
        return torch.minimum(even + (self.block_step < extra), self.writable.sum(1))


class UnmaskingEnvironment:
    """See the module. `steps`: planned steps over the whole canvas; `block_length`: None is one block; `patience`: steps, for
    each position to write, after which a row is done even with masks left (training rollouts that may select nothing);
    `budget`: evaluations that a row may cost, one number or one a row of the canvas; None: as many as the rule takes."""

    def __init__(
        self,
        model: MaskedLM,
        steps: int,
        block_length: int | None = None,
        patience: int | None = None,
        budget: int | Int[Tensor, "row"] | None = None,
    ):
        if steps < 1:
            raise ValueError(f"steps={steps} must be at least 1")
        if budget is not None and (model.causal or block_length is not None):
            raise ValueError(
                "a budget ends with one evaluation that writes all that is left: not with blocks or a causal model"
            )
        if budget is not None and int(torch.as_tensor(budget).min()) < 1:
            raise ValueError(f"budget={budget} must be at least 1 evaluation")
        self.model, self.total_steps, self.block_length, self.patience = model, steps, block_length, patience
        self.allowed = budget

    def reset(self, canvas: Int[Tensor, "row position"], row_id: Int[Tensor, "row"] | None = None) -> Observation:
        """Start from a canvas whose masks are to be written; everything else on it is given and stays."""
        rows, length = canvas.shape
        if length > self.model.max_length:
            raise ValueError(
                f"the canvas has {length} positions, more than the model's {self.model.max_length}; shorten it"
            )
        block = self.block_length or length
        if block < 1 or length % block:
            raise ValueError(f"block_length={block} does not divide the length {length}; choose a divisor")
        blocks = length // block
        if self.total_steps % blocks and self.total_steps > blocks:
            raise ValueError(
                f"steps={self.total_steps} is not divisible by the {blocks} blocks; choose a multiple of {blocks}"
            )
        device = canvas.device
        self.block, self.steps = block, max(1, self.total_steps // blocks)
        self.tokens = canvas.clone()
        self.row_id = torch.arange(rows, device=device) if row_id is None else row_id
        self.to_write = (canvas == self.model.mask_id).sum(1)
        unlimited = torch.iinfo(torch.long).max
        self.budget = torch.as_tensor(unlimited if self.allowed is None else self.allowed, device=device).expand(rows)
        self.row_step = torch.zeros(rows, dtype=torch.long, device=device)
        self.block_step = torch.zeros_like(self.row_step)
        self.evaluations = torch.zeros_like(self.row_step)
        self.block_index = torch.full_like(self.row_step, -1)
        self.block_masks = torch.zeros_like(self.row_step)
        self.forwards = self.rows_evaluated = self.positions_read = 0
        self._hidden = torch.zeros(rows, length, self.model.hidden_size, device=device)
        self._known = torch.zeros_like(canvas, dtype=torch.bool)
        self._readout: Readout | None = None
        self._readout_known = torch.zeros_like(self._known)
        return self._observe()

    def step(self, decision: Decision) -> Observation:
        """Write the picks. Rows that were written to are unknown again; the others keep what was read."""
        picked = decision.order > 0
        self.tokens = torch.where(picked, decision.tokens, self.tokens)
        unchanged = ~picked.any(1, keepdim=True)
        self._known &= unchanged
        self._readout_known &= unchanged
        self.row_step = self.row_step + 1
        self.block_step = self.block_step + 1
        return self._observe()

    def select(self, index: Int[Tensor, "kept"]) -> Observation:
        """Keep, copy or reorder rows, with everything that is keyed by row."""
        for name in ("tokens", "row_id", "to_write", "row_step", "block_step", "evaluations", "block_index", "block_masks",
                     "budget", "_hidden", "_known", "_readout_known"):  # fmt: skip
            setattr(self, name, getattr(self, name)[index])
        if self._readout is not None:
            old = self._readout
            self._readout = Readout(
                old.top_tokens[index], old.top_log_probs[index], None if old.entropy is None else old.entropy[index]
            )
        return self._observe()

    def hidden(self, where: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """Hidden states of the current canvases, dense, valid at `where` (and wherever else this canvas was read)."""
        needed = where & ~self._known
        rows = needed.any(1).nonzero().squeeze(1)
        if len(rows) == 0:
            return self._hidden
        canvases, place = torch.unique(self.tokens[rows], dim=0, return_inverse=True)
        if len(canvases) == len(rows):  # all distinct: leave them in their order
            read = needed[rows]
            self._hidden[needed] = self.model.hidden(self.tokens[rows], read)
        else:
            read = torch.zeros_like(canvases, dtype=torch.long).index_add_(0, place, needed[rows].long()) > 0
            dense = torch.zeros(*canvases.shape, self.model.hidden_size, device=canvases.device)
            dense[read] = self.model.hidden(canvases, read)
            self._hidden[rows] = torch.where(needed[rows].unsqueeze(-1), dense[place], self._hidden[rows])
        self._known |= needed
        self.evaluations[rows] += 1
        self.forwards += 1
        self.rows_evaluated += len(canvases)
        self.positions_read += int(read.sum())
        return self._hidden

    @torch.no_grad()
    def read(self, where: Bool[Tensor, "row position"], best: int, entropy: bool) -> Readout:
        """The k best tokens and the entropy at `where`; logits exist for a chunk of positions at a time."""
        old = self._readout
        if old is None or old.top_tokens.shape[-1] < best or (entropy and old.entropy is None):
            shape = (*self.tokens.shape, best)
            self._readout_known = torch.zeros_like(self._known)
            self._readout = old = Readout(
                torch.zeros(shape, dtype=torch.long, device=self.tokens.device),
                torch.zeros(shape, device=self.tokens.device),
                torch.zeros(self.tokens.shape, device=self.tokens.device) if entropy else None,
            )
        needed = where & ~self._readout_known
        index = needed.nonzero()
        if len(index) == 0:
            return old.cut(best)
        hidden = self.hidden(where)[needed]
        columns = old.top_tokens.shape[-1]
        for place, part in zip(index.split(self.chunk), hidden.split(self.chunk), strict=True):
            logits = self.model.head(part)
            log_total = logits.logsumexp(1, keepdim=True)
            top = logits.topk(columns, dim=1)
            row, position = place.unbind(1)
            old.top_tokens[row, position] = top.indices
            old.top_log_probs[row, position] = top.values - log_total
            if old.entropy is not None:
                log_prob = logits.sub_(log_total).masked_fill_(logits == -torch.inf, -1e4)
                old.entropy[row, position] = -(log_prob.exp() * log_prob).sum(1)
        self._readout_known |= needed
        return old.cut(best)

    @torch.no_grad()
    def draw(
        self, where: Bool[Tensor, "row position"], rule: TokenRule, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        """Tokens for the positions `where` and the log-probability with which each row's were drawn (0 for the greedy rule)."""
        tokens, log_q = self.tokens.clone(), torch.zeros(len(self.tokens), device=self.tokens.device)
        if rule.temperature == 0:
            return torch.where(where, self.read(where, 1, False).top_tokens[..., 0], tokens), log_q
        index = where.nonzero()
        if len(index) == 0:
            return tokens, log_q
        hidden = self.hidden(where)[where]
        for place, part in zip(index.split(self.chunk), hidden.split(self.chunk), strict=True):
            row, position = place.unbind(1)
            logits = rule(self.model.head(part))
            drawn = draws.categorical(logits, self.row_id[row], self.row_step[row], position)
            tokens[row, position] = drawn
            log_q.index_add_(0, row, logits.gather(1, drawn.unsqueeze(1)).squeeze(1) - logits.logsumexp(1))
        return tokens, log_q

    @torch.no_grad()
    def log_prob(self, where: Bool[Tensor, "row position"], text: Int[Tensor, "row position"]) -> Float[Tensor, "row"]:
        """log p(text at `where` | canvas), each position by itself, summed over the row."""
        total = torch.zeros(len(text), device=text.device)
        hidden = self.hidden(where)[where]
        for place, part in zip(where.nonzero().split(self.chunk), hidden.split(self.chunk), strict=True):
            row, position = place.unbind(1)
            logits = self.model.head(part)
            token = text[row, position].unsqueeze(1)
            total.index_add_(0, row, logits.gather(1, token).squeeze(1) - logits.logsumexp(1))
        return total

    @property
    def chunk(self) -> int:
        return self.model.chunk(self.tokens.device)

    def _observe(self) -> Observation:
        masked = self.tokens == self.model.mask_id
        left = masked.unflatten(1, (-1, self.block)).any(2)
        block_index = left.long().argmax(1)
        writable = masked & (
            torch.arange(masked.shape[1], device=masked.device) // self.block == block_index.unsqueeze(1)
        )
        fresh = block_index != self.block_index
        self.block_masks = torch.where(fresh, writable.sum(1), self.block_masks)
        self.block_step = self.block_step.masked_fill(fresh, 0)
        self.block_index = block_index
        if self.model.causal:
            writable = writable & (writable.cumsum(1) == 1)
        done = ~masked.any(1)
        if self.patience is not None:
            done = done | (self.row_step >= self.patience * self.to_write)
        spent = self.evaluations - self._known.any(1).long()  # before the evaluation at hand
        if self.allowed is None:
            time = (self.evaluations / self.to_write.clamp(min=1)).clamp(max=1)
        else:
            time = 1.0 / (self.budget - spent)
        return Observation(
            self, self.tokens, masked, writable, self.row_id, self.row_step, self.block_step, self.block_masks,
            self.evaluations, self.to_write, time, done, spent + 1 >= self.budget, self.steps,
        )  # fmt: skip
