"""The work of `train-policy`: learn where to unmask next, on a frozen model."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf

from data.tasks import QuestionTask
from load_model import load_model
from model.llama import BidirectionalLlama, Span
from policy.checkpoints import bind, policy_file
from policy.train import LEARNING
from training.hub import shipped
from training.processes import processes
from training.run import Run, resumed_config
from training.settings import check_settings, with_fitting_warmup
from training.sharding import shard
from training.trainer import Trainer
from unmask.build import build_policy, build_policy_learning, build_reward, build_task, check_data, check_masked
from unmask.runs.objects import NOTHING, Objects


def run(config: DictConfig, overrides: list[str], given: Objects = NOTHING) -> Path:
    """Train; returns the run directory."""
    config = resumed_config(config, overrides, "train_policy")
    check_settings(config, "train_policy")
    config = with_fitting_warmup(config, overrides)
    if config.algorithm.name not in LEARNING:
        raise ValueError(f"algorithm.name={config.algorithm.name!r} is unknown; use one of {', '.join(LEARNING)}")
    if config.init is not None:
        policy_file(Path(shipped(config.init)))
    with processes(config.device) as group:
        torch.manual_seed(config.seed)
        kind = OmegaConf.select(config, "dlm.model_type")
        where = "cpu" if config.model.sharded else group.device
        model = given.model or load_model(shipped(config.dlm.path), where, config.model.dtype, kind)[0]
        check_masked(config, model)
        network = build_policy(config, model).to(group.device)  # before the data, which may take minutes to make
        bind(network, model)
        task = given.task or build_task(config, model)
        check_data(config, model, task)
        if config.model.sharded:  # after the policy, which may copy some of its blocks
            token = torch.zeros(1, dtype=torch.long, device=group.device)
            llama = isinstance(model.backbone, BidirectionalLlama)
            forward, example = ("run", (token, None, [Span([0], 0, 0, 1)])) if llama else ("body", (token[None],))
            shard(model.backbone, model.backbone.blocks, forward, example, group)
        reward = build_reward(config, model, task, group, given.reward)
        algorithm = build_policy_learning(config, model, network, task, reward, group)
        run = Run(config, overrides, group)
        size = sum(p.numel() for p in network.parameters())
        run.say(f"{size:,} parameters learn on {config.dlm.path} by {config.algorithm.name}")
        if isinstance(task, QuestionTask):
            run.say(str(task))
        Trainer(algorithm, run).train()
        run.close()
        return run.directory
