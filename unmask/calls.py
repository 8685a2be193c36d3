"""A call of a training function: its arguments as settings of a command, and the command that it starts or resumes."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Mapping
from functools import cached_property
from importlib import import_module
from pathlib import Path
from typing import Any

from training.compatibility import translated
from training.ranges import ABSENT, found_at
from training.run import CONFIG, check_holds_run, chooses, content, new_directory, stored_overrides
from training.stored import settings as stored_settings
from training.terminal import quietly
from training.usage import composed, override
from unmask.runs.objects import Objects

Settings = Mapping[str, Any]
PLAIN = re.compile(r"[A-Za-z_]\w*")  # text that Hydra reads as itself without quotes, but for
OTHER_VALUES = ("true", "false", "null", "nan", "inf", "none", "yes", "no", "on", "off")
MODEL_KEYS = ("dlm", "dlm.path", "dlm.model_type")  # settings of commands that name a model; a function has its object


class Call:
    """A call of a training function, such as `train_policy`, which runs the command of the same name.

    The function passes each argument to `choose`. `run` starts the command with these settings and the caller's `settings`, or
    resumes a run. A resumed run keeps its stored settings, except for arguments that the caller gives.

    Args:
        function: gives the name of the command, and the defaults of the arguments.
        resume: a run directory or URL to resume; None: a new run.
        settings: other settings of the caller, by dotted key or nested.

    Raises:
        ValueError: `settings` is not a mapping, or `resume` is not a run.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        run_dir: str | Path | None,
        resume: str | Path | None,
        quiet: bool,
        settings: Any,
    ):
        self.name, self.quiet = function.__name__, quiet
        self.defaults = {name: of.default for name, of in inspect.signature(function).parameters.items()}
        self.settings = flat({} if settings is None else settings)
        self.resume = None if resume is None else str(resume)
        self.chosen: dict[str, Any] = {}
        self.given: set[str] = set()  # keys of `chosen` whose argument is not at its default
        self.stored: Mapping[str, Any] = {}
        if self.resume is not None:
            check_holds_run(self.resume)
            self.stored = stored_settings(content(self.resume, CONFIG), f"{self.resume}/{CONFIG}")
        self.choose("run_dir", run_dir)
        self.run_dir = self.settings.pop("run_dir", run_dir)

    @cached_property
    def place(self) -> str:
        """The run directory or URL; a new run without `run_dir` gets a new directory."""
        return str(self.resume or self.run_dir or new_directory())

    def choose(self, argument: str, value: Any, chosen: Settings | None = None) -> None:
        """Choose settings by an argument. chosen: the settings; None: the setting of the same name.

        Raises:
            ValueError: the caller's `settings` have another value. A setting replaces an argument at its default.
        """
        chosen = {argument: value} if chosen is None else chosen
        self.chosen |= chosen
        default = self.defaults[argument]
        if type(value) is type(default) and value == default:
            return
        self.given |= chosen.keys()
        for key in chosen.keys() & self.settings.keys():
            if str(self.settings[key]) != str(chosen[key]):
                raise ValueError(
                    f"settings has {key}={self.settings[key]} and the argument {argument} sets {key}={chosen[key]}; give one"
                )

    def choose_model(self, path: str, key: str, device: object) -> None:
        """Choose the model. key: the setting that names its path.

        Raises:
            ValueError: the caller's `settings` name a model.
        """
        for other in (*MODEL_KEYS, key):
            if other in self.settings:
                raise ValueError(
                    f"settings has {other}={self.settings[other]} and the argument model is {path}; leave the setting out"
                )
        self.choose("model", path, {key: path, "device": str(device)})

    def choose_length(self, iterations: int | None, default: int) -> None:
        """Choose the number of updates. There is one evaluation and one snapshot, at the end, unless `settings` has others."""
        count = self.settings.get("training.n_iters", default) if iterations is None else iterations
        self.choose("iterations", iterations, {"training.n_iters": count})
        self.chosen |= {"training.eval_freq": count, "training.snapshot_freq": count}

    def effective(self, argument: str, value: Any, key: str) -> Any:
        """Return the value that the setting `key` will have: of an argument at its default, that of `settings` or of the resumed
        run."""
        if value != self.defaults[argument]:
            return value
        found = found_at(self.stored, key)
        return self.settings.get(key, value if found is ABSENT else found)

    def run(self, *objects: Objects) -> Path:
        """Start or resume the run; return its directory. The result is written at the end of the run."""
        if self.resume is None:
            overrides = words({"wandb.mode": "disabled", **self.chosen, "run_dir": self.place, **self.settings})
        else:
            given = {key: value for key, value in self.chosen.items() if key in self.given} | self.settings
            files = [
                word for word in stored_overrides(self.resume) if chooses(word)
            ]  # in which the keys of `given` are
            files = [word for word in files if word.partition("=")[0] not in given]
            overrides = [*files, *words({"resume": self.resume, **given})]
        overrides = translated(overrides, self.name)
        run = import_module(f"unmask.runs.{self.name}").run  # late: the runs of rewards import trl
        with quietly(self.quiet):
            return run(composed(self.name, overrides), overrides, *objects)


def flat(settings: Any, before: str = "") -> dict[str, Any]:
    """Return settings by dotted key, without nesting: {"policy": {"layers": 2}} is {"policy.layers": 2}.

    Raises:
        ValueError: `settings` is not a mapping.
    """
    if not isinstance(settings, Mapping):
        raise ValueError(
            f"settings={settings!r} is of type {type(settings).__name__}; give a dictionary, such as {{'optim.lr': 1e-4}}"
        )
    found: dict[str, Any] = {}
    for key, value in settings.items():
        found |= flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return found


def words(settings: Settings) -> list[str]:
    """Return settings by dotted key or nested as overrides of Hydra: {"optim.lr": 1e-3, "policy": "hidden_mlp"}."""
    found: list[str] = []
    for key, value in flat(settings).items():
        if isinstance(value, str | Path):
            is_word = PLAIN.fullmatch(str(value)) is not None and str(value).lower() not in OTHER_VALUES
            found.append(f"{key}={value}" if is_word else override(key, str(value)))
        else:
            found.append(f"{key}={json.dumps(value)}")
    return found
