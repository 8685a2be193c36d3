"""What a policy is trained on: canvases to decode, with what their reward needs, and clean rows for the variational bound."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Int
from omegaconf import DictConfig
from torch import Tensor

from data.chain import EOS, MASK, ChainRows, Chains, chain_tokenizer, chains, prompt_length
from data.rows import training_data
from data.sudoku import SudokuStream, SudokuTokenizer, blanked, make


@dataclass
class Prompts:
    """Canvases to be decoded, the rows of the data set that go with them (solutions of puzzles, say), and the right text where
    it is known."""

    canvas: Int[Tensor, "row position"]
    rows: dict[str, Tensor]
    text: Int[Tensor, "row position"] | None = None
    prompt_length: int = 0  # columns before the first position to write: prompts, padded on the left
    start: Int[Tensor, "row"] | None = None  # where each row begins behind its padding
    first_row: int = 0  # number of the first row in the whole batch, of which each process decodes its share

    def repeat(self, times: int) -> Prompts:
        """Each prompt `times` times in a row."""
        repeated = self.take(torch.arange(len(self.canvas)).repeat_interleave(times))
        return replace(repeated, first_row=times * self.first_row)

    def share(self, part: slice) -> Prompts:
        """One process's part of the batch."""
        return replace(self.take(torch.arange(len(self.canvas))[part]), first_row=part.start)

    def to(self, device: torch.device) -> Prompts:
        """Canvas, text and start on the device; `rows` stay where they are."""
        moved = {
            name: None if (value := getattr(self, name)) is None else value.to(device) for name in ("text", "start")
        }
        return replace(self, canvas=self.canvas.to(device), **moved)

    def first(self, count: int) -> Prompts:
        """The first `count` prompts."""
        return self.take(torch.arange(len(self.canvas))[:count])

    def take(self, index: Int[Tensor, "kept"]) -> Prompts:
        """Those prompts."""
        rows = {name: value[index] for name, value in self.rows.items()}
        kept = {name: None if (value := getattr(self, name)) is None else value[index] for name in ("text", "start")}
        return replace(self, canvas=self.canvas[index], rows=rows, **kept)


class PuzzleTask:
    """Sudoku with unique solutions, `clues` of them or (null) minimal; held-out ones are of other grid classes."""

    def __init__(self, data: DictConfig):
        self.box = tuple(data.box)
        self.stream = SudokuStream(
            make(self.box, data.base_puzzles, data.clues, seed=data.seed, split="train"), self.box
        )
        held_out = make(self.box, data.valid_puzzles, data.clues, seed=data.seed + 1, split="test")
        self.valid = self.held_out = Prompts(blanked(held_out, self.box), held_out, held_out["solutions"])
        self.tokenizer = SudokuTokenizer(self.box)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Training puzzles, a function of the seed."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return Prompts(blanked(puzzles, self.box), puzzles, puzzles["solutions"])

    def texts(self, count: int, seed: int) -> Prompts:
        """Training prompts whose right text is known: all are."""
        return self.prompts(count, seed)

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Solved rows, and which of their positions are given."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return puzzles["solutions"], puzzles["clues"]

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore: batches are functions of the step's seed."""


class TextTask:
    """Unconditional text: blank canvases; clean rows come from the data set."""

    def __init__(self, data: DictConfig, length: int, mask_id: int, valid_rows: int, seed: int):
        self.length, self.mask_id = length, mask_id
        self.rows, valid, self.tokenizer = training_data(data, length, seed)
        self.valid_rows = valid
        self.valid = self.prompts(valid_rows, 0)
        self.held_out = Prompts(self.prompts(len(valid), 0).canvas, {}, valid)

    def prompts(self, count: int, seed: int) -> Prompts:
        return Prompts(torch.full((count, self.length), self.mask_id), {})

    def texts(self, count: int, seed: int) -> Prompts:
        """Blank canvases and training rows to be revealed on them."""
        return Prompts(self.prompts(count, seed).canvas, {}, self.rows.next(count))

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        tokens = self.rows.next(count)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)

    def state_dict(self) -> dict:
        return self.rows.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.rows.load_state_dict(state)


class ChainTask:
    """Chain arithmetic (data/chain.py); `rows["answers"]` holds the results; `text` is one of the many right ones."""

    stop_id = EOS

    def __init__(self, data: DictConfig, valid_rows: int):
        self.steps, self.length, self.keep = data.steps, data.answer_length, data.keep
        self.prompt = prompt_length(data.steps)
        self.tokenizer = chain_tokenizer()
        self.clean_rows = ChainRows(data.steps, data.answer_length, data.keep, 0)
        self.valid = self.held_out = self.made(
            chains(valid_rows, self.steps, torch.Generator().manual_seed(7), True), 7
        )

    def made(self, problems: Chains, seed: int) -> Prompts:
        """Prompts of problems."""
        kept = torch.rand(problems.step.shape, generator=torch.Generator().manual_seed(seed)) < self.keep
        asked = problems.prompts()
        canvas = torch.cat((asked, torch.full((len(asked), self.length), MASK)), 1)
        text = torch.cat((asked, problems.answers(kept, self.length)), 1)
        return Prompts(canvas, {"answers": problems.values()[:, -1]}, text, self.prompt)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Training problems, a function of the seed."""
        return self.made(chains(count, self.steps, torch.Generator().manual_seed(seed)), seed)

    def texts(self, count: int, seed: int) -> Prompts:
        return self.prompts(count, seed)

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Problems with their text, and which positions are given."""
        prompts = self.prompts(count, seed)
        assert prompts.text is not None
        return prompts.text, prompts.canvas != MASK

    def state_dict(self) -> dict:
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Nothing to restore: batches are functions of the step's seed."""


Task = PuzzleTask | TextTask | ChainTask
