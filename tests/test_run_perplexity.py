"""unmask perplexity: a record is JSON whatever the figures are."""

import json
import math
from argparse import Namespace

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from unmask.runs import perplexity as perplexity_run

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
    monkeypatch.setattr(perplexity_run, "nats_per_token", lambda *arguments: torch.tensor(values))
    perplexity_run.run(Namespace(**ARGUMENTS))

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    record = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert {key: record[key] for key in expected} == pytest.approx(expected)


def test_it_scores_text(capsys):
    perplexity_run.run(Namespace(**ARGUMENTS))
    record = json.loads(capsys.readouterr().out)
    assert record["rows"] == 2 and 1 < record["perplexity"] < 1e4 and record["standard_error"] > 0


def test_text_that_the_tokenizer_cannot_write_is_refused_and_any_other_language_is_not():
    names = ["<unk>", "</s>", *"ACDEFGHIKLMNPQRSTVWY"]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(Regex(""), "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    proteins = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    perplexity_run.check_writable(proteins, ["MKVLAAGIVG", "MSTNPKPQRK"] * 20 + ["MXX"], "proteins", "data")
    with pytest.raises(ValueError, match="the tokenizer of proteins has no token for 'Once' of story"):
        perplexity_run.check_writable(proteins, ["Once upon a time"], "proteins", "story")
    with pytest.raises(ValueError, match="the tokenizer of example/chain has no token for"):
        perplexity_run.run(Namespace(**ARGUMENTS | {"model": "example/chain"}))
    with pytest.raises(ValueError, match="is no model of text"):
        perplexity_run.run(Namespace(**ARGUMENTS | {"model": "example/sudoku6"}))


def test_what_an_exact_perplexity_does_not_draw_is_refused(capsys):
    causal = ARGUMENTS | {"model": "example/stories_causal"}
    with pytest.raises(
        ValueError, match="--noises, --seed would do nothing with example/stories_causal, whose perplexity is exact"
    ):
        perplexity_run.run(Namespace(**causal))
    perplexity_run.run(Namespace(**causal | {"noises": None, "seed": None}))
    assert json.loads(capsys.readouterr().out)["noises"] is None
