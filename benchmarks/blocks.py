"""Blocks and caches: CPU time of Unmask against the plain loops (benchmarks/plain_blocks.py), and ragged batches against single
rows.

    OMP_NUM_THREADS=1 python -m benchmarks.blocks

The model is a LLaDA of 60M parameters with random weights; one thread, float32, the threshold rule, greedy tokens. Queries, keys
and the head are rescaled so that positions differ and confidences spread. Without rescaling a random network would commit every
block in one step, or one token per step. Both loops decode the same prompts in alternation. The speedup is the median over
prompts of the ratio of CPU seconds, which other processes hardly influence. Tokens must be equal. The command prints the time of
the parts and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from statistics import median
from time import process_time

import torch
from jaxtyping import Int
from torch import Tensor

from benchmarks import plain_blocks
from benchmarks.plain_blocks import Clock
from benchmarks.sampling import resident_mib
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import LlamaLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from evaluation.report import print_table
from model.llama import BidirectionalLlama, LlamaShape
from samplers.heuristics import Threshold
from samplers.loop import Strategy, sample
from samplers.samples import Samples
from training.ranges import ROWS, Number

CACHES = (None, "prefix", "dual")
ROLLOUTS, LONG = 32, 256  # rows and length of the measurement of memory
SHARPER, WIDER, SPREAD = 10.0, 16.0, 20.0  # of queries, of what blocks add, of the head


@dataclass
class Shape:
    """Shape of the model: 60M parameters. `length`: positions to generate behind the prompt."""

    width: int = 512
    layers: int = 8
    heads: int = 8
    mlp: int = 1536
    vocabulary: int = 32_768
    prompt: int = 64
    length: int = 128
    block: int = 32
    rows: int = 8
    repeats: int = 3


def build(shape: Shape) -> LlamaLM:
    """Return a model with random weights, whose last token is the mask."""
    torch.manual_seed(0)
    network = BidirectionalLlama(
        LlamaShape(shape.width, shape.layers, shape.heads, shape.heads, shape.mlp, shape.vocabulary)
    ).requires_grad_(False)
    network.reset_parameters()
    for block in network.blocks:
        for part, factor in ((block.query, SHARPER), (block.out, WIDER), (block.down, WIDER)):
            part.weight.mul_(factor)  # pyright: ignore
    network.head.weight *= SPREAD
    return LlamaLM(network, shape.vocabulary - 1, shape.prompt + max(shape.length, LONG)).eval()


def canvases(shape: Shape, rows: int, seed: int) -> Int[Tensor, "row position"]:
    """Return random prompts with masks behind them."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.full((rows, shape.prompt + shape.length), shape.vocabulary - 1)
    tokens[:, : shape.prompt] = torch.randint(shape.vocabulary - 1, (rows, shape.prompt), generator=generator)
    return tokens


def decode(
    model: LlamaLM, shape: Shape, canvas: Tensor, prompt: int, cache: str | None, threshold: float,
    start: Int[Tensor, "row"] | None = None,
) -> tuple[Samples, UnmaskingEnvironment]:  # fmt: skip
    """Decode with Unmask."""
    environment = UnmaskingEnvironment(model, DecodeOptions(shape.length, shape.block, cache=cache))
    return sample(
        environment, Strategy(Threshold(threshold), TokenRule(0.0)), Prompts(canvas, prompt_length=prompt, start=start)
    ), environment


class Timed:
    """Context `with Timed(model, clock)`: adds the CPU seconds of the model's body and head to the parts of the clock."""

    def __init__(self, model: LlamaLM, clock: Clock):
        self.model, self.clock = model, clock

    def __enter__(self) -> None:
        for name, part in (("hidden", "body"), ("hidden_spans", "body"), ("head", "head")):
            object.__setattr__(self.model, name, self._timed(getattr(self.model, name), part))

    def _timed(self, method, part: str):
        def timed(*arguments, **named):
            with self.clock(part):
                return method(*arguments, **named)

        return timed

    def __exit__(self, *_) -> None:
        for name in ("hidden", "hidden_spans", "head"):
            object.__delattr__(self.model, name)


def against_plain(model: LlamaLM, shape: Shape, cache: str | None, threshold: float) -> dict[str, float]:
    """Return the speedup; print the parts of both loops."""
    clocks, ratios, idle, same = {"plain": Clock(), "ours": Clock()}, [], 0, 0
    evaluations, seconds = {"plain": 0, "ours": 0}, {"plain": 0.0, "ours": 0.0}
    short = canvases(shape, 1, 0)[:, : shape.prompt + shape.block]  # the first calls of a process set things up
    plain_blocks.decode(model, short, shape.prompt, shape.block, 0.0, cache)
    decode(model, shape, short, shape.prompt, cache, 0.0)
    for repeat in range(shape.repeats):
        canvas = canvases(shape, 1, repeat + 1)
        started = process_time()
        plain = plain_blocks.decode(model, canvas, shape.prompt, shape.block, threshold, cache, clocks["plain"])
        middle = process_time()
        with Timed(model, clocks["ours"]):
            samples, _ = decode(model, shape, canvas, shape.prompt, cache, threshold)
        spent = {"plain": middle - started, "ours": process_time() - middle}
        ratios.append(spent["plain"] / spent["ours"])
        same += torch.equal(plain.tokens, samples.tokens)
        idle += plain.idle
        evaluations = {"plain": evaluations["plain"] + plain.evaluations,
                       "ours": evaluations["ours"] + int(samples.evaluations[0])}  # fmt: skip
        seconds = {name: seconds[name] + spent[name] for name in seconds}
    records = []
    for name, clock in clocks.items():
        parts = {part: clock.parts[part] / shape.repeats for part in ("body", "head", "softmax")}
        total = seconds[name] / shape.repeats
        records.append({
            "loop": name, "evaluations": evaluations[name] / shape.repeats, **parts,
            "other": total - sum(parts.values()), "CPU s": total, "tokens/s": shape.length / total,
        })  # fmt: skip
    title = f"cache {cache}: a row, {same} of {shape.repeats} prompts token-identical"
    print_table(records, title=title)
    return {
        "speedup": median(ratios),
        "low": min(ratios),
        "high": max(ratios),
        "same": same,
        "idle": idle / shape.repeats,
    }


def ragged(shape: Shape, seed: int) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row"]]:
    """Return a batch with prompts of different lengths, padded on the left, and the first position of each row."""
    generator = torch.Generator().manual_seed(seed)
    start = torch.randint(shape.prompt * 3 // 4, (shape.rows,), generator=generator)
    canvas = canvases(shape, shape.rows, seed)
    return canvas.masked_fill(torch.arange(canvas.shape[1]) < start.unsqueeze(1), 0), start


def against_alone(model: LlamaLM, shape: Shape, cache: str | None, threshold: float) -> dict:
    """Return the ratio of tokens per CPU second: a ragged batch, divided by its rows decoded one at a time without padding."""
    ratios, same, together = [], 0, []
    for repeat in range(max(1, shape.repeats // 2)):
        canvas, start = ragged(shape, 100 + repeat)
        started = process_time()
        samples, _ = decode(model, shape, canvas, shape.prompt, cache, threshold, start)
        middle = process_time()
        for row, pad in enumerate(start.tolist()):
            alone, _ = decode(model, shape, canvas[row : row + 1, pad:], shape.prompt - pad, cache, threshold)
            same += torch.equal(alone.tokens[0], samples.tokens[row, pad:])
        ratios.append((process_time() - middle) / (middle - started))
        together.append(shape.rows * shape.length / (middle - started))
    return {"cache": cache, "tokens/s": median(together), "ratio": median(ratios), "low": min(ratios),
            "high": max(ratios), "rows identical": same / (len(ratios) * shape.rows)}  # fmt: skip


def memory(shape: Shape, cache: str | None) -> float:
    """Return the MiB above the loaded model at the peak of decoding 32 rows of length 256 behind their prompts, as one block.
    An evaluation then computes every masked position, which is the largest memory that a decoding needs."""
    model = build(shape)
    loaded = resident_mib("VmRSS")
    shape = Shape(**(asdict(shape) | {"length": LONG, "block": LONG}))
    decode(model, shape, canvases(shape, ROLLOUTS, 0), shape.prompt, cache, 0.0)
    return resident_mib("VmHWM") - loaded


def memory_of_a_fresh_process(shape: Shape, cache: str | None) -> float:
    flags = [word for name, value in asdict(shape).items() for word in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "benchmarks.blocks", "--memory-only", cache or "none", *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])["peak_mib"]


@torch.no_grad()
def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threshold", type=Number(0, 1), default=0.9)
    parser.add_argument("--memory-only", choices=("none", "prefix", "dual"), help="print the peak and nothing else")
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=ROWS, default=value)
    arguments = vars(parser.parse_args(words))
    memory_only, threshold = arguments.pop("memory_only"), arguments.pop("threshold")
    shape = Shape(**arguments)
    torch.set_num_threads(1)
    if memory_only:
        print(json.dumps({"peak_mib": memory(shape, None if memory_only == "none" else memory_only)}))
        return
    model = build(shape)
    speedups = {str(cache).lower(): against_plain(model, shape, cache, threshold) for cache in CACHES}
    print_table([{"cache": name, **record} for name, record in speedups.items()], title="speedup")
    alone = [against_alone(model, shape, cache, threshold) for cache in CACHES]
    print_table(alone, title=f"ragged batch of {shape.rows} over its rows alone")
    peaks = {str(cache).lower(): memory_of_a_fresh_process(shape, cache) for cache in CACHES}
    print_table(
        [peaks], title=f"MiB above the loaded model, {ROLLOUTS} rows of length {LONG}, cache none, prefix, dual"
    )
    result = {f"speedup_{name}": record["speedup"] for name, record in speedups.items()}
    print(json.dumps({name: round(value, 4) for name, value in (result | {"ragged_ratio": alone[0]["ratio"]}).items()}))


if __name__ == "__main__":
    main()
