"""The settings of every command that reads a configuration, and the checks that it makes before any work."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from data.settings import SECTION as DATA
from data.settings import DataSettings
from dlm.settings import (
    SHAPES,
    AdaptSettings,
    LoraSettings,
    NoiseSettings,
    PretrainingSettings,
    ShapeSettings,
    SourceSettings,
)
from policy.settings import PolicyTrainingSettings
from rl.settings import PreferenceRunSettings, QualityTrainingSettings, RewardRunSettings, RLTrainingSettings
from samplers.settings import SamplerSettings
from training.devices import check_device
from training.fields import REQUIRED, Kinds, Settings, leaves, section, setting
from training.files import check_cache
from training.ranges import (
    ABSENT,
    ANY_SEED,
    COUNT,
    FLAG,
    LENGTH,
    NAME,
    ROWS,
    SEED,
    WORDS,
    Maybe,
    Range,
    found_at,
)
from training.settings import ComputeSettings, ProjectSettings
from twist.settings import TwistTrainingSettings


@dataclass
class DLMTrainingSettings(PretrainingSettings):
    """Settings of train-dlm."""

    init: str | None = setting(
        None,
        Maybe(NAME),
        "fine-tune from a hub id, a directory or a run (or by dlm=NAME); null: random weights. A causal Llama or Qwen2 whose "
        "loss is not ar becomes a masked-diffusion model",
    )
    model: ShapeSettings = section(SHAPES)
    data: DataSettings = section(DATA)
    noise: NoiseSettings = section(NoiseSettings)
    adapt: AdaptSettings = section(AdaptSettings)
    lora: LoraSettings = section(LoraSettings)
    wandb: ProjectSettings = section(ProjectSettings)


@dataclass
class SampleSettings(Settings):
    """Settings of sample."""

    dlm: SourceSettings = section(SourceSettings)
    model: ComputeSettings = section(ComputeSettings)
    sampler: SamplerSettings = section(SamplerSettings)
    num_samples: int | None = setting(None, Maybe(COUNT), "samples; null: one batch")
    batch_size: int = setting(1, ROWS, "samples that are decoded together; changes speed and memory, not the samples")
    length: int | None = setting(
        None, Maybe(LENGTH), "positions of the canvas; null: the model's longest, or the template's own"
    )
    seed: int = setting(0, ANY_SEED, "of all random numbers")
    device: str = setting("auto", NAME, "auto, cpu, cuda, or one of several such as cuda:1")
    prefix: str | int | float | None = setting(
        None, Maybe(WORDS), "text at the start of the canvas; of a Sudoku model the puzzle, 12...., a blank is '.'"
    )
    chat: bool = setting(False, FLAG, "the prefix is the message of a user, in the chat template of the model")
    suffix: str | int | float | None = setting(None, Maybe(WORDS), "text at the end of the canvas")
    template: str | int | float | None = setting(
        None, Maybe(WORDS), "a text with [MASK:n] for n open positions, in place of prefix and suffix"
    )
    out: str | None = setting(None, Maybe(NAME), "directory for sample_*.txt and samples.jsonl")
    json: str | None = setting(None, Maybe(NAME), "file for the record; - prints it as the only line of stdout")
    show: bool = setting(False, FLAG, "show the canvas in the terminal while it fills")
    eval: bool = setting(True, FLAG, "score the samples by a judge; false: no generative perplexity")
    drift: bool = setting(False, FLAG, "measure the error of the confidences of a cache; its evaluations do not count")
    judge: str | None = setting(
        None, Maybe(NAME), "a causal model (hub id or directory), or smollm2; null: smollm2 where it is installed"
    )


@dataclass
class PromptFileSettings(Settings):
    """Settings of guide for its prompts."""

    file: str = setting(REQUIRED, NAME, 'tldr, hh, or JSONL with a line {"prompt":, "label":} for each prompt')
    count: int | None = setting(None, Maybe(COUNT), "prompts; null: all")
    seed: int = setting(42, SEED, "of their order")
    cache_dir: str | None = setting(
        None, Maybe(NAME), "where folders tldr_prompts and hh_prompts of save_to_disk are looked for"
    )


@dataclass
class NamedRewards(Settings):
    """Rewards that the methods of guide name: runs of train-reward, or ids."""

    full: str | None = setting(None, Maybe(NAME), "a reward of whole answers")
    partial: str | None = setting(None, Maybe(NAME), "a reward of canvases with masks")
    head: str | None = setting(None, Maybe(NAME), "a vocabulary head")


@dataclass
class MethodSettings(SamplerSettings):
    """Settings of one method of guide: keys of a decoder, and the model."""

    path: str | None = setting(None, Maybe(NAME), "another model than dlm.path")


@dataclass
class GuideRunSettings(Settings):
    """Settings of guide without `methods`, a mapping of any name to keys of configs/sampler/default.yaml."""

    out: str = setting(REQUIRED, NAME, "directory; a run that was killed continues where it stopped")
    seed: int = setting(0, SEED, "of all random numbers")
    device: str = setting("auto", NAME, "auto, cpu, cuda, or one of several such as cuda:1")
    dlm: SourceSettings = section(SourceSettings, path="example/stories_causal")
    model: ComputeSettings = section(ComputeSettings)
    sampler: SamplerSettings = section(SamplerSettings)
    length: int = setting(64, LENGTH, "tokens that are generated behind a prompt, at most")
    batch_size: int = setting(16, ROWS, "prompts that are decoded together; does not change the answers")
    prompts: PromptFileSettings = section(PromptFileSettings)
    rewards: NamedRewards = section(NamedRewards)
    selector: str | None = setting(
        None, Maybe(NAME), "the reward of rewards.csv, a column for each method; null: no such file"
    )


COMMANDS: dict[str, type[Settings]] = {
    "train_dlm": DLMTrainingSettings, "train_policy": PolicyTrainingSettings, "train_rl": RLTrainingSettings,
    "train_twist": TwistTrainingSettings, "train_reward": RewardRunSettings, "train_preference": PreferenceRunSettings,
    "train_quality": QualityTrainingSettings, "guide": GuideRunSettings, "sample": SampleSettings,
}  # fmt: skip
GROUPS = ("dlm", "policy", "algorithm", "reward", "data", "target")  # sections that a file of a group fills
S = TypeVar("S", bound=Settings)


def ranges_of(name: str) -> dict[str, list[Range]]:
    """Return the ranges of every key of the configuration `name` (train_dlm, sample, ...). A key that several kinds share has
    several."""
    found: dict[str, list[Range]] = {}
    for key, entry in leaves(COMMANDS[name]):
        found.setdefault(key, []).append(entry.metadata["range"])
    return found


def checked(cls: type[S], values: Mapping[str, Any]) -> S:
    """Return the settings of a command. Settings that cannot run are refused before any work.

    Args:
        values: the configuration as nested dictionaries. Keys that the command does not read are left out.

    Raises:
        ValueError: names a key that is missing or outside its range, its value, and the range; a device or a directory that this
            machine lacks; wandb without a key.
    """
    _check_present(cls, values)
    found = cls.of(values, strict=False)
    check_device(str(values["device"]))
    for key in ("data.cache_dir", "prompts.cache_dir"):
        if (place := found_at(values, key)) is not ABSENT:
            check_cache(place, f"{key}={place}")
    mode = found_at(values, "wandb.mode")
    check_wandb(os.environ.get("WANDB_MODE", None if mode is ABSENT else mode))
    return found


def check_wandb(mode: str | None) -> None:
    """Refuse to log online without an API key: wandb would request one in the middle of the run, or fail."""
    if mode != "online" or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_BASE_URL"):
        return
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    if not file.is_file() or "wandb" not in file.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            "wandb.mode=online needs a key; run `wandb login`, set WANDB_API_KEY, or use wandb.mode=offline"
        )


def _check_present(cls: type[Settings], values: Mapping[str, Any]) -> None:
    """Refuse a configuration that lacks a section or a key; a file of a group may have fewer keys than its class."""
    name = next(name for name, kind in COMMANDS.items() if kind is cls)
    for key, entry in cls.entries().items():
        if key not in values:
            raise ValueError(f"{key} was deleted and configs/{name}.yaml needs it; leave ~{key} out")
        kind, own = entry.metadata.get("section"), values[key]
        if kind is None or key in (*GROUPS, "rewards") or not isinstance(own, Mapping):
            continue
        needs = f"configs/{name}.yaml"
        if isinstance(kind, Kinds):  # the shape of a network
            if kind.by not in own:
                raise ValueError(f"{key}.{kind.by} says which class it is and is not there; give {key}=NAME")
            needs, kind = f"{key}={own[kind.by]}", kind.kind(own, f"{key}.")
        for inner in kind.entries():
            if inner not in own:
                raise ValueError(f"{key}.{inner} was deleted and {needs} needs it; leave ~{key}.{inner} out")
