"""Sampling: CPU time and memory of Unmask against the reference loop (benchmarks/plain.py), at the shape of RADD-small.

    OMP_NUM_THREADS=1 python -m benchmarks.sampling

The weights are random; one thread, `direct`, no prompt. A decoding at 1024 steps takes hours, so its time is computed from parts.
The cost of a step for one row is measured at steps that are spread over the decoding; both loops alternate on the same canvases.
The evaluations are counted by running the environment and the loop on a model that computes nothing; the time of this run is the
overhead of the loop. The reference evaluates each row at every step, one row at a time (a batch is slower here). Figures are CPU
seconds, so that other processes matter little. The command prints tables and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks import plain
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM, RaddLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.report import print_table
from model.radd import RADD
from policy.networks import DitConfidence
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import Confident, Direct
from samplers.loop import Strategy, Unmasker, sample
from training.ranges import ROWS

SPREAD = (7, 5, 3, 1)  # eighths of the canvas that are still masked at the steps measured
MEMORY_BATCH = 8


@dataclass
class Shape:
    """Shape of the model: RADD-small. `vocabulary` excludes the mask."""

    width: int = 768
    blocks: int = 12
    heads: int = 12
    vocabulary: int = 50257
    length: int = 1024
    batch: int = 4
    few: int = 16
    many: int = 1024


class Still(MaskedLM):
    """A model that computes nothing: every token has the same probability."""

    def __init__(self, length: int, vocabulary: int = 64):
        super().__init__(torch.nn.Identity())
        self.vocab_size, self.mask_id, self.max_length, self.hidden_size = vocabulary + 1, vocabulary, length, 1

    def hidden_rows(self, tokens, read, sigma):
        return torch.zeros(int(read.sum()), 1)

    def head(self, hidden):
        return torch.nn.functional.pad(torch.zeros(len(hidden), self.mask_id), (0, 1), value=-torch.inf)


def build(shape: Shape, dtype: str = "float32") -> RaddLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": shape.width, "n_blocks": shape.blocks, "n_heads": shape.heads, "length": shape.length}
    network = RADD({"tokens": shape.vocabulary, "model": sizes})
    torch.nn.init.normal_(network.output_layer.linear.weight, std=0.02)
    model = RaddLM(network, dtype)
    return model.requires_grad_(False).eval()


def canvases(shape: Shape, batch: int, length: int, eighths: int) -> Int[Tensor, "row position"]:
    """Return random tokens, of which about `eighths` / 8 are masked."""
    generator = torch.Generator().manual_seed(eighths)
    tokens = torch.randint(shape.vocabulary, (batch, length), generator=generator)
    return tokens.masked_fill(torch.rand(batch, length, generator=generator) < eighths / 8, shape.vocabulary)


def cpu_seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.process_time()
    result = work()
    return time.process_time() - started, result


def our_step(
    model: MaskedLM, where: Unmasker, left: int, canvas: Int[Tensor, "row position"], seed: int = 0
) -> tuple[float, int]:
    """Return the CPU seconds of one step with `left` steps to go, and the number of evaluated rows."""
    environment = UnmaskingEnvironment(model, DecodeOptions(left))
    observation = environment.reset(Prompts(canvas))
    strategy = Strategy(where, TokenRule())
    seconds, _ = cpu_seconds(lambda: environment.step(strategy.decide(observation, Draws(seed))))
    return seconds, environment.rows_evaluated


def plain_step(model: RaddLM, left: int, canvas: Int[Tensor, "row position"]) -> dict[str, float]:
    """Return the CPU seconds of the parts of one step for all rows."""
    parts = {"body": 0.0, "head": 0.0, "race": 0.0}
    network: RADD = model.backbone
    for row in canvas.split(1):
        with model.autocast(row.device):
            body, hidden = cpu_seconds(lambda row=row: network.body(row))
            head, logits = cpu_seconds(lambda hidden=hidden: network.head(hidden).float())
        race, _ = cpu_seconds(lambda row=row, logits=logits: plain.race(logits, row, 1 / left))
        for name, seconds in (("body", body), ("head", head), ("race", race)):
            parts[name] += seconds
    return parts


def schedule(shape: Shape, steps: int) -> dict[str, float | int]:
    """Return, for a decoding with `direct`, the evaluations of a row, the positions that go through the head, and the CPU
    seconds of the loop without a model."""
    environment = UnmaskingEnvironment(Still(shape.length), DecodeOptions(steps))
    canvas = torch.full((shape.batch, shape.length), environment.model.mask_id)
    seconds, samples = cpu_seconds(lambda: sample(environment, Strategy(Direct(), TokenRule()), Prompts(canvas)))
    return {
        "steps": steps,
        "evals": samples.rows_evaluated / shape.batch,
        "read": environment.positions_read / shape.batch,
        "loop s": seconds / shape.batch,
    }


def resident_mib(field: str) -> float:
    """Return VmRSS (current memory) or VmHWM (peak memory) of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.split(f"{field}:")[1].split()[0]) / 1024


def memory(shape: Shape) -> float:
    """Return the MiB above the loaded model at the peak of a `direct` step and of a policy's step, which needs every masked
    position."""
    model = build(shape)
    loaded = resident_mib("VmRSS")
    canvas = canvases(shape, MEMORY_BATCH, shape.length, 4)
    with torch.no_grad():
        our_step(model, Direct(), shape.few // 2, canvas)
        our_step(model, PolicyUnmasker(DitConfidence().eval(), "fixed"), shape.few // 2, canvas)
    return resident_mib("VmHWM") - loaded


def memory_of_a_fresh_process(shape: Shape) -> float:
    flags = [word for name, value in asdict(shape).items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.sampling", "--memory-only", *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])["peak_mib_batch8"]


@torch.no_grad()
def speed(shape: Shape, model: RaddLM) -> dict[str, float]:
    """Return the two speedups; print the parts of the reference step and the counts."""
    parts = {"body": 0.0, "head": 0.0, "race": 0.0}
    spent = {shape.few: [0.0, 0], shape.many: [0.0, 0]}  # seconds, rows evaluated
    for eighths in SPREAD:
        canvas = canvases(shape, shape.batch, shape.length, eighths)
        for name, seconds in plain_step(model, max(1, shape.few * eighths // 8), canvas).items():
            parts[name] += seconds / (len(SPREAD) * shape.batch)
        for steps, total in spent.items():
            seconds, rows = our_step(model, Direct(), max(1, steps * eighths // 8), canvas)
            total[0] += seconds
            total[1] += rows
    plain_cost = sum(parts.values())
    print_table([parts | {"step": plain_cost}], title="The plain loop: CPU seconds of a row's step")
    records, speedups = [], {}
    for steps, (seconds, rows) in spent.items():
        record = schedule(shape, steps)
        ours = record["evals"] * seconds / rows + record["loop s"]
        speedups[steps] = plain_cost * steps / ours
        records.append(record | {
            "s each": seconds / rows, "ours": shape.length / ours,
            "plain": shape.length / (plain_cost * steps), "speedup": speedups[steps],
        })  # fmt: skip
    print_table(records, title=f"direct, a row of {shape.length} (batch {shape.batch}), tokens per CPU second")
    return {"speedup_16": speedups[shape.few], "speedup_1024": speedups[shape.many]}


@torch.no_grad()
def rules(shape: Shape, model: RaddLM) -> float:
    """Measure a step of rules that need every masked position, on a half-masked canvas, and the share of the policy network in
    it."""
    canvas = canvases(shape, shape.batch, shape.length, 4)
    left = max(1, shape.few // 2)
    where = PolicyUnmasker(DitConfidence().eval(), "fixed")
    environment = UnmaskingEnvironment(model, DecodeOptions(left))
    observation, draws = environment.reset(Prompts(canvas)), Draws(0)
    policy_step, _ = cpu_seconds(lambda: Strategy(where, TokenRule()).decide(observation, draws))
    again, _ = cpu_seconds(lambda: where.choose(observation, draws))  # what it reads is known by now
    steps = {
        "plain": sum(plain_step(model, left, canvas[:1]).values()),
        "direct": our_step(model, Direct(), left, canvas)[0] / shape.batch,
        "confidence": our_step(model, Confident(), left, canvas)[0] / shape.batch,
        "dit_confidence": policy_step / shape.batch,
        "its network": again / shape.batch,
    }
    records = [{"rule": name, "cpu_s": seconds} for name, seconds in steps.items()]
    print_table(records, title="A row's step, half masked")
    return again / policy_step


@torch.no_grad()
def growth(shape: Shape, model: RaddLM) -> None:
    """Measure how the time of a step grows with length and batch, and the evaluations with the steps; also in bfloat16."""
    quarter, left = shape.length // 4, max(1, shape.few // 2)
    cases = [(length, 1) for length in (quarter, 2 * quarter, 4 * quarter)] + [(quarter, batch) for batch in (2, 4, 8)]
    kinds = [(model, length, batch) for length, batch in cases]
    kinds.insert(1, (RaddLM(model.backbone, "bfloat16"), quarter, 1))
    records = []
    for kind, length, batch in kinds:
        canvas = canvases(shape, batch, length, 4)
        records.append({
            "length": length, "batch": batch, "precision": str(kind.dtype).removeprefix("torch."),
            "plain": sum(plain_step(kind, left, canvas).values()), "direct": our_step(kind, Direct(), left, canvas)[0],
        })  # fmt: skip
    print_table(records, title="CPU seconds of a step, all rows")
    records = []
    steps = shape.few
    while steps <= shape.many:
        expected = steps * (1 - (1 - 1 / steps) ** shape.length)
        records.append(schedule(shape, steps) | {"expected": expected, "plain": steps})
        steps *= 4
    print_table(records, title="direct: evaluations of a row (equal rows share one)")


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-only", action="store_true", help="print the peak of this process and nothing else")
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=ROWS, default=value)
    arguments = vars(parser.parse_args(words))
    memory_only = arguments.pop("memory_only")
    shape = Shape(**arguments)
    torch.set_num_threads(1)
    if memory_only:
        print(json.dumps({"peak_mib_batch8": memory(shape)}))
        return
    model = build(shape)
    result = speed(shape, model)
    share = rules(shape, model)
    growth(shape, model)
    del model
    result |= {"peak_mib_batch8": memory_of_a_fresh_process(shape), "policy_share": share}
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
