"""A run directory: configuration, checkpoints, metrics, samples; made, resumed in place, never left half written.

RUN/.hydra/{config,overrides}.yaml   RUN/checkpoints/checkpoint_N.pth   RUN/checkpoints-meta/checkpoint.pth (resume)
RUN/samples/iter_N/sample_*.txt      RUN/metrics.jsonl   RUN/logs/run.log   RUN/wandb/

Where RUN is a URL (s3://bucket/prefix), the run is made under output/ and copied there after each save (training/remote.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from training.processes import Processes
from training.remote import RESUME, Remote, is_url
from training.usage import composed, readable
from weights import CHECKSUM, checksum, load_checkpoint, named_tensors, not_finite

MAY_CHANGE = (
    "training.n_iters",
    "device",
    "wandb.mode",
    "training.log_freq",
)  # on resume; anything else is another run
MAY_CHANGE_TOO = {"train_twist": "training.epochs"}  # of a configuration whose n_iters follows from it
PLACES = ("run_dir", "resume")  # say where a run is, not what it is


def resumed_config(config: DictConfig, overrides: list[str], name: str) -> DictConfig:
    """The configuration to run: `config` itself, or, where `resume` names a run, the one that run was started with; keys that did
    not exist then have today's values. name: of the configuration, train_policy or train_dlm.

    Overrides given together with `resume` must agree with the run's own, but for `MAY_CHANGE` and `MAY_CHANGE_TOO`. resume=auto
    goes on with the run that is in run_dir, and begins one there where there is none. Raises ValueError that lists the
    differences.
    """
    if config.resume == "auto":
        if not config.run_dir:
            raise ValueError("resume=auto looks for a run in run_dir; give run_dir=DIRECTORY too")
        config.resume = config.run_dir if holds_run(config.run_dir) else None
    if not config.resume:
        return config
    if not holds_run(config.resume):
        raise ValueError(
            f"resume={config.resume} is not a run directory: {config.resume}/.hydra/config.yaml does not exist"
        )
    saved = OmegaConf.load(io.StringIO(content(config.resume, CONFIG).decode()))
    assert isinstance(saved, DictConfig)
    own = {
        "policy",
        "algorithm",
        "rl",
        "encoder",
        "preference",
        "twist",
    }  # by which the training scripts are told apart
    if missing := sorted(own & config.keys() ^ own & saved.keys()):
        raise ValueError(
            f"resume={config.resume} is a run of the other training script ({', '.join(missing)}); use that one"
        )
    differences = []
    started_with = OmegaConf.load(io.StringIO(content(config.resume, ".hydra/overrides.yaml").decode()))
    today = composed(name, list(started_with))
    OmegaConf.set_struct(today, False)
    saved = OmegaConf.merge(today, saved)
    assert isinstance(saved, DictConfig)
    for override in overrides:
        key = override.split("=", 1)[0].lstrip("+~").split("@")[0].replace("/", ".")
        if key == "resume" or (key == "run_dir" and config.run_dir == config.resume):
            continue
        if key == "experiment":  # not a value of the configuration: what it sets is
            if override not in started_with:
                differences.append(f"the run was not started with {override}")
            continue
        asked, was = OmegaConf.select(config, key), OmegaConf.select(saved, key)
        if key in (*MAY_CHANGE, MAY_CHANGE_TOO.get(name)):
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


CONFIG = ".hydra/config.yaml"


def holds_run(place: str) -> bool:
    return Remote(place).holds(CONFIG) if is_url(place) else (Path(place) / CONFIG).is_file()


def content(place: str, name: str) -> bytes:
    """A file of a run, in a directory or at a URL."""
    return Remote(place).read(name) if is_url(place) else (Path(place) / name).read_bytes()


def identity(place: str) -> str:
    """Which run it is: a digest of the configuration that it was started with, but for what may change."""
    config = OmegaConf.load(io.StringIO(content(place, CONFIG).decode()))
    for key in (*PLACES, *MAY_CHANGE):
        if OmegaConf.select(config, key) is not None:
            OmegaConf.update(config, key, None)
    return hashlib.sha256(OmegaConf.to_yaml(config).encode()).hexdigest()[:16]


class Run:
    """The directory of one training run; only the first process writes."""

    def __init__(self, config: DictConfig, overrides: list[str], processes: Processes):
        self.config, self.processes = config, processes
        stamp = time.strftime("%Y.%m.%d/%H%M%S")
        asked = config.resume or config.run_dir
        url = next((place for place in (asked, config.run_dir) if is_url(place)), None)
        self.remote = Remote(url) if url and processes.first else None
        directory = str(asked) if asked and not is_url(asked) else f"output/{stamp}"
        if processes.first and not config.resume and config.run_dir and holds_run(config.run_dir):
            raise ValueError(
                f"run_dir={config.run_dir} holds a run; resume={config.run_dir} goes on with it, another run_dir starts a "
                "new one"
            )
        if processes.first and directory != str(asked) and Path(directory).exists():
            directory += f"-{os.getpid()}"  # two runs began in one second
        self.directory = Path(processes.broadcast(directory))
        self.started = time.perf_counter()
        self.last: dict[str, float] = {}  # metrics, as they were logged last
        self.wandb = None
        if not processes.first:
            return
        for name in (".hydra", "checkpoints", "checkpoints-meta", "samples", "logs"):
            (self.directory / name).mkdir(parents=True, exist_ok=True)
        if not config.resume:
            OmegaConf.save(config, self.directory / ".hydra" / "config.yaml")
            OmegaConf.save(OmegaConf.create(overrides), self.directory / ".hydra" / "overrides.yaml")
        elif self.remote and is_url(config.resume):
            self.remote.fetch(self.directory)
        self.identity = identity(str(self.directory))
        if self.remote:
            self.remote.send(self.directory)  # a bucket that cannot be written to says so now
        if config.wandb.mode != "disabled":
            import wandb  # seconds to import: only where it is used

            self.wandb = wandb.init(
                project=config.wandb.project,
                name=OmegaConf.select(config, "wandb.name"),
                dir=str(self.directory),
                mode=os.environ.get("WANDB_MODE", config.wandb.mode),  # pyright: ignore[reportArgumentType]
                config=OmegaConf.to_container(config, resolve=True),  # pyright: ignore[reportArgumentType]
            )
        self.say(f"run directory {self.directory}" + (f", copied to {self.remote.url}" if self.remote else ""))

    def say(self, text: str) -> None:
        """One line to the terminal and to logs/run.log."""
        if self.processes.first:
            print(text, flush=True)
            with open(self.directory / "logs" / "run.log", "a", encoding="utf-8") as file:
                file.write(text + "\n")

    def log(self, step: int, metrics: dict[str, float], show: bool = True) -> None:
        """Append to metrics.jsonl and wandb. The record of a run that was resumed may hold a step twice: the last counts."""
        if not self.processes.first:
            return
        self.last |= metrics
        record = {"step": step, **metrics, "seconds": round(time.perf_counter() - self.started, 2)}
        with open(self.directory / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        if self.wandb is not None:
            self.wandb.log(metrics, step=step)
        if show:
            shown = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"step {step:6d} {shown} ({record['seconds']:.0f} s)")

    def samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """samples/iter_N: a text a file, and all that is known of each (`text`, rewards) as a line of samples.jsonl; a table in
        wandb."""
        if not self.processes.first:
            return
        directory = self.directory / "samples" / f"iter_{step}"
        directory.mkdir(parents=True, exist_ok=True)
        for number, record in enumerate(records):
            (directory / f"sample_{number}.txt").write_text(record["text"] + "\n", encoding="utf-8")
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        (directory / "samples.jsonl").write_text(lines, encoding="utf-8")
        if self.wandb is not None and records:
            import wandb

            columns: list[Any] = list(records[0])
            table = wandb.Table(columns=columns, data=[[record.get(name) for name in columns] for record in records])
            self.wandb.log({"samples": table}, step=step)

    def check(self, value: float, step: int, name: str = "loss") -> None:
        """Raises FloatingPointError where the loss (or `name`) is not a number, naming the step and the last good checkpoint."""
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name} is {value} at step {step}; {self._last_good()}")

    def _last_good(self) -> str:
        kept = self.directory / RESUME
        return f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint was written yet"

    def check_weights(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Raises FloatingPointError where a weight is not finite after update `step`: nothing is saved from there on."""
        if (name := not_finite(weights)) is not None:
            known = ", ".join(f"{key} {self.last[key]:.4g}" for key in ("loss", "lr", "grad_norm") if key in self.last)
            raise FloatingPointError(
                f"{name} holds numbers that are not finite after update {step} ({known or 'no loss yet'}), so nothing was saved; "
                f"{self._last_good()}; lower optim.lr"
            )

    def check_step(self, step: object, file: str) -> None:
        """Refuse a checkpoint whose step this run cannot have made."""
        record = self.directory / "metrics.jsonl"
        made = re.findall(
            r'^{"step": (\d+)', record.read_text(encoding="utf-8") if record.is_file() else "", re.MULTILINE
        )
        most = max([self.config.training.n_iters, *map(int, made)])
        if isinstance(step, bool) or not isinstance(step, int) or not 0 <= step <= most:
            raise ValueError(
                f"{file} is of step {step} and this run has made {most} at most; put back the run's own, or "
                "raise training.n_iters"
            )

    def save(self, state: dict[str, Any], snapshot: bool) -> None:
        """Write the resume checkpoint, and `checkpoints/checkpoint_{step}.pth` where it is a snapshot; both atomically. A storage
        that is out of reach is tried again at the next save; at the last, it is an error."""
        if not self.processes.first:
            return
        self.check_weights(named_tensors(state), state["step"])
        state["run"] = self.identity
        state[CHECKSUM] = checksum(state)
        targets = [self.directory / RESUME]
        if snapshot:
            targets.append(self.directory / "checkpoints" / f"checkpoint_{state['step']}.pth")
        for target in targets:
            part = target.with_suffix(".part")
            torch.save(state, part)
            part.replace(target)
        if self.remote:
            try:
                self.remote.send(self.directory)
            except ValueError as error:
                self.say(f"not copied, tried again at the next save: {error}")

    def restore(self, holds: str) -> dict[str, Any] | None:
        """What the resume checkpoint holds, or None for a new run. holds: what must be in it.

        Raises ValueError for a file that is damaged, no checkpoint of this script, or another run's.
        """
        if not self.config.resume:
            return None
        place = str(self.config.resume)
        if is_url(place):
            kept = Remote(place).checkpoint()  # by each process: they may share no disk
            source = None if kept is None else io.BytesIO(kept)
        else:
            source = path if (path := Path(place) / RESUME).exists() else None
        if source is None:
            return None
        with readable(f"{place}/{RESUME}"):
            state = load_checkpoint(source, f"{place}/{RESUME}")
        if not isinstance(state, dict) or not {holds, "optimizer", "ema", "step"} <= state.keys():
            found = sorted(map(str, state)) if isinstance(state, dict) else type(state).__name__
            raise ValueError(
                f"{place}/{RESUME} holds {found}, expected {holds!r}, 'optimizer', 'ema' and 'step': it is no checkpoint of "
                f"this script; put back the run's own, or copy the newest of {place}/checkpoints there"
            )
        if state.pop("run", None) not in (None, identity(place)):
            raise ValueError(
                f"{place}/{RESUME} is a checkpoint of another run than {place}/{CONFIG} describes; put back the run's own, "
                f"or copy the newest of {place}/checkpoints there"
            )
        self.check_step(state["step"], f"{place}/{RESUME}")
        if state["step"] >= self.config.training.n_iters:
            further = "training.epochs" if holds == "twist" else "training.n_iters"
            self.say(f"already at step {state['step']} of {self.config.training.n_iters}; {further}=N goes further")
        return state

    def stop(self, step: int) -> None:
        """Leave, after SIGTERM and a save, with the status that it has in a shell: 143. All processes together."""
        place = self.remote.url if self.remote else self.directory
        self.say(f"stopped by SIGTERM after step {step}, which is saved; resume={place} goes on")
        self.close()
        self.processes.barrier()
        raise SystemExit(128 + signal.SIGTERM)

    def close(self) -> None:
        if self.remote:
            self.remote.send(self.directory)
        if self.wandb is not None:
            self.wandb.finish()


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """A seed of its own for each step: a resumed run needs no saved generator. rank: for what may differ between processes."""
    return (seed * 1_000_003 + step) * 4_099 + rank
