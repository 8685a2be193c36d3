"""Tune a causal model to preferences: DPO and KTO on pairs, RLOO on a reward; what guided decoding is compared with.

    python run_train_preference.py init=smollm2 data.train=output/preferences/train.jsonl
    python run_train_preference.py init=smollm2 preference.algorithm=rloo preference.reward=vader data.train=pairs.jsonl
    python run_train_preference.py resume=output/2026.01.31/120000

By TRL, with LoRA by peft. Writes a run directory (see training/run.py); RUN/model, the updates merged in, is what load_model and
`--model` read. RLOO (2402.14740) is REINFORCE with the mean of the other answers as baseline: it stands where PPO stood, which
TRL has no more.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hydra
import torch
from datasets import Dataset
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from data.ends import before_end, end_tokens, has_end, texts_of
from data.preferences import Preference
from dlm.files import unpacked
from policy.build import shipped
from rewards.models import TextReward, load_reward, padded
from run_train_reward import read_preferences
from training.files import replacing_directory
from training.processes import Processes, processes
from training.run import Run, resumed_config
from training.settings import check_epochs, check_settings
from training.trainers import train_by, trainer_settings
from training.usage import check_overrides, exit_on_bad_input

ALGORITHMS = ("dpo", "kto", "rloo")


def check_preference(config: DictConfig) -> None:
    """Refuse, before any work, what no run could have."""
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
    """(model in float32, tokenizer). ValueError for what is no causal model of transformers."""
    path = unpacked(shipped(name))
    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False)
        tokenizer: Any = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"init={name} is no causal model of transformers that can be reached ({str(error).splitlines()[0]}); give another"
        ) from error
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token  # padding is told by masks
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def adapter(config: DictConfig) -> Any:
    """The LoRA that `lora` asks for; None trains all weights."""
    lora = config.lora
    if lora.rank is None:
        return None
    from peft import LoraConfig  # an extra: only where it is used

    modules: Any = (
        OmegaConf.to_container(lora.target_modules) if OmegaConf.is_list(lora.target_modules) else lora.target_modules
    )
    return LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=modules, task_type="CAUSAL_LM"
    )  # fmt: skip


def rows_of(preferences: list[Preference], algorithm: str) -> Dataset:
    """In TRL's columns, the prompt once and apart from the answers: pairs (dpo), an answer a row with whether it is liked (kto),
    prompts alone (rloo)."""
    if algorithm == "dpo":
        rows = [{"prompt": p.prompt, "chosen": p.chosen, "rejected": p.rejected} for p in preferences]
    elif algorithm == "kto":
        rows = [{"prompt": p.prompt, "completion": answer, "label": liked}
                for p in preferences for answer, liked in ((p.chosen, True), (p.rejected, False))]  # fmt: skip
    else:
        rows = [{"prompt": prompt} for prompt in dict.fromkeys(p.prompt for p in preferences)]
    return Dataset.from_list(rows)


def reward_function(name: str, device: torch.device, tokenizer: Any) -> Callable[..., list[float | None]]:
    """The reward as TRL calls it, of answers up to their end (data/ends.py)."""
    reward, ends = load_reward(shipped(name), device), end_tokens(tokenizer)
    assert isinstance(reward, TextReward)

    def score(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_) -> list[float | None]:
        tokens, real = padded(completion_ids)
        answers = texts_of(tokens, before_end(tokens, real, ends), tokenizer)
        return reward.score_texts(prompts, answers, has_end(tokens, real, ends).tolist()).tolist()

    return score


def build_trainer(
    config: DictConfig, run: Run, group: Processes, model: Any, tokenizer: Any, train: Dataset, valid: Dataset
):
    """TRL's trainer of the algorithm."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RLOOConfig, RLOOTrainer  # seconds to import

    preference, lora = config.preference, adapter(config)
    settings = trainer_settings(config, run, group) | {"beta": preference.beta}
    data = {"train_dataset": train, "eval_dataset": valid, "processing_class": tokenizer, "peft_config": lora}
    if preference.algorithm == "rloo":
        settings["per_device_eval_batch_size"] = (
            -(-config.eval.batch_size // preference.group_size) * preference.group_size
        )
        answers = RLOOConfig(
            **settings, num_generations=preference.group_size, max_completion_length=preference.answer_length,
            temperature=preference.temperature,
        )  # fmt: skip
        return RLOOTrainer(model, reward_function(str(preference.reward), group.device, tokenizer), answers, **data)
    reference = copy.deepcopy(model) if lora is None else None  # with an adapter it is the model without it
    made, kind = {"dpo": (DPOConfig, DPOTrainer), "kto": (KTOConfig, KTOTrainer)}[preference.algorithm]
    return kind(model, reference, made(**settings, max_length=config.data.max_length), **data)


def main(config: DictConfig, overrides: list[str]) -> Path:
    """Train; returns the run directory."""
    config = resumed_config(config, overrides, "train_preference")
    check_settings(config, "train_preference")
    check_epochs(config, overrides)
    check_preference(config)
    with processes(config.device) as group:
        torch.manual_seed(config.seed)
        train, held_out, dropped = read_preferences(config)
        model, tokenizer = load_causal(str(config.init))
        algorithm = config.preference.algorithm
        rows, valid = (rows_of(preferences, algorithm) for preferences in (train, held_out))
        if algorithm == "rloo" and len(rows) < (needed := config.training.batch_size // config.preference.group_size):
            raise ValueError(
                f"{config.data.train} has {len(rows)} different prompts and an update asks {needed}; lower training.batch_size"
            )
        run = Run(config, overrides, group)
        out = ", ".join(f"{number} {reason}" for reason, number in dropped.items()) or "none"
        run.say(
            f"{config.init} learns by {algorithm} from {len(rows):,} rows of {len(train):,} preferences; dropped: {out}"
        )
        trainer = build_trainer(config, run, group, model, tokenizer, rows, valid)
        train_by(trainer, run)
        if group.first:
            tuned: Any = trainer.accelerator.unwrap_model(trainer.model)
            tuned = tuned if config.lora.rank is None else tuned.merge_and_unload()
            with replacing_directory(run.directory / "model") as part:
                tuned.save_pretrained(part)
                tokenizer.save_pretrained(part)
        run.close()
        return run.directory


@hydra.main(config_path="configs", config_name="train_preference", version_base=None)
def entry(config: DictConfig) -> None:
    with exit_on_bad_input():
        main(config, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    with exit_on_bad_input():
        check_overrides("train_preference")
    entry()
