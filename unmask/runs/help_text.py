"""The text of `--help` of commands that have a configuration: every key with its value, what it means, and what it may be.

The sentences come from configs/help.json, which `python -m unmask.reference` writes from the dataclasses of settings.
Importing the classes would take seconds.
"""

from __future__ import annotations

import json
import shutil
import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import OmegaConf

from training.usage import CONFIGS, composed

INDENT = " " * 6
MOST_COLUMNS = 120


def described(name: str, overrides: list[str]) -> str:
    """Return the text of `--help` of the command with configs/NAME.yaml, for the configuration of these overrides."""
    template = OmegaConf.load(CONFIGS / f"{name}.yaml").hydra.help.template
    config = OmegaConf.to_container(composed(name, overrides), resolve=False)
    texts = json.loads((CONFIGS / "help.json").read_text(encoding="utf-8"))
    width = min(MOST_COLUMNS, shutil.get_terminal_size().columns)
    lines: list[str] = []
    for key, value in leaves(config):
        lines.append(f"  {key}={as_word(value)}")
        if text := texts[name].get(key) or texts["groups"].get(key):
            lines += textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT)
    return template.replace("$CONFIG", "\n".join(lines))


def leaves(values: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Return the dotted keys of nested dictionaries with their values."""
    if not isinstance(values, Mapping):
        yield prefix.removesuffix("."), values
        return
    for key, value in values.items():
        yield from leaves(value, f"{prefix}{key}.")


def as_word(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return value if isinstance(value, str) else json.dumps(value)
