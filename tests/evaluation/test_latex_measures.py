"""Measures of written formulas, by hand."""

import pytest

from evaluation.latex import formula_measures, formulas_of, skeleton


def test_measures_by_hand():
    texts = [r"$\frac{a}{b}$", r"$\frac{x}{7}$", r"$\frac{a}{b$", "$x$", r"no formula", r"$\alpha$ $\frac{1}$"]
    found = formula_measures(texts)
    assert found == pytest.approx(
        {
            "validity": 3 / 6,
            "brackets": 4 / 6,
            "complex": 4 / 6,
            "distinct": 1.0,
            "skeletons": 5 / 6,
            "length": sum(map(len, texts)) / 6,
        }
    )
    assert formula_measures(["$x$"] * 4)["distinct"] == 0.25
    with pytest.raises(ValueError, match="there are no texts to measure"):
        formula_measures([])


def test_bare_formulas():
    assert formula_measures([r"\sqrt{2}", "x}"], bare=True) == pytest.approx(
        {"validity": 0.5, "brackets": 0.5, "complex": 0.5, "distinct": 1.0, "skeletons": 1.0, "length": 5.0}
    )
    assert formulas_of(r"a $x$ b \(y\)") == ["x", "y"] and formulas_of(" x ", bare=True) == ["x"]


@pytest.mark.parametrize(
    "latex, bones", [(r"\frac{ab}{12 + c}", r"\frac{}{+}"), (r"x_{i}^2 \alpha", r"_{}^\alpha"), ("x", "")]
)
def test_skeletons(latex, bones):
    assert skeleton(latex) == bones
