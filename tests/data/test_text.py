"""Text rows against plain joins, and the endless stream against its own past."""

import gzip
import json

import pytest
import torch
from datasets import Dataset

import data.text
from data.text import EndlessRows, documents, json_lines, load_texts, pack, train_bpe
from training.usage import composed
from unmask.build import read_settings
from unmask.settings import COMMANDS

TEXTS = [
    f"The {animal} has {count} red apples and a blue hat." for animal in ("cat", "dog", "fox") for count in range(9)
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_bpe(TEXTS, 290)


@pytest.fixture(scope="module")
def texts():
    return Dataset.from_dict({"text": TEXTS})


def plain_stream(tokenizer) -> list[int]:
    return [token for text in TEXTS for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]


def test_pack_is_the_plain_join_cut_into_rows(texts, tokenizer):
    rows = pack(texts, tokenizer, 16, tokenizer.eos_token_id)
    stream = plain_stream(tokenizer)
    assert rows.dtype == torch.int64
    assert rows.flatten().tolist() == stream[: len(stream) // 16 * 16]


def test_pack_reads_the_cache_the_second_time(texts, tokenizer, tmp_path, monkeypatch):
    first = pack(texts, tokenizer, 16, 0, tmp_path)
    monkeypatch.setattr(data.text, "_token_stream", None)
    again = pack(texts, tokenizer, 8, 0, tmp_path)  # the cache holds the stream, whatever the length of the rows
    assert len(list(tmp_path.iterdir())) == 1
    assert torch.equal(first.flatten(), again.flatten()[: first.numel()])


def test_pack_refuses_a_text_shorter_than_a_row(texts, tokenizer):
    with pytest.raises(ValueError, match="not one row of 5000"):
        pack(texts, tokenizer, 5000, 0)


def test_every_document_starts_a_row_and_the_next_ones_fill_it(texts, tokenizer):
    rows = documents(texts, tokenizer, 40, tokenizer.eos_token_id)
    assert rows.shape == (len(TEXTS), 40)
    for number, row in enumerate(rows):
        following = TEXTS[number:] + TEXTS[:number]
        plain = [token for text in following for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
        assert row.tolist() == plain[:40]


def test_bpe_round_trip_and_special_ids(tokenizer):
    assert tokenizer.convert_tokens_to_ids("<|endoftext|>") == 0 == tokenizer.eos_token_id
    assert len(tokenizer) == tokenizer.vocab_size == 290
    for text in (*TEXTS, "  naïve   spacing,\n\nemoji 🐢 and a tab\t.", ""):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_bpe_refuses_impossible_sizes():
    with pytest.raises(ValueError, match="at least 257"):
        train_bpe(TEXTS, 100)
    with pytest.raises(ValueError, match=r"use data.tokenizer=bpe:\d+ at most, or give more text") as refused:
        train_bpe(TEXTS, 5000)
    offered = int(str(refused.value).split("tokenizer=bpe:")[1].split()[0])
    assert train_bpe(TEXTS, offered).vocab_size == offered  # what is offered fits


@pytest.mark.parametrize("name", ["bpe:", "bpe:abc", "bpe:10", "bpe:-1", "bpe:1e9", "bpe:999999999999"])
def test_a_size_of_a_tokenizer_that_no_memory_holds_is_refused_before_the_text_is_read(name):
    with pytest.raises(ValueError, match=f"data.tokenizer={name} must be .* bpe:N with N from 257 to 1000000"):
        read_settings(COMMANDS["train_dlm"], composed("train_dlm", [f"data.tokenizer={name}"]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no text"),
        (b"\n \n\n", "holds no text"),
        ("d\xe9j\xe0\n".encode("latin-1"), "is not UTF-8 text"),
        (bytes(range(256)), "is not UTF-8 text"),
    ],
)
def test_a_file_without_text_is_named(content, message, tmp_path, capfd):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(ValueError, match=f"a.txt.*{message}"):
        load_texts(str(tmp_path / "a.txt"), "train", str(tmp_path / "cache"))
    assert capfd.readouterr().err == ""  # no bars of a library beside the sentence


@pytest.mark.parametrize("values", [(5, 6), ("one", 6), ([1], [2]), ({"a": 1}, {"a": 2})])
def test_values_that_are_no_texts_are_named(values, tmp_path):
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    with pytest.raises(ValueError, match="a.jsonl.*(expected texts|has no text)"):
        load_texts(str(tmp_path / "a.jsonl"), "train", str(tmp_path / "cache"))


def test_local_files(tmp_path):
    (tmp_path / "a.txt").write_text("one\n\ntwo\n")
    with gzip.open(tmp_path / "a.jsonl.gz", "wt") as file:
        file.writelines(json.dumps({"text": text, "other": 1}) + "\n" for text in ("one", "  ", "two"))
    Dataset.from_dict({"text": ["one", "two"]}).save_to_disk(tmp_path / "saved")
    for name in ("a.txt", "a.jsonl.gz", "saved"):
        texts = load_texts(str(tmp_path / name), "train", str(tmp_path / "cache"))
        assert texts.column_names == ["text"]
        assert list(texts["text"]) == ["one", "two"]


def test_shipped_stories_do_not_share_a_story():
    train, valid = load_texts("stories", "train"), load_texts("stories", "valid")
    assert (len(train), len(valid)) == (2695, 237)
    assert not set(train["text"]) & set(valid["text"])


def test_an_unreachable_data_set_is_named(monkeypatch):
    def unreachable(**arguments):
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    with pytest.raises(
        ValueError, match=r"'ptb' \(hub id ptb-text-only/ptb_text_only\) cannot be reached.*\.jsonl"
    ) as caught:
        load_texts("ptb", "train")
    assert isinstance(caught.value.__cause__, OSError)


def test_a_missing_file_and_a_missing_column_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*gone\.txt"):
        load_texts(str(tmp_path / "gone.txt"), "train")
    Dataset.from_dict({"story": ["one"]}).save_to_disk(tmp_path / "saved")
    with pytest.raises(ValueError, match=r"columns \['story'\], expected 'text'"):
        load_texts(str(tmp_path / "saved"), "train")


def numbered(rows: int) -> torch.Tensor:
    return torch.arange(rows)[:, None].expand(rows, 3)


def test_each_epoch_is_a_new_permutation():
    endless = EndlessRows(numbered(10), seed=3)
    drawn = torch.cat([endless.next(4)[:, 0] for _ in range(10)]).view(4, 10)  # batches of 4 cross the epochs of 10
    assert (drawn.sort(1).values == torch.arange(10)).all()
    assert len({tuple(epoch) for epoch in drawn.tolist()}) == 4


def test_a_batch_may_span_many_epochs():
    drawn = EndlessRows(numbered(3)).next(9)[:, 0].view(3, 3)
    assert (drawn.sort(1).values == torch.arange(3)).all()


def test_a_restored_stream_goes_on_with_the_same_batches():
    endless = EndlessRows(numbered(10), seed=7)
    for _ in range(4):
        endless.next(4)
    state = json.loads(json.dumps(endless.state_dict()))
    ahead = [endless.next(4) for _ in range(6)]
    restored = EndlessRows(numbered(10))
    restored.load_state_dict(state)
    assert all(torch.equal(batch, restored.next(4)) for batch in ahead)
    with pytest.raises(ValueError, match="resume with the same data"):
        EndlessRows(numbered(9)).load_state_dict(state)


def test_a_byte_order_mark_is_no_part_of_a_text(tmp_path):
    """Notepad and PowerShell write one."""
    (tmp_path / "a.txt").write_text("one\ntwo\n", encoding="utf-8-sig")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8-sig")
    (tmp_path / "b.jsonl.gz").write_bytes(
        gzip.compress('{"text": "one \\ud83d"}\n{"text": "two"}\n'.encode("utf-8-sig"))
    )
    for name in ("a.txt", "a.jsonl"):
        assert load_texts(str(tmp_path / name), "train", tmp_path / "cache")["text"][:] == ["one", "two"]
    assert next(json_lines(tmp_path / "a.jsonl"))[1] == {"text": "one"}
    assert load_texts(str(tmp_path / "b.jsonl.gz"), "train", tmp_path / "cache")["text"][:] == ["one \ufffd", "two"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "café\n".encode("latin-1"), "is not UTF-8 text (byte 0xe9"),
        ("a.jsonl", '{"text": "café"}\n'.encode("latin-1"), "is not UTF-8 text (byte 0xe9"),
        ("b.txt", bytes(range(256)) * 9, "is not UTF-8 text"),
        ("c.txt", b"", "holds no text"),
        ("c.jsonl", b"", "holds no text"),
        ("d.jsonl", b'{"text": 3}\n', "expected texts"),
        ("e.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9], "is no whole gzip file"),
    ],
)
def test_a_file_that_is_no_text_is_refused_by_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        load_texts(str(tmp_path / name), "train", tmp_path / "cache")
    assert message in str(refused.value) and name in str(refused.value) and "\n" not in str(refused.value)


def test_the_mark_between_documents_is_no_document(tmp_path):
    (tmp_path / "a.txt").write_text("one\n<|endoftext|>\ntwo\n")
    assert load_texts(str(tmp_path / "a.txt"), "train", tmp_path / "cache")["text"][:] == ["one", "two"]


@pytest.mark.parametrize("name", ["bad.jsonl", "bad.jsonl.gz"])
def test_a_line_that_is_no_json_is_named(tmp_path, name):
    text = '{"text": "a"}\n\n{"text": "b\n{"text": "c"}\n'
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    with pytest.raises(ValueError, match=r"line 3 is not JSON \(.*mend or remove that line"):
        load_texts(str(tmp_path / name), "train", tmp_path / "cache")
