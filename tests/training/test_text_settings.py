"""Text in settings and on terminals: taken letter by letter, and shown wherever the terminal is."""

import io
import json
import shlex
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given
from hypothesis import settings as times
from hypothesis import strategies as st
from omegaconf import OmegaConf

from training.usage import composed, exit_on_bad_input, literal, override
from unmask.runs import demo as demo_run

ODD = [
    "/data/café.jsonl",
    "/tmp/out (2)",
    "/tmp/lr=1e-3",
    "a,b",
    "~me",
    "it's",
    'say "no"',
    r"a\b\\",
    "${seed}",
    r"\${seed}",
]
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=30)
PIECES = st.lists(
    st.sampled_from(["\\", "'", '"', "${", "}", "$", "a", " ", ",", "=", "[", "\n", "null", "é"]), max_size=9
)


def read_back(value: str) -> str:
    config = OmegaConf.create({"text": None})
    OmegaConf.update(config, "text", value)
    return config.text


@given(TEXT | PIECES.map("".join))
@example(r"\${x}")
@times(max_examples=100, deadline=None)
def test_any_text_is_a_setting_that_reads_back_as_it_is(text):
    assert read_back(literal(text)) == text
    given_override = override("data.train", text)
    value = OverridesParser.create().parse_override(given_override).value()
    assert isinstance(value, str) and read_back(value) == text


def test_the_one_text_that_no_configuration_holds_is_refused():
    with pytest.raises(ValueError, match="stands for a missing value"):
        literal("???")


@pytest.mark.parametrize("text", ODD)
def test_a_value_that_needs_quotes_is_shown_in_them(text):
    assert composed("train_dlm", [override("data.train", text)]).data.train == text
    try:
        composed("train_dlm", [f"data.train={text}"])
    except ValueError as error:
        shown = shlex.split(str(error).partition("to take it as text, write ")[2])
        assert composed("train_dlm", shown).data.train == text and "\n" not in str(error)


@pytest.mark.parametrize("words", ["data train=3", "data.train", "=3"])
def test_what_is_no_key_and_value_is_refused(words):
    with pytest.raises(ValueError, match="is no KEY=VALUE"):
        composed("train_dlm", [words])


@pytest.mark.parametrize("name", ["josé", "out (2)", "lr=1e-3", "a,b", "~me", "it's", "${x}"])
def test_the_demo_trains_in_any_directory(monkeypatch, name):
    monkeypatch.setattr(demo_run.train_policy, "run", lambda config, overrides: Path(config.run_dir))
    assert demo_run.learn(Path(name), 1) == Path(name) / "policy"


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_a_terminal_shows_what_it_cannot_encode_as_an_escape(monkeypatch, encoding):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", terminal)
    with exit_on_bad_input():
        print("😀 \ud83d")
    terminal.flush()
    shown = terminal.buffer.getvalue().decode(encoding)  # pyright: ignore
    assert shown.endswith("\\ud83d\n") and ("😀" in shown) == (encoding == "utf-8")


class Refusal(ValueError):
    """A kind of bad input that the project defines."""


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (ValueError("x=1 must be 2; change it"), 2),
        (Refusal("x=1 must be 2; change it"), 2),
        (FloatingPointError("the loss is nan"), 1),
        (UnicodeDecodeError("utf-8", b"\xe9", 0, 1, "invalid"), None),
        (json.JSONDecodeError("Expecting value", "", 0), None),
        (KeyError("x"), None),
    ],
)
def test_a_defect_keeps_its_traceback_and_bad_input_is_one_sentence(capsys, error, status):
    with pytest.raises(type(error) if status is None else SystemExit) as stopped, exit_on_bad_input():
        raise error
    assert status is None or (stopped.value.code == status and capsys.readouterr().err == f"error: {error}\n")


def test_an_interpolation_that_leads_nowhere_is_bad_input(capsys):
    with pytest.raises(SystemExit) as stopped, exit_on_bad_input():
        print(composed("train_dlm", ["data.train=${x}"]).data.train)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.startswith("error: data.train: Interpolation key 'x' not found; to write ${ as text")
