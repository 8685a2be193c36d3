"""Stored settings and JSON of runs and models, which may come from anywhere: read as data only.

A stored configuration resolves references to its own keys only (`${dlm.path}`, `${oc.select:dlm.path,null}`), names no
place to write and no storage, and has a bounded size and depth. All code that reads `.hydra/config.yaml`, `config.json` or
another stored file of settings uses this module.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf._utils import get_yaml_loader  # what reads 1e-3 as a number

from training.compatibility import new_name, with_current_keys

MOST = 64 << 20  # bytes of a JSON file; the index of a 405B model has 200 kB, a tokenizer 20 MB
MOST_YAML = 1 << 20
DEEPEST = 50
REFERENCES = 1000  # of one file
LONGEST = 10_000  # characters of a value that holds references
INTERPOLATION = re.compile(r"\$\{([^${}]*)\}")  # an innermost one
KEY = re.compile(r"[\w-]+(\.[\w-]+)*")
# Places to write, storage and account: they come from the current command only.
PLACES = ("run_dir", "resume", "out", "wandb", "data.cache_dir", "prompts.cache_dir", "hydra")


class _Plain(get_yaml_loader()):
    """OmegaConf's YAML without aliases, which let a file of a few lines expand beyond memory."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("it has an alias (*name), which is not read")
        return super().compose_node(parent, index)


def read_bytes(file: Path, most: int = MOST) -> bytes:
    """Return the content of a file. ValueError if it is not a file, or larger than `most` bytes."""
    if not file.is_file():
        raise ValueError(f"{file} is no file; give a complete copy of the run or the model")
    if (size := file.stat().st_size) > most:
        raise ValueError(f"{file} has {size:,} bytes, and at most {most:,} are read; it is damaged, or no such file")
    return file.read_bytes()


def read_json(file: Path) -> Any:
    """Return the value of a JSON file. ValueError names a file that is not JSON, too large or nested too deeply."""
    return parsed_json(read_bytes(file), str(file))


def read_json_object(file: Path) -> dict[str, Any]:
    """Return a JSON object from a file. ValueError for other values."""
    found = read_json(file)
    if not isinstance(found, dict):
        raise ValueError(
            f"{file} holds a {type(found).__name__}, expected names and values; give the file that belongs there"
        )
    return found


def parsed_json(content: bytes, name: str) -> Any:
    """Parse JSON. name: of the file, for messages."""
    return _parsed(lambda: json.loads(content.decode("utf-8-sig")), name, "JSON")


def parsed_yaml(content: bytes, name: str) -> Any:
    """Parse YAML to plain values: no alias, no tag of a class. name: of the file, for messages."""
    if len(content) > MOST_YAML:
        raise ValueError(
            f"{name} has {len(content):,} bytes, and at most {MOST_YAML:,} are read; it is no configuration"
        )
    return _parsed(lambda: yaml.load(content.decode("utf-8-sig"), Loader=_Plain), name, "YAML")


def _parsed(parse: Callable[[], Any], name: str, kind: str) -> Any:
    try:
        found = parse()
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        reason = (
            " ".join(str(error).split())[:200] if not isinstance(error, RecursionError) else "it is nested too deeply"
        )
        raise ValueError(f"{name} cannot be read as {kind} ({reason}); it is damaged, give another") from error
    _check_depth(found, name)
    return found


def _check_depth(found: Any, name: str) -> None:
    level, depth = [found], 0
    while level := [item for one in level if isinstance(one, dict | list)
                    for item in (one.values() if isinstance(one, dict) else one)]:  # fmt: skip
        depth += 1
        if depth > DEEPEST:
            raise ValueError(f"{name} is nested more than {DEEPEST} deep; it is damaged, give another")


def configuration(content: bytes, name: str, ignored: Collection[str] = ()) -> DictConfig:
    """Return a stored configuration, with references to its own keys resolved and places (`PLACES`) set to null.

    Args:
        content: of the YAML file.
        name: of the file, for messages.
        ignored: keys whose values come from elsewhere; they become null too.

    Raises:
        ValueError: it is not a configuration, or a value requests something outside of it: the environment, another file, a
            storage.
    """
    found = settings(content, name)
    for key in (*PLACES, *ignored):
        replace_at(found, key, lambda _: None)
    resolved = OmegaConf.create(_resolved(found, found, name, "", [REFERENCES]))
    assert isinstance(resolved, DictConfig)
    return resolved


def description(file: Path) -> DictConfig:
    """Return a stored configuration for a command that uses some of its keys: as `configuration`, but a value that
    requests something outside of the file is literal text.
    """
    found = settings(read_bytes(file, MOST_YAML), str(file))
    for key in PLACES:
        replace_at(found, key, lambda _: None)
    literal = OmegaConf.create(_literal(found, found, str(file), [REFERENCES]))
    assert isinstance(literal, DictConfig)
    return literal


def plain_description(file: Path) -> dict[str, Any]:
    """Return `description` as plain values."""
    found = OmegaConf.to_container(description(file), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _literal(value: Any, whole: dict, name: str, left: list[int]) -> Any:
    if isinstance(value, dict):
        return {str(k): _literal(v, whole, name, left) for k, v in value.items()}
    if isinstance(value, list):
        return [_literal(item, whole, name, left) for item in value]
    try:
        return _resolved(value, whole, name, "", left)
    except ValueError:
        return escaped(value)


def escaped(text: str) -> str:
    """Escape a text for OmegaConf, so that `${` begins no reference; backslashes before one are doubled."""
    return re.sub(r"(\\*)\$\{", lambda found: f"{found[1]}{found[1]}\\${{", text)


def settings(content: bytes, name: str) -> dict[str, Any]:
    """Return a stored configuration with current keys, without resolving anything."""
    return with_current_keys(as_written(content, name), name)


def as_written(content: bytes, name: str) -> dict[str, Any]:
    """Return a stored configuration with the keys that its file has."""
    found = parsed_yaml(content, name)
    if not isinstance(found, dict) or any(not isinstance(key, str) for key in found):
        raise ValueError(f"{name} is no list of settings; give a YAML file of `key: value`")
    return found


def value_at(values: Any, key: str) -> Any:
    """Return the value of a dotted key; None if it is missing."""
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values


def replace_at(values: Any, key: str, new: Callable[[Any], Any]) -> None:
    """Replace the value of a dotted key by `new(value)`, if it exists."""
    *path, last = key.split(".")
    for part in path:
        values = values.get(part) if isinstance(values, dict) else None
    if isinstance(values, dict) and last in values:
        values[last] = new(values[last])


def _resolved(value: Any, whole: dict, name: str, key: str, left: list[int]) -> Any:
    if isinstance(value, dict):
        return {str(k): _resolved(v, whole, name, f"{key}.{k}".lstrip("."), left) for k, v in value.items()}
    if isinstance(value, list):
        return [_resolved(item, whole, name, f"{key}[{n}]", left) for n, item in enumerate(value)]
    while isinstance(value, str) and "${" in value:
        found = INTERPOLATION.search(value)
        left[0] -= 1
        if found is None or left[0] < 0 or len(value) > LONGEST:
            raise ValueError(_outside(name, key, value))
        meant = _meant(found[1].strip(), whole, name, key, value)
        value = meant if found[0] == value else value[: found.start()] + str(meant) + value[found.end() :]
    if isinstance(value, str) and "://" in value:
        raise ValueError(
            f"{name} sets {key}={value[:80]!r}, a storage that the file cannot choose; give {key}=... on the command line"
        )
    return value


def _meant(reference: str, whole: dict, name: str, key: str, value: str) -> Any:
    """Return the value of a reference."""
    default = None
    if selected := reference.startswith("oc.select:"):
        reference, _, words = reference.removeprefix("oc.select:").partition(",")
        reference, default = reference.strip(), parsed_yaml(words.encode(), name)
    at = value_at(whole, new_name(reference))
    at = default if at is None else at
    if KEY.fullmatch(reference) is None or isinstance(at, dict | list) or (at is None and not selected):
        raise ValueError(_outside(name, key, value))
    return at


def _outside(name: str, key: str, value: str) -> str:
    return (
        f"{name} sets {key}={value[:80]!r}, and a stored configuration may refer to its own keys only; give {key}=... on the "
        "command line, or write the value into the file"
    )
