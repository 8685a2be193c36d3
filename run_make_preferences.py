"""Make preference pairs whose truth is known: continuations of plain prompts by a language model, ranked by a reward.

    python run_make_preferences.py --prefer vader --out output/preferences
    python run_make_preferences.py --model smollm2 --prefer brevity --count 200 --out output/short

A prompt is the beginning of a story; the model (causal or masked) writes `--samples` continuations of it, of which the best is
preferred to the worst, the second best to the second worst, and so on. Pairs of equal texts, or scores, are dropped and
counted. DIR/train.jsonl, judge.jsonl (for a held-out judge) and valid.jsonl are of different prompts; a line of JSON each:
{"prompt", "chosen", "rejected", and of both _score, and _ends: whether it came to its end}. The same command writes the same.
"""

from __future__ import annotations

if __name__ == "__main__":
    from training.interrupt import end_in_one_line

    end_in_one_line()  # before the imports below, which take seconds

import argparse
import json
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
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
from training.files import check_place, make_directory, write_text
from training.hub import shipped
from training.ranges import ROWS, Number, Whole
from training.usage import device_of, exit_on_bad_input
from unmask.decoders import build_rule_decoder

SPLITS = {"train": 0.6, "judge": 0.3, "valid": 0.1}  # shares of the prompts


def prompts_of(texts: str, words: int, count: int, seed: int) -> list[str]:
    """The first `words` words of `count` different texts, drawn by `seed`. words=0: no prompt, so many times."""
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
    """ends: whether the text came to its end before the canvas was full."""

    text: str
    ends: bool
    score: float = 0.0


def continuations(model: MaskedLM, prompts: list[str], options: argparse.Namespace) -> list[Continuation]:
    """`--samples` for each prompt, one prompt after the other, all on canvases of --length."""
    settings = SamplerSettings(strategy=options.strategy, temperature=options.temperature, top_p=options.top_p)
    strategy = build_rule_decoder(settings, model)
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
    """Best against worst, second best against second worst, and so on."""
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
    """Write the files; returns how many pairs each has, and how many were dropped."""
    check_place(options.out, f"--out {options.out}")
    prompts = prompts_of(options.texts, options.words, options.count, options.seed)
    reward = load_reward(options.prefer, options.device)
    assert isinstance(reward, TextReward)  # as all that load_reward gives are
    model, _ = load_model(shipped(options.model), options.device)
    if not end_tokens(model.tokenizer):
        raise ValueError(f"--model {options.model} writes no texts that end; give a language model with its tokenizer")
    found = continuations(model, prompts, options)
    asked = [prompt for prompt in prompts for _ in range(options.samples)]
    scores = reward.score_texts(asked, [continuation.text for continuation in found]).tolist()
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


def main(argv: list[str]) -> dict[str, int]:
    """Write the preferences that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="a directory")
    parser.add_argument(
        "--prefer", default="vader", help="vader, profanity, brevity, or any reward of rewards/models.py"
    )
    parser.add_argument(
        "--model", default="example/stories_causal", help="smollm2, a hub id or a directory; causal or masked"
    )
    parser.add_argument(
        "--texts", default="stories", help="whose beginnings are the prompts: stories, or a file of texts"
    )
    parser.add_argument("--words", type=Whole(0), default=4, help="of a prompt; 0: texts without a prompt")
    parser.add_argument("--count", type=Whole(), default=500, help="prompts")
    parser.add_argument("--samples", type=Whole(2, 1_000_000), default=4, help="continuations of each")
    parser.add_argument("--length", type=ROWS, default=64, help="tokens of prompt and continuation together")
    parser.add_argument("--strategy", default=None, help="of a masked model: any rule of run_sample.py")
    parser.add_argument("--steps", type=ROWS, default=32, help="of a masked model")
    parser.add_argument("--temperature", type=Number(0, 1e6), default=1.0)
    parser.add_argument("--top_p", type=Number(0, 1, open_low=True), default=1.0)
    parser.add_argument("--batch", type=ROWS, default=128)
    parser.add_argument("--seed", type=Whole(0, 2**63 - 1), default=0)
    parser.add_argument("--device", default="auto")
    options = parser.parse_args(argv)
    options.device = device_of(options.device)
    counts = make_preferences(options)
    print(", ".join(f"{name} {number}" for name, number in counts.items()) + f" pairs in {options.out}")
    return counts


if __name__ == "__main__":
    with exit_on_bad_input():
        main(sys.argv[1:])
