"""Translation of the configuration keys of "Learning Unmasking Policies" (2512.09106, apple/ml-rl-dllm).

Only the command line accepts the published keys. They are translated to keys of Unmask before anything else reads them, and a run
records the keys of Unmask. Batches of Unmask are global, so a batch per device is multiplied by the number of processes. The
published `temperature` becomes the temperature of the policy at evaluation, as its documentation says (the published code applies
it to the tokens); both systems draw at temperature 1 in training.
"""

from __future__ import annotations

import os

from omegaconf import ListConfig, OmegaConf

KEYS = {
    "model_path": "dlm.path", "block_length": "sampling.block_length", "max_completion_length": "data.answer_length",
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
GRPO = ["algorithm=grpo", "policy=dit_confidence", "eval.action=bernoulli_argmax", "sampling.temperature=0.0"]
WITHOUT_EXPERIMENT = {key: list(GRPO) for key in GRPO_KEYS}
WITHOUT_EXPERIMENT |= {
    key: ["policy=dit_confidence"] for key in KEYS if key.startswith("policy_") and key != "policy_type"
}
WITHOUT_EXPERIMENT["alpha_compute_reward"] += ["reward=right", "data=gsm8k_math"]
WITHOUT_EXPERIMENT["reward_functions"] += ["data=gsm8k_math"]
# Theirs may take as many steps as there are positions, which any block length divides.
WITHOUT_EXPERIMENT["block_length"] = ["sampling.discrete_steps=${oc.select:data.answer_length,16}"]


def translated(words: list[str]) -> list[str]:
    """Replace published keys in overrides by those of Unmask. ValueError if a published key sets a value that is also set
    differently."""
    theirs = [word for word in words if word.partition("=")[0] in KEYS | VALUES]
    ours = [word for word in words if word not in theirs]
    set_by = {_key(word): (word, word) for word in ours if "=" in word}
    for word in theirs:
        for override in _ours(word):
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


def _ours(word: str) -> list[str]:
    """Return the overrides of Unmask for one published key."""
    key, _, value = word.partition("=")
    if key in VALUES:
        if value.lower() not in VALUES[key]:
            why = f": {WHY[key]}" if key in WHY else ""
            raise ValueError(f"{word} is unknown; {key} is one of {', '.join(VALUES[key])}{why}")
        return VALUES[key][value.lower()]
    if key == "per_device_train_batch_size" and value.isdigit():
        value = str(int(value) * int(os.environ.get("WORLD_SIZE", "1")))
    return [f"{KEYS[key]}={value}"]


def _weights(word: str) -> list[str]:
    """Give functions without weights equal weights, as the published code does."""
    functions = _value(word) if word.startswith("reward_functions=") else None
    return [f"reward.weights={[1.0] * len(functions)}".replace(" ", "")] if isinstance(functions, ListConfig) else []


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _value(override: str):
    return OmegaConf.from_dotlist([f"value={override.split('=', 1)[1]}"]).value
