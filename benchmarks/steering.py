"""Bounds on log Z from both sides, and the reward of the samples, at equal evaluations: twisted SMC, FK steering, best of N.

    OMP_NUM_THREADS=1 python -m benchmarks.steering --twists causal=RUN masked=RUN

RUN is a run of train-twist with a reward as its target; missing exact samples are collected. With N particles every method needs
N evaluations of the model per step:

* particles of the model without resampling (best of N, or importance sampling);
* particles of the model, resampled at every step by the reward of a state (FK steering, difference) or by the twist;
* particles of the twist's proposal, without resampling and with it.

A row is the mean over --repeats: log Zhat, which is on average below log Z; the same with an exact sample in the first slot,
which is above it; the reward of a particle that is drawn by weight, and of the best of the N. Rejection gives log Z itself. Rows
go into --out DIR/steering.json, where they replace those of the same task (NAME), method and number of particles. The printed
tables and steering.png have all rows of the file. The command ends with flat JSON of this call.
"""

from __future__ import annotations

import argparse
import json
import math
from pathlib import Path as File

import torch
from jaxtyping import Float, Float64
from matplotlib.figure import Figure
from torch import Tensor

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.report import print_table, save_figure, style, write_json
from load_model import load_model
from samplers.fk import Steering
from samplers.smc import Particles, Plain, Trajectories, particle_filter
from training.hub import shipped
from training.ranges import Whole
from training.stored import plain_description
from twist.bounds import Estimate, Posterior, load_posterior
from twist.network import load_twist, twist_directory
from twist.objectives import PROPOSAL_ONLY
from twist.paths import rows_of
from twist.settings import stored_twist_settings
from twist.source import Source, collect_posterior
from twist.tail import with_tail
from twist.targets import RewardTarget
from unmask.build import POSTERIOR, build_source, origin_of

COUNTS = (1, 2, 8, 32, 128, 512)
ROWS = 512  # particles at a time
WAYS = {  # name: proposal, resampling; of steering the reward of each state takes the place of a twist
    "best of N": ("base", "never"),
    "FK steering": ("fk", "every"),
    "model's samples, twisted weights": ("base", "every"),
    "twist, importance": ("twist", "never"),
    "twisted SMC": ("twist", "every"),
}


def loaded(path: str) -> tuple[Source, Posterior, str]:
    """Return the twist of a run, the exact samples of its target, and its training method."""
    config = stored_twist_settings(plain_description(File(path) / ".hydra" / "config.yaml"))
    model = with_tail(load_model(shipped(config.dlm.path))[0], config.target.values())
    twist, about = load_twist(twist_directory(path), model)
    source = build_source(config, model, twist)
    file = File(config.posterior.path or File(path) / POSTERIOR)
    if file.is_file():
        return source, load_posterior(file, origin_of(config, source)), about["method"]
    posterior = config.posterior  # of a run that came without its exact samples
    return (
        source,
        collect_posterior(source, posterior.count, posterior.batch, config.seed, posterior.most),
        about["method"],
    )


def steered(source: Source, samples: int, particles: int, seed: int, exact: Trajectories | None) -> Particles:
    """Return a particle filter of the model's own steps, weighted by the reward of each state."""
    target = source.target
    assert isinstance(target, RewardTarget)
    potential = Steering(lambda tokens: target.score(tokens) - target.highest, target.beta, seed=seed)
    environment = UnmaskingEnvironment(source.model, DecodeOptions(source.length))
    scheme = "systematic" if exact is None else "multinomial"
    canvas = source.blank(samples, source.length)
    return particle_filter(
        environment, Plain(source.reference), potential, Prompts(canvas), particles, "every", scheme, seed, None, exact
    )


def swept(
    source: Source, way: str, samples: int, particles: int, seed: int, exact: Trajectories | None
) -> tuple[Float64[Tensor, "filter"], Float64[Tensor, "filter particle"], Float[Tensor, "filter particle"]]:
    """Return (log Zhat of each sample, log-weights, log phi) of `samples` sets of particles."""
    proposal, resample = WAYS[way]
    if proposal == "fk":
        found = steered(source, samples, particles, seed, exact)
        return found.log_z, found.weights.log, found.log_phi.view(samples, -1)
    sweep = source.sweep(samples, particles, seed, None, seed * 1000, proposal, resample, exact)
    return sweep.log_z, sweep.log_weight.view(samples, -1), sweep.log_phi.view(samples, -1)


@torch.no_grad()
def measure(source: Source, exact: Trajectories, way: str, particles: int, repeats: int) -> dict:
    """Return one row: the mean over `repeats` sets of particles, with 95 % intervals."""
    lower, upper, drawn, best = [], [], [], []
    at_once = max(1, ROWS // particles)
    for start in range(0, repeats, at_once):
        samples = min(at_once, repeats - start)
        log_z, log_weight, log_phi = swept(source, way, samples, particles, start, None)
        pinned = rows_of(exact, slice(start, start + samples))
        upper.append(swept(source, way, samples, particles, start + 1_000_000, pinned)[0])
        zero = torch.zeros(samples, dtype=torch.long)
        pick = Draws(start).categorical(log_weight, torch.arange(samples), zero, zero, stream="pick")
        drawn.append(log_phi.gather(1, pick.unsqueeze(1)).squeeze(1))
        best.append(log_phi.max(1).values)
        lower.append(log_z)
    beta, highest = source.target.beta, source.target.highest  # pyright: ignore[reportAttributeAccessIssue]
    rewards = {name: torch.cat(values) / beta + highest for name, values in (("drawn", drawn), ("best", best))}
    values = {"lower": torch.cat(lower), "upper": torch.cat(upper), **rewards}
    found = {name: Estimate.of(each) for name, each in values.items()}
    return {"way": way, "particles": particles, "repeats": repeats} | {
        name + end: getattr(estimate, field) for name, estimate in found.items()
        for end, field in (("", "value"), ("_low", "low"), ("_high", "high"))
    }  # fmt: skip


def merged(known: dict, found: dict) -> dict:
    """Return old and new rows as steering.json holds them; new rows replace old ones of the same task, method and number of
    particles. Tasks keep their order; rows have the order of WAYS."""
    tables = {}
    for task in dict.fromkeys((*known["tables"], *found["tables"])):
        both = (*known["tables"].get(task, ()), *found["tables"].get(task, ()))
        rows = {(row["way"], row["particles"]): row for row in both}
        tables[task] = sorted(rows.values(), key=lambda row: (list(WAYS).index(row["way"]), row["particles"]))
    return {"log_z": known["log_z"] | found["log_z"], "tables": tables}


def plot(tables: dict[str, list[dict]], log_z: dict[str, float], file: File) -> None:
    """Plot, for each task, log Z from both sides and the reward of a drawn particle against the number of particles."""
    figure = Figure(figsize=(8.6, 3.3 * len(tables)), dpi=200, layout="constrained")
    panels = figure.subplots(len(tables), 2, squeeze=False)
    for (bounds, rewards), (task, rows) in zip(panels, tables.items(), strict=True):
        for place, way in enumerate(WAYS):
            colour, marker, _ = style(place)
            own = [row for row in rows if row["way"] == way]
            counts = [row["particles"] for row in own]
            look = {"color": colour, "marker": marker, "markersize": 3.5, "linewidth": 1.3}
            bounds.plot(counts, [row["lower"] for row in own], label=way, **look)
            bounds.plot(counts, [row["upper"] for row in own], linestyle="--", **look)
            rewards.plot(counts, [row["drawn"] for row in own], **look)
        bounds.axhline(log_z[task], color="#444444", linewidth=0.8)
        bounds.set_title(f"{task}: log Z from below (lines) and above (dashes)", loc="left", fontsize=9)
        rewards.set_title("reward of a particle drawn by weight", loc="left", fontsize=9)
        for axes in (bounds, rewards):
            axes.set_xscale("log", base=2)
            axes.set_xlabel("particles", fontsize=8)
            axes.tick_params(labelsize=8)
            axes.spines[["top", "right"]].set_visible(False)
            axes.grid(color="#E4E4E4", linewidth=0.7)
    figure.legend(
        *panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False, fontsize=8
    )
    save_figure(figure, file)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--twists", nargs="+", required=True, metavar="NAME=RUN")
    parser.add_argument("--counts", type=Whole(1, 1_000_000), nargs="+", default=list(COUNTS))
    parser.add_argument("--repeats", type=Whole(1, 1_000_000), default=32)
    parser.add_argument("--out", type=File, default=File("docs/results/steering"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tables, log_z = {}, {}
    for task, path in (entry.split("=", 1) for entry in options.twists):
        source, posterior, method = loaded(path)
        if method in PROPOSAL_ONLY:
            raise ValueError(
                f"{path} was learnt by {method}, whose twists are proposals and no weights; give a run of another"
            )
        log_z[task] = math.log(len(posterior) / posterior.tried)
        exact, _ = source.exact(posterior.rows(torch.arange(options.repeats)))
        tables[task] = [measure(source, exact, way, count, options.repeats) for way in WAYS for count in options.counts]
    options.out.mkdir(parents=True, exist_ok=True)
    file, found = options.out / "steering.json", {"log_z": log_z, "tables": tables}
    whole = merged(json.loads(file.read_text(encoding="utf-8-sig")), found) if file.is_file() else found
    write_json(whole, file)
    plot(whole["tables"], whole["log_z"], file.with_suffix(".png"))
    columns = ("way", "particles", "repeats", "lower", "upper", "drawn", "best")
    for task, rows in whole["tables"].items():
        records = [{key: row.get(key, "") for key in columns} for row in rows]
        print_table(records, title=f"{task}: log Z = {whole['log_z'][task]:.3f}")
    print(json.dumps({
        f"{task}_{row['way'].replace(', ', '_').replace(' ', '_')}_{row['particles']}_gap": round(row["upper"] - row["lower"], 4)
        for task, rows in tables.items() for row in rows
    }))  # fmt: skip


if __name__ == "__main__":
    main()
