"""Train policies, models, rewards and twists from Python. Each function does the same as the command of its name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from data.prompt_task import CheckedPrompts, PromptTask, no_checker
from data.tasks import Task
from dlm.checked import check_model
from dlm.masked_lm import MaskedLM
from load_model import load_model
from model.quality import QualityHead
from policy.checkpoints import load_policy
from rewards.functions import CALLERS, name_of, reward_of
from rewards.models import RewardModel, TextReward, load_reward
from samplers.quality import load_quality
from training.devices import device_of
from training.files import make_directory, write_text
from training.usage import CONFIGS
from unmask.calls import Call, Settings
from unmask.runs.objects import Objects
from unmask.trained import Trained, result_of

Reward = str | TextReward | Callable[[list[str]], Sequence[float] | Tensor]
# What an algorithm maximises where the caller names no reward.
REWARD_OF = {"stories": "likelihood", "puzzles": "puzzle", "latex": "latex"}


def train_policy(
    model: MaskedLM | Trained[MaskedLM],
    *,
    task: str | Iterable[str] = "stories",
    algorithm: str = "grpo",
    reward: Reward | None = None,
    policy: str = "dit_confidence",
    iterations: int | None = None,
    answer_length: int = 32,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
    resume: str | Path | None = None,
) -> Trained[nn.Module]:
    """Train an unmasking policy on a frozen masked model.

    Args:
        task: a data set of configs/data (stories, chain, puzzles, gsm8k_math, ...), or an iterable of prompts. With a method
            `check(prompt, answer)` the iterable says itself which answers are right.
        algorithm: grpo, ppo, variational or imitation.
        reward: a function of a list of texts, a reward model, a reward of configs/reward, or a path that `load_reward` takes.
            None: of a task with known answers whether the answer is right; of stories their likelihood under a judge.
        policy: a network of configs/policy.
        iterations: updates of the policy. None: 60; of a resumed run, its own number.
        answer_length: positions behind the prompts of an iterable.
        run_dir: where the run is written. None: output/DATE/TIME.
        quiet: print nothing. The log is in the run directory in any case.
        settings: other keys of configs/train_policy.yaml, such as {"training.batch_size": 16, "optim.lr": 1e-4}.
        resume: the directory of a run to continue in place. Give its model, task and reward again. All other settings are those
            of the run; a larger `iterations` trains it further.

    Returns:
        The policy (`strategy=` of `unmask.sample` and `unmask.evaluate`), with its run directory.

    Raises:
        ValueError: for settings or objects that do not fit; one sentence that names them.
    """
    model = model_of(model)
    call = Call(train_policy, run_dir, resume, quiet, settings)
    call.choose("seed", seed)
    call.choose("algorithm", algorithm)
    call.choose("policy", policy)
    call.choose_length(iterations, 60)
    call.choose_model(source_of(model), "dlm.path", model.device)
    directory = call.run(task_and_reward(call, model, task, reward, answer_length, seed))
    return Trained(directory, load_policy(directory / "policy", model=model))


def train_rl(
    model: MaskedLM | Trained[MaskedLM],
    *,
    task: str | Iterable[str] = "chain",
    algorithm: str = "grpo",
    reward: Reward | None = None,
    iterations: int | None = None,
    answer_length: int = 32,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
    resume: str | Path | None = None,
) -> Trained[MaskedLM]:
    """Train the model itself by reinforcement learning. The given `model` (of `unmask.load`) is not changed.

    Args:
        algorithm: grpo, ppo, or vrpo (of preference pairs: task="pairs", settings={"data.pairs": FILE}).
        task, reward, answer_length, run_dir, quiet, resume: as of `train_policy`.
        iterations: batches of rollouts. None: 100; of a resumed run, its own number.
        settings: other keys of configs/train_rl.yaml.

    Returns:
        The trained model, with its run directory.
    """
    model = model_of(model)
    call = Call(train_rl, run_dir, resume, quiet, settings)
    call.choose("seed", seed)
    call.choose("algorithm", algorithm, {"rl.algorithm": algorithm})
    call.choose_length(iterations, 100)
    call.choose_model(source_of(model, "train_rl"), "init", model.device)
    given = task_and_reward(call, model, task, reward, answer_length, seed)
    directory = call.run(Objects(None, given.task, given.reward))
    return Trained(directory, load_model(str(directory / "model"), model.device)[0])


def train_dlm(
    data: str | Path | Iterable[str],
    *,
    model: MaskedLM | Trained[MaskedLM] | None = None,
    iterations: int | None = None,
    device: str = "auto",
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
    resume: str | Path | None = None,
) -> Trained[MaskedLM]:
    """Pre-train a masked-diffusion model on texts, or fine-tune one.

    Args:
        data: an iterable of texts, a file of texts, or a data set of configs/data. A part of texts and files is held out.
        model: the model to start from, which `unmask.load` made; it stays as it is. None: a new model of configs/model.
        iterations: updates of the model. None: 1000; of a resumed run, its own number.
        run_dir, quiet, resume: as of `train_policy`.
        settings: other keys of configs/train_dlm.yaml, such as {"model.hidden_size": 256, "optim.lr": 1e-4}.

    Returns:
        The trained model, with its run directory.
    """
    model = None if model is None else model_of(model)
    call = Call(train_dlm, run_dir, resume, quiet, settings)
    call.choose("seed", seed)
    call.choose_length(iterations, 1000)
    if model is None:
        call.choose("device", device)
    else:
        call.choose_model(source_of(model, "train_dlm"), "init", model.device)
    if isinstance(data, str) and (CONFIGS / "data" / f"{data}.yaml").is_file():
        call.choose("data", data)
    else:
        choose_file(call, "data", data, "texts.jsonl", "text")
    directory = call.run()
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
    resume: str | Path | None = None,
) -> Trained[RewardModel | TextReward]:
    """Train a reward model on pairs of answers.

    Args:
        preferences: an iterable of {"prompt": ..., "chosen": ..., "rejected": ...}, a file of such lines, or tldr or hh.
        init: a checkpoint of transformers to start from: a directory or an id of the hub. None: a new small encoder.
        kind: what the reward reads: full (whole answers), prefix, or mask (canvases with masks).
        epochs: passes over the pairs.
        run_dir, quiet, resume: as of `train_policy`; a finished run of a reward is not trained further.
        settings: other keys of configs/train_reward.yaml.

    Returns:
        The reward, with its run directory.
    """
    call = Call(train_reward, run_dir, resume, quiet, settings)
    call.choose("seed", seed)
    call.choose("init", init)
    call.choose("kind", kind, {"reward.kind": kind})
    call.choose("epochs", epochs, {"training.epochs": epochs})
    choose_file(call, "preferences", preferences, "preferences.jsonl", None)
    directory = call.run()
    return Trained(directory, load_reward(str(directory)))


def train_twist(
    model: MaskedLM | Trained[MaskedLM],
    *,
    target: str | Reward = "vader",
    method: str = "ctl",
    prompt: str = "Once upon a time",
    length: int = 16,
    iterations: int | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
    resume: str | Path | None = None,
) -> Trained[str]:
    """Train a twist for sequential Monte Carlo: `strategy="twisted_smc", smc={"twist": ...}` of `unmask.sample`.

    Args:
        target: a file of configs/target: vader, infilling, continuation, latex, ...; or a function of a list of texts, or a
            reward model, whose values are at most 1 (settings={"target.highest": ...} for another bound): texts then have
            the weight exp(beta (value - highest)), with beta of settings={"target.beta": ...}. `unmask.sample` needs the same
            function as `reward`.
        method: ctl, rl, sixo, fudge, dpg, ppo, ...
        prompt, length: what every text begins with, and the positions behind it.
        iterations: updates of the twist. None: 100; of a resumed run, its own number.
        run_dir, quiet, resume: as of `train_policy`. A finished run continues by settings={"training.epochs": 2}.
        settings: other keys of configs/train_twist.yaml.

    Returns:
        The path of the twist, with its run directory.
    """
    model = model_of(model)
    call = Call(train_twist, run_dir, resume, quiet, settings)
    reward, of_target = target_of(target)
    call.choose("target", target, of_target)
    for argument, value in (("seed", seed), ("method", method), ("prompt", prompt), ("length", length)):
        call.choose(argument, value)
    call.choose("iterations", iterations, {"training.updates_per_epoch": 100 if iterations is None else iterations})
    call.chosen["training.epochs"] = 1
    call.choose_model(source_of(model, "train_twist"), "dlm.path", model.device)
    directory = call.run(Objects(reward=reward))
    return Trained(directory, str(directory))


def train_quality(
    model: MaskedLM | Trained[MaskedLM],
    *,
    data: str | Path | Iterable[str] = "stories",
    iterations: int | None = None,
    seed: int = 0,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    settings: Settings | None = None,
    resume: str | Path | None = None,
) -> Trained[QualityHead]:
    """Train a quality head on a frozen masked model: how likely is a committed token right?

    Args:
        data: right texts: a data set of configs/data (stories, puzzles, chain, ...), a file of texts, or an iterable of texts,
            which are encoded by the model's own tokenizer. Texts have no prompt with one right answer, so that the head
            learns from texts whose masks the model fills, and not from the model's own decodings.
        iterations: updates of the head. None: 400; of a resumed run, its own number.
        run_dir, quiet, resume: as of `train_policy`.
        settings: other keys of configs/train_quality.yaml, such as {"quality.blocks": 2, "quality.share": 0.5}.

    Returns:
        The head and its run directory, which is the path of the quality source `head` of `unmask.sample`.

    Raises:
        ValueError: for settings or data that do not fit; one sentence that names them.
    """
    model = model_of(model)
    call = Call(train_quality, run_dir, resume, quiet, settings)
    call.choose("seed", seed)
    call.choose_length(iterations, 400)
    call.choose_model(source_of(model), "dlm.path", model.device)
    if isinstance(data, str) and (CONFIGS / "data" / f"{data}.yaml").is_file():
        call.choose("data", data)
    else:
        choose_file(call, "data", data, "texts.jsonl", "text")
        call.chosen |= {"data": "stories", "data.valid": None, "data.tokenizer": "model"}
    if call.chosen["data"] == "stories":
        call.chosen["quality.share"] = 1
    directory = call.run(Objects(model))
    return Trained(directory, load_quality(directory, model))


# --------------------------------------------------------------------------------------------------- from arguments to settings


def choose_file(call: Call, argument: str, data: Any, name: str, field: str | None) -> None:
    """Choose the file of data: the given path, or a new file in the run directory with the records of an iterable.

    Args:
        name: of the new file.
        field: of the JSON line under which a text stands; None: a record is a line itself.

    Raises:
        ValueError: for an object that is no iterable, or has no records; for a resumed run also for other records.
    """
    if isinstance(data, str | Path):
        call.choose(argument, data, {"data.train": str(data)})
        return
    if not isinstance(data, Iterable):
        raise ValueError(
            f"data={data!r} of type {type(data).__name__} has no `__iter__`; give a file, or an iterable of records"
        )
    lines = [json.dumps(record if field is None else {field: record}, ensure_ascii=False) for record in data]
    if not lines:
        raise ValueError(f"the data {type(data).__name__} has no records; give at least one")
    place, text = Path(call.place) / name, "\n".join(lines) + "\n"
    if call.resume is not None:
        if not place.is_file() or place.read_text(encoding="utf-8") != text:
            raise ValueError(
                f"resume={call.resume} was started with other records than those of the argument {argument}; give its own"
            )
        return
    make_directory(place.parent, f"run_dir={place.parent}")
    write_text(place, text)
    call.choose(argument, data, {"data.train": str(place)})


def task_and_reward(call: Call, model: MaskedLM, task: Any, reward: Any, answer_length: int, seed: int) -> Objects:
    """Choose the settings of the task and the reward, and return the objects among them."""
    own: Task | None = None
    if isinstance(task, str):
        call.choose("task", task, {"data": task})
    else:
        length = call.effective("answer_length", answer_length, "data.answer_length")
        own = PromptTask(model, task, length, call.effective("seed", seed, "seed"))
        if reward is None and not isinstance(task, CheckedPrompts):
            raise no_checker(type(task).__name__)
        call.choose("task", task, {"data": "questions", "data.datasets": [CALLERS + type(task).__name__]})
        call.choose("answer_length", answer_length, {"data.answer_length": answer_length})
    by_task = REWARD_OF.get(task, "right") if isinstance(task, str) else "right"
    texts, of_reward = reward_settings(by_task if reward is None else reward)
    call.choose("reward", reward, of_reward)
    return Objects(model, own, texts)


def reward_settings(reward: Any) -> tuple[TextReward | None, dict[str, Any]]:
    """Return the caller's reward of texts, if there is one, and the settings that choose the reward. ValueError for another
    object."""
    if isinstance(reward, str):
        named = (CONFIGS / "reward" / f"{reward}.yaml").is_file()
        return None, {"reward": reward} if named else {"reward": "learned", "reward.model": reward}
    texts = reward_of(result_of(reward))
    return texts, {"reward": "learned", "reward.model": CALLERS + name_of(texts)}


def target_of(target: Any) -> tuple[TextReward | None, dict[str, Any]]:
    """Return the reward of a target that the caller gave as an object, and the settings that choose the target."""
    if isinstance(target, str):
        return None, {"target": target}
    texts = reward_of(result_of(target), "target")
    return texts, {"target": "reward", "target.reward": CALLERS + name_of(texts)}


def model_of(model: Any) -> MaskedLM:
    """Return the model itself: a run stands for its result. ValueError for an object that is no model."""
    found = result_of(model)
    check_model(found)
    return found


def source_of(model: MaskedLM, needed_by: str | None = None) -> str:
    """Return the path that the model was loaded from. ValueError if the model was built in this process and its path is
    needed."""
    if model.source is None and needed_by is not None:
        raise ValueError(
            f"{needed_by} trains a copy of the model and reads it from its path, which this one has not; load it by unmask.load"
        )
    return model.source or model.model_id or type(model).__name__
