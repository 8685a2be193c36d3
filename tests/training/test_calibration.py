"""Calibration figures, against their definitions."""

from itertools import product

import pytest
import torch

from training.calibration import auroc, calibration, draw_reliability


def by_pairs(score, right):
    """The area under the curve by its definition: pairs of a right and a wrong position."""
    pairs = [(a > b) + 0.5 * (a == b) for a, b in product(score[right].tolist(), score[~right].tolist())]
    return sum(pairs) / len(pairs)


@pytest.mark.parametrize("ties", [False, True])
def test_auroc_is_the_share_of_pairs_in_order(ties):
    generator = torch.Generator().manual_seed(0)
    score, right = torch.rand(200, generator=generator), torch.rand(200, generator=generator) < 0.3
    score = score + 0.3 * right
    score = (score * 5).round() if ties else score
    assert auroc(score, right) == pytest.approx(by_pairs(score, right), abs=1e-12)
    assert auroc(-score, right) == pytest.approx(1 - by_pairs(score, right), abs=1e-12)


def test_constant_and_random_scores_say_nothing():
    generator = torch.Generator().manual_seed(0)
    right = torch.rand(20_000, generator=generator) < 0.2
    assert auroc(torch.full((20_000,), 0.7), right) == 0.5
    error = (20_001 / (12 * right.sum() * (~right).sum())) ** 0.5
    assert abs(auroc(torch.rand(20_000, generator=generator), right) - 0.5) < 4.5 * error
    assert auroc(torch.rand(5), torch.ones(5, dtype=torch.bool)) == 0.5


def test_figures_of_a_small_table():
    probability = torch.tensor([0.05, 0.15, 0.15, 0.95, 1.0], dtype=torch.float64)
    right = torch.tensor([False, True, False, True, True])
    found = calibration(probability.log(), right)
    assert [(one.low, one.count) for one in found.bins] == [(0.0, 1), (0.1, 2), (0.9, 2)]
    assert found.ece == pytest.approx((0.05 + 2 * abs(0.15 - 0.5) + 2 * abs(0.975 - 1)) / 5)
    assert found.brier == pytest.approx((0.05**2 + 0.85**2 + 0.15**2 + 0.05**2) / 5)
    logs = torch.tensor([0.95, 0.15, 0.85, 0.95, 1.0], dtype=torch.float64).log()
    assert found.log_loss == pytest.approx(float(-logs.mean()))
    assert (found.right, found.count) == (0.6, 5) and found.auroc == pytest.approx(5.5 / 6)


def test_labels_drawn_from_the_predictions_are_calibrated_and_others_are_not():
    generator = torch.Generator().manual_seed(0)
    probability = torch.rand(50_000, generator=generator, dtype=torch.float64)
    right = torch.rand(50_000, generator=generator, dtype=torch.float64) < probability
    assert calibration(probability.log(), right).ece < 0.01
    assert calibration((probability**3).log(), right).ece > 0.1


def test_impossible_predictions_are_finite_and_no_position_is_refused(tmp_path):
    found = calibration(torch.tensor([-torch.inf, 0.0]), torch.tensor([True, False]))
    assert found.brier == 1 and found.log_loss < 200 and found.auroc == 0
    with pytest.raises(ValueError, match="there is no position to compare predictions at; evaluate more rows"):
        calibration(torch.zeros(0), torch.zeros(0, dtype=torch.bool))
    draw_reliability({"data": found, "decoding": found}, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").read_bytes().startswith(b"\x89PNG")
