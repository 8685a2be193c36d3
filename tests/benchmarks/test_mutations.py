"""The table of mutations: no entry is stale, and a mutation reaches the functions that are loaded."""

import signal
from pathlib import Path

from benchmarks.mutation_table import KNOWN
from benchmarks.mutations import MUTATIONS, ROOT, Mutation, Mutator, functions_of, named


def test_what_is_replaced_stands_there_once_within_a_function():
    sources = {mutation.file: (ROOT / mutation.file).read_text(encoding="utf-8") for mutation in MUTATIONS}
    stale = [str(one) for one in MUTATIONS if sources[one.file].count(one.old) != 1 or one.old == one.new]
    assert not stale and len(MUTATIONS) >= 100
    for one in MUTATIONS:
        compile(sources[one.file].replace(one.old, one.new), one.file, "exec")
    assert KNOWN.keys() <= set(map(str, MUTATIONS))


def test_the_tests_that_are_named_are_there():
    texts: dict[Path, str] = {}
    for test in {test for mutation in MUTATIONS for test in mutation.tests}:
        file, _, name = test.partition("::")
        text = texts.setdefault(ROOT / file, (ROOT / file).read_text(encoding="utf-8"))
        assert not name or f"\ndef {name}(" in text, test


def test_functions_are_found_in_modules_and_classes():
    code = compile("class A:\n    def f(self):\n        return lambda: 1\ndef g(): pass\n", "x.py", "exec")
    assert [name for name, _ in functions_of(code)] == ["A.f", "g"]


def test_a_test_is_named_with_all_of_its_parameters():
    mutation = Mutation("x.py", "a", "b", ("t.py::test_one", "u.py"))
    nodes = ("t.py::test_one", "t.py::test_one[1]", "t.py::test_one_more", "u.py::test_two")
    assert [named(node, mutation.tests) for node in nodes] == [True, True, False, True]


def test_a_mutation_that_ran_into_a_limit_hung_and_one_that_crashed_is_broken():
    mutator = Mutator(MUTATIONS[:5], jobs=1)
    for number, status in enumerate((0, 1, -signal.SIGKILL, -signal.SIGXCPU, -signal.SIGSEGV)):
        mutator.keep(number, status)
    assert list(mutator.verdicts.values()) == ["survived", "killed", "hung", "hung", "broken"]
