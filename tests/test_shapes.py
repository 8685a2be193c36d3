"""Types and shapes in signatures are checked while the tests run (tests/helpers/shapes.py)."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import FunctionType

import pytest
import torch
from beartype.roar import BeartypeCallHintViolation
from jaxtyping import Float, Int, config
from torch import Tensor

import dlm.observation
import losses
import tests.helpers.shapes
from tests.helpers.shapes import checked

ROWS, FLOATS = torch.zeros(3, dtype=torch.long), torch.zeros(3, 2)


@checked
def doubled(values: Float[Tensor, "row feature"], result: "Tensor | None" = None) -> Float[Tensor, "row feature"]:
    return values * 2 if result is None else result


@checked
def chosen(rows: Int[Tensor, " row"], values: Float[Tensor, "row feature"]) -> Float[Tensor, " row"]:
    return doubled(values.T)[0, rows]  # a context of its own: `row` is another size there


@checked
def each(rows: Int[Tensor, " row"]) -> Iterator[int]:
    yield from rows.tolist()


@checked
@dataclass
class Pair:
    rows: Int[Tensor, " row"]
    values: Float[Tensor, "row feature"]
    name: str = ""


def test_right_ones_pass():
    assert doubled(FLOATS).shape == (3, 2)
    assert chosen(torch.tensor([0, 1]), torch.zeros(2, 2)).shape == (2,)
    assert list(each(ROWS)) == [0, 0, 0] and Pair(ROWS, FLOATS).name == ""


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: doubled(FLOATS.long()),
        lambda: doubled(FLOATS[0]),
        lambda: doubled([[0.0]]),
        lambda: doubled(FLOATS, FLOATS[:, 0]),  # a result of other dimensions,
        lambda: doubled(FLOATS, FLOATS[:2]),  # and of another size than that of the argument
        lambda: chosen(ROWS, FLOATS[:2]),
        lambda: Pair(ROWS, FLOATS[:2]),
        lambda: Pair(ROWS, FLOATS, name=1),
    ],
)
def test_wrong_ones_are_refused(wrong):
    with pytest.raises(BeartypeCallHintViolation):
        wrong()


def test_a_call_like_one_that_passed_is_refused_another_result():
    """Calls whose arguments are of kinds that passed are not checked again, and their results are."""
    results = [ROWS, ROWS, ROWS[:2], FLOATS]

    @checked
    def following(rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
        return results.pop(0)

    following(ROWS)
    following(ROWS)
    for _ in range(2):
        with pytest.raises(BeartypeCallHintViolation):
            following(ROWS)
    with pytest.raises(BeartypeCallHintViolation):
        following(FLOATS)
    results.append(ROWS)
    following(ROWS)


def test_functions_inside_a_function_share_checks_and_nothing_else():
    def add(number: int):
        @checked
        def added(rows: Int[Tensor, " row"]) -> Int[Tensor, " row"]:
            return rows + number

        return added

    one, two = add(1), add(2)
    assert one(ROWS).tolist() == [1, 1, 1] and two(ROWS).tolist() == [2, 2, 2] and one(ROWS).tolist() == [1, 1, 1]
    with pytest.raises(BeartypeCallHintViolation):
        two(FLOATS)


def test_a_generator_is_refused_its_arguments():
    with pytest.raises(TypeError, match="rows"):
        each(FLOATS)


def test_the_modules_of_the_project_are_checked():
    """Functions, and the fields of data classes."""
    functions = [value for value in vars(losses).values() if isinstance(value, FunctionType)]
    assert functions
    for function in (*functions, dlm.observation.Observation.__init__):
        assert function.__globals__ is vars(tests.helpers.shapes), function
    assert not config.jaxtyping_disable
