"""Measures of a set of samples: quality, cost, and the machine."""

from __future__ import annotations

import importlib.util
import math
import os
import platform
import sys

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from evaluation.aup import tokens_per_forward
from evaluation.intervals import wilson
from evaluation.text import Judge, summarise
from rewards.measures import distinct_n, unigram_entropy
from rewards.sudoku import Box, is_solved
from samplers.samples import Samples


def quality(
    tokens: Int[Tensor, "row position"],
    texts: list[str],
    judge: Judge | None,
    tokenizer=None,
    counted: Bool[Tensor, "row position"] | None = None,
) -> dict[str, float | int | str | None]:
    """Return generative perplexity (None without a judge), entropy of each sample in nats, and distinct-n of the set.

    Args:
        counted: tokens that belong to the samples (`Samples.counted`; None: all).
    """
    if judge is not None and tokens.shape[1] >= 3:
        return finite(summarise(tokens, texts, judge, tokenizer, counted=counted))
    distinct = {f"distinct_{n}": distinct_n(tokens, n, counted) if tokens.shape[1] >= n else None for n in (1, 2, 3)}
    entropy = unigram_entropy(tokens, counted).mean().item()
    return finite({"gen_ppl": None, "judge": None, "entropy": entropy, **distinct})


def solved(boards: Int[Tensor, "row cell"], box: Box) -> dict[str, float]:
    """Return the share of solved boards, with its 95% Wilson interval."""
    rate, low, high = wilson(int(is_solved(boards, box).sum()), len(boards))
    return {"solve_rate": rate, "solve_rate_low": low, "solve_rate_high": high}


def cost(batches: list[Samples]) -> dict[str, float | int | None]:
    """Return the cost of all batches.

    nfe: mean network evaluations per sample; tpf, tpf_low, tpf_high: tokens of the responses per network evaluation, with a 95 %
    bootstrap interval over samples (None without evaluations); forwards: model calls; seconds, cpu_seconds: of decoding.
    """
    seconds = sum(batch.seconds for batch in batches)
    generated = sum(int(batch.generated.sum()) for batch in batches)
    evaluations = torch.cat([batch.evaluations for batch in batches]).double()
    tokens = torch.cat([batch.answer.sum(1) for batch in batches])
    tpf = tokens_per_forward(tokens.cpu().numpy(), evaluations.cpu().numpy())
    return {
        "nfe": evaluations.mean().item(),
        **finite({"tpf": tpf.value, "tpf_low": tpf.low, "tpf_high": tpf.high}),
        "forwards": sum(batch.forwards for batch in batches),
        "generated": generated,
        "seconds": seconds,
        "cpu_seconds": sum(batch.cpu_seconds for batch in batches),
        "tokens_per_second": generated / seconds,
    }


def peak_memory_mib(device: torch.device) -> float | None:
    """Return the peak memory: of tensors on CUDA, of the whole process so far on a CPU (None on Windows)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    if importlib.util.find_spec("resource") is None:
        return None
    import resource  # POSIX alone has it

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def machine(device: torch.device) -> dict[str, str | int]:
    """Return the properties of the machine that figures of speed depend on."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "device": name,
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
    }


def finite(record: dict) -> dict:
    """Replace numbers that are not finite by None, because JSON has none."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()}
