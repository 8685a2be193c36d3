"""From the `data` section of a configuration to training rows, held-out rows and a tokenizer."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int
from omegaconf import DictConfig
from torch import Tensor
from transformers import AutoTokenizer

from data.chain import ChainRows, chain_tokenizer
from data.sudoku import SudokuStream, SudokuTokenizer, make
from data.text import EndlessRows, documents, load_texts, pack, train_bpe


class SudokuRows:
    """Full grids for ever; batch number n is a function of (seed, n) alone."""

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
    """The same with the clues of each puzzle given: only boards that solving a puzzle passes through are seen."""

    def next_puzzles(self, batch: int) -> tuple[Int[Tensor, "row cell"], Bool[Tensor, "row cell"]]:
        puzzles = self.stream.puzzles(batch, self._generator())
        return puzzles["solutions"], puzzles["clues"]


def text_tokenizer(data: DictConfig):
    """data.tokenizer: a directory or hub id; `bpe:N` trains one of N tokens on data.train."""
    if str(data.tokenizer).startswith("bpe:"):
        return train_bpe(load_texts(data.train, "train", data.cache_dir)["text"], int(data.tokenizer[4:]))
    try:
        return AutoTokenizer.from_pretrained(data.tokenizer)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"data.tokenizer={data.tokenizer} is neither a directory with tokenizer.json nor a hub id that can be reached"
        ) from error


def end_of_text(tokenizer) -> int:
    """The id that closes a document."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-sequence token; set its eos_token")
    return tokenizer.eos_token_id


def training_data(data: DictConfig, length: int, seed: int, tokenizer=None):
    """(rows, held-out rows Int[row, position], tokenizer). data.kind: sudoku, chain, or text (data.packing documents or pack).

    Every process draws the whole batch and takes its share (training/processes.py), so that what is drawn does not depend on how
    many there are. tokenizer: of the model that is trained further; None takes the one that `data` names.
    """
    if data.kind == "sudoku":
        box = tuple(data.box)
        stream = SudokuStream(make(box, data.base_grids, data.base_clues, seed=1, split="train"), box)
        rows = (SudokuPuzzleRows if data.keep_clues else SudokuRows)(stream, seed)
        return (
            rows,
            make(box, data.valid_grids, data.base_clues, seed=2, split="test")["solutions"],
            SudokuTokenizer(box),
        )
    if data.kind == "chain":
        rows = ChainRows(data.steps, data.answer_length, data.keep, seed)
        valid = rows.rows(data.valid_rows, torch.Generator().manual_seed(2), held_out=True)
        return rows, valid, chain_tokenizer()
    tokenizer = tokenizer or text_tokenizer(data)
    eos = end_of_text(tokenizer)

    def cut(name: str, split: str) -> Int[Tensor, "row position"]:
        texts = load_texts(name, split, data.cache_dir)
        if data.packing == "documents":
            return documents(texts, tokenizer, length, eos)
        return pack(texts, tokenizer, length, eos, data.cache_dir)

    return (
        EndlessRows(cut(data.train, "train"), seed),
        cut(data.valid, "valid")[: data.valid_rows],
        tokenizer,
    )
