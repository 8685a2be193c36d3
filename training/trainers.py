"""TRL's trainers in run directories of this project: settings, checkpoints, metrics, resuming.

Settings with surprising defaults in TRL are always set: the precision (its default is bfloat16, also on a CPU), gradient
checkpointing (on), dropout (off) and the learning rate. A killed run resumes from RUN/checkpoints/checkpoint-N.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import ExportableState, PrinterCallback

from training.curves import CurveFile
from training.files import writing
from training.processes import Processes
from training.run import Run
from training.settings import TunedOptimSettings, TunedRunSettings, TunedSettings
from training.storage import check_read
from training.stored import read_json_object

PREFIX = "checkpoint-"  # of a trainer's checkpoints
COUNT = "_total_train_tokens"  # where TRL's trainers count, and which they do not save

OPTIMISERS = {"adamw": "adamw_torch", "rmsprop": "rmsprop"}
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def check_trainer(training: TunedSettings, optim: TunedOptimSettings, processes: Processes) -> None:
    """Refuse, before a run directory is made, a batch that does not divide and an unknown optimiser: ValueError."""
    rows = processes.share(training.batch_size, "training.batch_size")
    if rows % training.accum:
        raise ValueError(
            f"a process's batch of {rows} is not divisible by training.accum={training.accum}; change either"
        )
    if optim.optimiser not in OPTIMISERS:
        raise ValueError(f"optim.optimiser={optim.optimiser!r} is unknown; use one of {', '.join(OPTIMISERS)}")


def trainer_settings(config: TunedRunSettings, run: Run, processes: Processes) -> dict[str, Any]:
    """Return the keyword arguments of any TRL configuration, from `training`, `optim` and `model.dtype`.

    training.batch_size is the batch of an update, over all processes and training.accum parts. `check_trainer` has refused a
    batch that does not divide.
    """
    training, optim, dtype = config.training, config.optim, config.model.dtype
    rows = processes.share(training.batch_size, "training.batch_size")
    return {
        "output_dir": str(run.directory / "checkpoints"),
        "num_train_epochs": training.epochs,
        "max_steps": training.n_iters or -1,
        "per_device_train_batch_size": rows // training.accum,
        "gradient_accumulation_steps": training.accum,
        "per_device_eval_batch_size": config.eval.batch_size,
        "learning_rate": optim.lr,
        "optim": OPTIMISERS[optim.optimiser],
        "lr_scheduler_type": SCHEDULES[optim.schedule],
        "warmup_steps": optim.warmup,
        "weight_decay": optim.weight_decay,
        "max_grad_norm": optim.grad_clip,
        "bf16": dtype == "bfloat16",
        "fp16": dtype == "float16",
        "gradient_checkpointing": training.gradient_checkpointing,
        "disable_dropout": not training.dropout,
        "logging_steps": training.log_freq,
        "eval_strategy": "steps",
        "eval_steps": training.eval_freq,
        "save_steps": training.snapshot_freq,
        "save_total_limit": 2,
        "seed": config.seed,
        "use_cpu": processes.device.type == "cpu",
        "dataloader_pin_memory": processes.device.type != "cpu",
        "disable_tqdm": True,
        "report_to": "none",
        "logging_nan_inf_filter": False,  # a loss that is not a number stops the run
    }


class ToRun(TrainerCallback, ExportableState):
    """Write a trainer's records to the run's metrics.jsonl and log, and the number of tokens, which TRL's checkpoints
    lack.
    """

    def __init__(self, run: Run, trainer: Any):
        self.run, self.trainer, self.stopped = run, trainer, False
        self.curves = CurveFile(run.directory)

    def state(self) -> dict:
        return {"args": {}, "attributes": {"tokens": getattr(self.trainer, COUNT, 0)}}

    def on_log(self, args, state, control, logs=None, **_):
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for name in ("loss", "grad_norm", "train_loss"):
            if name in numbers:
                self.run.check(numbers[name], state.global_step, name)
        self.run.log(state.global_step, numbers)

    def on_evaluate(self, args, state, control, **_):
        if self.run.processes.first:
            self.curves.draw(last=state.global_step >= state.max_steps)

    def on_train_end(self, args, state, control, **_):
        if self.run.processes.first:
            self.curves.draw(last=True)

    def on_train_begin(self, args, state, control, **more):
        if state.global_step:  # resumed
            check_read(more["model"].named_parameters(), f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_step_end(self, args, state, control, **more):
        if control.should_save:
            self.run.check_weights(more["model"].named_parameters(), state.global_step)
        if self.run.processes.stop_requested():
            self.stopped = control.should_save = control.should_training_stop = True


def last_checkpoint(run: Run) -> Path | None:
    """Return the newest complete checkpoint of the run, and remove incomplete ones that a kill left.

    A trainer writes trainer_state.json last, and each process the state of its random generator. A checkpoint with all of
    these is complete.
    """
    numbered = {int(path.name.removeprefix(PREFIX)): path for path in (run.directory / "checkpoints").glob(f"{PREFIX}[0-9]*")
                if path.name.removeprefix(PREFIX).isdigit()}  # fmt: skip
    for step in sorted(numbered, reverse=True):
        if is_complete(numbered[step], step, run.processes.world):
            return numbered[step]
        shutil.rmtree(numbered[step])
    return None


def is_complete(checkpoint: Path, step: int, world: int) -> bool:
    """Return whether a trainer wrote the checkpoint to its end."""
    names = ["rng_state.pth"] if world == 1 else [f"rng_state_{rank}.pth" for rank in range(world)]
    if not all(zipfile.is_zipfile(checkpoint / name) for name in names):
        return False
    try:
        return json.loads((checkpoint / "trainer_state.json").read_bytes())["global_step"] == step
    except (OSError, ValueError, KeyError, TypeError):
        return False


def train_by(trainer: Trainer, run: Run) -> None:
    """Train to the end, from the last complete checkpoint of a resumed run if it has one."""
    trainer.remove_callback(PrinterCallback)
    following = ToRun(run, trainer)
    trainer.add_callback(following)
    checkpoint = None
    if run.config.resume:
        found = run.processes.broadcast(str(last_checkpoint(run) or "") if run.processes.first else "")
        checkpoint = Path(found) if found else None
        state = {} if checkpoint is None else read_json_object(checkpoint / "trainer_state.json")
        run.go_on_from(state.get("global_step", -1))
        kept = state.get("stateful_callbacks", {}).get("ToRun", {}).get("attributes", {})
        if hasattr(trainer, COUNT):
            setattr(trainer, COUNT, int(kept.get("tokens", 0)))
        total = trainer.args.max_steps if trainer.args.max_steps > 0 else state.get("max_steps", 0)
        if checkpoint is not None and state["global_step"] >= total:  # the trainer would make one step more
            run.say(f"already at step {state['global_step']} of {total}; training.n_iters=N goes further")
            trainer._load_from_checkpoint(str(checkpoint))
            return
    with writing(run.directory / "checkpoints"):
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    assert trainer.model is not None
    run.check_weights(trainer.model.named_parameters(), trainer.state.global_step)
    if following.stopped:
        run.stop(trainer.state.global_step)
