"""run_perplexity.py: a record is JSON whatever the figures are."""

import json
import math
from argparse import Namespace

import pytest
import torch

import run_perplexity

ARGUMENTS = {"model": "example/stories", "data": ["stories"], "split": "valid", "rows": 2, "length": 16, "noises": 2,
             "batch_size": 2, "seed": 0, "device": "cpu", "cache_dir": None}  # fmt: skip


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([2.0, 4.0], {"nats_per_token": 3.0, "perplexity": math.exp(3.0), "standard_error": 1.0}),
        ([math.nan, 1.0], {"nats_per_token": None, "perplexity": None, "standard_error": None}),
        ([math.inf, 1.0], {"nats_per_token": None, "perplexity": None, "standard_error": None}),
        ([800.0, 800.0], {"nats_per_token": 800.0, "perplexity": None, "standard_error": 0.0}),
    ],
)
def test_what_is_not_finite_is_null(values, expected, monkeypatch, capsys):
    monkeypatch.setattr(run_perplexity, "nats_per_token", lambda *arguments: torch.tensor(values))
    run_perplexity.main(Namespace(**ARGUMENTS))

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    record = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert {key: record[key] for key in expected} == pytest.approx(expected)


def test_it_scores_text(capsys):
    run_perplexity.main(Namespace(**ARGUMENTS))
    record = json.loads(capsys.readouterr().out)
    assert record["rows"] == 2 and 1 < record["perplexity"] < 1e4 and record["standard_error"] > 0
