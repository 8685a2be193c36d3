"""The work of `train-reward`: learn a reward model, or a vocabulary head on a frozen model, from preference pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from transformers import AutoModelForSequenceClassification, AutoTokenizer, ModernBertConfig

from data.preferences import Preference, preference_rows
from dlm.checkpoints.source import resolve
from dlm.fingerprint import token_digest
from load_model import load_model
from rewards.accuracy import LENGTHS, SHARES, accuracy, accuracy_line, by_bin, row_margins
from rewards.models import TOKENS, ClassifierReward, is_causal_classifier, position_limit
from rewards.template import KINDS
from rl.settings import RewardRunSettings
from rl.vocabulary_head import HeadTraining, canvas_pairs
from training.files import replacing_directory, write_text
from training.hub import hide_weight_bars, prepare, shipped
from training.processes import Processes, processes
from training.run import Run, resumed_config
from training.storage import add_checksums, check_files
from training.trainer import Trainer
from training.trainers import check_trainer, train_by, trainer_settings
from training.usage import readable
from unmask.build import build_preferences, check_epochs, started

HEADS = ("sequence", "vocabulary")


def check_reward(config: RewardRunSettings) -> None:
    """Refuse, before any work, settings that cannot run."""
    reward = config.reward
    for key, value, known in (("kind", reward.kind, KINDS), ("head", reward.head, HEADS)):
        if value not in known:
            raise ValueError(f"reward.{key}={value!r} is unknown; use one of {', '.join(known)}")
    if config.init is None and config.encoder.hidden_size % config.encoder.num_heads:
        raise ValueError(
            f"encoder.hidden_size={config.encoder.hidden_size} is not divisible by encoder.num_heads={config.encoder.num_heads}; "
            "change either"
        )
    if reward.head == "vocabulary" and (config.init is None or reward.kind == "full"):
        raise ValueError(
            "reward.head=vocabulary is a layer on a frozen language model: give it as init, with reward.kind=prefix for a causal "
            "one and reward.kind=mask for a masked one"
        )


# --------------------------------------------------------------------------------------------------------- sequence models


def new_encoder(tokenizer: Any, config: RewardRunSettings) -> Any:
    """Return an untrained bidirectional encoder: layers of ModernBERT with rotary positions and full attention, whose output
    is the mean of the hidden states."""
    size, end = config.encoder, tokenizer.eos_token_id
    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": size.hidden_size, "intermediate_size": size.intermediate_size,
        "num_hidden_layers": size.num_layers, "num_attention_heads": size.num_heads,
        "max_position_embeddings": size.max_length, "global_attn_every_n_layers": 1, "classifier_pooling": "mean",
        "num_labels": 1, "pad_token_id": tokenizer.pad_token_id, "bos_token_id": end, "eos_token_id": end, "cls_token_id": end,
        "sep_token_id": end,
    }  # fmt: skip
    return AutoModelForSequenceClassification.from_config(ModernBertConfig(**settings))


def loaded_classifier(config: RewardRunSettings) -> tuple[Any, Any]:
    """Load (the classifier of `init`, its tokenizer); without `init`, (None, the tokenizer of a new encoder).

    Raises:
        ValueError: it cannot be reached, or is not a checkpoint of transformers.
    """
    path = config.init and resolve(shipped(str(config.init))).folder
    prepare(path or shipped(config.encoder.tokenizer), "model" if path else "tokenizer")
    hide_weight_bars()
    if path:
        check_files(path)
    try:
        with readable(str(path or config.encoder.tokenizer)):
            tokenizer = AutoTokenizer.from_pretrained(
                path or shipped(config.encoder.tokenizer), trust_remote_code=False
            )
            model = None
            if path:
                model = AutoModelForSequenceClassification.from_pretrained(
                    path, num_labels=1, dtype=torch.float32, trust_remote_code=False
                )
    except ValueError as error:
        raise ValueError(
            f"init={config.init} with the tokenizer of {path or config.encoder.tokenizer} is no checkpoint of transformers that "
            f"can be reached ({str(error).splitlines()[0]}); give another, or none for a new encoder"
        ) from error
    return model, tokenizer


def build_classifier(config: RewardRunSettings) -> tuple[Any, Any]:
    """Return (a sequence classifier with one output, its tokenizer).

    The tokenizer gets a separate padding token, by which GPT-2 and Llama find the last token of a row. If the kind needs a mask
    token, one is added. For the tokens of a masked model the mask token has that model's mask id, which is behind its vocabulary.
    """
    model, tokenizer = loaded_classifier(config)
    if config.reward.kind == "mask" and tokenizer.mask_token is None:
        tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    if tokenizer.pad_token is None or tokenizer.pad_token_id == tokenizer.eos_token_id:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if model is None:
        model = new_encoder(tokenizer, config)
    elif len(tokenizer) > model.get_input_embeddings().num_embeddings:
        model.resize_token_embeddings(len(tokenizer))
    model.config.pad_token_id = tokenizer.pad_token_id
    model.config.reward_kind = config.reward.kind
    model.config.update({TOKENS: token_digest(tokenizer)})
    if config.reward.kind == "mask" and is_causal_classifier(model):
        raise ValueError(
            f"reward.kind=mask reads both sides of a mask and init={config.init} is causal; use reward.kind=prefix"
        )
    return model, tokenizer


def report(
    reward: ClassifierReward, held_out: list[Preference], config: RewardRunSettings, max_length: int
) -> dict[str, Any]:
    """Return the pairwise accuracy on held-out pairs: of whole answers, by length of prefix, and, for a reward of masks, by
    masked share."""
    settings = {"canvas": config.data.canvas, "seed": config.seed}
    full, _ = preference_rows(held_out, reward.tokenizer, "full", max_length, seed=config.seed)
    prefixes, _ = preference_rows(held_out, reward.tokenizer, "prefix", max_length, 8, seed=config.seed)
    found: dict[str, Any] = {
        "full": accuracy(row_margins(reward, full)),
        "by_prefix_length": by_bin(list(map(float, prefixes["length"])), row_margins(reward, prefixes), LENGTHS),
    }
    if reward.kind == "mask":
        masked, _ = preference_rows(held_out, reward.tokenizer, "mask", max_length, 8, **settings)
        found["by_masked_share"] = by_bin(list(masked["masked"]), row_margins(reward, masked), SHARES)
    return found


def train_sequence(settings: RewardRunSettings, config: DictConfig, overrides: list[str], group: Processes) -> Path:
    """Train a sequence classifier by TRL's RewardTrainer."""
    data, kind = settings.data, settings.reward.kind
    check_trainer(settings.training, settings.optim, group)
    train, held_out, dropped = build_preferences(settings)
    model, tokenizer = build_classifier(settings)
    reads = position_limit(model, tokenizer)
    longest = min(data.max_length, reads)
    if kind == "mask" and (data.canvas or 0) > reads:
        raise ValueError(
            f"data.canvas={data.canvas} is more than the {reads} positions that the reward model reads; lower it"
        )
    rows, left_out = preference_rows(train, tokenizer, kind, longest, data.rows, data.canvas, settings.seed)
    valid, _ = preference_rows(held_out, tokenizer, kind, longest, data.rows or 4, data.canvas, settings.seed + 1)
    run = Run(config, overrides, group)
    size = sum(parameter.numel() for parameter in model.parameters())
    out = ", ".join(f"{number} {reason}" for reason, number in (dropped + left_out).items()) or "none"
    run.say(
        f"{size:,} parameters learn from {len(rows):,} pairs ({kind}) of {len(train):,} preferences; dropped: {out}"
    )
    given = trainer_settings(settings, run, group)
    from trl import RewardConfig, RewardTrainer  # seconds to import: only where it is used, and after what is refused

    trainer = RewardTrainer(
        model,
        RewardConfig(**given, max_length=None),
        train_dataset=rows,
        eval_dataset=valid,
        processing_class=tokenizer,
    )
    train_by(trainer, run)
    if group.first:
        with replacing_directory(run.directory / "model") as part:
            trainer.accelerator.unwrap_model(trainer.model).save_pretrained(part)
            add_checksums(part)
            tokenizer.save_pretrained(part)
        say_accuracy(run, report(ClassifierReward(trainer.model, tokenizer, kind), held_out, settings, longest))
    run.close()
    return run.directory


def say_accuracy(run: Run, found: dict[str, Any]) -> None:
    """Write the accuracy to accuracy.json and the log."""
    write_text(run.directory / "accuracy.json", json.dumps(found, indent=2) + "\n")
    for name, value in found.items():
        run.say(f"held-out pairwise accuracy, {name}: {value if isinstance(value, float) else accuracy_line(value)}")


# -------------------------------------------------------------------------------------------------------- vocabulary heads


def train_vocabulary(settings: RewardRunSettings, config: DictConfig, overrides: list[str], group: Processes) -> Path:
    """Train a vocabulary head on the frozen model `init`."""
    path = shipped(str(settings.init))
    model, _ = load_model(path, group.device, settings.model.dtype)
    if model.causal != (settings.reward.kind == "prefix"):
        needed = "prefix" if model.causal else "mask"
        raise ValueError(
            f"reward.kind={settings.reward.kind} does not fit init={settings.init}; use reward.kind={needed}"
        )
    train, held_out, dropped = build_preferences(settings)
    length = settings.data.canvas or min(settings.data.max_length, model.max_length)
    if length > model.max_length:
        raise ValueError(f"data.canvas={length} is more than the model's {model.max_length}; lower it")
    pairs, left_out = canvas_pairs(train, model, length)
    valid, _ = canvas_pairs(held_out, model, length)
    training = settings.training
    n_iters = training.n_iters or max(1, training.epochs * len(pairs) // training.batch_size)
    config.training.n_iters = n_iters
    head = HeadTraining(model, settings.reward.kind, pairs, valid, settings, n_iters, group)
    run = Run(config, overrides, group)
    dropped["longer, or identical ids"] += left_out
    out = ", ".join(f"{number} {reason}" for reason, number in (+dropped).items()) or "none"
    size = sum(parameter.numel() for parameter in head.head.parameters())
    run.say(f"{size:,} parameters learn on {settings.init} from {len(pairs):,} pairs; dropped: {out}")
    Trainer(head, run).train()
    if group.first:
        with head.learner.averaged():
            at, margins = zip(*head.held_out_margins(), strict=True)
        name, starts = ("by_prefix_length", LENGTHS) if model.causal else ("by_masked_share", SHARES)
        say_accuracy(run, {name: by_bin(at, margins, starts)})
    run.close()
    return run.directory


def run(config: DictConfig, overrides: list[str]) -> Path:
    """Train; return the run directory."""
    config = resumed_config(config, overrides, "train_reward")
    settings, config = started(RewardRunSettings, config, overrides)
    check_epochs(config, overrides)
    check_reward(settings)
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        train = train_vocabulary if settings.reward.head == "vocabulary" else train_sequence
        return train(settings, config, overrides, group)
