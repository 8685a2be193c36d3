"""Settings of data sets and tasks: one class for each file group of configs/data, and those of preference pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from training.fields import REQUIRED, Kinds, Settings, setting
from training.ranges import (
    COUNT,
    FLAG,
    LENGTH,
    NAME,
    ROWS,
    SEED,
    SHARE,
    ListOf,
    Maybe,
    Number,
    OneOf,
    TokenizerName,
    Whole,
)

BOX = ListOf(Whole(1, 5), "[2,3]", (2, 2))
HELD_OUT = Number(0, 1, open_low=True, open_high=True)


@dataclass
class DataSettings(Settings):
    """Settings that all kinds of data have."""

    place: ClassVar[str] = "data."
    kind: str = setting("text", NAME, "the kind of data: text, sudoku, chain, questions or pairs")


@dataclass
class TextSettings(DataSettings):
    """Settings of texts, or of answers to questions in place of texts (data/answers.py)."""

    train: str = setting(
        "stories", NAME, "a data set by name, or a file of texts, or of questions with answers (JSONL)"
    )
    valid: str | None = setting("stories", Maybe(NAME), "held-out data; null: the last tenth of data.train")
    tokenizer: str = setting(
        "data/stories/tokenizer",
        TokenizerName(),
        "a directory, an id of the hub, bpe:N to train one of N tokens, or (policies) model, the model's own",
    )
    packing: str = setting(
        "documents",
        OneOf(("documents", "pack")),
        "documents: every row starts at a text; pack: rows are cut from one stream",
    )
    given: str | None = setting(
        "question",
        Maybe(OneOf(("question", "nothing"))),
        "of questions with answers: question is never masked; nothing: the loss runs over whole rows",
    )
    longer: str | None = setting(
        "drop",
        Maybe(OneOf(("drop", "cut"))),
        "of questions with answers: drop and count rows longer than the canvas, or cut their end",
    )
    valid_rows: int = setting(200, COUNT, "held-out rows")
    cache_dir: str | None = setting(None, Maybe(NAME), "where prepared data sets are looked for and kept")


@dataclass
class GridSettings(DataSettings):
    """Settings of full Sudoku grids and their symmetries, for backbones. Held-out grids belong to other symmetry classes."""

    kind: str = setting("sudoku", NAME, "sudoku")
    box: list[int] = setting([2, 3], BOX, "rows and columns of a box: [2,3] is a 6x6 Sudoku, [3,3] a 9x9")
    base_grids: int = setting(2000, COUNT, "grids of which others are made by symmetries")
    base_clues: int | None = setting(24, Maybe(COUNT), "clues of the base puzzles; null: minimal")
    keep_clues: bool = setting(
        False, FLAG, "never mask clues, so that only boards are seen that solving a puzzle passes through"
    )
    valid_grids: int = setting(256, COUNT, "held-out grids")


@dataclass
class PuzzleSettings(DataSettings):
    """Settings of Sudoku puzzles with one solution, for policies."""

    kind: str = setting("sudoku", NAME, "sudoku")
    box: list[int] = setting([2, 3], BOX, "rows and columns of a box: [2,3] is a 6x6 Sudoku, [3,3] a 9x9")
    clues: int | None = setting(None, Maybe(COUNT), "clues of a puzzle; null: minimal, every clue is necessary")
    base_puzzles: int = setting(4000, COUNT, "puzzles of which others are made by symmetries")
    valid_puzzles: int = setting(512, COUNT, "held-out puzzles")
    seed: int = setting(11, SEED, "of the puzzles")


@dataclass
class ChainSettings(DataSettings):
    """Settings of chain arithmetic with an optional scratchpad (data/chain.py); a tenth of all prompts is held out."""

    kind: str = setting("chain", NAME, "chain")
    steps: int = setting(8, Whole(1, 8), "steps of a problem")
    answer_length: int = setting(24, LENGTH, "positions of the response, end-of-sequence padding included")
    keep: float | int = setting(0.7, SHARE, "probability that a step is written down")
    fewest_steps: int | None = setting(
        None,
        Maybe(Whole(1, 8)),
        "a training batch of the base has problems of so many to data.steps steps; null: data.steps",
    )
    valid_rows: int = setting(512, COUNT, "held-out rows")


@dataclass
class QuestionSettings(DataSettings):
    """Settings of questions with known answers, drawn from the union of data sets (data/questions.py)."""

    kind: str = setting("questions", NAME, "questions")
    datasets: list[str] = setting(
        ["gsm8k"],
        ListOf(NAME, "[gsm8k]"),
        "of gsm8k, math, humaneval, mbpp, kodcode, chain, or names of reasoning-gym (countdown, gsm_symbolic, ...)",
    )
    data_dir: str | None = setting(None, Maybe(NAME), "directory with NAME/train.jsonl, for machines without a hub")
    count: int | None = setting(None, Maybe(COUNT), "questions of each data set; null: all, of generated data sets 512")
    answer_length: int = setting(256, LENGTH, "positions of the response")
    max_prompt_length: int | None = setting(
        512, Maybe(LENGTH), "tokens; longer prompts are left out and counted, never cut; null: no limit"
    )
    valid_rows: int = setting(128, COUNT, "training questions that are held out for evaluations")
    math_by: str = setting(
        "verify",
        OneOf(("verify", "string")),
        "how answers of math compare: verify (equal in value) or string (as published)",
    )
    unsandboxed: bool = setting(False, FLAG, "run programs of the model without a sandbox")


@dataclass
class PairSettings(DataSettings):
    """Settings of preference pairs for rl.algorithm=vrpo (data/pairs.py)."""

    kind: str = setting("pairs", NAME, "pairs")
    pairs: str = setting(REQUIRED, NAME, 'JSONL with a line {"prompt":, "chosen":, "rejected":} for each pair')
    valid_pairs: str | None = setting(None, Maybe(NAME), "held-out pairs; null: the last of data.pairs")
    held_out: float | int = setting(
        0.1, HELD_OUT, "share of data.pairs that is held out, where data.valid_pairs is null"
    )
    length: int | None = setting(None, Maybe(LENGTH), "positions of the canvas; null: the model's longest")


def data_kind(values: Mapping[str, Any]) -> type[DataSettings]:
    """Return the settings class for these values of `data`. ValueError for an unknown kind."""
    kind = str(values.get("kind"))
    if kind not in DATA:
        raise ValueError(f"data.kind={kind!r} is unknown; use one of {', '.join(DATA)}")
    return GridSettings if kind == "sudoku" and "base_grids" in values else DATA[kind]


DATA: dict[str, type[DataSettings]] = {
    "text": TextSettings,
    "sudoku": PuzzleSettings,
    "chain": ChainSettings,
    "questions": QuestionSettings,
    "pairs": PairSettings,
}
SECTION = Kinds("kind", {**DATA, "sudoku, of a backbone": GridSettings}, TextSettings, data_kind)


@dataclass
class PreferenceDataSettings(Settings):
    """Settings of preference pairs of texts (data/preferences.py)."""

    place: ClassVar[str] = "data."
    train: str = setting(
        REQUIRED, NAME, 'tldr, hh, or JSONL with a line {"prompt":, "chosen":, "rejected":} for each pair'
    )
    valid: str | None = setting(
        None, Maybe(NAME), "held-out pairs; null: the held-out split of tldr and hh, of a file its last pairs"
    )
    held_out: float | int = setting(0.1, HELD_OUT, "share of a file that is held out, where data.valid is null")
    cache_dir: str | None = setting(
        None, Maybe(NAME), "where folders tldr and hh of save_to_disk are looked for, and where downloads are kept"
    )
    count: int | None = setting(None, Maybe(COUNT), "pairs to learn from, drawn with seed; null: all")
    valid_count: int = setting(256, COUNT, "held-out pairs")
    max_length: int = setting(
        512, LENGTH, "tokens of prompt and answer; longer answers are cut, longer prompts dropped"
    )


@dataclass
class RewardDataSettings(PreferenceDataSettings):
    """Settings of preference pairs for a reward model."""

    max_length: int = setting(512, LENGTH, "tokens; pairs with a longer row are dropped and counted")
    rows: int | None = setting(
        None,
        Maybe(ROWS),
        "rows of a pair: lengths (reward.kind=prefix; null: all that differ) or masks (mask; null: 4)",
    )
    canvas: int | None = setting(
        None,
        Maybe(LENGTH),
        "reward.kind=mask: positions of prompt and answer, filled up with the end of sequence; null: the longer answer's",
    )
