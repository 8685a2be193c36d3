"""Stories: perplexity, entropy and cost of every rule, over steps, lengths and token temperatures, beside held-out text.

    python -m benchmarks.stories                              # steps 8 to 64, lengths 128 and 256, temperatures 0.8 to 1.0
    python -m benchmarks.stories --bound 16                   # the cost of the order alone, on held-out text
    python -m benchmarks.stories --steps 16 --lengths 256 --temperatures 1 --samples 512 --judged 128 --seeds 3 --out DIR
    python -m benchmarks.stories --steps 16 --lengths 256 --temperatures 1 --sweep --samples 64 --out DIR

There is no prompt, and no top-p or top-k. The shipped causal model judges the token ids. With `--judged N` smollm2, which wrote
the training data, also judges the decoded text of N samples. A record for each rule, setting and seed is appended to --out
DIR/stories.jsonl at once. Several processes may therefore draw seeds (--first-seed), and a killed run continues without repeating
existing records. CPU seconds are those of the process; equivalent evaluations are those of evaluation/cost.py. The command ends
with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from time import process_time

import torch
from jaxtyping import Float, Int
from torch import Tensor

from data.rows import end_of_text
from data.text import documents, load_texts
from dlm.causal_lm import CausalLM, sequence_log_prob
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.aup import tokens_per_forward
from evaluation.cost import equivalent_evaluations
from evaluation.report import print_table
from evaluation.text import Judge, load_judge, perplexity, standard_error
from load_model import load_model
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from rewards.measures import distinct_n, unigram_entropy
from samplers.heuristics import Confident, ConfidentNoisy, Dilated, Direct, Random
from samplers.loop import Strategy, TeacherForced, Unmasker
from training.ranges import ROWS, Number, Whole

NOISES = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0)  # of the policy
SAMPLES = {
    8: 24,
    16: 16,
    32: 12,
    64: 8,
}  # by steps, where --samples does not say: about as long for each; --seeds for more
KEYS = ("rule", "steps", "length", "temperature", "seed")
COUNTED = 4  # rows whose floating-point operations are counted


@dataclass(frozen=True)
class Cell:
    """One setting of decoding: largest number of steps, number of positions, and token temperature."""

    steps: int
    length: int
    temperature: float


def rules(policies: list[str], sweep: bool, noise: float) -> dict[str, Unmasker]:
    """Return the rules by name."""
    networks = {Path(path).name: load_policy(path) for path in policies}
    if sweep:
        noisy = {f"confidence_noisy {value}": ConfidentNoisy(value) for value in NOISES}
        learned = {f"{n} T={t}": PolicyUnmasker(p, "fixed", t) for n, p in networks.items() for t in TEMPERATURES}
        return {"direct": Direct(), **noisy, "dilated": Dilated(), **learned}
    learned = {name: PolicyUnmasker(network, "fixed") for name, network in networks.items()}
    learned |= {f"{name} T=0.5": PolicyUnmasker(network, "fixed", 0.5) for name, network in networks.items()}
    return {"direct": Direct(), f"confidence_noisy {noise}": ConfidentNoisy(noise), "dilated": Dilated(), **learned,
            "random": Random(), "confidence": Confident()}  # fmt: skip


def held_out(model: MaskedLM, length: int, count: int) -> Int[Tensor, "row position"]:
    """Return rows of the held-out stories, each from the beginning of a document, as in the training of the model."""
    rows = documents(load_texts("stories", "valid"), model.tokenizer, length, end_of_text(model.tokenizer))
    return rows[:count]


def judged(judge: CausalLM, tokens: Int[Tensor, "row position"]) -> dict[str, float | int]:
    """Return perplexity under the causal judge and unigram entropy (nats): means with standard errors over rows."""
    own = torch.exp(-sequence_log_prob(judge, tokens)[:, 1:].mean(1))
    entropy = unigram_entropy(tokens)
    return {
        "samples": len(tokens), "causal_ppl": float(own.mean()), "causal_ppl_se": float(standard_error(own)),
        "entropy": float(entropy.mean()), "entropy_se": float(standard_error(entropy)),
        "distinct_2": distinct_n(tokens, 2),
    }  # fmt: skip


def judged_text(judge: Judge, texts: list[str]) -> dict[str, float | int]:
    """Return the perplexity of decoded texts under a judge with another tokenizer, and its standard error."""
    scores = perplexity(judge, texts)
    scores = scores[scores.isfinite()]
    return {"gen_ppl": float(scores.mean()), "gen_ppl_se": float(standard_error(scores)), "judged": len(scores)}


def drawn(
    model: MaskedLM, rule: Unmasker, cell: Cell, count: int, seed: int
) -> tuple[Int[Tensor, "row position"], dict[str, float]]:
    """Return samples and their cost: evaluations, equivalent evaluations and CPU seconds per sample."""
    canvas = torch.full((count, cell.length), model.mask_id)

    def decode(part: Prompts, numbers: Int[Tensor, "row"] | None = None):
        return Strategy(rule, TokenRule(cell.temperature)).decode(model, part, DecodeOptions(cell.steps), seed, numbers)

    started = process_time()
    parts = [decode(Prompts(canvas[rows]), rows) for rows in torch.arange(count).split(32)]
    spent = process_time() - started
    evaluations, tokens = torch.cat([p.evaluations for p in parts]), torch.cat([p.answer.sum(1) for p in parts])
    return torch.cat([part.tokens for part in parts]), {
        "nfe": float(evaluations.float().mean()),
        "tpf": tokens_per_forward(tokens.numpy(), evaluations.numpy()).value,
        "equivalent": equivalent_evaluations(model, decode, Prompts(canvas[:COUNTED])),
        "cpu_s": spent / count,
    }


def bound(model: MaskedLM, rule: Unmasker, text: Int[Tensor, "row position"], steps: int) -> Float[Tensor, "row"]:
    """Return -log p of each text in nats per token if it is revealed in the rule's order: the negative reward of
    experiment=stories_bound. It includes the loss of committing several positions at once. Only the order is sampled."""
    blank = Prompts(torch.full_like(text, model.mask_id))
    samples = TeacherForced(rule, text).decode(model, blank, DecodeOptions(steps), record=lambda observation: {})
    trajectory = samples.trajectory
    assert trajectory is not None
    total = torch.zeros(len(text)).index_add_(0, trajectory.row, trajectory.log_tokens)
    return -total / text.shape[1]


def bounds(model: MaskedLM, chosen: dict[str, Unmasker], steps: list[int], count: int, length: int) -> list[dict]:
    """Return the bound of every rule at every number of steps, and its difference from `dilated` on the same texts, with
    errors."""
    text = held_out(model, length, count)
    rows = []
    for one in steps:
        reference = bound(model, Dilated(), text, one)
        for name, rule in chosen.items():
            nats = reference if name == "dilated" else bound(model, rule, text, one)
            more = nats - reference
            rows.append({"rule": name, "steps": one, "length": length, "texts": count, "nats": float(nats.mean()),
                         "nats_se": float(standard_error(nats)), "over_dilated": float(more.mean()),
                         "over_dilated_se": float(standard_error(more))})  # fmt: skip
    return rows


def summary(records: list[dict]) -> list[dict]:
    """Return one row per rule and cell: means over seeds, weighted by samples, with standard errors, and ratios to those of
    direct."""
    found: dict[tuple, dict] = {}
    for key in dict.fromkeys(key_of(record)[:-1] for record in records):
        own = [record for record in records if key_of(record)[:-1] == key]
        row: dict[str, str | int | float] = dict(zip(KEYS[:-1], key, strict=True))
        row["samples"] = sum(record["samples"] for record in own)
        for name, count in (("gen_ppl", "judged"), ("causal_ppl", "samples"), ("entropy", "samples"),
                            ("nfe", "samples"), ("tpf", "samples"), ("equivalent", "samples"), ("cpu_s", "samples")):  # fmt: skip
            used = [record for record in own if record.get(count) and name in record]
            total = sum(record[count] for record in used)
            if total:
                row[name] = sum(record[name] * record[count] for record in used) / total
            if total and f"{name}_se" in used[0]:
                row[f"{name}_se"] = sum((record[f"{name}_se"] * record[count] / total) ** 2 for record in used) ** 0.5
        found[key] = row
    for key, row in found.items():
        direct = found.get(("direct", *key[1:]), {})
        row |= {f"{name}_over_direct": row[name] / direct[name] for name in ("gen_ppl", "causal_ppl", "entropy")
                if name in row and name in direct}  # fmt: skip
    return list(found.values())


def key_of(record: dict) -> tuple:
    """Return the rule, setting and seed that identify a record."""
    return tuple(record[name] for name in KEYS)


def read(file: Path) -> list[dict]:
    """Return the records of a file; of several with one key, the last."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return list({key_of(record): record for record in map(json.loads, lines)}.values())


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/stories")
    parser.add_argument("--causal", default="example/stories_causal", help="the judge of token ids")
    parser.add_argument("--policies", nargs="*", default=["example/014609"])
    parser.add_argument("--steps", nargs="*", type=ROWS, default=[8, 16, 32, 64])
    parser.add_argument("--lengths", nargs="*", type=ROWS, default=[128, 256])
    parser.add_argument("--temperatures", nargs="*", type=Number(0, 1e6), default=[0.8, 0.9, 1.0])
    parser.add_argument("--samples", type=ROWS, help=f"of each setting and seed (default, by steps: {SAMPLES})")
    parser.add_argument(
        "--judged", type=Whole(0, 1_000_000), default=0, help="samples that --judge scores too (it is slow)"
    )
    parser.add_argument("--judge", default="smollm2")
    parser.add_argument("--seeds", type=ROWS, default=1)
    parser.add_argument("--first-seed", type=Whole(0, 1_000_000), default=0)
    parser.add_argument("--noise", type=Number(0, 1e6), default=1.0)
    parser.add_argument("--rules", nargs="*", default=["direct", "dilated", "014609 T=0.5"], help="names; none: all")
    parser.add_argument("--sweep", action="store_true", help="noises of confidence_noisy, temperatures of the policies")
    parser.add_argument("--bound", type=ROWS, metavar="N", help="only the bound, on N held-out texts of each length")
    parser.add_argument("--out", default="docs/results/stories/grid")
    return parser


def main() -> None:
    arguments = parser().parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    chosen = rules(arguments.policies, arguments.sweep, arguments.noise)
    if arguments.rules and not arguments.sweep:
        chosen = {name: rule for name, rule in chosen.items() if name in arguments.rules}
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    if arguments.bound:
        rows = [row for length in arguments.lengths
                for row in bounds(model, chosen, arguments.steps, arguments.bound, length)]  # fmt: skip
        with (out / "bound.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
        print_table(rows, title="nats a token of held-out text, revealed in the order of each rule")
        print(json.dumps({f"{row['rule']} {row['steps']} {row['length']}": row["nats"] for row in rows}))
        return
    second, _ = load_model(arguments.causal)
    assert isinstance(second, CausalLM) and model.tokenizer is not None
    judge = load_judge(arguments.judge) if arguments.judged else None
    file = out / ("sweep.jsonl" if arguments.sweep else "stories.jsonl")
    done = {key_of(record) for record in read(file)}
    marks = [{"rule": "held-out text", "steps": 0, "length": length, "temperature": 1.0, "seed": 0,
              **judged(second, held_out(model, length, 128))} for length in arguments.lengths]  # fmt: skip
    seeds = range(arguments.first_seed, arguments.first_seed + arguments.seeds)
    cells = [Cell(*values) for values in product(arguments.steps, arguments.lengths, arguments.temperatures)]
    for seed, cell, (name, rule) in product(seeds, cells, chosen.items()):
        record = {"rule": name, **vars(cell), "seed": seed}
        if key_of(record) in done:
            continue
        tokens, cost = drawn(model, rule, cell, arguments.samples or SAMPLES.get(cell.steps, 32), seed)
        record |= judged(second, tokens) | cost
        if judge is not None:
            record |= judged_text(judge, model.tokenizer.batch_decode(tokens[: arguments.judged]))
        with file.open("a", encoding="utf-8") as records:
            records.write(json.dumps(record) + "\n")
    rows = summary([*marks, *read(file)])
    print_table(rows, title=str(file))
    print(json.dumps({f"{row['rule']}, {row['steps']} steps, length {row['length']}, T={row['temperature']}": row["causal_ppl"]
                      for row in rows}))  # fmt: skip


if __name__ == "__main__":
    main()
