"""The side of the program: this process runs the code, then answers the requests of the tests, one message at a time.

Everything in this process belongs to the program, which may change or read all of it. This gives it no advantage, since the
expected values, the comparisons and the verdict are in the process of the tests (sandbox_judge.py).
"""

from __future__ import annotations

import builtins
import importlib
import io
import os
import sys
import types
from _thread import RLock

from rewards.sandbox_wire import Channel, NotData, ProtocolError, ValueDecoder, ValueEncoder, data_of, is_mutable

TYPE_CHECKING = False  # what `typing` says; importing it takes as long as all that a short program does
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

LARGEST_OUTPUT = 2**20  # bytes that are kept of what a program prints between two messages
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType)
# Operators and protocols by which tests may use an object. Those of the class `object` alone are not mirrored.
ARITHMETIC = (
    "add", "sub", "mul", "matmul", "truediv", "floordiv", "mod", "divmod", "pow", "lshift", "rshift", "and", "or", "xor",
)  # fmt: skip
SPECIAL = tuple(f"__{name}__" for name in (
    "call", "len", "iter", "next", "reversed", "contains", "getitem", "setitem", "delitem", "missing", "enter", "exit",
    "aenter", "aexit", "aiter", "anext", "await", "bool", "int", "float", "complex", "index", "round", "trunc", "floor", "ceil",
    "abs", "neg", "pos", "invert", "eq", "ne", "lt", "le", "gt", "ge", "hash", "repr", "str", "format", "bytes", "fspath",
    "length_hint", "dir", *ARITHMETIC, *(f"r{name}" for name in ARITHMETIC), *(f"i{name}" for name in ARITHMETIC),
))  # fmt: skip
# Plain types of which a program may have subclasses, with what reads the value whatever the subclass overrides.
VALUES: dict[type, Callable[[Any], Any]] = {
    bool: bool, int: int.__int__, float: float.__float__, complex: complex.__complex__,
    str: lambda value: "".join(str.__iter__(value)), bytes: lambda value: bytes(bytes.__iter__(value)),
    tuple: lambda value: tuple(tuple.__iter__(value)), list: lambda value: list(list.__iter__(value)),
    set: lambda value: set(set.__iter__(value)), frozenset: lambda value: frozenset(frozenset.__iter__(value)),
    dict: lambda value: {key: dict.__getitem__(value, key) for key in dict.__iter__(value)},
    bytearray: lambda value: bytearray(bytearray.__iter__(value)),
}  # fmt: skip


class Printed(io.RawIOBase):
    """Output of a program, up to LARGEST_OUTPUT bytes; the rest is dropped."""

    def __init__(self) -> None:
        self.kept = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self.kept += view[: max(0, LARGEST_OUTPUT - len(self.kept))]
        return len(view)

    def take(self) -> str:
        text = self.kept.decode(errors="replace")
        self.kept.clear()
        return text


class Foreign:
    """A proxy for an object of the tests."""

    def __init__(self, program: ProgramSide, number: int):
        object.__setattr__(self, "_foreign", (program, number))

    def __getattr__(self, name: str) -> Any:
        program, number = object.__getattribute__(self, "_foreign")
        return program.ask("get", number, name)

    def __setattr__(self, name: str, value: Any) -> None:
        program, number = object.__getattribute__(self, "_foreign")
        program.ask("set", number, name, value)


def _foreign_special(name: str) -> Callable[..., Any]:
    def method(self: Foreign, *given: Any, **named: Any) -> Any:
        program, number = object.__getattribute__(self, "_foreign")
        return program.ask("special", number, name, given, named)

    return method


class Input(io.TextIOBase):
    """Standard input, read from the process of the tests, which may have replaced it by a text."""

    def __init__(self, program: ProgramSide):
        self.program = program

    def readable(self) -> bool:
        return True

    def read(self, size: int | None = -1) -> str:
        return self.program.ask("stdin", "read", -1 if size is None else size)

    def readline(self, size: int | None = -1, /) -> str:
        return self.program.ask("stdin", "readline", -1 if size is None else size)


def _text_stream(raw: Any) -> io.TextIOWrapper:
    """A text file over a raw one without a buffer between them."""
    return io.TextIOWrapper(raw, "utf-8", "replace", write_through=True)


class ProgramSide:
    """The loop that answers the tests, with tables of the objects that were transferred as references."""

    def __init__(self, channel: Channel):
        self.channel, self.lock = channel, RLock()
        self.encode, self.decode = ValueEncoder(self._reference), ValueDecoder(self._referred)
        self.module = types.ModuleType("solution")  # so that tests may say `from solution import ...`
        self.objects: list[Any] = [self.module]
        self.numbers: dict[int, int] = {id(self.module): 0}
        self.described: set[int] = set()
        self.foreign: dict[int, Any] = {}
        self.foreign_numbers: dict[int, int] = {}
        self.out, self.err = Printed(), Printed()
        sys.modules["solution"] = self.module
        sys.stdout, sys.stderr = map(_text_stream, (self.out, self.err))
        sys.stdin = Input(self)
        builtins.input = lambda prompt="", /: self.ask("input", prompt)

    def run(self) -> None:
        """Answer until the tests are done."""
        try:
            while True:
                self.answer(self.channel.receive())
        except ProtocolError:
            os._exit(0)

    def answer(self, message: Any) -> None:
        """Carry out one request of the tests. If it raises an exception, the exception is the answer."""
        given, before = [], []
        try:
            operation, *rest = self.decode(message[1])
            if operation in ("call", "special"):
                given = [*rest[-2], *rest[-1].values()]
            before = [self.encode(value) if is_mutable(value) else None for value in given]
            result = getattr(self, f"_{operation}")(*rest)
            answer = self._result(result, given)
        except BaseException as error:  # SystemExit among it: what a program raises is for the tests to judge
            answer = ["raise", self._error(error)]
        self.channel.send(["answer", answer, self._changed(given, before), self.out.take(), self.err.take()])

    def _result(self, result: Any, given: Any) -> list:
        """An argument that is returned is the tests' own object, not a copy."""
        for place, value in enumerate(given):
            if result is value and is_mutable(value):
                return ["argument", place]
        return ["return", self.encode(result)]

    def _changed(self, given: Any, before: list) -> list:
        changed = []
        for place, (value, old) in enumerate(zip(given, before, strict=False)):
            if old is not None:
                try:
                    new = self.encode(value)
                except (NotData, RecursionError):
                    continue
                if new != old:
                    changed.append([place, new])
        return changed

    def ask(self, operation: str, *given: Any) -> Any:
        """Send a request about an object of the tests; answer requests of the tests until the reply arrives."""
        with self.lock:
            self.channel.send(
                ["ask", operation, [self.encode(value) for value in given], self.out.take(), self.err.take()]
            )
            while True:
                message = self.channel.receive()
                if message[0] == "told":
                    break
                self.answer(message)
        if message[1] == "raise":
            raise self.decode(message[2])
        return self.decode(message[2])

    # What the tests can ask for. `target` is an object of the program.

    def _load(self, code: str) -> None:
        exec(compile(code, "solution", "exec"), self.module.__dict__)

    def _get(self, target: Any, name: str) -> Any:
        return getattr(target, name)

    def _set(self, target: Any, name: str, value: Any) -> None:
        setattr(target, name, value)

    def _delete(self, target: Any, name: str) -> None:
        delattr(target, name)

    def _call(self, target: Any, given: tuple, named: dict) -> Any:
        return target(*given, **named)

    def _special(self, target: Any, name: str, given: tuple, named: dict) -> Any:
        method = getattr(type(target), name, None)
        return NotImplemented if method is None else method(target, *given, **named)

    def _value(self, target: Any) -> Any:
        """The content of an object whose class derives from a plain type."""
        return next(read(target) for kind, read in VALUES.items() if isinstance(target, kind))

    def _copy(self, target: Any, deep: bool) -> Any:
        module = importlib.import_module("copy")
        return module.deepcopy(target) if deep else module.copy(target)

    def _await(self, target: Any) -> Any:
        return importlib.import_module("asyncio").run(self._waited(target))

    async def _waited(self, target: Any) -> Any:
        return await target

    def _seed(self, module: str, seed: Any) -> None:
        importlib.import_module(module).seed(seed)

    # References.

    def _number(self, value: Any) -> int:
        number = self.numbers.get(id(value))
        if number is None:
            number = self.numbers[id(value)] = len(self.objects)
            self.objects.append(value)
        return number

    def _reference(self, value: Any) -> list:
        if id(value) in self.foreign_numbers:
            return ["tests", self.foreign_numbers[id(value)]]
        if isinstance(value, type):
            return self._class(value)
        if isinstance(value, BaseException):
            return self._error(value)
        number = self._number(value)
        if isinstance(value, types.GeneratorType):
            return ["generator", number, self._class(type(value))]
        if isinstance(value, types.CoroutineType):
            return ["coroutine", number]
        if isinstance(value, FUNCTIONS):
            return ["function", number, str(getattr(value, "__name__", "")), _doc(value)]
        described = ["object", number, self._class(type(value))]
        return [*described, self.encode(self._value(value))] if isinstance(value, tuple(VALUES)) else described

    def _class(self, kind: type) -> list:
        """A class with, the first time, its description: module, name, documentation, bases, operators."""
        if id(kind) in self.foreign_numbers:
            return ["tests", self.foreign_numbers[id(kind)]]
        number = self._number(kind)
        if number in self.described:
            return ["class", number]
        self.described.add(number)
        plain = next((each for each in VALUES if issubclass(kind, each)), object)
        special = [
            name for name in SPECIAL if (own := _defined(kind, name)) is not None and own is not _defined(plain, name)
        ]
        bases = [self._class(base) for base in kind.__bases__ if base is not object]
        return ["class", number, kind.__module__, kind.__qualname__, _doc(kind), bases, special, plain.__name__]

    def _error(self, error: BaseException) -> list:
        if id(error) in self.foreign_numbers:
            return ["tests", self.foreign_numbers[id(error)]]
        given, held, cause = error.args, getattr(error, "__dict__", {}), error.__cause__
        if isinstance(error, OSError) and error.filename is not None and len(given) == 2:
            given = (*given, error.filename)  # which the constructor takes out of the arguments
        try:
            text = str(error)
        except Exception:
            text = ""
        return [
            "error",
            self._number(error),
            self._class(type(error)),
            [self._plain(value) for value in given],
            text,
            [[name, self._plain(value)] for name, value in held.items() if not name.startswith("_")],
            None if cause is None else self._error(cause),
        ]

    def _plain(self, value: Any) -> Any:
        try:
            return self.encode(value)
        except (NotData, RecursionError):
            return repr(value)

    def _referred(self, tag: str, rest: list) -> Any:
        if tag == "program":
            return self.objects[rest[0]]
        if tag == "pickle":
            return importlib.import_module("pickle").loads(data_of(rest[0]))
        if tag == "global":
            found = importlib.import_module(rest[0])
            for name in rest[1].split("."):
                found = getattr(found, name)
            return found
        if tag == "error":
            error = self.decode(rest[0])(*self.decode.items(rest[1]))
            if rest[2] is not None:
                self.foreign[rest[2]], self.foreign_numbers[id(error)] = error, rest[2]
            return error
        if tag != "tests":
            raise ProtocolError(f"the tests sent {tag}")
        number, name, special, doc, bases = rest
        if number not in self.foreign:
            made = self.foreign[number] = self._made(number, name, special, doc, self.decode(bases))
            self.foreign_numbers[id(made)] = number
        return self.foreign[number]

    def _attribute_of_error(self) -> Callable[[BaseException, str], Any]:
        """`__getattr__` of an exception class of the tests: what an instance holds that the tests have made."""

        def attribute(error: BaseException, name: str) -> Any:
            if id(error) not in self.foreign_numbers:
                raise AttributeError(f"{type(error).__name__!r} object has no attribute {name!r}")
            return self.ask("get", self.foreign_numbers[id(error)], name)

        return attribute

    def _made(self, number: int, name: str, special: list[str] | None, doc: str | None, bases: list[type]) -> Any:
        if bases:
            return type(name, tuple(bases), {"__getattr__": self._attribute_of_error(), "__doc__": doc})
        if special is not None:
            return type(name, (Foreign,), {each: _foreign_special(each) for each in special})(self, number)

        def function(*given: Any, **named: Any) -> Any:
            return self.ask("call", number, given, named)

        function.__name__ = function.__qualname__ = name
        function.__doc__ = doc
        return function


def _defined(kind: type, name: str) -> Any:
    """Return the attribute that a class or one of its bases defines, else None. `getattr` would search its metaclass too."""
    return next((vars(each)[name] for each in kind.__mro__ if name in vars(each)), None)


def _doc(value: Any) -> str | None:
    doc = getattr(value, "__doc__", None)
    return doc if isinstance(doc, str) else None
