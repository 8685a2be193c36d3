"""The work of `train-twist`: train a twist, collect exact samples, or print samples."""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from omegaconf import DictConfig

from dlm.masked_lm import MaskedLM
from evaluation.report import write_json
from load_model import load_model
from training.hub import shipped
from training.processes import Processes, processes
from training.run import Run, resolved, resumed_config
from training.stored import read_json
from training.trainer import Trainer
from twist.algorithms import (
    FROM_EXACT,
    POSITIVES,
    TwistLearning,
    check_method,
    check_shares,
    condition_of,
    positives_of,
)
from twist.bounds import Posterior, check_upper, load_posterior, samples_digest
from twist.evaluate import evaluate, figures, weighed
from twist.network import TwistModel, load_twist, save_twist, twist_directory
from twist.objectives import LEVELLED, PROPOSAL_ONLY
from twist.settings import ClassSettings, RewardTargetSettings, TwistTrainingSettings
from twist.source import Source, collect_posterior
from twist.tail import with_tail
from twist.train import TwistTraining, epochs, new_twist_learner, new_value_head
from unmask.build import POSTERIOR, build_source, origin_of, started
from unmask.runs.objects import NOTHING, Objects

MODES = ("train", "collect", "samples")
LEARNT = "positives.safetensors"  # in the run: exact samples that it learns from, others than it is measured on


def check_twist(config: TwistTrainingSettings) -> None:
    """Refuse, before any work, settings that cannot run: ValueError."""
    if config.mode not in MODES:
        raise ValueError(f"mode={config.mode!r} is unknown; use one of {', '.join(MODES)}")
    if config.posterior.order == "uniform" and config.mode == "train" and positives_of(config) not in FROM_EXACT:
        raise ValueError(
            f"posterior.order=uniform is of exact samples that are learnt from, and positives={positives_of(config)} learns from "
            "none; leave it out, or give positives=exact"
        )
    if config.training.schedule not in ("constant", "exp2"):
        raise ValueError(f"training.schedule={config.training.schedule!r} is unknown; use constant or exp2")
    if config.mode == "samples":
        if not config.compare:
            raise ValueError("mode=samples shows the infills of runs side by side; give compare=[RUN,RUN], in brackets")
        return
    if config.mode == "train":
        _check_learning(config)
    _check_posterior(config)


def _check_learning(config: TwistTrainingSettings) -> None:
    """Refuse a method, a number of epochs or positives with which a twist cannot be trained: ValueError."""
    check_method(config)
    if config.training.epochs == 0 and config.init is None:
        raise ValueError("training.epochs=0 measures a twist without learning it; give init=RUN, whose twist that is")
    beta, positives = config.target.exponent, positives_of(config)
    if condition_of(config.target) != "none" and beta != 1 and positives in FROM_EXACT:
        others = ", ".join(name for name in dict.fromkeys(POSITIVES[config.method]) if name not in FROM_EXACT)
        raise ValueError(
            f"target.beta={beta}: text and what it is conditioned on are exact samples of the target at beta=1 only, and "
            f"positives={positives} learns from them; give posterior.count=0 and positives={others}"
        )


def _check_posterior(config: TwistTrainingSettings) -> None:
    """Refuse exact samples that cannot be drawn, and a missing number of those that are needed: ValueError."""
    if config.posterior.count:
        # exp(beta (reward - highest)) is a probability at any beta
        if not isinstance(config.target, RewardTargetSettings):
            check_upper(config.target.exponent)
    elif config.posterior.path is not None:
        raise ValueError(
            f"posterior.path={config.posterior.path} and posterior.count=0: give a number of them, or no path"
        )
    elif config.mode == "collect" or (positives_of(config) in FROM_EXACT and condition_of(config.target) == "none"):
        raise ValueError("posterior.count=0, and exact samples of the target are requested; give a number of them")


def build_twist(config: TwistTrainingSettings, model: MaskedLM) -> TwistModel:
    """Return a new twist, or the twist `init` for further training."""
    condition, settings, target = condition_of(config.target), config.twist, config.target
    classes = 0
    if isinstance(target, ClassSettings) and condition == "class":
        classes = max(2, target.classes)  # one logit is two classes
    if config.init is None:
        twist = TwistModel(
            model,
            settings.trunk,
            settings.layers,
            settings.multiplier,
            config.method == "fudge",
            condition,
            classes,
            settings.state,
            settings.rank,
            config.method in LEVELLED,
        )
        return twist.to(next(model.parameters()).device)
    start, about = load_twist(twist_directory(config.init), model)
    conditioning = (about["twist"]["condition"], about["twist"]["classes"])
    if (start.state_head is not None) != config.twist.state:
        raise ValueError(
            f"init={config.init} and twist.state={config.twist.state} do not go together; change twist.state"
        )
    form = (config.method == "fudge", config.method in LEVELLED)
    if conditioning != (condition, classes) or form != (about["twist"]["bounded"], about["twist"].get("level", False)):
        raise ValueError(
            f"init={config.init} was learnt by {about['method']} for {about['target']['kind']} with condition "
            f"{conditioning[0]}: not the head of method={config.method} for {config.target.kind} with "
            f"condition {condition}; start without it"
        )
    if about["method"] in PROPOSAL_ONLY and config.method not in PROPOSAL_ONLY:
        raise ValueError(
            f"init={config.init} was learnt by {about['method']}, whose twist is a proposal and no weight, and method="
            f"{config.method} would weigh particles by it; start without it, or give method={about['method']}"
        )
    shape = ("trunk", "layers", "multiplier", *(("rank",) if settings.trunk == "lora" else ()))
    if other := [
        f"twist.{key}={about['twist'][key]}" for key in shape if about["twist"][key] != getattr(settings, key)
    ]:
        raise ValueError(
            f"init={config.init} is a twist of another shape than this run requests; give {' '.join(other)}"
        )
    if config.training.epochs == 0 and config.method != about["method"]:
        raise ValueError(
            f"init={config.init} was learnt by {about['method']}, and training.epochs=0 trains it no further; give method="
            f"{about['method']}, which says whether particles may be resampled by it"
        )
    twist = TwistModel(model, **about["twist"]).to(next(model.parameters()).device)
    twist.load_state_dict(start.state_dict())
    return twist


def exact_samples(
    config: TwistTrainingSettings, source: Source, run: Run, group: Processes, path: str | None, name: str, seed: int
) -> Posterior:
    """Return exact samples from the file `path`, or from the run's file `name`; the first process collects them if there are
    none."""
    origin = origin_of(config, source)
    file = Path(path or run.directory / name)
    if path is None and group.first and not file.is_file():
        settings = config.posterior
        found = collect_posterior(source, settings.count, settings.batch, seed, settings.most)
        found.save(file, origin)
        run.say(f"{len(found)} exact samples of the target out of {found.tried} of the model: {file}")
    group.barrier()
    posterior = load_posterior(file, origin)
    if len(posterior) < config.posterior.count:
        raise ValueError(
            f"{file} holds {len(posterior)} exact samples and posterior.count={config.posterior.count}; lower it, or collect more"
        )
    return posterior.rows(slice(config.posterior.count))


def seed_of(purpose: str, seed: int) -> int:
    """Return a seed for one purpose: 63 bits of a hash of the run's seed and the purpose. It differs from seeds that users
    choose."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{purpose}".encode()).digest()[:8], "big") >> 1


def rows_digest(posterior: Posterior) -> str:
    """Return a digest of the samples, without the number of draws that they needed."""
    tensors = {"tokens": posterior.tokens, "written_at": posterior.unmasked_at}
    return samples_digest({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, 0)


def positive_samples(
    config: TwistTrainingSettings, source: Source, run: Run, group: Processes, posterior: Posterior | None
) -> Posterior:
    """Return exact samples for training. They must differ from `posterior`, the samples of the evaluation: ValueError if they
    are equal."""
    seed = seed_of("positives", config.seed)
    learnt = exact_samples(config, source, run, group, None, LEARNT, seed)
    if posterior is not None and rows_digest(learnt) == rows_digest(posterior):
        raise ValueError(
            f"{run.directory / LEARNT} holds the very samples that this run is measured on, which a twist could learn by heart; "
            "delete it, and others are collected, or give another posterior.path"
        )
    return learnt


def record_evaluation(file: Path, record: dict) -> None:
    """Append an evaluation to the list in `file`; an evaluation of the same epoch by an interrupted run is replaced."""
    known = read_json(file) if file.is_file() else []
    known = [other for other in known if other["updates"] != record["updates"]] + [record]
    write_json(known, file)


def recorded_texts(source: Source, count: int, seed: int) -> list[dict]:
    """Return samples of the proposal together with their conditions."""
    given = None
    if source.conditional:
        _, given = source.pairs(count, seed)
        found = weighed(source, count, 1, seed + 1, given)  # with the noise of the pairs it would write their text
    else:
        found = weighed(source, 1, count, seed)
    decode = source.model.tokenizer.decode
    follows: list[dict] = [{}] * count
    if given is not None:
        follows = [{"given": decode(row.tolist()) if source.condition else int(row)} for row in given]
    log_phi = [value if math.isfinite(value) else None for value in found.log_phi.tolist()]  # null: the potential is 0
    return [{"text": decode(row.tolist()), "log_phi": phi, **more}
            for row, phi, more in zip(found.path.tokens, log_phi, follows, strict=True)]  # fmt: skip


def compared(config: TwistTrainingSettings, model: MaskedLM) -> list[tuple[str, str, Source]]:
    """Return (path, method, source) of every twist in `compare`. ValueError, before a run directory is made, for a path that
    is no twist or a twist of another target."""
    found = []
    for path in map(str, config.compare):
        twist, about = load_twist(twist_directory(path), model)
        learnt_for = {key: about[key] for key in ("target", "prompt", "length")}
        requested = {"target": config.target.values(), "prompt": config.prompt, "length": config.length}
        if config.target.kind != "infilling" or learnt_for != requested:
            raise ValueError(
                f"mode=samples compares infills and {path} was learnt for {learnt_for}, not for {requested}; give "
                "target=infilling and the settings of the runs in `compare`"
            )
        found.append((path, about["method"], build_source(config, model, twist)))
    return found


def compare(twists: list[tuple[str, str, Source]], config: TwistTrainingSettings, model: MaskedLM, run: Run) -> None:
    """Print infills for the same conditions side by side: those of the model first, then those of each twist."""
    lines: dict[int, list[str]] = {}
    records = []
    for path, name, source in twists:
        exact, given = source.pairs(config.samples, config.seed)
        swept = source.sweep(config.samples, 1, config.seed + 1, given)  # not with the noise that wrote `exact`
        own, written, follows = (
            model.tokenizer.batch_decode(rows.cpu())
            for rows in (exact.tokens[:, source.first :], swept.path.tokens[:, source.first :], given)
        )
        for row, log_phi in enumerate(swept.log_phi.tolist()):
            lines.setdefault(row, [f"... {follows[row]}", f"{'the model':>10} | {own[row]}"])
            lines[row].append(f"{name:>10} | {written[row]}   (log phi {log_phi:.2f})")
            records.append({"text": written[row], "method": name, "run": path, "row": row, "log_phi": log_phi})
    for own in lines.values():
        run.say("\n".join(own) + "\n")
    run.samples(0, records)


def run(config: DictConfig, overrides: list[str], objects: Objects = NOTHING) -> Path:
    """Train, collect or print, as the mode says; return the run directory. objects: the reward of the target, if it is the
    caller's."""
    if config.training.n_iters is not None:
        raise ValueError(
            f"training.n_iters={config.training.n_iters} follows from training.epochs and training.updates_per_epoch; leave it "
            "out, and give training.epochs=N"
        )
    config = resumed_config(config, overrides, "train_twist")
    settings, config = started(TwistTrainingSettings, config, overrides)
    objects.check(resolved(config), "train_twist")
    check_twist(settings)
    config.training.n_iters = settings.training.n_iters = epochs(settings)[-1]
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        model, _ = load_model(shipped(settings.dlm.path), group.device, settings.model.dtype)
        model = with_tail(model, settings.target.values())
        if settings.mode == "samples":
            twists = compared(settings, model)
            run = Run(config, overrides, group)
            compare(twists, settings, model, run)
            run.close()
            return run.directory
        if model.causal and settings.posterior.order == "uniform":
            raise ValueError(
                "posterior.order=uniform is for masked models, and a causal one writes from the left; leave it out"
            )
        twist = build_twist(settings, model)
        source = build_source(settings, model, twist, objects.reward)
        value = new_value_head(twist, settings)
        learner = new_twist_learner(twist, value, settings, group)
        check_shares(source, settings, group)
        run = Run(config, overrides, group)
        posterior = learnt = None
        if settings.posterior.count:
            seed = seed_of("posterior", settings.seed)  # no batch that a run learns from is drawn by it
            posterior = exact_samples(settings, source, run, group, settings.posterior.path, POSTERIOR, seed)
        if settings.mode == "train":
            if (
                positives_of(settings) in FROM_EXACT and condition_of(settings.target) == "none"
            ):  # never those it is measured on
                learnt = positive_samples(settings, source, run, group, posterior)
            size = sum(p.numel() for p in learner.optimiser.parameters)
            run.say(f"{size:,} parameters of twists of {settings.dlm.path} learn by {settings.method}")
            about = {"model": settings.dlm.path, "method": settings.method, "target": settings.target.values(),
                     "prompt": settings.prompt, "length": settings.length}  # fmt: skip

            def evaluate_epoch(run: Run, done: int, epoch: int) -> dict[str, float]:
                record = evaluate(source, posterior, settings.eval, settings.method, settings.seed)
                record_evaluation(run.directory / "evaluations.json", {"updates": done, "epoch": epoch, **record})
                if settings.eval.texts:
                    run.samples(done, recorded_texts(source, settings.eval.texts, settings.seed))
                return figures(record)

            learning = TwistLearning(source, learner, value, settings, learnt)
            algorithm = TwistTraining(
                learning, settings, evaluate_epoch, lambda directory: save_twist(twist, directory, about)
            )
            Trainer(algorithm, run).train()
        run.close()
        return run.directory
