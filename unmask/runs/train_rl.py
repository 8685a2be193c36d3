"""The work of `train-rl`: reinforcement learning of the model itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from omegaconf import DictConfig

from data.pairs import Pairs, load_pairs
from data.settings import PairSettings
from dlm.adapt import AdapterLM, adapter_config
from dlm.checkpoints.saving import save_model
from dlm.masked_lm import LlamaLM, MaskedLM
from load_model import load_model
from rl.learning import ModelLearning, Reference
from rl.preferences import Preferences
from rl.settings import RLTrainingSettings
from rl.train import Rollouts, build_estimator, check_rl
from samplers.settings import check_given
from training.hub import shipped
from training.learner import new_learner
from training.processes import Processes, processes
from training.run import Run, resolved, resumed_config
from training.trainer import Trainer
from unmask.build import (
    build_reward,
    build_rollout_decoder,
    build_task,
    check_data,
    rollout_settings,
    started,
    stored_config,
)
from unmask.runs.objects import NOTHING, Objects


def trained(model: MaskedLM, config: RLTrainingSettings, path: str) -> MaskedLM:
    """Return the model with trainable weights, or with the trainable updates that `lora` describes."""
    if config.lora.rank is None:
        return model.float().requires_grad_(True)
    if not isinstance(model, LlamaLM):
        raise ValueError(f"lora.rank={config.lora.rank} is for LLaDA and Dream and {path} is neither; leave it out")
    lora = config.lora
    assert lora.rank is not None
    return AdapterLM(model, adapter_config(path, None, lora.rank, lora.alpha, lora.dropout, lora.modules))


def pairs_of(config: RLTrainingSettings, model: MaskedLM) -> tuple[Pairs, Pairs]:
    """Return (training pairs, held-out pairs)."""
    data = config.data
    if not isinstance(data, PairSettings):
        raise ValueError("rl.algorithm=vrpo learns from preference pairs; give data=pairs data.pairs=FILE")
    length = data.length or model.max_length
    if length > model.max_length:
        raise ValueError(f"data.length={length} is more than the model's {model.max_length}; lower it")
    pairs = load_pairs(data.pairs, model.tokenizer, length, model.mask_id)
    if data.valid_pairs is not None:
        return pairs, load_pairs(data.valid_pairs, model.tokenizer, length, model.mask_id)
    kept = len(pairs) - max(1, round(data.held_out * len(pairs)))
    if kept < 1:
        raise ValueError(f"{data.pairs} has {len(pairs)} pairs, too few to hold some out; give data.valid_pairs")
    return pairs.take(torch.arange(kept)), pairs.take(torch.arange(kept, len(pairs)))


def build(
    config: RLTrainingSettings, model: MaskedLM, noise, group: Processes, save: Callable[[Path], None], given: Objects
) -> ModelLearning:
    """Return the algorithm rl.algorithm. save: a function that writes the model into a directory."""
    estimator = build_estimator(config, model, noise)
    each = 1 if config.rl.algorithm == "vrpo" else config.rl.ppo_epochs
    assert config.training.n_iters is not None
    updates = each * config.training.n_iters
    learner = new_learner(model, config.optim, updates, config.training.ema, group)
    if config.rl.algorithm == "vrpo":
        reference = Reference(model)
        return Preferences(model, learner, reference, estimator, *pairs_of(config, model), config, save)
    task = given.task or build_task(config, model)
    check_data(config, model, task)
    reward = build_reward(config, model, task, group, given.reward)
    reference = Reference(model) if config.rl.kl_beta else None
    decoder = build_rollout_decoder(config, model)
    return Rollouts(model, learner, reference, estimator, task, reward, decoder, config, save)


def check_sampler_given(config: RLTrainingSettings, overrides: list[str]) -> None:
    """Refuse keys of `sampler` on the command line that its strategy does not use, as unmask sample does."""
    keys = [override.partition("=")[0].lstrip("+~") for override in overrides]
    of_all = ("sampler.steps", "sampler.length")  # blocks divide the steps; the length is of the task
    given = {key: key for key in keys if key.startswith("sampler.") and key not in of_all}
    check_given(rollout_settings(config), given, "sampler.strategy=")


def run(config: DictConfig, overrides: list[str], given: Objects = NOTHING) -> Path:
    """Train; return the run directory."""
    config = resumed_config(config, overrides, "train_rl")
    settings, config = started(RLTrainingSettings, config, overrides)
    given.check(resolved(config), "train_rl")
    check_rl(settings)
    check_sampler_given(settings, overrides)
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        kind = None if settings.init else settings.dlm.model_type
        if settings.init is not None:
            config.dlm.path = settings.dlm.path = settings.init
        path = shipped(settings.dlm.path)
        model, noise = load_model(path, group.device, settings.model.dtype, kind)
        description = stored_config(model, settings.rl.algorithm)
        model = trained(model, settings, path)

        def save(directory: Path) -> None:
            save_model(model, description, directory, torch.float32)

        algorithm = build(settings, model, noise, group, save, given)
        run = Run(config, overrides, group)
        size = sum(p.numel() for p in algorithm.learner.optimiser.parameters)
        rl = settings.rl
        run.say(f"{size:,} parameters of {settings.dlm.path} learn by {rl.algorithm}, likelihoods by {rl.estimator}")
        Trainer(algorithm, run).train()
        run.close()
        return run.directory
