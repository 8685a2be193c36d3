"""The work of `train-quality`: learn which committed tokens of a frozen model are right."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from omegaconf import DictConfig

from load_model import load_model
from model.quality import QualityHead
from rl.quality import QualityLearning, check_quality
from rl.settings import QualityTrainingSettings
from samplers.quality import bind
from training.files import write_text
from training.hub import shipped
from training.learner import new_learner
from training.processes import processes
from training.run import Run, resumed_config
from training.trainer import Trainer
from unmask.build import build_task, check_data, check_masked, started
from unmask.runs.objects import NOTHING, Objects


def run(config: DictConfig, overrides: list[str], given: Objects = NOTHING) -> Path:
    """Train; return the run directory."""
    config = resumed_config(config, overrides, "train_quality")
    settings, config = started(QualityTrainingSettings, config, overrides)
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        dlm, quality, n_iters = settings.dlm, settings.quality, settings.training.n_iters
        model = given.model or load_model(shipped(dlm.path), group.device, settings.model.dtype, dlm.model_type)[0]
        check_masked(settings, model)
        tokens = max(model.vocab_size, model.mask_id + 1) if quality.embed else 0
        length = model.max_length if quality.positions else 0
        sizes = (model.hidden_size, tokens, length, quality.width, quality.blocks, quality.heads, quality.seen)
        head = QualityHead(*sizes)
        bind(head.to(group.device), model)
        task = build_task(settings, model)
        check_data(settings, model, task)
        check_quality(settings, model, task, group)
        assert n_iters is not None
        learner = new_learner(head, settings.optim, n_iters, settings.training.ema, group)
        algorithm = QualityLearning(model.requires_grad_(False).eval(), learner, task, settings)
        run = Run(config, overrides, group)
        size = sum(p.numel() for p in head.parameters())
        run.say(f"{size:,} parameters learn on {dlm.path} which of its committed tokens are right")
        Trainer(algorithm, run).train()
        if group.first:
            say_calibration(run, algorithm)
        run.close()
        return run.directory


def say_calibration(run: Run, algorithm: QualityLearning) -> None:
    """Write the calibration of the head, and of the model's own outputs, to calibration.json and the log."""
    with algorithm.learner.averaged():
        found = algorithm.compared()
    words = {source: {kind: one.as_dict() for kind, one in each.items()} for source, each in found.items()}
    write_text(run.directory / "calibration.json", json.dumps(words, indent=2) + "\n")
    for source, each in found.items():
        for kind, one in each.items():
            run.say(
                f"{source}, {kind}: AUROC {one.auroc:.3f}, ECE {one.ece:.3f}, Brier {one.brier:.4f} "
                f"({one.count:,} held-out tokens, {one.right:.1%} right)"
            )
