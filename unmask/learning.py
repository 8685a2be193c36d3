"""Train policies, models, rewards and twists from Python. Each function does the same as the command of its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.prompt_task import CheckedPrompts, PromptTask, no_checker
from data.tasks import Task
from dlm.masked_lm import MaskedLM
from load_model import load_model
from policy.checkpoints import load_policy
from rewards.functions import FunctionReward
from rewards.models import RewardModel, TextReward, load_reward
from training.compatibility import translated
from training.devices import device_of
from training.files import make_directory, write_text
from training.run import new_directory
from training.terminal import quietly
from training.usage import CONFIGS, composed, override
from twist.targets import CALLERS
from unmask.runs.objects import Objects
from unmask.trained import Trained, result_of

Reward = str | TextReward | Callable[[list[str]], Sequence[float] | Tensor]
Settings = Mapping[str, Any]
# What an algorithm maximises where the caller names no reward.
REWARD_OF = {"stories": "likelihood", "puzzles": "puzzle", "latex": "latex"}


def train_policy(
    model: MaskedLM,
    *,
    task: str | Iterable[str] = "stories",
    algorithm: str = "grpo",
    reward: Reward | None = None,
    policy: str = "dit_confidence",
    iterations: int = 60,
    answer_length: int = 32,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
) -> Trained[nn.Module]:
    """Train an unmasking policy on a frozen masked model.

    Args:
        task: a data set of configs/data (stories, chain, puzzles, gsm8k_math, ...), or an iterable of prompts. With a method
            `check(prompt, answer)` the iterable says itself which answers are right.
        algorithm: grpo, ppo, variational or imitation.
        reward: a function of a list of texts, a reward model, a reward of configs/reward, or a path that `load_reward` takes.
            None: of a task with known answers whether the answer is right; of stories their likelihood under a judge.
        policy: a network of configs/policy.
        iterations: updates of the policy.
        answer_length: positions behind the prompts of an iterable.
        run_dir: where the run is written. None: output/DATE/TIME.
        quiet: print nothing. The log is in the run directory in any case.
        settings: other keys of configs/train_policy.yaml, such as {"training.batch_size": 16, "optim.lr": 1e-4}.

    Returns:
        The policy (`strategy=` of `unmask.sample` and `unmask.evaluate`), with its run directory.

    Raises:
        ValueError: for settings or objects that do not fit; one sentence that names them.
    """
    given, chosen = task_and_reward(model, task, reward, answer_length, seed)
    chosen |= {"algorithm": algorithm, "policy": policy, "dlm.path": source_of(model), "device": str(model.device)}
    directory = trained("train_policy", chosen, iterations, seed, run_dir, quiet, settings, given)
    return Trained(directory, load_policy(directory / "policy", model=model))


def train_rl(
    model: MaskedLM,
    *,
    task: str | Iterable[str] = "chain",
    algorithm: str = "grpo",
    reward: Reward | None = None,
    iterations: int = 100,
    answer_length: int = 32,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
) -> Trained[MaskedLM]:
    """Train the model itself by reinforcement learning. The given `model` (of `unmask.load`) is not changed.

    Args:
        algorithm: grpo, ppo, or vrpo (of preference pairs: task="pairs", settings={"data.pairs": FILE}).
        task, reward, answer_length, run_dir, quiet: as of `train_policy`.
        settings: other keys of configs/train_rl.yaml.

    Returns:
        The trained model, with its run directory.
    """
    given, chosen = task_and_reward(model, task, reward, answer_length, seed)
    chosen |= {"rl.algorithm": algorithm, "init": source_of(model, "train_rl"), "device": str(model.device)}
    directory = trained(
        "train_rl", chosen, iterations, seed, run_dir, quiet, settings, Objects(None, given.task, given.reward)
    )
    return Trained(directory, load_model(str(directory / "model"), model.device)[0])


def train_dlm(
    data: str | Path | Iterable[str],
    *,
    model: MaskedLM | None = None,
    iterations: int = 1000,
    device: str = "auto",
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
) -> Trained[MaskedLM]:
    """Pre-train a masked-diffusion model on texts, or fine-tune one.

    Args:
        data: an iterable of texts, a file of texts, or a data set of configs/data. A part of texts and files is held out.
        model: the model to start from, which `unmask.load` made; it stays as it is. None: a new model of configs/model.
        iterations: updates of the model.
        run_dir, quiet: as of `train_policy`.
        settings: other keys of configs/train_dlm.yaml, such as {"model.hidden_size": 256, "optim.lr": 1e-4}.

    Returns:
        The trained model, with its run directory.
    """
    directory = new_directory() if run_dir is None else Path(run_dir)
    named = isinstance(data, str) and (CONFIGS / "data" / f"{data}.yaml").is_file()
    chosen: dict[str, Any] = (
        {"data": data} if named else {"data.train": file_of(data, directory / "texts.jsonl", "text")}
    )
    chosen |= (
        {"device": device} if model is None else {"init": source_of(model, "train_dlm"), "device": str(model.device)}
    )
    directory = trained("train_dlm", chosen, iterations, seed, directory, quiet, settings)
    return Trained(
        directory, load_model(str(directory / "model"), device_of(device) if model is None else model.device)[0]
    )


def train_reward(
    preferences: str | Path | Iterable[Mapping[str, Any]],
    *,
    init: str | None = None,
    kind: str = "full",
    epochs: int = 1,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
) -> Trained[RewardModel | TextReward]:
    """Train a reward model on pairs of answers.

    Args:
        preferences: an iterable of {"prompt": ..., "chosen": ..., "rejected": ...}, a file of such lines, or tldr or hh.
        init: a checkpoint of transformers to start from: a directory or an id of the hub. None: a new small encoder.
        kind: what the reward reads: full (whole answers), prefix, or mask (canvases with masks).
        run_dir, quiet: as of `train_policy`.
        settings: other keys of configs/train_reward.yaml.

    Returns:
        The reward, with its run directory.
    """
    directory = new_directory() if run_dir is None else Path(run_dir)
    chosen: dict[str, Any] = {"data.train": file_of(preferences, directory / "preferences.jsonl", None)}
    chosen |= {"reward.kind": kind, "training.epochs": epochs, "init": init}
    directory = started("train_reward", chosen, seed, directory, quiet, settings)
    return Trained(directory, load_reward(str(directory)))


def train_twist(
    model: MaskedLM,
    *,
    target: str | Reward = "vader",
    method: str = "ctl",
    prompt: str = "Once upon a time",
    length: int = 16,
    iterations: int = 100,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
) -> Trained[str]:
    """Train a twist for sequential Monte Carlo: `strategy="twisted_smc", smc={"twist": ...}` of `unmask.sample`.

    Args:
        target: a file of configs/target: vader, infilling, continuation, latex, ...; or a function of a list of texts, or a
            reward model, whose values are at most 1 (settings={"target.highest": ...} for another bound): texts then have
            the weight exp(beta (value - highest)), with beta of settings={"target.beta": ...}. `unmask.sample` needs the same
            function as `reward`.
        method: ctl, rl, sixo, fudge, dpg, ppo, ...
        prompt, length: what every text begins with, and the positions behind it.
        iterations: updates of the twist.
        run_dir, quiet: as of `train_policy`.
        settings: other keys of configs/train_twist.yaml.

    Returns:
        The path of the twist, with its run directory.
    """
    texts, target_settings = target_of(target)
    chosen = target_settings | {
        "dlm.path": source_of(model, "train_twist"), "device": str(model.device), "method": method,
        "prompt": prompt, "length": length, "training.epochs": 1, "training.updates_per_epoch": iterations,
    }  # fmt: skip
    directory = started("train_twist", chosen, seed, run_dir, quiet, settings, Objects(reward=texts))
    return Trained(directory, str(directory))


# --------------------------------------------------------------------------------------------------- from arguments to settings


def file_of(data: Any, place: Path, field: str | None) -> str:
    """Return the path of a file; the records of an iterable are written to `place`.

    Args:
        field: of the JSON line under which a text stands; None: a record is a line itself.

    Raises:
        ValueError: for an object that is no iterable, or has no records.
    """
    if isinstance(data, str | Path):
        return str(data)
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data={data!r} of type {type(data).__name__} has no `__iter__`; give a file, or an iterable of records"
        )
    lines = [json.dumps(record if field is None else {field: record}, ensure_ascii=False) for record in data]
    if not lines:
        raise ValueError(f"the data {type(data).__name__} has no records; give at least one")
    make_directory(place.parent, f"run_dir={place.parent}")
    write_text(place, "\n".join(lines) + "\n")
    return str(place)


def task_and_reward(
    model: MaskedLM, task: Any, reward: Any, answer_length: int, seed: int
) -> tuple[Objects, dict[str, Any]]:
    """Return the objects that a run gets, and the settings that go with them."""
    own: Task | None = None
    if isinstance(task, str):
        chosen: dict[str, Any] = {"data": task}
        reward = REWARD_OF.get(task, "right") if reward is None else reward
    else:
        own = PromptTask(model, task, answer_length, seed)
        if reward is None and not isinstance(task, CheckedPrompts):
            raise no_checker(type(task).__name__)
        chosen = {"data": "questions", "data.answer_length": answer_length}
        reward = "right" if reward is None else reward
    texts, of_reward = reward_settings(reward)
    return Objects(model, own, texts), chosen | of_reward


def reward_settings(reward: Any) -> tuple[TextReward | None, dict[str, Any]]:
    """Return the caller's reward of texts, if there is one, and the settings that choose the reward. ValueError for another
    object."""
    if isinstance(reward, str):
        named = (CONFIGS / "reward" / f"{reward}.yaml").is_file()
        return None, {"reward": reward} if named else {"reward": "learned", "reward.model": reward}
    texts = reward_of(reward)
    return texts, {"reward": "learned", "reward.model": name_of(reward)}


def target_of(target: Any) -> tuple[TextReward | None, dict[str, Any]]:
    """Return the reward of a target that the caller gave as an object, and the settings that choose the target."""
    if isinstance(target, str):
        return None, {"target": target}
    return reward_of(target, "target"), {"target": "reward", "target.reward": CALLERS + name_of(target)}


def reward_of(reward: Any, argument: str = "reward") -> TextReward:
    """Return a reward of texts: the object itself, or a function of texts as a reward. ValueError for any other object."""
    reward = result_of(reward)
    if isinstance(reward, TextReward):
        return reward
    if not callable(reward):
        raise ValueError(
            f"{argument}={reward!r} of type {type(reward).__name__} has no `score_texts` and cannot be called; give a name, a "
            "reward model, or a function of a list of texts"
        )
    function: Any = reward
    return FunctionReward(function)


def name_of(value: Any) -> str:
    """Return the name by which a stored configuration describes an object of the caller."""
    return type(value).__name__ if isinstance(value, TextReward) else FunctionReward(value).name


def source_of(model: MaskedLM, needed_by: str | None = None) -> str:
    """Return the path that the model was loaded from. ValueError if the model was built in this process and its path is
    needed."""
    if model.source is None and needed_by is not None:
        raise ValueError(
            f"{needed_by} trains a copy of the model and reads it from its path, which this one has not; load it by unmask.load"
        )
    return model.source or model.model_id or type(model).__name__


def words(settings: Settings, before: str = "") -> list[str]:
    """Return settings by dotted path as overrides of Hydra: {"optim.lr": 1e-3, "policy": "hidden_mlp"}, also nested ones."""
    found: list[str] = []
    for key, value in settings.items():
        if isinstance(value, Mapping):
            found += words(value, f"{before}{key}.")
        elif isinstance(value, str | Path):
            is_group = not before and (CONFIGS / key / f"{value}.yaml").is_file()
            found.append(f"{key}={value}" if is_group else override(f"{before}{key}", str(value)))
        else:
            found.append(f"{before}{key}={json.dumps(value)}")
    return found


def trained(
    name: str,
    chosen: Settings,
    iterations: int,
    seed: int,
    run_dir: str | Path | None,
    quiet: bool,
    settings: Settings | None,
    *objects: Objects,
) -> Path:
    """Run `unmask.runs.NAME`; returns the run directory. The result is written at the end of the run."""
    every = {"training.n_iters": iterations, "training.eval_freq": iterations, "training.snapshot_freq": iterations}
    return started(name, {**every, **chosen}, seed, run_dir, quiet, settings, *objects)


def started(
    name: str,
    chosen: Settings,
    seed: int,
    run_dir: str | Path | None,
    quiet: bool,
    settings: Settings | None,
    *objects: Objects,
) -> Path:
    """Run `unmask.runs.NAME` with these settings; returns the run directory."""
    from importlib import import_module  # the runs of rewards import trl, which the others do not need

    directory = new_directory() if run_dir is None else Path(run_dir)
    common = {"seed": seed, "wandb.mode": "disabled", "run_dir": directory}
    overrides = translated(words({**common, **chosen, **(settings or {})}), name)
    run = import_module(f"unmask.runs.{name}").run
    with quietly(quiet):
        return run(composed(name, overrides), overrides, *objects)
