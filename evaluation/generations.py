"""The files of one evaluation: one line of JSON per sample, so that a killed evaluation can be resumed.

DIR/settings.json settings that decide the samples; an evaluation with other settings is refused in DIR DIR/generations.jsonl one
line per sample, sorted by question at the end DIR/generations.rankN.jsonl lines of process N; the first process merges them at
the end
"""

from __future__ import annotations

import json
from collections.abc import Container
from pathlib import Path

from training.files import make_directory, whole_lines, write_text
from training.processes import Processes
from training.stored import parsed_json, read_json_object


def begin(directory: Path, settings: dict, group: Processes) -> set[int]:
    """Create or enter the directory, and return the questions that are answered there. All processes call it and get the
    same set.

    Raises:
        ValueError: the directory holds an evaluation of other settings, or unreadable lines.
    """
    state: dict = {}
    if group.first:
        try:
            check_settings(directory, settings)
            state = {"done": [record["row"] for record in read_records(directory)]}
        except ValueError as error:
            state = {"error": str(error)}
    state = json.loads(group.broadcast(json.dumps(state)))
    if "error" in state:
        raise ValueError(state["error"])
    return set(state["done"])


def check_settings(directory: Path, settings: dict) -> None:
    """Write settings.json, or compare the settings with an existing one. ValueError names the difference."""
    make_directory(directory, f"--out {directory}")
    file = directory / "settings.json"
    if not file.is_file():
        if next(directory.glob("generations*.jsonl"), None):
            raise ValueError(f"{directory} holds generations without settings.json; give another --out")
        write_text(file, json.dumps(settings, indent=1) + "\n", durable=True)
        return
    there = read_json_object(file)
    requested = json.loads(json.dumps(settings))
    if differing := [key for key in there | requested if there.get(key) != requested.get(key)]:
        differences = ", ".join(f"{key}={there.get(key)} (now {requested.get(key)})" for key in differing)
        raise ValueError(f"{directory} holds an evaluation with {differences}; give another --out")


def check_beside(directory: Path, settings: dict, columns: Container[str], of_data: Container[str] = ()) -> None:
    """Refuse to put an evaluation into one table with another that is not comparable.

    Args:
        directory: of this evaluation; evaluations beside it share its tables.
        settings: the settings that decide its samples.
        columns: settings that may differ, because they are columns of the tables.
        of_data: settings that are compared with evaluations of the same `dataset` only.

    Raises:
        ValueError: names the other evaluation and the difference.
    """
    if (directory / "settings.json").is_file():  # it exists already; `begin` compares the settings
        return
    requested = json.loads(json.dumps(settings))
    for file in sorted(directory.parent.glob("*/settings.json")):
        there = read_json_object(file)
        if file.parent == directory:
            continue
        skipped = () if there.get("dataset") == settings.get("dataset") else of_data
        keys = [key for key in there | requested if key not in columns and key not in skipped]
        if differing := [key for key in keys if there.get(key) != requested.get(key)]:
            differences = ", ".join(f"{key}={there.get(key)} (now {requested.get(key)})" for key in differing)
            raise ValueError(
                f"{directory.parent} holds {file.parent.name} with {differences}, which does not belong into one table with "
                f"{directory.name}; give another directory"
            )


def finished_in(base: Path) -> list[dict]:
    """Return generations.json of the finished evaluations in `base`, by directory."""
    return [read_json_object(file) for file in sorted(base.glob("*/generations.json"))]


def read_records(directory: Path) -> list[dict]:
    """Return the records of all samples so far, by question. An incomplete last line, left by a kill, is cut off."""
    records = {}
    for file in sorted(directory.glob("generations*.jsonl")):
        for number, line in enumerate(whole_lines(file), start=1):
            record = parsed_json(line.encode(), f"{file} line {number}")
            if not isinstance(record, dict) or not isinstance(record.get("row"), int):
                raise ValueError(f"{file} line {number} is no record of a sample; take the line out, or the directory")
            records[record["row"]] = record
    return [records[row] for row in sorted(records)]


def shard(directory: Path, group: Processes) -> Path:
    """Return the file that this process writes."""
    return directory / ("generations.jsonl" if group.world == 1 else f"generations.rank{group.rank}.jsonl")


def merge(directory: Path) -> list[dict]:
    """Merge all lines into generations.jsonl, sorted by question, and return the records. A kill at any moment loses none."""
    records = read_records(directory)
    lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    write_text(directory / "generations.jsonl", lines, durable=True)
    for file in directory.glob("generations.rank*.jsonl"):
        file.unlink()
    return records
