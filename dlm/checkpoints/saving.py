"""Saving a model in the layout that `load_model` reads: config.json, safetensors, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.adapt import AdapterLM, peft_name
from dlm.checkpoints import adapter
from dlm.checkpoints.llama import KEYS, published_names
from dlm.encoding import is_text_tokenizer
from dlm.masked_lm import LlamaLM, MaskedLM
from training.files import replacing_directory
from training.storage import save_weights


def save_model(model: MaskedLM, config: dict[str, Any], directory: Path, dtype: torch.dtype = torch.bfloat16) -> None:
    """Write config.json, the weights and the tokenizer; for a model with an adapter only the adapter, in peft's layout.

    Args:
        model: to save.
        config: in the layout of its family's config.json.
        directory: is created, or its files of these names are replaced.
        dtype: of the stored weights. Buffers (rotary frequencies) stay float32, because they multiply positions.

    Raises:
        FloatingPointError: a weight is not finite; nothing is written.
    """
    name = "model.safetensors"
    if isinstance(model, AdapterLM):
        config, name = {**config, adapter.KEY: model.adapter[adapter.KEY]}, adapter.WEIGHTS
    with replacing_directory(directory) as part:
        if isinstance(model, AdapterLM):
            _write_json(part / adapter.CONFIG, model.adapter)
        _write_json(part / "config.json", config)
        save_weights(stored_weights(model, dtype), part / name, directory / name)
        if is_text_tokenizer(model.tokenizer):
            model.tokenizer.save_pretrained(part)


def stored_weights(model: MaskedLM, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return weights by the names of the family's layout, on the CPU. A tensor with two names (a tied head) is stored
    once.
    """
    if isinstance(model, AdapterLM):
        keys = KEYS[model.config["model_type"]]
        return {peft_name(name, keys): tensor.to("cpu", dtype) for name, tensor in model.backbone_state().items()}
    parameters = dict(model.backbone.named_parameters())
    kept = parameters.keys() | dict(model.backbone.named_buffers()).keys()
    state = {name: tensor.detach().to("cpu", dtype if name in parameters else tensor.dtype)
             for name, tensor in model.backbone_state().items() if name in kept}  # fmt: skip
    if isinstance(model, LlamaLM):
        return {published: state[name] for name, published in published_names(model).items()}
    return state


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
