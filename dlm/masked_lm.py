"""MaskedLM: a network that predicts the token at every position of a canvas with masks. Frozen while it is sampled from.

`RaddLM` (RADD; MDLM, folded), `SeddLM` and `LlamaLM` (LLaDA, Dream) are bidirectional: one evaluation predicts every masked
position. Causal models are in dlm/causal_lm.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dlm.noise import Noise
from model.llama import BidirectionalLlama, Memory, Span
from model.radd import RADD, READ_MULTIPLE
from model.sedd import SEDD

# Rows go through the blocks in groups of about so many positions: on a CPU, so that what a block makes stays in the cache.
POSITIONS_PER_FORWARD = {"cpu": 1024, "cuda": 65_536}
# Elements of [positions, vocabulary] alive at a time: on CUDA a nucleus (top_p), which sorts, needs about 42 bytes for each.
LOGITS_PER_CHUNK = {"cpu": 6_400_000, "cuda": 64_000_000}


class MaskedLM(nn.Module):
    """Interface of all models. Subclasses implement `hidden_rows` and `head`; `hidden` splits batches so that memory stays
    bounded.

    vocab_size: number of logit columns, including the mask token's if the network has one (it is -inf everywhere); mask_id:
    id of the mask token; max_length: the longest canvas; hidden_size: width of `hidden`; tokenizer: encode / decode, or
    None; time_conditioned: `hidden` uses sigma (None: that of the canvas); causal: decoded from left to right.
    """

    vocab_size: int
    mask_id: int
    max_length: int
    hidden_size: int
    time_conditioned = False
    causal = False
    has_shadow = False  # it has the method `shadow_rows`
    model_id = ""
    is_checked = False  # its outputs are known to fit (dlm/checked.py)
    source: str | None = None  # the path or hub id that it was loaded from, as the caller gave it
    tokenizer: Any = None  # encode, decode, batch_decode
    # Digests (dlm/fingerprint.py) of the weights as they were read, of a model with an adapter; None: those of the parameters.
    read_weights: dict[str, str] | None = None
    config: dict  # config.json, of LLaDA, Dream and what is trained in their layouts
    backbone: Any

    def __init__(self, backbone: nn.Module, dtype: str = "float32"):
        super().__init__()
        self.backbone = backbone
        self.dtype = getattr(torch, dtype)

    def hidden_rows(
        self,
        tokens: Int[Tensor, "row position"],
        read: Bool[Tensor, "row position"],
        sigma: Float[Tensor, "row"] | None,
    ) -> Float[Tensor, "read width"]:
        raise NotImplementedError(f"{type(self).__name__} has no method `hidden_rows`")

    def head(self, hidden: Float[Tensor, "read width"]) -> Float[Tensor, "read vocabulary"]:
        """Return float32 logits; the column of the mask token is -inf."""
        with self.autocast(hidden.device):
            logits = self.backbone.head(self.padded(hidden))[: len(hidden)].float()
        logits[:, self.mask_id] = -torch.inf
        return logits

    def hidden(
        self,
        tokens: Int[Tensor, "row position"],
        read: Bool[Tensor, "row position"],
        sigma: Float[Tensor, "row"] | None = None,
        start: Int[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "read width"]:
        """Return one vector for each position of `read`, row by row, from which the token AT that position is predicted.

        Args:
            tokens: canvases.
            read: requested positions.
            sigma: total noise of each row, for models that use it. None: that of the canvas.
            start: column where each row begins behind its padding, which the model does not see. None: no padding.
        """
        if start is not None:
            return self.hidden_padded(tokens, read, start, sigma)
        rows = max(1, POSITIONS_PER_FORWARD[tokens.device.type] // tokens.shape[1])
        if len(tokens) <= rows:
            return self.hidden_rows(tokens, read, sigma)
        pieces = [slice(start, start + rows) for start in range(0, len(tokens), rows)]
        return torch.cat([self.hidden_rows(tokens[p], read[p], None if sigma is None else sigma[p]) for p in pieces])

    def hidden_padded(
        self,
        tokens: Int[Tensor, "row position"],
        read: Bool[Tensor, "row position"],
        start: Int[Tensor, "row"],
        sigma: Float[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "read width"]:
        """Run rows with different padding: rows with equal padding together, without it."""
        number, places, states = numbered(read), [], []
        for (pad,), rows in groups(start):
            places.append(number[rows][read[rows]])
            own = None if sigma is None else sigma[rows]
            states.append(self.hidden(tokens[rows, pad:], read[rows, pad:], own))
        return in_order(torch.cat(states), torch.cat(places))

    def shadow_rows(
        self, tokens: Int[Tensor, "row position"], first: int, size: int
    ) -> Float[Tensor, "row longer width"]:
        raise ValueError(
            f"a shadow block needs RADD, MDLM or LLaDA, which predict a token at its own position and run with an attention "
            f"mask; {self.label} does not"
        )

    def hidden_shadow(
        self,
        tokens: Int[Tensor, "row position"],
        first: Int[Tensor, "row"],
        size: int,
        start: Int[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "row longer width"]:
        """Return hidden states of canvases with a shadow block behind them (WINO, 2507.18578).

        The shadow of a position is a mask with the number of that position. It sees all positions but its own, and the other
        shadows; no position sees a shadow.

        Args:
            tokens: canvases.
            first: position at which the block of each row begins.
            size: positions of a block.
            start: column where each row begins behind its padding. None: no padding.

        Returns:
            States of all positions, then of the `size` shadows; zeros at the padding.

        Raises:
            ValueError: the model cannot run with an attention mask.
        """
        length = tokens.shape[1] + size
        found = torch.zeros(len(tokens), length, self.hidden_size, device=tokens.device)
        most = max(1, POSITIONS_PER_FORWARD[tokens.device.type] // length)
        for (block, pad), group in groups(first, torch.zeros_like(first) if start is None else start):
            for rows in group.split(most):
                found[rows, pad:] = self.shadow_rows(tokens[rows, pad:], block - pad, size).float()
        return found

    @property
    def label(self) -> str:
        """The path or hub id, for messages; of a model without one the name of its class."""
        return self.model_id or f"the model {type(self).__name__}"

    @property
    def device(self) -> torch.device:
        """Device of the weights; the CPU for a model without weights."""
        return next((parameter.device for parameter in self.parameters()), torch.device("cpu"))

    def chunk(self, device: torch.device) -> int:
        """Return the number of positions that go through the head at a time."""
        return max(16, LOGITS_PER_CHUNK[device.type] // self.vocab_size // 16 * 16)

    def log_probs(
        self, tokens: Int[Tensor, "row position"], sigma: Float[Tensor, "row"] | None = None
    ) -> Float[Tensor, "row position vocabulary"]:
        """Return normalized float32 log-probabilities at all positions. For tests and small uses; samplers never build
        them.
        """
        hidden = self.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), sigma)
        return self.head(hidden).log_softmax(-1).unflatten(0, tokens.shape)

    def forward(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row position vocabulary"]:
        """Return `log_probs`."""
        return self.log_probs(tokens)

    @staticmethod
    def padded(hidden: Float[Tensor, "read width"]) -> Float[Tensor, "more width"]:
        """Pad the head's input to a multiple of 16 rows, so that a position's result does not depend on their number."""
        return F.pad(hidden, (0, 0, 0, -len(hidden) % READ_MULTIPLE))

    def autocast(self, device: torch.device):
        """Context manager: the precision of the network. Logits, probabilities and draws stay float32 and float64."""
        stored = next(self.backbone.parameters()).dtype
        return nullcontext() if self.dtype == stored else torch.autocast(device.type, self.dtype)

    def sigma_of(self, share: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return the total noise at which this share of the positions is masked. Score models only."""
        raise NotImplementedError(f"{type(self).__name__} does not depend on a noise level")

    def log_scale(self, sigma: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the number that turns logits into log-scores when added to them. Score models only."""
        raise NotImplementedError(f"{type(self).__name__} has no scores")

    def backbone_state(self) -> dict[str, Tensor]:
        return self.backbone.state_dict()

    def load_backbone(self, state: dict[str, Tensor]) -> None:
        self.backbone.load_state_dict(state, strict=True)


class RaddLM(MaskedLM):
    """RADD as a MaskedLM. The mask token is the last column and takes no part in the normalization."""

    has_shadow = True

    def __init__(self, backbone: RADD, dtype: str = "float32", tokenizer=None, model_id: str = ""):
        super().__init__(backbone, dtype)
        self.vocab_size, self.mask_id = backbone.columns, backbone.columns - 1
        self.max_length = backbone.config["model"]["length"]
        self.hidden_size = backbone.config["model"]["hidden_size"]
        self.tokenizer, self.model_id = tokenizer, model_id

    def hidden_rows(self, tokens, read, sigma):
        more = rows_missing(tokens)
        with self.autocast(tokens.device):
            return self.backbone.body(with_copies(tokens, more), F.pad(read, (0, 0, 0, more)))

    def shadow_rows(self, tokens, first, size):
        with self.autocast(tokens.device):
            return self.backbone.body_shadow(with_copies(tokens, rows_missing(tokens)), first, size)[: len(tokens)]


def rows_missing(tokens: Int[Tensor, "row position"]) -> int:
    """Return the number of rows by which a batch is too small: matrix products over fewer than 16 positions round differently."""
    return max(0, -(-READ_MULTIPLE // tokens.shape[1]) - len(tokens))


def with_copies(rows: Shaped[Tensor, "row *rest"], more: int) -> Shaped[Tensor, "all *rest"]:
    """Append copies of the first row."""
    return torch.cat((rows, rows[:1].expand(more, *rows.shape[1:]))) if more else rows


class SeddLM(MaskedLM):
    """SEDD as a MaskedLM: at a masked position the normalized scores of the tokens are p(token | canvas, sigma).

    The default sigma of a canvas is the one at which as many positions are masked on average: 1 - exp(-sigma) = masked
    share, within the schedule. It is a function of the canvas, so cached outputs stay valid. Losses other than score
    entropy (DSE) use normalized scores only, so the sums of the scores drift. If config.json names another
    `training.loss_type`, `log_scores` uses the sums of exact scores, 1 / (e^sigma - 1). On the uniform graph there are no
    masks: `mask_id` is past the vocabulary and marks open positions; only `samplers/scores.py` samples such a model.
    """

    time_conditioned = True
    has_sums = True  # the sums of the scores were trained; else they are what normalised scores must sum to

    def __init__(self, backbone: SEDD, noise: Noise, dtype: str = "float32", tokenizer=None, model_id: str = ""):
        super().__init__(backbone, dtype)
        self.noise, self.graph = noise, backbone.graph
        self.has_sums = backbone.config.get("training", {}).get("loss_type", "DSE") == "DSE" or self.graph == "uniform"
        self.most = float(noise(torch.tensor(1.0, device="cpu"))[0])  # of the schedule, at its end
        self.vocab_size, self.mask_id = backbone.columns, backbone.config["tokens"]
        self.max_length = backbone.config["model"]["length"]
        self.hidden_size = backbone.config["model"]["hidden_size"]
        self.tokenizer, self.model_id = tokenizer, model_id

    def sigma_of(self, share: Float[Tensor, "row"]) -> Float[Tensor, "row"]:
        """Return the total noise at which this share of the positions is masked, at most the schedule's."""
        return (-torch.log1p(-share.double())).clamp(max=self.most).float()

    def hidden_rows(self, tokens, read, sigma):
        if sigma is None:
            if self.graph == "uniform":
                raise ValueError(
                    "this SEDD is of the uniform graph, which has no masks to unmask; use --strategy euler or analytic"
                )
            sigma = self.sigma_of((tokens == self.mask_id).double().mean(1))
        if not bool(((sigma >= 0) & (sigma <= self.most * (1 + 1e-5))).all()):  # so that NaN is refused too
            raise ValueError(
                f"sigma from {float(sigma.min()):.4g} to {float(sigma.max()):.4g} is outside the schedule, which goes from 0 to "
                f"{self.most:.4g}; give total noise (not time), or the masked share by `sigma_of`"
            )
        more = rows_missing(tokens)
        with self.autocast(tokens.device):
            return self.backbone.body(
                with_copies(tokens, more), with_copies(sigma.float(), more), F.pad(read, (0, 0, 0, more))
            )

    def head(self, hidden):
        if self.graph == "absorb":
            return super().head(hidden)
        with self.autocast(hidden.device):
            return self.backbone.head(self.padded(hidden))[: len(hidden)].float()

    def log_scale(self, sigma: Float[Tensor, "*batch"]) -> Float[Tensor, "*batch"]:
        """Return the number that turns the head's logits into log-scores when added to them."""
        return self.backbone.log_scale(sigma)

    def log_scores(self, hidden: Float[Tensor, "read width"], sigma: float) -> Float[Tensor, "read columns"]:
        """Return the log-scores that `samplers/scores.py` samples from, for canvases of one sigma; the class describes
        their sums.
        """
        logits = self.head(hidden)
        if self.has_sums:
            return logits.add_(float(self.log_scale(torch.tensor(sigma, dtype=torch.float64))))
        return logits.log_softmax(1).sub_(math.log(math.expm1(sigma)))


class LlamaLM(MaskedLM):
    """LLaDA, Dream and models trained in their layouts. The mask token is in the vocabulary and is never committed.

    shifted: the hidden state at i predicts token i + 1, as in a causal model; `hidden` undoes the shift (position 0 is read
    at 0).
    """

    def __init__(
        self, backbone: BidirectionalLlama, mask_id: int, max_length: int, shifted: bool = False,
        dtype: str = "float32", tokenizer=None, model_id: str = "",
    ):  # fmt: skip
        super().__init__(backbone, dtype)
        self.vocab_size, self.mask_id, self.max_length, self.shifted = (
            backbone.shape.columns,
            mask_id,
            max_length,
            shifted,
        )
        self.hidden_size = backbone.shape.width
        self.tokenizer, self.model_id = tokenizer, model_id
        self.has_shadow = not shifted

    def shadow_rows(self, tokens, first, size):
        if self.shifted:
            return super().shadow_rows(tokens, first, size)
        with self.autocast(tokens.device):
            return self.backbone.body_shadow(tokens, self.mask_id, first, size)

    def hidden_rows(self, tokens, read, sigma):
        if self.shifted:
            return self.hidden_padded(tokens, read, torch.zeros_like(tokens[:, 0]))
        with self.autocast(tokens.device):
            return self.backbone.body(tokens, read)

    def head(self, hidden):
        """Return float32 logits. Float32 hidden states are converted to the precision of the weights first."""
        return super().head(hidden.to(self.backbone.head.weight.dtype))

    def new_memory(self, rows: int, length: int, device: torch.device) -> Memory:
        """Allocate memory for keys and values."""
        return self.backbone.new_memory(rows, length, next(self.backbone.parameters()).dtype, device)

    def hidden_padded(self, tokens, read, start, sigma=None):
        return self.hidden_spans(tokens, read, start, start, torch.full_like(start, tokens.shape[1]))

    def hidden_spans(
        self,
        tokens: Int[Tensor, "row position"],
        read: Bool[Tensor, "row position"],
        pad: Int[Tensor, "row"],
        first: Int[Tensor, "row"],
        last: Int[Tensor, "row"],
        memory: Memory | None = None,
        places: Int[Tensor, "row"] | None = None,
    ) -> Float[Tensor, "read width"]:
        """Return `hidden` of rows of which only [first, last) runs, behind their padding; all rows together.

        Args:
            tokens: canvases.
            read: requested positions.
            pad: padding of each row.
            first: start of the span.
            last: end of the span.
            memory: keys and values of whole rows; those of the span are replaced. A shifted model also runs one position to
                the left.
        """
        place = torch.arange(tokens.shape[1], device=tokens.device)
        requested = read
        if self.shifted:
            requested = F.pad(read[:, 1:], (0, 1)) & (place >= pad[:, None]) | read & (place == pad[:, None])
            first = torch.maximum(first - 1, pad)
        size = last - first
        kinds = list(groups(pad, first, last))
        order = torch.cat([rows for _, rows in kinds])
        before = size[order].cumsum(0) - size[order]
        pieces = (
            (before // POSITIONS_PER_FORWARD[tokens.device.type]).unique_consecutive(return_counts=True)[1].tolist()
        )
        states = []
        for rows in order.split(pieces):
            runs = (place >= first[rows, None]) & (place < last[rows, None])
            own = places if places is None else places[rows]
            spans = [Span((group if own is None else own[group]).tolist(), *shape)
                     for shape, group in groups(pad[rows], first[rows], last[rows])]  # fmt: skip
            with self.autocast(tokens.device):
                states.append(self.backbone.run(tokens[rows][runs], requested[rows][runs], spans, memory))
        number = numbered(requested)
        hidden = in_order(torch.cat(states), number[order][requested[order]])
        if not self.shifted:
            return hidden
        row, position = read.nonzero(as_tuple=True)
        return hidden[number[row, torch.maximum(position - 1, pad[row])]]


def log_normalizer_and_logit(
    model: MaskedLM, hidden: Float[Tensor, "read width"], tokens: Int[Tensor, "read"], temperature: float | int = 1.0
) -> tuple[Float[Tensor, "read"], Float[Tensor, "read"]]:
    """Return the log-normalizer of the head's logits at a temperature, and the logit of `tokens`.

    Their difference is the log-probability of the token. Logits exist for a chunk of positions at a time and are recomputed
    in the backward pass.
    """

    def of_chunk(states: Tensor, targets: Tensor) -> Tensor:
        logits = model.head(states) / temperature
        return torch.stack((logits.logsumexp(1), logits.gather(1, targets.unsqueeze(1)).squeeze(1)))

    chunk = model.chunk(hidden.device)
    if len(hidden) <= chunk:
        log_normalizer, logit = of_chunk(hidden, tokens)
        return log_normalizer, logit
    pieces = zip(hidden.split(chunk), tokens.split(chunk), strict=True)
    parts = [checkpoint(of_chunk, *piece, use_reentrant=False) for piece in pieces]
    log_normalizer, logit = torch.cat(parts, 1)
    return log_normalizer, logit


def groups(*keys: Int[Tensor, "row"]) -> Iterator[tuple[tuple[int, ...], Int[Tensor, "group"]]]:
    """Yield groups of rows that agree in every key: the keys, and the rows in order."""
    every = torch.stack(keys, 1)
    if len(every) == 1 or (len(every) > 1 and bool((every == every[0]).all())):  # the usual step; sorting costs more
        yield tuple(every[0].tolist()), torch.arange(len(every), device=every.device)
        return
    kinds, place = torch.unique(every, dim=0, return_inverse=True)
    for number, kind in enumerate(kinds.tolist()):
        yield tuple(kind), (place == number).nonzero().squeeze(1)


def numbered(read: Bool[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """Number the positions of `read`, row by row."""
    return (read.flatten().cumsum(0) - 1).view(read.shape)


def in_order(states: Float[Tensor, "read width"], places: Int[Tensor, "read"]) -> Float[Tensor, "read width"]:
    """Scatter each state to its place."""
    return torch.empty_like(states).index_copy(0, places, states)
