"""Two gloo processes learn what one process learns: the same rows, the same rollouts, the same weights."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.training import ranks
from tests.twist.tiny import causal
from training.processes import Processes

ROOT = Path(__file__).parents[2]
# No clipping and a large eps: AdamW would neither see gradients that are all too large by one factor, nor leave rounding small.
STEPS = ["optim.eps=0.1", "optim.lr=0.05", "optim.warmup=0", "optim.grad_clip=1000", "optim.schedule=constant"]
SHORT = ["device=cpu", "wandb.mode=disabled", "training.n_iters=2", "training.log_freq=1", "training.eval_freq=2",
         "training.snapshot_freq=2"]  # fmt: skip
POLICY = [*STEPS, *SHORT, "eval.batch_size=4", "training.batch_size=8"]
DIT = ["policy=dit_confidence", "policy.hidden_dim=16", "policy.feedforward_dim=16", "policy.time_embed_dim=8",
       "policy.smart_init=-1"]  # fmt: skip
CHAIN = ["dlm=chain", "data=chain", *DIT, *POLICY, "sampler.steps=6", "sampler.temperature=1"]
EARN = [
    "reward=right",
    "reward.alpha=1.0",
    "reward.functions=[correct_minus_cost]",
]  # what is fast earns something, right or not
SUDOKU = ["dlm=sudoku6", "data=puzzles", "data.base_puzzles=8", "data.valid_puzzles=4", "reward=puzzle", *POLICY,
          "sampler.steps=4"]  # fmt: skip
RL = ["reward=right", "reward.functions=[correct_minus_cost]", "reward.alpha=1.0", "eval.batch_size=4", "rl.batch_size=8",
      "rl.group_size=2", "rl.ppo_epochs=2", "sampler.strategy=threshold", "sampler.threshold=0.4", "data.steps=8",
      "data.answer_length=24"]  # fmt: skip
CONTINUATION = ["target=continuation", "target.text=' a'"]  # a target without conditions
TWIST = ["dlm.path=TINY", "prompt=Once", "length=3", "training.batch_size=8", "training.epochs=1", "training.updates_per_epoch=2",
         "training.log_freq=1", "posterior.count=8", "posterior.batch=8", "eval.samples=4", "eval.particles=[2]", "eval.sweeps=1",
         "eval.texts=0", "device=cpu", "wandb.mode=disabled", *STEPS]  # fmt: skip
CASES = {
    "grpo": ["algorithm=grpo", "algorithm.group_size=2", *EARN, *CHAIN, "algorithm.warm_start.updates=1"],
    "budgets": ["algorithm=grpo", "algorithm.group_size=2", *EARN, *CHAIN, "sampler.budgets=[2,4,6]"],
    "ppo": ["algorithm=ppo", *EARN, *CHAIN],
    "variational": ["algorithm=variational", "policy=hidden_mlp", *SUDOKU, "training.accum=2"],
    "answers": ["algorithm=imitation", "policy=hidden_mlp", *SUDOKU],
    "texts": ["algorithm=grpo", "algorithm.group_size=2", "algorithm.action=fixed", "reward=bound", "sampler.length=8",
              *DIT, *POLICY, "sampler.steps=3"],
    "half_constant": ["algorithm=grpo", "algorithm.group_size=2", *EARN, *CHAIN],
    "sharded": ["algorithm=grpo", "algorithm.group_size=2", *EARN, *CHAIN, "model.sharded=true"],
    "sharded_cache": ["algorithm=grpo", "algorithm.group_size=2", *EARN, *CHAIN, "model.sharded=true",
                      "sampler.block_length=4", "sampler.cache=dual"],
    "sharded_radd": ["algorithm=variational", "policy=hidden_mlp", *SUDOKU, "model.sharded=true"],
    "rl_grpo": [*STEPS, *SHORT, *RL, "rl.estimator=elbo", "rl.reward_freq=2"],
    "rl_ppo": [*STEPS, *SHORT, *RL, "rl.algorithm=ppo", "rl.estimator=trajectory", "rl.ratio=token"],
    "chain": ["experiment=chain", *STEPS, *SHORT, "training.batch_size=8", "training.accum=2", "data.valid_rows=8",
              "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2"],
    "boards": ["experiment=sudoku6", *STEPS, *SHORT, "training.batch_size=8", "model.hidden_size=16", "model.n_blocks=1",
               "model.n_heads=2", "model.dropout=0.0", "data.base_grids=5", "data.valid_grids=4", "loss=k_DCE"],
    "causal": ["experiment=stories_causal", *STEPS, *SHORT, "training.batch_size=4", "model.hidden_size=16",
               "model.n_blocks=1", "model.n_heads=2", "model.dropout=0.0", "data.train=STORIES", "data.valid=STORIES"],
    "twist_ctl": [*TWIST, "method=ctl", "training.particles=2"],
    "twist_sixo": [*TWIST, "method=sixo", "positives=smc", "training.particles=2"],
    "twist_rest": [*TWIST, "method=dpg", "twist.trunk=separate"],
    "twist_ppo": [*TWIST, "method=ppo"],
    "twist_sis": [*TWIST, "method=ctl", *CONTINUATION],
    "twist_smc": [*TWIST, "method=sixo", *CONTINUATION],
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(of two processes, of one): directories with what each case ended with."""
    two, one = tmp_path_factory.mktemp("two"), tmp_path_factory.mktemp("one")
    tiny = causal(two / "tiny")
    stories = two / "stories.jsonl"
    stories.write_text("".join(json.dumps({"text": f"Story {n} " * (n + 3)}) + "\n" for n in range(12)))
    sockets = [socket.socket() for _ in CASES]
    for free in sockets:
        free.bind(("127.0.0.1", 0))
    cases = [
        {"name": name, "script": "train_rl" if name.startswith("rl_") else
         "train_twist" if name.startswith("twist_") else "train_dlm" if name in ("chain", "boards", "causal")
         else "train_policy",
         "overrides": [o.replace("STORIES", str(stories)).replace("TINY", str(tiny)) for o in overrides], "port": str(free.getsockname()[1]),
         "half_constant": name == "half_constant"}
        for (name, overrides), free in zip(CASES.items(), sockets, strict=True)
    ]  # fmt: skip
    for free in sockets:
        free.close()
    (two / "cases.json").write_text(json.dumps(cases))
    command = [sys.executable, "-m", "tests.training.ranks", str(two / "cases.json")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    started = []
    for rank in "01":
        with open(two / f"{rank}.log", "w") as log:
            started.append(subprocess.Popen([*command, rank], cwd=ROOT, env=environment, stdout=log, stderr=log))
    try:
        for case in cases:
            case["overrides"] = [o for o in case["overrides"] if o != "model.sharded=true"]
            ranks.run(case, 0, one)
        for rank, process in enumerate(started):
            assert process.wait(timeout=600) == 0, (two / f"{rank}.log").read_text()[-3000:]
    finally:
        for process in started:
            process.kill()
            process.wait()
    return two, one


def metrics(run: Path) -> dict[tuple[int, str], float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {(line["step"], name): value for line in lines for name, value in line.items() if name != "seconds"}


def left(directory: Path, name: str, rank: int = 0) -> dict:
    return torch.load(directory / f"{name}.{rank}.pt", weights_only=True)


@pytest.mark.parametrize("name", CASES)
def test_two_processes_learn_what_one_learns(name, finished):
    two, one = finished
    first, second, alone = left(two, name, 0), left(two, name, 1), left(one, name)
    for ours, theirs, expected in zip(first["weights"], second["weights"], alone["weights"], strict=True):
        assert torch.equal(ours, theirs)  # the processes never drift apart
        # sums are taken in other orders; of a whole model, whose gradients are partly near 0, Adam makes steps of any sign
        torch.testing.assert_close(ours, expected, atol=2e-4 if name.startswith("rl_") else 2e-5, rtol=1e-4)
    both, single = metrics(two / name), metrics(one / name)
    assert both.keys() == single.keys()
    assert both == {key: pytest.approx(value, rel=1e-3, abs=1e-5) for key, value in single.items()}
    assert any(
        value > 0 for (_, metric), value in single.items() if metric == "grad_norm"
    )  # there was something to learn


def test_the_loss_of_a_warm_start_is_that_of_all(finished):
    """What is printed, and not the first process's alone."""
    two, one = ((directory / "grpo" / "logs" / "run.log").read_text().splitlines() for directory in finished)
    told = [line for line in one if line.startswith("learnt from ")]
    assert len(told) == 1 and told == [line for line in two if line.startswith("learnt from ")]


def test_rollouts_are_the_same_rows(finished):
    """Rewards and evaluations are means over whole rows: a row that was decoded otherwise would show."""
    two, one = (metrics(directory / "grpo") for directory in finished)
    assert len({two[step, "nfe"] for step in (1, 2)}) > 1
    for step in (1, 2):
        assert two[step, "nfe"] == one[step, "nfe"]
        assert two[step, "reward"] == pytest.approx(one[step, "reward"], rel=1e-6)


@pytest.mark.parametrize("name", ["sharded", "sharded_cache", "sharded_radd"])
def test_a_sharded_model_is_halved_and_both_make_as_many_forwards_as_the_slower_needs(name, finished):
    two, one = finished
    halves, whole = [left(two, name, rank) for rank in (0, 1)], left(one, name)
    assert halves[0]["backbone"] < whole["backbone"] and halves[1]["backbone"] < whole["backbone"]
    assert halves[0]["forwards"] != halves[1]["forwards"]  # the first evaluates, and rows end when they end


def test_only_the_first_process_writes(finished):
    two, _ = finished
    record = (two / "grpo" / "metrics.jsonl").read_text().splitlines()
    assert sum('"reward"' in line for line in record) == 2


def test_a_batch_that_the_processes_do_not_divide_is_refused():
    with pytest.raises(
        ValueError, match="training.batch_size=5 is not divisible by the 2 processes; choose a multiple of 2"
    ):
        Processes(0, 2, torch.device("cpu")).share(5, "training.batch_size")


def test_parts_cover_a_batch():
    parts = [Processes(rank, 3, torch.device("cpu")).part(12) for rank in range(3)]
    assert [row for part in parts for row in range(12)[part]] == list(range(12))


def test_one_process_changes_nothing():
    alone, values = Processes(0, 1, torch.device("cpu")), torch.tensor([1.0, 2.0, 6.0])
    alone.average_([values])
    assert values.tolist() == [1, 2, 6]
    assert alone.mean({"loss": 3.0}) == {"loss": 3.0}
    assert alone.broadcast("here") == "here"
    assert alone.first and not alone.stop_requested()
    count, mean, deviation = alone.moments(values)
    assert (count, float(mean), float(deviation)) == (3, 3, pytest.approx(float(values.std(correction=0))))


def test_one_process_cannot_shard(tmp_path):
    case = {"name": "alone", "script": "train_policy", "overrides": CASES["sharded"]}
    with pytest.raises(ValueError, match="model.sharded=true splits the model over processes and there is one"):
        ranks.run(case, 0, tmp_path)
