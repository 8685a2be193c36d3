"""The sampling benchmark: its plain loop is an oracle for ours, its counts are those of the closed form, and it runs."""

import json

import pytest
import torch

from benchmarks import plain, sampling
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from model.radd import RADD
from samplers.heuristics import Direct
from samplers.loop import Strategy, sample
from tests.enumerable import dependent_joint, exact_law, fits, from_joint, inconsistent

TINY = sampling.Shape(width=16, blocks=1, heads=2, vocabulary=20, length=32, batch=2, few=4, many=16)
FLAGS = [word for name, value in vars(TINY).items() for word in (f"--{name}", str(value))]
ROWS = 5_000


@pytest.mark.parametrize(
    "model, steps",
    [(from_joint(dependent_joint(3, 3, seed=1)), 3), (inconsistent(3, 4, seed=2), 2)],
    ids=["joint", "not"],
)
def test_both_loops_sample_the_same_law(model, steps):
    canvas = torch.full((ROWS, model.length), model.mask_id)
    law = exact_law(model, "direct", steps)
    torch.manual_seed(0)
    fits(plain.sample(model.log_probs, canvas, steps), law)
    fits(
        sample(
            UnmaskingEnvironment(model, DecodeOptions(steps)), Strategy(Direct(), TokenRule()), Prompts(canvas)
        ).tokens,
        law,
    )


def test_the_plain_loop_keeps_what_is_given_and_leaves_no_mask():
    canvas = sampling.canvases(TINY, batch=5, length=32, eighths=4)
    network = RADD({"tokens": 20, "model": {"hidden_size": 16, "n_heads": 2, "n_blocks": 1, "length": 32}})
    tokens = plain.sample(network, canvas, steps=3)
    given = canvas < 20
    assert (tokens[given] == canvas[given]).all()
    assert tokens.max() < 20


def test_the_count_of_evaluations_is_that_of_the_closed_form():
    """Less those of the first step, which equal rows share."""
    for steps in (4, 32):
        each = 1 - (1 - 1 / steps) ** 32
        counted = sampling.schedule(sampling.Shape(length=32, batch=40), steps)
        assert counted["evals"] == pytest.approx((steps - 1) * each + 1 / 40, rel=0.05)
        assert counted["read"] <= 32


def test_it_runs_and_ends_with_flat_json(capsys, monkeypatch):
    monkeypatch.setattr(sampling, "memory_of_a_fresh_process", sampling.memory)  # a process takes seconds to start
    sampling.main(FLAGS)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == ["speedup_16", "speedup_1024", "peak_mib_batch8", "policy_share"]
    assert all(value > 0 for name, value in result.items() if name != "peak_mib_batch8")


def test_memory_alone(capsys):
    sampling.main(["--memory-only", *FLAGS])
    assert json.loads(capsys.readouterr().out)["peak_mib_batch8"] >= 0
