"""Curves of training runs: a panel for the loss, the reward, the network evaluations, and each figure of the evaluations.

`RUN/curves.png` is drawn at every evaluation; `python -m unmask plot RUN RUN` draws several runs together.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

METRICS, CURVES = "metrics.jsonl", "curves.png"  # in a run directory
LARGEST = 10**300
POINTS = 400  # of a line: of more values, each point is the mean of some neighbours
SHARE = 0.02  # of the time of a run, which drawing takes at most
PANELS, COLUMNS = 9, 3  # at most so many panels
# Okabe and Ito (2008): readers of every colour vision can distinguish them.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")  # of runs beyond the colours
TRAINING_LINE: dict[str, Any] = {"linewidth": 0.9, "alpha": 0.65, "markersize": 3}
HELD_OUT_LINE: dict[str, Any] = {"linewidth": 1.6, "markersize": 3.5}

WORDS = {  # title and unit of a metric; others have their name as the title
    "loss": ("Loss", "loss"),
    "reward": ("Reward", "mean reward of a sample"),
    "nfe": ("Network evaluations (NFE)", "network evaluations per sample"),
    "accuracy": ("Pairs ordered as in the data", "share of pairs"),
    "rewards/accuracies": ("Pairs ordered as in the data", "share of pairs"),
    "margin": ("Margin of the preferred answer", "mean difference of scores"),
    "rewards/margins": ("Margin of the preferred answer", "mean difference of rewards"),
    "solved": ("Puzzles solved", "share of samples"),
    "right": ("Correct answers", "share of samples"),
    "valid": ("Valid formulas", "share of samples"),
    "entropy": ("Entropy", "nats"),
    "kl": ("KL divergence from the reference model", "nats"),
    "kl_q_sigma": ("KL from the proposal to the target", "nats"),
    "kl_sigma_q": ("KL from the target to the proposal", "nats"),
    "kl_q_p": ("KL from the proposal to the model", "nats"),
    "f": ("F, a lower bound of log Z", "nats"),
    "g": ("G, an upper bound of log Z", "nats"),
    "log_z": ("log Z", "nats"),
    "log_phi": ("Log potential of proposal samples", "nats"),
    "score": ("Score of the samples", "mean score of a sample"),
    "log_likelihood": ("Log-likelihood under the judge", "nats per token"),
    "nats_per_token": ("Bound on the negative log-likelihood", "nats per token"),
    "distinct": ("Distinct samples", "share of samples"),
    "distinct_2": ("Distinct bigrams", "share of bigrams"),
    "sample_entropy": ("Entropy of samples", "nats per sample"),
    "sample_distinct_2": ("Distinct bigrams of samples", "share of bigrams"),
    "sample_solved": ("Sampled puzzles solved", "share of samples"),
}
FIRST = ("loss", "reward", "nfe")  # panels before those of the evaluations
HELD_OUT = re.compile(r"eval_|valid_(?=loss$)")  # before the name of a metric on held-out data
# Clocks, counters and details that have no panel.
LEFT_OUT = re.compile(
    r"runtime|per_second|num_tokens|failed|flos|epoch|still_masked|clip_ratio|_std|/std|completions/(?!mean_length)|min_reward|max_reward"
)


@dataclass
class Series:
    """The finite values of one metric, and the iterations at which they were recorded."""

    steps: list[int] = field(default_factory=list)
    values: list[float] = field(default_factory=list)


def is_record(line: Any) -> bool:
    """Return whether a line of metrics.jsonl is an object with the number of an iteration."""
    step = line.get("step") if isinstance(line, dict) else None
    return isinstance(step, int) and not isinstance(step, bool) and 0 <= step < LARGEST


def parsed(text: str) -> Any:
    """Return the value of a line of JSON; None for other text."""
    try:
        return json.loads(text)
    except ValueError:
        return None


def lines_of(file: Path) -> Iterator[str]:
    """Yield the complete lines of a file that a run may be writing."""
    with file.open(encoding="utf-8", errors="replace") as opened:
        for line in opened:
            if line.endswith("\n"):
                yield line


def broken_line(file: Path) -> int | None:
    """Return the number of the first line of a metrics file that is not a record; None if all are."""
    return next((number for number, line in enumerate(lines_of(file), 1) if not is_record(parsed(line))), None)


def read_series(file: Path) -> dict[str, Series]:
    """Return the metrics of a run by name.

    Lines that are not records, values that are not finite numbers, and values beyond `LARGEST` are left out.
    """
    found: dict[str, Series] = {}
    for record in filter(is_record, map(parsed, lines_of(file))):
        for name, value in record.items():
            if isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST:
                series = found.setdefault(name, Series())
                series.steps.append(record["step"])
                series.values.append(float(value))
    return found


def panels_of(runs: Mapping[str, Mapping[str, Series]]) -> list[str]:
    """Return the names of the metrics that have a panel, without the prefix of held-out data, in the order of the panels."""
    names = dict.fromkeys(name for series in runs.values() for name in series if not LEFT_OUT.search(name))
    evaluated = [
        HELD_OUT.sub("", name, count=1) for name in names if HELD_OUT.match(name) or name.startswith("sample_")
    ]
    first = [name for name in FIRST if name in names or name in evaluated]
    return list(dict.fromkeys((*first, *evaluated)))[:PANELS]


def keys_of(name: str) -> tuple[str, str, str]:
    """Return the keys of a metric on training data and on held-out data."""
    return name, f"eval_{name}", f"valid_{name}"


def thinned(series: Series) -> tuple[list[float], list[float]]:
    """Return the steps and values of a line: all of a short series, means over bins of neighbouring steps of a long one."""
    count = len(series.steps)
    edges = [number * count // min(count, POINTS) for number in range(min(count, POINTS) + 1)]
    bins = [slice(start, stop) for start, stop in pairwise(edges)]
    steps, values = (
        [math.fsum(column[part]) / (part.stop - part.start) for part in bins]
        for column in (series.steps, series.values)
    )
    return steps, values


def look(number: int) -> dict[str, Any]:
    """Return colour and dashes of a run."""
    return {
        "color": COLOURS[number % len(COLOURS)],
        "linestyle": STYLES[number // len(COLOURS) % len(STYLES)],
    }


def draw_panel(axes: Axes, name: str, runs: Mapping[str, Mapping[str, Series]]) -> None:
    """Draw one metric: a thin line for training data, a line with dots for held-out data, one colour per run."""
    title, unit = WORDS.get(name, (re.sub("[_/]", " ", name).capitalize(), ""))
    if name == "loss" and all("valid_loss" in series for series in runs.values()):
        unit = "nats per token"
    for number, series in enumerate(runs.values()):
        for key in keys_of(name):
            if key in series:
                steps, values = thinned(series[key])
                held_out = key != name or name.startswith("sample_")
                line = HELD_OUT_LINE if held_out else TRAINING_LINE
                marker = {"marker": "o"} if held_out or len(steps) == 1 else {}
                axes.plot(steps, values, **line, **marker, **look(number))
    axes.set_title(title, fontsize=10, loc="left", y=1.02)
    axes.set_ylabel(unit, fontsize=8)
    axes.yaxis.set_label_coords(-0.19, 0.5)
    axes.locator_params(nbins=4)
    axes.tick_params(labelsize=8)
    axes.grid(color="#DDDDDD", linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def curves(files: Mapping[str, Path]) -> Figure:
    """Return a figure with the curves of one or several runs, one panel per metric.

    Args:
        files: the metrics.jsonl of each run, by the name of the run in the legend.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    runs = {name: read_series(file) for name, file in files.items()}
    names = panels_of(runs)
    columns = min(COLUMNS, max(2, len(names)))
    rows = max(1, math.ceil(len(names) / columns))
    handles = {name: Line2D([], [], linewidth=2, **look(number)) for number, name in enumerate(runs)}
    handles |= {"training data": Line2D([], [], color="#555555", **TRAINING_LINE),
                "held-out data": Line2D([], [], color="#555555", marker="o", **HELD_OUT_LINE)}  # fmt: skip
    head = 0.5 + 0.2 * math.ceil(len(handles) / columns)  # inches above the panels
    width, height = 3.9 * columns + 0.4, 2.6 * rows + head
    figure = Figure(figsize=(width, height), dpi=100)
    last = max([1, *(step for series in runs.values() for name in names for key in keys_of(name)
                     for step in series.get(key, Series()).steps[-1:])])  # fmt: skip
    for number, name in enumerate(names):
        axes = figure.add_subplot(rows, columns, number + 1)
        draw_panel(axes, name, runs)
        axes.set_xlim(-0.02 * last, 1.02 * last)
        if number + columns >= len(names):
            axes.set_xlabel("training iteration", fontsize=8)
    if not names:
        figure.text(0.5, 0.5, "No metrics yet", ha="center")
    figure.legend(list(handles.values()), list(handles), loc="upper left", ncols=columns, fontsize=8, frameon=False)
    figure.subplots_adjust(
        left=0.8 / width, right=1 - 0.2 / width, bottom=0.5 / height, top=1 - head / height, wspace=0.3, hspace=0.45
    )
    return figure


def save_figure(figure: Figure, target: Path) -> None:
    """Write a picture in PNG that is whole or not there."""
    with replacing(target, durable=False) as part:
        figure.savefig(part, format="png")


class CurveFile:
    """`curves.png` of a run directory.

    After the first picture, drawing takes at most `SHARE` of the time of the run: pictures of evaluations in quick
    succession are skipped, except the last.
    """

    def __init__(self, directory: Path):
        self.directory, self.started, self.spent = directory, time.perf_counter(), 0.0

    def draw(self, last: bool) -> None:
        """Draw the contents of metrics.jsonl. last: no evaluation follows."""
        begin = time.perf_counter()
        if not last and self.spent > SHARE * (begin - self.started):
            return
        name = "/".join(self.directory.parts[-2:])
        save_figure(curves({name: self.directory / METRICS}), self.directory / CURVES)
        self.spent += time.perf_counter() - begin
