"""Write docs/reference/settings.md and configs/help.json from the dataclasses of settings: `python -m unmask.reference`."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import Field
from typing import Any

from training.fields import Kinds, Settings, default_of
from training.files import write_text
from training.ranges import as_text
from training.usage import CONFIGS
from unmask.settings import COMMANDS

HELP = CONFIGS / "help.json"  # the sentences of --help
PAGE = CONFIGS.parent / "docs" / "reference" / "settings.md"
UNREACHED = re.compile(r" and at most 1(0{6,}|e\+\d+)\b")
BEGINNING = """# Settings

Keys of every command that reads a configuration, with their defaults. `KEY=VALUE` on the command line sets a key. This page is
generated from the dataclasses of settings by `python -m unmask.reference`.
"""


def allowed_of(entry: Field[Any]) -> str:
    """Return what a value may be, without an upper bound that no run reaches."""
    return UNREACHED.sub("", entry.metadata["range"].allowed)


def row(key: str, entry: Field[Any], default: Any) -> str:
    """Return one row of a table: key, default, allowed values, help."""
    cells = (f"`{key}`", f"`{as_text(default)}`", allowed_of(entry), entry.metadata["help"])
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def rows(cls: type[Settings], prefix: str = "", changed: dict[str, Any] | None = None) -> list[str]:
    """Return one row for every value of a class and of its sections with one kind."""
    found: list[str] = []
    for name, entry in cls.entries().items():
        kind = entry.metadata.get("section")
        if kind is None:
            found.append(row(f"{prefix}{name}", entry, (changed or {}).get(name, default_of(entry))))
        elif not isinstance(kind, Kinds):
            found += rows(kind, f"{prefix}{name}.", entry.metadata["changed"])
    return found


def table(cls: type[Settings], prefix: str = "") -> list[str]:
    """Return a table of the values of a class."""
    return ["", "| key | default | allowed | meaning |", "| --- | --- | --- | --- |", *rows(cls, prefix)]


def page() -> str:
    """Return the text of the page: a section for each command, then one for each kind of a group of files."""
    lines, groups = [BEGINNING.rstrip()], {}
    for name, cls in COMMANDS.items():
        lines += ["", f"## {name.replace('_', '-')}", *table(cls)]
        for key, entry in cls.entries().items():
            if isinstance(entry.metadata.get("section"), Kinds):
                groups.setdefault(key, {}).update(entry.metadata["section"].of)
    for group, kinds in groups.items():
        lines += ["", f"## {group}=NAME"]
        for name, cls in kinds.items():
            lines += ["", f"### {group}: {name}", "", " ".join((cls.__doc__ or "").split()), *table(cls, f"{group}.")]
    return "\n".join(lines) + "\n"


def help_texts() -> dict[str, dict[str, str]]:
    """Return the sentence of every key: of each command, and under `groups` those of groups of files."""
    found: dict[str, dict[str, str]] = {"groups": {}}
    for name, cls in COMMANDS.items():
        found[name] = dict(sentences(cls))
        for key, entry in cls.entries().items():
            kinds = entry.metadata.get("section")
            for kind in kinds.of.values() if isinstance(kinds, Kinds) else ():
                found["groups"] = dict(sentences(kind, f"{key}.")) | found["groups"]
    return found


def sentences(cls: type[Settings], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Return the key of every value of a class, and what it means and may be."""
    for name, entry in cls.entries().items():
        kind = entry.metadata.get("section")
        if kind is None:
            yield f"{prefix}{name}", f"{entry.metadata['help']} ({allowed_of(entry)})"
        elif not isinstance(kind, Kinds):
            yield from sentences(kind, f"{prefix}{name}.")


def help_json() -> str:
    """Return the content of configs/help.json."""
    return json.dumps(help_texts(), indent=0, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    write_text(HELP, help_json())
    write_text(PAGE, page())
