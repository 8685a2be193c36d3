"""Evaluation of guided decoding under rewards: means with standard errors, likelihood, diversity, cost."""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.encoding import text_ids
from dlm.masked_lm import MaskedLM
from evaluation.likelihood import log_likelihoods
from evaluation.report import print_table, write_csv
from evaluation.text import standard_error
from load_model import load_model
from rewards.models import TextReward, load_reward, reward_folder
from training.devices import device_of
from training.files import make_directory
from training.hub import shipped
from training.stored import parsed_json, read_bytes

PREFIX = "generation_"
MOST = 1 << 30  # bytes of a file of generations
SHOWN = {
    "method": "method", "selector_mean": "selector", "selector_se": "error", "judge_mean": "judge", "judge_se": "error ",
    "log_likelihood_per_token": "log p", "length_mean": "tokens", "distinct_2": "distinct-2",
    "evaluations_per_token": "NFE", "reward_rows_per_token": "rows",
}  # fmt: skip


def read_generations(path: Path) -> list[dict[str, str]]:
    """Read [{"prompt", "result", "finished"}] of a file. ValueError for another format.

    `finished` is whether an answer reached its end; by default it did.
    """
    rows = parsed_json(read_bytes(path, MOST), str(path))
    right = isinstance(rows, list) and rows and all(
        isinstance(row, dict) and isinstance(row.get("prompt"), str) and isinstance(row.get("result"), str) for row in rows
    )  # fmt: skip
    if not right:
        raise ValueError(f'{path} holds no answers; expected [{{"prompt": "...", "result": "..."}}, ...]')
    return rows


def load_scorer(name: str, device: torch.device) -> TextReward:
    """Load a reward of finished texts."""
    reward = load_reward(shipped(name), device)
    assert isinstance(reward, TextReward)
    return reward


def judge_folder(name: str) -> str:
    """Return one name for a reward, for all its spellings."""
    folder = reward_folder(shipped(name))
    return str(Path(folder).resolve()) if Path(folder).exists() else name


def scores(reward: TextReward, rows: list[dict[str, str]], batch: int) -> list[float]:
    """Return the reward of each answer."""
    found = []
    for part in (rows[at : at + batch] for at in range(0, len(rows), batch)):
        finished = [bool(row.get("finished", True)) for row in part]
        found += reward.score_texts([row["prompt"] for row in part], [row["result"] for row in part], finished).tolist()
    return found


def distinct(rows: list[list[int]], n: int) -> float | None:
    """Return distinct n-grams over all n-grams of rows of different lengths; None if no row has one."""
    grams = [tuple(row[at : at + n]) for row in rows for at in range(len(row) - n + 1)]
    return len(set(grams)) / len(grams) if grams else None


def over_seeds(values: Float[Tensor, "row"], seeds: int) -> Float[Tensor, "prompt"]:
    """Return the mean of each prompt over the seeds that have a value for it, without prompts that have none."""
    means = values.view(seeds, -1).nanmean(0)
    return means[~means.isnan()]


def seeds_of(rows: list[dict[str, str]], seeds: int) -> int:
    """Return the number of different seeds: 1 if every seed has the same answers, as for a deterministic method."""
    answers = [row["result"] for row in rows]
    each = len(rows) // seeds
    return 1 if answers == answers[:each] * seeds else seeds


def evaluate_method(
    rows: list[dict[str, str]], judged: dict[str, list[float]], seeds: int, model, draws: int, batch: int
) -> dict[str, float | int | None]:
    """Return the figures of one method. rows, judged: answers and their rewards, seed after seed."""
    found: dict[str, float | int | None] = {"prompts": len(rows) // seeds, "seeds": seeds}
    for name, values in judged.items():
        of_prompts = torch.tensor(values, dtype=torch.float64).view(seeds, -1).mean(0)
        found |= {f"{name}_mean": of_prompts.mean().item(), f"{name}_se": standard_error(of_prompts)}
    pairs = [(text_ids(model.tokenizer, row["prompt"]), text_ids(model.tokenizer, row["result"])) for row in rows]
    answers = [answer for _, answer in pairs]
    return found | _likelihoods(model, pairs, seeds, draws, batch) | _lengths(answers) | _diversity(answers, seeds)


def _likelihoods(
    model: MaskedLM, pairs: list[tuple[list[int], list[int]]], seeds: int, draws: int, batch: int
) -> dict[str, float | None]:
    """Return the mean log-likelihood per token of non-empty answers, and its standard error over prompts."""
    longest = model.max_length
    written = [(prompt, answer[: max(0, longest - len(prompt))]) for prompt, answer in pairs if answer]
    nats = [one.log_prob for one in log_likelihoods(model, written, draws, batch=batch)] if written else []
    every = torch.full((len(pairs),), float("nan"), dtype=torch.float64)
    every[[bool(answer) for _, answer in pairs]] = torch.tensor(
        [value / len(answer) for value, (_, answer) in zip(nats, written, strict=True)], dtype=torch.float64
    )
    per_token = over_seeds(every, seeds)
    if len(per_token) == 0:
        return {"log_likelihood_per_token": None, "log_likelihood_se": None}
    return {"log_likelihood_per_token": per_token.mean().item(), "log_likelihood_se": standard_error(per_token)}


def _lengths(answers: list[list[int]]) -> dict[str, float | int]:
    """Return the mean number of tokens of an answer, and the number of empty answers."""
    lengths = torch.tensor([len(answer) for answer in answers], dtype=torch.float64)
    return {"length_mean": lengths.mean().item(), "empty": sum(not answer for answer in answers)}


def _diversity(answers: list[list[int]], seeds: int) -> dict[str, float | None]:
    """Return the share of distinct n-grams, averaged over seeds: more text has fewer new n-grams, so each seed counts alone."""
    found: dict[str, float | None] = {}
    each = len(answers) // seeds
    for n in (1, 2, 3):
        shares = [distinct(answers[at : at + each], n) for at in range(0, len(answers), each)]
        known = [share for share in shares if share is not None]
        found[f"distinct_{n}"] = fmean(known) if known else None
    return found


def run(
    generations: list[Path],
    selector: str | None,
    judge: str,
    model_path: str,
    draws: int,
    batch_size: int,
    save_path: Path | None,
    device: str,
) -> int:
    """Evaluate a directory, or several seeds of one. Returns 0."""
    at = device_of(device)
    if selector and judge_folder(judge) == judge_folder(selector):
        raise ValueError(
            f"--judge {judge} is the selector: it cannot see over-optimisation of itself; give another reward"
        )
    answers, seeds = read_all(generations), len(generations)
    names = {"selector": selector, "judge": judge}
    rewards = {name: load_scorer(path, at) for name, path in names.items() if path is not None}
    model, _ = load_model(shipped(model_path), at)
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model_path} cannot be loaded; add tokenizer.json")
    out = save_path or generations[0]
    make_directory(out, f"--out {out}")
    cost = read_costs(generations)
    judged = {
        name: {who: scores(reward, rows, batch_size) for who, reward in rewards.items()}
        for name, rows in answers.items()
    }
    table = []
    for name, rows in answers.items():
        different = seeds_of(rows, seeds)
        each = len(rows) // seeds * different  # the rows that count
        once = {who: values[:each] for who, values in judged[name].items()}
        figures = evaluate_method(rows[:each], once, different, model, draws, batch_size)
        table.append({"method": name, **figures, **cost.get(name, {})})
    write_csv(table, out / "evaluation.csv")
    for who in rewards:
        columns = {name: judged[name][who] for name in answers}
        rows = zip(*columns.values(), strict=True)
        write_csv([dict(zip(columns, row, strict=True)) for row in rows], out / f"{who}.csv")
    print_table(
        [{new: row[old] for old, new in SHOWN.items() if old in row} for row in table],
        " ".join(map(str, generations)),
    )
    return 0


def read_all(directories: list[Path]) -> dict[str, list[dict[str, str]]]:
    """Return the answers of each method, directory after directory. ValueError for different methods or prompts."""
    answers: dict[str, list[dict[str, str]]] = {}
    prompts, methods = set(), set()
    for directory in directories:
        files = sorted(directory.glob(f"{PREFIX}*.json"))
        if not files:
            raise ValueError(f"{directory} holds no {PREFIX}METHOD.json; give the directory of unmask guide")
        methods.add(tuple(file.name for file in files))
        for file in files:
            rows = read_generations(file)
            prompts.add(tuple(row["prompt"] for row in rows))
            answers.setdefault(file.stem.removeprefix(PREFIX), []).extend(rows)
    where = " and ".join(map(str, directories))
    if len(prompts) != 1:
        raise ValueError(f"the files of {where} answer different prompts; evaluate those of one run")
    if len(methods) != 1:
        raise ValueError(f"{where} hold answers of different methods; give seeds of the same ones")
    return answers


def read_costs(directories: list[Path]) -> dict[str, dict[str, float]]:
    """Return the costs of each method, if unmask guide recorded them: the mean over directories."""
    kept = ("evaluations_per_token", "reward_rows_per_token", "seconds_per_token", "seconds")
    found: dict[str, list[dict[str, float]]] = {}
    for file in (directory / "costs.csv" for directory in directories):
        if file.is_file():
            with file.open(newline="", encoding="utf-8") as lines:
                for row in csv.DictReader(lines):
                    found.setdefault(row["method"], []).append({key: float(row[key]) for key in kept})
    return {name: {key: fmean(row[key] for row in rows) for key in kept} for name, rows in found.items()}
