"""The dataclasses of settings and the files of configs/ have the same keys, defaults and ranges."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from samplers.settings import SamplerSettings
from training.fields import Kinds, Settings, default_of, kinds_of, leaves, section, setting
from training.ranges import COUNT, NAME, ListOf, Maybe
from training.usage import CONFIGS
from unmask.reference import HELP, PAGE, help_json, page
from unmask.runs.help_text import described
from unmask.settings import COMMANDS, GROUPS

FREE = ("defaults", "hydra", "methods")  # keys of a file that are no settings
# References to other keys, whose default in the class is null.
REFERENCES = {"train_dlm.init": "${oc.select:dlm.path,null}", "guide.selector": "${rewards.full}"}
# Keys of a class that a file of its group leaves to the default of the class.
LEFT_OUT = {
    "dlm": {"model_type"},
    "data": {"given", "longer", "packing"},  # of texts, or of questions with answers
    "target": {"label", "against", "form"},  # of a threshold, and of infilling
}


def merged(file: Path) -> DictConfig:
    """A file on top of those that its defaults name."""
    own = OmegaConf.load(file)
    assert isinstance(own, DictConfig)
    parents = [one for one in own.get("defaults", []) if isinstance(one, str) and one != "_self_"]
    found = OmegaConf.merge(*(merged(file.parent / f"{parent}.yaml") for parent in parents), own)
    assert isinstance(found, DictConfig)
    return found


def plain(file: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(merged(file), resolve=False)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items() if key not in FREE}


def with_parents(group: str, name: str) -> dict[str, Any]:
    """A file of a group with the files that its defaults name."""
    return plain(CONFIGS / group / f"{name}.yaml")


def values_of(settings: Settings) -> dict[str, Any]:
    """Values of settings and of their sections, by key in dots."""
    found: dict[str, Any] = {}
    for name, entry in settings.entries().items():
        value = getattr(settings, name)
        found |= {f"{name}.{key}": each for key, each in values_of(value).items()} if kinds_of(entry) else {name: value}
    return found


def flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, dict) else {f"{before}{key}": value}
    return found


def defaults_of(name: str, cls: type[Settings]) -> dict[str, Any]:
    """Defaults of the keys that configs/NAME.yaml has itself. A value that has to be given is `???`."""
    found: dict[str, Any] = {}
    for key, entry in cls.entries().items():
        if key in (*GROUPS, "sampler") and key not in plain(CONFIGS / f"{name}.yaml"):
            continue
        kinds, changed = kinds_of(entry), entry.metadata.get("changed", {})
        if kinds and len(kinds) > 1:
            continue
        own = {key: entry} if not kinds else {f"{key}.{inner}": each for inner, each in leaves(kinds[0])}
        found |= {path: changed.get(path.partition(".")[2], default_of(each)) for path, each in own.items()}
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_has_the_keys_and_defaults_of_its_file(name):
    chosen = {
        key for key, entry in COMMANDS[name].entries().items() if len(kinds_of(entry)) > 1
    }  # by a file of a group
    written = flat({key: value for key, value in plain(CONFIGS / f"{name}.yaml").items() if key not in chosen})
    for key in [key for key in written if f"{name}.{key}" in REFERENCES]:
        assert written[key] == REFERENCES[f"{name}.{key}"]
        written[key] = None
    declared = defaults_of(name, COMMANDS[name])
    assert written == declared
    assert all(isinstance(written[key], bool) == isinstance(declared[key], bool) for key in written)


def group_files() -> list[tuple[str, str]]:
    return [
        (group, file.stem)
        for group in (*GROUPS, "model", "sampler")
        for file in sorted((CONFIGS / group).glob("*.yaml"))
    ]


def class_of(group: str, values: dict[str, Any]) -> type[Settings]:
    """The class of a file of a group."""
    for command in COMMANDS.values():
        kind = command.entries()[group].metadata["section"] if group in command.entries() else None
        if isinstance(kind, Kinds):
            return kind.kind(values, f"{group}.")
    if group == "sampler":  # a file for sample and guide alone; train-policy and train-rl have fewer keys
        return SamplerSettings
    sections = [
        command.entries()[group].metadata["section"] for command in COMMANDS.values() if group in command.entries()
    ]
    assert len(set(sections)) == 1
    return sections[0]


@pytest.mark.parametrize(("group", "name"), group_files())
def test_a_file_of_a_group_has_the_keys_of_its_class_and_values_in_their_ranges(group, name):
    values = with_parents(group, name)
    cls = class_of(group, values)
    keys, given = dict(leaves(cls)).keys(), flat(values).keys()
    assert keys - given <= LEFT_OUT.get(group, set()) and given <= keys
    if "???" not in flat(values).values():
        read = values_of(cls.of(values))
        assert all(read[key] == value for key, value in flat(values).items())


# The file of each kind whose values are the defaults of its class.
DEFAULT_FILES = {
    "dlm": ["stories"], "sampler": ["default"], "policy": ["agreement", "dit_confidence", "dit_hidden", "hidden_blocks", "hidden_mlp"],
    "algorithm": ["grpo", "imitation", "ppo", "variational"],
    "reward": ["bound", "latex", "learned", "likelihood", "puzzle", "right"],
    "data": ["chain", "questions", "stories", "sudoku", "puzzles"],
    "target": ["continuation", "infilling", "latex", "reward", "sentiment", "toxicity_threshold"],
    "model": ["radd", "sedd"],
}  # fmt: skip


@pytest.mark.parametrize(("group", "name"), [(group, name) for group, names in DEFAULT_FILES.items() for name in names])
def test_the_defaults_of_a_class_are_those_of_its_file(group, name):
    values = with_parents(group, name)
    declared = values_of(class_of(group, values)())
    assert declared == flat(values) | {key: declared[key] for key in declared if key in LEFT_OUT.get(group, ())}


def test_every_kind_of_every_group_has_a_file():
    """Networks of a backbone have sizes of their own in each file, and pairs have a file that has to be given."""
    classes = {class_of(group, with_parents(group, name)) for group, names in DEFAULT_FILES.items() for name in names}
    found = {kind for command in COMMANDS.values() for name, entry in command.entries().items() if name in (*GROUPS, "model")
             for kind in kinds_of(entry) if len(kinds_of(entry)) > 1}  # fmt: skip
    assert {kind.__name__ for kind in found - classes} == {"LladaShape", "CausalShape", "PairSettings"}


def test_every_field_has_a_range_that_holds_its_default_and_a_sentence_of_help():
    for command in COMMANDS.values():
        for key, entry in leaves(command):
            value = default_of(entry)
            assert value == "???" or entry.metadata["range"].holds(value), key
            text = entry.metadata["help"]
            assert 3 <= len(text) <= 200 and not text.endswith(".") and text == text.strip(), key


# ------------------------------------------------------------------------------------------------------------- the base class


@dataclass
class Inner(Settings):
    size: int = setting(3, COUNT, "a size")
    names: list[str] = setting(["a"], ListOf(NAME, "[a]"), "names")


@dataclass
class Other(Settings):
    name: str = setting("other", NAME, "a name")
    extra: int | None = setting(None, Maybe(COUNT), "an extra")


@dataclass
class Third(Settings):
    name: str = setting("third", NAME, "a name")


@dataclass
class Outer(Settings):
    inner: Inner = section(Inner, size=5)
    chosen: Settings = section(Kinds("name", {"other": Other, "third": Third}, Third))
    path: str = setting("???", NAME, "a path")


def test_sections_have_their_own_defaults_and_kinds_are_chosen_by_a_key():
    made = Outer.of({"path": "x", "inner": {"names": ["b"]}, "chosen": {"name": "other", "extra": 2}})
    assert made.inner == Inner(5, ["b"]) and made.chosen == Other("other", 2)
    assert Outer(path="x").inner.size == 5 and Outer(path="x").chosen == Third()
    first, second = Inner(), Inner()
    first.names.append("c")
    assert second.names == ["a"] == Inner().names


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "path has to be given; add path=VALUE"),
        ({"path": "x", "inner": 4}, "inner=4 takes the place of several keys; say inner.size=4 for one"),
        ({"path": "x", "inner": {"size": 0}}, "inner.size=0 must be a whole number of at least 1"),
        ({"path": "x", "inner": {"sise": 1}}, "inner.sise is unknown; did you mean inner.size?"),
        ({"path": "x", "chosen": {"name": "none"}}, "chosen.name='none' is unknown; use one of other, third"),
        ({"path": "x", "chosen": {"name": "other", "extra": 0}}, "chosen.extra=0 must be a whole number"),
    ],
)
def test_what_does_not_fit_is_named(values, message):
    with pytest.raises(ValueError) as refused:
        Outer.of(values)
    assert str(refused.value).startswith(message)


def test_a_shared_configuration_may_have_keys_that_a_class_lacks():
    values = {"path": "x", "more": 1, "inner": {"size": 2, "more": 1}}
    assert Outer.of(values, strict=False).inner.size == 2
    with pytest.raises(ValueError, match="more is unknown"):
        Outer.of(values)


def test_the_page_of_settings_is_up_to_date():
    assert PAGE.read_text(encoding="utf-8") == page(), "run python -m unmask.reference"
    assert all(f"`{key}`" in page() for command in COMMANDS.values() for key, _ in leaves(command))


def test_help_says_what_every_key_means():
    assert HELP.read_text(encoding="utf-8") == help_json(), "run python -m unmask.reference"
    for name in COMMANDS:
        if name in ("sample", "guide"):  # sample has flags; guide has keys that the user names
            continue
        lines = described(name, []).split("of this command line:")[1].splitlines()
        keys = [number for number, line in enumerate(lines) if line.startswith("  ") and line[2] != " "]
        assert keys and not [lines[number] for number in keys if not lines[number + 1].startswith("      ")], name


def test_help_shows_the_configuration_of_the_command_line():
    text = described("train_policy", ["algorithm=ppo", "optim.lr=0.5", "policy=dit_confidence"])
    assert "  optim.lr=0.5\n      learning rate after the warm-up (" in text and "algorithm.clip=" in text
    assert max(map(len, text.splitlines())) <= 130
