"""SEDD's benchmark: its plain loop samples our law, its loss is ours, and it runs."""

import json

import pytest
import torch

from benchmarks import plain_sedd, sedd
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.scores import ScoreDecoder
from tests.enumerable import random_sedd

TINY = sedd.Shape(width=16, blocks=1, heads=2, condition=8, vocabulary=20, length=32, batch=2)
FLAGS = [word for name, value in vars(TINY).items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("predictor", ["euler", "analytic"])
def test_both_loops_sample_the_same_law(predictor):
    """The counts of 8,000 rows each differ by no more than chance: chi-square of two samples."""
    model, rows = random_sedd(lift=1.0), 8_000
    canvas = torch.full((rows, 3), model.mask_id)
    torch.manual_seed(0)
    dense = plain_sedd.sample(
        lambda tokens, sigma: model.backbone(tokens, sigma).exp(), model.noise, "absorb", predictor, canvas, 3
    )
    ours = ScoreDecoder(predictor).decode(model, Prompts(canvas), DecodeOptions(3)).tokens
    place = 3 ** torch.arange(3)
    first, second = (torch.bincount((tokens * place).sum(1), minlength=27).double() for tokens in (dense, ours))
    assert int(dense.max()) < 3
    statistic = ((first - second) ** 2 / (first + second).clamp(min=1)).sum()
    assert float(statistic) < 60  # 26 degrees of freedom: one in 6,000 is above


def test_both_updates_have_the_same_loss():
    model = sedd.build(TINY).requires_grad_(True)
    rows = sedd.canvases(TINY, 0)
    ours, dense = (float(update(model, rows).detach()) for update in (sedd.our_update, sedd.dense_update))
    assert ours == pytest.approx(dense, rel=1e-4)


def test_it_runs_and_ends_with_json(capsys, monkeypatch):
    # In this process the peak is that of whichever test came before, so that a part may add nothing to it: canned figures.
    peaks = {"sample": 3.0, "dense": 5.0, "body": 1.0, "update": 4.0, "dense_update": 8.0}
    monkeypatch.setattr(sedd, "of_a_fresh_process", lambda shape, part: sedd.memory(shape, part) | {"mib": peaks[part]})
    sedd.main(FLAGS)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result.keys() == {"peak_mib", "dense_peak_mib", "speedup", "update_peak_ratio"}
    assert (result["peak_mib"], result["dense_peak_mib"], result["update_peak_ratio"]) == (3.0, 5.0, 0.5)
    sedd.main(["--memory-of", "update", *FLAGS])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]).keys() == {"mib", "loss"}
