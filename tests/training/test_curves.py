"""Curves of runs: what has a panel, what a line is made of, and that odd metrics are drawn all the same."""

import json
import time
from pathlib import Path

import pytest

from training.curves import CurveFile, Series, broken_line, curves, panels_of, read_series, thinned


def written(directory: Path, *records) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "metrics.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_loss_reward_and_nfe_come_first_and_every_evaluation_has_a_panel(tmp_path):
    file = written(
        tmp_path,
        {
            "step": 1,
            "lr": 0.1,
            "nfe": 4.0,
            "reward": 0.5,
            "still_masked": 0.0,
            "solved": 0.2,
            "speed": 1.0,
            "loss": 2.0,
        },
        {"step": 1, "eval_reward": 0.4, "eval_solved": 0.1, "eval_runtime": 3.0, "eval_own_score": 0.3, "seconds": 2.0},
    )
    figure = curves({"run": file})
    assert titles(figure) == ["Loss", "Reward", "Network evaluations (NFE)", "Puzzles solved", "Own score"]
    assert [len(axes.lines) for axes in figure.axes] == [1, 2, 1, 2, 1]
    assert figure.axes[2].get_ylabel() == "network evaluations per sample"


def test_held_out_losses_stand_beside_the_loss(tmp_path):
    for name in ("valid_loss", "eval_loss"):
        file = written(tmp_path / name, {"step": 1, "loss": 2.0}, {"step": 1, name: 2.5})
        (axes,) = curves({"run": file}).axes
        assert [line.get_ydata()[0] for line in axes.lines] == [2.0, 2.5]
        assert axes.get_ylabel() == ("nats per token" if name == "valid_loss" else "loss")


def test_runs_have_colours_and_names(tmp_path):
    files = {f"run {seed}": written(tmp_path / str(seed), {"step": 1, "loss": 1.0 * seed}) for seed in range(9)}
    figure = curves(files)
    lines = figure.axes[0].lines
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == 9
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [*files, "training data", "held-out data"]


@pytest.mark.parametrize(
    "records",
    [
        [],
        [{"step": 0, "eval_reward": 1.0}],
        [{"step": 1, "loss": float("nan"), "reward": None, "nfe": "many", "right": True}, {"step": 2}],
        [{"step": 1, "loss": float("inf")}, {"step": 2, "loss": 1e299}, {"step": 3, "loss": -1e299}],
        [{"step": 1, "loss": 10**400}, {"step": 10**400, "loss": 1.0}],
        [{"step": step, "eval_loss": 1.0} for step in (5, 5, 3)],
    ],
    ids=["none", "one", "odd", "large", "larger than a float", "unordered"],
)
def test_few_and_odd_metrics_are_drawn(records, tmp_path):
    written(tmp_path, *records)
    CurveFile(tmp_path).draw(last=True)
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG") and not list(tmp_path.glob("*.part"))


def test_values_that_are_no_finite_number_are_left_out(tmp_path):
    file = written(tmp_path, {"step": 1, "loss": float("nan")}, {"step": 2, "loss": 3}, {"step": 3, "loss": None})
    assert read_series(file)["loss"] == Series([2], [3.0])
    assert broken_line(file) is None


def test_a_line_that_is_no_record_is_left_out_and_named(tmp_path):
    file = written(tmp_path, {"step": 1, "loss": 1.0})
    with file.open("a") as opened:
        opened.write(
            'oh\n[1]\n{"step": true}\n{"step": 2, "loss": 2.0}\n{"step": 3, "lo'
        )  # the last one is being written
    assert read_series(file)["loss"].steps == [1, 2] and broken_line(file) == 2
    file.write_text('{"step": 1, "loss": 1.0}\n{"step": 3, "lo')
    assert broken_line(file) is None


def test_a_long_line_is_made_of_means_and_a_short_one_of_its_values():
    short = Series(list(range(400)), [float(step % 7) for step in range(400)])
    assert thinned(short) == (short.steps, short.values)
    long = Series(list(range(10_001)), [float(step) for step in range(10_001)])
    steps, values = thinned(long)
    assert len(steps) == 400 and steps == pytest.approx(values) and steps == sorted(steps)
    assert values[0] == pytest.approx(12.0, abs=0.5) and values[-1] == pytest.approx(10_000 - 12.0, abs=0.5)


def test_there_are_at_most_nine_panels():
    series = {name: Series([1], [1.0]) for name in ["loss", *(f"eval_{letter}" for letter in "abcdefghijkl")]}
    assert panels_of({"run": series}) == ["loss", *"abcdefgh"]


def test_drawing_takes_a_small_share_of_a_run(tmp_path):
    """Evaluations in quick succession are drawn at the first and the last one."""
    written(tmp_path, {"step": 1, "loss": 1.0})
    file, begin, made = CurveFile(tmp_path), time.perf_counter(), []
    for number in range(200):
        (tmp_path / "curves.png").unlink(missing_ok=True)
        file.draw(last=number == 199)
        made.append((tmp_path / "curves.png").exists())
    assert made[0] and made[-1] and sum(made) <= 3, time.perf_counter() - begin
    file.started -= 1000 * file.spent  # much later
    file.draw(last=False)
    (tmp_path / "curves.png").unlink()
    file.draw(last=False)
    assert (tmp_path / "curves.png").exists()
