"""A page that replays unmasking step by step: at which step a strategy committed each position, and which token.

The page is one HTML file without outside resources. It displays one sample, of one strategy or of all strategies side by side
(one per named group), as running text or as a board. It opens with the finished canvas. Colours run from the first step to the
last; positions of the current step have an outline, those opened again a dashed one; revised tokens are underlined; with
solutions, wrong cells are struck through and solved boards are
marked. Strategies play step by step together, or each over the same duration. Keys: space plays, left and right go one step,
Home and End jump, up and down change the sample.
"""

import html
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Bool, Int
from torch import Tensor

PAGE = Path(__file__).with_name("replay.html")


@runtime_checkable
class Replayable(Protocol):
    """The attributes of `Samples` that the page needs."""

    tokens: Int[Tensor, "row position"]
    prompt: Bool[Tensor, "row position"]  # positions that were given
    unmasked_at: Int[Tensor, "row position"]  # step, counted from 0; -1 where given or never written
    history: (
        Int[Tensor, "event 5"] | None
    )  # revised tokens: row, position, token, step of its commit, step of its revision

    @property
    def positions(self) -> Int[Tensor, "row"]:
        """Number of positions of the canvas of each row."""
        ...


def replay_html(
    groups: Mapping[str, Replayable],
    decode_token: Callable[[int], str],
    title: str = "Unmasking, step by step",
    grid_columns: int | None = None,
    box: tuple[int, int] | None = None,
    solutions: Int[Tensor, "row position"] | None = None,
) -> str:
    """Return the page, as a string to be written to a file.

    Args:
        groups: strategy name -> its samples; a sample number means the same prompt in every group.
        decode_token: the text of a token.
        grid_columns: number of columns of a board; None for text.
        box: rows and columns of the boxes drawn on the board (Sudoku); None for none.
        solutions: the right tokens of every row; cells that differ are marked. None: nothing is marked.

    Raises:
        ValueError: there are no samples, the columns do not divide the positions, or the solutions have another shape.
    """
    _check(groups, grid_columns, solutions)
    used = sorted({token for samples in groups.values() for token in _used(samples)})
    place = {token: index for index, token in enumerate(used)}
    content = {
        "columns": grid_columns,
        "box": box,
        "solutions": None
        if solutions is None
        else [[place.get(token, -1) for token in row] for row in solutions.tolist()],
        "texts": [decode_token(token) for token in used],
        "groups": [{"name": name, "rows": _rows(samples, place)} for name, samples in groups.items()],
    }
    # Inside a script element only "<" could end it; the text then reaches the page through textContent alone.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    before, after = PAGE.read_text(encoding="utf-8").split("@DATA@")
    return before.replace("@TITLE@", html.escape(title)) + data + after


def _check(
    groups: Mapping[str, Replayable], grid_columns: int | None, solutions: Int[Tensor, "row position"] | None
) -> None:
    if not groups:
        raise ValueError("there are no samples to replay: give at least one named group.")
    for name, samples in groups.items():
        if grid_columns is not None and samples.tokens.shape[1] % grid_columns:
            raise ValueError(
                f"the samples of '{name}' have {samples.tokens.shape[1]} positions, which {grid_columns} columns do not "
                "divide: set grid_columns to the width of the board."
            )
        if solutions is not None and (
            solutions.shape[1] != samples.tokens.shape[1] or len(solutions) < len(samples.tokens)
        ):
            raise ValueError(
                f"the samples of '{name}' have shape {list(samples.tokens.shape)} and the solutions "
                f"{list(solutions.shape)}: give one solution for each sample."
            )


def _filled(samples: Replayable) -> Bool[Tensor, "row position"]:
    return samples.prompt | (samples.unmasked_at >= 0)


def _used(samples: Replayable) -> list[int]:
    """Return all tokens that the page displays, those that were revised included."""
    revised = [] if samples.history is None else samples.history[:, 2].tolist()
    return samples.tokens[_filled(samples)].tolist() + revised


def _rows(samples: Replayable, place: dict[int, int]) -> list[dict]:
    """Return for each row its tokens, as indices into "texts" (null: still masked), the decoding step of each (-1: given), and
    its revised tokens: position, token, step at which it was committed, step at which it was revised.
    """
    past: list[list[list[int]]] = [[] for _ in samples.tokens]
    for row, position, token, first, last in [] if samples.history is None else samples.history.tolist():
        past[row].append([position, place[token], first, last])
    unmasked_at = samples.unmasked_at.masked_fill(samples.prompt, -1).tolist()
    lengths = samples.positions.tolist()
    rows = zip(samples.tokens.tolist(), unmasked_at, _filled(samples).tolist(), lengths, strict=True)
    return [
        {
            "tokens": [place[token] if full else None for token, full in zip(tokens, filled, strict=True)][:length],
            "at": at[:length],
            "past": revised,
        }
        for (tokens, at, filled, length), revised in zip(rows, past, strict=True)
    ]
