"""From the records of samples to the tables of an evaluation: a row a rule, data set and seed, and statistics over seeds."""

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
    """One row of detailed_results.csv: what was evaluated, means over questions, a 95 % Wilson interval of the accuracy.

    equivalent: evaluations of the model that the whole decoding is worth (evaluation/cost.py). exact, drift: whether all readouts
    were the model's own, and how far those of a cache were off (dlm/environment.py)."""
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
    """Over the seeds of one rule on one data set: mean, standard deviation (of a sample; 0 for one seed), least and most of each
    measure; and of the mean accuracy a 95 % bootstrap interval over questions, the seeds of a question averaged."""
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
            f"{measure}_mean": values.mean(),
            f"{measure}_std": values.std(ddof=1) if len(values) > 1 else 0.0,
            f"{measure}_min": values.min(),
            f"{measure}_max": values.max(),
        }
    interval = bootstrap_mean(seeds_averaged(records, "right"))
    return out | {"accuracy_low": interval.low, "accuracy_high": interval.high}


def _mean(values: Sequence[float | None]) -> float | None:
    """Of those that are known; None where none is."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def seeds_averaged(records: Sequence[Sequence[dict]], key: str) -> np.ndarray:
    """The mean over seeds, question by question. ValueError where the seeds saw different questions."""
    if len({tuple(record["row"] for record in seed) for seed in records}) > 1:
        raise ValueError("the seeds of an evaluation saw different questions; evaluate again with one --n_test")
    return np.mean([[float(record[key]) for record in seed] for seed in records], axis=0)
