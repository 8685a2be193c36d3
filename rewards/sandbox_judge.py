"""The side of the tests: the tests run in this process, with proxies for the objects of the program, and this process decides the
verdict.

Plain values arrive as copies, of exactly the built-in types, so that `==` is Python's own. An object of the program is
represented by a proxy, whose use sends a request to the program. Requests never contain what could reveal an expected value: a
proxy is equal to no plain value, and takes part in arithmetic and comparisons with plain values only if the tests themselves
created it from a class.
"""

from __future__ import annotations

import builtins
import importlib
import io
import sys
import types
from _thread import RLock

from rewards.sandbox_program import ARITHMETIC, SPECIAL
from rewards.sandbox_wire import (
    Channel,
    NotData,
    ProtocolError,
    ValueDecoder,
    ValueEncoder,
    is_mutable,
    text_of,
    update_in_place,
)

TYPE_CHECKING = False  # what `typing` says; importing it takes as long as all that a short program does
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

TESTS = "tests"  # __name__ of the module that tests run in
BASES: dict[str, type] = {
    base.__name__: base for base in (int, float, complex, str, bytes, tuple, frozenset, list, dict, set, bytearray)
}
CHANGEABLE = (list, dict, set, bytearray)
COMPARED = ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__")
# Operators whose operand may be what the tests expect.
WITH_OPERAND = {*COMPARED, "__contains__"} | {
    f"__{side}{name}__" for side in ("", "r", "i")
    for name in ARITHMETIC
}  # fmt: skip
CHANGING = {f"__i{name}__" for name in ("add", "sub", "mul", "and", "or", "xor")} | {"__setitem__", "__delitem__"}
FUNCTIONS = (types.FunctionType, types.MethodType, types.BuiltinFunctionType, types.MethodWrapperType, type)
OUTCOMES = {"unittest", "pytest", "_pytest", TESTS}  # modules whose exceptions are verdicts: only tests raise them


OWN = ("builtins", TESTS)  # modules whose exceptions cross as they are

# Attributes with two underscores that tests read. By others a library (numpy: __array_function__) would leave its work to the
# object, and give it the expected value.
SHOWN = {
    "__wrapped__",
    "__annotations__",
    "__dataclass_fields__",
    "__members__",
    "__abstractmethods__",
    "__version__",
    "__slots__",
}


def _refuse_hidden(thing: Any, name: str) -> None:
    if name.startswith("__") and name.endswith("__") and name not in SHOWN:
        raise AttributeError(f"{type(thing).__name__!r} object has no attribute {name!r}")


class RemoteType(type):
    """The metaclass of proxies for classes."""

    _unmask_side: TestsSide
    _unmask_number: int

    def __call__(cls, *given: Any, **named: Any) -> Any:
        if "_unmask_number" not in type.__getattribute__(cls, "__dict__"):
            raise cls._unmask_side.channel.fail(
                f"a test derives {cls.__name__} from a class of the program, which it cannot do"
            )
        made = cls._unmask_side.request("call", cls, given, named)
        if is_remote(made) and cls.__name__[:1].isupper() and cls.__name__ not in cls._unmask_side.functions:
            cls._unmask_side.made.add(number_of(made))
        return made

    def __getattr__(cls, name: str) -> Any:
        _refuse_hidden(cls, name)
        return cls._unmask_side.request("get", cls, name)

    def __setattr__(cls, name: str, value: Any) -> None:
        cls._unmask_side.request("set", cls, name, value)

    def __delattr__(cls, name: str) -> None:
        cls._unmask_side.request("delete", cls, name)

    def __iter__(cls) -> Any:
        return cls._unmask_side.request("special", cls, "__iter__", (), {})

    def __len__(cls) -> int:
        return cls._unmask_side.request("special", cls, "__len__", (), {})

    def __getitem__(cls, key: Any) -> Any:
        return cls._unmask_side.request("special", cls, "__getitem__", (key,), {})

    def __contains__(cls, item: Any) -> bool:
        return any(each is item or each == item for each in cls)

    def __bool__(cls) -> bool:
        return True


class Thing:
    """Base class of proxies for objects. Its own attributes are set by `object.__setattr__`."""

    _unmask_side: TestsSide
    _unmask_number: int

    def __getattr__(self, name: str) -> Any:
        _refuse_hidden(self, name)
        return self._unmask_side.request("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            object.__setattr__(self, name, value)
        else:
            self._unmask_side.request("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._unmask_side.request("delete", self, name)

    def __copy__(self) -> Any:
        return self._unmask_side.request("copy", self, False)

    def __deepcopy__(self, memo: Any) -> Any:
        return self._unmask_side.request("copy", self, True)

    @property
    def __dict__(self) -> dict[str, Any]:
        return self._unmask_side.request("get", self, "__dict__")


class Function(Thing):
    """A proxy for a function or method of the program."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return self._unmask_side.request("call", self, given, named)


class PlainBase(Thing):
    """Base class of proxies for objects that derive from a plain type: public attributes are the program's, also those of the
    type."""

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("_"):
            return object.__getattribute__(self, name)
        return self._unmask_side.request("get", self, name)


class Solution(types.ModuleType):
    """The module of the program, as tests import it."""

    def __init__(self, side: TestsSide):
        super().__init__("solution")
        self.__dict__["_unmask_side"] = side

    def __getattr__(self, name: str) -> Any:
        if name == "__all__":  # other names are looked up when they are needed, and so cannot hide those of the tests
            return [self._unmask_side.entry] if self._unmask_side.entry else []
        if name.startswith("__"):
            raise AttributeError(f"module 'solution' has no attribute {name!r}")
        return self._unmask_side.request("get", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("__"):
            super().__setattr__(name, value)
        else:
            self._unmask_side.request("set", self, name, value)

    def __delattr__(self, name: str) -> None:
        self._unmask_side.request("delete", self, name)


BUILTINS = frozenset(dir(builtins))


class Names(dict):
    """Globals of the tests: their own names, else modules that they read attributes of, else built-ins, else the program's."""

    def __init__(self, side: TestsSide, modules: dict[str, str]):
        super().__init__(__name__=TESTS, __builtins__=builtins)
        self.side, self.modules = side, modules

    def __missing__(self, name: str) -> Any:
        if name in self.modules:
            return importlib.import_module(self.modules[name])
        if (name in BUILTINS and name != self.side.entry) or name.startswith("__"):
            raise KeyError(name)
        try:
            return self.side.request("get", self.side.solution, name)
        except AttributeError:
            raise KeyError(name) from None


class Module(types.ModuleType):
    """The module of the tests, whose attributes are their globals."""

    def __init__(self, names: Names):
        super().__init__(TESTS)
        self.__dict__["_names"] = names

    def __getattr__(self, name: str) -> Any:
        if name in self.__dict__["_names"]:
            return self.__dict__["_names"][name]
        raise AttributeError(f"module 'tests' has no attribute {name!r}")

    def __setattr__(self, name: str, value: Any) -> None:
        self.__dict__["_names"][name] = value


def is_remote(value: Any) -> bool:
    """Return whether a value is a proxy. The class is tested, because `isinstance` calls code of the value."""
    return issubclass(type(value), Thing | RemoteType | Solution)


def number_of(value: Any) -> int:
    """Return the number by which both processes refer to an object of the program."""
    if type(value) is Solution:
        return 0
    owner = type if issubclass(type(value), RemoteType) else object
    return owner.__getattribute__(value, "_unmask_number")


def _own(name: str, base: type) -> Callable[..., Any] | None:
    """Return an operator of a plain type that acts on the current content in the program."""
    own = getattr(base, name, None)
    if base not in CHANGEABLE or own is None:
        return None if base is object else own

    def method(self: Any, *given: Any) -> Any:
        side = object.__getattribute__(self, "_unmask_side")
        content = side.content(side.request("value", self), base)
        mapping: Any = base  # a dict or a set
        if issubclass(base, list | bytearray):
            base.__setitem__(self, slice(None), content)
        else:
            mapping.clear(self)
            mapping.update(self, content)
        return own(self, *given)

    return method


def _special(name: str, base: type) -> Callable[..., Any]:
    """Return an operator of a proxy, which is sent to the program unless that would reveal an expected value."""
    own = _own(name, base)
    guarded = name in WITH_OPERAND and not (base in CHANGEABLE and name in CHANGING)

    def method(self: Any, *given: Any, **named: Any) -> Any:
        side = object.__getattribute__(self, "_unmask_side")
        made = number_of(self) in side.made
        if guarded and not is_remote(given[0]) and (not made or name in ("__eq__", "__ne__")):
            if own is not None:
                return own(self, *given)
            return (
                any(each is given[0] or each == given[0] for each in self) if name == "__contains__" else NotImplemented
            )
        result = side.request("special", self, name, given, named)
        if guarded and made and is_remote(result):
            side.made.add(number_of(result))
        return result

    method.__name__ = name
    return method


async def _awaited(side: TestsSide, number: int) -> Any:
    return side.request("await", ThingReference(number))


class RemoteSteps:
    """A generator of the program for `yield from`: `iter` of it returns itself."""

    def __init__(self, thing: Any):
        self.thing = thing

    def __iter__(self) -> RemoteSteps:
        return self

    def __next__(self) -> Any:
        return self.thing.__next__()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.thing, name)


def _generated(thing: Any) -> Any:
    return (yield from RemoteSteps(thing))


class ThingReference:
    """Number of an object of the program that has no proxy."""

    def __init__(self, number: int):
        self.number = number


class TestsSide:
    """Sends requests to the program, answers its requests about objects of the tests, and holds the proxies."""

    __test__ = False

    def __init__(self, channel: Channel, entry: str = "", functions: frozenset[str] = frozenset()):
        """entry: name of the requested function or class; functions: names that are functions, whatever objects the program
        binds to them."""
        self.channel, self.entry, self.functions, self.lock = channel, entry, functions, RLock()
        self.encode, self.decode = ValueEncoder(self._reference), ValueDecoder(self._referred)
        self.solution = Solution(self)
        self.iterates = False  # whether the tests speak of StopIteration, which is then an exception like others
        self.made: set[int] = set()
        self.descriptions: dict[int, tuple] = {}
        self.mirrors: dict[int, type] = {}
        self.things: dict[int, Any] = {}
        self.generators: dict[int, tuple[Any, int]] = {}
        self.shared: list[Any] = []
        self.shared_numbers: dict[int, int] = {}

    def request(self, operation: str, *given: Any) -> Any:
        """Send a request and return the program's answer, or raise its exception. ProtocolError if it cannot answer."""
        with self.lock:
            return self._requested(operation, given)

    def _requested(self, operation: str, given: tuple) -> Any:
        if self.channel.ended:
            raise ProtocolError(self.channel.ended)
        try:
            message = self.encode([operation, *given])
        except NotData as error:  # not the program's fault, but it cannot be judged
            raise self.channel.fail(str(error)) from error
        values = [*given[-2], *given[-1].values()] if operation in ("call", "special") else []
        self.channel.send(["ask", message])
        while True:
            reply = self.channel.receive()
            try:
                kind, *rest = reply
                if kind == "ask":
                    self._serve(*rest)
                    continue
                if kind != "answer":
                    raise ValueError(kind)
                (how, what), changed, out, err = rest
                self._print(out, err)
                for place, new in changed:
                    if is_mutable(values[place]) and not is_remote(values[place]):
                        update_in_place(values[place], self.decode(new))
                result = values[what] if how == "argument" else self.decode(what)
            except (TypeError, ValueError, LookupError) as error:
                raise self.channel.fail("the program sent an answer that is none") from error
            except ProtocolError as error:
                raise self.channel.fail(str(error)) from error
            if how == "raise":
                raise self._to_raise(result, operation)
            return result

    def _to_raise(self, error: Any, operation: str) -> BaseException:
        """Return the error that the program raises. A StopIteration outside of an iteration would end a `map` of the tests."""
        if not isinstance(error, BaseException):
            return self.channel.fail("the program raised a value")
        if isinstance(error, StopIteration | StopAsyncIteration) and operation == "call" and not self.iterates:
            return RuntimeError("the program raised StopIteration")
        return error

    def content(self, value: Any, base: type) -> Any:
        """Return the value of a proxy with a plain base, of exactly that type."""
        if type(value) is not base:
            raise self.channel.fail(f"the program sent no {base.__name__}")
        return value

    def _print(self, out: Any, err: Any) -> None:
        if out:
            sys.stdout.write(out)
        if err:
            sys.stderr.write(err)

    # What the program may ask of the tests.

    def _serve(self, operation: str, given: list, out: str, err: str) -> None:
        self._print(out, err)
        try:
            result = self.encode(self._serving(operation, *map(self.decode, given)))
            answer = ["told", "return", result]
        except ProtocolError:
            raise
        except BaseException as error:
            answer = ["told", "raise", self._raised(error)]
        self.channel.send(answer)

    def _serving(self, operation: str, *given: Any) -> Any:
        if operation == "input":
            return builtins.input(*given)
        if operation == "stdin":
            name, size = given
            return sys.stdin.readline(size) if name == "readline" else sys.stdin.read(size)
        number, *rest = given
        target = self.shared[number]
        if operation == "call":
            positional, named = rest
            return target(*positional, **named)
        if operation == "special":
            name, positional, named = rest
            if name not in SPECIAL:
                raise AttributeError(name)
            return getattr(type(target), name)(target, *positional, **named)
        name, *new = rest
        if name.startswith("_") or not _is_open(target) or (is_mock(target) and (new or name.endswith("_mock"))):
            raise AttributeError(f"{type(target).__name__!r} object has no attribute {name!r}")
        return setattr(target, name, *new) if new else getattr(target, name)

    def _raised(self, error: BaseException) -> list:
        if is_remote(error):
            return self._reference(error)
        kind = next(each for each in type(error).__mro__ if each.__module__ in OWN)
        number = self._numbered(error) if kind is type(error) else None
        return ["error", self.encode(kind), [self._plain(value) for value in error.args], number]

    def _plain(self, value: Any) -> Any:
        try:
            return self.encode(value)
        except NotData:
            return repr(value)

    def _reference(self, value: Any) -> list:
        """Return the reference by which the program gets a value that is not plain: an object of its own, an importable
        object, a copy by pickle, or else a number."""
        if type(value) is ThingReference:
            return ["program", value.number]
        if is_remote(value):
            return ["program", number_of(value)]
        if id(value) in self.generators:
            return ["program", self.generators[id(value)][1]]
        if isinstance(value, FUNCTIONS):
            return self._global(value) or self._share(value, None)
        if isinstance(value, BaseException) and type(value).__module__ in OWN:
            return self._raised(value)
        if isinstance(value, types.TracebackType):
            return self.encode(None)
        if _is_open(value) or hasattr(type(value), "__next__"):
            return self._share(value, [name for name in SPECIAL if getattr(type(value), name, None) is not None])
        pickle = importlib.import_module("pickle")
        try:
            return ["pickle", text_of(pickle.dumps(value))]
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            raise NotData(
                f"a {type(value).__name__} of the tests cannot be given to a program in another process"
            ) from error

    def _global(self, value: Any) -> list | None:
        module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", "")
        if module is None or module.partition(".")[0] in OUTCOMES:
            return None
        found: Any = sys.modules.get(module)
        for part in name.split("."):
            found = getattr(found, part, None)
        return ["global", module, name] if found is value else None

    def _numbered(self, value: Any) -> int:
        number = self.shared_numbers.get(id(value))
        if number is None:
            number = self.shared_numbers[id(value)] = len(self.shared)
            self.shared.append(value)
        return number

    def _share(self, value: Any, special: list[str] | None) -> list:
        """Return the number of an object of the tests, with the description of its proxy in the program's process: name,
        operators, documentation, and for a class of exceptions its bases."""
        number = self._numbered(value)
        name = getattr(value if special is None else type(value), "__name__", "callable")
        doc = getattr(value, "__doc__", None) if special is None else None
        is_error = isinstance(value, type) and issubclass(value, BaseException)
        bases = [base for base in value.__bases__ if issubclass(base, BaseException)] if is_error else []
        return [
            "tests",
            number,
            str(name),
            special and ["list", *special],
            doc if type(doc) is str else None,
            self.encode(bases),
        ]

    # Stand-ins for objects of the program.

    def _referred(self, tag: str, rest: list) -> Any:
        if tag == "tests":
            return self.shared[rest[0]]
        if tag == "class":
            return self._class(*rest)
        number, *rest = rest
        if type(number) is not int:
            raise ProtocolError("the program sent no number")
        if tag == "coroutine":
            return _awaited(self, number)
        if number not in self.things:
            self.things[number] = self._thing(tag, number, rest)
        return self.things[number]

    def _thing(self, tag: str, number: int, rest: list) -> Any:
        if tag == "function":
            thing = object.__new__(Function)
            object.__setattr__(thing, "__name__", str(rest[0]))
            object.__setattr__(thing, "__doc__", rest[1])
        elif tag == "error":
            return self._error(number, *rest)
        elif tag in ("object", "generator"):
            kind = self._mirror(self._described(*rest[0][1:]))
            base = next((base for base in BASES.values() if issubclass(kind, base)), object)
            value = (self.content(self.decode(rest[1]), base),) if base is not object else ()
            thing = base.__new__(kind, *(value if base not in CHANGEABLE else ()))
        else:
            raise ProtocolError(f"the program sent {tag}")
        object.__setattr__(thing, "_unmask_side", self)
        object.__setattr__(thing, "_unmask_number", number)
        if tag == "generator":
            generator = _generated(thing)
            self.generators[id(generator)] = (generator, number)
            return generator
        return thing

    def _error(self, number: int, kind: list, given: list, text: str, held: list, cause: Any) -> BaseException:
        """Return an exception of the program as one of the class of the same name in this process, or else of a proxy for its
        class."""
        error = self._made_error(number, self.decode(kind), self.decode.items(given), text)
        error.__cause__ = self.decode(cause)
        if not is_remote(error):
            for name, value in held:
                if not name.startswith("_"):
                    setattr(error, name, self.decode(value))
        return error

    def _made_error(self, number: int, made: Any, values: list, text: str) -> BaseException:
        if not issubclass(made, BaseException) or type(text) is not str:
            raise ProtocolError("the program raised no exception")
        if not issubclass(type(made), RemoteType):
            try:
                return made(*values)
            except Exception:
                error = BaseException.__new__(made, text)
                error.args = (text,)
                return error
        error = BaseException.__new__(made, *values)
        error.args = tuple(values)
        for name, value in (("_unmask_side", self), ("_unmask_number", number), ("_unmask_text", text)):
            object.__setattr__(error, name, value)
        return error

    def _described(self, number: int, *description: Any) -> int:
        if type(number) is not int:
            raise ProtocolError("the program sent no number")
        if description and number not in self.descriptions:
            self.descriptions[number] = description
            self.decode.items(description[3])  # bases, which are described here alone
        return number

    def _class(self, number: int, *description: Any) -> type:
        number = self._described(number, *description)
        return self._known(*self.descriptions[number][:2]) or self._mirror(number)

    def _mirror(self, number: int) -> type:
        if number not in self.mirrors:
            self.mirrors[number] = self._mirrored(number, *self.descriptions[number])
        return self.mirrors[number]

    def _known(self, module: str, name: str) -> type | None:
        """A class of the built-ins, or an exception of the standard library that the tests have imported."""
        if module == "builtins" and name in BUILTINS:
            found = getattr(builtins, name)
            return found if isinstance(found, type) else None
        if module.partition(".")[0] in sys.stdlib_module_names - OUTCOMES:
            found = getattr(sys.modules.get(module), name, None)
            return found if isinstance(found, type) and issubclass(found, BaseException) else None
        return None

    def _mirrored(self, number: int, module: str, name: str, doc: Any, bases: list, special: list, value: str) -> type:
        """Return a proxy class for a class of the program, with the same bases and with operators that send requests to it."""
        parents: list[type] = [base for base in self.decode.items(bases) if issubclass(base, Thing | BaseException)]
        base = BASES.get(value, object)
        own: dict[str, Any] = {
            "_unmask_side": self,
            "_unmask_number": number,
            "__module__": str(module),
            "__doc__": doc,
        }
        own |= _text_only() if _derives(parents, BaseException) else _operators(base, special)
        parents = _with_base(parents, base)
        try:
            return RemoteType(name.rpartition(".")[2], tuple(parents), own)
        except TypeError:  # bases that cannot be put in an order here
            return RemoteType(name.rpartition(".")[2], (Thing,), own)


def _derives(parents: list[type], base: type) -> bool:
    return any(issubclass(parent, base) for parent in parents)


def _operators(base: type, special: list[str]) -> dict[str, Any]:
    """Return the operators of a proxy: those of its class in the program, and those that read or change its content."""
    own: dict[str, Any] = {}
    if base in CHANGEABLE:
        read = (*COMPARED, "__iter__", "__len__", "__getitem__", "__contains__", "__repr__", "__reversed__")
        own |= {each: _own(each, base) for each in read if hasattr(base, each)}
        special = [*special, *(each for each in CHANGING if hasattr(base, each))]
    return own | {each: _special(each, base) for each in special if each in SPECIAL}


def _text_only() -> dict[str, Any]:
    """Return the only operator of a proxy for an exception: its text, which was transferred with it."""
    return {"__str__": lambda self: object.__getattribute__(self, "_unmask_text")}


def _with_base(parents: list[type], base: type) -> list[type]:
    """Return the bases of a proxy: those of its class in the program, a proxy, and the plain type that it derives from."""
    if not _derives(parents, Thing):
        parents = [PlainBase if base is not object else Thing, *parents]
    return parents if base is object or _derives(parents, base) else [*parents, base]


def _is_open(value: Any) -> bool:
    """Return whether the program may use the public attributes of an object: it is of a class of the tests, a mock or a file."""
    return type(value).__module__ == TESTS or is_mock(value) or isinstance(value, io.IOBase)


def is_mock(value: Any) -> bool:
    """Return whether a value is a mock of unittest."""
    return type(value).__module__ == "unittest.mock"


def run_tests(side: TestsSide, code: str, tests: str, modules: dict[str, str], collect: bool, seeds: list[str]) -> None:
    """Run the code in the program's process, then the tests in this one. Raise the error of a failing test."""
    compiled = compile(tests, TESTS, "exec")
    side.iterates = "StopIteration" in tests
    side.request("load", code)
    for name in seeds:
        _seed_both(side, name)
    names = Names(side, modules)
    sys.modules.update({TESTS: Module(names), "solution": side.solution})
    if collect:
        runner = importlib.import_module("rewards.sandbox_pytest")
        sys.modules["pytest"] = runner.pytest_module()
    exec(compiled, names)
    if collect:
        importlib.import_module("rewards.sandbox_pytest").run_collected(names)


def _seed_both(side: TestsSide, name: str) -> None:
    """Seed the program's random number generator whenever the tests seed theirs."""
    module: Any = importlib.import_module(name)
    own = module.seed

    def seed(*given: Any) -> None:
        own(*given)
        side.request("seed", name, *given)

    module.seed = seed
