"""train-dlm on a user's own text: a part of it is held out, and the schedule fits the length of the run."""

import json

import pytest

from training.usage import composed
from unmask.build import read_settings
from unmask.runs import train_dlm
from unmask.settings import DLMTrainingSettings


@pytest.fixture
def own(tmp_path):
    file = tmp_path / "own.jsonl"
    file.write_text("".join(json.dumps({"text": f"The {word} sat there."}) + "\n" for word in "abcdefghijklmnopqrst"))
    return file


def prepared(*words: str):
    overrides = list(words)
    return train_dlm.with_own_data(train_dlm.with_scale_of_run(composed("train_dlm", overrides)), overrides)


@pytest.mark.parametrize(("n_iters", "warmup", "ema"), [(1, 0, 0.0), (2000, 100, 0.999), (400_000, 2500, 0.9999)])
def test_warm_up_and_average_fit_the_length_of_the_run(n_iters, warmup, ema):
    config = prepared(f"training.n_iters={n_iters}")
    assert config.optim.warmup == warmup and config.training.ema == pytest.approx(ema)


def test_what_is_given_stays():
    config = prepared("experiment=stories")
    assert (config.optim.warmup, config.training.ema, config.data.valid) == (100, 0.999, "stories")


def test_a_warm_up_that_the_run_does_not_outlast_is_refused():
    words = ["training.n_iters=100", "optim.warmup=100"]
    with pytest.raises(ValueError, match="optim.warmup=100 must be below the 100 updates of training.n_iters=100"):
        train_dlm.run(composed("train_dlm", words), words)


def test_held_out_text_is_a_part_of_the_given_text(own):
    config = prepared(f"data.train={own}", "data.tokenizer=data/stories/tokenizer")
    assert config.data.valid is None
    rows, valid, tokenizer = train_dlm.training_data(read_settings(DLMTrainingSettings, config).data, 12, seed=0)
    seen = {tokenizer.decode(row) for row in rows.next(18)}
    held_out = {tokenizer.decode(row) for row in valid}
    assert len(valid) == 2 and len(seen) == 18 and not seen & held_out
    assert all("sat there" in text for text in seen | held_out)


def test_a_set_with_splits_and_a_named_one_are_held_out_text(own):
    assert prepared("data.train=wikitext103").data.valid == "wikitext103"
    assert prepared(f"data.train={own}", "data.valid=stories").data.valid == "stories"


def test_one_document_has_no_part_to_hold_out(tmp_path):
    file = tmp_path / "one.txt"
    file.write_text("Only this line.\n")
    config = prepared(f"data.train={file}", "data.tokenizer=data/stories/tokenizer")
    with pytest.raises(ValueError, match="has one document and a part of it is to be held out"):
        train_dlm.training_data(read_settings(DLMTrainingSettings, config).data, 12, seed=0)
