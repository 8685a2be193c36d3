"""Files that unpack to more than they should are refused at once."""

import gzip
import json

import pytest

import data.text
from data.text import json_lines, load_texts


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(data.text, "LONGEST", 1 << 20)
    monkeypatch.setattr(data.text, "ROOM", 1 << 20)


@pytest.mark.parametrize(
    "part, reason", [(b" ", "a line of more than 1,048,576 bytes"), (b"\n", "unpacks to more than 100 times")]
)
def test_a_gzip_bomb_is_refused_before_it_is_read(part, reason, tmp_path):
    file = tmp_path / "bomb.jsonl.gz"
    file.write_bytes(gzip.compress(part * (8 << 20)))
    if part == b" ":
        file.write_bytes(
            gzip.compress(
                b'{"text": "' + bytes(range(32, 34)) * (1 << 20) + b'"}\n' + json.dumps({"text": "a"}).encode()
            )
        )
        reason = "more than"
    for read in (lambda: load_texts(str(file), "train"), lambda: list(json_lines(file))):
        with pytest.raises(ValueError, match=f"bomb.jsonl.gz .*{reason}"):
            read()


def test_deep_json_names_its_line(tmp_path):
    (tmp_path / "deep.jsonl").write_text('{"a": 1}\n' + "[" * 100_000 + "\n")
    with pytest.raises(ValueError, match="line 2 is nested too deeply"):
        list(json_lines(tmp_path / "deep.jsonl"))
