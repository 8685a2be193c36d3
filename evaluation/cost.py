"""The cost of decoding in floating-point operations of everything that runs, beside the number of network evaluations.

NFE counts evaluations of the frozen model only. Policies, reward models and heads also run, and an evaluation with few
requested positions is cheaper than a whole one. *Equivalent evaluations* use one unit: the FLOP of the decoding over the
FLOP of one evaluation of the model on a whole row with its head at every position. Matrix products and attention are
counted (`torch.utils.flop_counter`), in every module and on every device; element-wise operations are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from dlm.masked_lm import MaskedLM
from dlm.prompts import Prompts

T = TypeVar("T")
# Rows whose decoding is counted: enough for a mean, few enough to cost little. Of long rows, which vary less, fewer are counted.
COUNTED_ROWS, COUNTED_POSITIONS = 16, 1024


def _sdpa_on_cpu(query, key, value, *arguments, out_shape=None, **settings) -> int:
    return sdpa_flop_count(query, key, value)


# The fused attention of the CPU, which torch's own table lacks.
CPU_ATTENTION = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _sdpa_on_cpu}


def flop_of(work: Callable[[], T]) -> tuple[T, int]:
    """Run `work` and count its floating-point operations (a multiplication and an addition are two). Counting slows it down."""
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
        result = work()
    return result, counter.get_total_flops()


@torch.no_grad()
def evaluation_flop(model: MaskedLM, length: int) -> int:
    """Return the FLOP of one evaluation of `model` on one row of `length` positions, with the head at every position."""
    device = model.device
    canvas = torch.full((1, length), model.mask_id, device=device)
    return flop_of(lambda: model.head(model.hidden(canvas, torch.ones_like(canvas, dtype=torch.bool))))[1]


def equivalent_evaluations(
    model: MaskedLM,
    decode: Callable[[Prompts], object],
    prompts: Prompts,
) -> float:
    """Return the mean equivalent evaluations of a row: the FLOP of its decoding, in evaluations of the model.

    `decode` runs again on up to COUNTED_ROWS of the prompts, evenly spaced. Its FLOP are divided by those of one evaluation
    of each of these rows.

    Args:
        decode: the decoding to count (the random draws of a row may differ from those of the whole batch).
    """
    canvas, start = prompts.canvas, prompts.start
    count = min(len(canvas), COUNTED_ROWS, max(2, COUNTED_POSITIONS // canvas.shape[1]))
    rows = torch.linspace(0, len(canvas) - 1, count).round().long().to(canvas.device)
    _, flop = flop_of(lambda: decode(prompts.take(rows)))
    lengths = [canvas.shape[1]] * len(rows) if start is None else (canvas.shape[1] - start[rows]).tolist()
    one = {length: evaluation_flop(model, length) for length in set(lengths)}
    return flop / sum(one[length] for length in lengths)
