"""Preferences as rows that a reward model learns from: whole answers, prefixes of one length, or canvases under one mask.

Partial rewards are those of PARGS ("A Critical Look At Tokenwise Reward-Guided Text Generation", 2406.07780): a Bradley-Terry
model of answers that were cut at the same length. What differs: rows are token ids, cut as ids and never decoded and encoded
again, and an answer that was cut has no end of sequence behind it; lengths go up to that of the shorter answer, since none is
padded; pieces that are equal are dropped and counted; one template, `encode`, serves training and decoding. For masked models
both answers stand on a canvas filled up with the end of sequence, under one mask that is drawn for the pair: at random, as a
prefix, or in blocks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from data.pairs import FIELDS
from data.text import json_lines
from rewards.template import encode, end_id
from training.hub import hide_data_bars, prepare

if TYPE_CHECKING:
    import datasets

SHAPES = ("random", "prefix", "block")
BLOCKS = (4, 8, 16, 32)
# Our name -> arguments of `load_dataset`, and the name of its held-out split. TL;DR's is the parquet copy of what a script made.
HUB = {
    "tldr": (
        {"path": "openai/summarize_from_feedback", "data_dir": "comparisons", "revision": "refs/convert/parquet"},
        "validation",
    ),
    "hh": ({"path": "Anthropic/hh-rlhf"}, "test"),
}
ASSISTANT = "\n\nAssistant:"


@dataclass(frozen=True)
class Preference:
    """A prompt, the answer that was preferred and the one that was not. An answer stands right behind its prompt; one that does
    not end was cut off, and has no end of sequence."""

    prompt: str
    chosen: str
    rejected: str
    chosen_ends: bool = True
    rejected_ends: bool = True


# ----------------------------------------------------------------------------------------------------------------- loading


def tldr_prompt(info: dict) -> str:
    """The template of the published prompts (CarperAI/openai_summarize_tldr), so that training and decoding have the same."""
    return f"SUBREDDIT: r/{info['subreddit']}\nTITLE: {info['title']}\nPOST: {info['post']}\nTL;DR:"


def of_tldr(row: dict) -> Preference | str:
    """A row of summarize_from_feedback's comparisons; those about news articles have no post and are left out."""
    if row["info"]["post"] is None:
        return "no post"
    answers = [" " + summary["text"].strip() for summary in row["summaries"]]
    return Preference(tldr_prompt(row["info"]), answers[row["choice"]], answers[1 - row["choice"]])


def of_hh(row: dict) -> Preference | str:
    """A row of hh-rlhf: two talks that differ in the assistant's last turn."""
    (prompt, chosen), (other, rejected) = (split_talk(row[side]) for side in ("chosen", "rejected"))
    return Preference(prompt, chosen, rejected) if prompt == other else "prompts differ"


def split_talk(talk: str) -> tuple[str, str]:
    """The talk up to the last turn's `Assistant:`, and that turn."""
    before, mark, after = talk.rpartition(ASSISTANT)
    return before + mark, after


def load_preferences(
    name: str, split: str, cache_dir: str | Path | None = None, count: int | None = None, seed: int = 0
) -> tuple[list[Preference], Counter[str]]:
    """The preferences of a data set, and how many of its rows were dropped, by reason: `identical` sides, `no post`, ...

    name: `tldr`, `hh`, or a JSONL file of ours (fields prompt, chosen, rejected, and chosen_ends and rejected_ends where one was
    cut off), which is its own split. A data set is looked for as the folder cache_dir/NAME (of `save_to_disk`), then on the hub.
    split: train or valid. count: so many rows, drawn by `seed` (None: all). Raises ValueError for data that cannot be reached,
    for a broken line, and where nothing is left.
    """
    if name not in HUB:
        path = Path(name)
        if not path.is_file():
            known = ", ".join(HUB)
            raise ValueError(
                f"the preferences {name} are no file; give one of {known}, or JSONL with {', '.join(FIELDS)}"
            )
        rows: Any = [_of_line(place, record) for place, record in json_lines(path)]
    else:
        rows = _hub_rows(name, split, cache_dir)
    if count is not None and count < len(rows):
        chosen = sorted(np.random.default_rng(seed).choice(len(rows), count, replace=False).tolist())
        rows = [rows[number] for number in chosen]
    read = {"tldr": of_tldr, "hh": of_hh}.get(name, lambda row: row)
    dropped: Counter[str] = Counter()
    kept = []
    for row in rows:
        found = read(row)
        if isinstance(found, Preference) and found.chosen.strip() == found.rejected.strip():
            found = "identical"
        if isinstance(found, str):
            dropped[found] += 1
        else:
            kept.append(found)
    if not kept:
        told = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "it is empty"
        raise ValueError(f"{name} leaves no pair to learn from ({told}); give others")
    return kept, dropped


def split_preferences(
    train: str, valid: str | None = None, *, cache_dir: str | Path | None = None, count: int | None = None,
    valid_count: int | None = None, held_out: float = 0.1, seed: int = 0,
) -> tuple[list[Preference], list[Preference], Counter[str]]:  # fmt: skip
    """Return the preferences to learn from, the held-out ones, and how many rows were dropped, by reason.

    Args:
        train, valid: names as `load_preferences` takes them. valid=None holds out the own split of a data set of the hub, and the
            last pairs of a file.
        count, valid_count: at most so many pairs of each.
        held_out: share of a file that is held out where valid is None.

    Raises:
        ValueError: as `load_preferences`, and for a file with too few pairs to hold some out.
    """
    learnt, dropped = load_preferences(train, "train", cache_dir, count, seed)
    if valid is None and train not in HUB:
        kept = len(learnt) - max(1, round(held_out * len(learnt)))
        if kept < 1:
            raise ValueError(f"{train} has {len(learnt)} pairs, too few to hold some out; give data.valid")
        return learnt[:kept], learnt[kept:][:valid_count], dropped
    others, of_valid = load_preferences(valid or train, "valid", cache_dir, valid_count, seed)
    return learnt, others, dropped + of_valid


def _of_line(place: str, record: object) -> Preference:
    if not isinstance(record, dict) or not all(isinstance(record.get(field), str) for field in FIELDS):
        raise ValueError(f"{place}: expected the texts {', '.join(FIELDS)}; mend or delete the line")
    ends = {f"{side}_ends": record.get(f"{side}_ends", True) for side in FIELDS[1:]}
    if wrong := [f"{name}={value!r}" for name, value in ends.items() if not isinstance(value, bool)]:
        raise ValueError(f"{place}: {wrong[0]} must be true or false; mend or delete the line")
    return Preference(*(record[field] for field in FIELDS), *ends.values())


def _hub_rows(name: str, split: str, cache_dir: str | Path | None) -> datasets.Dataset:
    from datasets import DatasetDict, load_dataset, load_from_disk

    hide_data_bars()
    where, held_out = HUB[name]
    wanted = held_out if split == "valid" else split
    folder = None if cache_dir is None else Path(cache_dir) / name
    if folder is not None and folder.is_dir():
        saved = load_from_disk(str(folder))
        return saved[wanted] if isinstance(saved, DatasetDict) else saved
    prepare(where["path"], "data set")
    try:
        return load_dataset(**where, split=wanted, cache_dir=None if cache_dir is None else str(cache_dir))  # pyright: ignore
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the data set '{name}' (hub id {where['path']}) cannot be reached: check the network, or put a folder {name} of "
            f"`save_to_disk` into data.cache_dir, which is {cache_dir}"
        ) from error


# -------------------------------------------------------------------------------------------------------------------- rows


def draw_mask(length: int, shape: str, rng: np.random.Generator) -> np.ndarray:
    """Which of `length` positions are masked: a share of about t ~ Beta(1, 2), seldom near 1, where nothing can be told apart.

    random: each by itself. prefix: all but the first, as when writing from the left. block: blocks before one are shown and those
    behind it masked, as when writing block by block; within it each by itself.
    """
    share = rng.beta(1, 2)
    place = np.arange(length)
    if shape == "random":
        return rng.random(length) < share
    if shape == "prefix":
        return place >= max(1, round((1 - share) * length))
    size = int(rng.choice([block for block in BLOCKS if block <= length] or [length]))
    current = int((1 - share) * length) // size
    return (place // size > current) | ((place // size == current) & (rng.random(length) < rng.random()))


Row = dict[str, Any]


def full_rows(prompt: list[int], chosen: list[int], rejected: list[int]) -> Iterator[Row]:
    """Both whole answers."""
    yield {
        "chosen_ids": prompt + chosen,
        "rejected_ids": prompt + rejected,
        "length": max(len(chosen), len(rejected)),
        "masked": 0.0,
    }


def prefix_rows(
    prompt: list[int], chosen: list[int], rejected: list[int], rng: np.random.Generator, count: int | None
) -> Iterator[Row]:
    """Both answers cut at the same length, for every length that both have and at which they differ; or `count` of these."""
    shorter = min(len(chosen), len(rejected))
    same = next((at for at in range(shorter) if chosen[at] != rejected[at]), shorter)
    lengths = np.arange(same + 1, shorter + 1)
    if count is not None and count < len(lengths):
        lengths = np.sort(rng.choice(lengths, count, replace=False))
    for length in lengths.tolist():
        yield {
            "chosen_ids": prompt + chosen[:length],
            "rejected_ids": prompt + rejected[:length],
            "length": length,
            "masked": 0.0,
        }


def mask_rows(
    prompt: list[int], chosen: list[int], rejected: list[int], rng: np.random.Generator, count: int, canvas: int | None,
    end: int, mask: int,
) -> Iterator[Row]:  # fmt: skip
    """Both answers on canvases of one length, filled up with the end of sequence: once whole, and under `count` masks that both
    have in common. canvas: positions of prompt and answer together; None: as many as the longer answer needs. Rows whose visible
    parts are equal are not given."""
    length = max(len(chosen), len(rejected)) if canvas is None else canvas - len(prompt)
    sides = [np.array(side + [end] * (length - len(side))) for side in (chosen, rejected)]
    masks = [np.zeros(length, dtype=bool)]
    masks += [draw_mask(length, str(rng.choice(SHAPES)), rng) for _ in range(count)]
    for masked in masks:
        one, other = (np.where(masked, mask, side) for side in sides)
        if (one != other).any():
            share = float(masked.mean())
            yield {
                "chosen_ids": prompt + one.tolist(),
                "rejected_ids": prompt + other.tolist(),
                "length": length,
                "masked": share,
            }


def preference_rows(
    preferences: Sequence[Preference], tokenizer: Any, kind: str, max_length: int, count: int | None = None,
    canvas: int | None = None, seed: int = 0,
) -> tuple[datasets.Dataset, Counter[str]]:  # fmt: skip
    """Rows for TRL's RewardTrainer, which takes pairs as ids (columns `chosen_ids`, `rejected_ids`) as they are; `length` of the
    answers and share `masked` besides; and what was dropped, by reason.

    kind: full, prefix (count: lengths drawn of each pair, None all of them) or mask (count masks of each pair, besides none). A
    pair of which one side is longer than max_length, or than canvas, is dropped. What is drawn for a pair depends on `seed` and
    its number alone. Raises ValueError where nothing is left.
    """
    from datasets import Dataset, Features, List, Value, concatenate_datasets

    ids = List(Value("int32"))
    columns = Features({"chosen_ids": ids, "rejected_ids": ids, "length": Value("int32"), "masked": Value("float32")})
    dropped: Counter[str] = Counter()
    rows: list[Row] = []
    parts: list[Dataset] = []
    longest = max_length if canvas is None else min(canvas, max_length)
    for number, preference in enumerate(preferences):
        prompt, chosen = encode(tokenizer, preference.prompt, preference.chosen, preference.chosen_ends)
        _, rejected = encode(tokenizer, preference.prompt, preference.rejected, preference.rejected_ends)
        if len(prompt) + max(len(chosen), len(rejected)) > longest:
            dropped[f"longer than {longest}"] += 1
            continue
        rng = np.random.default_rng((seed, number))
        if kind == "full":
            made = full_rows(prompt, chosen, rejected) if chosen != rejected else []
        elif kind == "prefix":
            made = prefix_rows(prompt, chosen, rejected, rng, count)
        else:
            made = mask_rows(
                prompt, chosen, rejected, rng, count or 4, canvas, end_id(tokenizer), tokenizer.mask_token_id
            )
        before = len(rows)
        rows.extend(made)
        dropped["identical ids"] += len(rows) == before
        if len(rows) > 10_000:  # as Python lists they are ten times as large
            parts.append(Dataset.from_list(rows, features=columns))
            rows = []
    parts += [Dataset.from_list(rows, features=columns)] if rows else []
    dropped = +dropped
    if not parts:
        told = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        raise ValueError(f"no pair is left of {len(preferences)} ({told}); raise data.max_length, or give other data")
    return concatenate_datasets(parts), dropped
