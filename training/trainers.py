"""TRL's trainers in run directories of ours: settings, checkpoints, metrics, resuming.

What TRL would choose by itself is always set here: the precision (its default is bfloat16, on a CPU too), gradient checkpointing
(on), dropout (off) and the learning rate. RUN/checkpoints/checkpoint-N is what a killed run goes on from.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig
from transformers import Trainer, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from transformers.trainer_utils import get_last_checkpoint

from training.processes import Processes
from training.run import Run
from weights import check_read

OPTIMISERS = {"adamw": "adamw_torch", "rmsprop": "rmsprop"}
SCHEDULES = {"constant": "constant_with_warmup", "linear": "linear", "cosine": "cosine"}


def trainer_settings(config: DictConfig, run: Run, processes: Processes) -> dict[str, Any]:
    """Keyword arguments of any TRL configuration, as `training`, `optim` and `model.dtype` say.

    training.batch_size is of an update, over all processes and training.accum parts. Raises ValueError where it does not divide.
    """
    training, optim, dtype = config.training, config.optim, config.model.dtype
    rows = processes.share(training.batch_size, "training.batch_size")
    if rows % training.accum:
        raise ValueError(
            f"a process's batch of {rows} is not divisible by training.accum={training.accum}; change either"
        )
    if optim.optimiser not in OPTIMISERS:
        raise ValueError(f"optim.optimiser={optim.optimiser!r} is unknown; use one of {', '.join(OPTIMISERS)}")
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


class ToRun(TrainerCallback):
    """What a trainer logs, to the run's metrics.jsonl and log."""

    def __init__(self, run: Run):
        self.run = run

    def on_log(self, args, state, control, logs=None, **_):
        numbers = {name: float(value) for name, value in (logs or {}).items() if isinstance(value, int | float)}
        for name in ("loss", "grad_norm", "train_loss"):
            if name in numbers:
                self.run.check(numbers[name], state.global_step, name)
        self.run.log(state.global_step, numbers)

    def on_train_begin(self, args, state, control, **more):
        if state.global_step:  # resumed
            check_read(more["model"].named_parameters(), f"{args.output_dir}/checkpoint-{state.global_step}")

    def on_step_end(self, args, state, control, **more):
        if control.should_save:
            self.run.check_weights(more["model"].named_parameters(), state.global_step)
        if self.run.processes.stop_asked():
            control.should_save = control.should_training_stop = True


def train_by(trainer: Trainer, run: Run) -> None:
    """Train to the end, from the run's last checkpoint where it is resumed and has one."""
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(ToRun(run))
    resume = run.config.resume and get_last_checkpoint(str(run.directory / "checkpoints"))
    trainer.train(resume_from_checkpoint=resume or None)
    assert trainer.model is not None
    run.check_weights(trainer.model.named_parameters(), trainer.state.global_step)
    if run.processes.stopping:
        run.stop(trainer.state.global_step)
