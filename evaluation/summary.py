"""Tables of an evaluation from the records of samples: one row per rule, data set and seed, and statistics over seeds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evaluation.intervals import bootstrap_mean, wilson

MEASURES = {
    "accuracy": "right", "evaluations": "nfe", "seconds": "seconds", "cpu_seconds": "cpu_seconds", "generated_tokens": "tokens",
}  # fmt: skip
IDENTITY = (
    "name", "series", "dataset", "checkpoint", "sampling_mode", "setting", "temperature", "beta", "steps", "budget", "alpha",
    "block_length", "cache",
)  # fmt: skip


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
        "equivalent": equivalent,
    }  # fmt: skip


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
    return out | {"accuracy_low": interval.low, "accuracy_high": interval.high}


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
