"""The Sudoku benchmark on a few puzzles: its tables, its groups, and what it chooses."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import sudoku
from data.sudoku import augment, make
from samplers.heuristics import Random


def test_the_command_writes_cost_beside_every_quality(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sudoku, "THRESHOLDS", (0.6, 0.99))
    monkeypatch.setattr(sudoku, "TRUST", (0.6, 0.99))
    for name in ("FACTORS", "BOUNDS"):
        monkeypatch.setattr(sudoku, name, (1.0,))
    monkeypatch.setattr(sudoku, "BUDGETS", (3,))
    monkeypatch.setattr(sudoku, "EARLIER", sudoku.EARLIER[:1])
    monkeypatch.setattr(sudoku, "TARGETS", (0.1,))
    sizes = {
        "--puzzles": "6",
        "--tuning": "6",
        "--contest": "8",
        "--repeats": "1",
        "--policies": "example/sudoku6_agreement",
    }
    options = [word for option in sizes.items() for word in option]
    monkeypatch.setattr(sys, "argv", ["sudoku", *options, "--out", str(tmp_path)])
    sudoku.main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert {"nfe_ratio_at_0.1", "equivalent_ratio_at_0.1", "cpu_s_per_1000_ratio_at_0.1", "budget_won"} <= result.keys()
    tables = json.loads((tmp_path / "sudoku.json").read_text())
    assert {row["budget"] for row in tables["at_equal_budget"]} == {3}
    for record in (*tables["records"], *tables["at_equal_rate"], *tables["at_equal_evaluations"]):
        assert min(record["equivalent"], record["cpu_s_per_1000"], record["nfe"]) > 0
        for name, value in (("interval", "solved"), ("tpf_interval", "tpf")):
            low, high = record[name]
            assert low - 1e-5 <= record[value] <= high + 1e-5
    series = {row["series"]: row for row in tables["aup"]}
    assert {"threshold", "sudoku6_agreement"} <= series.keys() and series["threshold"]["settings"] == 2
    assert (tmp_path / "sudoku_tpf.png").stat().st_size > 1000
    assert (tmp_path / "sudoku.png").stat().st_size > 1000


def test_symmetric_puzzles_share_a_class_and_renamed_ones_a_grid(monkeypatch):
    one = make((2, 3), 1, None, seed=1, split="test")
    copies = {name: value.expand(8, -1) for name, value in one.items()}
    solutions, clues = augment(*copies.values(), (2, 3), torch.Generator().manual_seed(0))
    renamed = torch.tensor([3, 1, 2, 0, 5, 4])[solutions[:1]]
    puzzles = {"solutions": torch.cat((solutions, renamed)), "clues": torch.cat((clues, clues[:1]))}
    monkeypatch.setattr(sudoku, "make", lambda *arguments, **settings: puzzles)
    found = sudoku.puzzles((2, 3), 9, 0)
    assert set(found.symmetry.tolist()) == {0}
    assert found.grid[0] == found.grid[-1] and len(set(found.grid.tolist())) > 1


def test_each_side_is_chosen_on_its_own_records():
    rule, policy = (sudoku.Setting(side, side, "1", Random()) for side in ("rule", "policy"))
    other = sudoku.Setting("rule", "rule", "2", Random())
    tuned = [({"solved": 0.9, "nfe": 3}, rule), ({"solved": 0.8, "nfe": 2}, other), ({"solved": 0.7, "nfe": 2}, policy)]
    best = sudoku.chosen(tuned, ["rule", "policy"], lambda r, _: r["solved"] >= 0.8, lambda r: -r["nfe"])
    assert best == [other, None]


def test_a_count_is_won_where_intervals_do_not_meet():
    rows = [
        (2, "a", [0.5, 0.6]),
        (2, "b", [0.3, 0.4]),
        (3, "a", [0.5, 0.6]),
        (3, "b", [0.4, 0.5]),
        (4, "a", [0.5, 0.6]),
    ]
    table = [{"target": target, "side": side, "interval": interval} for target, side, interval in rows]
    assert sudoku.counts_above(table, "a", "b") == 1 and sudoku.counts_above(table, "b", "a") == 0


def test_grouped_intervals_do_not_narrow_with_copies():
    from evaluation.intervals import bootstrap_groups, bootstrap_mean

    values = np.random.default_rng(0).random(40)
    plain, alone = bootstrap_mean(values), bootstrap_groups(values, np.arange(40))
    copied = bootstrap_groups(np.repeat(values, 10), np.repeat(np.arange(40), 10))
    for grouped in (alone, copied):
        assert grouped.value == pytest.approx(plain.value)
        assert grouped.low == pytest.approx(plain.low, abs=1e-9) and grouped.high == pytest.approx(plain.high, abs=1e-9)
    with pytest.raises(ValueError, match="at least two groups"):
        bootstrap_groups([1, 2], [0, 0])
