"""SEDD: memory and CPU time of a sampling step and of an update against the dense formulas (benchmarks/plain_sedd.py).

    OMP_NUM_THREADS=1 python -m benchmarks.sedd

The model has the shape of SEDD-small and random weights; one thread, the analytic sampler, no prompt. A step of 4 rows is
measured on canvases that are spread over the decoding; both loops alternate on the same canvases. The dense loop computes one row
at a time, so its memory is that of one row. An update is the score-entropy loss of 4 rows and its gradients, with the vocabulary
in chunks and with all logits at once. Its memory is counted above weights and gradients. Most of it is what the body keeps for
its gradients, which is equal for both and printed separately. Each figure of memory is that of a new process. The command prints
tables and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks import plain_sedd
from benchmarks.sampling import cpu_seconds, resident_mib
from dlm.draws import Draws
from dlm.masked_lm import SeddLM
from dlm.noise import LogLinearNoise
from dlm.pretrain import corrupt, loss_of
from evaluation.report import print_table
from model.sedd import SEDD
from samplers.scores import NoiseStep, changes
from training.ranges import ROWS

SPREAD = (6, 2)  # eighths of the time that are left at the steps measured
STEPS = 64
PARTS = ("sample", "dense", "body", "update", "dense_update")


@dataclass
class Shape:
    """Shape of the model: SEDD-small. `vocabulary` excludes the mask."""

    width: int = 768
    blocks: int = 12
    heads: int = 12
    condition: int = 128
    vocabulary: int = 50257
    length: int = 1024
    batch: int = 4


def build(shape: Shape) -> SeddLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": shape.width, "n_blocks": shape.blocks, "n_heads": shape.heads, "length": shape.length,
             "cond_dim": shape.condition, "scale_by_sigma": True}  # fmt: skip
    network = SEDD({"tokens": shape.vocabulary, "graph": {"type": "absorb"}, "model": sizes})
    torch.nn.init.normal_(network.output_layer.linear.weight, std=0.02)
    return SeddLM(network, LogLinearNoise()).requires_grad_(False).eval()


def canvases(shape: Shape, eighths: int) -> Int[Tensor, "row position"]:
    """Return random tokens, of which about `eighths` / 8 are masked."""
    generator = torch.Generator().manual_seed(eighths)
    tokens = torch.randint(shape.vocabulary, (shape.batch, shape.length), generator=generator)
    return tokens.masked_fill(torch.rand(tokens.shape, generator=generator) < eighths / 8, shape.vocabulary)


def step_at(model: SeddLM, eighths: int) -> NoiseStep:
    now, following = model.noise(torch.tensor([eighths / 8, eighths / 8 - 1 / STEPS], dtype=torch.float64))[0].tolist()
    return NoiseStep(now, now - following, None, False)


@torch.no_grad()
def our_step(model: SeddLM, canvas: Int[Tensor, "row position"], eighths: int) -> Int[Tensor, "row position"]:
    row = torch.arange(len(canvas))
    return changes(model, step_at(model, eighths), canvas, canvas == model.mask_id, row, row * 0, Draws(0))


@torch.no_grad()
def dense_step(model: SeddLM, canvas: Int[Tensor, "row position"], eighths: int) -> Int[Tensor, "row position"]:
    step = step_at(model, eighths)
    parts = []
    for part in canvas.split(1):
        score = model.backbone(part, torch.full((len(part),), step.sigma)).exp()
        weights = plain_sedd.step_weights(score, part, "absorb", torch.tensor(step.drop), None)
        parts.append(plain_sedd.race(weights))
    return torch.cat(parts)


def our_update(model: SeddLM, rows: Int[Tensor, "row position"]) -> Tensor:
    return loss_of(model, rows, "DSE", model.noise, torch.Generator().manual_seed(0))


def dense_update(model: SeddLM, rows: Int[Tensor, "row position"]) -> Tensor:
    """Return the published loss: log-scores at every position, then score entropy at the masked ones, with the same noise."""
    masked, _, share = corrupt("DSE", len(rows), rows.shape[1], model.noise, torch.Generator().manual_seed(0))
    sigma = -torch.log1p(-share)
    canvas = rows.masked_fill(masked, model.mask_id)
    log_score = model.backbone(canvas, sigma.float())
    entropy = plain_sedd.score_entropy(log_score, rows, canvas, sigma.float())
    slope = (1 - LogLinearNoise().eps) * sigma.exp()  # of the schedule that `build` has, in time
    return (slope[:, None] * entropy).sum().float() / rows.numel()


def memory(shape: Shape, part: str) -> dict[str, float]:
    """Return the MiB above the loaded model at the peak of one part; for an update, above weights and gradients."""
    model = build(shape)
    canvas = canvases(shape, 4)
    if part in ("body", "update", "dense_update"):
        model.requires_grad_(True)
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        rows = canvases(shape, 0)
        loaded = resident_mib("VmRSS")
        if part == "body":
            kept = model.hidden(rows, torch.ones_like(rows, dtype=torch.bool))
            assert kept.requires_grad  # and so is alive with all that its gradient needs
            return {"mib": resident_mib("VmRSS") - loaded}
        loss = (our_update if part == "update" else dense_update)(model, rows)
        loss.backward()
        return {"mib": resident_mib("VmHWM") - loaded, "loss": float(loss.detach())}
    loaded = resident_mib("VmRSS")
    if part == "sample":
        our_step(model, canvas, 4)
    else:
        dense_step(model, canvas, 4)
    return {"mib": resident_mib("VmHWM") - loaded}


def of_a_fresh_process(shape: Shape, part: str) -> dict[str, float]:
    flags = [word for name, value in asdict(shape).items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.sedd", "--memory-of", part, *flags]
    root = Path(__file__).parents[1]
    printed = subprocess.run(command, check=True, capture_output=True, text=True, cwd=root).stdout
    return json.loads(printed.splitlines()[-1])


def speed(shape: Shape) -> float:
    """Return the ratio of tokens per CPU second of Unmask and of the dense loop, over a decoding of STEPS steps."""
    model, records = build(shape), []
    for eighths in SPREAD:
        canvas = canvases(shape, eighths)
        dense, _ = cpu_seconds(lambda canvas=canvas, eighths=eighths: dense_step(model, canvas, eighths))
        ours, _ = cpu_seconds(lambda canvas=canvas, eighths=eighths: our_step(model, canvas, eighths))
        records.append({"masked": eighths / 8, "dense s": dense / shape.batch, "ours s": ours / shape.batch})
    print_table(records, title="CPU seconds of a row's step")
    dense, ours = (sum(record[name] for record in records) / len(records) for name in ("dense s", "ours s"))
    rates = [{"loop": name, "tokens per CPU second": shape.length / (STEPS * cost), "speedup": dense / cost}
             for name, cost in (("dense", dense), ("ours", ours))]  # fmt: skip
    print_table(rates, title=f"analytic, {STEPS} steps, a row of {shape.length} (batch {shape.batch})")
    return dense / ours


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory-of", choices=PARTS, help="print the peak of this process and nothing else")
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=ROWS, default=value)
    arguments = vars(parser.parse_args(words))
    part = arguments.pop("memory_of")
    shape = Shape(**arguments)
    torch.set_num_threads(1)
    if part:
        print(json.dumps(memory(shape, part)))
        return
    speedup = speed(shape)
    found = {part: of_a_fresh_process(shape, part) for part in PARTS}
    print_table([{"part": part, **values} for part, values in found.items()], title="MiB above the loaded model")
    result = {
        "peak_mib": found["sample"]["mib"], "dense_peak_mib": found["dense"]["mib"], "speedup": speedup,
        "update_peak_ratio": found["update"]["mib"] / found["dense_update"]["mib"],
    }  # fmt: skip
    print(json.dumps({name: round(value, 4) for name, value in result.items()}))


if __name__ == "__main__":
    main()
