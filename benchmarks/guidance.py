"""Guided decoding: CPU time a token against the plain loop (benchmarks/plain_guided.py); the value head against no guidance.

    OMP_NUM_THREADS=1 python -m benchmarks.guidance

A GPT-2-like language model and a reward model of the same shape, random weights, one thread, float32, greedy ARGS with k = 10.
The plain loop reads the whole text k times a token, batch 1, and runs the language model without a cache; it is measured at a few
lengths spread over the decoding, since its cost grows with the text. Scores must agree to 1e-4 and tokens be equal there. Ours
counts the first reading of the prompt. CPU seconds, medians over repeats that go by turns, so that other processes matter little.
Ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass
from statistics import mean, median
from time import process_time
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel

from benchmarks import plain_guided
from dlm.causal_lm import CausalLM
from dlm.environment import UnmaskingEnvironment
from dlm.token_rule import TokenRule
from evaluation.report import print_table
from samplers.guided import Canvases, Guided, HeadValues, Siblings, Values
from samplers.loop import Decoder, Strategy, sample
from samplers.samples import Samples
from samplers.siblings import SiblingCache
from samplers.where import Leftmost

BETA, SPREAD = 1.0, 0.05


@dataclass
class Shape:
    """6 blocks of width 256; `tokens` are written behind `prompt`."""

    width: int = 256
    layers: int = 6
    heads: int = 8
    vocabulary: int = 8192
    prompt: int = 192
    tokens: int = 64
    k: int = 10
    batch: int = 8
    repeats: int = 3
    spread: int = 4  # lengths at which the plain loop is measured


class Plain:
    """The reward model as `Canvases` takes it."""

    kind = "full"

    def __init__(self, model: Any):
        self.model = model

    def score(self, tokens: Tensor, real: Tensor | None = None) -> Tensor:
        """Of texts of one length."""
        return self.model(input_ids=tokens, use_cache=False).logits[:, 0]


def build(shape: Shape) -> tuple[CausalLM, Any]:
    """A language model and a reward model. The padding id is past the tokens: transformers cuts texts at it."""
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


def decode(model: CausalLM, decoder: Decoder, prompts: Int[Tensor, "row prompt"], tokens: int) -> tuple[float, Samples]:
    """CPU seconds a token that is written, prompts included, and what was written."""
    canvas = nn.functional.pad(prompts, (0, tokens), value=model.mask_id)
    started = process_time()
    samples = sample(UnmaskingEnvironment(model, canvas.shape[1]), decoder, canvas)
    return (process_time() - started) / (len(prompts) * tokens), samples


def plain_seconds(
    model: CausalLM, reward: Any, text: Int[Tensor, "position"], shape: Shape
) -> tuple[float, float, bool]:
    """Of the plain loop along a text that was written: CPU seconds a token, the largest difference of a score from ours at the
    same place, and whether the tokens are the same."""
    whole = nn.functional.pad(text, (1, 0), value=0)
    score = lambda tokens: reward(input_ids=tokens[:, 1:], use_cache=False).logits.item()  # noqa: E731
    seconds, difference, same = [], 0.0, True
    for number in range(shape.spread):
        at = shape.prompt + (2 * number + 1) * shape.tokens // (2 * shape.spread)
        started = process_time()
        best, found = plain_guided.step(model.backbone, score, whole[: at + 1], shape.k, BETA)
        seconds.append(process_time() - started)
        ours = siblings_of(reward)(observed(model, text[:at]), torch.tensor([0]), torch.tensor([at]), best.unsqueeze(0))
        log_probs = found - BETA * torch.tensor(
            [score(torch.cat((whole[: at + 1], t.view(1))).unsqueeze(0)) for t in best]
        )
        difference = max(difference, float((log_probs + BETA * ours[0] - found).abs().max()))
        same &= bool(best[found.argmax()] == text[at])
    return mean(seconds), difference, same


def observed(model: CausalLM, text: Int[Tensor, "position"]):
    """The observation whose next position is to be written."""
    canvas = nn.functional.pad(text, (0, 1), value=model.mask_id).unsqueeze(0)
    return UnmaskingEnvironment(model, canvas.shape[1]).reset(canvas)


@torch.no_grad()
def measure(shape: Shape) -> dict[str, float]:
    """Print the table; the figures."""
    model, reward = build(shape)
    torch.manual_seed(1)
    head = nn.Linear(shape.width, shape.vocabulary)
    prompts = torch.randint(1, shape.vocabulary, (shape.batch, shape.prompt))
    ways: dict[str, Any] = {
        "unguided": lambda: Strategy(Leftmost(), TokenRule()),
        "unguided, top-k": lambda: Strategy(Leftmost(), TokenRule(top_k=shape.k)),
        "value head": lambda: guided(HeadValues(head), shape),
        "siblings": lambda: guided(siblings_of(reward), shape),
        "k rows in one batch": lambda: guided(Canvases(Plain(reward)), shape),
    }
    seconds: dict[tuple[str, int], list[float]] = {}
    plain, texts = [], prompts
    for _ in range(shape.repeats):
        for name, decoder in ways.items():
            for batch in (1, shape.batch):
                slow = name == "k rows in one batch"  # as slow as the plain loop: once, and a few tokens of it
                if slow and (batch > 1 or (name, batch) in seconds):
                    continue
                taken, samples = decode(model, decoder(), prompts[:batch], shape.spread if slow else shape.tokens)
                seconds.setdefault((name, batch), []).append(taken)
                texts = samples.tokens if name == "siblings" and batch == 1 else texts
        plain.append(plain_seconds(model, reward, texts[0], shape))
    assert all(same for *_, same in plain), "the plain loop writes other tokens"
    difference = max(found for _, found, _ in plain)
    assert difference < 1e-4, f"scores differ from the plain loop's by {difference}"
    found = {key: median(values) for key, values in seconds.items()}
    loop = median(taken for taken, *_ in plain)
    records = [{"way": "plain loop", "batch": 1, "ms a token": 1e3 * loop, "speedup": 1.0}]
    records += [{"way": name, "batch": batch, "ms a token": 1e3 * taken, "speedup": loop / taken}
                for (name, batch), taken in found.items()]  # fmt: skip
    print_table(records, title=f"CPU time a token: k = {shape.k}, {shape.tokens} tokens behind {shape.prompt}")
    return {
        "speedup_guided": loop / found["siblings", 1],
        "speedup_guided_batch": loop / found["siblings", shape.batch],
        "value_head_ratio": found["value head", 1] / found["unguided", 1],
        "value_head_ratio_batch": found["value head", shape.batch] / found["unguided", shape.batch],
        "score_difference": difference,
    }


def guided(values: Values, shape: Shape) -> Guided:
    """Greedy, as ARGS and PARGS-G are."""
    return Guided(Leftmost(), values, BETA, shape.k, 0.0)


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    torch.set_num_threads(1)
    result = measure(Shape(**vars(parser.parse_args(words))))
    print(json.dumps({name: float(f"{value:.4g}") for name, value in result.items()}))


if __name__ == "__main__":
    main()
