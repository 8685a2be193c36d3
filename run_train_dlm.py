"""Pre-train or fine-tune a backbone.

    python run_train_dlm.py experiment=stories
    torchrun --nproc-per-node 8 run_train_dlm.py experiment=radd_owt model.dtype=bfloat16
    python run_train_dlm.py resume=output/2026.01.31/120000

Writes a run directory (see training/run.py); RUN/model is what load_model, run_sample.py and save_pretrained users read.
"""

from __future__ import annotations

from pathlib import Path

import hydra
import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from data.rows import end_of_text, training_data
from dlm.masked_lm import MaskedLM
from dlm.pretrain import train
from load_model import build_model, load_model, save_model
from training.processes import processes
from training.run import Run, resumed_config
from training.usage import exit_on_bad_input


def model_config(config: DictConfig, tokenizer) -> dict:
    """What goes into config.json: RADD's published layout, or the causal model's own."""
    shape = OmegaConf.to_container(config.model)
    assert isinstance(shape, dict)
    if shape.pop("kind") == "causal":
        eos = end_of_text(tokenizer)
        return {
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": shape["hidden_size"],
            "intermediate_size": 3 * shape["hidden_size"],
            "num_hidden_layers": shape["n_blocks"],
            "num_attention_heads": shape["n_heads"],
            "max_position_embeddings": shape["length"] + 1,
            "attention_dropout": shape["dropout"],
            "tie_word_embeddings": True,
            "bos_token_id": eos,
            "eos_token_id": eos,
        }
    puzzle = {"puzzle": {"box": list(config.data.box)}} if config.data.kind == "sudoku" else {}
    vocabulary = tokenizer.vocab_size - 1 if puzzle else len(tokenizer)
    return {
        "tokens": vocabulary,
        "model": shape,
        "noise": OmegaConf.to_container(config.noise),
        "training": {"ema": config.training.ema, "loss_type": config.loss},
        **puzzle,
    }


def main(config: DictConfig, overrides: list[str]) -> Path:
    """Train; returns the run directory."""
    config = resumed_config(config, overrides)
    with processes(config.device) as group:
        torch.manual_seed(config.seed)
        rows, valid, tokenizer = training_data(config.data, config.model.length, config.seed, group.rank, group.world)
        if config.init is None:
            description = model_config(config, tokenizer)
            model, noise = build_model(description, config.model.dtype, tokenizer)
        else:
            raise ValueError("not yet")
        model.to(group.device)
        run = Run(config, overrides, group)
        run.say(f"{sum(p.numel() for p in model.parameters()):,} parameters, vocabulary {model.vocab_size}, {len(valid)} held-out rows")

        def on_snapshot(step: int, model: MaskedLM) -> dict[str, float]:
            save_model(model, description, run.directory / "model")
            return {}

        train(model, noise, rows, valid, config, run, group, on_snapshot)
        run.close()
        return run.directory


@hydra.main(config_path="configs", config_name="train_dlm", version_base=None)
def entry(config: DictConfig) -> None:
    with exit_on_bad_input():
        main(config, list(HydraConfig.get().overrides.task))


if __name__ == "__main__":
    entry()
