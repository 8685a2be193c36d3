"""The candidates of an evaluation: checkpoints of a run, one policy, or a published rule, each with a sweep of its
settings.
"""

from __future__ import annotations

from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from dlm.fingerprint import digest_of, weight_digests
from dlm.masked_lm import MaskedLM
from evaluation.names import SAMPLING_MODES
from evaluation.request import EvaluationRequest
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker, check_alpha
from samplers.heuristics import ADAPTIVE, UNMASKING_RULES, Window
from samplers.loop import StepDecoder, Unmasker
from samplers.names import DECODERS, PREDICTORS, QUALITY, STRATEGIES
from samplers.settings import (
    RULE_SETTINGS,
    SECTION_SETTINGS,
    SamplerSettings,
    check_given,
    check_strategy,
    highest_setting,
    idle,
    strategy_name,
)
from training.hub import shipped
from training.ranges import Number, Whole
from training.stored import value_at

EVALUATED_AS = {"bernoulli": "bernoulli-argmax", "plackett_luce": "dpls", "fixed": "fixed"}  # the action of training


@dataclass
class Candidate:
    """One decoder to evaluate.

    name: of its directories; series: of its line in the plot; rule: an unmasking rule, or a decoder with its token sampler;
    its settings within the sweep (None if it has none); weights: a hash of a policy's weights; sampler: the other settings of
    its decoding (None: those of the command line); revision: the settings of a decoder of DECODERS.
    """

    name: str
    series: str
    rule: Unmasker | StepDecoder
    checkpoint: int | None = None
    sampling_mode: str | None = None
    setting: float | None = None
    temperature: float | None = None
    beta: float | None = None
    steps: int | None = None
    budget: int | None = None
    alpha: float | None = None
    weights: str | None = None
    sampler: SamplerSettings | None = None
    revision: dict[str, Any] | None = None


def numbers(text: str, flag: str, kind: type = float) -> list:
    """Return the numbers of a comma-separated flag, each once. ValueError names the flag."""
    allowed = Whole(-(2**63), 2**63 - 1) if kind is int else Number()
    try:
        return list(dict.fromkeys(allowed(part) for part in text.split(",") if part.strip()))
    except ArgumentTypeError as error:
        whole = "whole " if kind is int else "finite "
        raise ValueError(f"{flag} {text!r} must be {whole}numbers, separated by commas") from error


def candidates(
    arguments: EvaluationRequest,
    model: MaskedLM,
    trained: Mapping[str, Any] | None,
    build: Callable[[SamplerSettings], StepDecoder],
) -> list[Candidate]:
    """Return all candidates of the command line.

    Args:
        build: makes a decoder whose settings are in a section of its name.
        trained: settings of the run or of --config, for those that the command line leaves open.
    """
    if arguments.rule in DECODERS:
        found = _sections(arguments, model, build)
    else:
        found = _rules(arguments, model) if arguments.strategy else _policies(arguments, model, trained)
    alphas, budgets = _alphas_and_budgets(arguments, found[0].rule, trained)
    if alphas:
        found = [Candidate(**vars(one) | {"name": f"{one.name}-a{a:g}", "alpha": a}) for one in found for a in alphas]
    if budgets:
        found = [
            Candidate(**vars(one) | {"name": f"{one.name}-budget{b}", "budget": b}) for one in found for b in budgets
        ]
    for one in found:
        check_alpha(one.rule.network if isinstance(one.rule, PolicyUnmasker) else None, one.alpha)
    return found


def _alphas_and_budgets(
    arguments: EvaluationRequest, rule: Unmasker | StepDecoder, trained: Mapping[str, Any] | None
) -> tuple[list[float], list[int]]:
    """Return those of the command line; for a policy otherwise those of its training."""
    alphas = numbers(arguments.alphas, "--alphas")
    budgets = numbers("" if arguments.budgets == "none" else arguments.budgets, "--budgets", int)
    if isinstance(rule, PolicyUnmasker) and trained is not None:
        if not arguments.alphas and rule.network.alpha_embedding is not None:
            alphas = [float(alpha) for alpha in value_at(trained, "reward.alphas") or ()]
        if not arguments.budgets:
            budgets = [int(budget) for budget in value_at(trained, "sampler.budgets") or ()]
    return alphas, budgets


def _rules(arguments: EvaluationRequest, model: MaskedLM) -> list[Candidate]:
    name = arguments.rule
    check_strategy(name, (*STRATEGIES, *PREDICTORS))
    if name not in UNMASKING_RULES:
        raise ValueError("--strategy policy needs its policy: give RUN or --policy instead")
    strategy_name(name, model)
    settings, steps = numbers(arguments.settings, "--settings"), numbers(arguments.steps, "--steps", int)
    found = [Candidate(name, name, UNMASKING_RULES[name]())]
    if name in RULE_SETTINGS:
        if not settings:
            raise ValueError(f"--strategy {name} needs --settings, such as 0.5,0.9")
        highest = highest_setting(name)
        if wrong := [value for value in settings if not 0 <= value <= highest]:
            raise ValueError(f"--settings {wrong} of {name} must be from 0 to {highest}; change them")
        found = [
            Candidate(f"{name}-{value:g}", name, UNMASKING_RULES[name](value), setting=value) for value in settings
        ]
        if name == "window":
            found = _windows(arguments.windows, settings)
    elif settings:
        raise ValueError(f"{name} has no setting to sweep; give --steps, such as 4,8,16")
    if name in ADAPTIVE and steps:
        raise ValueError(f"{name} takes as many steps as it needs; leave --steps out, or give --budgets")
    return _in_steps(found, steps)


def _sections(
    arguments: EvaluationRequest, model: MaskedLM, build: Callable[[SamplerSettings], StepDecoder]
) -> list[Candidate]:
    """Return one candidate for each combination of --settings and of the values of --sampler."""
    name, steps = str(arguments.rule), numbers(arguments.steps, "--steps", int)
    strategy_name(name, model)
    if steps and idle(SamplerSettings(strategy=name), "sampler.steps"):
        raise ValueError(f"{name} takes as many steps as it needs; leave --steps out, or give --budgets")
    main, swept = f"{name}.{SECTION_SETTINGS[name]}", _swept(arguments.sampler)
    if values := numbers(arguments.settings, "--settings"):
        if main in swept:
            raise ValueError(f"--settings and --sampler {main} name the same setting; leave one of them out")
        swept = {main: [int(value) if value.is_integer() else value for value in values]} | swept
    found = []
    for values in product(*swept.values()):
        chosen = dict(zip(swept, values, strict=True))
        nested: dict[str, Any] = {"strategy": name, "temperature": arguments.token_temperature}
        for key, value in chosen.items():
            section, _, field = key.partition(".")
            nested[section] = {**nested.get(section, {}), field: value}
        settings = SamplerSettings.of(nested | {"confidence": arguments.confidence})
        check_given(settings, {f"sampler.{key}": f"--sampler {key}" for key in chosen})
        others = [name, *(_word(key, value) for key, value in chosen.items() if key != main)]
        setting = chosen.get(main)
        words = others if setting is None else [*others, f"{setting:g}"]
        sections = {name, *(key.split(".")[0] for key in chosen), *(("quality",) if name in QUALITY else ())}
        own = {section: asdict(getattr(settings, section)) for section in sorted(sections)}
        found.append(Candidate("-".join(words), "-".join(others), build(settings), setting=setting, revision=own))
    return _in_steps(found, steps)


def _swept(given: Sequence[str]) -> dict[str, list[Any]]:
    """Return the values of each KEY=VALUE,VALUE of --sampler. ValueError for other text."""
    found: dict[str, list[Any]] = {}
    for text in given:
        key, equals, values = text.partition("=")
        if not equals or not values or key.startswith("sampler.") or key.count(".") != 1:
            raise ValueError(
                f"--sampler {text!r} must be SECTION.KEY=VALUES, such as edit.edit_threshold=0,0.5; docs/reference/settings.md "
                "lists the keys behind sampler."
            )
        found[key] = list(dict.fromkeys(_value(value) for value in values.split(",")))
    return found


def _value(text: str) -> Any:
    """Return a text as a number, true, false, null or a word."""
    words = {"null": None, "true": True, "false": False}
    for kind in (int, float):
        try:
            return words[text] if text in words else kind(text)
        except ValueError:
            continue
    return text


def _word(key: str, value: Any) -> str:
    """Return a setting as part of a directory's name: a word alone, a number with the name of its key."""
    name = key.rpartition(".")[2]
    if isinstance(value, bool) or value is None:
        return f"{name}_{str(value).lower()}"
    return str(value).replace("/", "_").replace("\\", "_") if isinstance(value, str) else f"{name}{value:g}"


def _windows(windows: str, settings: list[float]) -> list[Candidate]:
    """Combine every width of a window with every threshold. The width is part of the name, so that each has its own
    directory.
    """
    widths = numbers(windows, "--windows", int) or [Window.window]
    for width in widths:
        if width < 1:
            raise ValueError(f"--windows={width} must be a whole number of at least 1; change it")
    return [
        Candidate(f"window{width}-{value:g}", f"window {width}", Window(value, width), setting=value)
        for width in widths
        for value in settings
    ]


def _in_steps(found: list[Candidate], steps: list[int]) -> list[Candidate]:
    if any(count < 1 for count in steps):
        raise ValueError(f"--steps {steps} must be at least 1; change them")
    if not steps:
        return found
    return [Candidate(**vars(one) | {"name": f"{one.name}-K{k}", "steps": k}) for one in found for k in steps]


def _policies(arguments: EvaluationRequest, model: MaskedLM, trained: Mapping[str, Any] | None) -> list[Candidate]:
    action = EVALUATED_AS.get(str(value_at(trained, "algorithm.action")))
    mode = arguments.sampling_mode or action or "bernoulli-argmax"
    thresholds, steps = _thresholds_and_steps(mode, arguments.settings, arguments.steps)
    trained_at = value_at(trained, "eval.temperature")
    temperatures = numbers(arguments.temperatures or "", "--temperatures")
    temperatures = temperatures or [1.0 if trained_at is None else float(trained_at)]
    betas = numbers(arguments.betas or "", "--betas") or [1.0]
    found = []
    for name, checkpoint, file in _policy_files(arguments):
        network = load_policy(file, model=model, other_model=arguments.other_model)
        network.to(model.device)
        weights = digest_of(weight_digests(network.named_parameters()))
        found += [
            Candidate(
                _policy_name(name, mode, temperature, beta, threshold),
                f"{name} {mode}",
                PolicyUnmasker(network, SAMPLING_MODES[mode], temperature, beta, threshold),
                checkpoint,
                mode,
                threshold if mode == "threshold" else None,
                temperature,
                beta,
                weights=weights,
            )
            for temperature, beta, threshold in product(temperatures, betas, thresholds)
        ]
    return _in_steps(found, steps)


def _thresholds_and_steps(mode: str, settings: str, steps: str) -> tuple[list[float], list[int]]:
    """Return the thresholds and the numbers of steps of a policy. ValueError for a flag that the mode does not have."""
    thresholds = numbers(settings, "--settings") if mode == "threshold" else []
    if mode != "threshold" and settings:
        raise ValueError(f"--settings of a policy are those of --sampling_mode threshold, not of {mode}")
    counts = numbers(steps, "--steps", int)
    if mode != "fixed" and counts:
        raise ValueError(f"--steps of a policy are those of --sampling_mode fixed, not of {mode}; leave them out")
    return thresholds or [0.5], counts


def _policy_name(name: str, mode: str, temperature: float, beta: float, threshold: float) -> str:
    """Return the name of a candidate: that of the policy, and the settings that are not the usual ones."""
    words = [f"{name}-T{temperature:g}"]
    if mode != "bernoulli-argmax":
        words.append(f"{mode}{threshold:g}" if mode == "threshold" else mode)
    if beta != 1:
        words.append(f"B{beta:g}")
    return "-".join(words)


def _policy_files(arguments: EvaluationRequest) -> list[tuple[str, int | None, Path]]:
    """Return (name, checkpoint, file) of each policy."""
    if arguments.run:
        run = Path(arguments.run)
        files = [
            (int(file.stem.split("_")[1]), file) for file in checkpoint_files(run, arguments.checkpoints or "last")
        ]
        return [(f"{run.name}-checkpoint_{number}", number, file) for number, file in files]
    assert arguments.policy_path is not None
    path = Path(shipped(arguments.policy_path))
    named = path.resolve().parent if path.name == "model.safetensors" else path  # the file that every directory has
    return [(named.stem if named.suffix in (".pth", ".safetensors") else named.name, None, path)]


def checkpoint_files(run: Path, requested: str) -> list[Path]:
    """Return the requested checkpoints. ValueError lists those present."""
    there = {file.stem.removeprefix("checkpoint_"): file for file in (run / "checkpoints").glob("checkpoint_*.pth")}
    numbered = {int(number): file for number, file in there.items() if number.isdecimal()}
    if not numbered:
        raise ValueError(f"{run} has no checkpoints/checkpoint_N.pth; give a training run of train-policy, or one "
                         "policy by --policy DIR/model.safetensors")  # fmt: skip
    found = []
    for word in (word.strip() for word in requested.split(",")):
        if word in ("first", "last"):
            found.append((min if word == "first" else max)(numbered))
        else:
            found.append(int(word) if word.isdecimal() else word)
    if missing := [number for number in found if number not in numbered]:
        present = ", ".join(map(str, sorted(numbered)))
        raise ValueError(f"checkpoints {requested!r}: {missing} not there; {run} has {present} (or first, last)")
    return [numbered[number] for number in dict.fromkeys(found)]
