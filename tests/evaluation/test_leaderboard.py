"""Leaderboards: files that read back, points of evaluations, the table of the command, and what is refused."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from evaluation.aup import aup
from evaluation.leaderboard import (
    evaluated,
    merged,
    read_leaderboard,
    results_in,
    scores,
    source_of,
    table,
    write_leaderboard,
)
from evaluation.summary import aup_rows, outcomes_of
from tests.evaluation.test_generations import TINY, read
from unmask.commands import aup as aup_command
from unmask.commands.evaluate import main as evaluate

LEADERBOARDS = Path(__file__).parent / "leaderboards"
CHAIN = [*TINY, "--n_test", "12", "--datasets", "chain", "--block_length", "4"]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of a rule, written into a leaderboard, and another rule in the same directory."""
    base = tmp_path_factory.mktemp("swept")
    rule = ["--strategy", "threshold", "--settings", "0.3,0.9", "--seeds", "1,2", *CHAIN, "--out", str(base / "out")]
    assert evaluate([*rule, "--leaderboard", str(base / "board.yaml"), "--method", "ours"]) == 0
    other = ["--strategy", "random", "--steps", "6,12", *CHAIN, "--out", str(base / "out")]
    assert evaluate([*other, "--leaderboard", str(base / "board.yaml")]) == 0
    return base


def test_published_files_read_back(tmp_path):
    for file in LEADERBOARDS.glob("*.yaml"):
        board = read_leaderboard(file)
        write_leaderboard(board, tmp_path / "a.yaml")
        assert read_leaderboard(tmp_path / "a.yaml") == board
        assert yaml.safe_load((tmp_path / "a.yaml").read_text()) == yaml.safe_load(file.read_text())
    (tmp_path / "a.yaml").write_text("# Ours\n\n# of May\na:\n  b: [[1, 50]]  # one\n")
    write_leaderboard(read_leaderboard(tmp_path / "a.yaml"), tmp_path / "a.yaml")
    assert (tmp_path / "a.yaml").read_text() == "# Ours\n\n# of May\na:\n  b:\n  - [1.0, 50.0]\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no leaderboard; expected task: {method:"),
        ("- 1", "is no leaderboard"),
        ("a: 1", "task a has no methods"),
        ("a: {}", "task a has no methods"),
        ("a: {b: [1.0, 50]}", r"a, b: '\[1.0, 50\]' is no list of points"),
        ("a: {b: []}", "a, b: .* is no list of points"),
        ("a: {b: [[1, x]]}", "a, b: .* is no list of points"),
        ("a: {b: [[1, true]]}", "a, b: .* is no list of points"),
        ("a: {b: [[1, 50, 2]]}", "a, b: .* is no list of points"),
        ("a: {b: [[0, 50]]}", "a, b: tokens per forward 0.0 must be"),
        ("a: {b: [[1, 0.8], [4, 0.76]]}", "a: the highest accuracy is 0.8, which looks like a share"),
        ("a: {b: [[1, 80], [3, 74.9]]}", "a, b: the last point .* leave that point out"),
        ("a: [", "cannot be read as YAML"),
        ("a: &x {b: [[1, 50]]}\nc: *x", "alias"),
    ],
)
def test_what_is_wrong_with_a_leaderboard_is_one_sentence(text, message, tmp_path, capsys):
    file = tmp_path / "board.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=message) as refused:
        aup_command.main([str(file)])
    assert str(refused.value).startswith(str(file)) or "last point" in message
    assert "\n" not in str(refused.value) and capsys.readouterr().out == ""


def test_an_evaluation_writes_its_points(swept):
    board = read_leaderboard(swept / "board.yaml")
    assert list(board) == ["chain"] and list(board["chain"]) == ["ours", "random"]
    rows = {row["name"]: row for row in read(swept / "out" / "summary_statistics.csv")}
    every = {row["name"]: (float(row["tpf_mean"]), 100 * float(row["accuracy_mean"])) for row in rows.values()}
    for method, names in (("ours", ("threshold-0.9", "threshold-0.3")), ("random", ("random-K12", "random-K6"))):
        expected = sorted(every[name] for name in names)
        lowest = expected[0][1] - 5
        assert len(board["chain"][method]) in (1, 2)  # without the fastest one if it is too bad
        for point, written in zip(expected, board["chain"][method], strict=False):
            assert written == pytest.approx(point, abs=1e-4) and point[1] >= lowest - 1e-9
    for row in rows.values():
        assert float(row["tpf_low"]) <= float(row["tpf_mean"]) <= float(row["tpf_high"])


def test_tpf_of_an_evaluation_is_that_of_its_samples(swept):
    for row in read(swept / "out" / "detailed_results.csv"):
        directory = swept / "out" / f"{row['name']}_chain_seed{row['seed']}"
        records = [json.loads(line) for line in (directory / "generations.jsonl").read_text().splitlines()]
        ratio = sum(record["tokens"] for record in records) / sum(record["nfe"] for record in records)
        assert float(row["tpf"]) == pytest.approx(ratio) and float(row["tpf_low"]) <= ratio <= float(row["tpf_high"])
    assert (swept / "out" / "pareto_tpf.png").read_bytes().startswith(b"\x89PNG")


def test_aup_of_a_series_is_that_of_its_points(swept, capsys):
    rows = {row["series"]: row for row in read(swept / "out" / "aup.csv")}
    assert rows.keys() == {"threshold", "random"}
    best = float(rows["random"]["best_accuracy"])
    assert best == max(100 * float(row["accuracy_mean"]) for row in read(swept / "out" / "summary_statistics.csv"))
    board = read_leaderboard(swept / "board.yaml")["chain"]
    for series, method in (("threshold", "ours"), ("random", "random")):
        value, points = float(rows[series]["aup"]), board[method]
        assert value == pytest.approx(aup(points, best), abs=0.01)
        assert float(rows[series]["aup_low"]) <= value <= float(rows[series]["aup_high"])
        assert int(rows[series]["settings"]) - int(rows[series]["left_out"]) == len(points)
        assert float(rows[series]["first_tpf"]) == pytest.approx(points[0][0], abs=1e-4)
    aup_command.main([str(swept / "out")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["best"]["chain"] == pytest.approx(best, abs=1e-4)
    for series, row in rows.items():
        assert line["aup"]["chain"][series] == pytest.approx(float(row["aup"]), abs=0.01)
        limits = [float(row["aup_low"]), float(row["aup_high"])]
        assert line["intervals"]["chain"][series] == pytest.approx(limits, abs=1e-6)


def test_methods_are_added_and_saved(swept, tmp_path, capsys):
    shutil.copy(LEADERBOARDS / "llada.yaml", tmp_path / "board.yaml")
    (tmp_path / "points.json").write_text("[[1, 70], [12, 69]]")
    (tmp_path / "points.csv").write_text("tpf,accuracy,task\n1,60,MBPP\n3,58,MBPP\n4,20,MBPP\n")
    words = [str(tmp_path / "board.yaml"), "--save", str(tmp_path / "new.yaml"), "--add"]
    aup_command.main([*words, f"fast={tmp_path / 'points.json'}", "--task", "GSM8K-CoT"])
    printed = capsys.readouterr().out
    line = json.loads(printed.splitlines()[-1])
    assert line["aup"]["GSM8K-CoT"]["fast"] == pytest.approx(aup([(1, 70), (12, 69)], 74.98)) and "fast" in printed
    assert line["aup"]["GSM8K-CoT"]["LLaDA"] == 72.55 and line["intervals"] == {}
    new = read_leaderboard(tmp_path / "new.yaml")
    assert new["GSM8K-CoT"].pop("fast") == [(1, 70), (12, 69)] and new == read_leaderboard(tmp_path / "board.yaml")
    assert (tmp_path / "new.yaml").read_text().startswith("GSM8K-CoT:")  # a new file has no comments
    aup_command.main([*words, f"csv={tmp_path / 'points.csv'}", "--add", str(swept / "board.yaml")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["aup"]["MBPP"]["csv"] == pytest.approx(aup([(1, 60), (3, 58)], 63.6))  # the last point is too bad
    assert list(line["aup"])[-1] == "chain" and list(line["aup"]["chain"]) == ["ours", "random"]
    (tmp_path / "rules").mkdir()
    for folder in (swept / "out").glob("threshold*"):
        shutil.copytree(folder, tmp_path / "rules" / folder.name)
    aup_command.main([*words, f"csv={tmp_path / 'points.csv'}", "--add", f"thr={tmp_path / 'rules'}"])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(line["intervals"]["chain"]) == ["thr"]


def test_summary_statistics_are_a_source(swept):
    found = source_of(swept / "out" / "summary_statistics.csv").board
    expected = source_of(swept / "out").board
    assert {name: len(own) for name, own in found["chain"].items()} == {
        name: len(own) for name, own in expected["chain"].items()
    }
    for name, own in expected["chain"].items():
        for one, other in zip(own, found["chain"][name], strict=True):
            assert one == pytest.approx(other, abs=1e-4)


def test_what_is_wrong_with_a_source_is_one_sentence(swept, tmp_path):
    board = str(LEADERBOARDS / "llada.yaml")
    (tmp_path / "a.json").write_text("[[1, 70]]")
    (tmp_path / "a.csv").write_text("tpf,accuracy\n1,70\n")
    (tmp_path / "b.csv").write_text("speed,accuracy\n1,70\n")
    (tmp_path / "c.csv").write_text("tpf,accuracy,task\n1,many,a\n")
    (tmp_path / "d.csv").write_text("tpf,accuracy,task\n")
    (tmp_path / "e.csv").write_bytes(b"tpf,accuracy,task\n1,70,\xff\n")
    (tmp_path / "a.txt").write_text("1 70")
    for words, message in (
        ([], "no points to score"),
        ([board, "--task", "a"], "--task a would do nothing without --add"),
        ([board, "--add", str(tmp_path / "a.json")], "a.json names no task; give --task"),
        ([board, "--add", str(tmp_path / "a.csv")], "a.csv names no task; give --task"),
        ([board, "--add", str(tmp_path / "b.csv")], "b.csv line 2 has no tpf and accuracy"),
        ([board, "--add", str(tmp_path / "c.csv")], "c.csv line 2: could not convert string to float: 'many'"),
        ([board, "--add", str(tmp_path / "d.csv")], "d.csv holds no points"),
        ([board, "--add", str(tmp_path / "e.csv")], "e.csv cannot be read as CSV"),
        ([board, "--add", str(tmp_path / "a.txt")], "a.txt is no source of points"),
        ([board, "--add", str(tmp_path / "missing.json")], "missing.json is no file"),
        ([board, "--add", str(tmp_path)], "holds no finished evaluation on questions"),
        (
            [board, "--add", f"x={swept / 'out'}"],
            "holds random, threshold, which cannot all be named 'x'; leave METHOD",
        ),
        ([board, "--add", board, "--task", "a"], "which cannot all be named 'a'; leave --task out"),
        ([board, "--save", str(tmp_path / "a.txt")], "a.txt must end in .yaml"),
        ([board, "--save", str(tmp_path / "none" / "a.yaml")], "the directory .*none does not exist"),
    ):
        with pytest.raises(ValueError, match=message) as refused:
            aup_command.main(words)
        assert "\n" not in str(refused.value)


def test_a_leaderboard_of_an_evaluation_is_checked_before_any_work(tmp_path):
    (tmp_path / "bad.yaml").write_text("a: 1")
    argv = ["--strategy", "random", *TINY, "--out", str(tmp_path / "out")]
    for words, message in (
        (["--method", "ours"], "--method ours names a method of --leaderboard; give --leaderboard"),
        (["--leaderboard", str(tmp_path / "bad.yaml")], "task a has no methods"),
        (["--leaderboard", str(tmp_path / "a.csv")], "must end in .yaml"),
        (["--leaderboard", str(tmp_path / "none" / "a.yaml")], "none does not exist"),
    ):
        with pytest.raises(ValueError, match=message):
            evaluate([*argv, *words])
    window = ["--strategy", "window", "--windows", "2,4", "--settings", "0.5", *TINY, "--out", str(tmp_path / "out")]
    with pytest.raises(ValueError, match=r"--method x would name 2 series \(window 2, window 4\)"):
        evaluate([*window, "--leaderboard", str(tmp_path / "a.yaml"), "--method", "x"])
    assert not (tmp_path / "out").exists() and not (tmp_path / "a.yaml").exists()


def test_evaluations_before_tpf_are_still_read(swept, tmp_path):
    """Their rows have no TPF, and those before CPU time was measured no number of tokens either."""
    base = tmp_path / "old"
    shutil.copytree(swept / "out", base)
    for place, file in enumerate(sorted(base.glob("random*/generations.json"))):
        whole = json.loads(file.read_text())
        whole["metrics"] = {key: value for key, value in whole["metrics"].items() if not key.startswith("tpf")}
        if place == 0:
            whole["generations"] = [{k: v for k, v in one.items() if k != "tokens"} for one in whole["generations"]]
        file.write_text(json.dumps(whole))
    new = ["--strategy", "leftmost", "--steps", "6", *CHAIN, "--out", str(base)]
    assert evaluate(new) == 0
    rows = {row["name"]: row for row in read(base / "summary_statistics.csv")}
    assert rows["random-K12"]["tpf_mean"] == "" and float(rows["random-K6"]["tpf_mean"]) > 0
    detailed = {row["name"]: row for row in read(base / "detailed_results.csv")}
    assert detailed["random-K12"]["tpf"] == "" and float(detailed["random-K6"]["tpf"]) > 0
    series = {row["series"]: row for row in aup_rows(outcomes_of(results_in(base)))}
    assert series["random"]["settings"] == 1 and series["leftmost"]["settings"] == 1


def test_points_for_which_aup_is_not_defined_are_left_out():
    rows = {"fast": [0, 0, 1], "slow": [1, 1, 1], "silent": [0, 0, 0]}
    nfe, tokens = {"fast": 2, "slow": 8, "silent": 1}, {"fast": 8, "slow": 8, "silent": 0}
    results = {
        (name, "sums"): [({"series": "rule"}, [{"row": row, "right": hit, "nfe": nfe[name], "tokens": tokens[name]}
                                               for row, hit in enumerate(right)])]
        for name, right in rows.items()
    }  # fmt: skip
    found = evaluated(results)
    assert found.board == {"sums": {"rule": [(1.0, 100.0)]}} and len(found.outcomes["sums"]["rule"]) == 3
    (row,) = aup_rows(found.outcomes)
    assert (row["aup"], row["settings"], row["left_out"]) == (100, 3, 2)


def test_methods_without_a_task_have_no_mean():
    board = {"a": {"x": [(1.0, 80.0)], "y": [(2.0, 70.0)]}, "b": {"x": [(1.0, 60.0)]}}
    rows = table(scores(board))
    assert rows == [
        {"method": "x", "a": "80.00", "b": "60.00", "mean": "70.00"},
        {"method": "y", "a": "140.00", "b": "", "mean": ""},
    ]


def test_a_method_may_solve_nearly_nothing(tmp_path, capsys):
    """Its accuracies look like shares, but those of the task do not."""
    (tmp_path / "board.yaml").write_text("a: {good: [[1, 80]], bad: [[1, 0.8], [4, 0.6]]}")
    aup_command.main([str(tmp_path / "board.yaml")])
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert line["aup"]["a"]["bad"] == pytest.approx(aup([(1, 0.8), (4, 0.6)], 80))
    (tmp_path / "bad.csv").write_text("tpf_mean,accuracy_mean,dataset,series\n1,0.008,a,bad\n")
    assert source_of(tmp_path / "bad.csv").board == {"a": {"bad": [(1, 0.8)]}}


def test_a_later_method_replaces_an_earlier_one():
    assert merged({"a": {"x": [(1, 2)]}}, {"a": {"y": [(1, 3)]}, "b": {"x": [(2, 4)]}}) == {
        "a": {"x": [(1, 2)], "y": [(1, 3)]}, "b": {"x": [(2, 4)]},
    }  # fmt: skip
    assert merged({"a": {"x": [(1, 2)]}}, {"a": {"x": [(1, 9)]}}) == {"a": {"x": [(1, 9)]}}
