"""The interface of a family of checkpoints: recognise a config.json, build the network, load the weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dlm.checkpoints.source import CheckpointSource
from dlm.checkpoints.tokenizers import board_tokenizer, read_tokenizer
from dlm.masked_lm import MaskedLM
from dlm.noise import Noise, build_noise

GPT2 = "gpt2"  # the tokenizer of RADD, SEDD and MDLM, whose repositories hold none


def model_type(config: dict[str, Any]) -> str:
    """Return the family's name in a config.json. RADD and SEDD publish theirs without one."""
    return config.get("model_type", "radd")


class Family:
    """One family of checkpoints: an entry of the table in `dlm/checkpoints/table.py`.

    name: `model_type` of its config.json, if it is one name; words: lower-case words that identify the family in the path
    of a remote checkpoint; is_causal: its models predict from left to right.
    """

    name = ""
    words: tuple[str, ...] = ()
    is_causal = False

    def recognises(self, config: dict[str, Any]) -> bool:
        """Return whether config.json describes a model of this family."""
        raise NotImplementedError

    def config(self, source: CheckpointSource) -> dict[str, Any]:
        """Return config.json, completed by facts that only the weights show. ValueError if something is missing."""
        return source.config

    def noise(self, config: dict[str, Any]) -> Noise:
        """Return the noise schedule of the model's training; a causal model has none."""
        return build_noise(config.get("noise", {"type": "loglinear"}))

    def tokenizer(self, source: CheckpointSource) -> Any:
        """Return the tokenizer; None if there is none, or if the hub cannot be reached."""
        with source.described():
            board = board_tokenizer(source.config)
        return self.own_tokenizer(source) if board is None else board

    def own_tokenizer(self, source: CheckpointSource) -> Any:
        """Read the tokenizer from files, for checkpoints whose canvas is not a board."""
        return read_tokenizer(source.folder)

    def build(self, config: dict[str, Any], dtype: str, tokenizer: Any, name: str = "") -> MaskedLM:
        """Build a new, untrained model. dtype: of the computation; name: of its checkpoint."""
        raise NotImplementedError

    def load(
        self, source: CheckpointSource, config: dict[str, Any], tokenizer: Any, dtype: str, device: torch.device
    ) -> MaskedLM:
        """Load the model with the weights of its checkpoint, or the averaged weights of its run.

        Raises:
            ValueError: the weights are missing, damaged, or do not fit config.json.
        """
        raise NotImplementedError

    def run_weights(self, source: CheckpointSource, config: dict[str, Any]) -> dict[str, Tensor]:
        """Return the averaged weights of a run, under the names of the model."""
        with torch.device("meta"):
            template = self.build(config, "float32", None).backbone
        return source.averaged_weights(template)
