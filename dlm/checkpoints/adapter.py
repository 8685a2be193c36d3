"""Files of adapters in peft's layout, merged into their base; and the base: a causal Llama or Qwen2 in Dream's layout, or
a Dream.

`dlm/adapt.py` is about the network and its training.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dlm.adapt import NO_MASK, AdapterLM, dream_config, give_mask, mask_of, peft_name
from dlm.checkpoints.causal import CAUSAL
from dlm.checkpoints.family import Family
from dlm.checkpoints.llama import DREAM, KEYS, LLADA, build_llama, load_llama
from dlm.checkpoints.source import CheckpointSource, resolve
from dlm.fingerprint import digests_of, joined_digests, weight_digests
from dlm.masked_lm import LlamaLM
from training.storage import load_weights
from training.stored import read_json_object
from training.usage import readable

KEY = "peft_type"  # of the config.json of an adapter, beside the settings of the adapted model
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"


class Adapter(Family):
    """Low-rank updates of a base that `adapter_config.json` names."""

    def recognises(self, config: dict[str, Any]) -> bool:
        return KEY in config

    def own_tokenizer(self, source: CheckpointSource) -> Any:
        return DREAM.own_tokenizer(source)

    def build(self, config: dict[str, Any], dtype: str, tokenizer: Any, name: str = "") -> LlamaLM:
        return DREAM.build(config, dtype, tokenizer, name)

    def load(
        self, source: CheckpointSource, config: dict[str, Any], tokenizer: Any, dtype: str, device: torch.device
    ) -> LlamaLM:
        adapter = read_json_object(file := source.fetch(CONFIG))
        with readable(file):
            base = adapter["base_model_name_or_path"]
        try:
            model = load_bidirectional(base, device, dtype, config.get("max_position_embeddings"))
        except ValueError as error:
            raise ValueError(
                f"{source.name} is an adapter and its base {base} cannot be had ({error}); set base_model_name_or_path in "
                f"{Path(source.folder) / CONFIG} to where it is"
            ) from error
        of_base = digests_of(model)  # before the mask's row, a mean, which rounds
        if model.mask_id == NO_MASK:
            give_mask(model, config["mask_token_id"])
            tokenizer = _tokenizer_of_base(model, base, source.name) if tokenizer is None else tokenizer
        due = {name: value for name, value in config.items() if name != KEY}
        if wrong := sorted(name for name in due if model.config.get(name) != due[name]):
            raise ValueError(
                f"{source.name} was made for another base than {base}: config.json differs in {', '.join(wrong)}"
            )
        model.tokenizer, model.model_id = tokenizer or model.tokenizer, source.name
        with_adapter = AdapterLM(model, adapter)
        state = adapter_weights(source, with_adapter)
        with_adapter.load_backbone(state)
        with_adapter.read_weights = joined_digests(of_base, weight_digests(state.items()))
        return with_adapter.merged()


def _tokenizer_of_base(model: LlamaLM, base: str, name: str) -> Any:
    """Return the base's tokenizer with the mask token of the adapter; None if the base has no tokenizer."""
    if model.tokenizer is not None and mask_of(model.tokenizer) != model.mask_id:
        raise ValueError(
            f"the tokenizer of {base} has its mask at {model.tokenizer.mask_token_id} and {name} at {model.mask_id}; "
            "put the tokenizer that it was made with beside it"
        )
    return model.tokenizer


def adapter_weights(source: CheckpointSource, model: AdapterLM) -> dict[str, Tensor]:
    """Return the adapter's weights under the names of the model: averaged ones for a run, else those of the adapter's
    file.
    """
    if source.run is not None:
        return source.averaged_weights()
    with readable(Path(source.folder) / WEIGHTS):
        saved = load_weights(source.fetch(WEIGHTS))
    keys = KEYS[model.config["model_type"]]
    own = {peft_name(name, keys): name for name in model.backbone_state()}
    return {own.get(name, name): tensor for name, tensor in saved.items()}


def load_bidirectional(
    path: str, device: str | torch.device = "cpu", dtype: str = "float32", length: int | None = None
) -> LlamaLM:
    """Load the base of a masked-diffusion model.

    This is a causal Llama or Qwen2 in Dream's layout without a mask token (`dlm.adapt.give_mask`), or a LLaDA, a Dream or
    an adapter unchanged.

    Args:
        path: as in `resolve`. A run of a causal model gives the weights of RUN/model.
        device: target of the weights, which are moved one by one.
        dtype: float32, bfloat16 or float16.
        length: longest canvas of a causal model. None: the model's context.

    Raises:
        ValueError: the model has another architecture.
    """
    source = resolve(path)
    device = torch.device(device)
    for family in (ADAPTER, LLADA, DREAM):
        if family.recognises(source.config):
            model = family.load(source, source.config, family.tokenizer(source), dtype, device)
            return model.requires_grad_(False).eval().to(device)
    source = replace(source, run=None, snapshot=None)
    with source.described():
        config = dream_config(source.config, length)
        model = build_llama(config, dtype, CAUSAL.tokenizer(source), source.name, "meta")
    load_llama(model, source, device)
    return model.requires_grad_(False).eval()


ADAPTER = Adapter()
