"""The training loop with a toy algorithm: the order of what it does, what it restores, and what ends it."""

import json
import signal

import pytest
import torch
from torch import nn

from training.learner import new_learner
from training.processes import Processes
from training.run import Run, resumed_config
from training.settings import OptimSettings
from training.trainer import Algorithm, Trainer
from training.usage import composed

WORDS = ["device=cpu", "wandb.mode=disabled", "training.n_iters=6", "training.log_freq=1", "training.eval_freq=2",
         "training.snapshot_freq=3", "training.snapshot_freq_for_preemption=1", "training.ema=0.5", "optim.warmup=0",
         "optim.lr=0.1"]  # fmt: skip


class Toy(Algorithm):
    """One weight that is pulled to 1. events: what the trainer called, with the weight at that moment."""

    weights = "toy"

    def __init__(self, config, processes):
        network = nn.Linear(1, 1, bias=False)
        nn.init.zeros_(network.weight)
        self.network, self.events, self.config = network, [], config
        self.learner = new_learner(network, OptimSettings(lr=0.1), 6, config.training.ema, processes)

    def note(self, event, done):
        self.events.append((event, done, self.network.weight.item()))

    def iteration(self, step):
        self.note("iteration", step)
        loss = (self.network.weight - 1).square().sum() * self.scale(step)
        loss.backward()
        return {"loss": float(loss.detach()), **self.learner.update()}

    def scale(self, step):
        return 1.0

    def warm_start(self):
        self.note("warm start", 0)

    def evaluate(self, run, done):
        self.note("evaluate", done)
        return {"eval_weight": self.network.weight.item()}

    def snapshot(self, run, done):
        self.note("snapshot", done)
        return {}

    def before_stop(self, run, done):
        self.note("before stop", done)

    def state_dict(self):
        return {"toy": self.network.state_dict(), "updates": self.learner.updates}

    def load_state_dict(self, state):
        self.network.load_state_dict(state["toy"])


def trained(directory, *words, kind=Toy):
    """A run of a toy; resumed where the directory holds a run."""
    resume = [f"resume={directory}"] if (directory / ".hydra").exists() else [*WORDS, f"run_dir={directory}"]
    config = resumed_config(composed("train_policy", [*resume, *words]), [*resume, *words], "train_policy")
    processes = Processes(0, 1, torch.device("cpu"))
    toy, run = kind(config, processes), Run(config, [*resume, *words], processes)
    try:
        Trainer(toy, run).train()
    finally:
        run.close()
    return toy


def record(directory):
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def saved(directory):
    return torch.load(directory / "checkpoints-meta" / "checkpoint.pth", weights_only=True)


def test_iterations_evaluations_and_snapshots_come_in_order_and_see_the_right_weights(tmp_path):
    toy = trained(tmp_path)
    assert [(event, done) for event, done, _ in toy.events] == [
        ("warm start", 0), ("iteration", 0), ("iteration", 1), ("evaluate", 2), ("iteration", 2), ("snapshot", 3),
        ("iteration", 3), ("evaluate", 4), ("iteration", 4), ("iteration", 5), ("evaluate", 6), ("snapshot", 6),
    ]  # fmt: skip
    weight = {(event, done): value for event, done, value in toy.events}
    averages, average = {0: 0.0}, 0.0
    for done in range(1, 7):  # the weight before iteration `done` is that after `done` updates
        own = weight.get(("iteration", done), toy.network.weight.item())
        decay = min(0.5, (1 + done) / (10 + done))
        average = decay * average + (1 - decay) * own
        averages[done] = average
    for (event, done), value in weight.items():
        if event in ("evaluate", "snapshot"):
            assert value == pytest.approx(averages[done], abs=1e-6) and value != pytest.approx(
                toy.network.weight.item()
            )
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == [
        "checkpoint_3.pth",
        "checkpoint_6.pth",
    ]
    assert (
        saved(tmp_path).keys() >= {"toy", "optimizer", "ema", "updates", "step"} and (tmp_path / "curves.png").exists()
    )


@pytest.mark.parametrize("killed", range(1, 6))
def test_a_killed_run_goes_on_as_if_it_had_been_left_alone(killed, tmp_path):
    class Dies(Toy):
        def scale(self, step):
            if step == killed:
                raise KeyboardInterrupt
            return 1.0

    whole = trained(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "half", kind=Dies)
    half = trained(tmp_path / "half")
    assert half.events[0][:2] == ("iteration", killed) and torch.equal(half.network.weight, whole.network.weight)
    assert record(tmp_path / "half") == record(tmp_path / "whole")
    states = [saved(tmp_path / name) for name in ("half", "whole")]
    assert torch.equal(*(state["ema"]["shadow_params"][0] for state in states))
    assert states[0]["updates"] == states[1]["updates"] == 6


def test_a_signal_ends_the_run_behind_its_iteration(tmp_path):
    class Stopped(Toy):
        def scale(self, step):
            if step == 3:
                self.learner.processes.heard = signal.SIGTERM
            return 1.0

    made = []

    def kept(*arguments):
        made.append(Stopped(*arguments))
        return made[0]

    with pytest.raises(SystemExit) as left:
        trained(tmp_path, kind=kept)
    assert left.value.code == 128 + signal.SIGTERM and saved(tmp_path)["step"] == 4
    assert [event[:2] for event in made[0].events[-2:]] == [("evaluate", 4), ("before stop", 4)]
    assert trained(tmp_path).events[0][:2] == ("iteration", 4)


@pytest.mark.parametrize(("value", "named"), [(float("nan"), "loss is nan"), (float("inf"), "loss is inf")])
def test_a_loss_that_is_not_finite_ends_the_run_and_the_last_checkpoint_stays(value, named, tmp_path):
    class Broken(Toy):
        def scale(self, step):
            return value if step == 4 else 1.0

    with pytest.raises(FloatingPointError, match=f"the {named} at step 4; the last good checkpoint is "):
        trained(tmp_path, kind=Broken)
    assert saved(tmp_path)["step"] == 4


def test_an_algorithm_may_record_fewer_iterations_and_evaluate_before_the_first(tmp_path):
    class Sparse(Toy):
        recorded_every = 4

        def evaluates_first(self, first, schedule):
            return first == 0

    trained(tmp_path, "training.log_freq=4", kind=Sparse)
    assert [line["step"] for line in record(tmp_path) if "loss" in line] == [4, 6]
    assert [line["step"] for line in record(tmp_path) if "eval_weight" in line] == [0, 2, 4, 6]
