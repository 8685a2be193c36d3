"""Write docs/reference/settings.md from the dataclasses of settings: `python -m unmask.reference`."""

from __future__ import annotations

from dataclasses import Field
from typing import Any

from training.fields import Kinds, Settings, default_of
from training.files import write_text
from training.ranges import as_text
from training.usage import CONFIGS
from unmask.settings import COMMANDS

PAGE = CONFIGS.parent / "docs" / "reference" / "settings.md"
BEGINNING = """# Settings

Keys of every command that reads a configuration, with their defaults. `KEY=VALUE` on the command line sets a key. This page is
generated from the dataclasses of settings by `python -m unmask.reference`.
"""


def row(key: str, entry: Field[Any], default: Any) -> str:
    """Return one row of a table: key, default, allowed values, help."""
    cells = (f"`{key}`", f"`{as_text(default)}`", entry.metadata["range"].allowed, entry.metadata["help"])
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


if __name__ == "__main__":
    write_text(PAGE, page())
