"""Exit status of the commands: 2 for bad input, said in one sentence; 1 for a failure."""

from __future__ import annotations

import difflib
import math
import re
import sys
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf

CONFIGS = Path(__file__).parents[1] / "configs"


def _configs() -> AbstractContextManager:
    """Where configurations are looked for: a command that Hydra runs looks there already, and does not look twice."""
    if GlobalHydra.instance().is_initialized():
        return nullcontext()
    return initialize_config_dir(str(CONFIGS), version_base=None)


def composed(name: str, overrides: list[str]) -> DictConfig:
    """The configuration NAME with these overrides. ValueError says in one sentence what does not fit, and the nearest key."""
    try:
        with _configs():
            return compose(name, overrides)
    except HydraException as error:
        told = " ".join(str(error).split("Config search path")[0].split())
        unknown = re.search(r"Could not override '([\w.]+)'", told)
        near = ""
        if unknown:
            with _configs():
                known = _keys(compose(name))
            near = "".join(
                f"; did you mean {key}?" for key in difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.0)
            )
        raise ValueError(f"{' '.join(overrides)!r} does not fit configs/{name}.yaml: {told}{near}") from error


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Every key, in dots."""
    found = []
    for key, value in config.items_ex(resolve=False):
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return found


WHOLE = (
    "training.batch_size", "training.accum", "training.chunk", "training.n_iters", "training.log_freq", "training.eval_freq",
    "training.snapshot_freq", "training.snapshot_freq_for_preemption", "eval.batch_size", "sampling.discrete_steps",
    "sampling.length", "sampling.block_length", "sampling.refresh", "algorithm.group_size", "algorithm.inner_updates",
    "policy.num_heads", "policy.hidden_dim", "policy.num_blocks", "data.answer_length", "data.max_prompt_length", "data.count",
    "data.valid_rows", "sampling.steps", "eval.samples", "rl.batch_size", "rl.group_size", "rl.ppo_epochs", "rl.reward_freq",
    "rl.num_sigma_samples",
)  # fmt: skip
NUMBERS = (
    "optim.lr", "optim.weight_decay", "optim.grad_clip", "training.ema", "sampling.temperature", "reward.alpha", "algorithm.kl",
    "algorithm.clip", "eval.temperature", "rl.ppo_clip", "rl.kl_beta", "rl.baseline_decay", "rl.sandwich.beta", "rl.sandwich.mix",
)  # fmt: skip
LISTS = {"reward.functions": str, "reward.weights": float, "data.datasets": str}
CHOICES = {"model.dtype": ("float32", "bfloat16", "float16"), "optim.schedule": ("constant", "linear", "cosine")}


def check_settings(config: DictConfig) -> None:
    """Refuse, before any work, values of a training configuration that no run could have. A key that is not there, or null where
    that means something, is passed over."""
    for key in WHOLE:
        value = OmegaConf.select(config, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
            raise ValueError(f"{key}={value} must be a whole number of at least 1; change it")
    for key in NUMBERS:
        value = OmegaConf.select(config, key)
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0):
            raise ValueError(f"{key}={value} must be a number of at least 0; change it")
    for key, known in CHOICES.items():
        value = OmegaConf.select(config, key)
        if value is not None and value not in known:
            raise ValueError(f"{key}={value} is unknown; use one of {', '.join(known)}")
    if isinstance(config.seed, bool) or not isinstance(config.seed, int) or not 0 <= config.seed < 2**31:
        raise ValueError(f"seed={config.seed} must be a whole number from 0 to {2**31 - 1}; change it")
    for key, kind in LISTS.items():
        value = OmegaConf.select(config, key)
        if value is not None and not (isinstance(value, ListConfig) and all(_is_a(kind, item) for item in value)):
            what = "names" if kind is str else "numbers"
            raise ValueError(f"{key}={value} must be a list of {what}, in brackets: {key}=[A,B]; change it")
    budgets = OmegaConf.select(config, "sampling.budgets")
    if budgets is not None and not (
        isinstance(budgets, ListConfig) and len(budgets) and all(isinstance(b, int) and b >= 1 for b in budgets)
    ):
        raise ValueError(f"sampling.budgets={budgets} must be a list of evaluations, each at least 1, such as [2,4,8]")
    if budgets is not None and config.sampling.block_length is not None:
        raise ValueError(
            "sampling.budgets ends with one evaluation that writes all that is left, which sampling.block_length would not let "
            "it; leave one out"
        )
    check_device(str(config.device))


def _is_a(kind: type, value: object) -> bool:
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_device(device: str) -> None:
    """Refuse a device that is unknown or that this machine does not have."""
    named = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if named is None:
        raise ValueError(f"device={device} is unknown; use auto, cpu or cuda (one of several: cuda:0, cuda:1, ...)")
    if not device.startswith("cuda"):
        return
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards == 0:
        raise ValueError(f"device={device} but this machine offers no CUDA device; use cpu")
    if named[1] is not None and int(named[1]) >= cards:
        there = "only cuda:0" if cards == 1 else f"cuda:0 to cuda:{cards - 1}"
        raise ValueError(f"device={device} but this machine offers {there}; choose a device that exists")


def device_of(name: str) -> torch.device:
    """The device of that name; auto: a CUDA device where there is one. ValueError as in `check_device`."""
    check_device(name)
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(chosen if name == "auto" else name)


@contextmanager
def readable(file: Path | str):
    """A checkpoint that is cut off or is none ends in one sentence that names it."""
    try:
        yield
    except Exception as error:  # what junk makes a parser say is anything
        if type(error) is ValueError:  # ours, which says more
            raise
        told = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(
            f"{file} cannot be read ({told[:120]}); it is damaged or no checkpoint, give another"
        ) from error


def check_overrides(name: str) -> None:
    """Refuse, before Hydra does at length, overrides on the command line that do not fit. Hydra's own flags are left to it."""
    overrides = sys.argv[1:]
    if not any(word.startswith("-") for word in overrides):
        composed(name, overrides)


@contextmanager
def exit_on_bad_input():
    """ValueError is bad input: its sentence goes to stderr and the status is 2. FloatingPointError (a loss that is not a
    number) is a failure: status 1. Anything else is a defect and keeps its traceback."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
