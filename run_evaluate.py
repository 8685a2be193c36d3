"""Evaluate policies and rules on questions with known answers.

    python run_evaluate.py RUN --checkpoints last --datasets chain --temperatures 1.0 --seeds 42,43,44 --save_path DIR
    python run_evaluate.py --policy_path example/chain_policy --datasets chain --seeds 42 --save_path DIR
    python run_evaluate.py --strategy threshold --settings 0.5,0.7,0.9 --model_path example/chain --datasets chain --save_path DIR

One line of DIR/NAME/generations.jsonl a sample, written as it finishes: an evaluation that was killed goes on where it stopped.
At the end DIR has detailed_results.csv (a row a run and seed), summary_statistics.csv (mean, std, min, max of seeds), pareto.png.
Ends with status 1 where every evaluation failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import OmegaConf

from data.questions import DATASETS, canvases, check_runnable, load_questions, right
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from evaluation.intervals import wilson
from evaluation.report import plot_pareto, print_table, write_csv
from load_model import load_model
from policy.build import RULE_SETTINGS, check_alpha, check_known, shipped
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from samplers.loop import Strategy, Unmasker, sample
from samplers.where import WHERE
from training.usage import exit_on_bad_input

ALL = ("gsm8k", "math", "humaneval", "mbpp")
SAMPLING_MODES = {
    "bernoulli-argmax": "bernoulli_argmax",
    "dpls": "plackett_luce",
    "threshold": "threshold",
    "fixed": "fixed",
}


@dataclass
class Job:
    """One rule or policy on one data set with one seed."""

    name: str
    dataset: str
    seed: int
    rule: Unmasker
    alpha: float | None = None
    budget: int | None = None


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("run", nargs="?", help="a training run: its checkpoints are evaluated on its model")
    made.add_argument("--checkpoints", default="last", help="first, last, or numbers: 50,100")
    made.add_argument("--policy_path", help="a policy directory or file, in place of a run")
    made.add_argument("--strategy", help=f"a rule in place of a policy: {', '.join(WHERE)}")
    made.add_argument("--settings", default="", help="of the rule, one evaluation each: thresholds 0.5,0.9, say")
    made.add_argument("--model_path", help="the frozen model (default: the run's, else example/chain)")
    made.add_argument(
        "--datasets", "--dataset", default="chain", help=f"of {', '.join(DATASETS)}; all is {','.join(ALL)}"
    )
    made.add_argument("--data_dir", help="holds NAME/test.jsonl, for machines without a hub")
    made.add_argument("--math_by", default="verify", choices=("verify", "string"), help="how answers of MATH compare")
    made.add_argument(
        "--unsandboxed",
        action="store_true",
        help="run what a model wrote with your own rights where there is no bubblewrap",
    )
    made.add_argument("--temperatures", "--temperature_policy", default="1.0", help="of the policy")
    made.add_argument("--alpha", help="of a policy trained with reward.alphas, one evaluation each: 0,0.3,1,3")
    made.add_argument("--budget", help="evaluations that a sample may cost, one evaluation each: 2,4,8")
    made.add_argument("--token_temperature", type=float, default=0.0, help="0 writes the most likely token")
    made.add_argument("--seeds", "--seed", default="42")
    made.add_argument("--sampling_mode", default="bernoulli-argmax", choices=SAMPLING_MODES)
    made.add_argument("--gen_length", type=int, default=None, help="positions to write (default: 256; chain: 24)")
    made.add_argument("--block_length", type=int, default=None, help="default: no blocks")
    made.add_argument(
        "--steps", type=int, default=None, help="of rules that write a fixed number (default: one a position)"
    )
    made.add_argument("--cache", choices=("prefix", "dual"))
    made.add_argument("--refresh", type=int)
    made.add_argument("--n_test", type=int, default=None, help="questions of each data set (default: all; chain: 512)")
    made.add_argument("--batch_size", type=int, default=32)
    made.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--dtype", default="float32")
    made.add_argument("--save_path", "--output_dir", required=True)
    return made


def checkpoint_files(run: Path, asked: str) -> list[Path]:
    """The checkpoints asked for. ValueError lists those present."""
    numbered = {int(file.stem.split("_")[1]): file for file in (run / "checkpoints").glob("checkpoint_*.pth")}
    if not numbered:
        raise ValueError(f"{run} has no checkpoints/checkpoint_N.pth; give a training run of run_train_policy.py")
    if asked in ("first", "last"):
        return [numbered[(min if asked == "first" else max)(numbered)]]
    wanted = [int(number) if number.strip().isdigit() else -1 for number in asked.split(",")]
    if missing := [number for number, text in zip(wanted, asked.split(","), strict=True) if number not in numbered]:
        raise ValueError(
            f"checkpoints {asked!r}: {missing} not there; {run} has {', '.join(map(str, sorted(numbered)))}"
        )
    return [numbered[number] for number in wanted]


def rules(arguments: argparse.Namespace, model: MaskedLM) -> dict[str, Unmasker]:
    """Name -> where."""
    if arguments.strategy:
        check_known(arguments.strategy)
        if arguments.strategy not in RULE_SETTINGS:
            return {arguments.strategy: WHERE[arguments.strategy]()}
        settings = [float(value) for value in arguments.settings.split(",") if value]
        if not settings:
            raise ValueError(f"--strategy {arguments.strategy} needs --settings, such as 0.5,0.9")
        return {f"{arguments.strategy}-{value:g}": WHERE[arguments.strategy](value) for value in settings}
    if arguments.run:
        files = {f"{Path(arguments.run).name}-checkpoint_{file.stem.split('_')[1]}": file
                 for file in checkpoint_files(Path(arguments.run), arguments.checkpoints)}  # fmt: skip
    else:
        path = shipped(arguments.policy_path)
        files = {Path(path).stem if Path(path).suffix else Path(path).name: Path(path)}
    found: dict[str, Unmasker] = {}
    for name, file in files.items():
        network = load_policy(file, model=model)
        network.to(next(model.parameters()).device)
        for temperature in arguments.temperatures.split(","):
            rule = PolicyUnmasker(network, SAMPLING_MODES[arguments.sampling_mode], float(temperature))
            found[f"{name}-T{float(temperature):g}"] = rule
    return found


def evaluate(job: Job, model: MaskedLM, arguments: argparse.Namespace, directory: Path) -> list[dict]:
    """Records of all samples of one job, those of an earlier, interrupted call among them."""
    count = arguments.n_test or (512 if job.dataset == "chain" else None)
    questions = load_questions(job.dataset, "test", arguments.data_dir, count, arguments.math_by)
    check_runnable(questions, arguments.unsandboxed)
    length = arguments.gen_length or (24 if job.dataset == "chain" else 256)
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "generations.jsonl"
    done = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
    strategy = Strategy(job.rule, TokenRule(arguments.token_temperature))
    with file.open("a", encoding="utf-8") as out:
        for rows in torch.arange(len(done), len(questions)).split(arguments.batch_size):
            asked = [questions[row] for row in rows.tolist()]
            prompts = canvases(model, asked, length).to(next(model.parameters()).device)
            environment = UnmaskingEnvironment(
                model, arguments.steps or length, arguments.block_length, prompt_length=prompts.prompt_length,
                stop_id=model.tokenizer.eos_token_id, cache=arguments.cache, refresh=arguments.refresh,
                alpha=job.alpha, budget=job.budget,
            )  # fmt: skip
            started = time.perf_counter()
            samples = sample(
                environment, strategy, prompts.canvas, job.seed, rows.to(prompts.canvas.device), start=prompts.start
            )
            seconds = (time.perf_counter() - started) / len(rows)
            texts = model.tokenizer.batch_decode(samples.tokens[:, prompts.prompt_length :])
            solved = right(asked, texts, arguments.unsandboxed)
            for place, (row, question) in enumerate(zip(rows.tolist(), asked, strict=True)):
                record = {
                    "row": row, "question": question.prompt, "generation": texts[place], "ground_truth": question.truth,
                    "right": solved[place],
                    "nfe": int(samples.evaluations[place]), "tokens": int(samples.generated[place]), "seconds": seconds,
                }  # fmt: skip
                out.write(json.dumps(record, ensure_ascii=False) + "\n")
                done.append(record)
            out.flush()
    return done


def summarise(rows: list[dict]) -> list[dict]:
    """Over seeds: mean, standard deviation, least and most of every measure."""
    out = []
    for name, dataset in dict.fromkeys((row["name"], row["dataset"]) for row in rows):
        own = [row for row in rows if (row["name"], row["dataset"]) == (name, dataset)]
        line: dict = {"name": name, "dataset": dataset, "num_seeds": len(own)}
        for key in ("accuracy", "evaluations", "seconds", "generated_tokens"):
            values = np.array([row[key] for row in own])
            line |= {
                f"{key}_mean": values.mean(),
                f"{key}_std": values.std(),
                f"{key}_min": values.min(),
                f"{key}_max": values.max(),
            }
        out.append(line)
    return out


def main(argv: list[str]) -> int:
    arguments = parser().parse_args(argv)
    given = [arguments.run, arguments.policy_path, arguments.strategy]
    if sum(value is not None for value in given) != 1:
        raise ValueError("give exactly one of RUN, --policy_path and --strategy")
    path = arguments.model_path or "example/chain"
    if arguments.run and not arguments.model_path:
        config = Path(arguments.run) / ".hydra" / "config.yaml"
        if not config.is_file():
            raise ValueError(
                f"{arguments.run} is not a run: {config} does not exist; give a run of run_train_policy.py"
            )
        path = OmegaConf.load(config).dlm.path
    model, _ = load_model(shipped(str(path)), arguments.device, arguments.dtype)
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {path} cannot be loaded, and questions are text; add tokenizer.json")
    names = ALL if arguments.datasets == "all" else arguments.datasets.split(",")
    alphas = [None] if arguments.alpha is None else [float(alpha) for alpha in arguments.alpha.split(",")]
    budgets = [None] if arguments.budget is None else [int(budget) for budget in arguments.budget.split(",")]
    jobs = [Job(name + ("" if alpha is None else f"-a{alpha:g}") + ("" if budget is None else f"-K{budget}"),
                dataset, int(seed), rule, alpha, budget)
            for name, rule in rules(arguments, model).items() for alpha in alphas for budget in budgets
            for dataset in names for seed in arguments.seeds.split(",")]  # fmt: skip
    for job in jobs:
        check_alpha(getattr(job.rule, "network", None), job.alpha)
    base, rows, failures = Path(arguments.save_path), [], []
    for job in jobs:
        directory = base / f"{job.name}_{job.dataset}_seed{job.seed}"
        try:
            records = evaluate(job, model, arguments, directory)
        except ValueError as error:  # the others still count
            print(f"{directory.name}: {error}", file=sys.stderr)
            failures.append(job)
            continue
        right = wilson(sum(record["right"] for record in records), len(records))
        mean = {key: float(np.mean([record[key] for record in records])) for key in ("nfe", "seconds", "tokens")}
        row = {
            "name": job.name, "dataset": job.dataset, "seed": job.seed, "samples": len(records), "accuracy": right.value,
            "accuracy_low": right.low, "accuracy_high": right.high, "evaluations": mean["nfe"], "seconds": mean["seconds"],
            "generated_tokens": mean["tokens"],
        }  # fmt: skip
        rows.append(row)
        whole = {
            "metrics": row,
            "model_path": str(path),
            "arguments": vars(arguments),
            "job": asdict(job) | {"rule": str(job.rule)},
        }
        (directory / "generations.json").write_text(
            json.dumps(whole | {"generations": records}, indent=1, default=str) + "\n"
        )
    if not rows:
        return 1
    write_csv(rows, base / "detailed_results.csv")
    summary = summarise(rows)
    write_csv(summary, base / "summary_statistics.csv")
    points = [{"name": f"{row['name'].split('-')[0]} {row['dataset']}", "x": row["evaluations"], "y": row["accuracy"],
               "lo": row["accuracy_low"], "hi": row["accuracy_high"]} for row in rows]  # fmt: skip
    plot_pareto(points, base / "pareto.png", y_label="right answers")
    print_table([{k: v for k, v in row.items() if k != "samples"} for row in rows], title=f"{path}")
    return 0


if __name__ == "__main__":
    with exit_on_bad_input():
        status = main(sys.argv[1:])
    sys.exit(status)
