"""Every key of every configuration with its default, as tests/frozen/test_keys.py pins it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from omegaconf import DictConfig, ListConfig, OmegaConf

from training import usage
from training.usage import CONFIGS

RECORD = Path(__file__).parent / "keys.json"
ABSENT = "(absent)"
NOT_COMPOSED = "accelerate"  # files that accelerate reads itself
SHARED = "shared"  # files that commands have in common, composed with each of them


def flat(config: DictConfig) -> dict[str, Any]:
    """Values by dotted key, interpolations as they are written. An empty section is a value."""
    found: dict[str, Any] = {}
    for key, value in config.items_ex(resolve=False):
        if isinstance(value, DictConfig) and len(value):
            found |= {f"{key}.{name}": each for name, each in flat(value).items()}
        elif isinstance(value, DictConfig | ListConfig):
            found[str(key)] = OmegaConf.to_container(value)
        else:
            found[str(key)] = value
    return found


def files(group: str) -> list[str]:
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))


def commands_of(experiment: str) -> list[str]:
    """Root configurations that an experiment is made for: those whose commands its comment names, but not those that only make
    what a decoding or a policy reads."""
    named = [name.replace("-", "_") for name in usage.commands_of(experiment)]
    reading = [name for name in ("guide", "train_policy") if name in named]
    return reading[:1] or named


def changed(config: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    """What `config` says otherwise than `default`; a key that it lacks is ABSENT."""
    return {key: config.get(key, ABSENT) for key in sorted(config | default)
            if (key in config, config.get(key)) != (key in default, default.get(key))}  # fmt: skip


def groups() -> list[str]:
    """Groups whose files fill the section of their name."""
    folders = sorted(path.name for path in CONFIGS.iterdir() if path.is_dir() and any(path.glob("*.yaml")))
    return [name for name in folders if name not in ("experiment", NOT_COMPOSED, SHARED)]


def sections() -> dict[str, dict[str, Any]]:
    """Every file of every group. The n-th files of all groups are composed together, which takes less time than one at a time."""
    options = {group: files(group) for group in groups()}
    found: dict[str, dict[str, Any]] = {}
    for number in range(max(map(len, options.values()))):
        chosen = {group: names[number] for group, names in options.items() if number < len(names)}
        config = compose(overrides=[f"+{group}={name}" for group, name in chosen.items()])
        found |= {f"{group}={name}": flat(config[group]) for group, name in chosen.items()}
    return dict(sorted(found.items()))


def keys(experiments: list[tuple[str, str]]) -> dict[str, dict[str, Any]]:
    """Configurations by what is typed: `COMMAND`, `GROUP=NAME` and `COMMAND experiment=NAME`, the last as what differs from
    `COMMAND`. `experiments`: pairs of a command and an experiment."""
    with initialize_config_dir(str(CONFIGS), version_base=None):
        found = {name: flat(compose(name)) for name in files("")} | sections()
        for command, name in experiments:
            config = flat(compose(command, [f"experiment={name}"]))
            found[f"{command} experiment={name}"] = changed(config, found[command])
    return found | {
        f"{NOT_COMPOSED}/{name}": flat(OmegaConf.create(OmegaConf.load(CONFIGS / NOT_COMPOSED / f"{name}.yaml")))
        for name in files(NOT_COMPOSED)
    }


def pairs_of(record: dict[str, Any]) -> list[tuple[str, str]]:
    """The pairs of a command and an experiment in a record."""
    words = [entry.split(" experiment=") for entry in record]
    return [(pair[0], pair[1]) for pair in words if len(pair) == 2]


def differences(recorded: dict[str, dict[str, Any]], found: dict[str, dict[str, Any]]) -> list[str]:
    """Every recorded file and key that was removed or changed, in words. New ones are allowed."""
    lines = []
    for entry in sorted(recorded):
        if entry not in found:
            lines.append(f"{entry}: removed")
            continue
        before, now = recorded[entry], found[entry]
        lines += [f"{entry}: {key} was removed; it was {before[key]!r}" for key in before if key not in now]
        lines += [
            f"{entry}: {key} changed from {before[key]!r} to {now[key]!r}"
            for key in before
            if key in now and (before[key] != now[key] or isinstance(before[key], bool) != isinstance(now[key], bool))
        ]
    return lines


def write() -> None:
    """Write the record: a configuration a line."""
    found = keys([(command, name) for name in files("experiment") for command in commands_of(name)])
    RECORD.write_text(
        "{\n" + ",\n".join(f"{json.dumps(name)}: {json.dumps(each)}" for name, each in found.items()) + "\n}\n"
    )
