"""Evaluate and compare from Python, by what `evaluate` and `compare` do on the command line."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data.catalogue import DATASETS
from data.prompt_task import CheckedPrompts, no_checker, prompt_texts, verdict
from data.questions import Question
from dlm.checked import check_model
from dlm.fingerprint import digest_of, weight_digests
from dlm.masked_lm import MaskedLM
from evaluation.compare import compared
from evaluation.metrics import finite
from evaluation.names import SAMPLING_MODES
from evaluation.request import EvaluationRequest
from evaluation.sweeps import EVALUATED_AS, Candidate
from evaluation.text import load_judge, perplexity
from policy.base import PolicyNetwork
from policy.networks import HiddenMLP
from policy.unmasker import PolicyUnmasker, check_alpha
from rewards.measures import distinct_n, unigram_entropy
from samplers.checked import CheckedRule, CheckedStepDecoder
from samplers.heuristics import AsSampled
from samplers.history import Credit
from samplers.lookahead import Lopa, Punt
from samplers.loop import Reviser, StepDecoder, Strategy, Unmasker
from samplers.names import DECODERS, QUALITY
from samplers.settings import RULE_SETTINGS, SECTION_SETTINGS, SamplerSettings, idle
from training.files import check_place
from training.hub import shipped
from training.processes import processes
from training.ranges import COUNT_OR_NONE, ROWS, SEED, as_text
from training.run import new_directory
from training.stored import plain_description, value_at
from training.terminal import quietly
from unmask.api import merged, own_rule, vars_of
from unmask.arguments import check_policy
from unmask.decoders import build_step_decoder, policy_rule
from unmask.learning import source_of
from unmask.runs.evaluate import Setup, answer, check_data, check_reads_text, directly, report, with_earlier
from unmask.trained import Trained, result_of

StrategyLike = str | SamplerSettings | nn.Module | Unmasker | Reviser | Credit | Punt | Lopa | Trained
Dataset = str | Iterable[str]
SHORT = {"steps": "K", "alpha": "a"}  # of settings in the names of strategies, as in those of the command
SHOWN = {"accuracy": "accuracy_mean", "NFE": "evaluations_mean", "TPF": "tpf_mean"}  # columns of the representation


@dataclass(frozen=True, repr=False)
class Evaluation:
    """Figures of an evaluation.

    directory: with every answer, tables and plots; rows: one for each strategy and data set, means over seeds; series: accuracy
    under parallelism (AUP) of each series of strategies and data set, with its interval. Strategies that differ in the parameter
    of their rule or in `steps` only are one series, unless the caller named them.
    """

    directory: Path
    rows: list[dict[str, Any]]
    series: list[dict[str, Any]] = field(default_factory=list)

    def __repr__(self) -> str:
        lines = [f"<Evaluation in {self.directory}"]
        for row in self.rows:
            known = {name: row[key] for name, key in SHOWN.items() if row[key] is not None}
            figures = " ".join(f"{name}={value:.3g}" for name, value in known.items())
            lines.append(
                f"  {row['name']} {row['dataset']} {figures} samples={row['samples']} seeds={row['num_seeds']}"
            )
        return "\n".join(lines) + ">"


def evaluate(
    model: MaskedLM | Trained[MaskedLM],
    *,
    dataset: Dataset | Sequence[str] = "chain",
    strategy: StrategyLike | Sequence[StrategyLike] | Mapping[str, StrategyLike] = "confidence",
    seeds: int | Sequence[int] = 42,
    answer_length: int | None = None,
    n_test: int | None = None,
    few_shot: int = 0,
    batch_size: int = 32,
    data_dir: str | None = None,
    math_by: str = "verify",
    unsandboxed: bool = False,
    run_dir: str | Path | None = None,
    quiet: bool = True,
    **settings: Any,
) -> Evaluation:
    """Answer the questions of a data set by unmasking rules and policies; accuracy and cost of each.

    Args:
        dataset: chain, gsm8k, math, humaneval, mbpp, ... or several of them; or an iterable of prompts that has a method
            `check(prompt, answer)`.
        strategy: one or several of: the name of an unmasking rule, `SamplerSettings`, a policy, an unmasking rule, a rule with
            a token sampler (`samplers.loop.Strategy`), a decoder that revises (`samplers.loop.Reviser`); or a dictionary of
            these by the names that the table gets.
        seeds: of the decoding; each seed answers every question once.
        answer_length: positions behind a prompt. None: 24 for chain, else 256.
        n_test: questions that are answered. None: all, 512 of chain.
        few_shot: worked answers before each question (gsm8k, math).
        data_dir: a directory with the data sets, in place of the hub.
        math_by: verify or source, which judges answers of math.
        unsandboxed: run generated programs without a sandbox, where the machine has none.
        run_dir: where the answers are written. An evaluation that was stopped goes on there, but not one of objects of the
            caller other than policies: they cannot be recognised. None: output/DATE/TIME.
        quiet: print nothing.
        settings: fields of `SamplerSettings` for every strategy, such as steps=8, temperature=0.5, block_length=32. A
            `SamplerSettings` has its own. The defaults differ from those of `sample` in three: temperature=0, one position a
            step, and a policy commits what it is sure of (policy={"action": "bernoulli_argmax"}) unless `steps` is given or it
            was trained otherwise.

    Raises:
        ValueError: for settings or objects that do not fit; one sentence that names them.
    """
    model = result_of(model)
    check_model(model)
    check_reads_text(model)
    check_numbers({"answer_length": answer_length, "n_test": n_test, "few_shot": few_shot, "batch_size": batch_size})
    directory = new_directory() if run_dir is None else Path(run_dir)
    check_place(str(directory), f"run_dir={directory}")
    request = EvaluationRequest(
        str(directory), gen_length=answer_length, n_test=n_test, few_shot=few_shot, batch_size=batch_size,
        data_dir=data_dir, math_by=math_by, unsandboxed=unsandboxed, device=str(model.device),
    )  # fmt: skip
    names, own = named_datasets(dataset, n_test)
    check_data(request, names)
    chosen = candidates_of(strategy, settings, model)
    setup = Setup(
        request, model, source_of(model), str(model.dtype).removeprefix("torch."), chosen, names, checked_seeds(seeds),
        None, own,
    )  # fmt: skip
    check_new(setup, directory)
    with processes(str(model.device), saves=False) as group, quietly(quiet):
        results, _ = answer(setup, group, directly)
        tables = report(with_earlier(results, directory), directory, setup.path)
    return Evaluation(directory, tables.summary, tables.series)


def compare(a: str | Path | Evaluation, b: str | Path | Evaluation) -> list[dict[str, Any]]:
    """Compare two evaluations of the same questions: do they differ by more than chance?

    Args:
        a, b: evaluations of one strategy each, or directories of answers (DIRECTORY/NAME where there are several strategies).

    Returns:
        For each data set that both have: accuracies, network evaluations, their differences with 95 % intervals, and the p-value
        of McNemar's test.
    """
    for name, value in (("a", a), ("b", b)):
        if not isinstance(value, Evaluation | str | Path):
            raise ValueError(
                f"{name}={as_text(value)} of type {type(value).__name__} is no evaluation; give one, or a directory"
            )
    first, second = (one.directory if isinstance(one, Evaluation) else Path(one) for one in (a, b))
    return compared(first, second)


def metrics(texts: Sequence[str], judge: str | None = None) -> dict[str, Any]:
    """Entropy (nats), distinct-n and, with a judge, generative perplexity of texts from anywhere.

    Entropy and distinct-n are of words. `Generation.metrics` measures samples of a model by its own tokens.

    Args:
        judge: a causal model (`smollm2`, a directory, an id of the hub). None: no perplexity.
    """
    if isinstance(texts, str) or not texts:
        raise ValueError(f"texts={texts!r} must be a list of at least one text; give a list")
    if wrong := [text for text in texts if not isinstance(text, str)]:
        raise ValueError(f"texts has {as_text(wrong[0])} of type {type(wrong[0]).__name__}; every text must be a str")
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


def check_numbers(values: Mapping[str, int | None]) -> None:
    """Refuse numbers of positions, questions or rows that are none: ValueError names the argument."""
    for name, value in values.items():
        allowed = COUNT_OR_NONE if name == "few_shot" else ROWS
        if value is not None and not allowed.holds(value):
            raise ValueError(f"{name}={value!r} must be {allowed.allowed}; change it")


def checked_seeds(seeds: Any) -> list[int]:
    """Return one seed or several as a list. ValueError for anything else, or none."""
    found = [seeds] if isinstance(seeds, int) else list(seeds) if isinstance(seeds, Sequence) else []
    if not found or not all(SEED.holds(seed) for seed in found):
        raise ValueError(f"seeds={seeds!r} must be {SEED.allowed}, or a list of such numbers; change it")
    return list(dict.fromkeys(found))


def named_datasets(dataset: Any, count: int | None) -> tuple[list[str], dict[str, list[Question]]]:
    """Return the names of data sets, and the questions of those that the caller gave, at most `count`."""
    if isinstance(dataset, str | list | tuple):
        names = [dataset] if isinstance(dataset, str) else list(dict.fromkeys(dataset))
        if unknown := [name for name in names if name not in DATASETS and not str(name).startswith("rg:")]:
            raise ValueError(
                f"data set {', '.join(map(str, unknown))} is unknown; use one of {', '.join(DATASETS)}, or an object with "
                "`__iter__` and `check`"
            )
        if not names:
            raise ValueError("dataset is empty; give at least one")
        return names, {}
    name = type(dataset).__name__
    prompts = prompt_texts(dataset)[:count]
    if not isinstance(dataset, CheckedPrompts):
        raise no_checker(name)

    def question(prompt: str) -> Question:
        return Question(prompt, "", lambda text, _: verdict(dataset, prompt, text) > 0.5, dataset=name)

    return [name], {name: [question(prompt) for prompt in prompts]}


def candidates_of(strategy: Any, settings: Mapping[str, Any], model: MaskedLM) -> list[Candidate]:
    """Return the candidates of the strategies of a call. Each has its own name.

    Args:
        settings: fields of `SamplerSettings` for all of them.

    Raises:
        ValueError: an object that an evaluation cannot use, a setting that no strategy reads, or two strategies of one name.
    """
    if isinstance(strategy, Mapping):
        named: list[tuple[str | None, Any]] = list(strategy.items())
    else:
        named = [(None, one) for one in (strategy if isinstance(strategy, list | tuple) else [strategy])]
    if not named:
        raise ValueError("strategy is empty; give at least one")
    found = [one for name, value in named for one in candidates_by(name, value, settings, model)]
    check_used(settings, found)
    names = [one.name for one in found]
    if twice := [name for name in dict.fromkeys(names) if names.count(name) > 1]:
        raise ValueError(
            f"{names.count(twice[0])} strategies would be named {twice[0]!r}; give a dictionary with a name for each, as in "
            'strategy={"a": ..., "b": ...}'
        )
    if wrong := [name for name in names if not name or set(name) & set("/\\")]:
        raise ValueError(
            f"the strategy's name {wrong[0]!r} names a directory; leave / and \\ out, and give some letters"
        )
    return found


def check_used(settings: Mapping[str, Any], found: Sequence[Candidate]) -> None:
    """Refuse a setting that none of the strategies reads: ValueError."""
    if "stop" in settings:
        raise ValueError(
            "stop would do nothing in an evaluation, where answers always end at their end token; leave it out"
        )
    for key in settings:
        reasons = [idle(one.sampler, f"sampler.{key}", "strategy ") for one in found if one.sampler is not None]
        if all(reasons):
            raise ValueError(f"{key} {reasons[0]}")


def candidates_by(name: str | None, strategy: Any, settings: Mapping[str, Any], model: MaskedLM) -> list[Candidate]:
    """Return the candidates of one strategy: one, or one for each budget and weight that a policy was trained with.

    Args:
        name: that the caller gave; None: one by the strategy.
    """
    if isinstance(strategy, SamplerSettings):
        whole = SamplerSettings.of(merged(vars_of(strategy), settings))
        return [by_name(name or label_of(strategy), whole, whole.steps, model, name or series_of(strategy))]
    if isinstance(strategy, str):
        whole = SamplerSettings.of({"temperature": 0.0, "strategy": strategy} | dict(settings))
        return [by_name(name or rule_label(whole), whole, settings.get("steps"), model, name or strategy)]
    if isinstance(strategy, Trained) and isinstance(strategy.result, PolicyNetwork):
        return by_run(name or strategy.directory.name, strategy.directory, strategy.result, settings, model)
    if isinstance(strategy, PolicyNetwork):
        return [by_policy(name or type(strategy).__name__, strategy, settings, model)]
    return [by_rule(name, strategy, settings, model)]


def by_name(name: str, settings: SamplerSettings, steps: int | None, model: MaskedLM, series: str) -> Candidate:
    """Return the candidate of the rule or policy that settings name.

    Args:
        steps: None for one position a step.
        series: strategies of one series are one line of the plots.
    """
    decoder = build_step_decoder(settings, model)
    if not isinstance(decoder, Strategy):
        return replace(candidate(name, decoder, settings, steps), series=series)
    rule = decoder.rule.rule if isinstance(decoder.rule, AsSampled) else decoder.rule
    return replace(candidate(name, rule, settings, steps), series=series)


def by_policy(name: str, network: PolicyNetwork, given: Mapping[str, Any], model: MaskedLM) -> Candidate:
    """Return the candidate of a policy network with the settings `given`."""
    settings = SamplerSettings.of({"temperature": 0.0, "strategy": "policy"} | dict(given))
    if settings.policy.action is None:
        equal_parts = "steps" in given or isinstance(network, HiddenMLP)
        settings = replace(
            settings, policy=replace(settings.policy, action="fixed" if equal_parts else "bernoulli_argmax")
        )
    check_alpha(network, settings.alpha)
    check_policy(network, settings, model)
    return candidate(name, policy_rule(network, settings.policy, model), settings, given.get("steps"))


def by_run(
    name: str, directory: Path, network: PolicyNetwork, given: Mapping[str, Any], model: MaskedLM
) -> list[Candidate]:
    """Return the candidates of the policy of a run, by default with the blocks, the action and the budgets of its training."""
    stored = plain_description(directory / ".hydra" / "config.yaml")
    trained: dict[str, Any] = {key: value_at(stored, f"sampler.{key}") for key in ("block_length", "cache", "refresh")}
    mode = EVALUATED_AS.get(str(value_at(stored, "algorithm.action")))
    if mode is not None and "steps" not in given:
        trained["policy"] = {"action": SAMPLING_MODES[mode], "temperature": value_at(stored, "eval.temperature")}
    own = merged(trained, given)
    budgets = [own["budget"]] if "budget" in own else value_at(stored, "sampler.budgets") or [None]
    alphas = [own["alpha"]] if "alpha" in own else value_at(stored, "reward.alphas") or [None]
    found = []
    for alpha, budget in product(alphas, budgets):
        label = "".join(
            (name, "" if len(alphas) < 2 else f"-a{alpha:g}", "" if len(budgets) < 2 else f"-budget{budget}")
        )
        found.append(by_policy(label, network, own | {"alpha": alpha, "budget": budget}, model))
    return found


def by_rule(name: str | None, strategy: Any, given: Mapping[str, Any], model: MaskedLM) -> Candidate:
    """Return the candidate of a rule of the caller, alone or with a token sampler. ValueError for an object that is neither."""
    settings = SamplerSettings.of({"temperature": 0.0} | dict(given))
    check_policy(strategy, settings, model)
    if isinstance(strategy, Strategy | Reviser | Credit | Punt | Lopa):
        tokens = strategy.token_sampler
        own = {"temperature": tokens.temperature, "top_p": tokens.top_p, "top_k": tokens.top_k}
        if twice := [key for key in own if key in given]:
            raise ValueError(
                f"{', '.join(twice)} would do nothing with a {type(strategy).__name__}, which has its own; leave it out"
            )
        settings = replace(settings, **own)
    if isinstance(strategy, Reviser | Credit | Punt | Lopa):
        return candidate(name or type(strategy).__name__, CheckedStepDecoder(strategy), settings, given.get("steps"))
    strategy = strategy.rule if isinstance(strategy, Strategy) else strategy
    if not isinstance(strategy, Unmasker):
        raise ValueError(
            f"strategy={strategy!r} is of type {type(strategy).__name__}, which has no `choose` (an unmasking rule); give a "
            "name, settings, a policy, or an object with this method"
        )
    return candidate(name or type(strategy).__name__, own_rule(strategy), settings, given.get("steps"))


def candidate(name: str, rule: Unmasker | StepDecoder, settings: SamplerSettings, steps: int | None) -> Candidate:
    """Return a candidate with these settings."""
    unread, strategy = idle(settings, "sampler.steps"), str(settings.strategy)
    sections = (strategy, "quality") if strategy in QUALITY else (strategy,)
    revision = {name: vars(getattr(settings, name)) for name in sections} if strategy in DECODERS else None
    found = Candidate(
        name, name, rule, setting=setting_of(settings), steps=None if unread else steps, budget=settings.budget,
        alpha=settings.alpha, sampler=settings, revision=revision,
    )  # fmt: skip
    if not isinstance(rule, PolicyUnmasker):
        return found
    policy = settings.policy
    return replace(
        found, sampling_mode=rule.action, setting=policy.threshold if rule.action == "threshold" else None,
        temperature=policy.temperature, beta=policy.beta,
        weights=digest_of(weight_digests(rule.network.named_parameters())),
    )  # fmt: skip


def setting_of(settings: SamplerSettings) -> float | int | None:
    """Return the parameter of a strategy that an evaluation sweeps; None if it has none, or the published one."""
    name = settings.strategy or "direct"
    if name in SECTION_SETTINGS:
        return getattr(getattr(settings, name), SECTION_SETTINGS[name])
    return getattr(settings, RULE_SETTINGS[name]) if name in RULE_SETTINGS else None


def rule_label(settings: SamplerSettings) -> str:
    """Return the name of a strategy with the parameter of its rule."""
    name, value = settings.strategy or "direct", setting_of(settings)
    return name if value is None else f"{name}-{value:g}"


def label_of(settings: SamplerSettings) -> str:
    """Return the name of a strategy with its parameter and the other numbers and words that differ from the defaults."""
    return "-".join([rule_label(settings), *changed_in(settings)])


def series_of(settings: SamplerSettings) -> str:
    """Return the name of a series of strategies: that of a strategy without the parameter of its rule and without steps."""
    return "-".join([settings.strategy or "direct", *changed_in(settings, without=("steps",))])


def changed_in(settings: SamplerSettings, without: Sequence[str] = ()) -> list[str]:
    """Return the numbers and words that differ from the defaults, as parts of a name."""
    usual, named = SamplerSettings(), ("strategy", RULE_SETTINGS.get(settings.strategy or "direct"))
    changed = {
        key: value
        for key, value in vars(settings).items()
        if isinstance(value, str | int | float) and value != getattr(usual, key) and key not in (*named, *without)
    }
    return [f"{SHORT.get(key, key)}{shortest(value)}" for key, value in changed.items()]


def shortest(value: str | float | int) -> str:
    """Return a word, or a number without trailing zeros."""
    return value if isinstance(value, str) else f"{value:g}"


def check_new(setup: Setup, directory: Path) -> None:
    """Refuse answers of an earlier call that cannot be recognised: of a rule or a checker of the caller. ValueError."""
    for job in setup.jobs():
        own_rule = isinstance(job.candidate.rule, CheckedRule | CheckedStepDecoder)
        if (own_rule or job.dataset in setup.questions) and (directory / job.directory).exists():
            raise ValueError(
                f"{directory / job.directory} holds answers already, and a rule or a checker of your own cannot be recognised "
                "from one call to the next; give another run_dir"
            )
