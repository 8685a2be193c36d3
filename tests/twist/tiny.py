"""Tiny causal models and classifiers that read the shipped stories' tokens, as directories; and the training command in this process."""

from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerFast

from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from unmask.runs import train_twist

ROOT = Path(__file__).parents[2]
LETTERS = "abcdefgh ,.wOnctimeuphrIbougstd"
KINDS = {
    "llama": {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
              "max_position_embeddings": 65},
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 65},
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]],
                "window_size": 8, "max_position_embeddings": 65},
}  # fmt: skip
QUICK = ["run_dir=RUN", "device=cpu", "wandb.mode=disabled", "length=3", "training.batch_size=8", "training.epochs=2",
         "training.log_freq=1", "training.snapshot_freq_for_preemption=1", "posterior.count=6", "posterior.batch=32",
         "eval.samples=8", "eval.particles=[2,4]", "eval.sweeps=2", "eval.texts=2"]  # fmt: skip


def letters() -> PreTrainedTokenizerFast:
    vocabulary = {letter: number for number, letter in enumerate(dict.fromkeys(LETTERS))} | {"<end>": len(set(LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=" "))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")


def causal(directory: Path, kind: str = "llama", spread: float = 2.0) -> Path:
    """A causal model that prefers some texts."""
    tokenizer = letters()
    torch.manual_seed(3)
    end = tokenizer.eos_token_id
    config = AutoConfig.for_model(kind, vocab_size=len(tokenizer), bos_token_id=end, eos_token_id=end, **KINDS[kind])
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, spread * 16**-0.5)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def masked(directory: Path) -> Path:
    """A masked model of such text."""
    tokenizer = letters()
    torch.manual_seed(5)
    shape = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "dropout": 0.0, "length": 24}
    config = {"tokens": len(tokenizer), "model": shape, "noise": {"type": "loglinear"}}
    model, _ = build_model(config, "float32", tokenizer)
    torch.nn.init.normal_(model.backbone.output_layer.linear.weight, std=0.5)
    save_model(model, config, directory, torch.float32)
    return directory


def classifier(directory: Path, classes: int) -> Path:
    """A classifier of such text."""
    tokenizer = letters()
    torch.manual_seed(4)
    config = AutoConfig.for_model(
        "bert", vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=64, num_labels=classes, pad_token_id=tokenizer.pad_token_id, initializer_range=1.0,
    )  # fmt: skip
    AutoModelForSequenceClassification.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def run(directory: Path, *overrides: str) -> Path:
    """The command in this process; RUN in an override is `directory`."""
    asked = [override.replace("RUN", str(directory)) for override in overrides]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_twist", asked)
    return train_twist.run(config, asked)
