"""Tiny untrained reward models on disk: what a run of train-reward leaves, with random weights."""

from pathlib import Path

import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    PreTrainedTokenizerFast,
)

from data.text import train_bpe
from rewards.models import VocabularyHead


def tokenizer_of(sentences: list[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE of these sentences."""
    return train_bpe(sentences, size)


def reward(
    directory: Path, tokenizer: PreTrainedTokenizerFast, kind: str = "full", causal: bool = True, seed: int = 0
) -> str:
    """A sequence classifier of two layers on this tokenizer; rewards spread by about one. kind mask: with one token more."""
    torch.manual_seed(seed)
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, eos_token=tokenizer.eos_token)
    if kind == "mask":
        tokenizer.add_special_tokens({"mask_token": "<mask>"})
    size = {"vocab_size": len(tokenizer), "num_labels": 1, "pad_token_id": tokenizer.eos_token_id}
    ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
    if causal:
        shape = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
        model = GPT2ForSequenceClassification(GPT2Config(**size, **shape, **ends))
        head = model.score
    else:
        shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
        model = BertForSequenceClassification(BertConfig(**size, **shape, max_position_embeddings=64))
        head = model.classifier
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(head.weight, std=1.0)
    model.config.reward_kind = kind
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def head(directory: Path, model, trunk: str) -> str:
    """A vocabulary head of a language model."""
    kind = "prefix" if model.causal else "mask"
    torch.manual_seed(0)
    made = VocabularyHead(model.hidden_size, model.vocab_size, trunk, kind)
    nn.init.normal_(made.linear.weight, std=0.3)
    made.save(Path(directory))
    return str(directory)
