"""The work of `train-policy`: learn where to unmask next, on a frozen model."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig

from data.tasks import QuestionTask
from load_model import load_model
from model.llama import BidirectionalLlama, Span
from policy.checkpoints import bind, policy_file
from policy.settings import PolicyTrainingSettings
from training.hub import shipped
from training.processes import processes
from training.run import Run, resolved, resumed_config
from training.sharding import shard
from training.trainer import Trainer
from unmask.build import (
    build_policy,
    build_policy_learning,
    build_reward,
    build_task,
    check_data,
    check_masked,
    started,
)
from unmask.runs.objects import NOTHING, Objects


def run(config: DictConfig, overrides: list[str], given: Objects = NOTHING) -> Path:
    """Train; return the run directory."""
    config = resumed_config(config, overrides, "train_policy")
    settings, config = started(PolicyTrainingSettings, config, overrides)
    given.check(resolved(config), "train_policy")
    if settings.init is not None:
        policy_file(Path(shipped(settings.init)))
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        dlm, where = settings.dlm, "cpu" if settings.model.sharded else group.device
        model = given.model or load_model(shipped(dlm.path), where, settings.model.dtype, dlm.model_type)[0]
        check_masked(settings, model)
        network = build_policy(settings, model).to(group.device)  # before the data, which may take minutes to make
        bind(network, model)
        task = given.task or build_task(settings, model)
        check_data(settings, model, task)
        if settings.model.sharded:  # after the policy, which may copy some of its blocks
            token = torch.zeros(1, dtype=torch.long, device=group.device)
            llama = isinstance(model.backbone, BidirectionalLlama)
            forward, example = ("run", (token, None, [Span([0], 0, 0, 1)])) if llama else ("body", (token[None],))
            shard(model.backbone, model.backbone.blocks, forward, example, group)
        reward = build_reward(settings, model, task, group, given.reward)
        algorithm = build_policy_learning(settings, model, network, task, reward, group)
        run = Run(config, overrides, group)
        size = sum(p.numel() for p in network.parameters())
        run.say(f"{size:,} parameters learn on {dlm.path} by {settings.algorithm.name}")
        if isinstance(task, QuestionTask):
            run.say(str(task))
        Trainer(algorithm, run).train()
        run.close()
        return run.directory
