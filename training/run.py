"""A run directory: configuration, checkpoints, metrics, samples; made, resumed in place, never left half written.

RUN/.hydra/{config,overrides}.yaml   RUN/checkpoints/checkpoint_N.pth   RUN/checkpoints-meta/checkpoint.pth (resume)
RUN/samples/iter_N/sample_*.txt      RUN/metrics.jsonl   RUN/curves.png      RUN/logs/{run.log,wandb_id}   RUN/wandb/
RUN/lock (while it runs)

Where RUN is a URL (s3://bucket/prefix), the run is made under output/ and copied there after each save (training/remote.py).
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import re
import secrets
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from training.files import append_line, check_place, make_directory, replacing, sweep, whole_lines, write_text, writing
from training.lock import Lock
from training.processes import Processes
from training.remote import RESUME, Remote, is_url
from training.storage import CHECKSUM, checksum, load_checkpoint, named_tensors, not_finite
from training.stored import (
    PLACES,
    as_written,
    configuration,
    parsed_json,
    parsed_yaml,
    read_bytes,
    replace_at,
    settings,
    value_at,
)
from training.terminal import print_line
from training.usage import CONFIGS, composed, readable

MAY_CHANGE = (
    "training.n_iters",
    "device",
    "wandb.mode",
    "training.log_freq",
)  # on resume; anything else is another run
OWN_SECTIONS = {
    "policy",
    "algorithm",
    "rl",
    "encoder",
    "preference",
    "twist",
    "quality",
}  # each of one training command
MAY_CHANGE_TOO = {"train_twist": "training.epochs"}  # of a configuration whose n_iters follows from it


def resumed_config(config: DictConfig, overrides: list[str], name: str) -> DictConfig:
    """Return the configuration to run: `config`, or, if `resume` names a run, the one of that run, with defaults for newer
    keys.

    Overrides given together with `resume` must agree with the run's own, except `MAY_CHANGE` and `MAY_CHANGE_TOO`.
    resume=auto continues the run in run_dir, and begins one there if there is none.

    Args:
        name: of the configuration, train_policy or train_dlm.

    Raises:
        ValueError: lists the differing keys.
    """
    _check_places(config)
    if not config.resume:
        return config
    check_holds_run(config.resume)
    keys = [override.split("=", 1)[0].lstrip("+~").split("@")[0].replace("/", ".") for override in overrides]
    stored, now = content(config.resume, CONFIG), OmegaConf.to_container(config, resolve=False)
    named = f"{config.resume}/{CONFIG}"
    text = settings(stored, named)
    repeated = [
        key for key in keys if isinstance(value_at(text, key), str) and value_at(text, key) == value_at(now, key)
    ]
    saved = configuration(stored, named, repeated)
    _check_command(config, saved)
    started_with = stored_overrides(config.resume)
    today = composed(name, [word for word in started_with if chooses(word)])
    OmegaConf.set_struct(today, False)
    check_groups(saved, today, named)
    saved = OmegaConf.merge(today, saved)
    assert isinstance(saved, DictConfig)
    free = [*MAY_CHANGE, *repeated, *([MAY_CHANGE_TOO[name]] if name in MAY_CHANGE_TOO else [])]
    differences = _take_over(saved, config, list(zip(overrides, keys, strict=True)), started_with, free)
    if differences:
        raise ValueError(
            f"resume={config.resume} was started with another configuration ({'; '.join(differences)}); "
            "leave these out, or start a new run"
        )
    _print_left_out(text, now, named)
    for key in PLACES:
        if OmegaConf.select(saved, key) is not None or OmegaConf.select(config, key) is not None:
            OmegaConf.update(saved, key, OmegaConf.select(config, key), merge=False)
    return saved


def _check_places(config: DictConfig) -> None:
    """Replace resume=auto by the run in run_dir, if there is one. ValueError for a place that cannot be used as requested."""
    if config.resume == "auto":
        if not config.run_dir:
            raise ValueError("resume=auto looks for a run in run_dir; give run_dir=DIRECTORY too")
        config.resume = config.run_dir if holds_run(config.run_dir) else None
    if place := next((key for key in ("resume", "run_dir") if config[key] and not is_url(config[key])), None):
        check_place(config[place], f"{place}={config[place]}")
    if not config.resume and config.run_dir and holds_run(config.run_dir):
        raise ValueError(
            f"run_dir={config.run_dir} holds a run; resume={config.run_dir} goes on with it, another run_dir starts a "
            "new one"
        )


def _check_command(config: DictConfig, saved: DictConfig) -> None:
    """Refuse a run of another command: ValueError."""
    if missing := sorted(OWN_SECTIONS & config.keys() ^ OWN_SECTIONS & saved.keys()):
        raise ValueError(
            f"resume={config.resume} is a run of the other training script ({', '.join(missing)}); use that one"
        )


def _take_over(
    saved: DictConfig, config: DictConfig, overrides: list[tuple[str, str]], started_with: list[str], free: list[str]
) -> list[str]:
    """Set the overridden keys that may change in the configuration of the run, and describe the others that differ.

    Args:
        overrides: each with its key.
        started_with: overrides that the run was started with.
        free: keys that may change.
    """
    differences = []
    for override, key in overrides:
        if key in PLACES or key.split(".")[0] in PLACES:
            if key == "run_dir" and config.run_dir not in (None, config.resume) and not is_url(config.run_dir):
                differences.append(f"run_dir: a run goes on where it is, the command asks for {config.run_dir!r}")
            continue
        if key == "experiment":  # not a value of the configuration: what it sets is
            if override not in started_with:
                differences.append(f"the run was not started with {override}")
            continue
        if override in started_with and chooses(override):  # keys in that file may differ by other overrides
            continue
        requested, was = OmegaConf.select(config, key), OmegaConf.select(saved, key)
        if key in free:
            OmegaConf.update(saved, key, requested, merge=False)
        elif requested != was:
            differences.append(f"{key}: the run has {was!r}, the command asks for {requested!r}")
    return differences


def _print_left_out(text: object, now: object, named: str) -> None:
    """Print the keys of paths and names in the stored configuration that the command does not set: they are not used."""
    left_out = {
        key: value_at(text, key) for key in ("run_dir", "data.cache_dir", "wandb.project", "wandb.name", "wandb.entity")
    }
    if not is_url(left_out["run_dir"]):  # a directory is the one of `resume`
        left_out["run_dir"] = None
    if left := [f"{key}={value}" for key, value in left_out.items() if value not in (None, value_at(now, key))]:
        print_line(f"not taken from {named}, give it again to use it: {', '.join(left)}", on_stderr=True)


def resolved(config: DictConfig) -> dict[str, Any]:
    """Return the configuration as nested dictionaries with interpolations replaced. ValueError for one without a target."""
    try:
        settings = OmegaConf.to_container(config, resolve=True)
    except OmegaConfBaseException as error:
        found = " ".join(str(error).split("object_type=")[0].split())
        raise ValueError(
            f"the configuration cannot be read ({found}); change or leave out what was set there"
        ) from error
    assert isinstance(settings, dict)
    return {str(key): value for key, value in settings.items()}


CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"


def stored_overrides(place: str) -> list[str]:
    """Return the overrides with which a run was started."""
    words = parsed_yaml(content(place, OVERRIDES), f"{place}/{OVERRIDES}")
    return [str(word) for word in words] if isinstance(words, list) else []


def chooses(override: str) -> bool:
    """Return whether a stored override selects a file of configs/, or removes a key of a policy. The values of others are
    in the stored configuration.
    """
    group, _, name = override.lstrip("+").partition("=")
    plain = re.fullmatch(r"[\w/@.]+", group) and re.fullmatch(r"[\w-]+", name)
    chosen = bool(plain) and (CONFIGS / group.split("@")[0] / f"{name}.yaml").is_file()
    return chosen or re.fullmatch(r"~policy\.[\w.]+", override) is not None


def check_groups(saved: DictConfig, today: DictConfig, named: str, before: str = "") -> None:
    """Refuse a stored configuration that has a single value in place of a group. ValueError names it."""
    for key, own in today.items_ex(resolve=False):
        if isinstance(own, DictConfig) and saved.get(key) is not None:
            if not isinstance(saved[key], DictConfig):
                raise ValueError(
                    f"{named} sets {before}{key}={saved[key]!r}, expected a group of settings; it is damaged"
                )
            check_groups(saved[key], own, named, f"{before}{key}.")


def holds_run(place: str) -> bool:
    """Return whether a directory or URL holds a run."""
    return Remote(place).holds(CONFIG) if is_url(place) else (Path(place) / CONFIG).is_file()


def check_holds_run(place: str) -> None:
    """Refuse a place without a run: ValueError."""
    if not holds_run(place):
        raise ValueError(f"resume={place} is not a run directory: {place}/{CONFIG} does not exist")


def content(place: str, name: str) -> bytes:
    """Return a file of a run, from a directory or a URL."""
    return Remote(place).read(name) if is_url(place) else read_bytes(Path(place) / name)


def identity(place: str) -> str:
    """Return the digest of a run's configuration, without keys that may change."""
    config = as_written(content(place, CONFIG), f"{place}/{CONFIG}")  # old keys too: the checkpoint has their digest
    for key in ("run_dir", "resume", *MAY_CHANGE):
        replace_at(config, key, lambda _: None)
    return hashlib.sha256(OmegaConf.to_yaml(OmegaConf.create(config)).encode()).hexdigest()[:16]


def new_directory() -> Path:
    """Create output/DATE/TIME as a directory that no other process uses."""
    stamp = time.strftime("%Y.%m.%d/%H%M%S")
    for number in range(1, 1000):
        directory = Path("output") / (stamp if number == 1 else f"{stamp}-{number}")
        make_directory(directory.parent, "output")
        try:
            directory.mkdir()
        except FileExistsError:  # another run began in the same second
            continue
        return directory
    raise ValueError(f"output/{stamp} and 998 more of this second exist; give run_dir=DIRECTORY")


def check_links(directory: Path) -> None:
    """Refuse a run with files that link to other places, which would be overwritten. ValueError names the link."""
    inside = directory.resolve()
    for folder, folders, files in os.walk(directory):
        for path in (Path(folder) / name for name in (*folders, *files)):
            if path.is_symlink() and not path.resolve().is_relative_to(inside):
                raise ValueError(f"{path} is a link to {os.readlink(path)}, outside of the run; replace it by a copy")
        if Path(folder) == directory and "wandb" in folders:
            folders.remove("wandb")  # where wandb has links to its own logs, which it makes anew


@dataclass(frozen=True)
class Schedule:
    """Numbers of iterations: of the whole run, and between two lines of the log, evaluations, snapshots and saves.

    eval_freq: None for an algorithm that decides itself when to evaluate. save_freq: iterations between two resume checkpoints;
    every snapshot writes one too.
    """

    n_iters: int
    log_freq: int
    snapshot_freq: int
    save_freq: int
    eval_freq: int | None = None

    @classmethod
    def of(cls, training: DictConfig) -> Schedule:
        """Return the schedule of the group `training`. Without snapshot_freq_for_preemption, only snapshots are saved."""
        save_freq = training.get("snapshot_freq_for_preemption") or training.snapshot_freq
        return cls(training.n_iters, training.log_freq, training.snapshot_freq, save_freq, training.get("eval_freq"))

    def is_due(self, done: int, frequency: int | None) -> bool:
        """Return True at every multiple of the frequency, and at the end of the run."""
        return done == self.n_iters or (frequency is not None and done % frequency == 0)


class Run:
    """The directory of one training run; only the first process writes.

    Raises:
        ValueError: another process uses the directory, or it cannot be made or written to.
    """

    def __init__(self, config: DictConfig, overrides: list[str], processes: Processes):
        self.config, self.processes = config, processes
        requested = config.resume or config.run_dir
        url = next((place for place in (requested, config.run_dir) if is_url(place)), None)
        self.remote = Remote(url) if url and processes.first else None
        self.started = time.perf_counter()
        self.last: dict[str, float] = {}  # metrics, as they were logged last
        self.wandb = self.lock = None
        directory = None
        if processes.first:
            own = None if not requested or is_url(requested) else str(requested)
            directory = new_directory() if own is None else make_directory(own, f"run_dir={own}")
            self._enter(directory, overrides)
        self.directory = Path(processes.broadcast(str(directory)))
        if processes.first:
            self._begin_wandb()
            self.say(f"run directory {self.directory}" + (f", copied to {self.remote.url}" if self.remote else ""))

    def _enter(self, directory: Path, overrides: list[str]) -> None:
        """Lock the directory, and create, fetch or check its contents."""
        config = self.config
        if config.resume and not is_url(config.resume):
            check_links(directory)
        try:
            self.lock = Lock(directory)
            if not config.resume and holds_run(str(directory)):
                raise ValueError(f"run_dir={directory} holds a run, which another process began just now; give another")
            sweep(directory)
            for name in (".hydra", "checkpoints", "checkpoints-meta", "samples", "logs"):
                (directory / name).mkdir(exist_ok=True)
            if not config.resume:  # config.yaml last: where it is, a run is
                write_text(directory / OVERRIDES, OmegaConf.to_yaml(OmegaConf.create(overrides)), durable=True)
                write_text(directory / CONFIG, OmegaConf.to_yaml(config), durable=True)
            elif self.remote and is_url(config.resume):
                self.remote.fetch(directory)
        except OSError as error:
            raise ValueError(
                f"{directory} cannot be written to ({error.strerror or error}); give another run_dir"
            ) from error
        self.identity = identity(str(directory))
        if self.remote:
            self.remote.send(directory)  # fails now if the bucket is not writable

    def _begin_wandb(self) -> None:
        """Begin a run in wandb; a resumed run continues its own."""
        config, mode = self.config, os.environ.get("WANDB_MODE", self.config.wandb.mode)
        if config.wandb.mode == "disabled":
            return
        import wandb  # seconds to import: only where it is used

        file = self.directory / "logs" / "wandb_id"
        known = file.read_text(encoding="utf-8").strip() if file.is_file() else ""
        if re.fullmatch(r"[a-z0-9]{8}", known) is None:
            known = secrets.token_hex(4)
            write_text(file, known + "\n")
        self.wandb = wandb.init(
            project=config.wandb.project,
            name=OmegaConf.select(config, "wandb.name"),
            dir=str(self.directory),
            mode=mode,  # pyright: ignore[reportArgumentType]
            id=known,
            resume="allow" if mode == "online" else None,
            config=OmegaConf.to_container(config),  # pyright: ignore[reportArgumentType]
        )

    def say(self, text: str) -> None:
        """Write one line to the terminal and to logs/run.log."""
        if self.processes.first:
            print_line(text)
            self._append("logs/run.log", text)

    def _append(self, name: str, line: str) -> None:
        """Append one line to a file of the run. Raises Unwritable."""
        append_line(self.directory / name, line)

    def log(self, step: int, metrics: dict[str, float], show: bool = True) -> None:
        """Append to metrics.jsonl and wandb."""
        if not self.processes.first:
            return
        self.last |= metrics
        record = {"step": step, **metrics, "seconds": round(time.perf_counter() - self.started, 2)}
        self._append("metrics.jsonl", json.dumps(record))
        if self.wandb is not None:
            self.wandb.log(metrics, step=step)
        if show:
            displayed = " ".join(f"{name} {value:.4g}" for name, value in metrics.items())
            self.say(f"step {step:6d} {displayed} ({record['seconds']:.0f} s)")

    def samples(self, step: int, records: list[dict[str, Any]]) -> None:
        """Write samples/iter_N: one file per text, all data of each (`text`, rewards) as a line of samples.jsonl, and a
        table in wandb.
        """
        if not self.processes.first:
            return
        directory = self.directory / "samples" / f"iter_{step}"
        write_samples(directory, [record["text"] for record in records])
        write_text(directory / "samples.jsonl", "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records))
        if self.wandb is not None and records:
            import wandb

            columns: list[Any] = list(records[0])
            table = wandb.Table(columns=columns, data=[[record.get(name) for name in columns] for record in records])
            self.wandb.log({"samples": table}, step=step)

    def check(self, value: float, step: int, name: str = "loss") -> None:
        """Raise FloatingPointError if the loss (or `name`) is not finite; the message has the step and the last good
        checkpoint.
        """
        if not math.isfinite(value):
            raise FloatingPointError(f"the {name} is {value} at step {step}; {self._last_good()}")

    def _last_good(self) -> str:
        kept = self.directory / RESUME
        return f"the last good checkpoint is {kept}" if kept.exists() else "no checkpoint was written yet"

    def check_weights(self, weights: Iterable[tuple[str, Tensor]], step: int) -> None:
        """Raise FloatingPointError if a weight is not finite after update `step`; nothing is saved from then on."""
        if (name := not_finite(weights)) is not None:
            known = ", ".join(f"{key} {self.last[key]:.4g}" for key in ("loss", "lr", "grad_norm") if key in self.last)
            raise FloatingPointError(
                f"{name} holds numbers that are not finite after update {step} ({known or 'no loss yet'}), so nothing was saved; "
                f"{self._last_good()}; lower optim.lr"
            )

    def check_step(self, step: object, file: str) -> None:
        """Refuse a checkpoint whose step does not fit this run."""
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
        """Write the resume checkpoint, and `checkpoints/checkpoint_{step}.pth` for a snapshot; both atomically.

        If a storage is unreachable, the next save tries again; at the last save it is an error.
        """
        if not self.processes.first:
            return
        self.check_weights(named_tensors(state), state["step"])
        state["run"] = self.identity
        state[CHECKSUM] = checksum(state)
        targets = [self.directory / RESUME]
        if snapshot:
            targets.append(self.directory / "checkpoints" / f"checkpoint_{state['step']}.pth")
        for target in targets:
            with replacing(target) as part:
                torch.save(state, part)
        if self.remote:
            try:
                self.remote.send(self.directory)
            except ValueError as error:
                self.say(f"not copied, tried again at the next save: {error}")

    def restore(self, holds: str) -> dict[str, Any] | None:
        """Return the contents of the resume checkpoint, or None for a new run. holds: a required key.

        Raises:
            ValueError: the file is damaged, not a checkpoint of this command, or another run's.
        """
        if not self.config.resume:
            return None
        place = str(self.config.resume)
        if is_url(place):
            kept = Remote(place).checkpoint()  # by each process: they may share no disk
            source = None if kept is None else io.BytesIO(kept)
        else:
            source = path if (path := Path(place) / RESUME).is_file() else None
        if source is None:
            self.go_on_from(-1)
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
        self.go_on_from(state["step"])
        if state["step"] >= self.config.training.n_iters:
            further = "training.epochs" if holds == "twist" else "training.n_iters"
            self.say(f"already at step {state['step']} of {self.config.training.n_iters}; {further}=N goes further")
        return state

    def go_on_from(self, step: int) -> None:
        """Drop the records of metrics.jsonl after the checkpoint; the resumed run makes them again, so that each step is
        recorded once.
        """
        if not self.processes.first:
            return
        file = self.directory / "metrics.jsonl"
        lines = whole_lines(file)
        found = [parsed_json(line.encode(), f"{file} line {number}") for number, line in enumerate(lines, 1)]
        known = [isinstance(one, dict) and isinstance(one.get("step"), int) for one in found]
        if not all(known):
            raise ValueError(f"{file} line {known.index(False) + 1} is no record of a step; take that line out")
        kept = [line for line, one in zip(lines, found, strict=True) if one["step"] <= step]
        if len(kept) < len(lines):
            write_text(file, "".join(line + "\n" for line in kept), durable=True)

    def stop(self, step: int) -> None:
        """Exit, after a signal and a save, with the status of the signal in a shell (143 for SIGTERM). All processes
        together.
        """
        place = self.remote.url if self.remote else self.directory
        number = self.processes.heard
        self.say(f"stopped by {signal.Signals(number).name} after step {step}, which is saved; resume={place} goes on")
        self.close()
        self.processes.barrier()
        raise SystemExit(128 + number)

    def close(self) -> None:
        if self.remote:
            self.remote.send(self.directory)
        if self.wandb is not None:
            self.wandb.finish()
        if self.lock is not None:
            self.lock.release()


def write_samples(directory: Path, texts: list[str]) -> None:
    """Write sample_N.txt, one text per file; the directory is created."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
    for number, text in enumerate(texts):
        write_text(directory / f"sample_{number}.txt", text + "\n")


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Return a different seed for each step: a resumed run needs no saved generator. rank: for draws that may differ
    between processes.
    """
    return (seed * 1_000_003 + step) * 4_099 + rank
