"""Tables of an evaluation from the records of samples: one row per rule, data set and seed, and statistics over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from evaluation.aup import Outcomes, sweep_aup, tokens_per_forward
from evaluation.intervals import Interval, bootstrap_mean, wilson

MEASURES = {
    "accuracy": "right", "evaluations": "nfe", "seconds": "seconds", "cpu_seconds": "cpu_seconds", "generated_tokens": "tokens",
}  # fmt: skip
IDENTITY = (
    "name", "series", "dataset", "checkpoint", "sampling_mode", "setting", "temperature", "beta", "steps", "budget", "alpha",
    "block_length", "cache",
)  # fmt: skip

Results = dict[tuple[str, str], list[tuple[dict, list[dict]]]]  # of each rule and data set, (row, records) a seed


def result_row(settings: dict, records: Sequence[dict], equivalent: float) -> dict:
    """Return one row of detailed_results.csv: settings, means over questions, and a 95 % Wilson interval of the accuracy.

    Args:
        equivalent: equivalent evaluations of the whole decoding (evaluation/cost.py). exact, drift: whether no approximate
            cache was used, and the error of the cache (dlm/environment.py).
    """
    right = wilson(sum(record["right"] for record in records), len(records))
    # Records of before CPU time was measured have none.
    means = {name: float(np.mean([record.get(key, np.nan) for record in records])) for name, key in MEASURES.items()}
    return {
        **{key: settings[key] for key in IDENTITY}, "exact": all(record["exact"] for record in records),
        "drift": _mean([record["drift"] for record in records]), "seed": settings["seed"], "samples": len(records),
        "accuracy": means.pop("accuracy"), "accuracy_low": right.low, "accuracy_high": right.high, **means,
        "equivalent": equivalent, **tpf_columns([records]),
    }  # fmt: skip


def tpf_columns(records: Sequence[Sequence[dict]]) -> dict[str, float | None]:
    """Return tokens per forward with its 95 % bootstrap interval over questions; None for records without tokens.

    Args:
        records: of each seed; tokens and evaluations of a question are averaged over the seeds.
    """
    if not all("tokens" in record for seed in records for record in seed):
        return named("tpf", None)
    return named("tpf", tokens_per_forward(seeds_averaged(records, "tokens"), seeds_averaged(records, "nfe")))


def named(name: str, interval: Interval | None) -> dict[str, float | None]:
    """Return the three columns of an interval; None where there is no number."""
    values = (None, None, None) if interval is None else interval
    columns = zip((name, f"{name}_low", f"{name}_high"), values, strict=True)
    return {key: None if value is None or math.isnan(value) else value for key, value in columns}


def summary_row(rows: Sequence[dict], records: Sequence[Sequence[dict]]) -> dict:
    """Return statistics over the seeds of one rule on one data set.

    Mean, standard deviation (of a sample; 0 for one seed), minimum and maximum of each measure; for the mean accuracy a 95
    % bootstrap interval over questions, averaged over the seeds of a question.
    """
    out = {key: rows[0][key] for key in (*IDENTITY, "exact")}
    out |= {
        "drift": _mean([row["drift"] for row in rows]),
        "seeds": " ".join(str(row["seed"]) for row in rows),
        "num_seeds": len(rows),
        "samples": len(records[0]),
    }
    for measure in (*MEASURES, "equivalent"):
        values = np.array([row[measure] for row in rows])
        out |= {
            f"{measure}_mean": float(values.mean()),
            f"{measure}_std": float(values.std(ddof=1)) if len(values) > 1 else 0.0,
            f"{measure}_min": float(values.min()),
            f"{measure}_max": float(values.max()),
        }
    interval = bootstrap_mean(seeds_averaged(records, "right"))
    tpf = tpf_columns(records)
    return out | {"accuracy_low": interval.low, "accuracy_high": interval.high, "tpf_mean": tpf.pop("tpf"), **tpf}


def outcomes_of(results: Results) -> dict[str, dict[str, list[Outcomes]]]:
    """Return the settings of each series, by data set and series, without evaluations whose records have no tokens."""
    found: dict[str, dict[str, list[Outcomes]]] = {}
    for (_, dataset), own in results.items():
        records = [seed for _, seed in own]
        if all("tokens" in record for seed in records for record in seed):
            outcome = Outcomes(*(seeds_averaged(records, key) for key in ("right", "tokens", "nfe")))
            found.setdefault(dataset, {}).setdefault(own[0][0]["series"], []).append(outcome)
    return found


def aup_rows(outcomes: Mapping[str, Mapping[str, Sequence[Outcomes]]]) -> list[dict]:
    """Return a row for each data set and series: its AUP (evaluation/aup.py) with a 95 % bootstrap interval over questions.

    y_max is the best accuracy of any setting on the data set. first_tpf: TPF of the slowest setting, whose term has no weight;
    left_out: settings for which AUP is not defined.
    """
    rows = []
    for dataset, series in outcomes.items():
        best = max(one.point[1] for own in series.values() for one in own)
        for name, found in sweep_aup(series).items():
            rows.append({
                "series": name, "dataset": dataset, "settings": found.points, "left_out": found.left_out,
                "first_tpf": min(one.point[0] for one in series[name]), "best_accuracy": best, **named("aup", found.aup),
            })  # fmt: skip
    return rows


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the known values; None if there are none."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def mean_and_error(values: Sequence[float | int]) -> tuple[float, float]:
    """Return the mean and its standard error (0 for a single value)."""
    array = np.asarray(values, dtype=np.float64)
    return float(array.mean()), float(array.std(ddof=1) / len(array) ** 0.5) if len(array) > 1 else 0.0


def seeds_averaged(records: Sequence[Sequence[dict]], key: str) -> np.ndarray:
    """Return the mean over seeds, question by question. ValueError if the seeds have different questions."""
    if len({tuple(record["row"] for record in seed) for seed in records}) > 1:
        raise ValueError("the seeds of an evaluation saw different questions; evaluate again with one --n_test")
    return np.mean([[float(record[key]) for record in seed] for seed in records], axis=0)
