"""Output of a comparison: a Pareto plot of quality against evaluations, a table, a CSV and a JSON file.

A record is a plain dict. For the plot it is {"name", "x", "y"} and optionally {"lo", "hi"} (an interval): one point of one
method, where x is its cost (network evaluations per sample, NFE) and y its quality. With `faster_is_right` x is a speed (tokens
per forward), and "x_lo", "x_hi" are its interval.
"""

import csv
import json
import math
import os
import re
from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from training.files import replacing, write_text
from training.terminal import is_quiet, printable

Point = tuple[float | int, float | int]  # cost, quality

# Okabe and Ito's colours, which colour-blind readers can distinguish; a marker each, for print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#8C6D31")
MARKERS = "osD^vPX*"
FILE_WIDTH = 200  # columns of a table that goes into a file or a pipe, whose width is unknown
LINES = ("-", "--", ":", "-.")


def pareto_frontier(
    points: Sequence[Point], higher_is_better: bool = True, faster_is_right: bool = False
) -> list[Point]:
    """Return the points that no other point beats in cost and quality at once, from cheap to expensive.

    Args:
        points: (cost, quality); with faster_is_right (speed, quality), from fast to slow.
    """
    sign, along = 1 if higher_is_better else -1, -1 if faster_is_right else 1
    frontier: list[Point] = []
    for cost, quality in sorted(points, key=lambda point: (along * point[0], -sign * point[1])):
        if not frontier or sign * quality > sign * frontier[-1][1]:
            frontier.append((cost, quality))
    return frontier


def plot_pareto(
    records: Sequence[dict],
    path: str | Path,
    y_label: str,
    x_label: str = "evaluations per sample (NFE)",
    title: str = "",
    higher_is_better: bool = True,
    faster_is_right: bool = False,
) -> None:
    """Write a PNG: a line through the frontier of each method, its dominated points faint, intervals as bars.

    Args:
        faster_is_right: x is a speed, and not a cost.
    """
    if not records:
        raise ValueError("there are no records to plot: expected at least one of {name, x, y}.")
    figure = Figure(figsize=(6.4, 4.2), dpi=200, layout="constrained")
    axes = figure.subplots()
    names = list(dict.fromkeys(record["name"] for record in records))
    for place, name in enumerate(names):
        own = [record for record in records if record["name"] == name]
        _plot_method(axes, own, place, higher_is_better, faster_is_right)
    costs = [record["x"] for record in records]
    if max(costs) > 4 * min(costs) > 0:
        axes.set_xscale("log", base=2)
        axes.xaxis.set_major_formatter(ScalarFormatter())
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#888888")
    axes.tick_params(colors="#444444", labelsize=9)
    axes.grid(color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.set_xlabel(x_label)
    axes.set_ylabel(f"{y_label} ({'higher' if higher_is_better else 'lower'} is better)")
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    save_figure(figure, path)


def plot_tpf(
    records: Sequence[dict], path: str | Path, y_label: str, higher_is_better: bool = True, title: str = ""
) -> None:
    """Write a PNG of quality against tokens per forward (TPF), as `plot_pareto` does. No file without records.

    Args:
        records: as those of `plot_pareto`, with x the TPF (None: unknown, not drawn).
    """
    known = [record for record in records if record["x"] is not None]
    if known:
        plot_pareto(known, path, y_label, "tokens per forward (TPF)", title, higher_is_better, faster_is_right=True)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format of the path's suffix, PNG without one."""
    with replacing(path, durable=False) as part:
        figure.savefig(part, format=Path(path).suffix.removeprefix(".") or "png")


def style(place: int) -> tuple[str, str, str]:
    """Return colour, marker and line style of the method at `place`.

    After every eight methods the markers move by one and the line style changes, so that no colour repeats with its marker
    (up to 64 methods).
    """
    turn, number = divmod(place, len(COLOURS))
    return COLOURS[number], MARKERS[(number + turn) % len(MARKERS)], LINES[turn % len(LINES)]


def _plot_method(axes: Axes, records: list[dict], place: int, higher_is_better: bool, faster_is_right: bool) -> None:
    colour, marker, dashes = style(place)
    frontier = pareto_frontier([(record["x"], record["y"]) for record in records], higher_is_better, faster_is_right)
    for record in records:
        strength = 1.0 if (record["x"], record["y"]) in frontier else 0.3
        if "lo" in record:
            axes.vlines(record["x"], record["lo"], record["hi"], color=colour, linewidth=1.2, alpha=0.5 * strength)
        if "x_lo" in record:
            axes.hlines(record["y"], record["x_lo"], record["x_hi"], color=colour, linewidth=1.2, alpha=0.5 * strength)
        if strength < 1:
            axes.plot(record["x"], record["y"], marker, color=colour, markersize=4.5, alpha=strength, markeredgewidth=0)
    axes.plot(
        *zip(*frontier, strict=True), color=colour, marker=marker, linestyle=dashes, markersize=5.5, linewidth=1.6,
        markeredgecolor="white", markeredgewidth=0.6, label=records[0]["name"],
    )  # fmt: skip


def print_table(records: Sequence[dict], title: str = "", console: Console | None = None) -> None:
    """Print the records as a table, one column per field in the order of first appearance."""
    if is_quiet():
        return
    table = Table(title=escape(printable(title)) or None, title_justify="left")
    columns = _columns(records)
    for column in columns:
        numeric = all(isinstance(record.get(column, 0), int | float) for record in records)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for record in records:
        table.add_row(*(_show(record.get(column, "")) for column in columns))
    console = console or Console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    console.print(table)


def write_csv(records: Sequence[dict], path: str | Path) -> None:
    """Write one line per record under a line of column names; missing fields are empty. Text that a spreadsheet would
    compute gets an apostrophe.
    """
    with replacing(path, durable=False) as part, part.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        columns = _columns(records)
        writer.writerow(map(cell, columns))
        writer.writerows([cell(record.get(column, "")) for column in columns] for record in records)


def cell(value: object) -> object:
    """Return the value of a CSV cell. Text that begins with = + - @, a tab or a carriage return and is not a number gets
    an apostrophe in front.
    """
    if not isinstance(value, str) or not value.startswith(("=", "+", "-", "@", "\t", "\r")):
        return value
    return value if re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?", value) else f"'{value}"


def write_json(content: dict | Sequence[dict], path: str | Path) -> None:
    """Write standard JSON; numbers that are not finite become null."""
    write_text(path, json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n")


def _columns(records: Sequence[dict]) -> list[str]:
    return list(dict.fromkeys(column for record in records for column in record))


def _show(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else escape(printable(str(value)))


def _finite(value: object) -> object:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value
