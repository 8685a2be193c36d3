"""Published masked-diffusion layouts other than RADD's: what their config.json says, and their weights under our names.

LLaDA (GSAI-ML/LLaDA-8B-Base, -Instruct, LLaDA-1.5) and Dream (Dream-v0, DiffuCoder) are `model.llama`; MDLM
(kuleshov-group/mdlm-owt) gives its network no time, so that each adaptive norm is a constant: folded into the weights beside it,
MDLM is RADD.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm.masked_lm import LlamaLM
from model.llama import DREAM_KEYS, LLADA_KEYS, BidirectionalLlama, LlamaShape, published_name

KEYS = {"llada": LLADA_KEYS, "Dream": DREAM_KEYS}
MODEL_TYPES = (*KEYS, "mdlm")
# What LLaDA's class can be told to be and no published checkpoint is: refused, since another network would be built.
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


LLADA_KEYS = ("d_model", "n_layers", "n_heads", "mlp_hidden_size", "vocab_size", "rope_theta", "rms_norm_eps")
QWEN_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "intermediate_size", "vocab_size",
    "rope_theta", "rms_norm_eps", "tie_word_embeddings",
)  # fmt: skip


def llama_shape(config: dict) -> LlamaShape:
    """From a config.json of LLaDA or Dream. ValueError for a variant that this network is not."""
    needed = LLADA_KEYS if config["model_type"] == "llada" else QWEN_KEYS
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
    """A LLaDA or a Dream, its weights as torch makes them (on the device `meta`: none)."""
    with torch.device(device):
        backbone = BidirectionalLlama(llama_shape(config))
    length = config.get("max_sequence_length") or config["max_position_embeddings"]
    dream = config["model_type"] == "Dream"
    model = LlamaLM(backbone, config["mask_token_id"], length, dream, dtype, tokenizer, path)
    model.config = config
    return model


def published_names(model: LlamaLM) -> dict[str, str]:
    """Our parameter name -> that of the model's published layout; a tied head has none of its own."""
    keys = KEYS[model.config["model_type"]]
    names = {name: published_name(name, keys) for name in model.backbone.state_dict()}
    if model.backbone.shape.tied:
        names.pop("head.weight")
    return names


def radd_config(config: dict) -> dict:
    """RADD's config of an MDLM's."""
    if config.get("time_conditioning"):
        raise ValueError("config.json says time_conditioning=true, expected false: only then is the time input zero")
    shape = {"hidden_size": config["hidden_dim"], "n_blocks": config["n_blocks"], "n_heads": config["n_heads"],
             "length": config["model_length"], "dropout": config["dropout"]}  # fmt: skip
    return {"tokens": config["vocab_size"] - 1, "model": shape, "noise": {"type": "loglinear"}}


@torch.no_grad()
def fold_mdlm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """MDLM's weights as RADD's: every adaptive norm at time zero, folded.

    norm(x) * w * (1 + scale) + shift is a norm of weight w * (1 + scale) and bias shift; gates scale the rows of what they gate.
    """
    state = {name.removeprefix("backbone."): tensor.float() for name, tensor in state.items()}
    first = state.pop("sigma_map.mlp.0.weight"), state.pop("sigma_map.mlp.0.bias")
    second = state.pop("sigma_map.mlp.2.weight"), state.pop("sigma_map.mlp.2.bias")
    zero = torch.cat((torch.ones(first[0].shape[1] // 2), torch.zeros(first[0].shape[1] // 2)))  # cosines, sines of 0
    condition = F.silu(F.linear(F.silu(F.linear(zero, *first)), *second))

    def constants(place: str, parts: int) -> tuple[Tensor, ...]:
        weight, bias = state.pop(f"{place}.adaLN_modulation.weight"), state.pop(f"{place}.adaLN_modulation.bias")
        return F.linear(condition, weight, bias).chunk(parts)

    blocks = sorted({name.split(".")[1] for name in state if name.startswith("blocks.")}, key=int)
    for place in (f"blocks.{number}" for number in blocks):
        shift1, scale1, gate1, shift2, scale2, gate2 = constants(place, 6)
        state[f"{place}.norm1.weight"] = state[f"{place}.norm1.weight"] * (1 + scale1)
        state[f"{place}.norm2.weight"] = state[f"{place}.norm2.weight"] * (1 + scale2)
        state[f"{place}.norm1.bias"], state[f"{place}.norm2.bias"] = shift1, shift2
        state[f"{place}.attn_out.weight"] = state[f"{place}.attn_out.weight"] * gate1[:, None]
        state[f"{place}.mlp.2.weight"] = state[f"{place}.mlp.2.weight"] * gate2[:, None]
        state[f"{place}.mlp.2.bias"] = state[f"{place}.mlp.2.bias"] * gate2
    shift, scale = constants("output_layer", 2)
    state["output_layer.norm_final.weight"] = state["output_layer.norm_final.weight"] * (1 + scale)
    state["output_layer.norm_final.bias"] = shift
    return state
