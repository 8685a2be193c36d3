"""Training of a vocabulary head (rewards/models.py) from preference pairs: the value of every next token, on a frozen
model's hidden states.

FaRMA's loss (2502.04517) for a causal model: with Q(s)[v] the value of prefix s followed by v, and pairs (w, l) with a
common prompt,

    loss = mean over i of -log sigmoid( Q(w_<i)[w_i] - Q(l_<i)[l_i] ),

i from the first difference to the end of the shorter answer: Bradley-Terry on all prefixes of one length, in one pass. For
a masked model (ours) both are on canvases z(w), z(l) under one mask M, drawn anew for every pair and epoch:

    loss = -log sigmoid( mean over i in M of Q(z(w))[i, w_i] - Q(z(l))[i, l_i] ).

The hidden states are those of the decoding model, so guidance by the head costs no additional model call.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.pairs import Pairs
from data.preferences import SHAPES, Preference, draw_mask
from dlm.encoding import model_ids
from dlm.ends import before_end, end_tokens
from dlm.fingerprint import fingerprint_of
from dlm.masked_lm import MaskedLM
from rewards.models import VocabularyHead
from rewards.settings import RewardTrainingSettings
from training.files import replacing_directory
from training.learner import new_learner
from training.processes import Processes
from training.run import Run, step_seed
from training.trainer import Algorithm


def canvas_pairs(preferences: list[Preference], model: MaskedLM, length: int) -> tuple[Pairs, int]:
    """Return the pairs on canvases of `length`, filled up with the end of sequence, and the number that did not fit.

    Raises:
        ValueError: no pair is left.
    """
    tokenizer = model.tokenizer
    if not (ends := end_tokens(tokenizer)):
        raise ValueError(
            f"{model.model_id} has no tokenizer with an end of sequence, and preferences are text; add one"
        )
    sides: list[list[list[int]]] = [[], []]
    prompts = []
    for pair in preferences:
        texts = {"the prompt": pair.prompt, "the chosen answer": pair.chosen, "the rejected answer": pair.rejected}
        prompt, *answers = (model_ids(model, text, name) if text else [] for name, text in texts.items())
        if len(prompt) + max(map(len, answers)) < length and answers[0] != answers[1]:  # room for the end
            prompts.append(len(prompt))
            for side, answer in zip(sides, answers, strict=True):
                row = prompt + answer
                side.append(row + [ends[0]] * (length - len(row)))
    if not prompts:
        raise ValueError(
            f"none of {len(preferences)} pairs fits a canvas of {length}; raise data.canvas, or give other pairs"
        )
    free = torch.arange(length) >= torch.tensor(prompts)[:, None]
    return Pairs(torch.tensor(sides[0]), torch.tensor(sides[1]), free), len(preferences) - len(prompts)


@dataclass
class Entries:
    """The compared values of pairs: chosen rows, then rejected rows, at the same positions.

    margin: Q of the chosen row's token less Q of the rejected row's; row: number of the pair; place: position behind its
    prompt, from 0.
    """

    margin: Float[Tensor, "entry"]
    row: Int[Tensor, "entry"]
    place: Int[Tensor, "entry"]


def compared(
    pairs: Pairs, masked: Bool[Tensor, "pair position"] | None, ends: Sequence[int]
) -> Bool[Tensor, "pair position"]:
    """Mark the positions where rows are compared.

    Causal (masked: None): from the first difference to the end of the shorter answer. Masked: at the masks of pairs that
    differ there or in the visible tokens. ends: tokens that end an answer (dlm/ends.py).
    """
    if masked is not None:
        return masked & (pairs.chosen != pairs.rejected).any(1, keepdim=True)
    parted = (pairs.chosen != pairs.rejected).cumsum(1) > 0
    ended = torch.zeros_like(pairs.free)
    for side in (pairs.chosen, pairs.rejected):
        answer = before_end(side, pairs.free, ends)
        ended[:, 1:] |= (pairs.free & ~answer)[:, :-1]
    return pairs.free & parted & ~ended


def entries(
    model: MaskedLM,
    head: VocabularyHead,
    pairs: Pairs,
    masked: Bool[Tensor, "pair position"] | None,
    ends: Sequence[int],
) -> Entries:
    """Run the frozen model once over both answers, and compute the values of their tokens only."""
    read = compared(pairs, masked, ends)
    tokens = torch.cat((pairs.chosen, pairs.rejected))
    seen = tokens if masked is None else tokens.masked_fill(masked.repeat(2, 1), model.mask_id)
    both = read.repeat(2, 1)
    with torch.no_grad():
        hidden = model.hidden(seen, both).float()
    written = tokens[both]
    value = (head.linear.weight[written] * hidden).sum(1) + head.linear.bias[written]
    chosen, rejected = value.chunk(2)
    row, position = read.nonzero(as_tuple=True)
    return Entries(chosen - rejected, row, position - (~pairs.free).sum(1)[row])


def margins(found: Entries, pairs: int, causal: bool) -> Float[Tensor, "comparison"]:
    """Return the compared differences: one per prefix (causal), or one per pair, the mean over its masks."""
    if causal:
        return found.margin
    count = torch.zeros(pairs, device=found.margin.device).index_add_(0, found.row, torch.ones_like(found.margin))
    total = torch.zeros(pairs, device=found.margin.device).index_add(0, found.row, found.margin)
    return (total / count.clamp(min=1))[count > 0]


def pair_masks(pairs: Pairs, seed: int, first: int = 0) -> Bool[Tensor, "pair position"]:
    """Draw one mask per pair, behind its prompt, with at least one position. first: number of the first pair."""
    masked = torch.zeros_like(pairs.free)
    for number, free in enumerate(pairs.free):
        rng = np.random.default_rng((seed, first + number))
        drawn = torch.from_numpy(draw_mask(int(free.sum()), str(rng.choice(SHAPES)), rng)).to(free.device)
        drawn[int(rng.integers(len(drawn)))] = True
        masked[number, free] = drawn
    return masked


class HeadTraining(Algorithm):
    """Updates of a head on pairs. Batches are defined over all processes, each of which takes its share.

    Every evaluation writes the moving average of the head to RUN/model.
    """

    weights = "head"

    def __init__(
        self,
        model: MaskedLM,
        kind: str,
        pairs: Pairs,
        held_out: Pairs,
        config: RewardTrainingSettings,
        n_iters: int,
        processes: Processes,
    ):
        self.model, self.causal, self.config, self.processes = model, kind == "prefix", config, processes
        self.pairs, self.held_out = pairs, held_out
        self.ends = end_tokens(model.tokenizer)
        trunk = str(config.init)
        head = VocabularyHead(model.hidden_size, model.vocab_size, trunk, kind, fingerprint_of(model))
        self.head = head.to(processes.device)
        self.learner = new_learner(self.head, config.optim, n_iters, config.training.ema, processes)

    def entries(self, pairs: Pairs, seed: int, first: int = 0) -> tuple[Entries, Bool[Tensor, "pair position"] | None]:
        """Return the entries of these pairs, and their masks (None: causal)."""
        pairs = pairs.to(self.processes.device)
        masked = None if self.causal else pair_masks(pairs, seed, first)
        return entries(self.model, self.head, pairs, masked, self.ends), masked

    def iteration(self, step: int) -> dict[str, float]:
        size = self.config.training.batch_size
        part = self.processes.part(size)
        local = self.pairs.batch(size, step, self.config.seed).take(torch.arange(size)[part])
        found, _ = self.entries(local, step_seed(self.config.seed, step), part.start)
        margin = margins(found, len(local), self.causal)
        loss = -F.logsigmoid(margin).mean()
        loss.backward()
        accuracy = float((margin > 0).float().mean())
        return {"loss": float(loss.detach()), "accuracy": accuracy, **self.learner.update()}

    @torch.no_grad()
    def held_out_margins(self) -> list[tuple[float, float]]:
        """Return (length or masked share, margin) of each comparison of the held-out pairs, always with the same masks."""
        size, kept = self.config.eval.batch_size, []
        for first in range(0, len(self.held_out), size):
            pairs = self.held_out.take(torch.arange(first, min(first + size, len(self.held_out))))
            found, masked = self.entries(pairs, 0, first)
            margin = margins(found, len(pairs), self.causal)
            if masked is None:
                at = found.place + 1.0
            else:
                share = masked.sum(1) / pairs.to(masked.device).free.sum(1)
                at = share[found.row.unique()]
            kept += zip(at.tolist(), margin.tolist(), strict=True)
        return kept

    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        with replacing_directory(run.directory / "model") as part:
            self.head.save(part)
        margin = torch.tensor([margin for _, margin in self.held_out_margins()])
        return {
            "eval_loss": float(-F.logsigmoid(margin).mean()),
            "eval_accuracy": float((margin > 0).float().mean()),
        }

    def state_dict(self) -> dict[str, Any]:
        return {"head": self.head.state_dict(), "updates": self.learner.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state["head"])
