"""What `benchmarks.structure` counts, on sources whose counts are known; and that the product gets no worse."""

import ast

import pytest

from benchmarks.structure import (
    OF_USERS,
    ROOT,
    code_lines,
    complexity,
    functions,
    is_probe,
    lines_per_room,
    sources,
    survey,
    takes_configuration,
)

# The most that each count may be. A change that lowers one lowers it here.
MOST = {
    "functions over 60 lines": 0,
    "functions of complexity above 15": 0,
    "functions that take a configuration": 0,
    "getattr probes": 0,
    "pyright: ignore": 12,
    "functions that take a configuration in unmask/runs": 43,
    "classes that share a name": 0,
    "public names without a docstring": 0,
}


def function(source):
    return next(functions(ast.parse(source)))


@pytest.mark.parametrize(
    ("body", "branches"),
    [
        ("return 1", 1),
        ("return a if b else c", 2),
        ("if a and b or c:\n        return 1", 4),
        ("for x in y:\n        while x:\n            pass", 3),
        ("return [x for x in y if x]", 2),
        ("try:\n        pass\n    except OSError:\n        pass", 2),
        ("def inner():\n        if a:\n            pass\n    return inner", 1),
    ],
)
def test_complexity_is_one_and_one_for_each_branch(body, branches):
    assert complexity(function(f"def f():\n    {body}\n")) == branches


def test_lines_are_those_of_the_code():
    assert code_lines(function('def f(\n    a,\n):\n    """Doc.\n\n    More.\n    """\n    b = 1\n    return b\n')) == 2
    assert code_lines(function('def f():\n    """Doc."""\n')) == 0


def test_probes_and_configurations_are_told_from_other_calls():
    found = [is_probe(ast.parse(text).body[0].value) for text in
             ('getattr(x, "a", None)', 'hasattr(x, "a")', 'getattr(x, "a")', 'getattr(x, name, None)', "print(x, 'a', 1)")]  # fmt: skip
    assert found == [True, True, False, False, False]
    assert takes_configuration(function("def f(a: DictConfig): ..."))
    assert takes_configuration(function("def f(*, a: argparse.Namespace | None): ..."))
    assert not takes_configuration(function("def f(a: DictConfigs, b): ..."))


def test_files_that_examine_objects_of_users_exist_and_are_the_only_ones_with_probes():
    probing = {str(path.relative_to(ROOT)) for path in sources()
               if any(map(is_probe, ast.walk(ast.parse(path.read_text(encoding="utf-8")))))}  # fmt: skip
    assert probing == set(OF_USERS)


def test_the_product_gets_no_worse():
    found = {name: len(places) for name, places in survey().items()}
    assert {name: count for name, count in found.items() if name in MOST and count > MOST[name]} == {}
    assert {"samplers", "dlm", "unmask", "root"} <= lines_per_room().keys()
