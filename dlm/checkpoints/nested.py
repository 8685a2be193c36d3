"""RADD and SEDD, whose config.json nests the network's sizes under `model`. Their weights stay float32.

SEDD's published config.json can be identical to RADD's: the weights decide.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm.checkpoints.family import GPT2, Family, model_type
from dlm.checkpoints.fill import fill
from dlm.checkpoints.source import CheckpointSource
from dlm.checkpoints.tokenizers import read_tokenizer
from dlm.checkpoints.weights import unwrapped
from dlm.encoding import is_text_tokenizer
from dlm.masked_lm import RaddLM, SeddLM
from model.radd import RADD
from model.sedd import SEDD

EMBEDDING = "vocab_embed.embedding"  # a weight that RADD, SEDD and MDLM have
NOISE_EMBEDDING = "sigma_map.mlp.0.weight"  # a weight that SEDD has and RADD has not


class Nested(Family):
    """RADD or SEDD, in this repository's layout, which is the published one."""

    def recognises(self, config: dict[str, Any]) -> bool:
        return model_type(config) in ("radd", "sedd")

    def config(self, source: CheckpointSource) -> dict[str, Any]:
        config = source.config
        for key in ("tokens", "model"):
            if key not in config:
                raise ValueError(
                    f"{source.config_file} has no {key!r}; expected a RADD or SEDD checkpoint or a causal model's config"
                )
        is_sedd = NOISE_EMBEDDING in unwrapped(source.weight_names, [EMBEDDING]).values()
        return config | {"model_type": "sedd"} if is_sedd else config

    def own_tokenizer(self, source: CheckpointSource) -> Any:
        if source.is_local:
            return read_tokenizer(source.folder, plain=True)  # transformers knows none of these names
        return read_tokenizer(source.folder if model_type(source.config) == "sedd" and source.run is None else GPT2)

    def build(self, config: dict[str, Any], dtype: str, tokenizer: Any, name: str = "") -> RaddLM | SeddLM:
        if is_text_tokenizer(tokenizer) and len(tokenizer) > config["tokens"]:
            raise ValueError(
                f"the tokenizer has {len(tokenizer)} tokens and the model {name or 'of this configuration'} "
                f"{config['tokens']}; they do not belong together, so give the checkpoint with its own tokenizer"
            )
        if model_type(config) == "sedd":
            return SeddLM(SEDD(config), self.noise(config), dtype, tokenizer, name)
        return RaddLM(RADD(config), dtype, tokenizer, name)

    def load(
        self, source: CheckpointSource, config: dict[str, Any], tokenizer: Any, dtype: str, device: torch.device
    ) -> RaddLM | SeddLM:
        # The weights of a run first, so that the rest of its file is freed before the model is made.
        averaged = None if source.run is None else self.run_weights(source, config)
        with source.described():
            model = self.build(config, dtype, tokenizer, source.name)
        state = self.file_weights(source) if averaged is None else averaged
        fill(model.backbone, state, named_with_files(source))
        return model

    def file_weights(self, source: CheckpointSource) -> dict[str, Tensor]:
        """Return the weights of a checkpoint that is not a run."""
        return source.weights([EMBEDDING])


def named_with_files(source: CheckpointSource) -> str:
    """Name the checkpoint and its first weight files, for messages."""
    if source.run is not None:
        return source.name
    return f"{source.name} ({' and '.join(file.name for file in source.files[:2])})"


NESTED = Nested()
