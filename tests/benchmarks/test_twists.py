"""Twists over methods and seeds, and log Z from both sides, by the commands with tiny numbers; runs that are there are not repeated."""

import csv
import json

import pytest
import torch

from benchmarks import steering, twists


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    directory = tmp_path_factory.mktemp("twists")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", command(directory))
        patch.setattr(twists, "MANY", 4)
        patch.setattr(twists, "SETS", 3)
        twists.main()
    return directory


def command(directory, *more):
    return ["twists", "--tasks", "sentiment", "--methods", "ctl", "sixo", "--seeds", "2", "--updates", "2", "--epochs", "1",
            "--exact", "24", "--eval_samples", "12", "--runs", str(directory / "runs"), "--out", str(directory / "out"), *more]  # fmt: skip


def test_a_table_of_methods_over_seeds(made, monkeypatch, capsys):
    assert {path.name for path in (made / "runs" / "sentiment").iterdir()} == {
        "exact",
        "ctl_0",
        "ctl_1",
        "sixo_0",
        "sixo_1",
    }
    files = sorted((made / "runs").rglob("evaluations.json"))
    assert len(files) == 4 and all(json.loads(file.read_text())[-1]["updates"] == 2 for file in files)
    assert {path.name for path in (made / "out" / "sentiment").iterdir()} == {
        "kl.csv",
        "kl.tex",
        "kl_curves.png",
        "bounds.png",
    }
    table = list(csv.reader((made / "out" / "sentiment" / "kl.csv").read_text().splitlines()))
    assert len(table) == 3 and {"CTL", "SIXO"} <= {cell for row in table for cell in row}
    before = {file: file.stat().st_mtime_ns for file in files}
    monkeypatch.setattr("sys.argv", command(made))
    monkeypatch.setattr(twists, "MANY", 4)
    monkeypatch.setattr(twists, "SETS", 3)
    twists.main()
    assert {file: file.stat().st_mtime_ns for file in files} == before and "CTL" in capsys.readouterr().out


def test_a_sweep_of_learning_rates_is_written_down(made, monkeypatch):
    monkeypatch.setattr("sys.argv", command(made, "--sweep", "1e-3", "--sweep_updates", "1", "--methods", "ctl"))
    twists.main()
    (row,) = csv.DictReader((made / "out" / "sweep_sentiment.csv").read_text().splitlines())
    assert row["method"] == "ctl" and float(row["0.001"]) > 0


def test_a_sweep_keeps_what_others_found(tmp_path):
    file = tmp_path / "sweep.csv"
    file.write_text("task,method,0.001,0.01\nmasked,ctl,1.5,2.5\nmasked,ppo,0.5,\n")
    found = twists.with_earlier([{"task": "masked", "method": "ppo", "0.0003": 0.25, "0.001": 0.75}], file)
    assert found == [
        {"task": "masked", "method": "ctl", "0.0003": "", "0.001": "1.5", "0.01": "2.5"},
        {"task": "masked", "method": "ppo", "0.0003": 0.25, "0.001": 0.75, "0.01": ""},
    ]


def steering_command(directory, *counts, repeats):
    run = directory / "runs" / "sentiment" / "ctl_0"
    return ["steering", "--twists", f"causal={run}", "--counts", *counts, "--repeats", repeats, "--out",
            str(directory / "steering")]  # fmt: skip


def test_rows_of_several_calls_are_put_together():
    row = lambda way, particles, repeats: {"way": way, "particles": particles, "repeats": repeats}
    known = {
        "log_z": {"a": -1.0, "b": -2.0},
        "tables": {"a": [row("twisted SMC", 8, 4), row("best of N", 8, 4)], "b": [row("best of N", 1, 2)]},
    }
    found = {
        "log_z": {"b": -3.0, "c": -4.0},
        "tables": {"b": [row("best of N", 2, 5), row("best of N", 1, 5)], "c": []},
    }
    assert steering.merged(known, found) == {
        "log_z": {"a": -1.0, "b": -3.0, "c": -4.0},
        "tables": {"a": [row("best of N", 8, 4), row("twisted SMC", 8, 4)], "b": [row("best of N", 1, 5), row("best of N", 2, 5)],
                   "c": []},
    }  # fmt: skip


def test_log_z_from_both_sides_and_rewards(made, monkeypatch):
    monkeypatch.setattr("sys.argv", steering_command(made, "1", "4", repeats="6"))
    steering.main()
    assert (made / "steering" / "steering.png").stat().st_size > 10_000
    found = json.loads((made / "steering" / "steering.json").read_text())
    rows = found["tables"]["causal"]
    assert [(row["way"], row["particles"]) for row in rows] == [(way, n) for way in steering.WAYS for n in (1, 4)]
    again = steering_command(made, "2", "4", repeats="3")
    monkeypatch.setattr("sys.argv", again)
    steering.main()  # what was measured before and is not now stays
    whole = json.loads((made / "steering" / "steering.json").read_text())["tables"]["causal"]
    assert [row["particles"] for row in whole] == [1, 2, 4] * len(steering.WAYS)
    assert [row["repeats"] for row in whole] == [6, 3, 3] * len(steering.WAYS) and whole[::3] == rows[::2]
    for row in rows:
        assert row["drawn"] <= row["best"] + 1e-6 and -1 <= row["drawn"] <= 1  # VADER's compound score
        if row["particles"] == 1:
            assert row["drawn"] == pytest.approx(row["best"])


def test_without_resampling_log_z_is_that_of_the_rewards_alone(made):
    source, _, _ = steering.loaded(str(made / "runs" / "sentiment" / "ctl_0"))
    log_z, log_weight, log_phi = steering.swept(source, "best of N", 3, 5, 7, None)
    torch.testing.assert_close(log_weight, log_phi.double(), atol=1e-4, rtol=0)  # a target that is 0 before the end
    torch.testing.assert_close(log_z, log_phi.double().logsumexp(1) - torch.log(torch.tensor(5.0)), atol=1e-4, rtol=0)
