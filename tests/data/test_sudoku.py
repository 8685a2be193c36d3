"""Sudoku: puzzles have one solution, symmetries keep it so, classes and splits follow the symmetries."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from data import sudoku
from data.sudoku import SudokuStream, augment, blanked, canonical, class_key, count_solutions
from dlm.board import BoardTokenizer
from rewards.sudoku import is_solved

torch.set_num_threads(1)
BOXES = [(2, 2), (2, 3), (3, 2), (3, 3)]
seeds = st.integers(0, 2**32)
quick = settings(max_examples=15, deadline=None)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def solutions_by_hand(grid: list[int], box: tuple[int, int]) -> int:
    """Counts all solutions cell by cell, without bitmasks or a clever order."""
    n = box[0] * box[1]
    if n not in grid:
        return 1
    cell = grid.index(n)
    row, column = divmod(cell, n)
    seen = {
        grid[r * n + c]
        for r in range(n)
        for c in range(n)
        if r == row or c == column or (r // box[0], c // box[1]) == (row // box[0], column // box[1])
    }
    tries = (grid[:cell] + [token] + grid[cell + 1 :] for token in range(n) if token not in seen)
    return sum(solutions_by_hand(attempt, box) for attempt in tries)


def test_solver_counts_the_288_grids_of_4x4():
    assert count_solutions([4] * 16, (2, 2), limit=1000) == 288
    assert count_solutions([4] * 16, (2, 2), limit=7) == 7


@quick
@given(seeds, st.integers(3, 12))
def test_solver_agrees_with_plain_search(seed, left):
    rng = random.Random(seed)
    grid = sudoku.random_grid((2, 2), rng)
    for cell in rng.sample(range(16), 16 - left):
        grid[cell] = 4
    assert count_solutions(grid, (2, 2), limit=1000) == solutions_by_hand(grid, (2, 2))


@pytest.mark.parametrize("box", BOXES)
def test_minimal_puzzles_need_every_clue(box):
    puzzles = sudoku.make(box, 2, seed=3)
    n = box[0] * box[1]
    for puzzle in blanked(puzzles, box).tolist():
        assert count_solutions(puzzle, box) == 1
        for cell in [cell for cell, token in enumerate(puzzle) if token != n]:
            assert count_solutions(puzzle[:cell] + [n] + puzzle[cell + 1 :], box) == 2


def test_make_gives_the_clues_asked_for_and_only_distinct_puzzles():
    puzzles = sudoku.make((2, 3), 40, clues=12, seed=1, split="test")
    again = sudoku.make((2, 3), 40, clues=12, seed=1, split="test")
    other = sudoku.make((2, 3), 40, clues=12, seed=2, split="test")
    assert (puzzles["clues"].sum(1) == 12).all()
    assert len(blanked(puzzles, (2, 3)).unique(dim=0)) == 40
    assert all(torch.equal(puzzles[name], again[name]) for name in puzzles)
    assert not torch.equal(puzzles["solutions"], other["solutions"])


def test_make_refuses_what_does_not_exist():
    with pytest.raises(ValueError, match="clues=3"):
        sudoku.make((2, 2), 1, clues=3)  # four clues are the least for 4x4
    with pytest.raises(ValueError, match="'valid'"):
        sudoku.make((2, 2), 1, split="valid")


@quick
@given(seeds, st.sampled_from([(2, 2), (2, 3), (3, 2)]))
def test_augment_keeps_one_solution_and_the_class(seed, box):
    puzzles = sudoku.make(box, 2, seed=seed)
    solutions, clues = augment(puzzles["solutions"], puzzles["clues"], box, generator(seed))
    assert is_solved(solutions, box).all()
    for solution, given_cells, original in zip(solutions, clues, puzzles["solutions"], strict=True):
        puzzle = solution.masked_fill(~given_cells, box[0] * box[1]).tolist()
        assert count_solutions(puzzle, box) == 1
        assert (canonical(solution.numpy(), box) == canonical(original.numpy(), box)).all()


def test_augment_reaches_the_whole_class():
    # The two classes of 4x4 have 96 and 192 grids; both orbits must come out whole, which needs every kind of symmetry.
    orbits = set()
    for seed in range(8):
        grid = torch.tensor([sudoku.random_grid((2, 2), random.Random(seed))])
        images, _ = augment(grid.repeat(4000, 1), torch.ones(4000, 16, dtype=torch.bool), (2, 2), generator(seed))
        orbits.add(len(images.unique(dim=0)))
    assert orbits == {96, 192}


def test_augment_transposes_only_square_boxes():
    for box, same in (((2, 2), True), ((2, 3), False)):
        cells = torch.arange((box[0] * box[1]) ** 2)
        n = box[0] * box[1]
        # One clue row: a transposition would turn it into a clue column.
        clues = (cells < n).expand(200, -1)
        grid = torch.tensor([sudoku.random_grid(box, random.Random(0))]).repeat(200, 1)
        _, moved = augment(grid, clues, box, generator(0))
        columns = moved.view(-1, n, n).all(1).any(1)
        assert columns.any().item() is same


@pytest.mark.parametrize(
    ("lines", "by_rows", "by_columns"),
    [([0], 6, 6), ([0, 1], 3, 6), ([0, 2], 12, 6), ([0, 3], 12, 9)],  # bands of two rows, stacks of three columns
)
def test_augment_moves_lines_within_and_with_their_band(lines, by_rows, by_columns):
    chosen = torch.zeros(6, 6, dtype=torch.bool)
    chosen[lines] = True
    grid = torch.tensor([sudoku.random_grid((2, 3), random.Random(0))]).repeat(500, 1)
    for clues, places in ((chosen, by_rows), (chosen.T, by_columns)):
        _, moved = augment(grid, clues.reshape(1, 36).repeat(500, 1), (2, 3), generator(0))
        assert len(moved.unique(dim=0)) == places


def test_augment_moves_clues_with_the_digits():
    # Every given digit is the same one, so after relabelling the given digits must again be all the same.
    grids = torch.tensor([sudoku.random_grid((2, 3), random.Random(seed)) for seed in range(20)])
    solutions, clues = augment(grids, grids == 2, (2, 3), generator(0))
    assert (clues.sum(1) == 6).all()
    shown = solutions.masked_select(clues).view(20, 6)
    assert (shown == shown[:, :1]).all() and len(shown[:, 0].unique()) > 1


def test_canonical_tells_the_49_classes_of_6x6_apart():
    rng = random.Random(0)
    grids = [np.array(sudoku.random_grid((2, 3), rng)) for _ in range(600)]
    forms = [canonical(grid, (2, 3)) for grid in grids]
    assert 30 <= len({form.tobytes() for form in forms}) <= 49
    assert is_solved(torch.tensor(np.array(forms)), (2, 3)).all()
    for grid, form in zip(grids[:50], forms, strict=False):
        assert form.tolist() <= grid.tolist() and (canonical(form, (2, 3)) == form).all()


@quick
@given(seeds)
def test_invariant_of_9x9_ignores_symmetries_and_tells_grids_apart(seed):
    grids = torch.tensor([sudoku.random_grid((3, 3), random.Random(seed + i)) for i in range(2)])
    images, _ = augment(grids, torch.ones(2, 81, dtype=torch.bool), (3, 3), generator(seed))
    first, second = (class_key(grid.numpy(), (3, 3)) for grid in grids)
    assert [class_key(image.numpy(), (3, 3)) for image in images] == [first, second]
    assert first != second
    with pytest.raises(ValueError, match="3359232 symmetries"):
        canonical(grids[0].numpy(), (3, 3))


@pytest.mark.parametrize("box", [(2, 2), (2, 3), (3, 3)])
def test_splits_share_no_class(box):
    classes = {}
    for split in ("train", "test"):
        puzzles = sudoku.make(box, 30, seed=5, split=split)
        images, _ = augment(puzzles["solutions"], puzzles["clues"], box, generator(1))
        classes[split] = {class_key(grid.numpy(), box) for grid in images}
    assert classes["train"] and classes["test"] and not classes["train"] & classes["test"]


def test_stream_yields_puzzles_of_the_base_and_repeats_with_the_seed():
    stream = SudokuStream(sudoku.make((2, 3), 5, seed=0), (2, 3))
    batch, again = stream.puzzles(64, generator(4)), stream.puzzles(64, generator(4))
    assert torch.equal(batch["solutions"], again["solutions"]) and torch.equal(batch["clues"], again["clues"])
    assert len(batch["solutions"].unique(dim=0)) > 50
    assert set(batch["clues"].sum(1).tolist()) == set(stream.base["clues"].sum(1).tolist())
    assert is_solved(stream.grids(64, generator(5)), (2, 3)).all()


@quick
@given(seeds, st.sampled_from(BOXES))
def test_is_solved_refuses_corrupted_grids(seed, box):
    rng = random.Random(seed)
    n = box[0] * box[1]
    grid = sudoku.random_grid(box, rng)
    cell = rng.randrange(n * n)
    wrong = [grid[:cell] + [token] + grid[cell + 1 :] for token in range(n + 1) if token != grid[cell]]  # n: a mask
    assert is_solved(torch.tensor([grid, *wrong]), box).tolist() == [True] + [False] * n


def test_is_solved_looks_at_rows_columns_and_boxes_each():
    n = 6
    rows, columns = torch.arange(n)[:, None], torch.arange(n)[None]
    latin = (rows + columns) % n  # rows and columns hold, boxes do not
    no_columns = (rows % 2 * 3 + columns) % n  # rows and boxes hold, columns do not
    no_rows = (columns % 3 * 2 + rows) % n  # columns and boxes hold, rows do not
    grids = torch.stack([latin, no_columns, no_rows]).view(3, -1)
    assert not is_solved(grids, (2, 3)).any()
    solved = torch.tensor([sudoku.random_grid((2, 3), random.Random(seed)) for seed in range(20)])
    assert is_solved(solved, (2, 3)).all() and not is_solved(solved, (3, 2)).all()


def test_save_and_load(tmp_path):
    puzzles = sudoku.make((2, 3), 20, seed=0)
    sudoku.save(puzzles, tmp_path / "puzzles.safetensors")
    loaded = sudoku.load(tmp_path / "puzzles.safetensors", (2, 3))
    for name in ("solutions", "clues"):
        assert torch.equal(loaded[name], puzzles[name]) and loaded[name].dtype == puzzles[name].dtype
    with pytest.raises(ValueError, match=r"box \(3, 2\)"):
        sudoku.load(tmp_path / "puzzles.safetensors", (3, 2))


@quick
@given(st.sampled_from(BOXES), st.data())
def test_tokenizer_round_trip(box, data):
    n = box[0] * box[1]
    tokens = data.draw(st.lists(st.integers(0, n), min_size=n * n, max_size=n * n))
    tokenizer = BoardTokenizer(box)
    text = tokenizer.decode(tokens)
    assert tokenizer.encode(text) == tokens == tokenizer.encode("".join(text.split()))
    assert [len(line.split()) for line in text.splitlines()] == [n] * n
    assert tokenizer.batch_decode(torch.tensor([tokens, tokens])) == [text, text]


def test_tokenizer_symbols_and_errors():
    tokenizer = BoardTokenizer((2, 2))
    assert (tokenizer.vocab_size, tokenizer.mask_token_id) == (5, 4)
    assert tokenizer.encode("1234 .0_. 4321 ....") == [0, 1, 2, 3, 4, 4, 4, 4, 3, 2, 1, 0, 4, 4, 4, 4]
    with pytest.raises(ValueError, match="15 cells"):
        tokenizer.encode("." * 15)
    with pytest.raises(ValueError, match=r"\['5'\]"):
        tokenizer.encode("5" + "." * 15)


def test_group_sizes():
    assert sudoku._group((2, 3)).shape == (3456, 36) and sudoku._group_size((2, 3)) == 3456
    assert len(np.unique(sudoku._group((2, 2)), axis=0)) == sudoku._group_size((2, 2)) == 128
    assert sudoku._group_size((3, 3)) == 2 * math.factorial(3) ** 8
