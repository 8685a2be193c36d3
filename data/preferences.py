"""Preferences as training rows of reward models: whole answers, prefixes of one length, or canvases under one mask.

Partial rewards are those of PARGS ("A Critical Look At Tokenwise Reward-Guided Text Generation", 2406.07780): a
Bradley-Terry model of answers that are cut at the same length. What differs: rows are token ids, cut as ids and never
decoded and encoded again; a cut answer has no end of sequence; lengths go up to that of the shorter answer, without
padding; equal pieces are dropped and counted; one template, `encode`, serves training and decoding. For masked models both
answers are on a canvas that is filled up with the end of sequence, under one mask per pair: random, a prefix, or blocks.
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
from training.hub import hide_data_bars, load_split, prepare

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
    """A prompt, the chosen answer and the rejected one. An answer follows its prompt directly; an answer that was cut off
    has no end of sequence.
    """

    prompt: str
    chosen: str
    rejected: str
    chosen_ends: bool = True
    rejected_ends: bool = True


# ----------------------------------------------------------------------------------------------------------------- loading


def tldr_prompt(info: dict) -> str:
    """Format a prompt by the published template (CarperAI/openai_summarize_tldr), in training and decoding."""
    return f"SUBREDDIT: r/{info['subreddit']}\nTITLE: {info['title']}\nPOST: {info['post']}\nTL;DR:"


def of_tldr(row: dict) -> Preference | str:
    """Convert a row of summarize_from_feedback's comparisons. Rows about news articles have no post and are left out."""
    if row["info"]["post"] is None:
        return "no post"
    answers = [" " + summary["text"].strip() for summary in row["summaries"]]
    return Preference(tldr_prompt(row["info"]), answers[row["choice"]], answers[1 - row["choice"]])


def of_hh(row: dict) -> Preference | str:
    """Convert a row of hh-rlhf: two dialogues that differ in the assistant's last turn."""
    (prompt, chosen), (other, rejected) = (split_talk(row[side]) for side in ("chosen", "rejected"))
    return Preference(prompt, chosen, rejected) if prompt == other else "prompts differ"


def split_talk(talk: str) -> tuple[str, str]:
    """Split a dialogue at the last turn's `Assistant:`."""
    before, mark, after = talk.rpartition(ASSISTANT)
    return before + mark, after


def load_preferences(
    name: str, split: str, cache_dir: str | Path | None = None, count: int | None = None, seed: int = 0
) -> tuple[list[Preference], Counter[str]]:
    """Return the preferences of a data set, and the number of dropped rows by reason (`identical`, `no post`, ...).

    Args:
        name: `tldr`, `hh`, or a JSONL file (fields prompt, chosen, rejected, and chosen_ends and rejected_ends for cut
            answers), which is its own split. A data set is searched as the folder cache_dir/NAME (of `save_to_disk`), then
            on the hub.
        split: train or valid.
        count: number of rows, drawn by `seed` (None: all).

    Raises:
        ValueError: the data cannot be reached, a line is broken, or no row is left.
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
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "it is empty"
        raise ValueError(f"{name} leaves no pair to learn from ({reasons}); give others")
    return kept, dropped


def split_preferences(
    train: str, valid: str | None = None, *, cache_dir: str | Path | None = None, count: int | None = None,
    valid_count: int | None = None, held_out: float = 0.1, seed: int = 0,
) -> tuple[list[Preference], list[Preference], Counter[str]]:  # fmt: skip
    """Return training preferences, held-out preferences, and the number of dropped rows by reason.

    Args:
        train, valid: names as in `load_preferences`. valid=None uses the held-out split of a data set of the hub, and the last
            pairs of a file.
        count, valid_count: largest number of training and held-out pairs.
        held_out: share of a file that is held out if valid is None.

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
    from datasets import DatasetDict, load_from_disk

    hide_data_bars()
    where, held_out = HUB[name]
    wanted = held_out if split == "valid" else split
    folder = None if cache_dir is None else Path(cache_dir) / name
    if folder is not None and folder.is_dir():
        saved = load_from_disk(str(folder))
        return saved[wanted] if isinstance(saved, DatasetDict) else saved
    prepare(where["path"], "data set")
    try:
        return load_split(**where, split=wanted, cache_dir=None if cache_dir is None else str(cache_dir))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the data set '{name}' (hub id {where['path']}) cannot be reached: check the network, or put a folder {name} of "
            f"`save_to_disk` into data.cache_dir, which is {cache_dir}"
        ) from error


# -------------------------------------------------------------------------------------------------------------------- rows


def draw_mask(length: int, shape: str, rng: np.random.Generator) -> np.ndarray:
    """Draw the masked ones of `length` positions. The masked share is about t ~ Beta(1, 2), which is rarely near 1, where both
    answers look alike.

    random: each position independently. prefix: all but the first positions, as in decoding from the left. block: blocks before
    one are shown, those behind it masked, and within it each position independently, as in decoding in blocks.
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
    """Yield both whole answers."""
    yield {
        "chosen_ids": prompt + chosen,
        "rejected_ids": prompt + rejected,
        "length": max(len(chosen), len(rejected)),
        "masked": 0.0,
    }


def prefix_rows(
    prompt: list[int], chosen: list[int], rejected: list[int], rng: np.random.Generator, count: int | None
) -> Iterator[Row]:
    """Yield both answers cut at the same length, for every common length at which they differ; or for `count` of these."""
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
    """Yield both answers on canvases of one length, filled up with the end of sequence: once whole, and under `count`
    common masks.

    Rows whose visible parts are equal are left out.

    Args:
        canvas: positions of prompt and answer together; None: as many as the longer answer needs.
    """
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
    """Return rows for TRL's RewardTrainer (columns `chosen_ids`, `rejected_ids`, `length` of the answers, share `masked`),
    and the number of dropped pairs by reason.

    The draws of a pair depend on `seed` and its number only. A pair with a side longer than max_length, or than canvas, is
    dropped.

    Args:
        kind: full, prefix (count: lengths per pair, None: all) or mask (count: masks per pair, besides none).

    Raises:
        ValueError: no pair is left.
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
        reasons = ", ".join(f"{number} {reason}" for reason, number in dropped.items())
        raise ValueError(
            f"no pair is left of {len(preferences)} ({reasons}); raise data.max_length, or give other data"
        )
    return concatenate_datasets(parts), dropped
