"""LLaDA (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5) and Dream (Dream-v0, DiffuCoder): `model.llama` with two key maps.

Weights are read one by one, into the precision of the computation.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from dlm.checkpoints.family import Family, model_type
from dlm.checkpoints.fill import OLD_BUFFERS, Stored, fill_streaming
from dlm.checkpoints.source import CheckpointSource
from dlm.checkpoints.tokenizers import read_tokenizer
from dlm.checkpoints.weights import stored, unwrapped
from dlm.masked_lm import LlamaLM
from model.llama import DREAM_KEYS, LLADA_KEYS, BidirectionalLlama, LlamaShape, published_name
from training.usage import readable

KEYS = {"llada": LLADA_KEYS, "Dream": DREAM_KEYS}
# Settings of LLaDA's class that no published checkpoint changes: another value needs another network and is refused.
LLADA_FIXED = {
    "block_type": "llama",
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "scale_logits": False,
    "input_emb_norm": False,
    "attention_layer_norm": False,
}


LLADA_SETTINGS = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "vocab_size", "rope_theta", "rms_norm_eps")
DREAM_SETTINGS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "rope_theta", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip


def llama_shape(config: dict) -> LlamaShape:
    """Return the network's sizes from a config.json of LLaDA or Dream. ValueError for unsupported variants."""
    needed = LLADA_SETTINGS if config["model_type"] == "llada" else DREAM_SETTINGS
    if missing := [name for name in needed if name not in config]:
        raise ValueError(f"config.json lacks {', '.join(missing)}; take the one that was published with the weights")
    if config["model_type"] == "llada":
        other = {name: config[name] for name, fixed in LLADA_FIXED.items() if config.get(name, fixed) != fixed}
        if other:
            raise ValueError(
                f"config.json asks for {other}, expected { ({name: LLADA_FIXED[name] for name in other}) }"
            )
        return LlamaShape(
            config["d_model"], config["n_layers"], config["n_heads"], config.get("n_kv_heads") or config["n_heads"],
            config["mlp_hidden_size"], config.get("embedding_size") or config["vocab_size"], config["rope_theta"],
            config["rms_norm_eps"], tied=config.get("weight_tying", False),
        )  # fmt: skip
    return LlamaShape(
        config["hidden_size"], config["num_hidden_layers"], config["num_attention_heads"], config["num_key_value_heads"],
        config["intermediate_size"], config["vocab_size"], config["rope_theta"], config["rms_norm_eps"],
        biases=config.get("attention_bias", True), tied=config["tie_word_embeddings"],
    )  # fmt: skip


def build_llama(config: dict, dtype: str, tokenizer, path: str, device: str | torch.device = "cpu") -> LlamaLM:
    """Build a LLaDA or a Dream with initial weights of torch (none on the device `meta`)."""
    with torch.device(device):
        backbone = BidirectionalLlama(llama_shape(config))
    length = config.get("max_sequence_length") or config["max_position_embeddings"]
    dream = config["model_type"] == "Dream"
    model = LlamaLM(backbone, config["mask_token_id"], length, dream, dtype, tokenizer, path)
    model.config = config
    return model


def published_names(model: LlamaLM) -> dict[str, str]:
    """Map our parameter names to those of the model's published layout; a tied head has no name of its own."""
    keys = KEYS[model.config["model_type"]]
    names = {name: published_name(name, keys) for name in model.backbone.state_dict()}
    if model.backbone.shape.tied:
        names.pop("head.weight")
    return names


class LlamaLayout(Family):
    """LLaDA or Dream. name: a key of `KEYS`."""

    def __init__(self, name: str, words: tuple[str, ...]):
        self.name, self.words = name, words

    def recognises(self, config: dict[str, Any]) -> bool:
        return model_type(config) == self.name

    def own_tokenizer(self, source: CheckpointSource) -> Any:
        return read_tokenizer(source.folder, plain=True)

    def build(self, config: dict[str, Any], dtype: str, tokenizer: Any, name: str = "") -> LlamaLM:
        model = build_llama(config, dtype, tokenizer, name)
        model.backbone.reset_parameters()
        return model

    def load(
        self, source: CheckpointSource, config: dict[str, Any], tokenizer: Any, dtype: str, device: torch.device
    ) -> LlamaLM:
        with source.described():
            model = build_llama(config, dtype, tokenizer, source.name, "meta")
        if source.run is not None:
            state = self.run_weights(source, config)
            weights = (Stored(name, name, "", tensor) for name, tensor in state.items())
            fill_llama(model, weights, {name: name for name in model.backbone.state_dict()}, device)
        else:
            load_llama(model, source, device)
        return model


class Dream(LlamaLayout):
    """Dream and DiffuCoder. Their repositories hold vocab.json, merges.txt and code that makes Qwen2's tokenizer of them."""

    def __init__(self):
        super().__init__("Dream", ("dream", "diffucoder"))

    def own_tokenizer(self, source: CheckpointSource) -> Any:
        if source.has("tokenizer.json"):
            return super().own_tokenizer(source)
        if not (source.has("vocab.json") and source.has("merges.txt")):
            return None
        from transformers import Qwen2Tokenizer

        with readable(source.fetch("vocab.json")):
            tokenizer = Qwen2Tokenizer.from_pretrained(source.folder, trust_remote_code=False)
            tokenizer.mask_token = tokenizer.convert_ids_to_tokens(source.config["mask_token_id"])
        return tokenizer


def load_llama(model: LlamaLM, source: CheckpointSource, device: torch.device) -> None:
    """Give a model on the device `meta` the published weights of a checkpoint."""
    own = {published: name for name, published in published_names(model).items()}
    plain = unwrapped(source.weight_names, own)
    head = published_name("head.weight", KEYS[model.config["model_type"]])  # some checkpoints hold a head that is tied
    tied = head if model.backbone.shape.tied else None
    weights = (
        Stored(name, plain[name], f" in {file.name}", tensor)
        for file in source.files
        for name, tensor in stored(file)
        if plain[name] != tied and not plain[name].endswith(OLD_BUFFERS)
    )
    fill_llama(model, weights, own, device)


def fill_llama(model: LlamaLM, weights: Iterable[Stored], own: dict[str, str], device: torch.device) -> None:
    """Give a model on the device `meta` its weights. own: as in `fill_streaming`."""
    backbone = model.backbone
    fill_streaming(backbone, weights, own, model.model_id, lambda tensor: tensor.to(device, model.dtype))
    if backbone.shape.tied:
        backbone.head.weight = backbone.embed.weight


LLADA, DREAM = LlamaLayout("llada", ("llada",)), Dream()
