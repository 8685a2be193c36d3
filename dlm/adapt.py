"""From causal to diffusion: a Llama or a Qwen2 becomes a masked-diffusion model (DiffuLLaMA, 2410.17891; Dream,
2508.15487).

Weights are kept. The layout is Dream's, including the shift: the state at position i predicts token i + 1. The mask token
gets a new row of the embedding, which starts at the mean of all rows. During training the causal attention mask opens
gradually. All weights are trained, or low-rank updates (LoRA, 2106.09685, by peft) and the mask token's row: an adapter,
saved in peft's layout beside the name of its base. What differs from DiffuLLaMA: attention opens by columns, equal for all
rows that go through the model together, and the head's column of the mask token is never used.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dlm.encoding import is_text_tokenizer
from dlm.fingerprint import digests_of
from dlm.masked_lm import LlamaLM
from model.llama import DREAM_KEYS, published_name

ADAPTABLE = ("llama", "qwen2")
MASK_TOKEN = "<|mask|>"
NO_MASK = -1  # a mask_token_id that is not yet chosen
LINEAR = {DREAM_KEYS[part].split(".")[-1]: part for part in ("query", "key", "value", "out", "gate", "up", "down")}


def dream_config(config: dict, length: int | None = None) -> dict:
    """Return a causal model's config.json in Dream's layout, without a mask token.

    Args:
        config: config.json of the causal model.
        length: longest canvas. None: the context of the causal model.

    Raises:
        ValueError: the model has another architecture.
    """
    from transformers import AutoConfig

    if config["model_type"] not in ADAPTABLE:
        raise ValueError(
            f"a causal model of type {config['model_type']} cannot be made a masked one, only {' and '.join(ADAPTABLE)} can; "
            "train it further as it is (loss=ar), or choose another"
        )
    full: Any = AutoConfig.for_model(**config)  # with the defaults that config.json leaves out
    rope = full.rope_parameters or {}
    width = full.to_dict().get("head_dim") or full.hidden_size // full.num_attention_heads
    fixed = {
        "hidden_act": (full.hidden_act, "silu"),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "head_dim": (width, full.hidden_size // full.num_attention_heads),
        "use_sliding_window": (full.to_dict().get("use_sliding_window", False), False),
        "mlp_bias": (full.to_dict().get("mlp_bias", False), False),
        "attention_bias": (full.model_type == "llama" and full.attention_bias, False),
    }
    if other := {name: is_ for name, (is_, due) in fixed.items() if is_ != due}:
        raise ValueError(f"config.json asks for {other}, expected { ({name: fixed[name][1] for name in other}) }")
    if length is not None and not 1 <= length <= full.max_position_embeddings:
        raise ValueError(
            f"adapt.length={length} must be from 1 to the model's {full.max_position_embeddings}; change it"
        )
    return {
        "model_type": "Dream",
        "architectures": ["DreamModel"],
        **{name: getattr(full, name) for name in (
            "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
            "rms_norm_eps", "tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")},
        "rope_theta": rope["rope_theta"],
        "attention_bias": full.model_type == "qwen2",  # on queries, keys and values
        "max_position_embeddings": length or full.max_position_embeddings,
        "mask_token_id": NO_MASK,
    }  # fmt: skip


def mask_of(tokenizer: Any) -> int:
    """Return the id of the mask token: the tokenizer's own, or the first id past its tokens, which is then added to the
    tokenizer.
    """
    if not is_text_tokenizer(tokenizer):
        raise ValueError(
            "a causal model is adapted on text, and this data has no tokenizer; use data=stories or your own"
        )
    if tokenizer.mask_token_id is None:
        tokenizer.add_special_tokens({"mask_token": MASK_TOKEN})
    return tokenizer.convert_tokens_to_ids(tokenizer.mask_token)


@torch.no_grad()
def give_mask(model: LlamaLM, mask_id: int) -> None:
    """Set the mask token's row of the embedding (and of an untied head, where it is never used) to the mean of all rows.

    The row is a spare row of the vocabulary, or a new one.
    """
    backbone = model.backbone
    size = backbone.shape.columns
    if mask_id > size:
        raise ValueError(
            f"the mask would be token {mask_id} and the model has rows for {size}; give the tokenizer that belongs to it"
        )

    def with_mask(weight: Tensor) -> nn.Parameter:
        mean = weight.float().mean(0, keepdim=True).to(weight.dtype)
        return nn.Parameter(torch.cat((weight[:mask_id], mean, weight[mask_id + 1 :])), weight.requires_grad)

    backbone.embed.weight = with_mask(backbone.embed.weight)
    backbone.head.weight = backbone.embed.weight if backbone.shape.tied else with_mask(backbone.head.weight)
    columns = len(backbone.embed.weight)
    backbone.embed.num_embeddings = backbone.head.out_features = columns
    backbone.shape = replace(backbone.shape, columns=columns)
    model.vocab_size, model.mask_id = columns, mask_id
    model.config |= {"vocab_size": columns, "mask_token_id": mask_id}


def ahead_at(step: int, anneal: int) -> float:
    """Return the share of later positions that a position attends to at update number `step`: 0 at first, 1 from `anneal`
    on.
    """
    return min(1.0, step / anneal) if anneal else 1.0


def adapter_config(
    base: str, mask_id: int | None, rank: int, alpha: int | float, dropout: int | float, targets: list[str]
) -> dict:
    """Return adapter_config.json in peft's layout. mask_id: id whose row of the embedding is trained too; None: no row is."""
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(
            f"lora.rank={rank} must be a whole number of at least 1, or null to train all weights; change it"
        )
    if not targets or (unknown := sorted(set(targets) - LINEAR.keys())):
        raise ValueError(
            f"lora.target_modules={unknown if targets else []} is unknown; choose some of {', '.join(LINEAR)}"
        )
    return {
        "peft_type": "LORA",
        "base_model_name_or_path": str(Path(base).resolve()) if Path(base).is_dir() else base,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": dropout,
        "bias": "none",
        "target_modules": list(targets),
        "trainable_token_indices": None if mask_id is None else {"embed_tokens": [mask_id]},
    }


class AdapterLM(LlamaLM):
    """A frozen model with trainable low-rank updates. Its state is that of the adapter only, in the order of parameters()."""

    def __init__(self, model: LlamaLM, adapter: dict):
        from peft import LoraConfig  # seconds to import: only where it is used
        from peft.tuners.lora import LoraModel

        super().__init__(model.backbone, model.mask_id, model.max_length, model.shifted, tokenizer=model.tokenizer,
                         model_id=model.model_id)  # fmt: skip
        self.dtype, self.config, self.adapter = model.dtype, model.config, adapter
        self.read_weights = digests_of(model)  # the adapter begins as none
        settings = {
            name: value for name, value in adapter.items() if name not in ("peft_type", "base_model_name_or_path")
        }
        settings["target_modules"] = [LINEAR[name] for name in adapter["target_modules"]]
        if adapter["trainable_token_indices"]:
            settings["trainable_token_indices"] = {"embed": adapter["trainable_token_indices"]["embed_tokens"]}
        self.requires_grad_(False)
        self.tuner = [
            LoraModel(self.backbone, LoraConfig(**settings), "default")
        ]  # a list: its modules are the backbone's

    def backbone_state(self) -> dict[str, Tensor]:
        return {name.replace(".default", ""): parameter.detach()
                for name, parameter in self.backbone.named_parameters() if parameter.requires_grad}  # fmt: skip

    @torch.no_grad()
    def load_backbone(self, state: dict[str, Tensor]) -> None:
        """Load the adapter's weights. ValueError if names or shapes do not fit."""
        own = self.backbone_state()
        if {name: tensor.shape for name, tensor in own.items()} != {
            name: tensor.shape for name, tensor in state.items()
        }:
            wrong = sorted(own.keys() ^ state.keys()) or sorted(n for n in own if own[n].shape != state[n].shape)
            raise ValueError(
                f"the adapter does not fit its adapter_config.json or its base: {wrong[:4]} ({len(wrong)}); check that both "
                "belong to it"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    @contextmanager
    def without_adapter(self):
        """Context manager: the frozen model without the adapter."""
        self.tuner[0].disable_adapter_layers()
        try:
            yield
        finally:
            self.tuner[0].enable_adapter_layers()

    def merged(self) -> LlamaLM:
        """Return the model with the updates added to its weights. This adapter must not be used afterwards."""
        backbone: Any = self.tuner[0].merge_and_unload()
        if backbone.shape.tied:
            backbone.head.weight = backbone.embed.weight
        model = LlamaLM(
            backbone, self.mask_id, self.max_length, self.shifted, tokenizer=self.tokenizer, model_id=self.model_id
        )
        model.dtype, model.config, model.read_weights = self.dtype, self.config, self.read_weights
        return model


def peft_name(name: str, keys: dict[str, str] = DREAM_KEYS) -> str:
    """Return the name of an adapter's tensor in peft's layout. keys: names of the base's layout (Dream's equal those of
    transformers).
    """
    return "base_model.model." + published_name(name, keys)
