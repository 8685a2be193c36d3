"""Questions with answers: cleaning, loading, what is refused, and that only answers are masked and counted."""

import gzip
import json

import pytest
import torch
from datasets import Dataset

from data.answers import (
    AnswerRows,
    cleaned,
    encode_pairs,
    is_answers,
    load_pairs,
    prompt_text,
    read_pairs,
    row_text,
    split_pairs,
    squeezed,
    with_dollars,
    with_subscripts,
    without_unicode,
)
from data.settings import TextSettings
from data.tasks import TextTask
from data.text import train_bpe
from dlm.noise import LogLinearNoise
from dlm.pretrain import evaluate, loss_of
from load_model import load_model
from losses import next_token_loss
from tests.enumerable import random_radd
from tests.tiny_text import backbone
from tests.training.test_run import record, train
from training.usage import composed

PAIRS = [(f"{n} over {n + 1}", rf"$\frac{{{n}}}{{{n + 1}}}$") for n in range(10)]
TINY = ["model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "training.batch_size=4", "training.n_iters=2",
        "training.eval_freq=2", "training.snapshot_freq=2", "training.log_freq=1", "eval.batch_size=2", "eval.samples=2",
        "eval.steps=4", "device=cpu", "wandb.mode=disabled"]  # fmt: skip


def write(path, pairs=PAIRS, key="answer"):
    path.write_text("".join(json.dumps({"question": q, key: a}) + "\n" for q, a in pairs))
    return path


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(map(row_text, PAIRS), 280)


# ---------------------------------------------------------------------------------------------------------------- cleaning


@pytest.mark.parametrize(
    "clean, text, expected",
    [
        (with_dollars, r"a \[x\] b \(y\) c", "a $$x$$ b $y$ c"),
        (with_dollars, r"\begin{array} a \\[2pt] b \\(c) \end{array}", r"\begin{array} a \\[2pt] b \\(c) \end{array}"),
        (with_subscripts, r"\alpha{i} \sum{k} \lim{x} \int{a}", r"\alpha_{i} \sum_{k} \lim_{x} \int_{a}"),
        (with_subscripts, r"\log{x} \alphabet{x} \frac{1}{2}", r"\log{x} \alphabet{x} \frac{1}{2}"),
        (without_unicode, "αβ ≤ 2πr², x∈S", r"\alpha\beta \leq 2\pi r^{2}, x\in S"),
        (without_unicode, "plain text", "plain text"),
        (squeezed, "  a \t b  \n\n\n c ", "a b\nc"),
        (squeezed, "a\u2028b\x0bc\x1cd\x85e\r\nf", "a b c d e\nf"),  # lines end at newlines alone
        (cleaned, "Let \\(x  ≥ α{i}\\).\n\n\\[ x \\]", "Let $x \\geq \\alpha_{i}$.\n$$ x $$"),
    ],
)
def test_cleaning(clean, text, expected):
    assert clean(text) == expected
    assert clean(clean(text)) == expected


# ----------------------------------------------------------------------------------------------------------------- loading


def test_files_of_pairs(tmp_path):
    file = write(tmp_path / "a.jsonl")
    assert read_pairs(file) == PAIRS == read_pairs(write(tmp_path / "b.jsonl", key="solution"))
    with gzip.open(tmp_path / "c.jsonl.gz", "wt") as packed:
        packed.write(file.read_text() + "\n\n")
    assert read_pairs(tmp_path / "c.jsonl.gz") == PAIRS
    assert (
        is_answers(str(file)) and is_answers("s1K-1.1") and not is_answers("stories") and not is_answers("gone.jsonl")
    )
    (tmp_path / "text.jsonl").write_text('{"text": "a story"}\n')
    assert not is_answers(str(tmp_path / "text.jsonl"))


@pytest.mark.parametrize(
    "line, message",
    [
        ('{"question": "a", "ans', "line 3 is not JSON .*mend or remove that line"),
        ('{"question": "a"}', 'line 3 has no texts "question" and "answer"'),
        ('{"question": "a", "answer": 3}', 'line 3 has no texts "question" and "answer"'),
        ("[1, 2]", "line 3 has no texts"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, message):
    file = write(tmp_path / "a.jsonl", PAIRS[:2])
    file.write_text(file.read_text() + line + "\n")
    with pytest.raises(ValueError, match=message):
        read_pairs(file)
    with pytest.raises(ValueError, match=message):
        train(*TINY, f"data.train={file}", f"data.valid={file}", f"run_dir={tmp_path / 'run'}")


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n")
    with pytest.raises(ValueError, match="has no rows"):
        read_pairs(tmp_path / "a.jsonl")


@pytest.mark.parametrize("kind", ["jsonl", "disk", "parquet"])
def test_s1k_from_a_directory_is_cleaned(tmp_path, kind):
    rows = [{"question": f"Find \\(x_{n}\\).", "solution": "α{i}", "cot_type": "math"} for n in range(10)]
    if kind == "jsonl":
        (tmp_path / "s1K-1.1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "disk":
        Dataset.from_list(rows).save_to_disk(tmp_path / "s1K-1.1")
    else:
        (tmp_path / "s1K-1.1" / "data").mkdir(parents=True)
        Dataset.from_list(rows).to_parquet(tmp_path / "s1K-1.1" / "data" / "train-00000-of-00001.parquet")
    pairs = load_pairs("s1K-1.1", tmp_path)
    assert pairs == [(f"Find $x_{n}$.", r"\alpha_{i}") for n in range(10)]
    learnt, held_out = split_pairs("s1K-1.1", "s1K-1.1", tmp_path)
    assert len(learnt) == 8 and len(held_out) == 2 and not set(learnt) & set(held_out)


def test_s1k_through_datasets(tmp_path, monkeypatch):
    asked = []

    def load_dataset(path, **more):
        asked.append((path, more))
        return Dataset.from_list([{"question": "a", "solution": "b"}] * 3)

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    assert load_pairs("s1K-1.1", tmp_path) == [("a", "b")] * 3
    assert asked == [("simplescaling/s1K-1.1", {"split": "train", "cache_dir": str(tmp_path)})]

    def unreachable(path, **more):
        raise OSError("no route")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        ValueError, match=r"cannot be reached: .*put s1K-1\.1\.jsonl or a folder s1K-1\.1 into data\.cache_dir"
    ):
        load_pairs("s1K-1.1", tmp_path)


# -------------------------------------------------------------------------------------------------------------------- rows


def test_rows_are_question_answer_and_ends(tokenizer):
    tokens, prompts, out = encode_pairs(PAIRS, tokenizer, 40, 0, cut=False)
    assert tokens.shape == (10, 40) and out == 0
    for row, prompt, (question, answer) in zip(tokens.tolist(), prompts.tolist(), PAIRS, strict=True):
        assert tokenizer.decode(row[:prompt]) == prompt_text(question) == f"Question: {question}\nSolution:"
        end = row.index(0)
        assert tokenizer.decode(row[prompt:end]) == f" {answer}" and set(row[end:]) == {0}


def test_rows_that_are_too_long_are_dropped_and_counted_or_cut(tokenizer):
    lengths = [len(tokenizer(row_text(pair))["input_ids"]) for pair in PAIRS]
    long = [*PAIRS, ("a", "$" + "x + " * 60 + "$"), ("b " * 60, "$b$")]
    tokens, _, out = encode_pairs(long, tokenizer, max(lengths) + 1, 0, cut=False)
    assert len(tokens) == 10 and out == 2
    tokens, prompts, out = encode_pairs(long, tokenizer, max(lengths) + 1, 0, cut=True)
    assert len(tokens) == 11 and out == 1 and 0 not in tokens[10] and prompts[10] < max(lengths)
    with pytest.raises(ValueError, match="none of 10 rows fits 5 positions; give a longer canvas"):
        encode_pairs(PAIRS, tokenizer, 5, 0, cut=True)


def test_the_stream_goes_on_and_knows_its_questions(tokenizer):
    tokens, prompts, _ = encode_pairs(PAIRS, tokenizer, 40, 0, cut=False)
    rows = AnswerRows(tokens, prompts, prompts[:2], seed=3)
    first = [rows.next_puzzles(4) for _ in range(3)]
    again = AnswerRows(tokens, prompts, prompts[:2], seed=0)
    rows.load_state_dict(AnswerRows(tokens, prompts, prompts[:2], seed=3).state_dict())
    again.load_state_dict(rows.state_dict())
    for batch, given in first:
        other, seen = again.next_puzzles(4)
        assert torch.equal(batch, other) and torch.equal(given, seen)
        for row, known in zip(batch, given, strict=True):
            place = next(n for n, own in enumerate(tokens) if torch.equal(own, row))
            assert known.sum() == prompts[place] and known[: prompts[place]].all()


@pytest.mark.parametrize("loss", ["t_DCE", "lambda_DCE", "k_DCE", "masked_CE"])
def test_only_answers_are_masked_and_counted(tokenizer, loss):
    model = random_radd(length=40, vocabulary=len(tokenizer))
    tokens, prompts, _ = encode_pairs(PAIRS, tokenizer, 40, 0, cut=False)
    given = torch.arange(40) < prompts.unsqueeze(1)
    hidden, counted = model.hidden, []

    def watched(canvas, read, *more, **named):
        assert torch.equal(canvas[given], tokens[given]) and not (read & given).any()
        counted.append(read)
        return hidden(canvas, read, *more, **named)

    model.hidden = watched
    value = loss_of(model, tokens, loss, LogLinearNoise(), torch.Generator().manual_seed(0), given)
    held_out = evaluate(model, tokens, loss, LogLinearNoise(), 10, prompt=prompts)
    assert len(counted) == 2 and all(read.any() for read in counted) and held_out == float(value)


def test_the_next_token_loss_counts_answers_only():
    logits = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    tokens = torch.tensor([[0, 1, 2, 3, 4], [6, 5, 4, 3, 2]])
    given = torch.arange(5) < torch.tensor([[2], [4]])
    log_prob = logits.log_softmax(-1)
    log_probs = [log_prob[0, 1, 2], log_prob[0, 2, 3], log_prob[0, 3, 4], log_prob[1, 3, 2]]
    assert float(next_token_loss(logits, tokens, given)) == pytest.approx(-float(sum(log_probs)) / 4, rel=1e-6)


# ------------------------------------------------------------------------------------------------------------ the commands


def start(kind, folder):
    """A tiny model to fine-tune, and how to say so."""
    if kind == "llada":
        return [f"init={backbone('llada', folder)}", "eval.steps=2"]
    model = [f"model={kind}", "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.length=64"]
    return [*model, "data.tokenizer=bpe:270", *(["loss=ar"] if kind == "causal" else [])]


@pytest.mark.parametrize("kind", ["radd", "llada", "causal"])
def test_every_backbone_learns_answers(kind, tmp_path):
    file = write(tmp_path / "a.jsonl", [*PAIRS, ("too long", "$x$ " * 300)])
    words = [w for w in TINY if not w.startswith("model.")] + start(kind, tmp_path / "model")
    run = train(*words, f"data.train={file}", f"data.valid={file}", f"run_dir={tmp_path / 'run'}")
    measures = record(run)
    assert {"valid_loss", "sample_validity", "sample_brackets", "sample_complex", "sample_skeletons"} <= {
        k for _, k in measures
    }
    for number in range(2):
        text = (run / "samples" / "iter_2" / f"sample_{number}.txt").read_text()
        assert text.startswith("Question: ") and "\nSolution:" in text
    assert "1 rows left out, longer than" in (run / "logs" / "run.log").read_text()
    assert load_model(run)[0].max_length == (512 if kind == "llada" else 64)


def test_the_published_command_starts_from_a_named_model(tmp_path):
    """`dlm=NAME` is where training starts; DIR holds the data."""
    write(tmp_path / "s1K-1.1.jsonl", key="solution")
    words = ["dlm=stories", "data.train=s1K-1.1", "data.valid=s1K-1.1", f"data.cache_dir={tmp_path}"]
    assert composed("train_dlm", words).init == "example/stories" and composed("train_dlm", []).init is None
    run = train(*words, *[w for w in TINY if not w.startswith("model.")], "training.n_iters=1", "training.snapshot_freq=1",
                f"run_dir={tmp_path / 'run'}")  # fmt: skip
    assert load_model(run)[0].vocab_size == 2049
    assert "2 held-out rows" in (run / "logs" / "run.log").read_text()


def test_a_tokenizer_of_another_vocabulary_is_refused(tmp_path):
    backbone("llada", tmp_path / "model")
    (tmp_path / "model" / "tokenizer.json").unlink()
    file = write(tmp_path / "a.jsonl")
    words = [f"init={tmp_path / 'model'}", f"data.train={file}", f"data.valid={file}", "data.tokenizer=bpe:270"]
    with pytest.raises(ValueError, match=r"data\.tokenizer=bpe:270 has 270 tokens and the model, which came without"):
        train(*TINY, *words, f"run_dir={tmp_path / 'run'}")


@pytest.mark.parametrize(
    "words, message",
    [
        (["data=latex", "data.given=all"], "data.given=all must be one of question, nothing, or null"),
        (["data=latex", "data.longer=wrap"], "data.longer=wrap must be one of drop, cut, or null"),
        (["data=latex", "data.valid=stories"], "has questions and answers and data.valid=stories has not"),
        (["model.length=6"], "rows fits 6 positions"),
    ],
)
def test_settings_that_do_not_fit_are_refused(words, message, tmp_path):
    file = write(tmp_path / "a.jsonl")
    valid = [] if any("valid" in word for word in words) else [f"data.valid={file}"]
    with pytest.raises(ValueError, match=message):
        train(*TINY, *words, f"data.train={file}", *valid, "data.tokenizer=bpe:258", f"run_dir={tmp_path / 'run'}")


def test_a_task_of_answers_gives_canvases_that_begin_with_a_question(tmp_path, tokenizer):
    file = write(tmp_path / "a.jsonl")
    settings = TextSettings(
        train=str(file), valid=str(file), tokenizer="bpe:512", given="question", longer="drop", valid_rows=512
    )
    task = TextTask(settings, 40, len(tokenizer), 1, 0, tokenizer)
    for prompts in (task.prompts(4, 0), task.texts(4, 0), task.valid, task.held_out):
        assert tokenizer.decode(prompts.canvas[0][prompts.canvas[0] != len(tokenizer)]).endswith("\nSolution:")
        known = prompts.canvas != len(tokenizer)
        assert torch.equal(prompts.canvas[known], prompts.text[known]) and not known.all(1).any()
    assert len(task.valid.canvas) == 1 and len(task.held_out.canvas) == 2
