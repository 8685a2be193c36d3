"""Comparison of twists: the KL divergence between proposal and target, both ways, over runs of several methods and seeds.

    python -m evaluation.kl_report RUN... [--out DIR] [--log_z NUMBER --log_z_error NUMBER]

RUN is a directory of train-twist. All runs must have one task (model, prompt, length, target). They share one log Z, as in
Zhao et al. (2404.17546): the median over runs of the midpoints of their last evaluations; for a target with conditions,
whose log Z is a mean over them, the midpoint of the closest bounds on it; or the given number. The table has one row per
method: KL(q || sigma) and KL(sigma || q) of the last evaluation, mean over seeds with a 95 % interval (1.96 standard
errors; for a single run, that over its samples). The uncertainty of log Z is added to every interval: an error of log Z
moves all KLs of a column together. A proposal that generates texts of potential 0 has an infinite KL(q || sigma) (inf).
score: mean log phi / beta of the proposal's texts. DIR gets kl.csv, kl.tex, kl_curves.png (both KLs against updates) and
bounds.png (log Z from both sides against particles). The last line is JSON, in which infinite values are null.
"""

from __future__ import annotations

if __name__ == "__main__":
    from training.interrupt import end_in_one_line

    end_in_one_line()  # before the imports below, which take seconds

import argparse
import json
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median, stdev

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from evaluation.intervals import Z95
from evaluation.metrics import finite
from evaluation.report import print_table, save_figure, style, write_csv
from training.files import make_directory, write_text
from training.ranges import Number
from training.stored import plain_description, read_json, value_at
from training.usage import exit_on_bad_input, readable
from twist.algorithms import condition_of
from twist.settings import target_settings

NAMES = {"ctl": "CTL", "rl": "RL", "sixo": "SIXO", "fudge": "FUDGE", "dpg": "DPG", "ppo": "PPO"}
SIDES = {"kl_q_sigma": "KL(q || sigma)", "kl_sigma_q": "KL(sigma || q)"}
TASK = ("dlm.path", "prompt", "length", "target")


@dataclass(frozen=True)
class TwistRun:
    """One run. method, seed; task: description of its target; evaluations: by updates; conditional: each text has its own
    condition; beta: of the target.
    """

    path: str
    method: str
    seed: int
    task: str
    evaluations: list[dict]
    conditional: bool
    beta: float

    @property
    def last(self) -> dict:
        return self.evaluations[-1]


def read_run(path: Path) -> TwistRun:
    """Read a run. ValueError if it is not a run, or has no exact samples, so that its KLs are unknown."""
    files = [path / ".hydra" / "config.yaml", path / "evaluations.json"]
    for file in files:
        if not file.is_file():
            raise ValueError(f"{path} is no run of train-twist with evaluations: {file} does not exist")
    config = plain_description(files[0])
    with readable(files[1]):
        evaluations = sorted(read_json(files[1]), key=lambda record: record["updates"])
    if not evaluations or "g" not in evaluations[-1]:
        raise ValueError(
            f"{path} was evaluated without exact samples of its target (posterior.count=0), so there is no KL; its lower bounds "
            f"are in {files[1]}"
        )
    target = target_settings(config["target"])
    task = json.dumps({key: value_at(config, key) for key in TASK}, sort_keys=True)
    conditional = condition_of(target) != "none"
    return TwistRun(str(path), config["method"], config["seed"], task, evaluations, conditional, target.exponent or 1.0)


def half_of(estimate: dict) -> float:
    """Return half of an interval's length; infinite if it is missing (null, for a single sample)."""
    ends = estimate["low"], estimate["high"]
    return math.inf if None in ends else (ends[1] - ends[0]) / 2


def gap_of(bounds: dict) -> float:
    """Return the gap between bounds from both sides; infinite if one is missing."""
    ends = [bounds[side] and bounds[side]["value"] for side in ("lower", "upper")]
    return math.inf if None in ends else abs(ends[1] - ends[0])


def known_to(bounds: dict) -> float:
    """Return the uncertainty of log Z if it is the midpoint of two bounds: half of their gap, and half of the midpoint's
    interval.

    Older records have only the bounds' interval, over the same repetitions.
    """
    of_midpoint = (
        half_of(bounds["midpoint"])
        if "midpoint" in bounds
        else (half_of(bounds["lower"]) + half_of(bounds["upper"])) / 2
    )
    return math.hypot(gap_of(bounds) / 2, of_midpoint)


def log_z_error(record: dict) -> float:
    """Return the uncertainty of log Z of an evaluation without conditions. For older records, that of the bounds whose
    midpoint it is.
    """
    if "log_z_error" in record:
        return math.inf if record["log_z_error"] is None else record["log_z_error"]
    if record.get("log_z_by") == "given":
        return 0.0
    most = max(bound["particles"] for bound in record["bounds"])
    own = [b for b in record["bounds"] if b["proposal"] == "twist" and b["particles"] == most]
    return known_to(min(own, key=gap_of))


def shared_log_z(runs: Sequence[TwistRun]) -> tuple[float, float]:
    """Return (log Z, its uncertainty).

    With conditions: of the run whose bounds over its pairs are closest. Otherwise the median over runs, and 1.96 standard
    errors of their mean; for a single run its own uncertainty.

    Raises:
        ValueError: no run has a log Z.
    """
    if any(run.conditional for run in runs):
        return _conditional_log_z(runs)
    known = [run.last for run in runs if run.last["log_z"] is not None]
    if not known:
        raise ValueError(
            f"{', '.join(run.path for run in runs)}: no log Z was bounded from both sides, since all particles of a sweep had "
            "potential 0; evaluate again with more eval.particles, or give --log_z NUMBER --log_z_error NUMBER"
        )
    found = [record["log_z"] for record in known]
    error = Z95 * stdev(found) / len(found) ** 0.5 if len(found) > 1 else log_z_error(known[0])
    return median(found), error


def _conditional_log_z(runs: Sequence[TwistRun]) -> tuple[float, float]:
    """Return the midpoint of the closest bounds over exact pairs, and its error. ValueError if a run has no bounds."""
    pairs = [run.last.get("log_z_pairs") for run in runs]
    bounded = [own for own in pairs if own and gap_of(own) < math.inf]
    if not all(pairs) or not bounded:
        missing = [run.path for run, own in zip(runs, pairs, strict=True) if not own] or [run.path for run in runs]
        raise ValueError(
            f"{', '.join(missing)} did not bound log Z over all of the exact pairs, and a log Z of a few conditions is none; "
            "evaluate again with the run's own settings (train-twist init=RUN method=METHOD training.epochs=0 "
            "run_dir=OTHER), or give --log_z NUMBER --log_z_error NUMBER"
        )
    best = min(bounded, key=gap_of)
    return (best["lower"]["value"] + best["upper"]["value"]) / 2, known_to(best)


def value_of(estimate: dict) -> float:
    """Return a mean of logarithms of potentials. JSON has no -inf; null stands for it."""
    return -math.inf if estimate["value"] is None else estimate["value"]


def kls(record: dict, log_z: float) -> dict[str, float]:
    """Return the KLs of an evaluation for this log Z. KL(q || sigma) is infinite if q generates texts of potential 0."""
    return {"kl_q_sigma": log_z - value_of(record["f"]), "kl_sigma_q": record["g"]["value"] - log_z}


def half_width(values: Sequence[float], record: dict, side: str) -> float:
    """Return half of the 95 % interval: over runs, or, for one run, over its samples. Infinite if a value is."""
    if not all(map(math.isfinite, values)):
        return math.inf
    if len(values) > 1:
        return Z95 * stdev(values) / len(values) ** 0.5
    return half_of(record["f" if side == "kl_q_sigma" else "g"])


def of_methods(runs: Sequence[TwistRun]) -> dict[str, list[TwistRun]]:
    """Group runs by method, in the order of NAMES. ValueError for runs of different tasks, or one seed twice."""
    for run in runs[1:]:
        if run.task != runs[0].task:
            raise ValueError(
                f"{runs[0].path} and {run.path} are of different tasks ({runs[0].task}; {run.task}); report them apart"
            )
    found = {method: [run for run in runs if run.method == method] for method in NAMES}
    if len({run.last["updates"] for run in runs}) > 1:
        each = ", ".join(f"{run.path}: {run.last['updates']}" for run in runs)
        print(
            f"warning: runs of different lengths are compared (updates at the last evaluation: {each})", file=sys.stderr
        )
    for method, own in found.items():
        seeds = [run.seed for run in own]
        if len(set(seeds)) < len(seeds):
            raise ValueError(
                f"two runs of {method} have the same seed ({sorted(seeds)}); an interval needs seeds that differ"
            )
    return {method: own for method, own in found.items() if own}


def log_phi_of(record: dict) -> dict:
    """Return the mean log phi of an evaluation, which older records call its score."""
    return record["log_phi"] if "log_phi" in record else record["score"]


def with_interval(value: float, half: float) -> str:
    """Return a value and half of its interval as text; only the value if it is not finite."""
    return f"{value:.2f} +- {half:.2f}" if math.isfinite(value) else f"{value}"


def table(runs: Sequence[TwistRun], log_z: float, log_z_error: float = 0.0) -> list[dict]:
    """Return one row per method. log_z_error: added to every interval."""
    rows = []
    for method, own in of_methods(runs).items():
        row: dict = {"method": NAMES[method], "runs": len(own), "updates": own[0].last["updates"]}
        for side in SIDES:
            values = [kls(run.last, log_z)[side] for run in own]
            row |= {side: fmean(values), f"{side}_half": half_width(values, own[0].last, side) + log_z_error}
            if row[side] + row[f"{side}_half"] < 0:
                print(
                    f"warning: {SIDES[side]} of {method} is {row[side]:.3f}, below 0 by more than its interval: log Z = "
                    f"{log_z:.3f} is wrong, or the exact samples are not of this target; give a better --log_z",
                    file=sys.stderr,
                )
        midpoints = [run.last["log_z"] for run in own if run.last["log_z"] is not None]
        row["log_z_midpoint"] = fmean(midpoints) if midpoints else ""
        row["log_phi"] = fmean(value_of(log_phi_of(run.last)) for run in own)
        row["score"] = fmean(value_of(log_phi_of(run.last)) / run.beta for run in own)
        rows.append(row)
    return rows


def latex(rows: Sequence[dict]) -> str:
    """Return a tabular; the smallest value of each column is bold."""
    best = {side: min(row[side] for row in rows) for side in SIDES}
    heading = r"Method & $D_{\mathrm{KL}}(q \,\|\, \sigma)$ & $D_{\mathrm{KL}}(\sigma \,\|\, q)$ \\ \hline"
    lines = [r"\begin{tabular}{lcc}", heading]
    for row in rows:
        cells = []
        for side in SIDES:
            if math.isinf(row[side]):
                cells.append(r"$\infty$")
                continue
            number, half = f"{row[side]:.2f}", f"{row[f'{side}_half']:.2f}".replace("inf", r"\infty")
            bold = rf"\mathbf{{{number}}}" if row[side] == best[side] else number
            cells.append(rf"${bold} \pm {half}$")
        lines.append(f"{row['method']} & {' & '.join(cells)} " + r"\\")
    return "\n".join([*lines, r"\end{tabular}"]) + "\n"


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#E4E4E4", linewidth=0.7)
    axes.set_axisbelow(True)


def plot_curves(runs: Sequence[TwistRun], log_z: float, path: Path) -> None:
    """Plot both KLs against updates: mean over the runs of a method, with the interval as a band. Infinite values are left
    out.
    """
    figure = Figure(figsize=(8.4, 3.6), dpi=200, layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, (side, name) in zip(panels, SIDES.items(), strict=True):
        for place, (method, own) in enumerate(of_methods(runs).items()):
            colour, marker, dashes = style(place)
            known = [{record["updates"]: record for record in run.evaluations} for run in own]
            updates = sorted(set.intersection(*(set(records) for records in known)))
            found = {at: [kls(records[at], log_z)[side] for records in known] for at in updates}
            updates = [at for at in updates if all(map(math.isfinite, found[at]))]
            values = [found[at] for at in updates]
            means = [fmean(each) for each in values]
            half = [half_width(each, known[0][at], side) for each, at in zip(values, updates, strict=True)]
            look = {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 3.5, "linewidth": 1.4}
            axes.plot(updates, means, label=NAMES[method], **look)
            low, high = ([m + sign * h for m, h in zip(means, half, strict=True)] for sign in (-1, 1))
            axes.fill_between(updates, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("symlog", base=2, linthresh=1)
        axes.set_xlabel("updates")
        axes.set_title(name, loc="left", fontsize=10)
        _plain(axes)
    panels[0].set_ylabel("nats (lower is better)")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def plot_bounds(runs: Sequence[TwistRun], log_z: float, path: Path) -> None:
    """Plot log Z from both sides against the number of particles, one panel per method, at the last evaluation, without
    infinite values.
    """
    methods = of_methods(runs)
    figure = Figure(figsize=(2.2 + 2.6 * len(methods), 3.4), dpi=200, layout="constrained")
    panels = figure.subplots(1, len(methods), sharey=True, squeeze=False)[0]
    kinds = [("twist", "iwae"), ("twist", "smc"), ("base", "iwae"), ("base", "smc")]
    named = {"iwae": "importance sampling", "smc": "particle filter", "twist": "twisted", "base": "base"}
    for axes, (method, own) in zip(panels, methods.items(), strict=True):
        for place, (proposal, kind) in enumerate(kinds):
            colour, marker, _ = style(place)
            for side, dashes in (("lower", "-"), ("upper", "--")):
                found: dict[int, list[float]] = {}
                for bound in (b for run in own for b in run.last["bounds"]):
                    if (bound["proposal"], bound["kind"]) == (proposal, kind) and bound[side] is not None:
                        found.setdefault(bound["particles"], []).append(value_of(bound[side]))
                label = f"{named[proposal]}, {named[kind]}" if side == "lower" else None
                points = sorted(k for k, values in found.items() if all(map(math.isfinite, values)))
                if points:
                    look = {"color": colour, "marker": marker, "linestyle": dashes, "markersize": 3.5, "linewidth": 1.3}
                    axes.plot(points, [fmean(found[k]) for k in points], label=label, **look)
        axes.axhline(log_z, color="#444444", linewidth=0.8)
        axes.set_xscale("log", base=2)
        axes.set_xlabel("particles")
        axes.set_title(NAMES[method], loc="left", fontsize=10)
        _plain(axes)
    panels[0].set_ylabel("log Z: below (lines), above (dashes)")
    labels = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(labels.values(), labels.keys(), loc="outside right upper", frameon=False, fontsize=8)
    save_figure(figure, path)


def report(directories: Sequence[Path], out: Path, log_z: float | None = None, error: float = 0.0) -> list[dict]:
    """Write the table and the plots of the divergences of runs of one task, and print the table.

    Args:
        directories: of the runs.
        out: directory of kl.csv, kl.tex, kl_curves.png and bounds.png.
        log_z: log-normalizer of the target, in nats. None: the best estimate of the runs, with its own `error`.
        error: half of the interval of `log_z`.

    Returns:
        One row for each method.
    """
    runs = [read_run(path) for path in directories]
    if log_z is None:
        log_z, error = shared_log_z(runs)
    rows = table(runs, log_z, error)
    displayed = [{"method": row["method"], "runs": row["runs"], "updates": row["updates"]}
             | {name: with_interval(row[side], row[f"{side}_half"]) for side, name in SIDES.items()}
             | {"log Z": row["log_z_midpoint"], "mean log phi": row["log_phi"], "score": row["score"]}
             for row in rows]  # fmt: skip
    print_table(displayed, title=f"log Z = {log_z:.4f} +- {error:.4f}")
    make_directory(out, f"--out {out}")
    write_csv(rows, out / "kl.csv")
    write_text(out / "kl.tex", latex(rows))
    plot_curves(runs, log_z, out / "kl_curves.png")
    plot_bounds(runs, log_z, out / "bounds.png")
    print(latex(rows))
    report = finite({"log_z": log_z, "log_z_error": error}) | {"rows": [finite(row) for row in rows]}
    print(json.dumps(report, allow_nan=False))
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, default=Path("output/kl_report"), metavar="DIR")
    parser.add_argument("--log_z", type=Number(), metavar="NUMBER")
    parser.add_argument("--log_z_error", type=Number(0), default=0.0, metavar="NUMBER", help="half of its interval")
    with exit_on_bad_input():
        arguments = parser.parse_args()
        report(arguments.runs, arguments.out, arguments.log_z, arguments.log_z_error)
