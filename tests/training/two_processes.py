"""One of the processes of test_two_processes.py: python -m tests.training.two_processes DIRECTORY, under torchrun's variables."""

import sys
from pathlib import Path

import torch
from omegaconf import OmegaConf

from dlm.pretrain import train
from tests.enumerable import random_radd
from training.processes import processes
from training.run import Run

STEPS, BATCH, LENGTH, SEED = 3, 6, 10, 5


def config(directory):
    """No clipping and a large eps: AdamW would not see gradients that are all too large by one factor."""
    return OmegaConf.create({
        "loss": "lambda_DCE", "seed": SEED, "resume": None, "run_dir": str(directory), "wandb": {"mode": "disabled"},
        "training": {"batch_size": BATCH, "accum": 1, "n_iters": STEPS, "ema": 0.9, "log_freq": 1, "eval_freq": 100,
                     "snapshot_freq": 100, "snapshot_freq_for_preemption": 100},
        "eval": {"batch_size": 4},
        "optim": {"lr": 0.03, "betas": [0.9, 0.999], "eps": 0.1, "weight_decay": 0.1, "warmup": 2, "grad_clip": 1e3,
                  "schedule": "constant"},
    })  # fmt: skip


class SomeRows:
    """Batch number n of each process, from (n, rank)."""

    def __init__(self, rank):
        self.rank, self.drawn = rank, 0

    def next(self, batch):
        self.drawn += 1
        return torch.randint(11, (batch, LENGTH), generator=torch.Generator().manual_seed(100 * self.drawn + self.rank))

    def state_dict(self):
        return {"drawn": self.drawn}

    def load_state_dict(self, state):
        self.drawn = state["drawn"]


def network():
    """One parameter takes no part in the loss: its gradient is None in every process, and joins the sum as zero."""
    model = random_radd(width=16, blocks=1)
    model.backbone.register_parameter("unused", torch.nn.Parameter(torch.ones(3)))
    return model


if __name__ == "__main__":
    torch.set_num_threads(1)
    directory = Path(sys.argv[1])
    with processes("cpu") as group:
        settings = config(directory / f"run{group.rank}")  # the first process's counts
        model, rows = network(), SomeRows(group.rank)
        run = Run(settings, [], group)
        train(model, None, rows, torch.zeros(4, LENGTH, dtype=torch.long), settings, run, group, lambda step, model: {})
        said = {
            "directory": str(run.directory),
            "mean": group.mean({"rank": float(group.rank), "one": 1.0}),
            "share": group.share(BATCH, "training.batch_size"),
        }
        torch.save({"parameters": list(model.parameters()), "said": said}, directory / f"rank{group.rank}.pt")
