"""Evaluate and compare from Python, as the commands `evaluate` and `compare` do."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.catalogue import DATASETS
from data.prompt_task import CheckedPrompts, no_checker, prompt_texts, verdict
from data.questions import Question
from dlm.masked_lm import MaskedLM
from evaluation.compare import compared
from evaluation.metrics import finite
from evaluation.request import EvaluationRequest
from evaluation.sweeps import Candidate, candidates
from evaluation.text import load_judge, perplexity
from policy.unmasker import PolicyUnmasker
from rewards.measures import distinct_n, unigram_entropy
from samplers.loop import Strategy, Unmasker
from samplers.settings import RULE_SETTINGS, SamplerSettings
from training.files import check_place
from training.hub import shipped
from training.processes import processes
from training.run import new_directory
from training.stored import description
from unmask.api import own_rule
from unmask.decoders import build_rule_decoder
from unmask.learning import source_of
from unmask.runs.evaluate import Setup, answer, report, with_earlier
from unmask.trained import Trained, result_of

StrategyLike = str | SamplerSettings | nn.Module | Unmasker | Trained
Dataset = str | Iterable[str]
SHOWN = {"accuracy": "accuracy_mean", "NFE": "evaluations_mean"}  # columns of the representation


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Results of an evaluation.

    directory: holds every answer, the tables and plots; rows: one row for each strategy and data set, with means over seeds.
    """

    directory: Path
    rows: list[dict[str, Any]]

    def __repr__(self) -> str:
        lines = [f"<Evaluation in {self.directory}"]
        for row in self.rows:
            figures = " ".join(f"{name}={row[key]:.3g}" for name, key in SHOWN.items())
            lines.append(
                f"  {row['name']} {row['dataset']} {figures} samples={row['samples']} seeds={row['num_seeds']}"
            )
        return "\n".join(lines) + ">"


def evaluate(
    model: MaskedLM | Trained[MaskedLM],
    *,
    dataset: Dataset | Sequence[str] = "chain",
    strategy: StrategyLike | Sequence[StrategyLike] = "confidence",
    seeds: Sequence[int] = (42,),
    run_dir: str | Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Evaluation:
    """Answer the questions of a data set by unmasking rules and policies; accuracy and cost of each.

    Args:
        dataset: chain, gsm8k, math, humaneval, mbpp, ... or several of them; or an iterable of prompts that has a method
            `check(prompt, answer)`.
        strategy: one or several of: the name of an unmasking rule, `SamplerSettings`, a policy, an unmasking rule.
        seeds: of the decoding; each seed answers every question once.
        run_dir: where the answers are written. An evaluation that was stopped goes on there. None: output/DATE/TIME.
        quiet: print nothing.
        settings: fields of `evaluation.request.EvaluationRequest`, such as n_test=100, gen_length=64, token_temperature=0.5.

    Raises:
        ValueError: for settings or objects that do not fit; one sentence that names them.
    """
    model = result_of(model)
    directory = new_directory() if run_dir is None else Path(run_dir)
    check_place(str(directory), f"run_dir={directory}")
    request = request_of(directory, model, settings)
    names, own = named_datasets(dataset)
    strategies = list(strategy) if isinstance(strategy, list | tuple) else [strategy]
    chosen = [one for value in strategies for one in candidates_of(value, request, model)]
    setup = Setup(
        request, model, source_of(model), str(model.dtype).removeprefix("torch."), chosen, names, list(seeds), None, own
    )
    with processes(str(model.device), saves=False) as group, redirect_stdout(io.StringIO() if quiet else sys.stdout):
        results, answered = answer(setup, group)
        if not answered:
            raise ValueError(f"no question of {', '.join(names)} could be answered; the reasons are on stderr")
        rows = report(with_earlier(results, directory), directory, setup.path)
    return Evaluation(directory, rows)


def compare(a: str | Path | Evaluation, b: str | Path | Evaluation) -> list[dict[str, Any]]:
    """Compare two evaluations of the same questions: is their difference larger than chance?

    Args:
        a, b: evaluations of one strategy each, or directories of answers (DIRECTORY/NAME where there are several strategies).

    Returns:
        For each data set that both have: accuracies, network evaluations, their differences with 95 % intervals, and the p-value
        of McNemar's test.
    """
    first, second = (one.directory if isinstance(one, Evaluation) else Path(one) for one in (a, b))
    return compared(first, second)


def metrics(texts: Sequence[str], judge: str | None = None) -> dict[str, Any]:
    """Return entropy (nats), distinct-n and, with a judge, generative perplexity of any texts.

    Entropy and distinct-n are of words. `Generation.metrics` measures samples of a model by its own tokens.

    Args:
        judge: a causal model (`smollm2`, a directory, an id of the hub). None: no perplexity.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts={texts!r} must be a list of at least one text; give a list")
    words = [text.split() for text in texts]
    ids = {word: number for number, word in enumerate(dict.fromkeys(word for row in words for word in row))}
    longest = max(1, *map(len, words))
    tokens = torch.tensor([[ids[word] for word in row] + [0] * (longest - len(row)) for row in words])
    counted = torch.arange(longest) < torch.tensor([len(row) for row in words])[:, None]
    found: dict[str, Any] = {"samples": len(texts), "entropy": float(unigram_entropy(tokens, counted).mean())}
    found |= {f"distinct_{n}": distinct_n(tokens, n, counted) if longest >= n else None for n in (1, 2, 3)}
    found |= {"words": sum(map(len, words)) / len(texts), "gen_ppl": None, "judge": None}
    if judge is not None:
        scores = perplexity(load_judge(shipped(judge), "cpu"), list(texts))
        found |= {"gen_ppl": float(scores[~scores.isnan()].mean()), "judge": judge}
    return finite(found)


# --------------------------------------------------------------------------------------------------- from arguments to objects


def request_of(directory: Path, model: MaskedLM, settings: dict[str, Any]) -> EvaluationRequest:
    """Return the settings of an evaluation. ValueError for an unknown setting, or one that another argument sets."""
    taken = {
        "save_path",
        "run",
        "policy_path",
        "strategy",
        "datasets",
        "seeds",
        "model_path",
        "device",
        "dtype",
        "config",
    }
    known = [entry.name for entry in fields(EvaluationRequest) if entry.name not in taken]
    if unknown := [name for name in settings if name not in known]:
        raise ValueError(f"evaluate has no setting {', '.join(unknown)}; use one of {', '.join(known)}")
    return EvaluationRequest(str(directory), device=str(model.device), **settings)


def named_datasets(dataset: Any) -> tuple[list[str], dict[str, list[Question]]]:
    """Return the names of the data sets, and the questions of those that the caller gave as objects."""
    if isinstance(dataset, str | list | tuple):
        names = [dataset] if isinstance(dataset, str) else list(dataset)
        if unknown := [name for name in names if name not in DATASETS and not name.startswith("rg:")]:
            raise ValueError(f"data set {', '.join(unknown)} is unknown; use one of {', '.join(DATASETS)}")
        return names, {}
    name = type(dataset).__name__
    prompts = prompt_texts(dataset)
    if not isinstance(dataset, CheckedPrompts):
        raise no_checker(name)

    def question(prompt: str) -> Question:
        return Question(prompt, "", lambda text, _: verdict(dataset, prompt, text) > 0.5, dataset=name)

    return [name], {name: [question(prompt) for prompt in prompts]}


def candidates_of(strategy: Any, request: EvaluationRequest, model: MaskedLM) -> list[Candidate]:
    """Return the candidates that a strategy describes. ValueError for an object that an evaluation cannot use."""
    if isinstance(strategy, Trained):
        file = strategy.directory / ".hydra" / "config.yaml"
        return candidates(replace(request, run=str(strategy.directory)), model, description(file))
    if isinstance(strategy, str | SamplerSettings):
        settings = SamplerSettings.of({"strategy": strategy}) if isinstance(strategy, str) else strategy
        name = settings.strategy or "direct"
        value = getattr(settings, RULE_SETTINGS[name]) if name in RULE_SETTINGS else None
        rule = build_rule_decoder(settings, model).rule
        label = name if value is None else f"{name}-{value:g}"
        return [Candidate(label, name, rule, setting=value, budget=settings.budget, alpha=settings.alpha)]
    name = type(strategy).__name__
    if isinstance(strategy, nn.Module):
        policy: Any = strategy.to(model.device)
        return [Candidate(name, name, PolicyUnmasker(policy))]
    if isinstance(strategy, Unmasker):
        return [Candidate(name, name, own_rule(strategy))]
    if isinstance(strategy, Strategy):
        return [Candidate(type(strategy.rule).__name__, name, strategy.rule)]
    raise ValueError(
        f"strategy={strategy!r} is of type {name}, which has no `choose` (an unmasking rule); give a name, settings, "
        "a policy, or an object with this method"
    )
