"""Kills, signals and hostile files: lost data, tracebacks, and commands that take too long.

    python -m benchmarks.robustness --kills 20 --hostile 60

Every training command runs on a tiny model in a temporary directory. One process imports everything and forks for each trial.

* kills: SIGKILL at random moments and during writes. At the K-th file that the command opens, renames or makes, a limit on the
  size of files kills it in the middle of the write, or SIGKILL comes between two operations. The command is started again with
  resume=auto. Its weights must equal those of an uninterrupted run bit for bit, and each step must occur once in metrics.jsonl.
* signals: after SIGINT, SIGTERM, SIGHUP or SIGUSR1 a training must save, report it in one line, and resume to the same weights.
* hostile files (benchmarks/hostile.py): each must end in one sentence, within LIMIT seconds.

The command prints a table and, as its last line, JSON; the exit status is 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from benchmarks.hostile import HOSTILE, Bench, make_bench
from evaluation.report import print_table
from training.ranges import Whole
from training.usage import composed, exit_on_bad_input
from unmask.commands import evaluate as evaluate_command
from unmask.commands import sample as sample_command
from unmask.runs import train_dlm, train_policy, train_preference, train_reward, train_rl, train_twist

LIMIT = 60.0  # seconds that a trial may take, on a machine that does nothing else
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
OPERATIONS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
SMALL = ["device=cpu", "wandb.mode=disabled"]
NAMES = ("train_dlm", "train_policy", "train_rl", "train_twist", "train_reward", "train_reward head", "train_preference",
         "sample", "evaluate")  # fmt: skip


@dataclass(frozen=True)
class Command:
    """A training command on tiny models. own: it saves by training/run.py (and not by TRL's trainers)."""

    name: str
    config: str
    main: Callable[..., Any]
    overrides: tuple[str, ...]
    own: bool = True


def commands(bench: Bench) -> list[Command]:
    """Return every training command, each with a few steps and several saves."""
    often = ["training.log_freq=1", "training.snapshot_freq=2"]
    own = [*often, "training.snapshot_freq_for_preemption=1"]
    pairs = [f"data.train={bench.pairs}", "training.n_iters=4", "training.batch_size=4", "eval.batch_size=4",
             "data.valid_count=4", "data.max_length=32", "training.eval_freq=2"]  # fmt: skip
    board = [f"dlm.path={bench.board}", "data=puzzles", "data.box=[2,2]", "data.base_puzzles=4", "data.valid_puzzles=2"]
    return [
        Command("train_dlm", "train_dlm", train_dlm.run, (
            *SMALL, *own, "experiment=sudoku6", "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2",
            "data.base_grids=5", "data.valid_grids=4", "training.batch_size=4", "training.n_iters=5",
            "training.eval_freq=2", "eval.samples=2", "eval.steps=2", "optim.warmup=2", "optim.schedule=constant",
        )),
        Command("train_policy", "train_policy", train_policy.run, (
            *SMALL, *own, *board, "reward=puzzle", "algorithm=grpo", "policy=dit_confidence", "policy.hidden_dim=16",
            "policy.feedforward_dim=16", "policy.time_embed_dim=8", "training.batch_size=4", "algorithm.group_size=2",
            "training.n_iters=4", "training.eval_freq=2", "eval.batch_size=2", "sampler.steps=3",
        )),
        Command("train_rl", "train_rl", train_rl.run, (
            *SMALL, *own, *board, "reward=puzzle", "rl.batch_size=4", "rl.group_size=2", "rl.num_sigma_samples=2",
            "training.n_iters=4", "training.eval_freq=2", "eval.batch_size=2", "eval.samples=2", "sampler.steps=3",
        )),
        Command("train_twist", "train_twist", train_twist.run, (
            *SMALL, f"dlm.path={bench.causal}", "target=infilling", "target.tokens=2", "length=3", "prompt=Once",
            "training.log_freq=1", "training.snapshot_freq=2", "training.snapshot_freq_for_preemption=1", "training.batch_size=4",
            "training.particles=2", "training.epochs=2", "training.updates_per_epoch=2", "posterior.count=0", "positives=sis",
            "eval.samples=4", "eval.particles=[2]", "eval.sweeps=1", "eval.texts=1",
        )),
        Command("train_reward", "train_reward", train_reward.run, (
            *SMALL, *often, *pairs, "encoder.hidden_size=16", "encoder.intermediate_size=16", "encoder.num_layers=1",
            "encoder.num_heads=2", f"encoder.tokenizer={bench.text}",
        ), own=False),
        Command("train_reward head", "train_reward", train_reward.run, (
            *SMALL, *often, *pairs, "reward.head=vocabulary", "reward.kind=mask", f"init={bench.text}",
        )),
        Command("train_preference", "train_preference", train_preference.run, (
            *SMALL, *often, *pairs, f"init={bench.causal}", "lora.rank=2",
        ), own=False),
    ]  # fmt: skip


# ------------------------------------------------------------------------------------------------------------------ trials


@dataclass
class Trial:
    """Result of one forked process: its exit status (or minus the signal), its seconds, and its output."""

    status: int
    seconds: float
    printed: str

    @property
    def has_traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.printed


class Operations:
    """Counts the file operations of a process in a directory, and kills it at operation `last` (None: never). size: bytes that
    it may still write to a file that it opens there (None: it is killed before it opens the file)."""

    def __init__(self, directory: Path, last: int | None = None, size: int | None = None):
        self.directory, self.last, self.size = str(directory), last, size
        self.count = 0

    def __call__(self, event: str, arguments: tuple) -> None:
        if event not in OPERATIONS or not str(arguments[0]).startswith(self.directory):
            return
        if event == "open" and not _writes(arguments):
            return
        self.count += 1
        if self.count != self.last:
            return
        if event == "open" and self.size is not None:  # the kernel kills in the middle of what is written now
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.size))
        else:
            os.kill(os.getpid(), signal.SIGKILL)


def _writes(arguments: tuple) -> bool:
    _, mode, flags = arguments
    return (
        any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool(flags & (os.O_WRONLY | os.O_RDWR))
    )


def run(
    work: Callable[[], Any], log: Path, meanwhile: Callable[[int], None] | None = None, limit: float = 10 * LIMIT
) -> Trial:
    """Run `work` in a forked process. meanwhile: called in this process with the id of the other one."""
    sys.stdout.flush()
    started = time.perf_counter()
    if (child := os.fork()) == 0:
        os._exit(_child(work, log))
    if meanwhile is not None:
        meanwhile(child)
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0:
        if time.perf_counter() - started > limit:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    status = os.waitstatus_to_exitcode(found[1])
    return Trial(status, time.perf_counter() - started, log.read_text(encoding="utf-8", errors="replace"))


def _child(work: Callable[[], Any], log: Path) -> int:
    """Run in the forked process: as a user's command, with its output in `log`."""
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, encoding="utf-8", closefd=False) for number in (1, 2))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with exit_on_bad_input():
            work()
        return 0
    except SystemExit as left:
        return left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def train(command: Command, directory: Path, *more: str) -> None:
    """Run the training command in this process."""
    overrides = [*command.overrides, f"run_dir={directory}", *more]
    command.main(composed(command.config, overrides), overrides)


def outcome(command: Command, directory: Path) -> dict[str, Any]:
    """Return the files of a finished run that are compared with another run's."""
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("loss", "num_tokens", "valid_loss", "eval_reward")
    measures = [(line["step"], name, line[name]) for line in lines for name in names if name in line]
    if command.own:
        state: dict = torch.load(directory / "checkpoints-meta" / "checkpoint.pth", weights_only=True)
        del state["run"]
        weights = flat(state)
    else:
        weights = dict(load_file(next((directory / "model").glob("*.safetensors"))))
    return {"measures": measures, "weights": weights, "left": [str(path) for path in directory.rglob("*.part")]}


def flat(state: Any, name: str = "") -> dict[str, Any]:
    """Return every tensor and number of a nested state."""
    if isinstance(state, dict | list | tuple):
        items = state.items() if isinstance(state, dict) else enumerate(state)
        return {key: value for own, inner in items for key, value in flat(inner, f"{name}.{own}").items()}
    return {name: state}


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Return the differences between `one` and `other` in words."""
    found = []
    if one["measures"] != other["measures"]:
        missing = [measure[:2] for measure in one["measures"] if measure not in other["measures"]]
        found.append(f"metrics differ ({missing[:3]} of {len(one['measures'])} are not there as they were)")
    same = one["weights"].keys() == other["weights"].keys() and all(
        torch.equal(value, other["weights"][name])
        if isinstance(value, torch.Tensor)
        else value == other["weights"][name]
        for name, value in one["weights"].items()
    )
    return [*found, *([] if same else ["weights differ"]), *(f"{path} is left" for path in other["left"])]


@dataclass
class Count:
    """Totals of a command's trials."""

    name: str
    trials: int = 0
    lost: list[str] = field(default_factory=list)
    tracebacks: int = 0
    slowest: float = 0.0

    def add(self, about: str, trials: list[Trial], wrong: list[str]) -> None:
        self.trials += 1
        self.slowest = max(self.slowest, *(trial.seconds for trial in trials))
        self.tracebacks += any(trial.has_traceback for trial in trials)
        if wrong or any(trial.has_traceback for trial in trials):
            self.lost.append(f"{self.name}, {about}: {'; '.join(wrong) or 'traceback'}")
            print(self.lost[-1], *(trial.printed[-1500:] for trial in trials), sep="\n", file=sys.stderr, flush=True)

    def row(self) -> dict[str, Any]:
        return {"name": self.name, "trials": self.trials, "wrong": len(self.lost), "tracebacks": self.tracebacks,
                "slowest (s)": round(self.slowest, 1)}  # fmt: skip


# ------------------------------------------------------------------------------------------------------- kills and signals


def reference(command: Command, base: Path) -> tuple[dict[str, Any], int, float]:
    """Run without a kill; return its files, its number of file operations, and its seconds."""
    directory, counted = base / "whole", base / "operations"

    def work() -> None:
        operations = Operations(directory)
        sys.addaudithook(operations)
        train(command, directory)
        counted.write_text(str(operations.count), encoding="utf-8")

    trial = run(work, base / "log")
    if trial.status:
        raise RuntimeError(f"{command.name} does not run:\n{trial.printed[-3000:]}")
    return outcome(command, directory), int(counted.read_text(encoding="utf-8")), trial.seconds


def killed(
    command: Command, base: Path, whole: tuple[dict[str, Any], int, float], number: int, draw: random.Random
) -> tuple:
    """Run one kill and the resumed run: return (description, trials, errors)."""
    expected, operations, seconds = whole
    directory = base / f"killed_{number}"
    if number % 3 == 2:  # at a random moment
        after = draw.uniform(0.0, seconds)

        def kill(child: int) -> None:
            time.sleep(after)
            os.kill(child, signal.SIGKILL)  # a child that has ended waits to be asked for: its id is still its own

        about, first = f"killed after {after:.2f} s", run(lambda: train(command, directory), base / "log", kill)
    else:
        last, size = draw.randint(1, operations), draw.choice([0, 1, 40, 300, 2000])
        hook = Operations(directory, last, size if number % 3 else None)

        def work() -> None:
            sys.addaudithook(hook)
            train(command, directory)

        about = f"killed at operation {last} of {operations}" + (f", {size} bytes written" if number % 3 else "")
        first = run(work, base / "log")
    second = run(lambda: train(command, directory, "resume=auto"), base / "log2")
    wrong = [] if second.status == 0 else [f"status {second.status} after a resume"]
    return about, [first, second], wrong or differences(expected, outcome(command, directory))


def signalled(command: Command, base: Path, expected: dict[str, Any], number: signal.Signals) -> tuple:
    """Send a signal after the first step, and resume the run."""
    directory = base / f"signal_{number.name}"

    def send(child: int) -> None:
        metrics, until = directory / "metrics.jsonl", time.monotonic() + LIMIT
        while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < until:
            time.sleep(0.002)
        os.kill(child, number)

    first = run(lambda: train(command, directory), base / "log", send)
    second = run(lambda: train(command, directory, "resume=auto"), base / "log2")
    reports = first.printed.count(f"stopped by {number.name} after step")
    expected_ends = ((128 + number, 1), (0, 0))
    wrong = [] if (first.status, reports) in expected_ends else [f"status {first.status}, {reports} reports"]
    wrong += [] if second.status == 0 else [f"status {second.status} after a resume"]
    return number.name, [first, second], wrong or differences(expected, outcome(command, directory))


def check_command(command: Command, base: Path, kills: int, signals: bool, seed: int) -> list[Count]:
    """Run all trials of one command."""
    base.mkdir()
    whole = reference(command, base)
    by_kill, by_signal = Count(f"{command.name}: kills"), Count(f"{command.name}: signals")
    for number in range(kills):
        by_kill.add(*killed(command, base, whole, number, random.Random(f"{seed} {command.name} {number}")))
    for number in SIGNALS if signals else ():
        by_signal.add(*signalled(command, base, whole[0], number))
    return [by_kill, by_signal] if signals else [by_kill]


# ------------------------------------------------------------------------------------------------------ sampling, evaluation


def check_sampling(bench: Bench, base: Path, kills: int, seed: int) -> Count:
    """Check that finished samples survive a kill, Ctrl-C and a full disk."""
    count, draw = Count("sample: kills, Ctrl-C, full disk"), random.Random(seed)
    argv = [
        "--model",
        str(bench.text),
        "--steps",
        "2",
        "--num_samples",
        "24",
        "--batch_size",
        "2",
        "--no-eval",
        "--out",
    ]
    whole = base / "samples"
    first = run(lambda: sample_command.main([*argv, str(whole)]), base / "log")
    expected = (whole / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    for number in range(kills):
        out, way = base / f"samples_{number}", ("kill", "interrupt", "full")[number % 3]
        after, size = draw.uniform(0, first.seconds), draw.randint(1, (whole / "samples.jsonl").stat().st_size)

        def meanwhile(child: int, way: str = way, after: float = after) -> None:
            if way != "full":
                time.sleep(after)
                os.kill(child, signal.SIGKILL if way == "kill" else signal.SIGINT)

        def work(way: str = way, out: Path = out, size: int = size) -> None:
            if way == "full":
                import resource

                resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
            sample_command.main([*argv, str(out)])

        trial = run(work, base / "log", meanwhile)
        lines = (
            (out / "samples.jsonl").read_text(encoding="utf-8").splitlines() if (out / "samples.jsonl").exists() else []
        )
        wrong = [] if lines == expected[: len(lines)] else ["samples are not those of a run that was left alone"]
        statuses = {"kill": (0, -signal.SIGKILL), "interrupt": (0, 130), "full": (0, 1)}[way]
        wrong += [] if trial.status in statuses else [f"status {trial.status}"]
        lines = trial.printed.strip().splitlines()
        wrong += [f"{len(lines)} lines"] if way != "kill" and trial.status and len(lines) > 1 else []
        count.add(f"{way} {number}", [trial], wrong)
    return count


def check_evaluation(base: Path, kills: int, seed: int) -> Count:
    """Check that a killed evaluation resumes to the same answers."""
    count, draw = Count("evaluate: kills"), random.Random(seed)
    argv = ["--strategy", "threshold", "--settings", "0.9", "--datasets", "chain", "--seeds", "1", "--n_test", "6",
            "--batch_size", "2", "--device", "cpu", "--out"]  # fmt: skip

    def answers(out: Path) -> list:
        files = sorted(out.rglob("generations.json"))
        return [
            [(one["row"], one["generation"]) for one in json.loads(file.read_text(encoding="utf-8"))["generations"]]
            for file in files
        ]

    def evaluate(out: Path) -> None:
        if status := evaluate_command.main([*argv, str(out)]):
            raise SystemExit(status)

    def counted() -> None:
        operations = Operations(base / "answers")
        sys.addaudithook(operations)
        evaluate(base / "answers")
        (base / "counted").write_text(str(operations.count), encoding="utf-8")

    run(counted, base / "log")
    expected, operations = answers(base / "answers"), int((base / "counted").read_text(encoding="utf-8"))
    for number in range(kills):
        out, last = base / f"answers_{number}", draw.randint(1, operations)

        def work(out: Path = out, last: int = last, size: int = draw.choice([0, 30, 300])) -> None:
            sys.addaudithook(Operations(out, last, size))
            evaluate(out)

        first = run(work, base / "log")
        second = run(lambda out=out: evaluate(out), base / "log2")
        wrong = [] if second.status == 0 else [f"status {second.status} on going on"]
        wrong += [] if wrong or answers(out) == expected else ["answers differ"]
        count.add(f"killed at operation {last} of {operations}", [first, second], wrong)
    return count


# ------------------------------------------------------------------------------------------------------------------ hostile


def check_hostile(bench: Bench, base: Path, most: int, only: str) -> Count:
    """Check that every hostile file whose name contains `only` ends in one sentence."""
    count = Count("hostile files")
    chosen = [(name, make) for name, make in HOSTILE.items() if only in name][:most]
    for name, make in chosen:
        folder = base / name.replace(" ", "_").replace("/", "_")
        folder.mkdir()
        case = make(bench, folder)
        trial = run(case.work, base / "log", limit=LIMIT)
        mark = ": " if name.startswith("evaluation") else "error: "  # an evaluation names its rule and data set instead
        lines = [line for line in trial.printed.splitlines() if mark in line]
        wrong = [] if trial.status in (1, 2) or (trial.status == 0 and case.may_pass) else [f"status {trial.status}"]
        wrong += [] if lines or trial.status == 0 else ["no sentence"]
        wrong += [f"a sentence of {len(line)} characters" for line in lines if len(line) > 1000]
        wrong += [] if trial.seconds < LIMIT else [f"{trial.seconds:.0f} s"]
        wrong += [f"{path} was made" for path in case.forbidden if path.exists()]
        count.add(name, [trial], wrong)
    return count


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--kills", type=Whole(0, 100_000), default=20, help="of each command")
    made.add_argument(
        "--hostile", type=Whole(0, 100_000), default=len(HOSTILE), help="hostile files, the first so many"
    )
    made.add_argument("--only", default="", help="hostile files whose names hold this")
    made.add_argument("--commands", default="all", help=f"of {', '.join(NAMES)}, separated by commas; or all, or none")
    made.add_argument("--no-signals", dest="signals", action="store_false")
    made.add_argument("--seed", type=Whole(0, 2**31 - 1), default=0)
    return made


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    chosen = set(arguments.commands.split(","))
    if unknown := chosen - {*NAMES, "all", "none"}:
        raise ValueError(f"--commands {', '.join(sorted(unknown))} is none of all, none, {', '.join(NAMES)}; change it")
    torch.set_num_threads(1)
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    counts: list[Count] = []
    with tempfile.TemporaryDirectory() as name:
        base = Path(name)
        bench = make_bench(base / "bench")
        for command in commands(bench):
            if chosen & {"all", command.name}:
                counts += check_command(command, base / command.name.replace(" ", "_"), arguments.kills, arguments.signals,
                                        arguments.seed)  # fmt: skip
        if chosen & {"all", "sample"} and arguments.kills:
            counts += [check_sampling(bench, base, arguments.kills, arguments.seed)]
        if chosen & {"all", "evaluate"} and arguments.kills:
            counts += [check_evaluation(base, arguments.kills, arguments.seed)]
        if arguments.hostile:
            counts += [check_hostile(bench, base, arguments.hostile, arguments.only)]
    print_table([count.row() for count in counts], title="what kills, signals and hostile files cost")
    wrong = sum(len(count.lost) for count in counts)
    slowest = max(count.slowest for count in counts)
    print(json.dumps({
        "trials": sum(count.trials for count in counts), "wrong": wrong, "tracebacks": sum(count.tracebacks for count in counts),
        "slowest_seconds": round(slowest, 1), "by": {count.name: count.trials for count in counts},
    }))  # fmt: skip
    return int(wrong > 0)


if __name__ == "__main__":
    with exit_on_bad_input():
        status = main(sys.argv[1:])
    sys.exit(status)
