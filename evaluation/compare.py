"""Compare two evaluations of the same questions, for `unmask compare` and `unmask.compare`.

Accuracies and network evaluations are compared question by question, averaged over seeds, with paired bootstrap intervals and
McNemar's exact test (1947). With several seeds a question counts for the evaluation that answered it right more often, over as
many seeds as both evaluations have.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from evaluation.aup import tokens_per_forward, tokens_per_forward_difference
from evaluation.generations import read_records
from evaluation.intervals import Interval, paired_difference
from evaluation.report import print_table
from evaluation.summary import seeds_averaged


def mcnemar(only_first: int, only_second: int) -> float:
    """Return the exact two-sided p-value: twice the smaller tail of a fair coin, tossed for each question on which the two
    disagree.
    """
    total = only_first + only_second
    tail = sum(math.comb(total, k) for k in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**total)


def evaluations_in(path: Path) -> dict[str, list[list[dict]]]:
    """Return the records of each seed, by data set. ValueError if there are none, or records of more than one rule."""
    directories = [path] if (path / "settings.json").is_file() else sorted(path.glob("*/"))
    if not path.is_dir():  # SAVE_PATH/NAME: a prefix of directories that end in data set and seed
        directories = sorted(path.parent.glob(f"{path.name}_*_seed*/"))
    found: dict[str, list[list[dict]]] = {}
    names = set()
    for directory in directories:
        file = directory / "settings.json"
        settings = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None
        if settings is not None:
            names.add(settings["name"])
            found.setdefault(data_set_of(settings), []).append(read_records(directory))
    if len(names) != 1:
        advice = f"several rules; give one of {', '.join(str(path / name) for name in sorted(names))}"
        raise ValueError(f"{path} holds {advice if names else 'no evaluation of unmask evaluate; give its --out'}")
    return found


def data_set_of(settings: dict) -> str:
    """Return the name of what was evaluated. Texts are comparable under one judge, at one length and with one prompt only."""
    if "judge" not in settings:
        return settings["dataset"]
    return f"text of {settings['length']} positions, prompt {settings['prompt']!r}, judge {settings['judge']}"


def disagreements(first: list[list[dict]], second: list[list[dict]]) -> tuple[int, int, int]:
    """Return (seeds, questions that `first` answered right more often, those that `second` did), over as many seeds as
    both have.
    """
    common = min(len(first), len(second))
    ours, theirs = (seeds_averaged(seeds[:common], "right") for seeds in (first, second))
    return common, int((ours > theirs).sum()), int((ours < theirs).sum())


def compare(first: list[list[dict]], second: list[list[dict]]) -> dict[str, float | int]:
    """Return the figures of one data set. first, second: the records of each seed. ValueError for different questions."""
    if "perplexity" in first[0][0] and "perplexity" in second[0][0]:
        return compare_texts(first, second)
    questions = [[(record["row"], record["question"]) for record in seeds[0]] for seeds in (first, second)]
    if questions[0] != questions[1]:
        raise ValueError(
            f"the questions differ ({len(questions[0])} and {len(questions[1])}); evaluate both on the same ones"
        )
    right = [seeds_averaged(seeds, "right") for seeds in (first, second)]
    evaluations = [seeds_averaged(seeds, "nfe") for seeds in (first, second)]
    common, better, worse = disagreements(first, second)
    return {
        "questions": len(right[0]), "seeds_a": len(first), "seeds_b": len(second),
        "accuracy_a": float(right[0].mean()), "accuracy_b": float(right[1].mean()),
        **_named("accuracy_difference", paired_difference(right[0], right[1])),
        "mcnemar_seeds": common, "only_a_right": better, "only_b_right": worse, "mcnemar_p": mcnemar(better, worse),
        "evaluations_a": float(evaluations[0].mean()), "evaluations_b": float(evaluations[1].mean()),
        **_named("evaluations_difference", paired_difference(evaluations[0], evaluations[1])),
        **compare_tpf(first, second),
    }  # fmt: skip


def compare_tpf(first: list[list[dict]], second: list[list[dict]]) -> dict[str, float]:
    """Return tokens per forward of both and their difference, with paired intervals; empty for records without tokens."""
    if not all("tokens" in record for seeds in (first, second) for seed in seeds for record in seed):
        return {}
    a, b = ((seeds_averaged(seeds, "tokens"), seeds_averaged(seeds, "nfe")) for seeds in (first, second))
    return {
        **_named("tpf_a", tokens_per_forward(*a)), **_named("tpf_b", tokens_per_forward(*b)),
        **_named("tpf_difference", tokens_per_forward_difference(a, b)),
    }  # fmt: skip


def compare_texts(first: list[list[dict]], second: list[list[dict]]) -> dict[str, float | int]:
    """Return the figures of texts: mean perplexity, entropy and evaluations of both, and their differences.

    Samples with the same number share their random draws, so differences are taken sample by sample, seeds averaged.
    """
    figures: dict[str, float | int] = {"samples": len(first[0]), "seeds_a": len(first), "seeds_b": len(second)}
    for measure in ("perplexity", "entropy", "nfe"):
        a, b = seeds_averaged(first, measure), seeds_averaged(second, measure)
        if len(a) != len(b):
            raise ValueError(f"A has {len(a)} samples and B {len(b)}; evaluate both with one --n_test")
        figures |= {f"{measure}_a": float(a.mean()), f"{measure}_b": float(b.mean())}
        figures |= _named(f"{measure}_difference", paired_difference(a, b))
    return figures | compare_tpf(first, second)


def _named(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}


def compared(a: Path, b: Path) -> list[dict]:
    """Return the figures of each data set that two evaluations share. ValueError if they share none."""
    first, second = evaluations_in(a), evaluations_in(b)
    shared = [name for name in first if name in second]
    if not shared:
        raise ValueError(f"no data set is in both: {'; '.join(first)} and {'; '.join(second)}; evaluate both on one")
    return [{"dataset": name, **compare(first[name], second[name])} for name in shared]


def report(a: Path, b: Path) -> list[dict]:
    """Print the comparison of two evaluations, and return a record for each data set."""
    records = compared(a, b)
    figures = [{"measure": key, **{record["dataset"]: record[key] for record in records}} for key in records[0]]
    print_table(figures[1:], title=f"A {a}, B {b}")
    print(json.dumps({"a": str(a), "b": str(b), "comparisons": records}, allow_nan=False))
    return records
