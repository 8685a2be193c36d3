"""Settings as dataclasses: every field has a type, a default, a range and a sentence of help.

A section is a field that holds other settings. A section with several kinds (`Kinds`) is a group of configuration files: the
value of one of its keys says which class it is. The YAML files of Hydra have the same keys and defaults, which
tests/test_fields.py proves. The classes are not registered in Hydra's ConfigStore: `Settings.of` checks types and ranges
already, and registration would import every room before `--help`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import partial
from typing import Any, ClassVar, TypeVar

from training.ranges import Range, as_text

REQUIRED = "???"  # in a configuration: a value that the command line has to give


def setting(default: Any, allowed: Range, text: str) -> Any:
    """Return a field of `Settings`.

    Args:
        default: a list is copied for every object. `REQUIRED`: there is none.
        allowed: what a value may be.
        text: one sentence for `--help` and the reference.
    """
    metadata = {"range": allowed, "help": text}
    if isinstance(default, list):
        return field(default_factory=lambda: list(default), metadata=metadata)
    return field(default=default, metadata=metadata)


def section(kind: type[Settings] | Kinds, **changed: Any) -> Any:
    """Return a field that holds other settings.

    Args:
        kind: its class, or the classes that it may have.
        changed: defaults that differ from those of the class (of the default class).
    """
    first = kind.default if isinstance(kind, Kinds) else kind
    return field(default_factory=partial(first, **changed), metadata={"section": kind, "changed": changed})


S = TypeVar("S", bound="Settings")


@dataclass(frozen=True)
class Kinds:
    """Classes of a section, by the value of its key `by`. choose: a function that returns the class, in place of the mapping
    `of`."""

    by: str
    of: Mapping[str, type[Settings]]
    default: type[Settings]
    choose: Callable[[Mapping[str, Any]], type[Settings]] | None = None

    def kind(self, values: Mapping[str, Any], prefix: str) -> type[Settings]:
        """Return the class for these values. ValueError for a value of `by` that is unknown."""
        if self.choose is not None:
            return self.choose(values)
        name = str(values.get(self.by))
        if name not in self.of:
            raise ValueError(f"{prefix}{self.by}={name!r} is unknown; use one of {', '.join(self.of)}")
        return self.of[name]


class Settings:
    """Base class of settings. A subclass is a dataclass whose fields are made by `setting` or `section`.

    Raises:
        ValueError: names the field, its value and its range.
    """

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]  # of every subclass
    place: ClassVar[str] = ""  # of the fields' names in messages and on the command line
    exact: ClassVar[bool] = False  # an unknown name is refused in a configuration that several commands share, too

    def __post_init__(self):
        for entry in fields(self):
            value = getattr(self, entry.name)
            if "section" in entry.metadata and not isinstance(value, Settings):
                setattr(self, entry.name, nested(entry, value, f"{self.place}{entry.name}.", strict=True))
            self.check(entry, value, self.place)

    @classmethod
    def check(cls, entry: Field[Any], value: object, prefix: str) -> None:
        """Refuse a value outside the range of its field: ValueError."""
        allowed = entry.metadata.get("range")
        if allowed is not None and value == REQUIRED and entry.default == REQUIRED:
            raise ValueError(f"{prefix}{entry.name} has to be given; add {prefix}{entry.name}=VALUE")
        if allowed is not None and not allowed.holds(value):
            raise ValueError(f"{prefix}{entry.name}={as_text(value)} must be {allowed.allowed}; change it")

    @classmethod
    def entries(cls) -> dict[str, Field[Any]]:
        """Return the fields by name."""
        return {entry.name: entry for entry in fields(cls)}

    @classmethod
    def of(cls: type[S], values: Mapping[str, Any], prefix: str | None = None, *, strict: bool = True) -> S:
        """Return settings with these values; nested mappings become nested settings.

        Args:
            prefix: of names in messages; None: the one of the class.
            strict: refuse an unknown name. False: leave it out, as for a configuration that several commands share.

        Raises:
            ValueError: a value outside its range, or an unknown name.
        """
        prefix = cls.place if prefix is None else prefix
        known = cls.entries()
        cls.check_values(values)
        unknown = [name for name in values if name not in known]
        if unknown and (strict or cls.exact):
            raise ValueError(cls.refusal(unknown, prefix))
        found: dict[str, Any] = {}
        for name, value in values.items():
            if name in unknown:
                continue
            kind = known[name].metadata.get("section")
            if kind is None:
                cls.check(known[name], value, prefix)
                found[name] = value
            else:
                found[name] = nested(known[name], value, f"{prefix}{name}.", strict)
        return cls(**found)

    @classmethod
    def check_values(cls, values: Mapping[str, Any]) -> None:
        """Refuse values of keys that belong to another kind of a section and have no effect: ValueError."""

    @classmethod
    def refusal(cls, unknown: list[str], prefix: str) -> str:
        """Return the error message for names that are not fields."""
        near = difflib.get_close_matches(unknown[0], cls.entries(), n=1)
        hint = f"did you mean {prefix}{near[0]}?" if near else f"use one of {', '.join(cls.entries())}"
        return f"{prefix}{unknown[0]} is unknown; {hint}"


def nested(entry: Field[Any], value: object, prefix: str, strict: bool) -> Settings:
    """Return the settings of a section with these values. ValueError for a single value in their place."""
    kind, changed = entry.metadata["section"], entry.metadata["changed"]
    if not isinstance(value, Mapping):
        first = next(iter((kind.default if isinstance(kind, Kinds) else kind).entries()))
        raise ValueError(
            f"{prefix.rstrip('.')}={as_text(value)} takes the place of several keys; say {prefix}{first}={as_text(value)} for one"
        )
    own: Mapping[str, Any] = value
    if isinstance(kind, Kinds):
        chosen = kind.kind(own, prefix)
        changed = changed if chosen is kind.default else {}
    else:
        chosen = kind
    return chosen.of({**changed, **own}, prefix, strict=strict)


def kinds_of(entry: Field[Any]) -> list[type[Settings]]:
    """Return the classes that a section may have, each once; none for a single value."""
    kind = entry.metadata.get("section")
    if isinstance(kind, Kinds):
        return list(dict.fromkeys(kind.of.values()))
    return [] if kind is None else [kind]


def leaves(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, Field[Any]]]:
    """Return (dotted key, field) of every value of a class and its sections; for a section with several kinds, of each kind."""
    for name, entry in cls.entries().items():
        if not (kinds := kinds_of(entry)):
            yield f"{prefix}{name}", entry
        for kind in kinds:
            yield from leaves(kind, f"{prefix}{name}.")


def default_of(entry: Field[Any]) -> Any:
    """Return the default of a single value; for a list a new copy."""
    return entry.default if entry.default_factory is MISSING else entry.default_factory()
