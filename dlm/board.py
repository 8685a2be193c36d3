"""The tokenizer of models whose canvas is a board of digits."""

from __future__ import annotations

from jaxtyping import Int
from torch import Tensor

SYMBOLS = "123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"


class BoardTokenizer:
    """Tokenizer of square boards of digits, as in Sudoku: a canvas is a whole board, and a prompt is a board with blanks.

    Digits 1..n are tokens 0..n-1; a blank ('.', '0' or '_') is the mask token n. Reads '12..' and '1 2 . .'.
    """

    def __init__(self, box: tuple[int, int]):
        self.size = box[0] * box[1]
        self.mask_token_id = self.size
        self.vocab_size = self.size + 1
        self._ids = dict.fromkeys(".0_", self.size)
        self._ids |= {symbol: token for token, symbol in enumerate(SYMBOLS[: self.size])}

    mask_token = "."
    eos_token = eos_token_id = chat_template = None  # a board has no end, and no conversation

    def get_vocab(self) -> dict[str, int]:
        """Map each symbol that `decode` writes to its token."""
        return {symbol: self._ids[symbol] for symbol in SYMBOLS[: self.size] + self.mask_token}

    def encode(self, text: str) -> list[int]:
        """Return n * n tokens. ValueError for another length or an unknown character."""
        symbols = "".join(text.split())
        unknown = sorted(set(symbols) - set(self._ids))
        if unknown or len(symbols) != self.size**2:
            raise ValueError(
                f"the puzzle has {len(symbols)} cells and unknown characters {unknown}, expected {self.size**2} cells; "
                f"write them as {SYMBOLS[: self.size]} or '.' for a blank."
            )
        return [self._ids[symbol] for symbol in symbols]

    def decode(self, tokens: Int[Tensor, " cell"] | list[int]) -> str:
        """Return the grid, one line per row, with '.' for the mask token."""
        symbols = [(SYMBOLS[: self.size] + ".")[int(token)] for token in tokens]
        return "\n".join(" ".join(symbols[start : start + self.size]) for start in range(0, len(symbols), self.size))

    def batch_decode(self, grids: Int[Tensor, "grid cell"]) -> list[str]:
        return [self.decode(grid) for grid in grids.tolist()]
