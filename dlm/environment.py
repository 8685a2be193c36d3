"""A frozen MaskedLM as an environment: it takes the positions and tokens to commit, and returns new canvases.

The model runs when outputs are requested, at the requested positions, once for each distinct canvas. An unchanged row is
not evaluated again, identical rows share one evaluation, and `select` drops finished rows. All of this is exact. With revision
(`DecodeOptions.revise`) a decision may also open committed positions again, or replace their tokens; a position of an earlier
block is then open there, and the row goes back to that block. Blocks
(semi-autoregressive decoding) restrict which positions may be selected; a causal model may select its leftmost open
position only, and caches its keys and values exactly. Prompts of different lengths are padded on the left, and the model
runs on each row without its padding. Caches of a bidirectional model (`dlm/cache.py`) are approximate; `exact` is then
False.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dlm.cache import new_cache
from dlm.causal_lm import CausalLM
from dlm.draws import Draws
from dlm.ends import is_end
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation, Readout
from dlm.options import STEPS_PER_EVALUATION, DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule

LEAST = -1e4  # log-probability of what is to be written last: finite, so that sums and margins stay numbers


BY_ROW = (
    "tokens", "open", "given", "start", "row_id", "to_write", "row_step", "block_step", "evaluations", "block_index",
    "block_masks", "budget", "alpha", "unfinished", "filled", "reopened", "_hidden", "_known", "_readout_known", "_row_drift",
)  # fmt: skip


class UnmaskingEnvironment:
    """The environment of one batch: `reset` starts from prompts, `step` commits a decision, `select` keeps rows.

    Args:
        model: the frozen model.
        options: how canvases are decoded.

    Raises:
        ValueError: for options that the model does not have.
    """

    def __init__(self, model: MaskedLM, options: DecodeOptions):
        options.check_model(model)
        self.model, self.options = model, options
        self.cache_kind = "causal" if isinstance(model, CausalLM) and model.rooms else options.cache

    @property
    def exact(self) -> bool:
        """True if every output is that of the model for the current canvas (no approximate cache)."""
        return self.cache_kind in (None, "causal")

    @property
    def drift(self) -> float | None:
        """The error of the cache, if it is measured: mean of |p(cached) - p(fresh)| for the best token of either.

        The mean is over the requested open positions of the window, at every full run of a row after its first (without
        `refresh`, at block starts). None if there was no such run, as with one block.
        """
        return float(self._drift[0] / self._drift[1]) if self._drift[1] > 0 else None

    def drift_of(self, rows: Int[Tensor, "requested"]) -> list[float | None]:
        """Return the `drift` of each of these rows."""
        return [total / count if count else None for total, count in self._row_drift[rows].tolist()]

    def reset(self, prompts: Prompts, row_id: Int[Tensor, "row"] | None = None) -> Observation:
        """Start from prompts. Positions that are not open never change.

        Args:
            row_id: ids of the rows for the random draws (default: their numbers).

        Raises:
            ValueError: a position before the end of the prompts is open, a canvas is too long, or blocks or steps do not
                divide it.
        """
        canvas, options = prompts.canvas, self.options
        rows, length = canvas.shape
        device = canvas.device
        self.prompt_length = prompts.prompt_length
        self.block, self.steps = self._block_and_steps(prompts)
        self.start = None if prompts.start is None or not bool(prompts.start.any()) else prompts.start
        self.open = prompts.open_positions(self.model.mask_id)
        self.given = ~self.open
        self.tokens = canvas.clone()
        _check_given(self.open, self.prompt_length)
        self.row_id = torch.arange(rows, device=device) if row_id is None else row_id
        self.to_write = self.open.sum(1)
        unlimited = torch.iinfo(torch.long).max
        self.budget = torch.as_tensor(unlimited if options.budget is None else options.budget, device=device).expand(
            rows
        )
        self.alpha = None
        if options.alpha is not None:
            self.alpha = torch.as_tensor(options.alpha, dtype=torch.float32, device=device).expand(rows)
        self.row_step = torch.zeros(rows, dtype=torch.long, device=device)
        self.block_step = torch.zeros_like(self.row_step)
        self.evaluations = torch.zeros_like(self.row_step)
        self.block_index = torch.full_like(self.row_step, -1)
        self.block_masks = torch.zeros_like(self.row_step)
        self.unfinished = torch.zeros_like(self.row_step, dtype=torch.bool)
        self.filled = torch.zeros_like(self.open) if options.ends and options.revise else None
        self.reopened = torch.zeros_like(canvas) if options.revise else None
        self.memory: dict[str, Tensor] = {}
        self.max_steps = None
        if options.revise:
            self.max_steps = options.max_steps or STEPS_PER_EVALUATION * int(self.budget.max())
        self.forwards = self.rows_evaluated = self.positions_read = self.positions_run = 0
        width = self.model.hidden_size * options.cost
        self._hidden = torch.zeros(rows, length, width, device=device)
        self._known = torch.zeros_like(canvas, dtype=torch.bool)
        self._readout: Readout | None = None
        self._readout_known = torch.zeros_like(self._known)
        self._drift = torch.zeros(2, device=device)  # sum and count; outlives its rows
        self._row_drift = torch.zeros(rows, 2, device=device)
        self.measuring = (0.0, 0.0)  # seconds on the wall clock, CPU seconds
        self.cache = None
        if self.cache_kind is not None:
            self.cache = new_cache(self.model, self.cache_kind, options.refresh, rows, length, device)
        self._move_on()
        return self._observe()

    def _block_and_steps(self, prompts: Prompts) -> tuple[int, int]:
        """Positions of a block, and decoding steps for each. ValueError where they do not divide the response."""
        rows, length = prompts.canvas.shape
        longest = length if prompts.start is None or rows == 0 else length - int(prompts.start.min())
        if longest > self.model.max_length:
            raise ValueError(
                f"the canvas has {longest} positions, more than the model's {self.model.max_length}; shorten it"
            )
        response = length - prompts.prompt_length
        block, steps = self.options.block_length or max(response, 1), self.options.steps
        if block < 1 or response % block:
            raise ValueError(f"block_length={block} does not divide the length {response}; choose a divisor")
        blocks = max(response // block, 1)
        if steps % blocks and steps > blocks:
            raise ValueError(f"steps={steps} is not divisible by the {blocks} blocks; choose a multiple of {blocks}")
        return block, max(1, steps // blocks)

    def step(self, decision: Decision) -> Observation:
        """Commit the decision and invalidate the outputs of the rows that changed (with a cache, of their window).

        Raises:
            ValueError: positions are opened again without `DecodeOptions.revise`.
        """
        selected, changed = decision.selected, decision.changed
        self.tokens = torch.where(selected, decision.tokens, self.tokens)
        self.open = self.open & ~selected
        if decision.reopened is not None:
            self._reopen(decision.reopened)
        if self.options.revise:
            going_on = torch.zeros_like(self.unfinished) if decision.unfinished is None else decision.unfinished
            self.unfinished = going_on & ~self.last
        self.row_step = self.row_step + 1
        self.block_step = self.block_step + 1
        self._move_on()
        unknown = changed.any(1, keepdim=True).expand_as(changed)
        if self.cache is not None and self.cache.kind != "causal":
            place = torch.arange(changed.shape[1], device=changed.device)
            first = self.block_start().unsqueeze(1)
            window = place >= first
            if self.cache.kind == "dual":
                window &= place < first + self.block
            unknown = unknown & (window | self.cache.due().unsqueeze(1))
        self._known &= ~unknown
        self._readout_known &= ~unknown
        if (
            outputs := decision.outputs
        ) is not None:  # a row that an end of sequence fills up is done and reads nothing
            self._hidden = torch.where(outputs.positions.unsqueeze(2), outputs.hidden, self._hidden)
            self._known |= outputs.positions
        return self._observe()

    def replace_tokens(self, tokens: Int[Tensor, "row position"]) -> Observation:
        """Replace committed tokens without a decoding step, and invalidate the outputs of the rows that changed.

        For moves of particles (`samplers/moves.py`). ValueError with a cache, whose keys would become stale.
        """
        if self.cache is not None:
            raise ValueError("tokens that are replaced make the keys of a cache stale; leave sampler.cache out")
        changed = (tokens != self.tokens) & ~self.open & ~self.given
        self.tokens = torch.where(changed, tokens, self.tokens)
        unknown = changed.any(1, keepdim=True).expand_as(changed)
        self._known, self._readout_known = self._known & ~unknown, self._readout_known & ~unknown
        return self._observe()

    def _reopen(self, positions: Bool[Tensor, "row position"]) -> None:
        """Open committed positions again. Positions of the prompt, and all positions of a row's last step, stay."""
        if not self.options.revise:
            raise ValueError("the decision opens positions again, and revision is off; set DecodeOptions.revise")
        positions = positions & self._revisable() & ~self.last.unsqueeze(1)
        self.tokens = self.tokens.masked_fill(positions, self.model.mask_id)
        self.open = self.open | positions
        assert self.reopened is not None
        self.reopened = self.reopened + positions

    def _revisable(self) -> Bool[Tensor, "row position"]:
        """Mark committed positions that were neither given nor filled behind an end of sequence."""
        committed = ~self.open & ~self.given
        return committed if self.filled is None else committed & ~self.filled

    def block_start(self) -> Int[Tensor, "row"]:
        """Return the first position of each row's current block."""
        return self.prompt_length + self.block_index * self.block

    def select(self, index: Int[Tensor, "kept"], row_id: Int[Tensor, "kept"] | None = None) -> Observation:
        """Keep, copy or reorder rows with all their data. row_id: new ids, so that copies of one row draw differently."""
        for name in BY_ROW:
            value = getattr(self, name)
            if name == "_hidden" and len(index) <= len(value) and not bool(self._known.any()):
                self._hidden = value[: len(index)]  # nothing of it is known: as good as any
                continue
            setattr(self, name, None if value is None else value[index])
        self.memory = {name: value[index] for name, value in self.memory.items()}
        if row_id is not None:
            self.row_id = row_id
        if self.cache is not None:
            self.cache.select(index)
        if self._readout is not None:
            old = self._readout
            self._readout = Readout(
                old.top_tokens[index], old.top_log_probs[index], None if old.entropy is None else old.entropy[index]
            )
        return self._observe()

    def hidden(self, positions: Bool[Tensor, "row position"]) -> Float[Tensor, "row position width"]:
        """Return hidden states of the current canvases, valid at `positions` and at other positions evaluated before."""
        needed = positions & ~self._known
        rows = needed.any(1).nonzero().squeeze(1)
        if len(rows) == 0:
            return self._hidden
        if (
            self.options.revise
        ):  # the end of a row commits all open positions from the evaluation that its decoder requests
            closing = self.last & needed.any(1)
            needed = needed | (self.open & closing.unsqueeze(1) & ~self._known)
        if self.cache is None:
            self._run(rows, needed)
        else:
            self._run_cached(rows, needed)
        self._known |= needed
        self.evaluations[rows] += self.options.cost
        self.forwards += 1
        return self._hidden

    def hidden_of(
        self, tokens: Int[Tensor, "canvas position"], rows: Int[Tensor, "canvas"], read: Bool[Tensor, "canvas position"]
    ) -> Float[Tensor, "canvas position width"]:
        """Return hidden states of canvases that are not decoded: candidates, or copies with more masks.

        Each canvas counts as one evaluation of its row. Nothing is cached.

        Args:
            tokens: the canvases.
            rows: the row that each canvas belongs to, which has the same prompt and padding.
            read: positions whose hidden states are returned; zeros elsewhere.

        Raises:
            ValueError: with classifier-free guidance, whose second canvas is that of the row.
        """
        if self.options.guidance:
            raise ValueError("other canvases are evaluated without guidance; leave sampler.guidance out")
        start = None if self.start is None else self.start[rows]
        dense = torch.zeros(*tokens.shape, self._hidden.shape[2], device=tokens.device)
        if len(tokens):
            dense[read] = self.model.hidden(tokens, read, start=start).float()
            self.evaluations.index_add_(0, rows, torch.ones_like(rows))
            self.forwards += 1
            self.rows_evaluated += len(tokens)
            self.positions_read += int(read.sum())
            self.positions_run += tokens.numel() - (0 if start is None else int(start.sum()))
        return dense

    def hidden_shadow(self) -> Float[Tensor, "row position width"]:
        """Return the states of the shadows of each row's block at the positions that they stand for (`MaskedLM.hidden_shadow`).

        The evaluation is longer by a block. It is that of the current canvas too: all its positions are then known.

        Raises:
            ValueError: with guidance or a cache, or for a model that cannot run with an attention mask.
        """
        if self.options.guidance or self.cache is not None:
            raise ValueError("a shadow block runs with neither guidance nor a cache; leave both out")
        length, first = self.tokens.shape[1], self.block_start()
        states = self.model.hidden_shadow(self.tokens, first, self.block, self.start)
        self._hidden, shadow = states[:, :length].contiguous(), states[:, length:]
        self._known = torch.ones_like(self._known)
        self.evaluations += 1
        self.forwards += 1
        self.rows_evaluated += len(states)
        self.positions_read += len(states) * self.block
        self.positions_run += states.shape[:2].numel() - (0 if self.start is None else int(self.start.sum()))
        place = first.unsqueeze(1) + torch.arange(self.block, device=first.device)
        return torch.zeros_like(self._hidden).scatter_(1, place.unsqueeze(-1).expand_as(shadow), shadow)

    def _run(self, rows: Int[Tensor, "requested"], needed: Bool[Tensor, "row position"]) -> None:
        """Run whole rows, each distinct canvas once."""
        tokens, read = self.tokens[rows], needed[rows]
        start = None if self.start is None else self.start[rows]
        canvases = tokens
        if start is not None:  # padding is of one kind, and a row that begins elsewhere is another
            padding = torch.arange(tokens.shape[1], device=tokens.device) < start.unsqueeze(1)
            canvases = torch.cat((tokens.masked_fill(padding, 0), start.unsqueeze(1)), 1)
        canvases, place = torch.unique(canvases, dim=0, return_inverse=True)
        times = 1
        if self.options.guidance:
            without = tokens.masked_fill(self.given[rows], self.model.mask_id)
            states = [self.model.hidden(canvas, read, start=start) for canvas in (tokens, without)]
            self._hidden[needed] = torch.cat(states, 1).float()
            times = 2
        elif len(canvases) == len(rows):  # all distinct: leave them in their order
            self._hidden[needed] = self.model.hidden(tokens, read, start=start).float()
        else:
            if start is not None:
                canvases, start = canvases[:, :-1], canvases[:, -1]
            tokens, requested = canvases, torch.zeros_like(canvases).index_add_(0, place, read.long()) > 0
            dense = torch.zeros(*tokens.shape, self._hidden.shape[2], device=tokens.device)
            dense[requested] = self.model.hidden(tokens, requested, start=start).float()
            self._hidden[needed] = dense[place][read]
            read = requested
        self.rows_evaluated += times * len(tokens)
        self.positions_read += times * int(read.sum())
        self.positions_run += times * (tokens.numel() - (0 if start is None else int(start.sum())))

    def _run_cached(self, rows: Int[Tensor, "requested"], needed: Bool[Tensor, "row position"]) -> None:
        """Run spans of rows against the cached keys and values. If the cache is exact, each distinct canvas runs once."""
        assert self.cache is not None
        if self.cache.kind == "causal" and len(rows) > 1:
            place, first_of = self._alike(rows, needed)
            if len(first_of) < len(rows):
                kept, requested = rows[first_of.sort().values], torch.zeros_like(needed)
                requested[kept] = needed[kept]
                like = rows[first_of][place]
                self.cache.fresh[rows[like != rows]] = 0  # what they know they will have from those
                self._run_spans(kept, requested)
                row, position = needed[rows].nonzero().unbind(1)
                self._hidden[rows[row], position] = self._hidden[like[row], position]
                self.cache.share(like, rows)
                return
        self._run_spans(rows, needed)

    def _run_spans(self, rows: Int[Tensor, "requested"], needed: Bool[Tensor, "row position"]) -> None:
        """Run the span of each row separately."""
        assert self.cache is not None
        pad = torch.zeros_like(rows) if self.start is None else self.start[rows]
        first, last = self.cache.spans(needed, rows, self.block_start(), self.block)
        stale = None
        if self.options.measure_drift:
            with self._untimed():
                stale = self._stale(needed, rows, pad, first, last)
        self._hidden[needed] = self.cache.run(self.tokens, needed, rows, pad, first, last).float()
        if stale is not None:
            with self._untimed():
                self._compare(*stale)
        self.rows_evaluated += len(rows)
        self.positions_read += int(needed.sum())
        self.positions_run += int((last - torch.maximum(first, pad)).sum())

    @contextmanager
    def _untimed(self) -> Iterator[None]:
        """Context manager: add the seconds of the enclosed work to `measuring`."""

        def now() -> tuple[float, float]:
            if self.tokens.is_cuda:  # kernels run behind the host
                torch.cuda.synchronize(self.tokens.device)
            return time.perf_counter(), time.process_time()

        started = now()
        yield
        spent = [end - start for start, end in zip(started, now(), strict=True)]
        self.measuring = (self.measuring[0] + spent[0], self.measuring[1] + spent[1])

    def _stale(
        self, needed: Bool[Tensor, "row position"], rows: Tensor, pad: Tensor, first: Tensor, last: Tensor
    ) -> tuple[Bool[Tensor, "row position"], Float[Tensor, "read"]] | None:
        """For rows that are about to run in full, compute the cache's confidences: open positions of the window and the
        probability of their best token.

        This runs the window once more. The run is not counted as an evaluation.
        """
        assert self.cache is not None
        if self.exact:
            return None
        again = (first <= pad) & (last == needed.shape[1]) & (self.cache.age[rows] > 0)
        start = self.block_start()[rows]
        end = start + self.block if self.cache.kind == "dual" else torch.full_like(start, needed.shape[1])
        again &= (start > pad) | (end < needed.shape[1])  # else the window is the row, and always known
        requested, pad, start, end = rows[again], pad[again], start[again], end[again]
        place = torch.arange(needed.shape[1], device=needed.device)
        window = torch.zeros_like(needed)
        window[requested] = (place >= start.unsqueeze(1)) & (place < end.unsqueeze(1))
        read = needed & window & self.open
        some = read[requested].any(1)
        if not bool(some.any()):
            return None
        states = self.cache.run(self.tokens, read, requested[some], pad[some], start[some], end[some])
        return read, self._best(states.float())

    def _compare(self, read: Bool[Tensor, "row position"], cached: Float[Tensor, "read"]) -> None:
        """Record the difference between cached and fresh confidences, after the full run."""
        change = (self._best(self._hidden[read]) - cached).abs()
        found = torch.stack((change, torch.ones_like(change)), 1)
        self._row_drift.index_add_(0, read.nonzero()[:, 0], found)
        self._drift += found.sum(0)

    def _best(self, hidden: Float[Tensor, "read width"]) -> Float[Tensor, "read"]:
        """Return the probability of the best token."""
        parts = [self.logits(part) for part in hidden.split(self.chunk)]
        return torch.cat([(part.amax(1) - part.logsumexp(1)).exp() for part in parts])

    def _alike(
        self, rows: Int[Tensor, "requested"], needed: Bool[Tensor, "row position"]
    ) -> tuple[Int[Tensor, "requested"], Int[Tensor, "kind"]]:
        """Group rows by canvas, padding and requested positions. Returns the group of each row, and the first row of each
        group.
        """
        columns = needed.any(0).nonzero().squeeze(1)
        first, last = int(columns[0]), int(columns[-1]) + 1  # what is behind is not looked at
        canvases = torch.cat((self.tokens[rows, :last], needed[rows, first:last].long()), 1)
        if self.start is not None:
            canvases = torch.cat((canvases, self.start[rows].unsqueeze(1)), 1)
        kinds, place = torch.unique(canvases, dim=0, return_inverse=True)
        first = torch.full((len(kinds),), len(rows), device=rows.device)
        return place, first.scatter_reduce_(0, place, torch.arange(len(rows), device=rows.device), "amin")

    def logits(self, hidden: Float[Tensor, "read width"]) -> Float[Tensor, "read vocabulary"]:
        """Apply the head, classifier-free guidance and forbidden tokens."""
        if weight := self.options.guidance:
            prompted, without = (self.model.head(half) for half in hidden.chunk(2, 1))
            logits = (1 + weight) * prompted - weight * without.masked_fill(without == -torch.inf, 0.0)
        else:
            logits = self.model.head(hidden)
        if self.options.never_tokens:
            logits[:, list(self.options.never_tokens)] = -torch.inf
        return logits

    @torch.no_grad()
    def read(self, positions: Bool[Tensor, "row position"], best: int, entropy: bool) -> Readout:
        """Return the k best tokens and the entropy at `positions`. Logits exist for a chunk of positions at a time."""
        old = self._readout
        if old is None or old.top_tokens.shape[-1] < best or (entropy and old.entropy is None):
            shape = (*self.tokens.shape, best)
            self._readout_known = torch.zeros_like(self._known)
            self._readout = old = Readout(
                torch.zeros(shape, dtype=torch.long, device=self.tokens.device),
                torch.zeros(shape, device=self.tokens.device),
                torch.zeros(self.tokens.shape, device=self.tokens.device) if entropy else None,
            )
        needed = positions & ~self._readout_known
        index = needed.nonzero()
        if len(index) == 0:
            return old.cut(best)
        hidden = self.hidden(positions)[needed]
        columns = old.top_tokens.shape[-1]
        for place, part in zip(index.split(self.chunk), hidden.split(self.chunk), strict=True):
            row, position = place.unbind(1)
            found = self.summarised(self.logits(part), columns, old.entropy is not None)
            old.top_tokens[row, position], old.top_log_probs[row, position] = found.top_tokens, found.top_log_probs
            if old.entropy is not None:
                assert found.entropy is not None
                old.entropy[row, position] = found.entropy
        self._readout_known |= needed
        return old.cut(best)

    def summarised(self, logits: Float[Tensor, "read vocabulary"], best: int, entropy: bool) -> Readout:
        """Return the k best tokens and the entropy of logits, which are overwritten. The result has one entry per row of
        logits.
        """
        log_total = logits.logsumexp(1, keepdim=True)
        top = logits.topk(best, dim=1)
        top_log_probs = (top.values - log_total).float()
        # Only the best counts: demoting the second would make the difference of both large.
        last = self.written_last(top.indices[:, 0])
        top_log_probs[:, 0] = top_log_probs[:, 0].masked_fill(last, LEAST)
        if not entropy:
            return Readout(top.indices, top_log_probs, None)
        log_prob = logits.sub_(log_total).masked_fill_(logits == -torch.inf, -1e4)
        found = -(log_prob.exp() * log_prob).sum(1)
        return Readout(top.indices, top_log_probs, found.masked_fill(last, -LEAST))

    def written_last(self, tokens: Int[Tensor, "read"]) -> Bool[Tensor, "read"]:
        """Mark tokens whose positions count as least confident."""
        last = self.options.last_tokens
        return is_end(tokens, last) if last else torch.zeros_like(tokens, dtype=torch.bool)

    @torch.no_grad()
    def draw(
        self, positions: Bool[Tensor, "row position"], rule: TokenRule, draws: Draws
    ) -> tuple[Int[Tensor, "row position"], Float[Tensor, "row"]]:
        """Draw tokens at `positions`. Returns them and the log-probability of each row's draws (0 for greedy)."""
        tokens, log_q = self.tokens.clone(), torch.zeros(len(self.tokens), device=self.tokens.device)
        if rule.temperature == 0:
            return torch.where(positions, self.read(positions, 1, False).top_tokens[..., 0], tokens), log_q
        index = positions.nonzero()
        if len(index) == 0:
            return tokens, log_q
        hidden = self.hidden(positions)[positions]
        for place, part in zip(index.split(self.chunk), hidden.split(self.chunk), strict=True):
            row, position = place.unbind(1)
            logits = rule(self.logits(part))
            own = position if self.start is None else position - self.start[row]
            drawn = draws.categorical(logits, self.row_id[row], self.row_step[row], own)
            tokens[row, position] = drawn
            log_drawn = logits.gather(1, drawn.unsqueeze(1)).squeeze(1) - logits.logsumexp(1)
            log_q.index_add_(0, row, log_drawn.float())
        return tokens, log_q

    @torch.no_grad()
    def log_prob(
        self, positions: Bool[Tensor, "row position"], text: Int[Tensor, "row position"]
    ) -> Float[Tensor, "row"]:
        """Return log p(text at `positions` | canvas) of each row: the sum over positions, each predicted separately."""
        total = torch.zeros(len(text), device=text.device)
        hidden = self.hidden(positions)[positions]
        for place, part in zip(positions.nonzero().split(self.chunk), hidden.split(self.chunk), strict=True):
            row, position = place.unbind(1)
            logits = self.logits(part)
            token = text[row, position].unsqueeze(1)
            total.index_add_(0, row, logits.gather(1, token).squeeze(1) - logits.logsumexp(1))
        return total

    @property
    def chunk(self) -> int:
        return self.model.chunk(self.tokens.device)

    def _move_on(self) -> None:
        """Fill up rows that have ended, and move rows with a full block to the next block.

        With revision, what an end of sequence filled is open again once that end is no longer there.
        """
        if ends := self.options.ends:
            if self.filled is not None:
                stands = (is_end(self.tokens, ends) & ~self.given & ~self.open & ~self.filled).any(1, keepdim=True)
                emptied = self.filled & ~stands
                self.tokens = self.tokens.masked_fill(emptied, self.model.mask_id)
                self.open, self.filled = self.open | emptied, self.filled & stands
            ended = is_end(self.tokens, ends) & ~self.given & (self.open.cumsum(1) == 0)
            filled = self.open & ended.any(1, keepdim=True)
            self.tokens, self.open = self.tokens.masked_fill(filled, ends[0]), self.open & ~filled
            self.filled = None if self.filled is None else self.filled | filled
        blocks = self.open[:, self.prompt_length :].unflatten(1, (-1, self.block))
        block_index = blocks.any(2).long().argmax(1)
        if self.options.revise:  # a row that goes on stays in its block, although the block is full
            staying = ~blocks.any((1, 2)) | (self.unfinished & (block_index > self.block_index))
            block_index = torch.where(staying, self.block_index.clamp(min=0), block_index)
        fresh = block_index != self.block_index
        begun = blocks.sum(2).gather(1, block_index.unsqueeze(1)).squeeze(1)
        self.block_masks = torch.where(fresh, begun, self.block_masks)
        self.block_step = self.block_step.masked_fill(fresh, 0)
        self.block_index = block_index
        if self.cache is not None and self.cache.kind != "causal":
            self.cache.fresh = self.cache.fresh.masked_fill(fresh, 0)

    def _observe(self) -> Observation:
        options = self.options
        place = torch.arange(self.open.shape[1], device=self.open.device) - self.prompt_length
        in_block = place.div(self.block, rounding_mode="floor") == self.block_index.unsqueeze(1)
        writable = self.open & in_block
        if self.model.causal:
            writable = writable & (writable.cumsum(1) == 1)
        done = ~self.open.any(1) & ~self.unfinished
        if options.patience is not None:
            done = done | (self.row_step >= options.patience * self.to_write)
        spent = self.evaluations - options.cost * self._known.any(1).long()  # before the current evaluation
        left = (self.budget - spent).div(options.cost, rounding_mode="floor")
        self.last = left <= 1  # of the current decision, whatever else is evaluated before it
        if self.max_steps is not None:
            self.last = self.last | (self.row_step + 1 >= self.max_steps)
            done = done | (self.row_step >= self.max_steps)
            writable = writable | (self.open & self.last.unsqueeze(1))  # of all blocks
        share = (self.evaluations / self.to_write.clamp(min=1)).clamp(max=1)
        time = share if options.budget is None else 1.0 / left
        return Observation(
            self, self.tokens, self.open, writable, self.row_id, self.row_step, self.block_step, self.block_masks,
            self.evaluations, self.to_write, time, done, left, self.last, self.steps, self.memory,
            in_block, self._revisable() if options.revise else None, self.reopened, self.start, self.alpha,
        )  # fmt: skip


def _check_given(opened: Bool[Tensor, "row position"], prompt_length: int) -> None:
    """Refuse open positions inside the prompts: ValueError."""
    if bool(opened[:, :prompt_length].any()):
        row, position = opened[:, :prompt_length].nonzero()[0].tolist()
        raise ValueError(
            f"position {position} of row {row} is masked and lies before prompt_length={prompt_length}, where nothing "
            "is written; let prompt_length end before the first mask"
        )
