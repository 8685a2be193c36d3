"""Generated formulas: valid, broken where they are to be, the same every time, many kinds, held out by their question."""

import json
from collections import Counter
from random import Random

import pytest

from data.formulas import BREAKING, broken, formula, is_held_out, row
from rewards.brackets import bracket_state
from rewards.latex import STRUCTURE, is_valid, structures
from unmask.commands import make_formulas as make_formulas_command

ROWS = [row(0, number, 0.0)[0] for number in range(2000)]


def test_all_are_valid_and_described():
    for made in ROWS:
        assert made["answer"][0] == made["answer"][-1] == "$" and is_valid(made["answer"][1:-1]), made
        assert made["question"].isascii() and not set("\\{}$_^") & set(made["question"])


def test_both_sides_are_of_one_draw():
    made = {english: latex for latex, english in (formula(Random(seed)) for seed in range(5000))}
    assert made["the square root of c"] == r"\sqrt{c}"
    for english, latex in made.items():
        for word, command in (
            ("square root", r"\sqrt{"),
            ("choose", r"\binom"),
            ("the sum", r"\sum"),
            ("alpha", r"\alpha"),
        ):
            assert (word in english) == (command in latex), (english, latex)


def test_every_kind_stands_there_and_most_are_different():
    kinds = Counter(kind for made in ROWS for kind in structures(made["answer"]))
    assert kinds.keys() == STRUCTURE.keys() and min(kinds.values()) > 20
    assert len({made["answer"] for made in ROWS}) > 0.85 * len(ROWS)


def test_a_share_is_broken():
    made = [row(1, number, 0.3) for number in range(2000)]
    assert 500 < sum(is_broken for _, is_broken in made) < 700
    assert all(is_valid(pair["answer"][1:-1]) != is_broken for pair, is_broken in made)
    assert [row(1, number, 0.0)[0]["question"] for number in range(2000)] == [pair["question"] for pair, _ in made]


@pytest.mark.parametrize("how", BREAKING, ids=lambda how: how.__name__)
def test_every_way_of_breaking_breaks(how):
    latex = r"\frac{a}{b} + \sqrt{c} + \left(x\right) + \begin{pmatrix} 1 \end{pmatrix} + x^{2}"
    wrong = {how(Random(seed), latex) for seed in range(40)}
    assert len(wrong) > 1 and latex not in wrong
    assert not all(map(is_valid, wrong))
    assert how(Random(0), "x") is None


def test_breaking_is_by_brackets_and_otherwise():
    states = Counter(bracket_state([broken(Random(seed), r"\frac{a}{b} + \left(x\right)")]) for seed in range(300))
    assert states["broken"] > 50 and states["complete"] > 20
    assert not is_valid(broken(Random(0), "x"))


def test_the_command_writes_the_same_rows_again_and_more_of_them(tmp_path, capsys):
    for name, rows in (("a", 300), ("b", 300), ("more", 400)):
        make_formulas_command.main(
            ["--rows", str(rows), "--out", str(tmp_path / name), "--broken", "0.3", "--seed", "5"]
        )
    told = capsys.readouterr().out
    read = {
        name: {side: (tmp_path / name / f"{side}.jsonl").read_text() for side in ("train", "valid")}
        for name in ("a", "b", "more")
    }
    assert read["a"] == read["b"] and read["more"]["train"].startswith(read["a"]["train"])
    for side, text in read["a"].items():
        pairs = [json.loads(line) for line in text.splitlines()]
        assert pairs and all(pair.keys() == {"question", "answer"} for pair in pairs)
        assert all(is_held_out(pair["question"]) == (side == "valid") for pair in pairs)
    assert "rows a second" in told and "broken" in told


def test_about_one_question_in_twenty_is_held_out():
    questions = {made["question"] for made in ROWS}
    assert 0.03 < sum(map(is_held_out, questions)) / len(questions) < 0.07


@pytest.mark.parametrize(
    "words, message",
    [
        (["--rows", "0"], "must be a whole number of at least 1"),
        (["--broken", "2"], "must be a finite number of at least 0 and at most 1"),
    ],
)
def test_the_command_refuses(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        make_formulas_command.main([*words, "--out", str(tmp_path)])
    assert message in capsys.readouterr().err
