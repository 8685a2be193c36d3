"""Prompts to be continued, from a file or from the published test sets."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from data.preferences import split_talk
from data.text import json_lines, text_lines
from training.hub import hide_data_bars, load_split, prepare

if TYPE_CHECKING:
    import datasets

# Our name -> arguments of `load_dataset`.
HUB = {
    "tldr": {"path": "CarperAI/openai_summarize_tldr", "split": "test"},
    "hh": {"path": "Anthropic/hh-rlhf", "split": "test"},
}


@dataclass(frozen=True)
class PromptRow:
    """A prompt. label: the answer of the data set, if it has one."""

    prompt: str
    label: str | None = None


def load_prompt_rows(
    name: str, count: int | None = None, seed: int = 42, cache_dir: str | None = None
) -> list[PromptRow]:
    """Return different prompts, in an order drawn by `seed`.

    Args:
        name: `tldr` or `hh` (the folder cache_dir/NAME_prompts of `save_to_disk`, else from the hub), or a JSONL file with
            the field prompt and optionally label (a reference answer). A file of preference pairs is accepted too.
        count: number of prompts (None: all).

    Raises:
        ValueError: a file cannot be read, a line is broken, or there are fewer than `count` prompts.
    """
    rows = _of_file(Path(name)) if name not in HUB else [_of_row(name, dict(row)) for row in _hub_rows(name, cache_dir)]
    unique = list({row.prompt: row for row in reversed(rows)}.values())[::-1]
    if count is not None and count > len(unique):
        raise ValueError(f"{name} has {len(unique)} different prompts and prompts.count is {count}; lower it")
    order = np.random.default_rng(seed).permutation(len(unique))[:count].tolist()
    return [unique[number] for number in order]


def _of_file(path: Path) -> list[PromptRow]:
    if not path.is_file():
        raise ValueError(f"the prompts {path} are no file; give {', '.join(HUB)}, or JSONL with the field prompt")
    rows = []
    for place, record in json_lines(path):
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f"{place}: expected the text prompt; mend or delete the line")
        rows.append(PromptRow(record["prompt"], record.get("label")))
    return rows


def _hub_rows(name: str, cache_dir: str | None) -> datasets.Dataset:
    from datasets import load_from_disk

    hide_data_bars()
    folder = None if cache_dir is None else Path(cache_dir) / f"{name}_prompts"
    if folder is not None and folder.is_dir():
        return cast("datasets.Dataset", load_from_disk(str(folder)))
    try:
        prepare(HUB[name]["path"], "data set")
        return load_split(**HUB[name], cache_dir=cache_dir)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the prompts '{name}' (hub id {HUB[name]['path']}) cannot be reached: check the network, or put a folder "
            f"{name}_prompts of `save_to_disk` into prompts.cache_dir, which is {cache_dir}"
        ) from error


def _of_row(name: str, row: dict) -> PromptRow:
    """Format the prompt as in the reward model's training (data/preferences.py). The published script puts `Context: `
    before it.
    """
    if name == "hh":
        return PromptRow(*split_talk(row["chosen"]))
    return PromptRow(row["prompt"].rstrip(), " " + row["label"].strip())


KINDS = {"prompt": str, "messages": list, "template": str}  # of a line of JSONL, and the type of its value


def load_prompts(path: Path) -> list[tuple[str, Any]]:
    """Return the prompts of a file, each with its kind: prompt (text), messages (chat) or template (text with [MASK:n]).

    Args:
        path: a .txt with one prompt per line, or a .jsonl (.jsonl.gz) whose lines are {"prompt": ...}, {"messages": [...]} or
            {"template": ...}.

    Raises:
        ValueError: the file is of another type, empty or unreadable, or a line has another form.
    """
    if not path.is_file():
        raise ValueError(f"--prompts {path} is no file; give a .txt or .jsonl file")
    if path.suffix == ".txt":
        found: list[tuple[str, Any]] = [("prompt", line.rstrip("\r\n")) for _, line in text_lines(path) if line.strip()]
    elif path.suffix == ".jsonl" or path.name.endswith(".jsonl.gz"):
        found = [_prompt_of(place, record) for place, record in json_lines(path)]
    else:
        raise ValueError(f"--prompts {path} is neither .txt (a prompt a line) nor .jsonl; rename it, or give another")
    if not found:
        raise ValueError(f"--prompts {path} has no prompts; write one a line")
    return found


def _prompt_of(place: str, record: object) -> tuple[str, Any]:
    given = [kind for kind in KINDS if isinstance(record, dict) and kind in record]
    if not isinstance(record, dict) or len(given) != 1 or not isinstance(record[given[0]], KINDS[given[0]]):
        raise ValueError(
            f'{place}: expected {{"prompt": "..."}}, {{"messages": [...]}} or {{"template": "..."}}; mend or delete the line'
        )
    return given[0], record[given[0]]
