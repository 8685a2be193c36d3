"""Pairwise accuracy and its bins, against counting."""

import pytest
from datasets import Dataset

from rewards.accuracy import accuracy, accuracy_line, by_bin, row_margins


class Sum:
    tokenizer, kind = None, "full"

    def score(self, tokens, real=None):
        return (tokens * real).sum(1).float()


def test_margins_of_rows_of_any_length():
    rows = Dataset.from_list(
        [{"chosen_ids": [1, 2, 3], "rejected_ids": [4]}, {"chosen_ids": [1], "rejected_ids": [2, 2]}] * 3
    )
    assert row_margins(Sum(), rows, 4) == [2.0, -3.0] * 3


def test_accuracy_counts_a_tie_as_half():
    assert accuracy([1.0, -1.0, 0.0, 2.0]) == pytest.approx(0.625)


def test_bins_begin_where_they_say():
    at, margins = [1.0, 2.0, 3.0, 3.0, 90.0], [1.0, -1.0, 1.0, 0.0, 1.0]
    table = by_bin(at, margins, (1.0, 3.0, 5.0, 9.0))
    assert table == [
        {"from": 1.0, "pairs": 2, "accuracy": 0.5},
        {"from": 3.0, "pairs": 2, "accuracy": 0.75},
        {"from": 9.0, "pairs": 1, "accuracy": 1.0},
    ]
    assert accuracy_line(table) == "1+: 0.500 (2)  3+: 0.750 (2)  9+: 1.000 (1)"
