"""Requirements of pytest or unittest tests that the sandbox does not provide, found by parsing their text. Nothing is
executed.
"""

from __future__ import annotations

import ast
import builtins
import sys
from collections.abc import Iterator
from typing import NamedTuple

from rewards.sandbox_pytest import FIXTURES, PROVIDED

Function = ast.FunctionDef | ast.AsyncFunctionDef
# Modules whose work would have to reach into the process of the program, or that are plugins of pytest.
ELSEWHERE = {
    "freezegun", "time_machine", "responses", "requests_mock", "httpretty", "respx", "vcr", "moto", "pyfakefs", "hypothesis",
    "subprocess", "threading", "multiprocessing", "concurrent", "inspect", "gc", "weakref", "tracemalloc", "doctest",
    "pytest_mock", "pytest_asyncio", "pytest_benchmark", "pytest_django", "nose", "anyio", "trio", "aiounittest",
    "parameterized", "ddt", "testfixtures", "_pytest",
}  # fmt: skip
STREAMS = {"builtins.input", "sys.stdin", "sys.stdout", "sys.stderr"}  # shared by both processes
CASES = {"unittest.TestCase", "TestCase", "unittest.IsolatedAsyncioTestCase", "IsolatedAsyncioTestCase"}
# Calls whose effect would have to reach the process of the program, by their last two names.
CALLS = {
    "os.chdir", "os.putenv", "os.environ.update", "os.environ.setdefault", "os.environ.pop", "importlib.reload",
    "warnings.catch_warnings", "warnings.simplefilter", "monkeypatch.setenv", "monkeypatch.delenv", "monkeypatch.chdir",
    "monkeypatch.syspath_prepend", "locale.setlocale", "self.assertLogs", "self.assertNoLogs", "self.assertWarns",
    "self.assertWarnsRegex", "asyncio.wait_for", "asyncio.gather", "asyncio.create_task", "asyncio.TaskGroup",
    "signal.signal", "signal.alarm", "sys.setrecursionlimit", "request.applymarker",
}  # fmt: skip


def missing(tests: str) -> list[str]:
    """Return everything that tests need and the sandbox does not provide; empty if all of them can run.

    Raises:
        SyntaxError: the text is not Python.
    """
    tree = ast.parse(tests)
    tree.body = [node for node in tree.body if not _is_main_guard(node)]
    found = [*_imports(tree), *_pytest(tree), *_classes(tree), *_reach(tree), *_arguments(tree)]
    if not any(_tests_of(tree)):
        found.append("no test that is a function")
    return list(dict.fromkeys(found))


def _is_main_guard(node: ast.stmt) -> bool:
    """Return whether this is `if __name__ == "__main__":`, whose body does not run."""
    return isinstance(node, ast.If) and not node.orelse and ast.unparse(node.test) == "__name__ == '__main__'"


def _name(node: ast.expr) -> str:
    """Return a dotted name as text; "" for another expression."""
    if isinstance(node, ast.Attribute):
        return f"{before}.{node.attr}" if (before := _name(node.value)) else ""
    return node.id if isinstance(node, ast.Name) else ""


def _imported(tree: ast.Module) -> dict[str, str]:
    """Map the names in imports to the full dotted names that they refer to."""
    names = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.asname or alias.name.partition(".")[0]: alias.name if alias.asname else alias.name.partition(".")[0]
                      for alias in node.names}  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: f"{node.module or '.'}.{alias.name}" for alias in node.names}
    return names


def _meant(node: ast.expr, imported: dict[str, str]) -> str:
    """Return a dotted name with its first part replaced by the full name of the import."""
    first, dot, rest = _name(node).partition(".")
    return imported.get(first, first) + dot + rest


def _imports(tree: ast.Module) -> Iterator[str]:
    for module in sorted({name.partition(".")[0] for name in _imported(tree).values()}):
        if module in ELSEWHERE or module.startswith("pytest_"):
            yield module
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield "a relative import"


def _pytest(tree: ast.Module) -> Iterator[str]:
    """Yield the parts of pytest that the sandbox lacks: names, forms of a call, hooks and plugins."""
    imported = _imported(tree)
    for name in imported.values():
        if name.startswith("pytest.") and name.split(".")[1] not in PROVIDED:
            yield name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and _meant(node.value, imported) == "pytest" and node.attr not in PROVIDED:
            yield f"pytest.{node.attr}"
        if isinstance(node, ast.Call):
            yield from _pytest_call(node, _meant(node.func, imported))
    for node in tree.body:
        if isinstance(node, Function) and node.name.startswith("pytest_"):
            yield "a hook of pytest"
        if isinstance(node, ast.Assign) and any(_name(target) == "pytest_plugins" for target in node.targets):
            yield "plugins of pytest"


def _pytest_call(node: ast.Call, called: str) -> Iterator[str]:
    """Yield the forms of `parametrize` and `fixture` that the sandbox lacks."""
    if called == "pytest.mark.parametrize":
        yield from ("indirect parameters" for word in node.keywords if word.arg == "indirect")
    if called == "pytest.fixture":
        scopes = [word.value for word in node.keywords if word.arg == "scope"]
        yield from ("a scope by a function" for scope in scopes if not isinstance(scope, ast.Constant))


def _is_case(node: ast.ClassDef, imported: dict[str, str], known: dict[str, ast.ClassDef]) -> bool:
    return any(_meant(base, imported) in CASES or (_name(base) in known and _name(base) != node.name
               and _is_case(known[_name(base)], imported, known)) for base in node.bases)  # fmt: skip


def _classes(tree: ast.Module) -> Iterator[str]:
    imported = _imported(tree)
    known = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in known.values():
        for base in node.bases:
            base = base.value if isinstance(base, ast.Subscript) else base
            name = _meant(base, imported)
            ours = name in known or hasattr(builtins, name) or name.partition(".")[0] in sys.stdlib_module_names
            if name.startswith("solution.") or not ours:
                yield f"a class that derives from {_name(base) or 'an expression'}"
        own = {each.name for each in node.body if isinstance(each, Function)}
        if node.name.startswith("Test") and own & {"__init__", "__new__"} and not _is_case(node, imported, known):
            yield "a test class with a constructor"


def _reach(tree: ast.Module) -> Iterator[str]:
    """Yield changes of the test process that are meant for the program."""
    imported = _imported(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = _meant(node.func, imported)
            if called in CALLS:
                yield called
            yield from _patched(node, called, imported)
        if isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            for target in targets:
                place = _meant(target.value if isinstance(target, ast.Subscript) else target, imported)
                module = place.partition(".")[0]
                if (
                    isinstance(target, ast.Subscript | ast.Attribute)
                    and module in imported.values()
                    and module != "solution"
                ):
                    yield from () if place in STREAMS else (f"a change of {place}",)


def _patched(node: ast.Call, called: str, imported: dict[str, str]) -> Iterator[str]:
    """Yield uses of `patch` and `monkeypatch.setattr` on things that only the program's process has."""
    *_, way = called.split(".")
    by_mock = called.startswith(("unittest.mock.patch", "mock.patch"))
    if by_mock and way in ("dict", "multiple"):
        yield called
        return
    if not (by_mock and way in ("patch", "object")) and called not in ("monkeypatch.setattr", "monkeypatch.delattr"):
        return
    if not node.args:
        yield called
        return
    place = _patched_place(node.args, imported)
    module = place.partition(".")[0]
    is_text = isinstance(node.args[0], ast.Constant)
    outside = module in sys.stdlib_module_names or place in imported.values() or is_text
    if outside and place not in STREAMS and module != "solution":
        yield f"a patch of {place}"


def _patched_place(arguments: list[ast.expr], imported: dict[str, str]) -> str:
    """Return the dotted name of the patched object: the text argument, or an object and its attribute."""
    target, *rest = arguments
    if isinstance(target, ast.Constant) and isinstance(target.value, str):
        return target.value
    place = _meant(target, imported)
    is_known = place.partition(".")[0] in (*imported.values(), "builtins")
    return f"{place}.{rest[0].value}" if is_known and rest and isinstance(rest[0], ast.Constant) else place


def _decorated(node: Function | ast.ClassDef, imported: dict[str, str]) -> list[tuple[str, ast.expr]]:
    """Return the names of decorators, each with the decorator."""
    return [(_meant(each.func if isinstance(each, ast.Call) else each, imported), each) for each in node.decorator_list]


class _Test(NamedTuple):
    """A function that pytest or unittest calls, its class, and whether that is a class of unittest."""

    function: Function
    owner: ast.ClassDef | None
    is_unittest: bool


def _tests_of(tree: ast.Module) -> Iterator[_Test]:
    imported = _imported(tree)
    known = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in tree.body:
        if isinstance(node, Function) and node.name.startswith("test"):
            yield _Test(node, None, False)
    for node in known.values():
        case = _is_case(node, imported, known)
        if case or node.name.startswith("Test"):
            own = [each for part in _with_bases(node, known) for each in part.body]
            yield from (
                _Test(each, node, case) for each in own if isinstance(each, Function) and each.name.startswith("test")
            )


def _with_bases(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> list[ast.ClassDef]:
    """Return a class and its bases in the same module."""
    found = [node]
    for each in found:
        found += [known[name] for base in each.bases if (name := _name(base)) in known and known[name] not in found]
    return found


def _fixtures(tree: ast.Module, imported: dict[str, str]) -> dict[str, Function]:
    found = {}
    for node in ast.walk(tree):
        if isinstance(node, Function):
            for name, call in _decorated(node, imported):
                if name == "pytest.fixture":
                    named = next((word.value for word in _keywords(call) if word.arg == "name"), None)
                    found[named.value if isinstance(named, ast.Constant) else node.name] = node
    return found


def _arguments(tree: ast.Module) -> Iterator[str]:
    """Yield missing fixtures, and kinds of tests that cannot run."""
    imported = _imported(tree)
    fixtures = _fixtures(tree, imported)
    everything = [*_tests_of(tree), *(_Test(each, None, False) for each in fixtures.values())]
    for test in everything:
        yield from _kinds(test, fixtures)
        decorators = _decorated(test.function, imported)
        decorators += _decorated(test.owner, imported) if test.owner else []
        if not test.is_unittest:
            yield from (
                f"the fixture {name}" for name in _requested(test, decorators) if name not in {*fixtures, *FIXTURES}
            )
        yield from _marks(test, decorators, fixtures)
    words = [word.arg for each in fixtures.values() for _, call in _decorated(each, imported)
             for word in _keywords(call)]  # fmt: skip
    if "autouse" in words and any(test.is_unittest for test in everything):
        yield "fixtures for a unittest.TestCase"


def _kinds(test: _Test, fixtures: dict[str, Function]) -> Iterator[str]:
    """Yield coroutines outside an isolated TestCase, and generators that are not fixtures."""
    bases = test.owner.bases if test.owner and test.is_unittest else []
    if isinstance(test.function, ast.AsyncFunctionDef) and not any("Isolated" in _name(base) for base in bases):
        yield "asynchronous tests"
    yields = any(isinstance(each, ast.Yield | ast.YieldFrom) for each in _own_nodes(test.function))
    if yields and test.function not in fixtures.values():
        yield "tests that are generators"


def _requested(test: _Test, decorators: list[tuple[str, ast.expr]]) -> list[str]:
    """Return the arguments of a test that must be fixtures: no `parametrize` and no `patch` provides them."""
    parameters = {
        name for called, call in decorators if called == "pytest.mark.parametrize" for name in _parameter_names(call)
    }
    patches = sum(_gives_argument(called, call) for called, call in decorators)
    needed = _needed(test.function, test.owner is not None or _is_method(test.function))
    return [name for name in needed[patches:] if name not in parameters]


def _marks(test: _Test, decorators: list[tuple[str, ast.expr]], fixtures: dict[str, Function]) -> Iterator[str]:
    """Yield missing fixtures of `usefixtures`, and marks that unittest ignores."""
    for called, call in decorators:
        if called == "pytest.mark.usefixtures" and isinstance(call, ast.Call):
            yield from (f"the fixture {each.value}" for each in call.args
                        if isinstance(each, ast.Constant) and each.value not in {*fixtures, *FIXTURES})  # fmt: skip
        if test.is_unittest and called in ("pytest.mark.parametrize", "pytest.mark.usefixtures"):
            yield f"{called} in a unittest.TestCase"


def _keywords(decorator: ast.expr) -> list[ast.keyword]:
    """Return the keyword arguments of a decorator; none if it is not called."""
    return decorator.keywords if isinstance(decorator, ast.Call) else []


def _own_nodes(function: Function) -> Iterator[ast.AST]:
    """Yield nodes of a function without those of inner functions."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop()
        yield node
        if not isinstance(node, Function | ast.Lambda | ast.ClassDef):
            pending += ast.iter_child_nodes(node)


def _is_method(function: Function) -> bool:
    return bool(function.args.args) and function.args.args[0].arg in ("self", "cls")


def _needed(function: Function, method: bool) -> list[str]:
    """Return the arguments without a default, without self."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args)]
    names = names[: len(names) - len(given.defaults)]
    static = any(_name(each) == "staticmethod" for each in function.decorator_list)
    names = names[1:] if method and not static else names
    return names + [
        each.arg for each, default in zip(given.kwonlyargs, given.kw_defaults, strict=True) if default is None
    ]


def _parameter_names(call: ast.expr) -> list[str]:
    """Return the names of a `parametrize`; if they are not literal, a name that no test has."""
    words = {word.arg: word.value for word in _keywords(call)}
    named = next(iter(call.args if isinstance(call, ast.Call) else []), words.get("argnames"))
    if isinstance(named, ast.Constant) and isinstance(named.value, str):
        return [name.strip() for name in named.value.split(",")]
    if isinstance(named, ast.List | ast.Tuple):
        return [str(each.value) for each in named.elts if isinstance(each, ast.Constant)]
    return []


def _gives_argument(called: str, call: ast.expr) -> bool:
    """Return whether a decorator of unittest.mock adds an argument: it does unless the replacement is given."""
    if not called.startswith(("unittest.mock.patch", "mock.patch")) or not isinstance(call, ast.Call):
        return False
    positional = 2 if called.endswith(".object") else 1
    return len(call.args) <= positional and not any(word.arg == "new" for word in call.keywords)
