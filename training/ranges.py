"""Ranges of settings: what a value of a configuration, or of a flag on a command line, may be.

A range is also the `type` of a flag: `add_argument("--rows", type=Whole(1))` reads the text and refuses it as argparse does.
"""

from __future__ import annotations

import argparse
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MANY = 1_000_000_000  # updates, rows, samples
FAR = 1e12  # the largest allowed number, in practice no limit
FEWEST_TOKENS, MOST_TOKENS = 257, 1_000_000  # of a tokenizer that is trained: the 256 bytes and the end of text; memory


class Range(ABC):
    """Range of a setting: `allowed` describes it in words, and `holds` returns whether a value is inside."""

    @property
    @abstractmethod
    def allowed(self) -> str: ...

    @abstractmethod
    def holds(self, value: object) -> bool: ...


@dataclass(frozen=True)
class Whole(Range):
    """An integer from `least` to `most`. True and False are refused."""

    least: int = 1
    most: int = MANY

    @property
    def allowed(self) -> str:
        return f"a whole number of at least {self.least} and at most {self.most}"

    def holds(self, value: object) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __call__(self, text: str) -> int:
        return _read(self, int, text)


@dataclass(frozen=True)
class Number(Range):
    """A finite number from `low` to `high`. open_low, open_high: exclude the end."""

    low: float | int = -FAR
    high: float | int = FAR
    open_low: bool = False
    open_high: bool = False

    @property
    def allowed(self) -> str:
        low, high = "above" if self.open_low else "of at least", "below" if self.open_high else "at most"
        return f"a finite number {low} {self.low:g} and {high} {self.high:g}"

    def holds(self, value: object) -> bool:
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        above = value > self.low if self.open_low else value >= self.low
        return above and (value < self.high if self.open_high else value <= self.high)

    def __call__(self, text: str) -> float:
        return _read(self, float, text)


@dataclass(frozen=True)
class Flag(Range):
    """True or false."""

    @property
    def allowed(self) -> str:
        return "true or false"

    def holds(self, value: object) -> bool:
        return isinstance(value, bool)


@dataclass(frozen=True)
class Text(Range):
    """A name or a path. empty: allow the empty text; number: allow a finite number, which is read as text."""

    empty: bool = False
    number: bool = False

    @property
    def allowed(self) -> str:
        return "text" if self.empty else "text that is not empty"

    def holds(self, value: object) -> bool:
        if self.number and Number().holds(value):
            return True
        return isinstance(value, str) and (self.empty or value.strip() != "")


@dataclass(frozen=True)
class TokenizerName(Range):
    """A name or a path of a tokenizer, or `bpe:N`, which trains one of N tokens."""

    @property
    def allowed(self) -> str:
        return f"a directory, a hub id, or bpe:N with N from {FEWEST_TOKENS} to {MOST_TOKENS}"

    def holds(self, value: object) -> bool:
        if not isinstance(value, str) or not value.startswith("bpe:"):
            return Text().holds(value)
        size = value.removeprefix("bpe:")
        return re.fullmatch(r"[0-9]{1,9}", size) is not None and FEWEST_TOKENS <= int(size) <= MOST_TOKENS


@dataclass(frozen=True)
class OneOf(Range):
    """One of a few names."""

    names: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return f"one of {', '.join(self.names)}"

    def holds(self, value: object) -> bool:
        return isinstance(value, str) and value in self.names


@dataclass(frozen=True)
class ListOf(Range):
    """A list whose items are all in the range `item`. count: (fewest, most) items."""

    item: Range
    example: str
    count: tuple[int, int] = (1, 1000)

    @property
    def allowed(self) -> str:
        fewest, most = self.count
        number = f"{fewest}" if fewest == most else f"at least {fewest}"
        return f"a list of {number} in brackets, such as {self.example}, each {self.item.allowed}"

    def holds(self, value: object) -> bool:
        return (
            isinstance(value, list)
            and self.count[0] <= len(value) <= self.count[1]
            and all(map(self.item.holds, value))
        )


@dataclass(frozen=True)
class Maybe(Range):
    """A range, or null."""

    range: Range

    @property
    def allowed(self) -> str:
        return f"{self.range.allowed}, or null"

    def holds(self, value: object) -> bool:
        return value is None or self.range.holds(value)


@dataclass(frozen=True)
class Either(Range):
    """One range or the other."""

    first: Range
    second: Range

    @property
    def allowed(self) -> str:
        return f"{self.first.allowed}, or {self.second.allowed}"

    def holds(self, value: object) -> bool:
        return self.first.holds(value) or self.second.holds(value)


ROWS = Whole(1, 1_000_000)  # that go through a network at a time
LENGTH = Whole(1, 1_000_000)  # positions
NAME, FLAG, WORDS = Text(), Flag(), Text(empty=True, number=True)
COUNT, COUNT_OR_NONE, SIZE = Whole(1), Whole(0), Whole(1, 100_000)
SHARE, PART = Number(0, 1), Number(0, 1, open_high=True)
WEIGHT, ABOVE_0 = Number(0, 1e6), Number(0, 1e6, open_low=True)
SEED, ANY_SEED = Whole(0, 2**31 - 1), Whole(-(2**63), 2**63 - 1)
DTYPE = OneOf(("float32", "bfloat16", "float16"))
CACHE = Maybe(OneOf(("prefix", "dual")))


def _read(allowed: Range, kind: type, text: str) -> Any:
    """Read a flag's text as a number in its range. argparse names the flag, and exits with status 2."""
    try:
        value = kind(text)
    except (ValueError, OverflowError):
        value = None
    if value is None or not allowed.holds(value):
        raise argparse.ArgumentTypeError(f"{text!r} must be {allowed.allowed}; change it")
    return value


def as_text(value: object) -> str:
    """Return a value in the notation of a configuration, on one line."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return " ".join(str(value).split())[:80]


ABSENT = object()


def found_at(settings: Mapping[str, Any], key: str) -> Any:
    """Return the value of a dotted key; ABSENT if it is missing. ValueError if a section is a single value."""
    place: Any = settings
    *sections, last = key.split(".")
    for number, name in enumerate(sections, start=1):
        place = place.get(name, ABSENT)
        if place is ABSENT:
            return ABSENT
        if not isinstance(place, dict):
            section = ".".join(sections[:number])
            raise ValueError(
                f"{section}={as_text(place)} takes the place of several keys; say {key}={as_text(place)} for one"
            )
    return place.get(last, ABSENT)


def check_ranges(settings: Mapping[str, Any], ranges: Mapping[str, Range]) -> None:
    """Refuse the first setting outside its range: ValueError names the key, its value and the range.

    Args:
        settings: nested dictionaries, without interpolations.
        ranges: by dotted key. A key that `settings` lacks is skipped.
    """
    for key, allowed in ranges.items():
        value = found_at(settings, key)
        if value is not ABSENT and not allowed.holds(value):
            raise ValueError(f"{key}={as_text(value)} must be {allowed.allowed}; change it")
