"""Stories: generative perplexity and entropy of every rule at 16 steps, one token rule for all.

    python -m benchmarks.stories --sweep --samples 96 --judged 0       # noise of confidence_noisy, temperature of the policy
    python -m benchmarks.stories --samples 512 --judged 256 --seeds 3 --noise 1.0

No prompt, tokens drawn at temperature 1 without a cut. Two judges: smollm2 on the decoded text (it also wrote the data), and the
shipped causal model on token ids. A record for each rule and seed is appended to --out DIR/stories.jsonl (sweep.jsonl) as it is
made, so that seeds may be drawn by several processes (--first-seed); the table at the end is of all records there. Ends with
flat JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch

from dlm.causal_lm import CausalLM, sequence_log_prob
from dlm.environment import TokenRule, UnmaskingEnvironment
from evaluation.report import print_table
from evaluation.text import JudgeMissing, distinct_n, load_judge, perplexity, standard_error, unigram_entropy
from load_model import load_model
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker, sample
from samplers.where import Confident, ConfidentNoisy, Dilated, Direct, Random

NOISES = (0.1, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 4.0, 8.0)
TEMPERATURES = (0.5, 0.7, 1.0, 1.4, 2.0)


def rules(policies: list[str], sweep: bool, noise: float) -> dict[str, Unmasker]:
    """Name -> where."""
    networks = {Path(path).name: load_policy(path) for path in policies}
    if sweep:
        noisy = {f"confidence_noisy {value}": ConfidentNoisy(value) for value in NOISES}
        learned = {f"{n} T={t}": PolicyUnmasker(p, "fixed", t) for n, p in networks.items() for t in TEMPERATURES}
        return {"direct": Direct(), **noisy, **learned}
    learned = {name: PolicyUnmasker(network, "fixed") for name, network in networks.items()}
    learned |= {f"{name} T=0.5": PolicyUnmasker(network, "fixed", 0.5) for name, network in networks.items()}
    return {"direct": Direct(), f"confidence_noisy {noise}": ConfidentNoisy(noise), "dilated": Dilated(), **learned,
            "random": Random(), "confidence": Confident()}  # fmt: skip


def summary(records: list[dict]) -> list[dict]:
    """A row a rule: means over seeds, weighted by samples, with their standard errors, and ratios to direct's."""
    rows = []
    records = list(
        {(record["rule"], record["seed"]): record for record in records}.values()
    )  # drawn again: the last counts
    for name in dict.fromkeys(record["rule"] for record in records):
        row: dict[str, str | int | float] = {"rule": name}
        own = [record for record in records if record["rule"] == name]
        row["samples"] = sum(record["samples"] for record in own)
        for key, count in (("gen_ppl", "judged"), ("causal_ppl", "samples"), ("entropy", "samples")):
            used = [record for record in own if record.get(count)]
            total = sum(record[count] for record in used)
            if total:
                row[key] = sum(record[key] * record[count] for record in used) / total
                row[f"{key}_se"] = sum((record[f"{key}_se"] * record[count] / total) ** 2 for record in used) ** 0.5
        rows.append(row)
    direct = next((row for row in rows if row["rule"] == "direct"), {})
    for row in rows:
        row |= {f"{key}_over_direct": row[key] / direct[key] for key in ("gen_ppl", "causal_ppl", "entropy")
                if key in row and key in direct}  # fmt: skip
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="example/stories")
    parser.add_argument("--causal", default="example/stories_causal", help="second judge")
    parser.add_argument("--policies", nargs="*", default=["example/014609"])
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument(
        "--judged", type=int, default=None, help="samples that smollm2 scores (default: all; it is slow)"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--noise", type=float, default=1.0)
    parser.add_argument(
        "--rules", nargs="*", help="only the rules of these names, such as 'confidence_noisy 1.0' (default: all)"
    )
    parser.add_argument("--sweep", action="store_true")
    parser.add_argument("--judge", default="smollm2")
    parser.add_argument("--out", default="docs/results/stories")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    model, _ = load_model(arguments.model)
    second, _ = load_model(arguments.causal)
    assert isinstance(second, CausalLM) and model.tokenizer is not None
    try:
        judge = load_judge(arguments.judge)
    except JudgeMissing as error:
        print(f"no {arguments.judge}: {error}")
        judge = None
    out = Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    file = out / ("sweep.jsonl" if arguments.sweep else "stories.jsonl")
    canvas = torch.full((arguments.samples, model.max_length), model.mask_id)
    for seed in range(arguments.first_seed, arguments.first_seed + arguments.seeds):
        for name, rule in rules(arguments.policies, arguments.sweep, arguments.noise).items():
            if arguments.rules and name not in arguments.rules:
                continue
            environment = UnmaskingEnvironment(model, arguments.steps)
            parts = [sample(environment, Strategy(rule, TokenRule()), canvas[rows], seed, rows)
                     for rows in torch.arange(arguments.samples).split(64)]  # fmt: skip
            tokens = torch.cat([part.tokens for part in parts])
            own = torch.exp(-sequence_log_prob(second, tokens)[:, 1:].mean(1))
            entropy = unigram_entropy(tokens)
            record = {
                "rule": name, "seed": seed, "samples": len(tokens), "steps": arguments.steps,
                "causal_ppl": float(own.mean()), "causal_ppl_se": float(standard_error(own)),
                "entropy": float(entropy.mean()), "entropy_se": float(standard_error(entropy)),
                "distinct_2": distinct_n(tokens, 2),
                "nfe": float(torch.cat([part.evaluations for part in parts]).float().mean()),
                "tokens_per_s": sum(int(p.generated.sum()) for p in parts) / sum(p.seconds for p in parts),
            }  # fmt: skip
            if judge is not None and arguments.judged != 0:
                texts = model.tokenizer.batch_decode(tokens[: arguments.judged])
                scores = perplexity(judge, texts)
                scores = scores[scores.isfinite()]
                record |= {
                    "gen_ppl": float(scores.mean()),
                    "gen_ppl_se": float(standard_error(scores)),
                    "judged": len(scores),
                }
            with open(file, "a") as records:
                records.write(json.dumps(record) + "\n")
    rows = summary([json.loads(line) for line in file.read_text().splitlines()])
    print_table(rows, title=f"{file}: {arguments.steps} steps, temperature 1")
    result = {
        f"{row['rule']} {key}": value for row in rows for key, value in row.items() if key.endswith("_over_direct")
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
