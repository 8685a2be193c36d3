"""Decoders that edit: in each step they commit what is sure, and revise what the model no longer predicts.

Sources: LLaDA2.1 2602.08676 and sglang's `JointThreshold` (`python/sglang/srt/dllm/algorithm/joint_threshold.py`); T2M
2604.18738 (mask a doubtful token, do not overwrite it); WINO 2507.18578 (Feng-Hong/WINO-DLLM, `LLaDA/decoding.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from samplers.heuristics import at_least_one, best, by_ties, nothing
from samplers.loop import Reviser
from samplers.revision import log_probs_at

FIRST_PREVIOUS = 30  # positions that WINO counts as committed before a block's first step


@dataclass
class Edit(Reviser):
    """Commit by one threshold, and edit committed tokens by another, from the model's outputs at all positions (LLaDA2.1).

    With v the most probable token of a position and p its probability: an open position is committed if p > threshold, and
    always the most probable one; a committed position gets v if v is not the token shown and p > edit_threshold. A block
    without open positions is edited until nothing changes.

    Args:
        rounds: edit rounds of a block without open positions. With `remask`: steps of a block that open positions again.
        remask: open the position again, in place of writing v (T2M).
    """

    threshold: float | int = 0.5
    edit_threshold: float | int = 0.0
    rounds: int = 16
    remask: bool = False

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        blocks = 1 if options.block_length is None else opened
        fillings = self.rounds + 1 if self.remask else 1  # each opened position is committed again
        return opened * fillings + blocks * self.rounds + 1

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        assert observation.revisable is not None
        writable, revisable = observation.writable, observation.revisable & observation.in_block
        full = ~writable.any(1)
        top = observation.read(writable | revisable, 1)
        likeliest, probability = top.top_tokens[..., 0], top.top_log_probs[..., 0].exp()
        order = at_least_one(probability > self.threshold, probability, observation, draws)
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        used = rounds_used(observation, "edit_rounds")
        edited = revisable & (likeliest != observation.tokens) & (probability > self.edit_threshold)
        edited &= ((used < self.rounds) | (~full & (not self.remask))).unsqueeze(1)
        changed = edited.any(1)
        used = used + (changed if self.remask else full)
        observation.memory["edit_rounds"] = used
        goes_on = changed | ~full if self.edit_threshold < 1 else torch.zeros_like(full)
        unfinished = goes_on & (used < self.rounds)
        if self.remask:
            return Decision(order, tokens, nothing(observation), log_tokens, edited, unfinished)
        tokens = torch.where(edited, likeliest, tokens)
        return Decision(order + edited.long(), tokens, nothing(observation), log_tokens, None, unfinished)


@dataclass
class WINO(Reviser):
    """Commit generously, and open again what the model no longer predicts without seeing it (wide-in, narrow-out).

    Wide-in: open positions whose best token has p > threshold are committed, at most clip(0.7 open, 5, 20) of them, the most
    probable first, and always the most probable one. Narrow-out, in steps that commit more than one position: tokens of earlier
    steps whose probability by the shadow block (`MaskedLM.hidden_shadow`) is below remask_threshold are masked again, fewer
    than the previous step committed (of a block's first step: 30), least probable first. So a block of n positions takes at
    most n steps: after k steps at least (those committed by step k) + k - 1 positions are committed.
    """

    threshold: float | int = 0.6
    remask_threshold: float | int = 0.9

    def most_steps(self, options: DecodeOptions, opened: int) -> int | None:
        return opened + 1

    def revise(self, observation: Observation, draws: Draws) -> Decision:
        environment, writable = observation.environment, observation.writable
        assert observation.revisable is not None and isinstance(environment, UnmaskingEnvironment)
        earlier = observation.revisable & observation.in_block
        shadow = environment.hidden_shadow()
        probability = observation.read(writable, 1).top_log_probs[..., 0].exp()
        sure = writable & (probability > self.threshold)
        most = (writable.sum(1).double() * 0.7).long().clamp(5, 20)
        count = torch.minimum(torch.minimum(sure.sum(1), most).clamp(min=1), writable.sum(1))
        candidates = torch.where(sure.any(1, keepdim=True), sure, writable)
        ties = by_ties(observation, draws)
        order = best(probability, candidates, count, ties)
        tokens, log_tokens = observation.draw(order > 0, self.token_sampler, draws)
        doubt = torch.zeros_like(probability)
        doubt[earlier] = -log_probs_at(environment, shadow[earlier], observation.tokens[earlier]).exp()
        doubtful = earlier & (-doubt < self.remask_threshold) & (count > 1).unsqueeze(1)
        previous = observation.memory.get("committed", torch.zeros_like(count))
        previous = previous.masked_fill(observation.block_step == 0, FIRST_PREVIOUS)
        reopened = best(doubt, doubtful, torch.minimum(doubtful.sum(1), previous - 1), ties) > 0
        observation.memory["committed"] = count
        return Decision(order, tokens, nothing(observation), log_tokens, reopened)


def rounds_used(observation: Observation, name: str) -> Tensor:
    """Return a counter of the current block from the memory of the rows: 0 in a block's first step."""
    return observation.memory.get(name, torch.zeros_like(observation.block_step)).masked_fill(
        observation.block_step == 0, 0
    )
