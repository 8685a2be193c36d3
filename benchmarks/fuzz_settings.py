"""Draw invalid settings from every key of every configuration and from every flag, and count the tracebacks that they cause.

    python -m benchmarks.fuzz_settings --count 2000

Each draw replaces the value of one key or flag of one command by a wrong one (another type, null, an empty text, a negative, huge
or non-finite number, a list, a section, a path). The command runs in this process on a tiny model, with one update or one sample.
It must refuse the value in one sentence or run. The benchmark prints counts and one line of JSON: draws, refused draws, completed
runs, and the names of tracebacks, of accepted values that are not finite, and of runs that took longer than `--seconds`.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import json
import math
import random
import runpy
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from omegaconf import DictConfig, ListConfig, OmegaConf

from rl.settings import PreferenceRunSettings, RewardRunSettings
from training.fields import Settings
from training.ranges import ROWS, Whole
from training.usage import CONFIGS, composed, exit_on_bad_input
from twist.settings import TwistTrainingSettings
from unmask.build import read_settings
from unmask.runs import guide, train_dlm, train_policy, train_preference, train_reward, train_rl, train_twist
from unmask.runs import sample as sample_run

ROOT = CONFIGS.parent

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
GROUPS = ["training.batch_size=4", "algorithm.group_size=2", "sampler.steps=2"]
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
        *FEW, *CHAIN, "rl.batch_size=4", "rl.group_size=2", "rl.num_sigma_samples=1", "sampler.steps=2", "eval.samples=1",
    ]],
    "train_twist": [["target=infilling"], ["target=vader"], ["target=toxicity"], ["target=continuation"]],
    "train_reward": [["data.train=pairs.jsonl"]],
    "train_preference": [["data.train=pairs.jsonl", "init=smollm2"]],
    "guide": [["out=out", "prompts.file=prompts.jsonl"]],
    "sample": [["dlm=chain", "eval=false", "length=8"]],
}  # fmt: skip
PLACES = ("run_dir", "resume", "out", "json", "data.cache_dir", "prompts.cache_dir", "wandb")  # where a run would write


def checks(command: Callable[[Any], Any], cls: type[Settings]) -> Callable[[DictConfig], Any]:
    """Run the checks of a command without its work."""

    def run(config: DictConfig) -> None:
        command(read_settings(cls, config))

    return run


COMMANDS: dict[str, Callable[[DictConfig], Any]] = {
    "train_dlm": lambda config: train_dlm.run(config, []),
    "train_policy": lambda config: train_policy.run(config, []),
    "train_rl": lambda config: train_rl.run(config, []),
    "train_twist": checks(train_twist.check_twist, TwistTrainingSettings),
    "train_reward": checks(train_reward.check_reward, RewardRunSettings),
    "train_preference": checks(train_preference.check_preference, PreferenceRunSettings),
    "guide": guide.check_guide_run,
    "sample": sample_run.draw_samples,
}


@dataclass(frozen=True)
class Draw:
    """One wrong value of one key or flag; `DELETED` removes the key. is_number: the key is a number, so nan and inf must be
    refused."""

    command: str
    case: int
    key: str
    value: Any
    is_number: bool = True

    def __str__(self) -> str:
        return f"{self.command}[{self.case}] {self.key}={self.value!r}"


DELETED = "<deleted>"


# ------------------------------------------------------------------------------------------------------------------- flags


TEXTS = [
    "", " ", "abc", "-1", "0", "1.5", "1000000000000", "1" + 30 * "0", "-1e308", "1e30", "nan", "inf", "-inf", "true", "null",
    "[1]", "1,2", "a=b", "é\n", "\udcff", "${nothing}", "[MASK]", ".", "FILE", "FILE/x", "/proc/none", "x" * 300,
]  # fmt: skip
CHAIN_MODEL, CAUSAL, STORIES = (str(ROOT / "example" / name) for name in ("chain", "stories_causal", "stories"))
FEW_SAMPLES = ["--length", "8", "--steps", "2", "--no-eval", "--device", "cpu"]
ANSWERS = ["--red", "red.json", "--blue", "blue.json", "--judge", "brevity", "--retries", "0", "--out", "out"]
# Of each command: command lines that make it tiny. Paths are of the directory that `flag_files` fills.
LINES: dict[str, list[list[str]]] = {
    "unmask sample": [
        ["--model", CHAIN_MODEL, *FEW_SAMPLES, "--strategy", "threshold", "--prompt", "3 A"],
        ["--model", CAUSAL, *FEW_SAMPLES, "--strategy", "args", "--reward", "brevity", "--k", "2", "--beta", "1"],
        ["--model", CHAIN_MODEL, *FEW_SAMPLES, "--strategy", "fk", "--reward", "brevity", "--particles", "2"],
    ],
    "unmask evaluate": [
        ["--model", CHAIN_MODEL, "--strategy", "threshold", "--settings", "0.5", "--n_test", "2", "--length", "8",
         "--batch_size", "2", "--device", "cpu", "--out", "out"],
        ["--model", CHAIN_MODEL, "--policy", str(ROOT / "example" / "chain_policy"), "--n_test", "2", "--length",
         "8", "--device", "cpu", "--out", "out"],
        ["--task", "pairwise", *ANSWERS],
    ],
    "unmask aup": [
        ["board.yaml"], ["board.yaml", "--add", "a=points.json", "--task", "t", "--alpha", "2", "--save", "new.yaml"],
    ],
    "unmask perplexity": [["--model", STORIES, "--data", "texts.txt", "--rows", "2", "--length", "8", "--noises", "2",
                        "--device", "cpu"]],
    "unmask make-formulas": [["--rows", "3", "--out", "out"]],
    "unmask make-preferences": [["--model", CAUSAL, "--prefer", "brevity", "--texts", "texts.txt", "--words", "2", "--count", "2",
                              "--samples", "2", "--length", "8", "--device", "cpu", "--out", "out"]],
    "unmask make-stories": [
        ["--out", "stories.jsonl.gz", "--count", "1", "--device", "cpu"], ["--split", "texts.jsonl.gz", "--out", "out"],
    ],
    "unmask demo": [["--out", "out", "--iterations", "1"]],
}  # fmt: skip
# What takes seconds and is made behind the checks: a command that has come so far ends with status 0.
HEAVY = ("evaluation.text.load_judge", "evaluation.text.default_judge")


class Found(Exception):
    """Carries the parser of a command out of it."""


def parser_of(command: str, *words: str) -> argparse.ArgumentParser:
    """Return the parser of a command, or of a module of the repository by its path, after a start with these arguments."""

    def stop(self: argparse.ArgumentParser, *_: object) -> None:
        raise Found(self)

    try:
        with mock.patch.multiple(argparse.ArgumentParser, parse_args=stop, parse_known_args=stop):
            started(command, list(words))
    except Found as found:
        return found.args[0]
    raise RuntimeError(f"{command} {' '.join(words)} parses no flags")


def started(command: str, words: list[str]) -> None:
    """Start a command, or a module of the repository by its path, in this process, as from a command line."""
    interrupt = signal.getsignal(signal.SIGINT)
    module = ROOT / f"{command}.py"
    file, argv = (
        (module, words)
        if module.is_file()
        else (ROOT / "unmask" / "__main__.py", [command.removeprefix("unmask "), *words])
    )
    try:
        with mock.patch.object(sys, "argv", [str(file), *argv]):
            runpy.run_path(str(file), run_name="__main__")
    finally:
        signal.signal(signal.SIGINT, interrupt)


def flag_files(folder: Path) -> None:
    """Write the files that `LINES` name."""
    folder.mkdir()
    texts = ["Once upon a time there was a cat.", "The dog ran home to eat."] * 4
    (folder / "texts.txt").write_text("\n".join(texts), encoding="utf-8")
    with gzip.open(folder / "texts.jsonl.gz", "wt", encoding="utf-8") as file:
        file.writelines(json.dumps({"text": text}) + "\n" for text in texts)
    for name in ("red", "blue"):
        (folder / f"{name}.json").write_text(json.dumps([{"prompt": "p", "result": name}]), encoding="utf-8")
    (folder / "board.yaml").write_text("t: {m: [[1, 50], [2, 48]]}\n", encoding="utf-8")
    (folder / "points.json").write_text("[[1, 60], [3, 58]]", encoding="utf-8")
    (folder / "FILE").write_text("a file\n", encoding="utf-8")


def changed_line(line: list[str], draw: Draw) -> list[str]:
    """Return the command line with the draw's value, as `--flag=VALUE`, so that a value may begin with a hyphen."""
    kept, words = [], iter(line)
    for word in words:
        if word != draw.key:
            kept.append(word)
        elif word in line:  # with its value
            next(words)
    if draw.value == DELETED:
        return kept
    return [*kept, draw.value if not draw.key.startswith("-") else f"{draw.key}={draw.value}"]


def flags_of(command: str, case: int) -> list[tuple[str, bool]]:
    """Return the name of every flag of a command (for an argument without a name, its help), and whether it takes a number."""
    line = LINES[command][case]
    parser = parser_of(command, *(line[:2] if line[0] == "--task" else []))
    return [(next(iter(action.option_strings), action.dest), action.type not in (None, Path))
            for action in parser._actions if action.dest != "help"]  # fmt: skip


def run_line(draw: Draw, folder: Path) -> None:
    """Run one draw of a flag, in a separate directory."""
    flag_files(folder)
    done = mock.Mock(side_effect=SystemExit(0))
    with contextlib.chdir(folder), contextlib.ExitStack() as patched:
        for name in HEAVY:
            patched.enter_context(mock.patch(name, done))
        patched.enter_context(mock.patch("evaluation.report.plot_pareto"))  # a second each
        started(draw.command, changed_line(LINES[draw.command][draw.case], draw))


# ------------------------------------------------------------------------------------------------------------------- draws


def keys(config: DictConfig, before: str = "") -> list[str]:
    """Return every key, including sections, as a dotted path."""
    found = []
    for key, value in config.items_ex(resolve=False):
        found += [f"{before}{key}", *(keys(value, f"{before}{key}.") if isinstance(value, DictConfig) else [])]
    return found


@dataclass
class Counts:
    """Outcomes of the draws."""

    draws: int = 0
    refused: int = 0
    failed: int = 0
    run: int = 0
    tracebacks: list[str] = field(default_factory=list)
    not_finite: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


class TooSlow(Exception):
    """Raised by the alarm when a draw takes too long."""


def too_slow(*_: object) -> None:
    raise TooSlow


def base(command: str, case: int, folder: Path) -> DictConfig:
    """Return the tiny configuration that draws change."""
    config = composed(command, [*CASES[command][case], "device=cpu"])
    if "run_dir" in config:
        config.run_dir = str(folder / "run")
    return config


def changed(config: DictConfig, draw: Draw) -> DictConfig:
    """Change the configuration in place to the draw's value, and return it."""
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


def run_settings(draw: Draw, config: DictConfig) -> None:
    """Run one draw of a key."""
    with exit_on_bad_input():
        COMMANDS[draw.command](changed(config, draw))


def attempt(draw: Draw, work: Callable[[], Any], found: Counts) -> None:
    """Run one draw, and count its outcome."""
    found.draws += 1
    output = io.StringIO()
    status: Any = 0
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            work()
    except SystemExit as left:
        status = left.code
    except TooSlow:
        found.slow.append(str(draw))
        return
    except Exception as error:  # a traceback is what is looked for
        place = traceback.extract_tb(error.__traceback__)[-1]
        found.tracebacks.append(
            f"{draw}: {type(error).__name__} {str(error)[:120]} ({Path(place.filename).name}:{place.lineno})"
        )
        return
    found.refused += status == 2
    found.failed += status not in (0, None, 2)
    found.run += status in (0, None)
    if status in (0, None) and draw.is_number and not is_finite(draw.value):
        found.not_finite.append(str(draw))


def every_place(known: tuple[str, ...], folder: Path) -> tuple[dict[tuple[str, int], DictConfig], list[Draw]]:
    """Return the tiny configurations, and a draw without a value for every key and flag of the commands `known`."""
    bases = {
        (name, case): base(name, case, folder) for name in known if name in CASES for case in range(len(CASES[name]))
    }
    places = [Draw(name, case, key, None) for (name, case), config in bases.items() for key in keys(config)
              if key.split(".")[0] not in PLACES and key not in PLACES]  # fmt: skip
    places += [Draw(name, case, flag, None, is_number) for name in known if name in LINES
               for case in range(len(LINES[name])) for flag, is_number in flags_of(name, case)]  # fmt: skip
    return bases, places


def fuzz(count: int, seed: int, seconds: int, known: tuple[str, ...] = (*CASES, *LINES)) -> Counts:
    """Run `count` draws; the same seed gives the same draws.

    Args:
        count: number of draws.
        seed: of the draws.
        seconds: after which a draw is stopped and counted as slow.
        known: commands to draw from, each in proportion to its number of keys or flags.
    """
    draw, found = random.Random(seed), Counts()
    with tempfile.TemporaryDirectory() as directory:
        bases, places = every_place(known, Path(directory))
        before = signal.signal(signal.SIGALRM, too_slow)
        try:
            for number in range(count):
                place, folder = draw.choice(places), Path(directory) / f"run{number}"
                is_flag = place.command in LINES
                one = replace(place, value=draw.choice([*(TEXTS if is_flag else VALUES), DELETED]))
                if is_flag:
                    work = partial(run_line, one, folder)
                else:
                    config = bases[one.command, one.case].copy()
                    if "run_dir" in config:
                        config.run_dir = str(folder)
                    work = partial(run_settings, one, config)
                signal.alarm(seconds)
                attempt(one, work, found)
                signal.alarm(0)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=ROWS, default=2000, help="draws")
    parser.add_argument("--seed", type=Whole(0), default=0)
    parser.add_argument(
        "--known", nargs="+", choices=[*CASES, *LINES], default=[*CASES, *LINES], help="commands to draw from"
    )
    parser.add_argument("--seconds", type=Whole(1, 3600), default=20, help="of one draw, after which it counts as slow")
    arguments = parser.parse_args()
    found = fuzz(arguments.count, arguments.seed, arguments.seconds, tuple(arguments.known))
    for kind in ("tracebacks", "not_finite", "slow"):
        for line in getattr(found, kind):
            print(f"{kind}: {line}")
    summary = {key: len(value) if isinstance(value, list) else value for key, value in vars(found).items()}
    print(f"{found.draws} draws: {found.refused} refused, {found.failed} stopped, {found.run} run, "
          f"{len(found.tracebacks)} tracebacks")  # fmt: skip
    print(json.dumps({"seed": arguments.seed, **summary}))


if __name__ == "__main__":
    main()
