"""The shape of LLaDA-8B on one GPU: evaluations relative to the speed of the card, tokens per second, memory of rollouts.

    python -m benchmarks.large --out docs/results/large
    python -m benchmarks.large --device cpu --width 64 --layers 2 --heads 2 --mlp 128 --vocabulary 100 --length 32 --size 256

The weights are random, in bfloat16: times are those of the published weights, but the text has no meaning. The same run measures
the rate of a square bf16 product and of a copy between two places of memory. The work of an evaluation is counted by the
necessary products (the last block's queries and MLP, and the head, at requested positions only) and by the necessary bytes (each
weight once). The tables have the share of the measured rates that an evaluation reaches. Decoding commits a fixed number of
tokens per evaluation, the most confident first, with the whole sampler. Rollouts are those of `experiment=llada_bl256`, and of
blocks with the dual cache: an untrained policy of 331,265 parameters, whose inputs are recorded, and then the gradient of its
log-probabilities. The command prints tables, and writes large.json with --out.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.checkpoints.llama import build_llama
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import LlamaLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.report import print_table, write_json
from policy.networks import DitConfidence
from policy.rollout import PATIENCE, policy_log_probs
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import Confident
from samplers.loop import Strategy, sample
from training.devices import device_of
from training.ranges import ROWS
from training.usage import exit_on_bad_input

MIB = 2**20
CHUNK = 128  # steps of a trajectory that go through the policy at a time, as the experiments' training.chunk


@dataclass
class Shape:
    """Shape of the model: LLaDA-8B. `length` positions are generated behind the prompt in `blocks` positions each; size: side
    of the square product."""

    width: int = 4096
    layers: int = 32
    heads: int = 32
    mlp: int = 12_288
    vocabulary: int = 126_464
    prompt: int = 128
    length: int = 256
    block: int = 32
    size: int = 8192
    repeats: int = 10
    tokens: int = 8  # that an evaluation writes


def build(shape: Shape, device: torch.device) -> LlamaLM:
    """Return a model with random weights in bfloat16, created on the device."""
    config = {
        "model_type": "llada", "d_model": shape.width, "n_layers": shape.layers, "n_heads": shape.heads,
        "mlp_hidden_size": shape.mlp, "vocab_size": shape.vocabulary, "rope_theta": 5e5, "rms_norm_eps": 1e-5,
        "max_sequence_length": 4096, "mask_token_id": shape.vocabulary - 1,
    }  # fmt: skip
    model = build_llama(config, "bfloat16", None, "random", "meta")
    model.to(torch.bfloat16).to_empty(device=device).requires_grad_(False)
    torch.manual_seed(0)
    for name, parameter in model.backbone.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0)
    model.backbone.reset_parameters()
    return model.eval()


def canvases(shape: Shape, rows: int, device: torch.device) -> Int[Tensor, "row position"]:
    """Return random prompts with masks behind them."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.full((rows, shape.prompt + shape.length), shape.vocabulary - 1)
    tokens[:, : shape.prompt] = torch.randint(shape.vocabulary - 1, (rows, shape.prompt), generator=generator)
    return tokens.to(device)


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(run, repeats: int, device: torch.device) -> float:
    """Return the median wall-clock time of `work`, with the device synchronized, after two runs for warm-up."""
    taken = []
    for number in range(repeats + 2):
        synchronize(device)
        started = time.perf_counter()
        run()
        synchronize(device)
        if number > 1:
            taken.append(time.perf_counter() - started)
    return median(taken)


def peak_mib(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / MIB if device.type == "cuda" else float("nan")


def from_here(device: torch.device) -> None:
    """Start to measure peak memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def ceilings(shape: Shape, device: torch.device) -> dict[str, float]:
    """Return the rates of this device: TFLOP/s of a square bf16 product of random numbers, TB/s of a copy (bytes read and
    written)."""
    one, other = (torch.randn(shape.size, shape.size, device=device, dtype=torch.bfloat16) for _ in range(2))
    product = seconds(lambda: one @ other, shape.repeats, device)
    source = torch.empty(shape.size**2 * 64, dtype=torch.uint8, device=device).random_()
    target = torch.empty_like(source)
    copy = seconds(lambda: target.copy_(source), shape.repeats, device)
    return {"TFLOP/s": 2 * shape.size**3 / product / 1e12, "TB/s": 2 * source.numel() / copy / 1e12}


def work(shape: Shape, rows: int, run: int, seen: int, read: int) -> tuple[int, int]:
    """Return the (floating-point operations, bytes) that an evaluation needs: `run` positions per row go through the blocks,
    each attends to `seen` positions, and `read` of them go through the head."""
    attended = 2 * 2 * shape.width * seen  # scores and their use, a query
    keys, rest = 2 * shape.width**2, 2 * shape.width**2 + 3 * shape.width * shape.mlp  # weights
    everywhere = (shape.layers - 1) * (2 * (keys + rest) + attended) + 2 * keys
    where_read = 2 * rest + attended + 2 * shape.width * shape.vocabulary
    weights = shape.layers * (keys + rest) + shape.width * shape.vocabulary
    kept = 2 * shape.layers * shape.width * rows * (seen - run)  # keys and values of what does not run
    return rows * (run * everywhere + read * where_read), 2 * (weights + kept)


@torch.no_grad()
def an_evaluation(model: LlamaLM, shape: Shape, rows: int, cache: bool, device: torch.device) -> float:
    """Return the seconds of the blocks and of the head's best token: for whole rows with all masked positions requested, or
    (cache) for one block against the cached keys and values of the rest."""
    canvas = canvases(shape, rows, device)
    read = canvas == model.mask_id
    if not cache:
        return seconds(lambda: best(model, model.hidden(canvas, read)), shape.repeats, device)
    first = torch.full((rows,), shape.prompt, device=device)
    read &= torch.arange(canvas.shape[1], device=device) < shape.prompt + shape.block
    memory = model.new_memory(rows, canvas.shape[1], device)
    pad, last, places = torch.zeros_like(first), first + shape.block, torch.arange(rows, device=device)
    return seconds(
        lambda: best(model, model.hidden_spans(canvas, read, pad, first, last, memory, places)), shape.repeats, device
    )


def best(model: LlamaLM, hidden: Tensor) -> list[Tensor]:
    return [model.head(part).max(1).indices for part in hidden.split(model.chunk(hidden.device))]


def evaluations(model: LlamaLM, shape: Shape, limits: dict[str, float], device: torch.device) -> list[dict]:
    records = []
    for cache in (False, True):
        for rows in (1, 8, 32):
            taken = an_evaluation(model, shape, rows, cache, device)
            run = shape.block if cache else shape.prompt + shape.length
            operations, moved = work(
                shape, rows, run, shape.prompt + shape.length, shape.block if cache else shape.length
            )
            records.append({
                "runs": "one block" if cache else "whole rows", "rows": rows, "ms": 1000 * taken,
                "positions/s": rows * run / taken, "of the bf16 rate": operations / taken / 1e12 / limits["TFLOP/s"],
                "of the bandwidth": moved / taken / 1e12 / limits["TB/s"],
            })  # fmt: skip
    return records


def decodings(model: LlamaLM, shape: Shape, device: torch.device) -> list[dict]:
    """Return tokens per second of whole decodings in blocks, most confident first."""
    records = []
    for cache in (None, "prefix", "dual"):
        for rows in (1, 8, 32):
            prompts = Prompts(canvases(shape, rows, device), prompt_length=shape.prompt)
            from_here(device)
            environment = UnmaskingEnvironment(
                model, DecodeOptions(shape.length // shape.tokens, shape.block, cache=cache)
            )
            synchronize(device)
            started = time.perf_counter()
            samples = sample(
                environment,
                Strategy(Confident("top_prob"), TokenRule(0.0)),
                prompts,
            )
            synchronize(device)
            taken = time.perf_counter() - started
            assert not bool((samples.tokens == model.mask_id).any())
            records.append({
                "cache": str(cache).lower(), "rows": rows, "evaluations": int(samples.evaluations[0]), "seconds": taken,
                "tokens/s": rows * shape.length / taken, "peak MiB": peak_mib(device),
            })  # fmt: skip
    return records


def rollouts(model: LlamaLM, shape: Shape, device: torch.device, rows: int = 32) -> list[dict]:
    """Return the peak memory above the model of a policy's rollouts, and of the gradient on their record."""
    records = []
    torch.manual_seed(0)
    network = DitConfidence().to(device)
    unmasker = PolicyUnmasker(network, "bernoulli")
    for block, cache in ((shape.length, None), (shape.block, "dual")):
        before = torch.cuda.memory_allocated(device) / MIB if device.type == "cuda" else 0.0
        from_here(device)
        environment = UnmaskingEnvironment(model, DecodeOptions(shape.length, block, PATIENCE, cache=cache))
        started = time.perf_counter()
        prompts = Prompts(canvases(shape, rows, device), prompt_length=shape.prompt)
        samples = sample(
            environment,
            Strategy(unmasker, TokenRule(0.0)),
            prompts,
            record=network.inputs,
        )
        synchronize(device)
        taken, decoding = time.perf_counter() - started, peak_mib(device) - before
        trajectory = samples.trajectory
        assert trajectory is not None
        from_here(device)
        steps = torch.arange(len(trajectory.row), device=device)
        for index in steps.split(CHUNK):
            log_probs, _ = policy_log_probs(network, unmasker.distribution, trajectory.take(index))
            (-log_probs.sum() / len(steps)).backward()
        records.append({
            "block": block, "cache": str(cache).lower(), "rows": rows, "evaluations": samples.evaluations.float().mean().item(),
            "steps recorded": len(steps), "seconds": taken, "rollouts, MiB": decoding, "update, MiB": peak_mib(device) - before,
        })  # fmt: skip
        network.zero_grad()
    return records


def main(words: list[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--out", type=Path)
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=ROWS, default=value)
    arguments = vars(parser.parse_args(words))
    device, out = device_of(arguments.pop("device")), arguments.pop("out")
    shape = Shape(**arguments)
    limits = ceilings(shape, device)
    model = build(shape, device)
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    parameters = sum(p.numel() for p in model.parameters())
    about = {"card": card, "torch": torch.__version__, "parameters": parameters, "weights, MiB": 2 * parameters / MIB}
    result = {"about": about | limits, "shape": asdict(shape)}
    print_table([result["about"]], title="the card")
    for name, measured in (
        ("evaluations", lambda: evaluations(model, shape, limits, device)),
        ("decodings", lambda: decodings(model, shape, device)),
        ("rollouts", lambda: rollouts(model, shape, device)),
    ):
        result[name] = measured()
        print_table(result[name], title=name)
        if out is not None:  # after each part: a later one may not fit
            out.mkdir(parents=True, exist_ok=True)
            write_json(result, out / "large.json")
    print(json.dumps({"tflops": round(limits["TFLOP/s"], 1), "tbps": round(limits["TB/s"], 2)}))
    return result


if __name__ == "__main__":
    with exit_on_bad_input():
        main()
