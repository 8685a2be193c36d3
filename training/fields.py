"""Settings as dataclasses: every field has a type, a default, a range and a sentence of help."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import Field, field, fields, is_dataclass
from typing import Any, ClassVar, TypeVar

from training.ranges import Range, shown


def setting(default: Any, allowed: Range, text: str) -> Any:
    """A field of `Settings`.

    Args:
        allowed: what a value may be.
        text: one sentence for `--help` and the reference.
    """
    return field(default=default, metadata={"range": allowed, "help": text})


S = TypeVar("S", bound="Settings")


class Settings:
    """Base class of settings. A subclass is a dataclass whose fields are made by `setting`, or hold other settings.

    Raises:
        ValueError: names the field, its value and its range.
    """

    prefix: ClassVar[str] = ""  # of the fields' names in messages and on the command line

    def __post_init__(self):
        for entry in fields(self):  # pyright: ignore[reportArgumentType]
            self.check(entry, getattr(self, entry.name))

    @classmethod
    def check(cls, entry: Field[Any], value: object) -> None:
        """Refuse a value outside the range of its field: ValueError."""
        allowed = entry.metadata.get("range")
        if allowed is not None and not allowed.holds(value):
            raise ValueError(f"{cls.prefix}{entry.name}={shown(value)} must be {allowed.allowed}; change it")

    @classmethod
    def of(cls: type[S], values: Mapping[str, Any]) -> S:
        """Settings with these values, nested mappings for nested settings. ValueError for an unknown name."""
        known = {entry.name: entry for entry in fields(cls)}  # pyright: ignore[reportArgumentType]
        found = {}
        for name, value in values.items():
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"did you mean {cls.prefix}{near[0]}?" if near else f"use one of {', '.join(known)}"
                raise ValueError(f"{cls.prefix}{name} is unknown; {hint}")
            kind = known[name].default_factory
            nested = isinstance(kind, type) and is_dataclass(kind) and issubclass(kind, Settings)
            if nested and not isinstance(value, Mapping):
                first = f"{cls.prefix}{name}.{fields(kind)[0].name}"  # pyright: ignore[reportArgumentType]
                raise ValueError(
                    f"{cls.prefix}{name}={shown(value)} takes the place of several keys; say {first}={shown(value)} for one"
                )
            cls.check(known[name], value)
            found[name] = kind.of(value) if nested else value  # pyright: ignore[reportAttributeAccessIssue]
        return cls(**found)
