"""The written figures, derived again at small size from the shipped weights: their intervals must meet."""

import json
from pathlib import Path

import pytest
import torch

from data.sudoku import blanked, is_solved, make
from dlm.environment import TokenRule, UnmaskingEnvironment
from evaluation.intervals import wilson
from evaluation.text import unigram_entropy
from load_model import load_model
from samplers.loop import Strategy, sample
from samplers.where import Direct, Threshold

ROOT = Path(__file__).parents[1]
RECORDS = json.loads((ROOT / "docs/results/sudoku/sudoku.json").read_text())["records"]


@pytest.mark.parametrize("threshold", [0.7, 0.98])
def test_sudoku_by_threshold(threshold):
    written = next(r for r in RECORDS if r["method"] == "threshold" and r["setting"] == str(threshold))
    model, _ = load_model(ROOT / "example/sudoku6")
    canvas = blanked(make((2, 3), 150, None, seed=4711, split="test"), (2, 3))
    samples = sample(UnmaskingEnvironment(model, 36), Strategy(Threshold(threshold), TokenRule(0.0)), canvas)
    rate = wilson(int(is_solved(samples.tokens, (2, 3)).sum()), len(canvas))
    assert rate.low <= written["high"] and written["low"] <= rate.high
    assert abs(float(samples.evaluations.float().mean()) - written["nfe"]) < 0.5


def test_entropy_of_stories_by_direct():
    lines = (ROOT / "docs/results/stories/stories.jsonl").read_text().splitlines()
    written = next(r for r in map(json.loads, lines) if r["rule"] == "direct")
    model, _ = load_model(ROOT / "example/stories")
    samples = sample(
        UnmaskingEnvironment(model, 16), Strategy(Direct(), TokenRule()), torch.full((8, 256), model.mask_id), 5
    )
    entropy = unigram_entropy(samples.tokens).double()
    error = (float(entropy.std()) ** 2 / 8 + written["entropy_se"] ** 2) ** 0.5
    assert abs(float(entropy.mean()) - written["entropy"]) < 4.5 * error
