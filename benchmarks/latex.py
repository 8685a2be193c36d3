"""Formulas before and after reinforcement learning: validity, structure, diversity, length, and KL to the model before.

    python -m benchmarks.latex --models SFT=example/latex_sft RL=example/latex_rl RL=RUN/model RL=RUN/model published=RUN/model
    python -m benchmarks.latex --models SFT=RUN/model --steps 64 16

`row` of data/formulas.py draws held-out questions from a separate seed, so that no model has seen them. Each model answers them
--seeds times at temperature 1. With --steps 64, the number of positions, it decodes from left to right, one token per step; with
fewer steps in random order, several tokens per step. Models of one name are training seeds of one method. The first model is the
reference. KL is the mean, over a model's own answers, of the difference of both models' log-probabilities of the drawn tokens, in
nats per answer. Positions do not depend on the model, so it is the KL between the two samplers (left to right only). Intervals
are 95 %: Wilson's for validity. The command writes --out DIR/latex.json, prints a table, and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from data.answers import encode_pairs
from data.formulas import is_held_out, row
from dlm.draws import Draws
from dlm.ends import end_tokens
from dlm.environment import UnmaskingEnvironment
from dlm.likelihood import ReplayedTrajectory, log_likelihood
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from evaluation.intervals import wilson
from evaluation.latex import formula_measures
from evaluation.report import print_table, write_json
from load_model import load_model
from samplers.heuristics import Leftmost, Random
from samplers.loop import Strategy, sample
from samplers.samples import Samples
from training.ranges import ROWS

SEED = 77  # of the questions: the corpora are made with other ones
SHOWN = ("validity", "brackets", "complex", "distinct", "skeletons", "length")


def questions(count: int, model: MaskedLM, length: int, seed: int = SEED) -> Int[Tensor, "row position"]:
    """Return canvases of held-out questions, without those whose own answer would not fit."""
    assert model.tokenizer is not None
    pairs, number = [], 0
    while len(pairs) < 2 * count:
        made, _ = row(seed, number, 0.0)
        pairs += [(made["question"], made["answer"])] if is_held_out(made["question"]) else []
        number += 1
    tokens, given, _ = encode_pairs(pairs, model.tokenizer, length, model.tokenizer.eos_token_id, False)
    blank = torch.arange(length) >= given.unsqueeze(1)
    return tokens.masked_fill(blank, model.mask_id)[:count]


@torch.no_grad()
def answered(model: MaskedLM, canvas: Int[Tensor, "row position"], steps: int, seed: int) -> tuple[Samples, list[str]]:
    """Return answers at temperature 1, and their texts up to the end of text."""
    assert model.tokenizer is not None
    order = Leftmost() if steps == canvas.shape[1] else Random()
    environment = UnmaskingEnvironment(model, DecodeOptions(steps, ends=end_tokens(model.tokenizer)))
    samples = sample(environment, Strategy(order, TokenRule(1.0)), Prompts(canvas), seed)
    return samples, samples.answers(model.tokenizer)


def distinct_trigrams(texts: list[str]) -> float:
    """Return the number of different runs of three characters, divided by their number."""
    grams = [text[place : place + 3] for text in texts for place in range(len(text) - 2)]
    return len(set(grams)) / max(1, len(grams))


@torch.no_grad()
def kl(model: MaskedLM, reference: MaskedLM, samples: Samples) -> float:
    """Return the KL between the two samplers in nats per answer, over answers of `model`."""
    estimator, free = ReplayedTrajectory(), ~samples.prompt
    views = estimator.views(free, Draws(0), samples.unmasked_at)
    ours, theirs = (log_likelihood(m, estimator, samples.tokens, views, 256).sum(1) for m in (model, reference))
    return float((ours - theirs).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", default=["SFT=example/latex_sft", "RL=example/latex_rl"], metavar="NAME=PATH"
    )
    parser.add_argument("--prompts", type=ROWS, default=512)
    parser.add_argument("--seeds", type=ROWS, default=3, help="of sampling")
    parser.add_argument("--steps", type=ROWS, nargs="+", default=[64, 16])
    parser.add_argument("--out", default="docs/results/latex")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    named = [entry.partition("=")[::2] for entry in arguments.models]
    loaded = [(name, load_model(path)[0]) for name, path in named]
    reference = loaded[0][1]
    canvas = questions(arguments.prompts, reference, reference.max_length)
    records, examples = [], []
    for steps in arguments.steps:
        for number, (name, model) in enumerate(loaded):
            runs = [answered(model, canvas, steps, seed) for seed in range(arguments.seeds)]
            measures = [formula_measures(texts) for _, texts in runs]
            mean = {key: sum(measure[key] for measure in measures) / len(measures) for key in SHOWN}
            answers = len(canvas) * len(runs)
            rate = wilson(round(mean["validity"] * answers), answers)
            records.append({
                "model": name, "training_seed": sum(other == name for other, _ in named[:number]), "steps": steps,
                **mean, "low": rate.low, "high": rate.high,
                "distinct_3": sum(distinct_trigrams(texts) for _, texts in runs) / len(runs),
                "kl": None if steps < canvas.shape[1] else kl(model, reference, runs[0][0]),
            })  # fmt: skip
            examples += [{"model": name, "steps": steps, "text": text} for text in runs[0][1][:20]]
    print_table(records, title=f"{arguments.prompts} held-out questions, {arguments.seeds} sampling seeds")
    flat = {}
    for name in dict.fromkeys(name for name, _ in named):
        own = [record for record in records if record["model"] == name and record["steps"] == arguments.steps[0]]
        flat |= {f"{name}_{key}": round(sum(r[key] for r in own) / len(own), 4) for key in (*SHOWN, "distinct_3")}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    write_json({"result": flat, "records": records, "examples": examples}, out / "latex.json")
    print(json.dumps(flat))


if __name__ == "__main__":
    main()
