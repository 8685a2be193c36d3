"""Old and published keys of configurations and flags of commands: the only place that knows them.

A command translates its command line (`translated`, `current_flags`) and every reader of a stored configuration its content
(`with_current_keys`) before anything else reads them, and a run records the current keys.

RENAMED and FLAGS: names that this project had, or that mean the same in two commands.
KEYS, VALUES, IMPLIED, WITHOUT_EXPERIMENT: "Learning Unmasking Policies" (2512.09106, apple/ml-rl-dllm), of train-policy. What
differs: batches are global, so a batch per device is multiplied by the number of processes; `temperature` is the policy's
(theirs is documented so, and used for the tokens), at evaluation, because training draws at temperature 1 in both.
GENPOLICY, RADD, SEDD: the keys of these systems whose meaning is one key here.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from omegaconf import ListConfig, OmegaConf

# Old key, or beginning of old keys -> the current one; the first that fits decides.
RENAMED = {"sampling.discrete_steps": "sampler.steps", "sampling": "sampler"}
GENPOLICY = {
    "sampling.discrete_time_exponent": "policy.time_exponent",
    "pretrained_hf_path": "dlm.path",
    "outdir": "run_dir",
}
RADD = {"outdir": "run_dir"}
SEDD = {"sampling.predictor": "sampler.strategy"}
KEYS = {
    "model_path": "dlm.path", "block_length": "sampler.block_length", "max_completion_length": "data.answer_length",
    "max_prompt_length": "data.max_prompt_length", "policy_type": "policy", "policy_smart_init": "policy.smart_init",
    "policy_hidden_dim": "policy.hidden_dim", "policy_feedforward_dim": "policy.feedforward_dim",
    "policy_num_heads": "policy.num_heads", "policy_num_blocks": "policy.num_blocks",
    "policy_time_embed_dim": "policy.time_embed_dim", "policy_time_period": "policy.time_period",
    "confidences_top_p": "policy.confidences_top_p", "reward_functions": "reward.functions", "reward_weights": "reward.weights",
    "alpha_compute_reward": "reward.alpha", "temperature": "eval.temperature", "output_dir": "run_dir", "run_name": "wandb.name",
    "num_generations": "algorithm.group_size", "num_iterations": "algorithm.inner_updates", "epsilon": "algorithm.clip",
    "beta": "algorithm.kl", "learning_rate": "optim.lr", "weight_decay": "optim.weight_decay", "max_grad_norm": "optim.grad_clip",
    "warmup_steps": "optim.warmup", "lr_scheduler_type": "optim.schedule", "per_device_train_batch_size": "training.batch_size",
    "generation_batch_size": "training.batch_size", "es_thresholds": "algorithm.experts.thresholds",
}  # fmt: skip
# A published value, and the overrides of ours that it means.
VALUES = {
    "sampling_mode": {
        "bernoulli": ["algorithm.action=bernoulli", "eval.action=bernoulli_argmax"],
        "dpls": ["algorithm.action=plackett_luce", "eval.action=plackett_luce"],
    },
    "dataset": {
        "gsm8k": ["data.datasets=[gsm8k]"],
        "math": ["data.datasets=[math]"],
        "kodcode": ["data.datasets=[kodcode]"],
        "gsm8k_and_math": ["data.datasets=[gsm8k,math]"],
        "gsm8k_and_math_and_kodcode": ["data.datasets=[gsm8k,math,kodcode]"],
    },
    "bf16": {"true": ["model.dtype=bfloat16"], "false": ["model.dtype=float32"]},
    "policy_full_context": {"true": []},  # always so here
}
WHY = {"policy_full_context": "policies read every position that is still to be written, those of later blocks too"}
# Defaults that a published key (with that value) implies: overrides of ours.
IMPLIED = {
    "sampling_mode=dpls": ["policy.smart_init=0.0"],
    "block_length=32": ["eval.temperature=0.5"],
    "block_length=256": ["eval.temperature=1.0"],
    "dataset": ["data=questions"],
    "reward_functions": ["reward=right"],
}
# Defaults without an experiment: published runs use GRPO, one policy, and the most probable tokens.
GRPO_KEYS = (
    "sampling_mode",
    "num_generations",
    "num_iterations",
    "epsilon",
    "beta",
    "reward_functions",
    "alpha_compute_reward",
    "es_thresholds",
)
GRPO = ["algorithm=grpo", "policy=dit_confidence", "eval.action=bernoulli_argmax", "sampler.temperature=0.0"]
WITHOUT_EXPERIMENT = {key: list(GRPO) for key in GRPO_KEYS}
WITHOUT_EXPERIMENT |= {
    key: ["policy=dit_confidence"] for key in KEYS if key.startswith("policy_") and key != "policy_type"
}
WITHOUT_EXPERIMENT["alpha_compute_reward"] += ["reward=right", "data=gsm8k_math"]
WITHOUT_EXPERIMENT["reward_functions"] += ["data=gsm8k_math"]
# Theirs may take as many steps as there are positions, which any block length divides.
WITHOUT_EXPERIMENT["block_length"] = ["sampler.steps=${oc.select:data.answer_length,16}"]


_EVALUATE = {  # of Unmask before, and of "Learning Unmasking Policies"
    "--policy_path": "--policy", "--save_path": "--out", "--output_dir": "--out", "--model_path": "--model",
    "--gen_length": "--length", "--seed": "--seeds", "--remasking": "--strategy", "--thres": "--settings",
    "--threshold": "--settings", "--temperature_policy": "--temperatures", "--diffusion_steps": "--steps",
    "--budget": "--budgets", "--alpha": "--alphas",
}  # fmt: skip
# By command: old or published flag -> the current one.
FLAGS = {
    "sample": {  # of genpolicy, RADD, SEDD and SEDD-LaTeX-RLHF
        "--model_path": "--model", "--ckpt_path": "--model", "--policy_path": "--policy", "--gpt_dir": "--judge",
        "--prefix": "--prompt",
    },
    "evaluate": _EVALUATE | {"--dataset": "--datasets"},
    "evaluate --task text": _EVALUATE | {"--n_test": "--num_samples"},
    "evaluate --task reward": {"--model_path": "--model", "--save_path": "--out"},
    "evaluate --task pairwise": {"--run_name_red": "--red", "--run_name_blue": "--blue"},  # of PARGS
    "perplexity": {"--batch-size": "--batch_size", "--cache-dir": "--cache_dir"},
    "make-preferences": {"--batch": "--batch_size"},
    "make-stories": {"--batch": "--batch_size"},
}  # fmt: skip
# By command: published key, or short name, -> ours. `algorithm` is a group of files for train-policy alone.
PUBLISHED = {
    "train_policy": KEYS | GENPOLICY,
    "train_dlm": RADD,
    "train_rl": {"algorithm": "rl.algorithm"},
    "sample": SEDD,
}
LOSS = "training.loss_type"  # of genpolicy and RADD
PUBLISHED_VALUES = {
    "train_policy": VALUES | {LOSS: {"policy_log_loss": ["algorithm=variational"]}},
    "train_dlm": {LOSS: {name.lower(): [f"loss={name}"] for name in ("t_DCE", "lambda_DCE", "k_DCE")}},
}


def translated(words: list[str], command: str = "train_policy") -> list[str]:
    """Replace old and published keys in overrides by the current ones.

    Args:
        command: name of its configuration, train_policy or sample.

    Raises:
        ValueError: an old or published key sets a key that is also set to another value.
    """
    keys, values = PUBLISHED.get(command, {}), PUBLISHED_VALUES.get(command, {})
    theirs = [word for word in words if word.partition("=")[0] in keys | values]
    ours = _renamed([word for word in words if word not in theirs])
    set_by = {_key(word): (word, word) for word in ours if "=" in word}
    for word in theirs:
        for override in _ours(word, keys, values):
            earlier, by = set_by.setdefault(_key(override), (override, word))
            if _value(earlier) != _value(override):
                raise ValueError(f"{by} and {word} both set {_key(override)}, to different values; leave one out")
    alone = {} if "experiment" in set_by else WITHOUT_EXPERIMENT
    for word in theirs:
        key, _, value = word.partition("=")
        implied = [
            *IMPLIED.get(f"{key}={value.lower()}", []),
            *IMPLIED.get(key, []),
            *alone.get(key, []),
            *_weights(word),
        ]
        for override in implied:
            set_by.setdefault(_key(override), (override, word))
    return [*ours, *(override for override, by in set_by.values() if by not in ours)]


def current_flags(words: Sequence[str], command: str) -> list[str]:
    """Replace old and published flags by the current ones. ValueError for a flag beside its current one."""
    table, given = FLAGS[command], {}
    for flag in (word.partition("=")[0] for word in words):
        new = table.get(flag, flag)
        if given.setdefault(new, flag) != flag:
            raise ValueError(f"{given[new]} and {flag} are one flag; leave one out")
    return [table.get(flag, flag) + equals + value for flag, equals, value in (word.partition("=") for word in words)]


def new_name(key: str) -> str:
    """Return the current name of a key in dots: a key of RENAMED, or one below it."""
    for old, new in RENAMED.items():
        if key == old or key.startswith(f"{old}."):
            return new + key.removeprefix(old)
    return key


def _renamed(words: list[str]) -> list[str]:
    """Give overrides their current keys. ValueError if a key is set by two names, to different values."""
    found, by_key = [], {}
    for word in words:
        new = new_name(_key(word))
        if "=" in word and (new not in by_key or _key(word) == new):
            by_key[new] = word
    for word in words:
        key, equals, value = word.partition("=")
        sign = key[: len(key) - len(key.lstrip("+~"))]
        new = new_name(key.removeprefix(sign))
        other = by_key.get(new, word)
        if _key(word) != new and equals and _value(other) != _value(word):
            raise ValueError(f"{other} and {word} both set {new}, to different values; leave one out")
        found.append(f"{sign}{new}{equals}{value}")
    return found


def with_current_keys(values: dict[str, Any], name: str) -> dict[str, Any]:
    """Give a stored configuration its current keys. name: of the file, for messages.

    Raises:
        ValueError: it has a key under its old and its current name.
    """
    for old, new in RENAMED.items():
        *path, last = old.split(".")
        section: Any = values
        for part in path:
            section = section.get(part) if isinstance(section, dict) else None
        if isinstance(section, dict) and last in section:
            _put(
                values, new.split("."), section.pop(last), f"{name} sets {old} and {new}, which are one key; remove one"
            )
    return values


def _put(values: dict[str, Any], path: list[str], value: Any, refusal: str) -> None:
    """Set a value, or each value of a section, at a path. ValueError (`refusal`) where there is one already."""
    first, *rest = path
    if rest:
        _put(values.setdefault(first, {}), rest, value, refusal)
    elif first not in values:
        values[first] = value
    elif isinstance(values[first], dict) and isinstance(value, dict):
        for key, each in value.items():
            _put(values[first], [key], each, refusal)
    else:
        raise ValueError(refusal)


EVALUATED = (
    "model_path",
    "block_length",
    "max_completion_length",
    "max_prompt_length",
    "temperature",
    "sampling_mode",
    "bf16",
)


def from_file(settings: dict, file: str) -> list[str]:
    """Return overrides from a published configuration file, as far as an evaluation uses it. ValueError for other files."""
    overrides = [f"{key}={str(settings[key]).lower() if isinstance(settings[key], bool) else settings[key]}"
            for key in EVALUATED if settings.get(key) is not None]  # fmt: skip
    if asking := [word for word in overrides if "${" in word]:
        raise ValueError(
            f"{file} sets {asking[0]}, and a file of settings may ask for nothing outside; write the value"
        )
    if not overrides:
        raise ValueError(
            f"{file} has neither `dlm`, as configurations of this project have, nor any of {', '.join(EVALUATED)}"
        )
    return translated(overrides)


def _ours(word: str, keys: dict[str, str], values: dict[str, dict[str, list[str]]]) -> list[str]:
    """Return the overrides for one of theirs."""
    key, _, value = word.partition("=")
    if key in values:
        if value.lower() not in values[key]:
            why = f": {WHY[key]}" if key in WHY else ""
            raise ValueError(f"{word} is unknown; {key} is one of {', '.join(values[key])}{why}")
        return values[key][value.lower()]
    if key == "per_device_train_batch_size" and value.isdigit():
        value = str(int(value) * int(os.environ.get("WORLD_SIZE", "1")))
    return [f"{keys[key]}={value}"]


def _weights(word: str) -> list[str]:
    """Give functions without weights equal weights, as the published code does."""
    functions = _value(word) if word.startswith("reward_functions=") else None
    return [f"reward.weights={[1.0] * len(functions)}".replace(" ", "")] if isinstance(functions, ListConfig) else []


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _value(override: str):
    return OmegaConf.from_dotlist([f"value={override.split('=', 1)[1]}"]).value
