"""Training rows, held-out rows and tokenizer from the `data` section of a configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from data.answers import AnswerRows, encode_pairs, is_answers, row_text, split_pairs
from data.chain import ChainRows, chain_tokenizer
from data.settings import ChainSettings, DataSettings, GridSettings, TextSettings
from data.sudoku import SudokuStream, make
from data.text import EndlessRows, documents, load_texts, pack, train_bpe
from dlm.board import BoardTokenizer
from training.hub import prepare, shipped

if TYPE_CHECKING:
    import datasets


class SudokuRows:
    """An endless stream of full grids. Batch number n is a function of (seed, n) only."""

    prompt = left_out = 0

    def __init__(self, stream: SudokuStream, seed: int):
        self.stream, self.seed, self.drawn = stream, seed, 0

    def next(self, batch: int) -> Int[Tensor, "row cell"]:
        return self.stream.grids(batch, self._generator())

    def _generator(self) -> torch.Generator:
        self.drawn += 1
        return torch.Generator().manual_seed(self.seed * 1_000_003 + self.drawn - 1)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]


class SudokuPuzzleRows(SudokuRows):
    """`SudokuRows` with the clues of each puzzle given: only boards that occur while a puzzle is solved are seen."""

    def next_puzzles(self, batch: int) -> tuple[Int[Tensor, "row cell"], Bool[Tensor, "row cell"]]:
        puzzles = self.stream.puzzles(batch, self._generator())
        return puzzles["solutions"], puzzles["clues"]


def text_tokenizer(data: TextSettings):
    """Return the tokenizer of data.tokenizer: a directory or hub id; `bpe:N` trains one of N tokens on data.train."""
    if str(data.tokenizer).startswith("bpe:"):
        if is_answers(data.train):
            texts = map(row_text, split_pairs(data.train, data.valid or data.train, data.cache_dir)[0])
        else:
            texts = load_texts(data.train, "train", data.cache_dir)["text"]
        return train_bpe(texts, int(data.tokenizer[4:]))
    from transformers import AutoTokenizer

    path = shipped(data.tokenizer)
    prepare(path, "tokenizer")
    try:
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.tokenizer={data.tokenizer} is neither a directory with tokenizer.json nor a hub id that can be reached"
        ) from error


def end_of_text(tokenizer) -> int:
    """Return the id that closes a document."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token; set its eos_token")
    return tokenizer.eos_token_id


def answer_rows(
    data: TextSettings, length: int, seed: int, tokenizer
) -> tuple[EndlessRows, Int[Tensor, "row position"]]:
    """Return rows of questions and answers, and held-out rows.

    data.given (question by default): `nothing` masks whole rows, as in pre-training. data.longer (drop by default): `cut`
    cuts the end of long rows.
    """
    given, longer = data.given or "question", data.longer or "drop"
    eos, parts = end_of_text(tokenizer), split_pairs(data.train, data.valid or data.train, data.cache_dir)
    train, valid = (encode_pairs(pairs, tokenizer, length, eos, longer == "cut") for pairs in parts)
    held_out = valid[0][: data.valid_rows]
    answers = AnswerRows(train[0], train[1], valid[1][: data.valid_rows], seed)
    rows = EndlessRows(train[0], seed) if given == "nothing" else answers
    rows.left_out = train[2] + valid[2]
    return rows, held_out


def hold_out(texts: datasets.Dataset, name: str) -> tuple[datasets.Dataset, datasets.Dataset]:
    """Return (training texts, held-out texts): the last tenth of the documents is held out. ValueError for fewer than two
    documents.
    """
    held_out = -(-len(texts) // 10)
    if held_out >= len(texts):
        raise ValueError(
            f"data.train={name} has one document and a part of it is to be held out; give data.valid another file"
        )
    return texts.select(range(len(texts) - held_out)), texts.select(range(len(texts) - held_out, len(texts)))


def training_data(data: DataSettings, length: int, seed: int, tokenizer=None):
    """Return (rows, held-out rows Int[row, position], tokenizer).

    data.kind: sudoku, chain, or text (data.packing documents or pack; questions with answers if data.train names some:
    data/answers.py). Every process draws the whole batch and takes its share (training/processes.py), so draws do not
    depend on the number of processes. data.valid null: the last tenth of the documents of data.train is held out.

    Args:
        tokenizer: of the model that is trained further; None uses the one that `data` names.
    """
    if isinstance(data, GridSettings):
        box = (data.box[0], data.box[1])
        stream = SudokuStream(make(box, data.base_grids, data.base_clues, seed=1, split="train"), box)
        rows = (SudokuPuzzleRows if data.keep_clues else SudokuRows)(stream, seed)
        return (
            rows,
            make(box, data.valid_grids, data.base_clues, seed=2, split="test")["solutions"],
            BoardTokenizer(box),
        )
    if isinstance(data, ChainSettings):
        rows = ChainRows(data.steps, data.answer_length, data.keep, seed, data.fewest_steps)
        valid = rows.rows(data.valid_rows, torch.Generator().manual_seed(2), held_out=True)
        return rows, valid, chain_tokenizer()
    if not isinstance(data, TextSettings):
        raise ValueError(f"data.kind={data.kind} has no training rows; use text, sudoku (data=sudoku) or chain")
    return text_rows(data, length, seed, tokenizer)


def text_rows(data: TextSettings, length: int, seed: int, tokenizer=None):
    """Return the `training_data` of texts, or of questions with answers."""
    tokenizer = tokenizer or text_tokenizer(data)
    if is_answers(data.train):
        return *answer_rows(data, length, seed, tokenizer), tokenizer
    eos = end_of_text(tokenizer)

    def cut(texts: datasets.Dataset) -> Int[Tensor, "row position"]:
        if data.packing == "documents":
            return documents(texts, tokenizer, length, eos)
        return pack(texts, tokenizer, length, eos, data.cache_dir)

    texts = load_texts(data.train, "train", data.cache_dir)
    if data.valid is None:
        texts, held_out = hold_out(texts, data.train)
    else:
        held_out = load_texts(data.valid, "valid", data.cache_dir)
    return EndlessRows(cut(texts), seed), cut(held_out)[: data.valid_rows], tokenizer
