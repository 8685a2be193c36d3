"""MDLM (kuleshov-group/mdlm-owt), read as RADD: its adaptive norms are folded into the neighbouring weights.

MDLM's network gets no time, so each adaptive norm is a constant.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dlm.checkpoints.family import model_type
from dlm.checkpoints.nested import Nested
from dlm.checkpoints.source import CheckpointSource
from dlm.masked_lm import RaddLM, SeddLM


class Mdlm(Nested):
    """MDLM, read as RADD."""

    def recognises(self, config: dict[str, Any]) -> bool:
        return model_type(config) == "mdlm"

    def config(self, source: CheckpointSource) -> dict[str, Any]:
        return source.config

    def build(self, config: dict[str, Any], dtype: str, tokenizer: Any, name: str = "") -> RaddLM | SeddLM:
        return super().build(radd_config(config), dtype, tokenizer, name)

    def file_weights(self, source: CheckpointSource) -> dict[str, Tensor]:
        return fold_mdlm(super().file_weights(source))


def radd_config(config: dict) -> dict:
    """Return RADD's config for a config of MDLM."""
    if config.get("time_conditioning"):
        raise ValueError("config.json says time_conditioning=true, expected false: only then is the time input zero")
    shape = {"hidden_size": config["hidden_dim"], "n_blocks": config["n_blocks"], "n_heads": config["n_heads"],
             "length": config["model_length"], "dropout": config["dropout"]}  # fmt: skip
    return {"tokens": config["vocab_size"] - 1, "model": shape, "noise": {"type": "loglinear"}}


@torch.no_grad()
def fold_mdlm(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return MDLM's weights as RADD's, with every adaptive norm at time zero folded in.

    norm(x) * w * (1 + scale) + shift is a norm of weight w * (1 + scale) and bias shift; gates scale the rows of the weight
    behind them.
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


MDLM = Mdlm()
