"""Messages between a program and its tests: JSON frames on a pipe, in a closed set of plain types.

A value of one of the types below is transferred as a copy, of exactly that type. Anything else is a reference, which only the
side that owns the object can use. The tests never unpickle, so a program can send values of these types only. This module also
runs inside the sandbox, so it imports only the standard library.
"""

from __future__ import annotations

import binascii
import importlib
import os
import select
import sys
import types

# These two without the packages around them, which take longer to import than to use.
from _collections import OrderedDict  # pyright: ignore[reportMissingImports]
from _json import encode_basestring_ascii, make_encoder, make_scanner

TYPE_CHECKING = False  # what `typing` says; importing it takes as long as all that a short program does
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from typing import Any

LARGEST_FRAME = 2**26
PLAIN = (type(None), bool, str, float)
FACTORIES = {"list": list, "dict": dict, "set": set, "int": int, "float": float, "str": str, "tuple": tuple}


class ProtocolError(Exception):
    """The other side sent an invalid message, or has ended."""


class NotData(Exception):
    """The value can be transferred neither as a copy nor as a reference."""


def _unknown(value: Any) -> Any:
    raise NotData(f"a {type(value).__name__} is no value of JSON")


def dumps(value: Any) -> bytes:
    """Return JSON as `json.dumps` does."""
    return "".join(_encoder(value, 0)).encode()


def loads(data: bytes) -> Any:
    """Return a value of JSON. ValueError for other data."""
    text = data.decode()
    try:
        value, end = _scanner(text, 0)
    except StopIteration:
        raise ValueError("no JSON") from None
    if end != len(text):
        raise ValueError("more than JSON")
    return value


_encoder = make_encoder(None, _unknown, encode_basestring_ascii, None, ":", ",", False, False, True)
_settings: Any = types.SimpleNamespace(  # in place of a JSONDecoder, whose module takes long to import
    strict=True, object_hook=None, object_pairs_hook=None, parse_float=float, parse_int=int, parse_constant=float, memo={},
)  # fmt: skip
_scanner = make_scanner(_settings)


class Channel:
    """Frames on two pipes: four bytes of length, then JSON. `ended` is the reason why the other side cannot answer any more."""

    def __init__(self, read: int, write: int, process: int | None = None):
        """process: a pid file descriptor; a read fails as soon as that process has ended."""
        self.read, self.write, self.ended = read, write, ""
        self.poll = select.poll()
        self.poll.register(read, select.POLLIN)
        self.process = process
        if process is not None:
            self.poll.register(process, select.POLLIN)

    def send(self, message: Any) -> None:
        frame = dumps(message)
        frame = len(frame).to_bytes(4, "little") + frame
        view = memoryview(frame)
        try:
            while view:
                view = view[os.write(self.write, view) :]
        except OSError as error:
            raise self.fail("the program ended before the last test") from error

    def receive(self) -> Any:
        length = int.from_bytes(self._exactly(4), "little")
        if length > LARGEST_FRAME:
            raise self.fail(f"the program sent a message of {length} bytes")
        try:
            return loads(self._exactly(length))
        except (ValueError, RecursionError) as error:
            raise self.fail("the program sent no message") from error

    def fail(self, reason: str) -> ProtocolError:
        self.ended = self.ended or reason
        return ProtocolError(self.ended)

    def _exactly(self, length: int) -> bytes:
        parts = []
        while length:
            if self.process is not None and not any(file == self.read for file, _ in self.poll.poll()):
                raise self.fail("the program ended before the last test")
            part = os.read(self.read, min(length, 2**20))
            if not part:
                raise self.fail("the program ended before the last test")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)


def text_of(data: bytes) -> str:
    """Return bytes as text for JSON."""
    return binascii.b2a_base64(data, newline=False).decode()


def data_of(text: str) -> bytes:
    """Return the bytes of a text that `text_of` returned."""
    return binascii.a2b_base64(text, strict_mode=True)


def is_plain_type(kind: str) -> bool:
    """Return whether elements of a numpy type are numbers, dates or texts of fixed size, which are copied by their bytes."""
    return kind[:1] in tuple("<>|=") and kind[1:2] in tuple("biufcSUmM") and kind[2:3].isdigit()


class ValueEncoder:
    """Encodes values as JSON. `reference` encodes values that are not plain (it raises NotData if it cannot)."""

    def __init__(self, reference: Callable[[Any], list]):
        self.reference = reference

    def __call__(self, value: Any) -> Any:
        kind = type(value)
        if kind in PLAIN:
            return value
        encode = ENCODERS.get(kind) or _late_encoder(kind)
        encoded = encode(self, value) if encode else None
        return self.reference(value) if encoded is None else encoded

    def items(self, tag: str, values: Iterable[Any]) -> list:
        return [tag, *map(self, values)]


def _late_encoder(kind: type) -> Callable[[ValueEncoder, Any], Any] | None:
    """Return the encoder of a class of LATE_ENCODERS itself, not of a proxy with its name."""
    encode = LATE_ENCODERS.get(f"{kind.__module__}.{kind.__qualname__}")
    return encode if encode and getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is kind else None


def _integer(encode: ValueEncoder, value: int) -> Any:
    return value if -(2**62) < value < 2**62 else ["int", hex(value)]


def _pairs(tag: str) -> Callable[[ValueEncoder, Any], list]:
    return lambda encode, value: [tag, *([encode(k), encode(v)] for k, v in value.items())]


def _items(tag: str) -> Callable[[ValueEncoder, Any], list]:
    return lambda encode, value: encode.items(tag, value)


def _default(encode: ValueEncoder, value: Any) -> list | None:
    factory = value.default_factory
    if factory is not None and FACTORIES.get(getattr(factory, "__name__", "")) is not factory:
        return None
    return ["defaultdict", factory and factory.__name__, *([encode(k), encode(v)] for k, v in value.items())]


def _moment(*names: str) -> Callable[[ValueEncoder, Any], list]:
    """Encode by attributes, which are the arguments of the constructor; a time zone has to be plain as well."""
    return lambda encode, value: [type(value).__name__, *(encode(getattr(value, name)) for name in names)]


def _array(encode: ValueEncoder, value: Any) -> list | None:
    if not is_plain_type(value.dtype.str):
        return ["objects", list(value.shape), *map(encode, value.ravel().tolist())] if value.dtype == object else None
    return ["array", value.dtype.str, list(value.shape), text_of(value.tobytes())]


def _scalar(encode: ValueEncoder, value: Any) -> list | None:
    return ["scalar", value.dtype.str, text_of(value.tobytes())] if is_plain_type(value.dtype.str) else None


def _index(encode: ValueEncoder, value: Any) -> list:
    """An index of pandas: the names of its levels, then the values of each."""
    levels = [value.get_level_values(level).to_numpy() for level in range(value.nlevels)]
    return ["index", encode(list(value.names)), *map(encode, levels)]


def _frame(encode: ValueEncoder, value: Any) -> list | None:
    columns = [value.iloc[:, place].to_numpy() for place in range(value.shape[1])]
    return ["frame", _index(encode, value.columns), _index(encode, value.index), *map(encode, columns)]


def _series(encode: ValueEncoder, value: Any) -> list:
    return ["series", encode(value.name), _index(encode, value.index), encode(value.to_numpy())]


ENCODERS: dict[type, Callable[[ValueEncoder, Any], Any]] = {
    int: _integer,
    list: _items("list"),
    tuple: _items("tuple"),
    set: _items("set"),
    frozenset: _items("frozenset"),
    dict: _pairs("dict"),
    OrderedDict: _pairs("OrderedDict"),
    complex: lambda encode, value: ["complex", value.real, value.imag],
    bytes: lambda encode, value: ["bytes", text_of(value)],
    bytearray: lambda encode, value: ["bytearray", text_of(value)],
    range: lambda encode, value: encode.items("range", (value.start, value.stop, value.step)),
    slice: lambda encode, value: encode.items("slice", (value.start, value.stop, value.step)),
    type({}.keys()): _items("keys"),
    type({}.values()): _items("values"),
    type({}.items()): _items("items"),
    type(...): lambda encode, value: ["constant", "Ellipsis"],
    type(NotImplemented): lambda encode, value: ["constant", "NotImplemented"],
    types.MappingProxyType: _pairs("dict"),
}
# Types of modules that are not imported unless a program or a test does.
LATE_ENCODERS: dict[str, Callable[[ValueEncoder, Any], Any]] = {
    "collections.Counter": _pairs("Counter"),
    "collections.defaultdict": _default,
    "collections.deque": lambda encode, value: ["deque", value.maxlen, *map(encode, value)],
    "decimal.Decimal": lambda encode, value: ["Decimal", str(value)],
    "fractions.Fraction": lambda encode, value: encode.items("Fraction", (value.numerator, value.denominator)),
    "datetime.date": _moment("year", "month", "day"),
    "datetime.time": _moment("hour", "minute", "second", "microsecond", "tzinfo"),
    "datetime.datetime": _moment("year", "month", "day", "hour", "minute", "second", "microsecond", "tzinfo"),
    "datetime.timedelta": _moment("days", "seconds", "microseconds"),
    "datetime.timezone": lambda encode, value: ["timezone", encode(value.utcoffset(None)), value.tzname(None)],
    "zoneinfo.ZoneInfo": lambda encode, value: ["ZoneInfo", value.key] if value.key else None,
    "uuid.UUID": lambda encode, value: ["UUID", hex(value.int)],
    "pathlib.PosixPath": lambda encode, value: ["PosixPath", str(value)],
    "pathlib.PurePosixPath": lambda encode, value: ["PurePosixPath", str(value)],
    "numpy.ndarray": _array,
    **dict.fromkeys(("pandas.DataFrame", "pandas.core.frame.DataFrame"), _frame),  # the name since pandas 3, and before
    **dict.fromkeys(("pandas.Series", "pandas.core.series.Series"), _series),
    **dict.fromkeys(("pandas.Timestamp", "pandas._libs.tslibs.timestamps.Timestamp"),
                    lambda encode, value: ["Timestamp", value.isoformat()]),
    **dict.fromkeys(("pandas.Timedelta", "pandas._libs.tslibs.timedeltas.Timedelta"),
                    lambda encode, value: ["Timedelta", value.isoformat()]),
} | {f"numpy.{name}": _scalar for name in (
    "bool_", "bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64", "longlong", "ulonglong",
    "float16", "float32", "float64", "complex64", "complex128", "datetime64", "timedelta64")}  # fmt: skip


class ValueDecoder:
    """Decodes JSON to values of the types above. `reference` decodes the other tags. Raises ProtocolError for anything else."""

    def __init__(self, reference: Callable[[str, list], Any]):
        self.reference = reference

    def __call__(self, encoded: Any) -> Any:
        if type(encoded) in (*PLAIN, int):
            return encoded
        if type(encoded) is not list or not encoded or type(encoded[0]) is not str:
            raise ProtocolError("the program sent a value that is none")
        tag, rest = encoded[0], encoded[1:]
        try:
            decode = DECODERS.get(tag)
            return decode(self, rest) if decode else self.reference(tag, rest)
        except (
            TypeError,
            ValueError,
            ArithmeticError,
            LookupError,
            ImportError,
            AttributeError,
            RecursionError,
        ) as error:
            raise ProtocolError(f"the program sent a value that is no {tag}") from error

    def items(self, encoded: list) -> list[Any]:
        return [self(item) for item in encoded]

    def pairs(self, encoded: list) -> list[tuple[Any, Any]]:
        return [(self(key), self(value)) for key, value in encoded]


def _make(module: str, name: str) -> Callable[[ValueDecoder, list], Any]:
    """Decode by the constructor of a class, which is imported when the first such value comes."""
    return lambda decode, rest: getattr(importlib.import_module(module), name)(*decode.items(rest))


def _with_default(decode: ValueDecoder, rest: list) -> Any:
    factory = None if rest[0] is None else FACTORIES[rest[0]]
    return importlib.import_module("collections").defaultdict(factory, decode.pairs(rest[1:]))


def _to_array(decode: ValueDecoder, rest: list) -> Any:
    kind, shape, data = rest
    return _numbers(kind, data).reshape([int(n) for n in shape]).copy()


def _to_objects(decode: ValueDecoder, rest: list) -> Any:
    numpy = importlib.import_module("numpy")
    array = numpy.empty(len(rest) - 1, dtype=object)
    array[:] = decode.items(rest[1:])
    return array.reshape(rest[0])


def _numbers(kind: str, data: str) -> Any:
    numpy = importlib.import_module("numpy")
    if not is_plain_type(kind):
        raise ProtocolError("the program sent an array of no plain type")
    return numpy.frombuffer(data_of(data), dtype=numpy.dtype(kind))


def _to_frame(decode: ValueDecoder, rest: list) -> Any:
    pandas = importlib.import_module("pandas")
    names, index, *columns = decode.items(rest)
    frame = pandas.DataFrame(dict(enumerate(columns)), index=index)
    frame.columns = names
    return frame


def _to_index(decode: ValueDecoder, rest: list) -> Any:
    pandas = importlib.import_module("pandas")
    names, *levels = decode.items(rest)
    return (
        pandas.MultiIndex.from_arrays(levels, names=names) if len(levels) > 1 else pandas.Index(*levels, name=names[0])
    )


def _to_series(decode: ValueDecoder, rest: list) -> Any:
    name, index, values = decode.items(rest)
    return importlib.import_module("pandas").Series(values, index=index, name=name)


def _deque(decode: ValueDecoder, rest: list) -> Any:
    return importlib.import_module("collections").deque(decode.items(rest[1:]), rest[0])


DECODERS: dict[str, Callable[[ValueDecoder, list], Any]] = {
    "int": lambda decode, rest: int(rest[0], 16),
    "list": lambda decode, rest: decode.items(rest),
    "tuple": lambda decode, rest: tuple(decode.items(rest)),
    "set": lambda decode, rest: set(decode.items(rest)),
    "frozenset": lambda decode, rest: frozenset(decode.items(rest)),
    "dict": lambda decode, rest: dict(decode.pairs(rest)),
    "OrderedDict": lambda decode, rest: OrderedDict(decode.pairs(rest)),
    "Counter": lambda decode, rest: importlib.import_module("collections").Counter(dict(decode.pairs(rest))),
    "defaultdict": _with_default,
    "deque": _deque,
    "complex": lambda decode, rest: complex(*decode.items(rest)),
    "bytes": lambda decode, rest: data_of(rest[0]),
    "bytearray": lambda decode, rest: bytearray(data_of(rest[0])),
    "range": lambda decode, rest: range(*decode.items(rest)),
    "slice": lambda decode, rest: slice(*decode.items(rest)),
    "keys": lambda decode, rest: dict.fromkeys(decode.items(rest)).keys(),
    "values": lambda decode, rest: dict(enumerate(decode.items(rest))).values(),
    "items": lambda decode, rest: dict(decode.items(rest)).items(),
    "constant": lambda decode, rest: {"Ellipsis": ..., "NotImplemented": NotImplemented}[rest[0]],
    "Decimal": _make("decimal", "Decimal"),
    "Fraction": _make("fractions", "Fraction"),
    "date": _make("datetime", "date"),
    "time": _make("datetime", "time"),
    "datetime": _make("datetime", "datetime"),
    "timedelta": _make("datetime", "timedelta"),
    "timezone": _make("datetime", "timezone"),
    "ZoneInfo": _make("zoneinfo", "ZoneInfo"),
    "Timestamp": _make("pandas", "Timestamp"),
    "Timedelta": _make("pandas", "Timedelta"),
    "UUID": lambda decode, rest: importlib.import_module("uuid").UUID(int=int(rest[0], 16)),
    "PosixPath": _make("pathlib", "PosixPath"),
    "PurePosixPath": _make("pathlib", "PurePosixPath"),
    "array": _to_array,
    "objects": _to_objects,
    "scalar": lambda decode, rest: _numbers(*rest)[0],
    "index": _to_index,
    "frame": _to_frame,
    "series": _to_series,
}


def update_in_place(held: Any, new: Any) -> None:
    """Replace the content of a mutable plain value by that of another one of its type."""
    if type(held) is not type(new):
        raise ProtocolError("the program sent an argument back as another type")
    if isinstance(held, list | bytearray):
        held[:] = new
    elif isinstance(held, dict | set):
        held.clear()
        held.update(new)
    elif type(held).__name__ == "deque":
        held.clear()
        held.extend(new)
    else:
        held[...] = new  # an array of numpy


def is_mutable(value: Any) -> bool:
    """Return whether a plain value is sent back when the other side has changed it."""
    return isinstance(value, list | bytearray | dict | set) or type(value).__name__ in ("deque", "ndarray")
