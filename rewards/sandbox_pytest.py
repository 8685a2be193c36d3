"""Run tests that were written for pytest or unittest, without pytest: set-up, fixtures, parameters and skips, in the process of
the tests.

`pytest_module()` replaces `pytest`, with the names in PROVIDED. Tests that need more are not run: `rewards/needs.py` determines
this from their text beforehand, so that no test is dropped and no right program fails because of a missing feature.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import types
from contextlib import contextmanager

TYPE_CHECKING = False  # what `typing` says; importing it takes as long as all that a short program does
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

FIXTURES = ("tmp_path", "tmp_path_factory", "capsys", "monkeypatch", "request")


class Skipped(BaseException):
    """Raised by `pytest.skip` and `pytest.xfail`: the test is not counted."""


class Failed(AssertionError):
    """Raised by `pytest.fail`, and if an expected exception was not raised."""


# Marks.


class Mark:
    """The mark `pytest.mark.NAME`, with or without arguments; as a decorator it is added to the `pytestmark` of a function or
    class."""

    def __init__(self, name: str, args: tuple = (), kwargs: dict[str, Any] | None = None):
        self.name, self.args, self.kwargs = name, args, kwargs or {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        bare = len(args) == 1 and not kwargs and isinstance(args[0], types.FunctionType | type)
        if not bare:
            return Mark(self.name, (*self.args, *args), {**self.kwargs, **kwargs})
        target: Any = args[0]
        target.pytestmark = [self, *vars(target).get("pytestmark", [])]
        return target


class Marks:
    """`pytest.mark`: a mark of any name."""

    def __getattr__(self, name: str) -> Mark:
        return Mark(name)


class Param:
    """`pytest.param(...)`: the values of one case, and its marks."""

    def __init__(self, *values: Any, marks: Any = (), id: str | None = None):
        self.values = values
        self.marks = list(marks) if isinstance(marks, list | tuple) else [marks]


# What tests call.


class Raised:
    """Result of `pytest.raises`: the exception, its type, and a check of its text."""

    def __init__(self) -> None:
        self.value: Any = None

    @property
    def type(self) -> type:
        return type(self.value)

    @property
    def typename(self) -> str:
        return self.type.__name__

    @property
    def tb(self) -> Any:
        return self.value.__traceback__

    def exconly(self) -> str:
        return f"{type(self.value).__name__}: {self.value}"

    def match(self, pattern: Any) -> bool:
        import re

        if not re.search(pattern, str(self.value)):
            raise Failed(f"{str(self.value)!r} does not match {pattern!r}")
        return True


class _Raises:
    def __init__(self, expected: Any, match: Any = None):
        self.expected, self.pattern, self.raised = expected, match, Raised()

    def __enter__(self) -> Raised:
        return self.raised

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> bool:
        if kind is None:
            raise Failed(f"did not raise {self.expected}")
        if not issubclass(kind, self.expected):
            return False
        self.raised.value = error
        if self.pattern is not None:
            self.raised.match(self.pattern)
        return True


def raises(expected: Any, *call: Any, match: Any = None, **named: Any) -> Any:
    """Return a context that must be left by an exception; with a function and its arguments, call it."""
    context = _Raises(expected, match)
    if not call:
        return context
    with context as raised:
        call[0](*call[1:], **named)
    return raised


class approx:
    """A number, or a sequence, mapping or array of numbers, equal to values within rel (1e-6) or abs (1e-12), whichever is
    larger."""

    __array_ufunc__ = None  # so that arrays leave the comparison to this class
    __array_priority__ = 100
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, expected: Any, rel: float | None = None, abs: float | None = None, nan_ok: bool = False):
        self.expected, self.rel, self.abs, self.nan_ok = expected, rel, abs, nan_ok

    def __repr__(self) -> str:
        return f"approx({self.expected!r})"

    def __eq__(self, actual: object) -> bool:
        return self._near(actual, self.expected)

    def __ne__(self, actual: object) -> bool:
        return not self == actual

    def _near(self, actual: Any, expected: Any) -> bool:
        if type(expected).__module__ == "numpy" or type(actual).__module__ == "numpy":
            return self._near_array(actual, expected)
        return self._near_plain(actual, expected)

    def _near_array(self, actual: Any, expected: Any) -> bool:
        """An array is compared with its shape, and with one number element by element."""
        shape = getattr(expected, "shape", None) if hasattr(expected, "shape") else None
        if shape and getattr(actual, "shape", shape) != shape:
            return False
        actual, expected = (each.tolist() if hasattr(each, "tolist") else each for each in (actual, expected))
        if isinstance(actual, list) and not isinstance(expected, list | tuple):
            return all(self._near(each, expected) for each in actual)
        return self._near_plain(actual, expected)

    def _near_plain(self, actual: Any, expected: Any) -> bool:
        if isinstance(expected, dict):
            return isinstance(actual, dict) and actual.keys() == expected.keys() and all(
                self._near(actual[key], expected[key]) for key in expected)  # fmt: skip
        if isinstance(expected, list | tuple):
            return isinstance(actual, list | tuple) and len(actual) == len(expected) and all(
                map(self._near, actual, expected))  # fmt: skip
        return self._near_number(actual, expected)

    def _near_number(self, actual: Any, expected: Any) -> bool:
        if actual == expected:
            return True
        if isinstance(expected, bool | str | None) or isinstance(actual, bool | str | None):
            return False
        try:
            if math.isnan(abs(expected)):
                return self.nan_ok and math.isnan(abs(actual))
            if math.isinf(abs(expected)):
                return False
            default = 1e-12 if self.abs is None else self.abs
            relative = 1e-6 if self.rel is None and self.abs is None else (self.rel or 0.0)
            return bool(abs(expected - actual) <= max(relative * float(abs(expected)), default))
        except TypeError:
            return False


def fail(reason: str = "", pytrace: bool = True) -> None:
    """`pytest.fail`: end the test as failed."""
    raise Failed(reason)


def skip(reason: str = "", *, allow_module_level: bool = False) -> None:
    """`pytest.skip`: end the test as skipped."""
    raise Skipped(reason)


def importorskip(name: str, minversion: str | None = None, reason: str | None = None) -> Any:
    """Return a module, as `pytest.importorskip`; skip the test if it is missing."""
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError:
        raise Skipped(reason or f"no {name}") from None


# Fixtures.


class Fixture:
    """A function that `pytest.fixture` decorates."""

    def __init__(self, function: Any, scope: str, params: Any, autouse: bool, name: str | None):
        self.function, self.autouse, self.scope = function, autouse, scope
        self.params = None if params is None else list(params)
        self.name = name or function.__name__


def fixture(function: Any = None, *, scope: str = "function", params: Any = None, autouse: bool = False,
            ids: Any = None, name: str | None = None) -> Any:  # fmt: skip
    """Decorator `pytest.fixture`, with settings or without."""
    if function is None:
        return lambda given: Fixture(given, scope, params, autouse, name)
    return Fixture(function, scope, params, autouse, name)


class Capture:
    """The fixture `capsys`: output of tests and program since the last read."""

    def __init__(self) -> None:
        import io

        self.own = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = io.StringIO(), io.StringIO()

    def readouterr(self) -> Any:
        from collections import namedtuple

        texts = []
        stream: Any  # a StringIO, unless the test has put another file there
        for stream in (sys.stdout, sys.stderr):
            texts.append(stream.getvalue())
            stream.seek(0)
            stream.truncate()
        return namedtuple("CaptureResult", ("out", "err"))(*texts)

    @contextmanager
    def disabled(self) -> Iterator[None]:
        captured = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = self.own
        yield
        sys.stdout, sys.stderr = captured

    def close(self) -> None:
        sys.stdout, sys.stderr = self.own


_NONE = object()


class MonkeyPatch:
    """The fixture `monkeypatch`: changes of attributes and items that are undone after the test."""

    def __init__(self) -> None:
        self.undone: list[Callable[[], Any]] = []

    def setattr(self, target: Any, name: Any, value: Any = _NONE, raising: bool = True) -> None:
        if isinstance(target, str):
            import pkgutil

            value, (path, _, name) = name, target.rpartition(".")
            target = pkgutil.resolve_name(path)
        old = getattr(target, name) if raising else getattr(target, name, _NONE)
        self.undone.append(lambda: delattr(target, name) if old is _NONE else setattr(target, name, old))
        setattr(target, name, value)

    def delattr(self, target: Any, name: str, raising: bool = True) -> None:
        old = getattr(target, name)
        self.undone.append(lambda: setattr(target, name, old))
        delattr(target, name)

    def setitem(self, target: Any, key: Any, value: Any) -> None:
        old = target.get(key, _NONE)
        self.undone.append(lambda: target.pop(key) if old is _NONE else target.__setitem__(key, old))
        target[key] = value

    def undo(self) -> None:
        while self.undone:
            self.undone.pop()()

    @contextmanager
    def context(self) -> Iterator[MonkeyPatch]:
        inner = MonkeyPatch()
        yield inner
        inner.undo()


class Paths:
    """The fixture `tmp_path_factory`."""

    def mktemp(self, name: str, numbered: bool = True) -> Any:
        import pathlib
        import tempfile

        return pathlib.Path(tempfile.mkdtemp(prefix=name))


class Request:
    """The fixture `request`."""

    def __init__(self, case: Case, item: Item, param: Any = None):
        self._case, self.param, self.function, self.cls = case, param, item.function, item.owner
        self.instance, self.node, self.module = case.instance, item, sys.modules["tests"]

    def getfixturevalue(self, name: str) -> Any:
        return self._case.value(name)

    def addfinalizer(self, finish: Callable[[], Any]) -> None:
        self._case.finishers.append(finish)


# Running.


class Item:
    """A test to run: a function, and the class that it is a method of."""

    def __init__(self, name: str, function: Any, owner: Any, marks: list[Mark]):
        self.name, self.function, self.owner, self.marks = name, function, owner, marks

    @property
    def originalname(self) -> str:
        return self.name


class Case:
    """One run of a test: the values of its fixtures and parameters, and its tear-down."""

    def __init__(self, run: ModuleRun, item: Item, instance: Any, parameters: dict[str, Any], indices: dict[str, Any]):
        self.run, self.item, self.instance = run, item, instance
        self.values, self.indices, self.finishers = dict(parameters), indices, []

    def value(self, name: str) -> Any:
        if name not in self.values:
            self.values[name] = self._made(name)
        return self.values[name]

    def _made(self, name: str) -> Any:
        found = self.run.fixture(name, self.item.owner)
        if found is None:
            return self._provided(name)
        wide = found.scope != "function"
        owner = self.item.owner if found.scope == "class" else None
        key = (id(found), self.indices.get(name), owner)
        if wide and key in self.run.wide:
            return self.run.wide[key]
        value, finish = self._call(found, self.indices.get(name))
        if finish:
            (self.run.finishers if wide else self.finishers).append(finish)
        if wide:
            self.run.wide[key] = value
        return value

    def _call(self, found: Fixture, index: int | None) -> tuple[Any, Callable[[], Any] | None]:
        param = found.params[index] if found.params is not None and index is not None else None
        param = param.values[0] if isinstance(param, Param) else param
        given = {name: Request(self, self.item, param) if name == "request" else self.value(name)
                 for name in needed_names(found.function) if name not in ("self", "cls")}  # fmt: skip
        function = found.function
        if function.__code__.co_varnames[:1] in (("self",), ("cls",)):
            function = function.__get__(self.instance)
        value = function(**given)
        if not function.__code__.co_flags & 0x20:  # no generator
            return value, None
        return next(value), lambda: next(value, None)

    def _provided(self, name: str) -> Any:
        if name == "capsys":
            capture = Capture()
            self.finishers.append(capture.close)
            return capture
        if name == "monkeypatch":
            patch = MonkeyPatch()
            self.finishers.append(patch.undo)
            return patch
        if name == "request":
            return Request(self, self.item)
        if name in ("tmp_path", "tmp_path_factory"):
            return Paths() if name == "tmp_path_factory" else Paths().mktemp("test")
        raise Failed(f"there is no fixture {name!r}")


def needed_names(function: Any) -> list[str]:
    """Return the arguments without a default of the function below its decorators, except those that `unittest.mock.patch`
    supplies."""
    patched = 0
    while hasattr(function, "__wrapped__"):
        patched += sum(not each.attribute_name and type(each.new).__name__ == "_SentinelObject"
                       for each in getattr(function, "patchings", ()))  # fmt: skip
        function = function.__wrapped__
    function = getattr(function, "__func__", function)
    code = function.__code__
    names = list(code.co_varnames[: code.co_argcount])
    names = names[: len(names) - len(function.__defaults__ or ())]
    keyword = code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    method = names[:1] if names[:1] in (["self"], ["cls"]) else []
    names = names[len(method) :]
    return [*method, *names[patched:], *(name for name in keyword if name not in (function.__kwdefaults__ or {}))]


def optional(function: Any, given: Any) -> None:
    """Call a set-up or tear-down function, with its one argument where it takes it."""
    code = getattr(function, "__func__", function).__code__
    bound = 1 if hasattr(function, "__func__") else 0
    function(*([given] if code.co_argcount > bound else []))


class ModuleRun:
    """All tests of one module."""

    def __init__(self, names: dict[str, Any]):
        self.names, self.ran = names, 0
        self.wide: dict[Any, Any] = {}
        self.finishers: list[Callable[[], Any]] = []

    def fixture(self, name: str, owner: Any) -> Fixture | None:
        spaces = [vars(each) for each in (owner.__mro__ if owner else ())] + [self.names]
        return next(
            (each for space in spaces for each in space.values() if isinstance(each, Fixture) and each.name == name),
            None,
        )

    def all(self) -> None:
        module = sys.modules["tests"]
        if "setup_module" in self.names:
            optional(self.names["setup_module"], module)
        elif "setUpModule" in self.names:
            self.names["setUpModule"]()
        marks = self.names.get("pytestmark", [])
        marks = list(marks) if isinstance(marks, list | tuple) else [marks]
        for name, found in list(self.names.items()):
            if isinstance(found, types.FunctionType) and name.startswith("test") and found.__module__ == "tests":
                self.test(Item(name, found, None, [*marks, *vars(found).get("pytestmark", [])]))
            elif isinstance(found, type) and found.__module__ == "tests" and is_test_class(name, found):
                self.test_class(found, marks)
        self.finish(self.finishers)
        for name in ("teardown_module", "tearDownModule"):
            if name in self.names:
                optional(self.names[name], module)

    def test_class(self, found: Any, marks: list[Mark]) -> None:
        marks = [*marks, *(mark for each in found.__mro__ for mark in vars(each).get("pytestmark", []))]
        if is_case(found):
            return self.unittest(found, marks)
        if hasattr(found, "setup_class"):
            optional(found.setup_class, found)
        tests = {
            name: getattr(found, name)
            for each in reversed(found.__mro__)
            for name in vars(each)
            if name.startswith("test")
        }
        for name, function in tests.items():
            if isinstance(function, types.FunctionType | types.MethodType):
                self.test(Item(name, function, found, [*marks, *getattr(function, "pytestmark", [])]))
        for name, inner in list(vars(found).items()):
            if isinstance(inner, type) and is_test_class(name, inner):
                self.test_class(inner, marks)
        if hasattr(found, "teardown_class"):
            optional(found.teardown_class, found)

    def unittest(self, found: Any, marks: list[Mark]) -> None:
        """Run a unittest.TestCase by unittest, without the tests that a mark of pytest skips."""
        import unittest

        names = unittest.TestLoader().getTestCaseNames(found)
        chosen = [name for name in names
                  if not self.skips([*marks, *getattr(getattr(found, name), "pytestmark", [])])]  # fmt: skip
        result = unittest.TestResult()
        module = sys.modules.pop("tests")  # where unittest would look for set-up that is done once for all classes
        unittest.TestSuite(map(found, chosen)).run(result)
        sys.modules["tests"] = module
        for _, text in (*result.errors, *result.failures):
            raise AssertionError(text.strip().rpartition("\n")[2])
        if result.unexpectedSuccesses:
            raise AssertionError("a test that is expected to fail passes")
        self.ran += result.testsRun - len(result.skipped)

    def skips(self, marks: list[Mark]) -> bool:
        for mark in marks:
            conditions = [*mark.args, *([mark.kwargs["condition"]] if "condition" in mark.kwargs else [])]
            if mark.name == "skip" or (mark.name == "xfail" and not conditions):
                return True
            if mark.name in ("skipif", "xfail") and any(map(self.holds, conditions)):
                return True
        return False

    def holds(self, condition: Any) -> bool:
        return bool(eval(condition, {"sys": sys, "os": os, **self.names}) if isinstance(condition, str) else condition)

    def test(self, item: Item) -> None:
        """Run every case of a test: the product of its parameters and of the parameters of its fixtures."""
        if self.skips(item.marks):
            return
        sets = [_parameters(mark) for mark in reversed(item.marks) if mark.name == "parametrize"]
        indices = self.indices(item, {name for each in sets for values, _ in each for name in values})
        for chosen in itertools.product(*sets):
            if self.skips([mark for _, marks in chosen for mark in marks]):
                continue
            parameters = {name: value for values, _ in chosen for name, value in values.items()}
            for combination in itertools.product(*indices):
                self.case(item, parameters, dict(combination))

    def indices(self, item: Item, given: set[str]) -> list[list[tuple[str, int]]]:
        """Return, for each fixture with parameters that a test uses, its name with the number of each parameter."""
        return [[(name, index) for index in range(len(found.params))] for name in self.closure(item, given)
                if (found := self.fixture(name, item.owner)) and found.params is not None]  # fmt: skip

    def closure(self, item: Item, given: set[str]) -> list[str]:
        """Names of all fixtures that a test uses, in the order in which they are made."""
        autouse = [each.name for space in (self.names, *(vars(each) for each in (item.owner.__mro__ if item.owner else ())))
                   for each in space.values() if isinstance(each, Fixture) and each.autouse]  # fmt: skip
        used = [name for mark in item.marks if mark.name == "usefixtures" for name in mark.args]
        pending, names = [*autouse, *used, *needed_names(item.function)], []
        while pending:
            name = pending.pop(0)
            if name in names or name in given or name in ("self", "cls"):
                continue
            names.append(name)
            if found := self.fixture(name, item.owner):
                pending += needed_names(found.function)
        return names

    def case(self, item: Item, parameters: dict[str, Any], indices: dict[str, Any]) -> None:
        instance = item.owner() if item.owner else None
        case = Case(self, item, instance, parameters, indices)
        method = getattr(instance, item.name) if item.owner else item.function
        before, after = self.around(item, instance)
        try:
            self.call(case, method, before, set(parameters))
            self.ran += 1
        except Skipped:
            pass
        except BaseException as error:
            if not ("unittest" in sys.modules and isinstance(error, sys.modules["unittest"].SkipTest)):
                raise
        finally:
            self.finish(case.finishers)
            for function in after:
                optional(function, method)

    def around(self, item: Item, instance: Any) -> tuple[list[Any], list[Any]]:
        """Return the functions that set up a test, and those that tear it down."""
        names = ("setup_method", "setup"), ("teardown_method", "teardown")
        if item.owner is None:
            names, space = (("setup_function",), ("teardown_function",)), self.names
        else:
            space = {name: getattr(instance, name) for pair in names for name in pair if hasattr(instance, name)}
        before, after = ([space[name] for name in pair if name in space] for pair in names)
        return before, after

    def call(self, case: Case, method: Any, before: list[Any], given: set[str]) -> None:
        """Make the fixtures of a wide scope, set the test up, make its other fixtures, and call it."""
        needed = self.closure(case.item, given)
        wide = [name for name in needed if (found := self.fixture(name, case.item.owner)) and found.scope != "function"]
        for name in wide:
            case.value(name)
        for function in before:
            optional(function, method)
        for name in needed:
            case.value(name)
        method(**{name: case.value(name) for name in needed_names(case.item.function) if name not in ("self", "cls")})

    def finish(self, finishers: list[Callable[[], Any]]) -> None:
        while finishers:
            finishers.pop()()


def is_case(found: Any) -> bool:
    """Return whether a class is a unittest.TestCase."""
    return "unittest" in sys.modules and issubclass(found, sys.modules["unittest"].TestCase)


def is_test_class(name: str, found: Any) -> bool:
    """Return whether a class belongs to the tests, and is not a proxy for a class of the program."""
    return "_unmask_number" not in vars(found) and (name.startswith("Test") or is_case(found))


def _parameters(mark: Mark) -> list[tuple[dict[str, Any], list[Mark]]]:
    """The cases of a `parametrize`: values by name, and marks."""
    names = mark.args[0] if mark.args else mark.kwargs["argnames"]
    values = mark.args[1] if len(mark.args) > 1 else mark.kwargs["argvalues"]
    written = [name.strip() for name in names.split(",") if name.strip()] if isinstance(names, str) else list(names)
    alone = isinstance(names, str) and len(written) == 1  # then a value is not a tuple of values
    cases = []
    for value in values:
        marks = value.marks if isinstance(value, Param) else []
        value = value.values if isinstance(value, Param) else (value,) if alone else value
        cases.append((dict(zip(written, value, strict=True)), marks))
    return cases


def run_collected(names: dict[str, Any]) -> None:
    """Run all tests among the names of a module. Raise the error of a failing test, and AssertionError if no test runs."""
    run = ModuleRun(names)
    run.all()
    if not run.ran:
        raise AssertionError("no test ran")


PROVIDED: dict[str, Any] = {
    "mark": Marks(), "param": Param, "raises": raises, "approx": approx, "fail": fail, "skip": skip, "xfail": skip,
    "importorskip": importorskip, "fixture": fixture, "MonkeyPatch": MonkeyPatch, "CaptureFixture": Capture,
    "FixtureRequest": Request, "TempPathFactory": Paths, "ExceptionInfo": Raised,
}  # fmt: skip


def pytest_module() -> types.ModuleType:
    """Return the module that tests get by `import pytest`."""
    module = types.ModuleType("pytest")
    vars(module).update(PROVIDED)
    return module
