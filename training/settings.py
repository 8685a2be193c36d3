"""Settings that every training command has: where a run is, how long it is, the optimiser, wandb."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from training.devices import check_device
from training.fields import Settings, setting
from training.files import check_cache
from training.ranges import (
    ABOVE_0,
    ABSENT,
    CACHE,
    COUNT,
    COUNT_OR_NONE,
    DTYPE,
    FLAG,
    LENGTH,
    NAME,
    PART,
    ROWS,
    SEED,
    SHARE,
    SIZE,
    WEIGHT,
    WORDS,
    Either,
    ListOf,
    Maybe,
    Number,
    OneOf,
    Range,
    Text,
    TokenizerName,
    Whole,
    check_ranges,
    found_at,
)  # fmt: skip
from training.usage import CONFIGS


@dataclass
class RunSettings(Settings):
    """Keys at the top of every training configuration."""

    seed: int = setting(0, SEED, "of all random numbers of the run")
    device: str = setting("auto", NAME, "auto, cpu, cuda, or one of several such as cuda:1")
    run_dir: str | None = setting(
        None, Maybe(NAME), "directory of the run, or a URL (s3://bucket/prefix) to copy it to; null: output/DATE/TIME"
    )
    resume: str | None = setting(
        None,
        Maybe(NAME),
        "a run to continue, in place: a directory, a URL, or auto (the run in run_dir, if there is one)",
    )


@dataclass
class ComputeSettings(Settings):
    """The type of number in which a model computes."""

    prefix: ClassVar[str] = "model."
    dtype: str = setting("float32", DTYPE, "of the computation; weights that learn are float32")


@dataclass
class AverageSettings(Settings):
    """The moving average of weights that learn."""

    prefix: ClassVar[str] = "training."
    ema: float | int = setting(0.99, SHARE, "decay of the moving average of the weights")


@dataclass
class ScheduleSettings(Settings):
    """Length of a run, and the iterations between two lines of the log and two snapshots."""

    prefix: ClassVar[str] = "training."
    n_iters: int | None = setting(100, COUNT, "iterations of the run")
    log_freq: int = setting(10, COUNT, "iterations between two lines of the log")
    snapshot_freq: int = setting(
        100, COUNT, "iterations between two snapshots: checkpoints/, the model or policy, samples"
    )


@dataclass
class EvaluatedSettings(ScheduleSettings):
    """The schedule of a run that is evaluated on held-out data."""

    eval_freq: int = setting(100, COUNT, "iterations between two evaluations on held-out data")


@dataclass
class PreemptionSettings(Settings):
    """The schedule of resume checkpoints."""

    prefix: ClassVar[str] = "training."
    snapshot_freq_for_preemption: int = setting(
        20, COUNT, "iterations between two resume checkpoints, from which a killed run continues"
    )


@dataclass
class BatchSettings(Settings):
    """The batch of an update."""

    prefix: ClassVar[str] = "training."
    batch_size: int = setting(32, ROWS, "rows of an update, over all processes and parts")
    accum: int = setting(1, ROWS, "parts that a batch is cut into, for memory")


@dataclass
class TunedSettings(BatchSettings, EvaluatedSettings):
    """Training by transformers or TRL, in epochs or iterations."""

    n_iters: int | None = setting(None, Maybe(COUNT), "updates of the run; null: as many as training.epochs needs")
    epochs: int = setting(1, Whole(1, 1_000_000), "passes over the data, where training.n_iters is null")
    gradient_checkpointing: bool = setting(False, FLAG, "compute activations again in the backward pass, for memory")
    dropout: bool = setting(False, FLAG, "use the model's own dropout while it learns")


@dataclass
class EvalSettings(Settings):
    """Evaluations on held-out rows."""

    prefix: ClassVar[str] = "eval."
    batch_size: int = setting(32, ROWS, "held-out rows that are evaluated together")


@dataclass
class RateSettings(Settings):
    """The learning rate, its schedule, and the clipping of gradients."""

    prefix: ClassVar[str] = "optim."
    lr: float | int = setting(1e-3, Number(0, 10), "learning rate after the warm-up")
    weight_decay: float | int = setting(0.0, Number(0, 10), "weight decay")
    warmup: int | None = setting(0, COUNT_OR_NONE, "updates of the linear warm-up")
    grad_clip: float | int = setting(1.0, Number(0, 1e12, open_low=True), "largest norm of the gradient")
    schedule: str = setting(
        "constant", OneOf(("constant", "linear", "cosine")), "of the learning rate: constant, linear or cosine to zero"
    )


@dataclass
class OptimSettings(RateSettings):
    """AdamW with a warm-up and clipped gradients."""

    betas: list[float | int] = setting([0.9, 0.999], ListOf(PART, "[0.9,0.999]", (2, 2)), "decay rates of the moments")
    eps: float | int = setting(1e-8, Number(0, 1, open_low=True), "is added to the root of the second moment")


@dataclass
class TunedOptimSettings(RateSettings):
    """The optimiser of a run by transformers or TRL."""

    optimiser: str = setting("adamw", NAME, "adamw or rmsprop")


@dataclass
class RewardOptimSettings(OptimSettings, TunedOptimSettings):
    """The optimiser of train-reward, which trains by transformers or by the trainer of this project."""


@dataclass
class ProjectSettings(Settings):
    """Logging to Weights and Biases."""

    prefix: ClassVar[str] = "wandb."
    mode: str = setting("offline", OneOf(("online", "offline", "disabled")), "online, offline or disabled")
    project: str = setting("unmask", NAME, "name of the project in wandb")


@dataclass
class WandbSettings(ProjectSettings):
    """Logging to Weights and Biases, with a name for the run."""

    name: str | int | float | None = setting(
        None, Maybe(Text(number=True)), "name of the run in wandb; null: a random one"
    )


def _in(section: str, ranges: dict[str, Range]) -> dict[str, Range]:
    """The ranges of a section's keys, whose names in `ranges` are short. Several names in one key are separated by spaces."""
    return {f"{section}{key}": allowed for keys, allowed in ranges.items() for key in keys.split()}


POLICY_OF_SAMPLER: dict[str, Range] = {
    "path": NAME, "other_model": FLAG, "action": Maybe(NAME), "temperature beta": WEIGHT, "threshold": SHARE,
}  # fmt: skip
SAMPLER: dict[str, Range] = {
    **_in("", {
        "strategy": Maybe(NAME), "steps window": LENGTH, "budget block_length refresh": Maybe(LENGTH), "alpha": Maybe(WEIGHT),
        "cache": CACHE, "guidance temperature factor entropy_bound noise": WEIGHT,
        "stop logits_eos_inf confidence_eos_eot_inf": FLAG, "threshold": SHARE, "top_p": Number(0, 1, open_low=True),
        "top_k": COUNT_OR_NONE, "confidence": NAME,
    }),
    **_in("policy.", POLICY_OF_SAMPLER),
    **_in("guide.", {
        "reward unmask read": Maybe(NAME), "beta": Maybe(Number(-1e6, 1e6)), "k": COUNT, "temperature": Maybe(WEIGHT),
        "positions": NAME, "proposals samples": ROWS,
    }),
    **_in("smc.", {
        "particles completions": ROWS, "interval": COUNT, "resample scheme pick potential": NAME,
        "unmask twist proposal": Maybe(NAME), "exponent": WEIGHT, "label": Maybe(COUNT_OR_NONE), "scale": Number(-1e6, 1e6),
    }),
}  # fmt: skip
SETTINGS: dict[str, Range] = {
    **_in("", {
        "seed": SEED, "device": NAME, "run_dir resume init": Maybe(NAME), "stage mode method": NAME, "prompt": WORDS,
        "positives": Maybe(NAME), "samples": ROWS, "batch_size": ROWS, "compare": ListOf(NAME, "[RUN,RUN]", (0, 100)),
        "loss": NAME, "init_other_model": FLAG, "init_trust": Maybe(Number(0, 1, open_low=True, open_high=True)),
        "dlm.path": NAME, "dlm.model_type": Maybe(NAME), "wandb.mode": OneOf(("online", "offline", "disabled")),
        "wandb.project": NAME, "wandb.name": Maybe(Text(number=True)),
    }),
    **_in("model.", {
        "dtype": DTYPE, "sharded learned_positions scale_by_sigma": FLAG, "kind": OneOf(("radd", "sedd", "llada", "causal")),
        "hidden_size n_blocks n_heads cond_dim": SIZE, "length": LENGTH, "dropout": PART, "rope_theta": Number(1, 1e12),
    }),
    **_in("noise.", {"type": OneOf(("loglinear", "geometric")), "sigma_min sigma_max": Number(0, 1000, open_low=True)}),
    **_in("adapt.", {"length": Maybe(LENGTH), "anneal": COUNT_OR_NONE}),
    **_in("lora.", {
        "rank": Maybe(SIZE), "alpha": ABOVE_0, "dropout": PART,
        "target_modules": Either(NAME, ListOf(NAME, "[q_proj,v_proj]")),
    }),
    **_in("training.", {
        "batch_size accum chunk particles": ROWS, "epochs updates_per_epoch": Whole(1, 1_000_000), "ema": SHARE,
        "n_iters log_freq eval_freq snapshot_freq snapshot_freq_for_preemption": COUNT, "schedule": NAME,
        "gradient_checkpointing dropout": FLAG,
    }),
    **_in("optim.", {
        "lr": Number(0, 10), "betas": ListOf(PART, "[0.9,0.999]", (2, 2)), "eps": Number(0, 1, open_low=True),
        "weight_decay": Number(0, 10), "warmup": COUNT_OR_NONE, "grad_clip": Number(0, 1e12, open_low=True),
        "schedule": OneOf(("constant", "linear", "cosine")), "optimiser": NAME,
    }),
    **_in("eval.", {
        "batch_size samples steps sweeps": ROWS, "texts": Whole(0, 1_000_000), "first": FLAG, "action": NAME,
        "temperature": WEIGHT, "every": Maybe(COUNT), "particles": ListOf(ROWS, "[32,500]"), "log_z": Maybe(Number()),
    }),
    **_in("sampling.", {
        "discrete_steps steps window": LENGTH, "length block_length refresh": Maybe(LENGTH), "cache": CACHE, "strategy": NAME,
        "temperature factor entropy_bound noise": WEIGHT, "threshold": SHARE, "alpha": Maybe(WEIGHT),
        "budgets": Maybe(ListOf(LENGTH, "[2,4,8]")),
    }),
    **_in("sampling.policy.", POLICY_OF_SAMPLER),
    **_in("data.", {
        "kind train": NAME, "valid cache_dir data_dir valid_pairs": Maybe(NAME), "pairs": NAME,
        "valid_rows valid_count base_grids base_puzzles valid_grids valid_puzzles": COUNT,
        "count": Maybe(COUNT), "held_out": Number(0, 1, open_low=True, open_high=True), "tokenizer": TokenizerName(),
        "packing": OneOf(("documents", "pack")), "given": Maybe(OneOf(("question", "nothing"))),
        "longer": Maybe(OneOf(("drop", "cut"))), "box": ListOf(Whole(1, 5), "[2,3]", (2, 2)), "clues base_clues": Maybe(COUNT),
        "keep_clues unsandboxed": FLAG, "seed": SEED, "steps": Whole(1, 8), "fewest_steps": Maybe(Whole(1, 8)), "keep": SHARE,
        "datasets": ListOf(NAME, "[gsm8k]"), "answer_length max_length": LENGTH, "max_prompt_length length": Maybe(LENGTH),
        "rows": Maybe(ROWS), "canvas": Maybe(LENGTH), "math_by": OneOf(("verify", "string")),
    }),
    **_in("policy.", {
        "policy_type": NAME, "hidden_dim feedforward_dim num_blocks time_embed_dim confidences_top_p": SIZE,
        "num_heads mlp_size": Maybe(SIZE), "time_period": ABOVE_0, "time_exponent": Number(0, 100),
        "smart_init": Number(-100, 100), "read_all": FLAG, "repulsion": Whole(0, 100_000),
        "hidden_size": Maybe(Whole(0, 100_000)), "length": Maybe(LENGTH), "relations candidates width top_k": SIZE,
    }),
    **_in("algorithm.", {
        "name action expert": NAME, "group_size": ROWS, "inner_updates": Whole(1, 10_000),
        "clip kl value_weight reinforce setting": WEIGHT, "gae_decay": SHARE, "advantage_std only_correct": FLAG,
        "block_length": Maybe(LENGTH),
    }),
    **_in("algorithm.warm_start.", {
        "updates": COUNT_OR_NONE, "expert": NAME, "setting": WEIGHT, "block_length": Maybe(LENGTH), "only_correct": FLAG,
    }),
    **_in("algorithm.experts.", {"thresholds": ListOf(SHARE, "[0.9]", (0, 100)), "block_length": Maybe(LENGTH)}),
    **_in("reward.", {
        "name": NAME, "judge model": Maybe(NAME), "alpha weight": WEIGHT, "entropy_floor": Number(0, 1000),
        "additive bare": FLAG, "alphas": Maybe(ListOf(WEIGHT, "[0,1,3]", (0, 1000))),
        "functions": ListOf(NAME, "[correct_times_speed]"), "weights": ListOf(Number(-1e6, 1e6), "[1.0]"),
        "terms.valid terms.progress terms.structure terms.commands terms.length terms.repetition": WEIGHT,
        "window": ListOf(Whole(0), "[4,200]", (2, 2)), "kind head": NAME,
    }),
    **_in("rl.", {
        "algorithm ratio estimator masks": NAME, "batch_size group_size": ROWS, "advantage_std antithetic": FLAG,
        "baseline_decay": SHARE, "ppo_epochs": Whole(1, 10_000), "ppo_clip kl_beta sandwich.beta": WEIGHT, "reward_freq": COUNT,
        "num_sigma_samples": ROWS, "replayed_steps": Maybe(LENGTH), "prompt_mask": PART,
        "coupled": ListOf(SHARE, "[0.2,0.8]", (2, 2)), "sandwich.mix": SHARE,
    }),
    **_in("twist.", {
        "trunk": NAME, "layers": Whole(1, 1000), "multiplier": Number(0, 1000, open_low=True), "rank": SIZE, "state": FLAG,
    }),
    **_in("ppo.", {"epochs": Whole(1, 10_000), "clip value_weight": WEIGHT, "gae_decay": SHARE}),
    **_in("posterior.", {
        "path": Maybe(NAME), "count": COUNT_OR_NONE, "batch": ROWS, "most": COUNT, "order": OneOf(("written", "uniform")),
    }),
    **_in("target.", {
        "kind form classifier reward": NAME, "text": WORDS, "tokens": LENGTH, "classes": SIZE,
        "label": Maybe(COUNT_OR_NONE), "beta threshold highest": Number(-1e6, 1e6), "above": FLAG,
    }),
    **_in("preference.", {
        "algorithm": NAME, "beta": WEIGHT, "reward": Maybe(NAME), "group_size": ROWS, "answer_length": LENGTH,
        "temperature": ABOVE_0,
    }),
    **_in("encoder.", {"tokenizer": NAME, "hidden_size intermediate_size num_layers num_heads": SIZE, "max_length": LENGTH}),
    **_in("sampler.", SAMPLER),
    **_in("prompts.", {"file": NAME, "count": Maybe(COUNT), "seed": SEED, "cache_dir": Maybe(NAME)}),
    **_in("rewards.", {"full partial head prefix": Maybe(NAME)}), "selector": Maybe(NAME), "out": Maybe(NAME),
    "length": LENGTH,
}  # fmt: skip
OF_COMMAND: dict[str, dict[str, Range]] = {
    "sample": _in("", {
        "num_samples": Maybe(COUNT), "length": Maybe(LENGTH), "seed": Whole(-(2**63), 2**63 - 1),
        "prefix suffix template": Maybe(WORDS), "chat show eval drift": FLAG, "json judge": Maybe(NAME),
    }),
    "guide": {"out": NAME},
    "train_dlm": {"training.ema": Maybe(SHARE), "optim.warmup": Maybe(COUNT_OR_NONE)},
    "train_preference": {"init": NAME, "training.n_iters": Maybe(COUNT)},
    "train_reward": {"training.n_iters": Maybe(COUNT)},
    "train_twist": {"training.epochs": Whole(0, 1_000_000), "training.n_iters": Maybe(COUNT_OR_NONE)},
}  # fmt: skip
MISSING = "???"  # of OmegaConf: a value that the command line has to give
SECTIONS = {key.split(".")[0] for key in SETTINGS if "." in key} - {"rewards"}  # whose keys are all read


def ranges_of(name: str) -> dict[str, Range]:
    """The range of every key of the configuration `name` (train_dlm, sample, ...)."""
    own = OF_COMMAND.get(name, {})
    return {key: allowed for key, allowed in SETTINGS.items() if key.split(".")[0] not in own} | own


def resolved(config: DictConfig) -> dict[str, Any]:
    """The configuration as nested dictionaries, interpolations replaced. ValueError for one that leads nowhere."""
    try:
        settings = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        found = " ".join(str(error).split("object_type=")[0].split())
        raise ValueError(
            f"the configuration cannot be read ({found}); change or leave out what was set there"
        ) from error
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


def check_settings(config: DictConfig, name: str) -> None:
    """Refuse, before any work, values of a configuration that no run could have.

    Args:
        config: one of configs/`name`.yaml, with what the command line sets.
        name: train_dlm, train_policy, train_rl, train_twist, train_reward, train_preference, guide or sample.

    Raises:
        ValueError: names a key that is missing or outside its range, its value, and the range.
    """
    settings = resolved(config)
    _check_present(settings, name)
    check_ranges(settings, ranges_of(name))
    budgets = OmegaConf.select(config, "sampling.budgets")
    if budgets is not None and config.sampling.block_length is not None:
        raise ValueError(
            "sampling.budgets ends with one evaluation that writes all that is left, which sampling.block_length would not let "
            "it; leave one out"
        )
    check_device(str(config.device))
    for key in ("data.cache_dir", "prompts.cache_dir"):
        check_cache(OmegaConf.select(config, key), f"{key}={OmegaConf.select(config, key)}")
    check_wandb(os.environ.get("WANDB_MODE", OmegaConf.select(config, "wandb.mode")))


def check_wandb(mode: str | None) -> None:
    """Refuse to log online without a key: wandb would ask for one in the middle of the run, or fail."""
    if mode != "online" or os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_BASE_URL"):
        return
    file = Path(os.environ.get("NETRC", Path.home() / ".netrc"))
    if not file.is_file() or "wandb" not in file.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(
            "wandb.mode=online needs a key; run `wandb login`, set WANDB_API_KEY, or use wandb.mode=offline"
        )


@cache
def _own_keys(name: str) -> list[str]:
    """Keys of configs/`name`.yaml itself, without those of its groups, two sections deep."""
    own = OmegaConf.to_container(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=False)
    assert isinstance(own, dict)
    sections = {str(key): value for key, value in own.items() if key not in ("defaults", "hydra")}
    inside = [f"{section}.{key}" for section, value in sections.items() if section in SECTIONS and isinstance(value, dict)
              for key in value]  # fmt: skip
    return [*sections, *inside]


def _check_present(settings: dict[str, Any], name: str) -> None:
    """Refuse a configuration that lacks a key of its own file, or a value that has to be given."""
    for key in _own_keys(name):
        if found_at(settings, key) is ABSENT:
            raise ValueError(f"{key} was deleted and configs/{name}.yaml needs it; leave ~{key} out")
    for key in ranges_of(name):
        if found_at(settings, key) == MISSING:
            raise ValueError(f"{key} has to be given; add {key}=VALUE")


def check_epochs(config: DictConfig, overrides: list[str]) -> None:
    """Refuse training.epochs on a command line where training.n_iters, of an experiment say, decides how long a run is."""
    asked = [word for word in overrides if word.lstrip("+").startswith("training.epochs=")]
    if asked and not config.resume and config.training.n_iters is not None:
        raise ValueError(
            f"{asked[-1]} would do nothing beside training.n_iters={config.training.n_iters}; add training.n_iters=null, or "
            "leave it out"
        )


def updates_of(config: DictConfig) -> int | None:
    """The updates of a run by its configuration; None where its data decide how many there are."""
    training = config.training
    if "updates_per_epoch" in training:
        return 2**training.epochs if training.schedule == "exp2" else training.epochs * training.updates_per_epoch
    if training.n_iters is None:
        return None
    return training.n_iters * (OmegaConf.select(config, "algorithm.inner_updates") or 1)


def with_fitting_warmup(config: DictConfig, overrides: list[str]) -> DictConfig:
    """The configuration with a warm-up that the run outlasts.

    A warm-up on the command line stays, or is refused. One of an experiment or a default is made for the length beside it: where
    the command line leaves a run of less than five times the warm-up, it becomes a twentieth of the run, and a line on stderr
    says so.

    Raises:
        ValueError: a warm-up on the command line that the run does not outlast.
    """
    updates, warmup = updates_of(config), config.optim.warmup
    if config.resume or not updates or not warmup:
        return config
    given = {word.partition("=")[0].lstrip("+") for word in overrides}
    if "optim.warmup" in given:
        if warmup >= max(updates, 2):  # one update begins at the full rate
            length = (
                "this run" if "updates_per_epoch" in config.training else f"training.n_iters={config.training.n_iters}"
            )
            raise ValueError(
                f"optim.warmup={warmup} must be below the {updates} updates of {length}, or the learning rate never arrives; "
                "lower it, or leave it out"
            )
        return config
    if not given & {"training.n_iters", "training.epochs", "training.updates_per_epoch"} or 5 * warmup <= updates:
        return config
    config = config.copy()
    config.optim.warmup = updates // 20
    print(
        f"optim.warmup={warmup} is for a longer run; {config.optim.warmup} of {updates} updates here", file=sys.stderr
    )
    return config
