"""The work of `train-preference`: tune a causal model to preferences by TRL, with LoRA by peft."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from omegaconf import DictConfig
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.preferences import Preference
from dlm.checkpoints.source import resolve
from dlm.encoding import check_embedded
from dlm.ends import before_end, end_tokens, has_end, texts_of
from rewards.models import TextReward, load_reward, padded
from rewards.template import encode
from rl.settings import PreferenceRunSettings
from training.files import replacing_directory
from training.hub import hide_weight_bars, prepare, shipped
from training.processes import Processes, processes
from training.run import Run, resumed_config
from training.storage import add_checksums, check_files
from training.trainers import check_trainer, train_by, trainer_settings
from training.usage import readable
from unmask.build import build_preferences, check_epochs, started

ALGORITHMS = ("dpo", "kto", "rloo")


def check_preference(config: PreferenceRunSettings) -> None:
    """Refuse, before any work, settings that cannot run."""
    preference, training = config.preference, config.training
    if preference.algorithm not in ALGORITHMS:
        raise ValueError(
            f"preference.algorithm={preference.algorithm!r} is unknown; use one of {', '.join(ALGORITHMS)}"
        )
    if (preference.algorithm == "rloo") != (preference.reward is not None):
        raise ValueError(
            f"preference.reward={preference.reward} with preference.algorithm={preference.algorithm}: rloo learns from a reward, "
            "and dpo and kto from pairs; give it to rloo alone"
        )
    if preference.algorithm == "rloo" and (preference.group_size < 2 or training.batch_size % preference.group_size):
        raise ValueError(
            f"preference.group_size={preference.group_size} must be at least 2 and divide training.batch_size="
            f"{training.batch_size}; change either"
        )
    if preference.algorithm == "kto" and training.batch_size // training.accum < 2:
        raise ValueError(
            "kto compares the answers of a part with each other; training.batch_size / accum must be at least 2"
        )


def load_causal(name: str) -> tuple[Any, Any]:
    """Load (the model in float32, its tokenizer). ValueError for anything but a causal model of transformers."""
    path = resolve(shipped(name)).folder
    prepare(path, "model")
    hide_weight_bars()
    check_files(path)
    try:
        with readable(path):
            model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
            tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except ValueError as error:
        raise ValueError(
            f"init={name} is no causal model of transformers that can be reached ({str(error).splitlines()[0]}); give another"
        ) from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # padding is known from masks
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def check_modules(config: PreferenceRunSettings, model: Any) -> None:
    """Refuse, before a run directory is made, module names that the model lacks: ValueError."""
    targets = config.lora.target_modules
    if config.lora.rank is None or isinstance(targets, str):  # a name of peft's (all-linear), or a pattern
        return
    parts = {name.rpartition(".")[2] for name, _ in model.named_modules()}
    if unknown := [str(target) for target in targets if str(target).rpartition(".")[2] not in parts]:
        linear = {name.rpartition(".")[2] for name, part in model.named_modules() if isinstance(part, nn.Linear)}
        raise ValueError(
            f"lora.target_modules={unknown[0]} is no part of {config.init}; choose some of {', '.join(sorted(linear))}"
        )


def adapter(config: PreferenceRunSettings) -> Any:
    """Return the LoRA configuration that `lora` describes; None trains all weights."""
    lora = config.lora
    if lora.rank is None:
        return None
    from peft import LoraConfig  # an extra: only where it is used

    alpha: Any = lora.alpha  # any number is accepted, despite its annotation

    return LoraConfig(
        r=lora.rank, lora_alpha=alpha, lora_dropout=lora.dropout, target_modules=lora.target_modules, task_type="CAUSAL_LM"
    )  # fmt: skip


def rows_of(
    preferences: list[Preference], algorithm: str, tokenizer: Any, vocab_size: int, longest: int, part: int
) -> Dataset:
    """Return rows in TRL's columns: pairs (dpo), one labelled answer per row (kto), or different prompts as text (rloo).

    Pairs are token ids by the template of `rewards.template.encode`. Names of special tokens in a text therefore stay text, and
    an unfinished answer has no end of sequence.

    Args:
        preferences: pairs of texts.
        algorithm: dpo, kto or rloo.
        tokenizer: of the model.
        vocab_size: number of tokens with an embedding in the model.
        longest: largest number of tokens of a row. The trainer cuts answers at it; a pair whose prompt is as long is left out.
        part: rows of a batch of one process. In kto a row also has the answer of the row before it in its batch.

    Raises:
        ValueError: a token is outside of the vocabulary, or no row is left.
    """
    if algorithm == "rloo":
        return Dataset.from_list([{"prompt": prompt} for prompt in dict.fromkeys(p.prompt for p in preferences)])
    rows: list[dict[str, Any]] = []
    for one in preferences:
        prompt, chosen = encode(tokenizer, one.prompt, one.chosen, one.chosen_ends)
        rejected = encode(tokenizer, one.prompt, one.rejected, one.rejected_ends)[1]
        check_embedded(vocab_size, [*prompt, *chosen, *rejected], f"the pair of the prompt {one.prompt[-60:]!r}")
        if len(prompt) >= longest:
            continue
        if algorithm == "dpo":
            rows.append({"prompt_ids": prompt, "chosen_ids": chosen, "rejected_ids": rejected})
        else:
            rows += [{"prompt_ids": prompt, "completion_ids": answer, "label": label}
                     for answer, label in ((chosen, True), (rejected, False))]  # fmt: skip
    if not rows:
        raise ValueError(f"every prompt fills data.max_length={longest} tokens; raise it")
    for first in range(0, len(rows) if algorithm == "kto" else 0, part):
        batch = rows[first : first + part]
        for row, other in zip(batch, [batch[-1], *batch[:-1]], strict=True):
            row["KL_completion_ids"] = other["completion_ids"]
    return Dataset.from_list(rows)


class RowsOfIds:
    """Mixin for trainers of TRL that keeps rows of token ids as they are, and encodes prompts as plain text, without special
    tokens."""

    processing_class: Any

    def _prepare_dataset(self, dataset: Dataset, *_: Any) -> Dataset:
        return dataset

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict]:
        return [encode(self.processing_class, prompt, "", finished=False)[0] for prompt in prompts], None, {}


def reward_function(name: str, device: torch.device, tokenizer: Any) -> Callable[..., list[float | None]]:
    """Return the reward in the form that TRL calls. It scores answers up to their end (dlm/ends.py)."""
    reward, ends = load_reward(shipped(name), device), end_tokens(tokenizer)
    assert isinstance(reward, TextReward)

    def score(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_) -> list[float | None]:
        tokens, real = padded(completion_ids)
        answers = texts_of(tokens, before_end(tokens, real, ends), tokenizer)
        return reward.score_texts(prompts, answers, has_end(tokens, real, ends).tolist()).tolist()

    return score


def build_trainer(
    config: PreferenceRunSettings,
    run: Run,
    group: Processes,
    model: Any,
    tokenizer: Any,
    train: Dataset,
    valid: Dataset,
):
    """Return TRL's trainer of the algorithm."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer  # seconds to import

    preference, lora = config.preference, adapter(config)
    settings: dict[str, Any] = {**trainer_settings(config, run, group), "beta": preference.beta}
    data = {"train_dataset": train, "eval_dataset": valid, "processing_class": tokenizer, "peft_config": lora}
    if preference.algorithm == "rloo":
        settings["per_device_eval_batch_size"] = (
            -(-config.eval.batch_size // preference.group_size) * preference.group_size
        )
        answers = RLOOConfig(
            **settings, num_generations=preference.group_size, max_completion_length=preference.answer_length,
            temperature=preference.temperature,
        )  # fmt: skip
        made = type("RLOO", (RowsOfIds, RLOOTrainer), {})
        return made(model, reward_function(str(preference.reward), group.device, tokenizer), answers, **data)
    reference = copy.deepcopy(model) if lora is None else None  # with an adapter it is the model without it
    made, base = {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer)}[preference.algorithm]
    kind: Any = type(preference.algorithm.upper(), (RowsOfIds, base), {})
    return kind(model, reference, made(**settings, max_length=config.data.max_length), **data)


def run(config: DictConfig, overrides: list[str]) -> Path:
    """Train; return the run directory."""
    config = resumed_config(config, overrides, "train_preference")
    settings, config = started(PreferenceRunSettings, config, overrides)
    check_epochs(config, overrides)
    check_preference(settings)
    with processes(settings.device) as group:
        torch.manual_seed(settings.seed)
        check_trainer(settings.training, settings.optim, group)
        train, held_out, dropped = build_preferences(settings)
        model, tokenizer = load_causal(str(settings.init))
        check_modules(settings, model)
        algorithm = settings.preference.algorithm
        known, longest = model.get_input_embeddings().num_embeddings, settings.data.max_length
        part = max(1, settings.training.batch_size // settings.training.accum // group.world)
        rows, valid = (
            rows_of(preferences, algorithm, tokenizer, known, longest, part) for preferences in (train, held_out)
        )
        if algorithm == "rloo" and len(rows) < (
            needed := settings.training.batch_size // settings.preference.group_size
        ):
            raise ValueError(
                f"{settings.data.train} has {len(rows)} different prompts and an update asks {needed}; lower training.batch_size"
            )
        run = Run(config, overrides, group)
        out = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "none"
        run.say(
            f"{settings.init} learns by {algorithm} from {len(rows):,} rows of {len(train):,} preferences; dropped: {out}"
        )
        trainer = build_trainer(settings, run, group, model, tokenizer, rows, valid)
        train_by(trainer, run)
        if group.first:
            tuned: Any = trainer.accelerator.unwrap_model(trainer.model)
            tuned = tuned if settings.lora.rank is None else tuned.merge_and_unload()
            with replacing_directory(run.directory / "model") as part:
                tuned.save_pretrained(part)
                add_checksums(part)
                tokenizer.save_pretrained(part)
        run.close()
        return run.directory
