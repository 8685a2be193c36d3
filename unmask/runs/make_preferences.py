"""The work of `make-preferences`: sample continuations, rank them by a reward, write the pairs."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import torch

from data.text import load_texts
from dlm.canvas import canvas_of
from dlm.ends import end_tokens
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from load_model import load_model
from rewards.models import TextReward, load_reward
from samplers.settings import SamplerSettings
from training.devices import device_of
from training.files import check_place, make_directory, write_text
from training.hub import shipped
from unmask.decoders import build_step_decoder

SPLITS = {"train": 0.6, "judge": 0.3, "valid": 0.1}  # shares of the prompts


def prompts_of(texts: str, words: int, count: int, seed: int) -> list[str]:
    """Return the first `words` words of `count` different texts, drawn by `seed`. words=0: return `count` empty prompts."""
    if words == 0:
        return [""] * count
    beginnings = {" ".join(text.split()[:words]): None for text in load_texts(texts, "train")["text"]}
    known = list(beginnings)
    if len(known) < count:
        raise ValueError(
            f"{texts} has {len(known)} different beginnings of {words} words and --count is {count}; lower it"
        )
    order = torch.randperm(len(known), generator=torch.Generator().manual_seed(seed))[:count]
    return [known[number] for number in order.tolist()]


@dataclass(frozen=True)
class Continuation:
    """A generated text. ends: whether the text reached its end before the canvas was full."""

    text: str
    ends: bool
    score: float = 0.0


def continuations(model: MaskedLM, prompts: list[str], options: argparse.Namespace) -> list[Continuation]:
    """Generate `--samples` continuations of each prompt, prompt by prompt, on canvases of --length."""
    settings = SamplerSettings(strategy=options.strategy, temperature=options.temperature, top_p=options.top_p)
    strategy = build_step_decoder(settings, model)
    steps = options.length if model.causal else options.steps
    decoding = DecodeOptions(steps, ends=end_tokens(model.tokenizer))
    canvases = torch.stack([canvas_of(model, prompt or None, length=options.length) for prompt in prompts])
    canvases = canvases.repeat_interleave(options.samples, 0).to(options.device)
    rows = torch.arange(len(canvases), device=canvases.device)
    found: list[Continuation] = []
    for part in rows.split(options.batch):
        samples = strategy.decode(model, Prompts(canvases[part]), decoding, options.seed, part)
        found += map(Continuation, samples.answers(model.tokenizer), samples.ended.tolist())
        print(f"{len(found)} of {len(rows)} continuations", flush=True)
    return found


def ranked(prompt: str, found: list[Continuation], dropped: Counter[str]) -> list[dict[str, Any]]:
    """Pair the best continuation with the worst, the second best with the second worst, and so on."""
    order = sorted(found, key=lambda continuation: -continuation.score)
    pairs = []
    for best, worst in zip(order[: len(order) // 2], reversed(order), strict=False):
        if best.text.strip() == worst.text.strip():
            dropped["identical"] += 1
        elif best.score == worst.score:
            dropped["tied"] += 1
        else:
            sides = (("chosen", best), ("rejected", worst))
            scores = {f"{name}_score": side.score for name, side in sides}
            ends = {f"{name}_ends": side.ends for name, side in sides}
            pairs.append({"prompt": prompt, **{name: side.text for name, side in sides}, **scores, **ends})
    return pairs


def make_preferences(options: argparse.Namespace) -> dict[str, int]:
    """Write the files; return the number of pairs of each file and of dropped pairs."""
    check_place(options.out, f"--out {options.out}")
    prompts = prompts_of(options.texts, options.words, options.count, options.seed)
    reward = load_reward(options.prefer, options.device)
    assert isinstance(reward, TextReward)  # as all that load_reward gives are
    model, _ = load_model(shipped(options.model), options.device)
    if not end_tokens(model.tokenizer):
        raise ValueError(f"--model {options.model} writes no texts that end; give a language model with its tokenizer")
    found = continuations(model, prompts, options)
    repeated = [prompt for prompt in prompts for _ in range(options.samples)]
    scores = reward.score_texts(repeated, [continuation.text for continuation in found]).tolist()
    found = [replace(continuation, score=score) for continuation, score in zip(found, scores, strict=True)]
    make_directory(options.out, f"--out {options.out}")
    dropped: Counter[str] = Counter()
    counts, first, ends = {}, 0, torch.tensor(list(SPLITS.values())).cumsum(0) * len(prompts)
    for name, end in zip(SPLITS, ends.round().int().tolist(), strict=True):
        pairs = []
        for number in range(first, end):
            own = found[number * options.samples : (number + 1) * options.samples]
            pairs += ranked(prompts[number], own, dropped)
        lines = "".join(json.dumps(pair, ensure_ascii=False) + "\n" for pair in pairs)
        write_text(options.out / f"{name}.jsonl", lines)
        counts[name], first = len(pairs), end
    return {**counts, **{f"dropped_{reason}": number for reason, number in dropped.items()}}


def run(options: argparse.Namespace) -> dict[str, int]:
    """Write the preferences, and print how many; returns the counts."""
    options.device = device_of(options.device)
    counts = make_preferences(options)
    print(", ".join(f"{name} {number}" for name, number in counts.items()) + f" pairs in {options.out}")
    return counts
