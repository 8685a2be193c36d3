"""The work of `perplexity`: the bound on -log p of held-out text, per token."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import torch

from data.rows import end_of_text
from data.text import load_texts, pack
from dlm.causal_lm import CausalLM, sequence_log_prob
from dlm.encoding import unwritable
from dlm.masked_lm import MaskedLM
from dlm.pretrain import row_bounds
from evaluation.metrics import finite
from evaluation.names import NOISES
from load_model import load_model
from training.devices import check_device
from training.files import check_cache
from training.hub import shipped

READ = 100  # texts of a data set that are tried before the model runs


@torch.no_grad()
def nats_per_token(model: MaskedLM, rows: torch.Tensor, noises: int, batch: int, seed: int) -> torch.Tensor:
    """Return one estimate of -log p(row) / length for each row."""
    if isinstance(model, CausalLM):
        return -sequence_log_prob(model, rows, batch).mean(1)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([row_bounds(model, part, noises, generator) for part in rows.split(batch)])


def exp(nats: float) -> float:
    """Return math.exp, or infinity if the value exceeds the range of a double."""
    return math.exp(nats) if nats < 709.0 else nats * math.inf


def check_writable(tokenizer: Any, texts: list[str], model: str, name: str) -> None:
    """Refuse text whose characters the model's tokenizer drops (text of another language, for example): fewer tokens would be
    scored. ValueError names the first such text if more than one text in ten is affected."""
    lost = [word for text in texts if (word := unwritable(tokenizer, text))]
    if len(lost) * 10 > len(texts):
        raise ValueError(
            f"the tokenizer of {model} has no token for {lost[0][:20]!r} of {name}, nor for words of {len(lost)} of the first "
            f"{len(texts)} texts; give the language that the model was trained on"
        )


def run(arguments: argparse.Namespace) -> None:
    """Print the perplexity bound of a model on a data set."""
    check_device(arguments.device)
    check_cache(arguments.cache_dir, f"--cache_dir {arguments.cache_dir}")
    device = ("cuda" if torch.cuda.is_available() else "cpu") if arguments.device == "auto" else arguments.device
    model, _ = load_model(shipped(arguments.model), device)
    if model.causal and (idle := [f"--{key}" for key in ("noises", "seed") if getattr(arguments, key) is not None]):
        raise ValueError(
            f"{', '.join(idle)} would do nothing with {arguments.model}, whose perplexity is exact; leave it out"
        )
    noises = arguments.noises or NOISES
    if model.tokenizer is None:
        raise ValueError(
            f"the tokenizer of {arguments.model} cannot be loaded, so no text can be read; add tokenizer.json"
        )
    if model.tokenizer.eos_token_id is None:
        raise ValueError(f"{arguments.model} is no model of text (puzzles); give one whose texts end")
    for name in arguments.data:
        texts = load_texts(name, arguments.split, arguments.cache_dir)
        check_writable(model.tokenizer, texts["text"][:READ], arguments.model, name)
        rows = pack(texts, model.tokenizer, arguments.length or model.max_length, end_of_text(model.tokenizer))
        values = nats_per_token(
            model, rows[: arguments.rows].to(device), noises, arguments.batch_size, arguments.seed or 0
        )
        mean, error = float(values.mean()), float(values.std() / math.sqrt(len(values)))
        record = {
            "data": name, "split": arguments.split, "rows": len(values), "perplexity": exp(mean),
            "nats_per_token": mean, "standard_error": error, "noises": None if model.causal else noises,
        }  # fmt: skip
        print(json.dumps(finite(record), allow_nan=False))
