"""Settings that no run could have, drawn from every key of every configuration: does any of them end in a traceback?

    python -m benchmarks.fuzz_settings --count 2000

Each draw puts one wrong value (another type, null, an empty text, a negative, huge or non-finite number, a list, a section) in
the place of one key of one command, on a tiny model, and runs the command in this process with one update or one sample. A
command refuses by one sentence; whatever it accepts has to run. Prints counts and one line of JSON: draws, refused, run, and by
name what ended in a traceback, what was accepted though it is not finite, and what took longer than `--seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import random
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

import run_guide
import run_sample
import run_train_dlm
import run_train_policy
import run_train_preference
import run_train_reward
import run_train_rl
import run_train_twist
from training.ranges import ROWS, Whole
from training.settings import check_settings
from training.usage import composed, exit_on_bad_input

VALUES: list[Any] = [
    None, "", "abc", " ", -1, 0, 1.5, 10**12, 10**30, -1e308, 1e30, math.nan, math.inf, -math.inf, True, "1", [], [1], [math.nan],
    ["a", None], {"a": 1}, "é\n", "/no/such/place", "${nothing}",
]  # fmt: skip
FEW = [
    "training.n_iters=1",
    "training.log_freq=1",
    "training.eval_freq=1",
    "training.snapshot_freq=1",
    "wandb.mode=disabled",
]
CHAIN = ["dlm=chain", "data=chain", "reward=right", "data.steps=2", "data.answer_length=4", "eval.batch_size=2"]
DIT = ["policy=dit_confidence", "policy.hidden_dim=16", "policy.feedforward_dim=16", "policy.time_embed_dim=8"]
SHAPE = ["model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2"]
SMALL_DATA = ["training.batch_size=2", "eval.batch_size=2", "eval.samples=1", "eval.steps=2", "model.length=36"]
GROUPS = ["training.batch_size=4", "algorithm.group_size=2", "sampling.discrete_steps=2"]
SUDOKU = ["data=sudoku", "data.base_grids=3", "data.valid_grids=2", *SMALL_DATA]
# Of each command: overrides that make it tiny. A command whose objects take seconds to build stops behind its checks (`checks`).
CASES: dict[str, list[list[str]]] = {
    "train_dlm": [[*FEW, *SHAPE, *SUDOKU], [*FEW, "model=sedd", "model.cond_dim=8", *SHAPE, *SUDOKU]],
    "train_policy": [
        [*FEW, *CHAIN, *DIT, *GROUPS, "algorithm=grpo"],
        [*FEW, *CHAIN, *DIT, *GROUPS, "algorithm=ppo"],
        [*FEW, *CHAIN, *DIT, "training.batch_size=2", "algorithm=imitation", "algorithm.expert=leftmost"],
    ],
    "train_rl": [[
        *FEW, *CHAIN, "rl.batch_size=4", "rl.group_size=2", "rl.num_sigma_samples=1", "sampling.steps=2", "eval.samples=1",
    ]],
    "train_twist": [["target=infilling"], ["target=vader"], ["target=toxicity"], ["target=continuation"]],
    "train_reward": [["data.train=pairs.jsonl"]],
    "train_preference": [["data.train=pairs.jsonl", "init=smollm2"]],
    "guide": [["out=out", "prompts.file=prompts.jsonl"]],
    "sample": [["dlm=chain", "eval=false", "length=8"]],
}  # fmt: skip
PLACES = ("run_dir", "resume", "out", "json", "data.cache_dir", "prompts.cache_dir", "wandb")  # where a run would write


def checks(command: Callable[[DictConfig], Any], name: str) -> Callable[[DictConfig], Any]:
    """The checks of a command without its work."""

    def run(config: DictConfig) -> None:
        check_settings(config, name)
        command(config)

    return run


COMMANDS: dict[str, Callable[[DictConfig], Any]] = {
    "train_dlm": lambda config: run_train_dlm.main(config, []),
    "train_policy": lambda config: run_train_policy.main(config, []),
    "train_rl": lambda config: run_train_rl.main(config, []),
    "train_twist": checks(run_train_twist.check_twist, "train_twist"),
    "train_reward": checks(run_train_reward.check_reward, "train_reward"),
    "train_preference": checks(run_train_preference.check_preference, "train_preference"),
    "guide": run_guide.check_guide_run,
    "sample": run_sample.draw_samples,
}


def keys(config: DictConfig, before: str = "") -> list[str]:
    """Every key in dots, sections among them."""
    found = []
    for key, value in config.items_ex(resolve=False):
        found += [f"{before}{key}", *(keys(value, f"{before}{key}.") if isinstance(value, DictConfig) else [])]
    return found


@dataclass(frozen=True)
class Draw:
    """One wrong value of one key; `DELETED` takes the key away."""

    command: str
    case: int
    key: str
    value: Any

    def __str__(self) -> str:
        return f"{self.command}[{self.case}] {self.key}={self.value!r}"


DELETED = "<deleted>"


@dataclass
class Found:
    """What became of the draws."""

    draws: int = 0
    refused: int = 0
    failed: int = 0
    run: int = 0
    tracebacks: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


class TooSlow(Exception):
    """Raised by the alarm."""


def too_slow(*_: object) -> None:
    raise TooSlow


def base(command: str, case: int, folder: Path) -> DictConfig:
    """The tiny configuration that draws change."""
    config = composed(command, [*CASES[command][case], "device=cpu"])
    if "run_dir" in config:
        config.run_dir = str(folder / "run")
    return config


def changed(config: DictConfig, draw: Draw) -> DictConfig:
    """The configuration with the draw's value."""
    config = config.copy()
    OmegaConf.set_struct(config, False)
    *sections, last = draw.key.split(".")
    place = OmegaConf.select(config, ".".join(sections)) if sections else config
    if draw.value == DELETED:
        place.pop(last)
    else:
        place[last] = OmegaConf.create(draw.value) if isinstance(draw.value, list | dict) else draw.value
    OmegaConf.set_struct(config, True)
    return config


def is_finite(value: Any) -> bool:
    if isinstance(value, list | ListConfig):
        return all(map(is_finite, value))
    return not isinstance(value, float) or math.isfinite(value)


def attempt(draw: Draw, config: DictConfig, found: Found) -> None:
    """Run one draw, and count what became of it."""
    found.draws += 1
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said), exit_on_bad_input():
            COMMANDS[draw.command](config)
        found.run += 1
        if not is_finite(draw.value):
            found.not_finite.append(str(draw))
    except SystemExit as left:
        found.refused += left.code == 2
        found.failed += left.code != 2
    except TooSlow:
        found.slow.append(str(draw))
    except Exception as error:  # a traceback is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        found.tracebacks.append(
            f"{draw}: {type(error).__name__} {str(error)[:120]} ({Path(place.filename).name}:{place.lineno})"
        )


def fuzz(count: int, seed: int, seconds: int, known: tuple[str, ...] = tuple(CASES)) -> Found:
    """`count` draws, the same for one seed.

    Args:
        count: draws.
        seed: of the draws.
        seconds: after which a draw is stopped and counted as slow.
        known: commands to draw from, each as often as it has keys.
    """
    draw, found = random.Random(seed), Found()
    with tempfile.TemporaryDirectory() as directory:
        bases = {(name, case): base(name, case, Path(directory)) for name in known for case in range(len(CASES[name]))}
        places = [(name, case, key) for (name, case), config in bases.items() for key in keys(config)
                  if key.split(".")[0] not in PLACES and key not in PLACES]  # fmt: skip
        before = signal.signal(signal.SIGALRM, too_slow)
        try:
            for number in range(count):
                name, case, key = draw.choice(places)
                one = Draw(name, case, key, draw.choice([*VALUES, DELETED]))
                config = changed(bases[name, case], one)
                if "run_dir" in config:
                    config.run_dir = f"{directory}/run{number}"
                signal.alarm(seconds)
                attempt(one, config, found)
                signal.alarm(0)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=ROWS, default=2000, help="draws")
    parser.add_argument("--seed", type=Whole(0), default=0)
    parser.add_argument("--seconds", type=Whole(1, 3600), default=20, help="of one draw, after which it counts as slow")
    arguments = parser.parse_args()
    found = fuzz(arguments.count, arguments.seed, arguments.seconds)
    for kind in ("tracebacks", "not_finite", "slow"):
        for line in getattr(found, kind):
            print(f"{kind}: {line}")
    shown = {key: len(value) if isinstance(value, list) else value for key, value in vars(found).items()}
    print(f"{found.draws} draws: {found.refused} refused, {found.failed} stopped, {found.run} run, "
          f"{len(found.tracebacks)} tracebacks")  # fmt: skip
    print(json.dumps({"seed": arguments.seed, **shown}))


if __name__ == "__main__":
    main()
