"""A run directory: configuration, checkpoints, metrics, samples; made, resumed in place, never left half written.

RUN/.hydra/{config,overrides}.yaml   RUN/checkpoints/checkpoint_N.pth   RUN/checkpoints-meta/checkpoint.pth (resume)
RUN/samples/iter_N/sample_*.txt      RUN/metrics.jsonl   RUN/logs/run.log   RUN/wandb/
"""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from training.processes import Processes
from training.usage import composed, readable

MAY_CHANGE = (
    "training.n_iters",
    "device",
    "wandb.mode",
    "training.log_freq",
)  # on resume; anything else is another run


def resumed_config(config: DictConfig, overrides: list[str], name: str) -> DictConfig:
    """The configuration to run: `config` itself, or, where `resume` names a run, the one that run was started with; keys that did
    not exist then have today's values. name: of the configuration, train_policy or train_dlm.

    Overrides given together with `resume` must agree with the run's own, but for `MAY_CHANGE`.
    Raises ValueError that lists the differences.
    """
    if not config.resume:
        return config
    path = Path(config.resume) / ".hydra" / "config.yaml"
    if not path.is_file():
        raise ValueError(f"resume={config.resume} is not a run directory: {path} does not exist")
    saved = OmegaConf.load(path)
    assert isinstance(saved, DictConfig)
    if missing := sorted({"dlm", "algorithm"} & config.keys() ^ {"dlm", "algorithm"} & saved.keys()):
        raise ValueError(
            f"resume={config.resume} is a run of the other training script ({', '.join(missing)}); use that one"
        )
    differences = []
    started_with = OmegaConf.load(path.with_name("overrides.yaml"))
    today = composed(name, list(started_with))
    OmegaConf.set_struct(today, False)
    saved = OmegaConf.merge(today, saved)
    assert isinstance(saved, DictConfig)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~").split("@")[0].replace("/", ".")
        if key == "resume":
            continue
        if key == "experiment":  # not a value of the configuration: what it sets is
            if override not in started_with:
                differences.append(f"the run was not started with {override}")
            continue
        asked, was = OmegaConf.select(config, key), OmegaConf.select(saved, key)
        if key in MAY_CHANGE:
            OmegaConf.update(saved, key, asked, merge=False)
        elif asked != was:
            differences.append(f"{key}: the run has {was!r}, the command asks for {asked!r}")
    if differences:
        raise ValueError(
            f"resume={config.resume} was started with another configuration ({'; '.join(differences)}); "
            "leave these out, or start a new run"
        )
    saved.resume = config.resume
    return saved


class Run:
    """The directory of one training run; only the first process writes."""

    def __init__(self, config: DictConfig, overrides: list[str], processes: Processes):
        self.config, self.processes = config, processes
        stamp = time.strftime("%Y.%m.%d/%H%M%S")
        directory = str(config.resume or config.run_dir or f"output/{stamp}")
        if processes.first and not config.resume and Path(directory, ".hydra").exists():
            if config.run_dir:
                raise ValueError(
                    f"run_dir={directory} holds a run; resume={directory} goes on with it, another run_dir starts a new one"
                )
            directory += f"-{os.getpid()}"  # two runs began in one second
        self.directory = Path(processes.broadcast(directory))
        self.started = time.perf_counter()
        self.wandb = None
        if not processes.first:
            return
        for name in (".hydra", "checkpoints", "checkpoints-meta", "samples", "logs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if not config.resume:
            OmegaConf.save(config, self.directory / ".hydra" / "config.yaml")
            OmegaConf.save(OmegaConf.create(overrides), self.directory / ".hydra" / "overrides.yaml")
        if config.wandb.mode != "disabled":
            import wandb  # seconds to import: only where it is used

            self.wandb = wandb.init(
                project=config.wandb.project,
                name=OmegaConf.select(config, "wandb.name"),
                dir=str(self.directory),
                mode=os.environ.get("WANDB_MODE", config.wandb.mode),  # pyright: ignore[reportArgumentType]
                config=OmegaConf.to_container(config, resolve=True),  # pyright: ignore[reportArgumentType]
            )
        self.say(f"run directory {self.directory}")

    def say(self, text: str) -> None:
        """One line to the terminal and to logs/run.log."""
        if self.processes.first:
            print(text, flush=True)
            with open(self.directory / "logs" / "run.log", "a") as file:
                file.write(text + "\n")

    def log(self, step: int, metrics: dict[str, float], show: bool = True) -> None:
        """Append to metrics.jsonl and wandb. The record of a run that was resumed may hold a step twice: the last counts."""
        if not self.processes.first:
            return
        record = {"step": step, **metrics, "seconds": round(time.perf_counter() - self.started, 2)}
        with open(self.directory / "metrics.jsonl", "a") as file:
            file.write(json.dumps(record) + "\n")
        if self.wandb is not None:
            self.wandb.log(metrics, step=step)
        if show:
            shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"step {step:6d} {shown} ({record['seconds']:.0f} s)")

    def check(self, value: float, step: int, name: str = "loss") -> None:
        """Raises FloatingPointError where the loss (or `name`) is not a number, naming the step and the last good checkpoint."""
        if not math.isfinite(value):
            kept = self.directory / "checkpoints-meta" / "checkpoint.pth"
            where = f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint was written yet"
            raise FloatingPointError(f"the {name} is {value} at step {step}; {where}")

    def save(self, state: dict[str, Any], snapshot: bool) -> None:
        """Write the resume checkpoint, and `checkpoints/checkpoint_{step}.pth` where it is a snapshot; both atomically."""
        if not self.processes.first:
            return
        targets = [self.directory / "checkpoints-meta" / "checkpoint.pth"]
        if snapshot:
            targets.append(self.directory / "checkpoints" / f"checkpoint_{state['step']}.pth")
        for target in targets:
            part = target.with_suffix(".part")
            torch.save(state, part)
            part.replace(target)

    def restore(self) -> dict[str, Any] | None:
        """What the resume checkpoint holds, or None for a new run."""
        path = self.directory / "checkpoints-meta" / "checkpoint.pth"
        if not self.config.resume or not path.exists():
            return None
        with readable(path):
            state = torch.load(path, map_location="cpu", weights_only=True)
        if state["step"] >= self.config.training.n_iters:
            self.say(
                f"already at step {state['step']} of {self.config.training.n_iters}; training.n_iters=N goes further"
            )
        return state

    def close(self) -> None:
        if self.wandb is not None:
            self.wandb.finish()


def step_seed(seed: int, step: int, rank: int) -> int:
    """A seed of its own for each step and process: a resumed run needs no saved generator."""
    return (seed * 1_000_003 + step) * 4_099 + rank
