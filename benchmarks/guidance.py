"""Guided decoding: CPU time per token of Unmask and of the published loops of ARGS and PARGS (benchmarks/plain_guided.py).

    OMP_NUM_THREADS=1 python -m benchmarks.guidance
    OMP_NUM_THREADS=1 python -m benchmarks.guidance --width 96 --layers 2 --heads 4 --vocabulary 2048

The language model is GPT-2-like, and the reward model has the same shape; random weights, one thread, float32, greedy, k = 10.
Unmask and the published loops must generate the same tokens behind the same prompt. PARGS_baselines.py has no cache, so it is
measured at a few lengths that are spread over the decoding. Figures are CPU seconds, including the first pass over the prompt:
medians over repeats in alternation, so that other processes matter little. The command ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks import plain_guided
from dlm.causal_lm import CausalLM
from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from evaluation.report import print_table
from samplers.guided import Guided, HeadValues, Siblings, Values
from samplers.heuristics import Leftmost
from samplers.loop import StepDecoder, Strategy, sample
from samplers.samples import Samples
from samplers.siblings import SiblingCache
from training.ranges import ROWS

BETA, SPREAD = 1.0, 0.05


@dataclass
class Shape:
    """Shape of both models: 6 blocks of width 256. `tokens`: number of tokens to generate behind `prompt`."""

    width: int = 256
    layers: int = 6
    heads: int = 8
    vocabulary: int = 8192
    prompt: int = 192
    tokens: int = 64
    k: int = 10
    batch: int = 8
    repeats: int = 3
    spread: int = 4  # lengths at which PARGS_baselines.py is measured


def build(shape: Shape) -> tuple[CausalLM, Any]:
    """Return a language model and a reward model. The padding id is outside of the vocabulary, because transformers cuts texts
    at it."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"n_embd": shape.width, "n_layer": shape.layers, "n_head": shape.heads,
             "n_positions": shape.prompt + shape.tokens + 1, "bos_token_id": 0, "eos_token_id": 0}  # fmt: skip
    language = GPT2LMHeadModel(GPT2Config(vocab_size=shape.vocabulary, **sizes))
    one: dict[str, Any] = {"num_labels": 1, "pad_token_id": shape.vocabulary, **sizes}
    reward = GPT2ForSequenceClassification(GPT2Config(vocab_size=shape.vocabulary + 1, **one))
    for model in (language, reward):
        for parameter in model.parameters():
            if parameter.ndim > 1:
                nn.init.normal_(parameter, std=SPREAD)
        model.requires_grad_(False).eval()
    return CausalLM(language, 0), reward


def siblings_of(reward: Any) -> Siblings:
    return Siblings(SiblingCache(reward.base_model, lambda states: reward.score(states).squeeze(-1)))


def decode(
    model: CausalLM, decoder: StepDecoder, prompts: Int[Tensor, "row prompt"], tokens: int
) -> tuple[float, Samples]:
    """Decode; return CPU seconds per generated token, including the prompt, and the tokens."""
    canvas = nn.functional.pad(prompts, (0, tokens), value=model.mask_id)
    started = process_time()
    samples = sample(UnmaskingEnvironment(model, DecodeOptions(canvas.shape[1])), decoder, Prompts(canvas))
    return (process_time() - started) / (len(prompts) * tokens), samples


def published(
    model: CausalLM, reward: Any, shape: Shape
) -> dict[str, Callable[[Int[Tensor, "position"], int], Tensor]]:
    """Return the published loops as functions of (a text, number of tokens) that return the generated tokens."""
    lm, own = plain_guided.words(shape.vocabulary, start=0), plain_guided.words(shape.vocabulary)

    def args(text: Int[Tensor, "position"], tokens: int) -> Tensor:
        start = nn.functional.pad(text, (1, 0), value=0).unsqueeze(0)
        return plain_guided.args(model.backbone, reward, start, BETA, shape.k, tokens)[0, -tokens:]

    def pargs(loop: Callable[..., Tensor]) -> Callable[[Int[Tensor, "position"], int], Tensor]:
        return lambda text, tokens: loop(
            model.backbone, lm, reward, own, own.decode(text), BETA, shape.k, tokens
        )[0]  # fmt: skip

    return {
        "ARGS, argsearch.py": args,
        "PARGS, PARGS_generate.py": pargs(plain_guided.pargs_generate),
        "PARGS, PARGS_baselines.py": pargs(plain_guided.pargs_baselines),
    }


def loop_seconds(
    loop: Callable[[Int[Tensor, "position"], int], Tensor], text: Int[Tensor, "position"], shape: Shape, whole: bool
) -> float:
    """Return CPU seconds per token of a loop along `text`, which Unmask generated. whole: all tokens in one decoding;
    otherwise one token at each of `spread` lengths, for a loop without a cache. AssertionError if the loop generates other
    tokens."""
    pieces = [(shape.prompt, shape.tokens)] if whole else [
        (shape.prompt + (2 * number + 1) * shape.tokens // (2 * shape.spread), 1) for number in range(shape.spread)
    ]  # fmt: skip
    seconds = 0.0
    for first, count in pieces:
        started = process_time()
        written = loop(text[:first], count)
        seconds += process_time() - started
        assert torch.equal(written, text[first : first + count]), "the published loop writes other tokens"
    return seconds / sum(count for _, count in pieces)


@torch.no_grad()
def measure(shape: Shape) -> dict[str, float]:
    """Print the table; return the figures."""
    model, reward = build(shape)
    torch.manual_seed(1)
    head = nn.Linear(shape.width, shape.vocabulary)
    prompts = torch.randint(1, shape.vocabulary, (shape.batch, shape.prompt))
    ways: dict[str, Any] = {
        "unguided": lambda: Strategy(Leftmost(), TokenRule()),
        "unguided, top-k": lambda: Strategy(Leftmost(), TokenRule(top_k=shape.k)),
        "value head": lambda: guided(HeadValues(head), shape),
        "siblings": lambda: guided(siblings_of(reward), shape),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    loops, text = published(model, reward, shape), prompts[0]
    for _ in range(shape.repeats):  # ours and theirs by turns
        for name, decoder in ways.items():
            for batch in (1, shape.batch):
                taken, samples = decode(model, decoder(), prompts[:batch], shape.tokens)
                seconds.setdefault((name, batch), []).append(taken)
                text = samples.tokens[0] if name == "siblings" else text
        for name, loop in loops.items():
            taken = loop_seconds(loop, text, shape, whole="baselines" not in name)
            seconds.setdefault((name, 1), []).append(taken)
    found = {key: median(values) for key, values in seconds.items()}
    ours = found["siblings", 1]
    records = [{"way": name, "batch": batch, "ms a token": 1e3 * taken, "over siblings, batch 1": taken / ours}
               for (name, batch), taken in found.items()]  # fmt: skip
    print_table(records, title=f"CPU time a token: k = {shape.k}, {shape.tokens} tokens behind {shape.prompt}")
    return {
        "speedup_args": found["ARGS, argsearch.py", 1] / ours,
        "speedup_pargs_generate": found["PARGS, PARGS_generate.py", 1] / ours,
        "speedup_pargs_baselines": found["PARGS, PARGS_baselines.py", 1] / ours,
        "siblings_batch_ratio": found["siblings", shape.batch] / ours,
        "value_head_ratio": found["value head", 1] / found["unguided", 1],
        "value_head_ratio_batch": found["value head", shape.batch] / found["unguided", shape.batch],
    }


def guided(values: Values, shape: Shape) -> Guided:
    """Return a greedy guided decoder, as ARGS and PARGS-G are."""
    return Guided(Leftmost(), values, BETA, shape.k, 0.0)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=ROWS, default=value)
    torch.set_num_threads(1)
    result = measure(Shape(**vars(parser.parse_args(words))))
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
