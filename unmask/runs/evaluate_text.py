"""The work of `evaluate --task text`: texts by policies and rules, judged by a language model, with their cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.canvas import canvas_of
from dlm.environment import TokenRule
from dlm.fingerprint import digest_of, digests_of
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.cost import equivalent_evaluations
from evaluation.generations import check_settings, finished_in, read_records
from evaluation.metrics import machine
from evaluation.report import plot_pareto, plot_tpf, print_table, write_csv
from evaluation.request import TextRequest
from evaluation.summary import mean_and_error, tpf_columns
from evaluation.sweeps import Candidate, candidates, numbers
from evaluation.text import Judge, load_judge, perplexity, shares_tokenizer
from load_model import load_model
from policy.checkpoints import policy_file
from rewards.measures import unigram_entropy
from samplers.names import DECODERS, PREDICTORS, STRATEGIES
from samplers.samples import Samples
from samplers.settings import check_strategy
from training.devices import check_device, device_of
from training.files import check_place, write_text
from training.hub import shipped
from training.progress import progress
from unmask.decoders import build_step_decoder
from unmask.runs.evaluate import check_idle, configuration, identity_of, plain, strategy_of

DATASET = "text"
SAMPLES = 64  # of each rule and seed, where --n_test is not given


def run(**flags: Any) -> int:
    """Evaluate every rule or policy with every seed; write and print the table. Return the exit status.

    flags: flags of the command line.
    """
    arguments = TextRequest(**flags)
    seeds = check(arguments)
    trained = plain(configuration(arguments))
    device = device_of(arguments.device)
    model, _ = load_model(shipped(str(arguments.model_path)), device, "float32")
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {arguments.model_path} cannot be loaded, so no text can be judged")
    canvas = canvas_of(model, prefix=arguments.prompt, length=arguments.gen_length)
    judge = load_judge(arguments.judge, str(device))
    found = candidates(arguments, model, trained, partial(build_step_decoder, model=model))
    rows = []
    with progress("evaluating", len(found) * len(seeds)) as advance:
        for one in found:
            for seed in seeds:
                rows.append(evaluated(one, seed, canvas, model, judge, arguments))
                advance()
    report(rows, Path(arguments.save_path), str(arguments.model_path))
    return 0


def check(arguments: TextRequest) -> list[int]:
    """Return the seeds. ValueError for invalid settings, before any work."""
    if sum(value is not None for value in (arguments.run, arguments.policy_path, arguments.strategy)) != 1:
        raise ValueError("give exactly one of RUN, --policy and --strategy")
    check_strategy(arguments.rule, (*STRATEGIES, *DECODERS, *PREDICTORS))
    check_idle(arguments)
    TokenRule(arguments.token_temperature)  # refuses a temperature that is not finite
    if arguments.policy_path is not None:
        policy_file(Path(shipped(arguments.policy_path)))
    check_device(arguments.device)
    check_place(arguments.save_path, f"--out {arguments.save_path}")
    if not (seeds := numbers(arguments.seeds, "--seeds", int)):
        raise ValueError("--seeds must be whole numbers, separated by commas; give one at least")
    return seeds


def evaluated(
    one: Candidate,
    seed: int,
    canvas: Int[Tensor, "position"],
    model: MaskedLM,
    judge: Judge,
    arguments: TextRequest,
) -> dict:
    """Return one row of the table, for one rule and one seed. A finished evaluation is loaded, not repeated."""
    count = arguments.n_test or SAMPLES
    directory = Path(arguments.save_path) / f"{one.name}_{DATASET}_seed{seed}"
    settings = identity_of(one) | {"sampler": None}
    settings |= {
        "dataset": DATASET, "seed": seed, "model": arguments.model_path, "model_weights": digest_of(digests_of(model)),
        "judge": judge.name, "prompt": arguments.prompt, "length": len(canvas), "samples": count,
        "token_temperature": arguments.token_temperature,
    }  # fmt: skip
    settings |= {"confidence": arguments.confidence} if arguments.confidence != "model" else {}
    check_settings(directory, settings)
    strategy = strategy_of(one, arguments)
    options = DecodeOptions(one.steps or len(canvas), budget=one.budget, alpha=one.alpha)
    decode = partial(strategy.decode, model, options=options, seed=seed)
    prompts = Prompts(canvas.repeat(count, 1))
    if len(read_records(directory)) < count:
        write_samples(directory, decoded(decode, prompts, arguments.batch_size), model, judge)
    records = read_records(directory)
    row = {"name": one.name, "series": one.series, "seed": seed, "samples": len(records)}
    for measure in ("perplexity", "entropy", "nfe", "cpu_seconds"):
        row[measure], row[f"{measure}_error"] = mean_and_error([record[measure] for record in records])
    row |= tpf_columns([records])
    row["equivalent"] = equivalent_evaluations(model, decode, prompts)
    write_text(
        directory / "generations.json",
        json.dumps({"metrics": row, "settings": settings, "machine": machine(canvas.device)}),
    )
    return row


def decoded(decode: Callable[..., Samples], prompts: Prompts, batch_size: int) -> list[Samples]:
    """Return the samples of all prompts, batch by batch. A sample does not depend on its batch."""
    rows = torch.arange(len(prompts.canvas), device=prompts.canvas.device)
    return [decode(prompts.take(some), row_id=some) for some in rows.split(batch_size)]


def write_samples(directory: Path, batches: list[Samples], model: MaskedLM, judge: Judge) -> None:
    """Judge the samples and write one line of generations.jsonl for each."""
    tokens, counted = (torch.cat([getattr(one, name) for one in batches]).cpu() for name in ("tokens", "counted"))
    texts = [model.tokenizer.decode(row[kept].tolist()) for row, kept in zip(tokens, counted, strict=True)]
    on_ids = shares_tokenizer(judge, model.tokenizer)
    judged = perplexity(judge, tokens if on_ids else texts, counted=counted if on_ids else None).tolist()
    entropies = unigram_entropy(tokens, counted).tolist()
    evaluations = torch.cat([one.evaluations for one in batches]).tolist()
    lengths = torch.cat([one.answer.sum(1) for one in batches]).tolist()
    seconds = [one.cpu_seconds / len(one.tokens) for one in batches for _ in one.tokens]
    columns = zip(texts, judged, entropies, evaluations, lengths, seconds, strict=True)
    lines = [
        {
            "row": row,
            "text": text,
            "perplexity": value,
            "entropy": entropy,
            "nfe": nfe,
            "tokens": count,
            "cpu_seconds": cpu,
        }
        for row, (text, value, entropy, nfe, count, cpu) in enumerate(columns)
    ]
    text = "".join(json.dumps(line, ensure_ascii=False, allow_nan=False) + "\n" for line in lines)
    write_text(directory / "generations.jsonl", text, durable=True)


def tpf_text(row: dict) -> str:
    """Return tokens per forward with its interval, empty for a row of an evaluation before TPF was measured."""
    return f"{row['tpf']:.2f} [{row['tpf_low']:.2f}, {row['tpf_high']:.2f}]" if row.get("tpf") is not None else ""


def report(rows: list[dict], base: Path, title: str) -> None:
    """Write text_results.csv, pareto_text.png and pareto_text_tpf.png, and print the table. Earlier evaluations in `base` are
    part of all three.
    """
    known = {
        (row["name"], row["seed"]): row for row in (one["metrics"] for one in finished_in(base)) if "perplexity" in row
    }
    known |= {(row["name"], row["seed"]): row for row in rows}
    every = list(known.values())
    write_csv(every, base / "text_results.csv")
    points = [{"name": row["series"], "x": row["equivalent"], "y": row["perplexity"],
               "lo": row["perplexity"] - row["perplexity_error"], "hi": row["perplexity"] + row["perplexity_error"]}
              for row in every]  # fmt: skip
    plot_pareto(
        points, base / "pareto_text.png", y_label="perplexity by the judge (lower is better)",
        x_label="equivalent evaluations per sample (all FLOP)", higher_is_better=False,
    )  # fmt: skip
    speeds = [{**point, "x": row.get("tpf"), "x_lo": row.get("tpf_low"), "x_hi": row.get("tpf_high")}
              for point, row in zip(points, every, strict=True)]  # fmt: skip
    plot_tpf(speeds, base / "pareto_text_tpf.png", "perplexity by the judge (lower is better)", higher_is_better=False)
    table = [
        {
            "name": row["name"],
            "seed": row["seed"],
            "perplexity": f"{row['perplexity']:.1f} ± {row['perplexity_error']:.1f}",
            "entropy": f"{row['entropy']:.3f}",
            "NFE": f"{row['nfe']:.2f}",
            "TPF": tpf_text(row),
            "equivalent": f"{row['equivalent']:.2f}",
            "CPU s": f"{row['cpu_seconds']:.3f}",
        }
        for row in every
    ]
    print_table(table, title=title)
    print(f"{base / 'text_results.csv'}, {base / 'pareto_text.png'}")
