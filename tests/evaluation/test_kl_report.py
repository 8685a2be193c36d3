"""The table of twists on runs whose numbers are known: one log Z, means over seeds, intervals, three formats, two plots."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from statistics import stdev

import pytest

from evaluation import kl_report
from evaluation.kl_report import read_run, shared_log_z

ROOT = Path(__file__).parents[2]
ESTIMATE = lambda value, half=0.2: {"value": value, "low": value - half, "high": value + half}


ALONE = "{kind: reward, reward: vader, beta: 4.0}"
WITH_CONDITIONS = "{kind: infilling, tokens: 1}"


def write_run(directory, method, seed, f, g, log_z, prompt="Once", exact=True, target=ALONE):
    (directory / ".hydra").mkdir(parents=True)
    (directory / ".hydra" / "config.yaml").write_text(
        f"method: {method}\nseed: {seed}\nprompt: {prompt}\nlength: 3\ndlm: {{path: tiny}}\ntarget: {target}\n"
    )
    bound = lambda proposal, kind, k: {"proposal": proposal, "kind": kind, "particles": k, "lower": ESTIMATE(log_z - 1 / k),
                                       "upper": ESTIMATE(log_z + 1 / k)}  # fmt: skip
    records = []
    for epoch, (own_f, own_g) in enumerate(zip(f, g, strict=True)):
        kinds = ["iwae"] if method == "dpg" else ["iwae", "smc"]
        bounds = [bound(p, kind, k) for p in ("twist", "base") for kind in kinds for k in (2, 8)]
        record = {
            "updates": 2**epoch,
            "epoch": epoch,
            "f": ESTIMATE(own_f),
            "score": ESTIMATE(-1.0),
            "bounds": bounds,
            "log_z": log_z,
        }
        records.append(record | ({"g": ESTIMATE(own_g, 0.1)} if exact else {}))
    (directory / "evaluations.json").write_text(json.dumps(records))
    return directory


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "a", "ctl", 0, [-4.0, -3.0], [-1.0, -1.4], -2.0),
        write_run(tmp_path / "b", "ctl", 1, [-4.0, -3.2], [-1.0, -1.5], -2.1),
        write_run(tmp_path / "c", "dpg", 0, [-4.0, -2.5], [-1.0, -1.9], -2.2),
    ]


def report(tmp_path, runs, log_z=None, error=0.0):
    return kl_report.report(runs, tmp_path / "out", log_z, error)


def test_one_log_z_and_means_over_seeds(tmp_path, runs, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # a narrow table folds its cells
    ctl, dpg = report(tmp_path, runs)
    log_z, error = -2.1, 1.96 * 0.1 / 3**0.5  # the median, and the error of the mean
    assert (ctl["method"], ctl["runs"], ctl["updates"], dpg["method"]) == ("CTL", 2, 2, "DPG")
    assert ctl["kl_q_sigma"] == pytest.approx(log_z + 3.1) and ctl["kl_sigma_q"] == pytest.approx(-1.45 - log_z)
    assert ctl["kl_q_sigma_half"] == pytest.approx(1.96 * stdev([-3.0, -3.2]) / 2**0.5 + error, rel=1e-3)
    assert dpg["kl_q_sigma"] == pytest.approx(0.4) and dpg["kl_q_sigma_half"] == pytest.approx(0.2 + error, rel=1e-3)
    assert dpg["kl_sigma_q"] == pytest.approx(0.2) and dpg["kl_sigma_q_half"] == pytest.approx(0.1 + error, rel=1e-3)
    told = capsys.readouterr().out
    assert "log Z = -2.1000 +- 0.1132" in told and "0.40 +- 0.31" in told
    assert json.loads(told.splitlines()[-1])["log_z"] == log_z


def test_three_formats_and_two_plots(tmp_path, runs):
    rows = report(tmp_path, runs)
    with open(tmp_path / "out" / "kl.csv") as file:
        lines = list(csv.DictReader(file))
    assert [float(line["kl_q_sigma"]) for line in lines] == [row["kl_q_sigma"] for row in rows]
    tex = (tmp_path / "out" / "kl.tex").read_text()
    assert r"DPG & $\mathbf{0.40} \pm 0.31$ & $\mathbf{0.20} \pm 0.21$ \\" in tex and "CTL & $1.00" in tex
    for name in ("kl_curves.png", "bounds.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"


def test_a_given_log_z_is_used(tmp_path, runs):
    rows = report(tmp_path, runs, log_z=-2.0)
    assert rows[1]["kl_q_sigma"] == pytest.approx(0.5) and rows[1]["kl_q_sigma_half"] == pytest.approx(0.2)
    rows = report(tmp_path, runs, log_z=-2.0, error=0.05)
    assert rows[1]["kl_q_sigma_half"] == pytest.approx(0.25)


def changed(run, **values):
    """A run with other values in its last evaluation."""
    file = run / "evaluations.json"
    records = json.loads(file.read_text())
    records[-1] |= values
    file.write_text(json.dumps(records))
    return run


@pytest.fixture
def told(tmp_path):
    """Runs with conditions."""
    return [
        write_run(tmp_path / "a", "ctl", 0, [-3.0], [-1.4], -2.0, target=WITH_CONDITIONS),
        write_run(tmp_path / "b", "ctl", 1, [-3.2], [-1.5], -2.1, target=WITH_CONDITIONS),
        write_run(tmp_path / "c", "dpg", 0, [-2.5], [-1.9], -2.2, target=WITH_CONDITIONS),
    ]


def pairs(lower, upper, **more):
    return {"lower": ESTIMATE(lower), "upper": ESTIMATE(upper), **more}


def test_log_z_of_pairs_is_the_closest_and_widens_every_interval(tmp_path, told, capsys):
    for run, ends in zip(told, ((-3.0, -1.0), (-1.7, -2.3), (-4.0, 0.0)), strict=True):
        changed(run, log_z_pairs=pairs(*ends, midpoint=ESTIMATE(sum(ends) / 2, 0.4)))
    assert shared_log_z([read_run(path) for path in told]) == pytest.approx(
        (-2.0, 0.5)
    )  # half the gap, and the conditions
    _, dpg = report(tmp_path, told)
    assert dpg["kl_q_sigma"] == pytest.approx(0.5) and dpg["kl_q_sigma_half"] == pytest.approx(0.7)
    assert "warning" not in capsys.readouterr().err
    for run in told:  # of an older record: as wide as the intervals of its bounds
        changed(run, log_z_pairs=pairs(-2.15, -1.85))
    assert shared_log_z([read_run(path) for path in told]) == pytest.approx((-2.0, 0.25))
    report(tmp_path, told, log_z=-1.0)  # G of DPG is -1.9
    assert "KL(sigma || q) of dpg is -0.900, below 0 by more than its interval" in capsys.readouterr().err


def test_runs_that_know_no_log_z_of_their_pairs_need_one_to_be_given(tmp_path, told):
    """A midpoint over a few conditions is no log Z, and nothing says how far off it is."""
    with pytest.raises(
        ValueError, match="a did not bound log Z over all of the exact pairs.*training.epochs=0.*--log_z NUMBER"
    ):
        report(tmp_path, told[:1])
    changed(told[0], log_z_pairs=pairs(-3.0, -1.0))
    with pytest.raises(ValueError, match="b, .*c did not bound log Z"):
        report(tmp_path, told)
    assert report(tmp_path, told, log_z=-2.0, error=0.1)[1]["kl_q_sigma"] == pytest.approx(0.5)


def test_a_single_run_knows_its_log_z_to_its_own_bounds(tmp_path, runs, capsys):
    (row,) = report(tmp_path, [changed(runs[2], log_z_error=0.3)])
    assert "log Z = -2.2000 +- 0.3000" in capsys.readouterr().out and row["kl_q_sigma_half"] == pytest.approx(0.5)
    changed(runs[2], log_z_error=None)  # of one sweep nobody knows the spread
    assert report(tmp_path, runs[2:])[0]["kl_q_sigma_half"] == float("inf")
    _, error = shared_log_z([read_run(runs[1])])  # an older record: bounds a quarter apart, of intervals of 0.2
    assert error == pytest.approx((0.125**2 + 0.2**2) ** 0.5)
    assert shared_log_z([read_run(changed(runs[1], log_z_by="given"))]) == (-2.1, 0.0)


NOTHING = {"value": None, "low": None, "high": None}


def test_a_proposal_that_writes_texts_of_potential_0_is_infinitely_far(tmp_path, runs, capsys):
    changed(runs[2], f=NOTHING, score=NOTHING, log_phi=NOTHING)
    file = runs[2] / "evaluations.json"
    records = json.loads(file.read_text())
    for bound in records[-1]["bounds"]:
        bound["lower"] = NOTHING
    file.write_text(json.dumps(records))
    ctl, dpg = report(tmp_path, runs)
    assert ctl["kl_q_sigma"] < dpg["kl_q_sigma"] == float("inf") and dpg["kl_sigma_q"] == pytest.approx(0.2)
    out = capsys.readouterr().out
    assert "inf" in out and "nan" not in out and json.loads(out.splitlines()[-1])["rows"][1]["kl_q_sigma"] is None
    with open(tmp_path / "out" / "kl.csv") as lines:
        assert [line["kl_q_sigma"] for line in csv.DictReader(lines)][1] == "inf"
    tex = (tmp_path / "out" / "kl.tex").read_text()
    assert r"DPG & $\infty$ & $\mathbf{0.20}" in tex and r"CTL & $\mathbf{1.00}" in tex
    for name in ("kl_curves.png", "bounds.png"):
        assert (tmp_path / "out" / name).read_bytes()[:4] == b"\x89PNG"
    for run in runs:
        changed(run, log_z=None)
    with pytest.raises(ValueError, match="no log Z was bounded from both sides.*more eval.particles, or give --log_z"):
        report(tmp_path, runs)


def test_the_score_is_of_log_phi_without_beta(tmp_path, runs):
    changed(runs[2], log_phi=ESTIMATE(-2.0), score=ESTIMATE(-0.5))
    ctl, dpg = report(tmp_path, runs)  # records of before the two were told apart have log phi as their score
    assert (ctl["log_phi"], ctl["score"]) == (-1.0, -0.25) and (dpg["log_phi"], dpg["score"]) == (-2.0, -0.5)


def test_the_command(tmp_path, runs):
    command = [sys.executable, "-m", "evaluation.kl_report", *map(str, runs), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and r"\end{tabular}" in done.stdout, done.stderr


def test_what_cannot_be_compared_is_refused(tmp_path, runs):
    other = write_run(tmp_path / "other", "rl", 0, [-3.0], [-1.0], -2.0, prompt="Twice")
    with pytest.raises(ValueError, match="a and .*other are of different tasks .*Once.*Twice.*; report them apart"):
        report(tmp_path, [*runs, other])
    twin = write_run(tmp_path / "twin", "ctl", 1, [-3.0], [-1.0], -2.0)
    with pytest.raises(ValueError, match=r"two runs of ctl have the same seed \(\[0, 1, 1\]\)"):
        report(tmp_path, [*runs, twin])
    lower = write_run(tmp_path / "lower", "ctl", 2, [-3.0], [-1.0], -2.0, exact=False)
    with pytest.raises(ValueError, match="lower was evaluated without exact samples .* so there is no KL"):
        report(tmp_path, [lower])
    with pytest.raises(ValueError, match="none is no run of train-twist with evaluations"):
        report(tmp_path, [tmp_path / "none"])
