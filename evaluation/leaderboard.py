"""Leaderboards of accuracy under parallelism: files of points, and the table of AUP for each method and task.

A leaderboard is a YAML mapping task -> method -> list of [tokens per forward, accuracy in percent], as published with
arXiv 2601.07568. Other sources of points are the directory of an evaluation (`unmask evaluate`), its summary_statistics.csv,
and CSV and JSON files of points.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from evaluation.aup import ALPHA, Outcomes, Point, Real, SeriesAup, aup, check_points, sweep_aup, usable
from evaluation.generations import finished_in
from evaluation.report import print_table
from evaluation.summary import Results, outcomes_of
from training.files import write_text
from training.stored import parsed_yaml, read_bytes, read_json

Board = dict[str, dict[str, list[Point]]]  # points of each method, by task
DIGITS = 4  # of numbers that are written to a leaderboard
NUMBERS = {
    "tpf": ("tpf_mean", "tpf"),
    "accuracy": ("accuracy_mean", "accuracy"),
}  # columns of CSV files, first one first


@dataclass(frozen=True)
class Measured:
    """Points of methods, and the results of each problem where they are known.

    outcomes: settings of each method, by task; empty for files of points.
    """

    board: Board
    outcomes: dict[str, dict[str, list[Outcomes]]] = field(default_factory=dict)

    def renamed(self, method: str | None, task: str | None, origin: str) -> Measured:
        """Return the source with its only method and its only task under other names (None: their own).

        Raises:
            ValueError: there are several methods or tasks.
        """
        methods = list(dict.fromkeys(name for methods in self.board.values() for name in methods))
        for flag, new, own in (("METHOD", method, methods), ("--task", task, list(self.board))):
            if new is not None and len(own) > 1:
                raise ValueError(
                    f"{origin} holds {', '.join(own)}, which cannot all be named {new!r}; leave {flag} out, or give a source "
                    "of one"
                )

        def named(tasks: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
            return {task or of: {method or name: found for name, found in own.items()} for of, own in tasks.items()}

        return Measured(named(self.board), named(self.outcomes))


def read_leaderboard(file: Path) -> Board:
    """Read a leaderboard. ValueError names the file, the place and what is expected there."""
    return board_of(parsed_yaml(read_bytes(file), str(file)), str(file))


def board_of(found: Any, origin: str) -> Board:
    """Check a mapping task -> method -> list of points, and return it. ValueError names the place."""
    expected = "expected task: {method: [[tokens per forward, accuracy in percent], ...]}"
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{origin} is no leaderboard; {expected}")
    board: Board = {}
    for task, methods in found.items():
        if not isinstance(methods, dict) or not methods:
            raise ValueError(f"{origin}: task {task} has no methods; {expected}")
        found_here = {str(name): points_of(own, f"{origin}: {task}, {name}") for name, own in methods.items()}
        checked([point for own in found_here.values() for point in own], f"{origin}: {task}")
        board[str(task)] = found_here
    return board


def points_of(found: Any, place: str) -> list[Point]:
    """Check a list of pairs of numbers, and return it. place: for messages."""
    pairs = found if isinstance(found, list) else []
    right = pairs and all(isinstance(pair, list) and len(pair) == 2 and all(map(is_number, pair)) for pair in pairs)
    if not right:
        raise ValueError(
            f"{place}: {str(found)[:60]!r} is no list of points; expected [[tokens per forward, accuracy in percent], ...]"
        )
    return checked([(float(rho), float(accuracy)) for rho, accuracy in pairs], place, check_scale=False)


def checked(points: list[Point], place: str, check_scale: bool = True) -> list[Point]:
    """Return points; ValueError names their place if they have no AUP.

    Args:
        check_scale: refuse points that all look like shares of 1. One method of a task may solve nearly nothing.
    """
    try:
        check_points(points, check_scale=check_scale)
    except ValueError as error:
        raise ValueError(f"{place}: {error}") from error
    return points


def is_number(value: object) -> bool:
    """Return whether a value of a file is a number. True and False are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def write_leaderboard(board: Board, file: Path) -> None:
    """Write a leaderboard. Comment lines at the beginning of an existing file stay; other comments are lost."""
    head = []
    for line in file.read_text(encoding="utf-8").splitlines() if file.is_file() else []:
        if line.strip() and not line.startswith("#"):
            break
        head.append(line + "\n")
    plain = {task: {name: [list(point) for point in own] for name, own in methods.items()}
             for task, methods in board.items()}  # fmt: skip
    text = yaml.safe_dump(plain, sort_keys=False, default_flow_style=None, allow_unicode=True, width=1000)
    write_text(file, "".join(head) + text)


def check_target(file: Path, named: str) -> None:
    """Refuse a file that cannot become a leaderboard: ValueError. named: the flag with its value."""
    if file.suffix not in (".yaml", ".yml"):
        raise ValueError(f"{named} must end in .yaml; give another name")
    if not file.absolute().parent.is_dir():
        raise ValueError(f"{named}: the directory {file.parent} does not exist; make it, or give another file")
    if file.exists():
        read_leaderboard(file)


def merged(first: Board, second: Board) -> Board:
    """Return both leaderboards together. A method of `second` replaces the points of the same method and task."""
    tasks = dict.fromkeys([*first, *second])
    return {task: first.get(task, {}) | second.get(task, {}) for task in tasks}


# ---------------------------------------------------------------------------------------------------- sources of points


def evaluated(results: Results) -> Measured:
    """Return the points of finished evaluations. A method is a series: one rule or policy with all its settings.

    The leaderboard leaves out the settings for which AUP is not defined (`usable`). Accuracies become percentages.
    """
    outcomes = outcomes_of(results)
    board = {
        task: {name: rounded(usable([one.point for one in own])) for name, own in methods.items()}
        for task, methods in outcomes.items()
    }
    named = {task: {name: own for name, own in methods.items() if own} for task, methods in board.items()}
    known = {task: {name: outcomes[task][name] for name in methods} for task, methods in named.items() if methods}
    return Measured({task: named[task] for task in known}, known)


def rounded(points: Sequence[Point]) -> list[Point]:
    """Return points with a few digits, for a file."""
    return [(round(rho, DIGITS), round(accuracy, DIGITS)) for rho, accuracy in points]


def results_in(directory: Path) -> Results:
    """Return the finished evaluations of a directory. ValueError if there are none."""
    found: Results = {}
    for one in finished_in(directory):
        if "accuracy" in (row := one["metrics"]):
            found.setdefault((row["name"], row["dataset"]), []).append((row, one["generations"]))
    if not found:
        raise ValueError(f"{directory} holds no finished evaluation on questions; give the --out of unmask evaluate")
    return found


def source_of(path: Path, method: str | None = None, task: str | None = None) -> Measured:
    """Return the points of a directory, or of a file that ends in .yaml, .csv or .json.

    Args:
        method, task: new names of the only method and the only task.

    Raises:
        ValueError: the source does not exist, has another format, or holds several methods or tasks that get one name.
    """
    if path.is_dir():
        found = evaluated(results_in(path))
    elif path.suffix in (".yaml", ".yml"):
        found = Measured(read_leaderboard(path))
    elif path.suffix == ".csv":
        found = Measured(csv_board(path, method or path.stem, task))
    elif path.suffix == ".json":
        found = Measured(json_board(path, method or path.stem, task))
    else:
        raise ValueError(
            f"{path} is no source of points; give the --out of unmask evaluate, or a .yaml, .csv or .json file"
        )
    return found.renamed(method, task, str(path))


def csv_point(line: dict[str, str], place: str) -> tuple[Point, bool]:
    """Return the point of one line of a CSV file, in percent, and whether the file has its accuracy as a share.

    Args:
        line: values by column.
        place: file and line, for messages.
    """
    found = {key: next((name for name in names if line.get(name)), None) for key, names in NUMBERS.items()}
    if None in found.values():
        raise ValueError(
            f"{place} has no tpf and accuracy; give summary_statistics.csv of unmask evaluate, or a file with the columns tpf "
            "and accuracy (percent)"
        )
    try:
        rho, accuracy = float(line[str(found["tpf"])]), float(line[str(found["accuracy"])])
    except ValueError as error:
        raise ValueError(f"{place}: {error}; give numbers") from error
    is_share = found["accuracy"] == "accuracy_mean"
    point = (rho, 100 * accuracy if is_share else accuracy)
    checked([point], place, check_scale=False)
    return point, is_share


def csv_board(file: Path, method: str, task: str | None) -> Board:
    """Return the points of a CSV file.

    Columns are those of summary_statistics.csv (accuracies are shares), or `tpf` and `accuracy` in percent. `series` or
    `method`, and `dataset` or `task` are optional.
    """
    try:
        lines = list(csv.DictReader(io.StringIO(read_bytes(file).decode("utf-8-sig"))))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{file} cannot be read as CSV ({error}); it is damaged, give another") from error
    board: Board = {}
    shares = False
    for number, line in enumerate(lines, start=2):
        point, is_share = csv_point(line, f"{file} line {number}")
        of = line.get("dataset") or line.get("task") or task
        if of is None:
            raise ValueError(f"{file} names no task; give --task, or a column task")
        name = line.get("series") or line.get("method") or method
        board.setdefault(of, {}).setdefault(name, []).append(point)
        shares |= is_share
    if not board:
        raise ValueError(f"{file} holds no points; give a file with the columns tpf and accuracy (percent)")
    for of, methods in board.items():
        checked([point for own in methods.values() for point in own], f"{file}: {of}", check_scale=not shares)
    return {of: {name: rounded(usable(own)) for name, own in methods.items()} for of, methods in board.items()}


def json_board(file: Path, method: str, task: str | None) -> Board:
    """Return the points of a JSON file: a list of points of one task, or the mapping of a leaderboard."""
    found = read_json(file)
    if isinstance(found, dict):
        return board_of(found, str(file))
    if task is None:
        raise ValueError(f"{file} names no task; give --task")
    return board_of({task: {method: found}}, str(file))


# ------------------------------------------------------------------------------------------------------------ the table


def best_accuracies(board: Board) -> dict[str, float]:
    """Return y_max of each task: the best accuracy of any method at any point."""
    return {task: max(y for own in methods.values() for _, y in own) for task, methods in board.items()}


def scores(board: Board, alpha: Real = ALPHA) -> dict[str, dict[str, float]]:
    """Return AUP by task and method. ValueError names a method whose AUP is not defined."""
    found: dict[str, dict[str, float]] = {}
    for (task, methods), best in zip(board.items(), best_accuracies(board).values(), strict=True):
        found[task] = {}
        for name, own in methods.items():
            try:
                found[task][name] = aup(own, best, alpha)
            except ValueError as error:
                raise ValueError(f"{task}, {name}: {error}") from error
    return found


def intervals(
    outcomes: Mapping[str, Mapping[str, Sequence[Outcomes]]], board: Board, alpha: Real = ALPHA
) -> dict[str, dict[str, SeriesAup]]:
    """Return AUP with intervals, by task and method, of the methods whose results on each problem are known.

    If all methods of a task are known on equally many problems, resamples draw y_max anew (`sweep_aup`). Otherwise y_max is
    the constant of the leaderboard.
    """
    found: dict[str, dict[str, SeriesAup]] = {}
    for task, own in outcomes.items():
        counts = {len(one.right) for settings in own.values() for one in settings}
        if own.keys() == board.get(task, {}).keys() and len(counts) == 1:
            found[task] = sweep_aup(own, None, alpha)
        else:
            best = best_accuracies(board)
            found[task] = {name: sweep_aup({name: one}, best[task], alpha)[name] for name, one in own.items()}
    return found


def table(
    found: Mapping[str, Mapping[str, float]], known: Mapping[str, Mapping[str, SeriesAup]] | None = None
) -> list[dict[str, Any]]:
    """Return a record for each method: AUP on each task, and the mean of a method that has all tasks.

    Args:
        found: AUP by task and method.
        known: intervals by task and method, where there are any.
    """
    methods = dict.fromkeys(name for own in found.values() for name in own)
    records = []
    for name in methods:
        record: dict[str, Any] = {"method": name}
        for task, own in found.items():
            series = (known or {}).get(task, {}).get(name)
            cell = "" if name not in own else f"{own[name]:.2f}"
            record[task] = cell if series is None else f"{cell} [{series.aup.low:.2f}, {series.aup.high:.2f}]"
        values = [own[name] for own in found.values() if name in own]
        record["mean"] = f"{math.fsum(values) / len(values):.2f}" if len(values) == len(found) else ""
        records.append(record)
    return records


def together(file: Path | None, added: Sequence[str], task: str | None = None) -> Measured:
    """Return the points of a leaderboard and of added sources. A later method replaces an earlier one of its name.

    Args:
        file: a leaderboard, or another source of points (`source_of`). None: the added sources alone.
        added: SOURCE, whose methods keep their names, or METHOD=SOURCE.
        task: name of the task of the added sources.
    """
    whole = Measured({}) if file is None else source_of(file)
    for word in added:
        method, _, path = ("", "", word) if Path(word).exists() else word.rpartition("=")
        more = source_of(Path(path), method or None, task)
        known = {of: {name: one for name, one in own.items() if name not in more.board.get(of, {})}
                 for of, own in whole.outcomes.items()}  # fmt: skip
        for of, own in more.outcomes.items():
            known[of] = known.get(of, {}) | own
        whole = Measured(merged(whole.board, more.board), {of: own for of, own in known.items() if own})
    return whole


def run(file: Path | None, added: Sequence[str], task: str | None, alpha: Real, save: Path | None) -> None:
    """Print the table of AUP and one line of JSON; write the points to `save` if it is given. Arguments as `together`."""
    if file is None and not added:
        raise ValueError("there are no points to score; give a leaderboard, the --out of unmask evaluate, or --add")
    if task is not None and not added:
        raise ValueError(f"--task {task} would do nothing without --add, whose task it names; leave it out")
    if save is not None:
        check_target(save, f"--save {save}")
    source = together(file, added, task)
    found = scores(source.board, alpha)
    known = intervals(source.outcomes, source.board, alpha)
    if save is not None:
        write_leaderboard(source.board, save)
    print_table(table(found, known), title=f"AUP, accuracy under parallelism (alpha {alpha:g})")
    limits = {task: {name: [one.aup.low, one.aup.high] for name, one in own.items()} for task, own in known.items()}
    line = {"alpha": alpha, "best": best_accuracies(source.board), "aup": found, "intervals": limits}
    print(json.dumps(line, allow_nan=False))
