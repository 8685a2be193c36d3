"""The table of checkpoint families, in the order in which they are tried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dlm.checkpoints.adapter import ADAPTER
from dlm.checkpoints.causal import CAUSAL
from dlm.checkpoints.family import Family, model_type
from dlm.checkpoints.files import read_config
from dlm.checkpoints.llama import DREAM, LLADA
from dlm.checkpoints.mdlm import MDLM
from dlm.checkpoints.nested import NESTED
from dlm.checkpoints.source import resolve
from dlm.masked_lm import MaskedLM
from dlm.noise import Noise

FAMILIES: tuple[Family, ...] = (ADAPTER, LLADA, DREAM, MDLM, NESTED, CAUSAL)


def family_of(config: dict[str, Any]) -> Family:
    """Return the family of a config.json."""
    return next(family for family in FAMILIES if family.recognises(config))


def is_causal(path: str) -> bool:
    """Return whether a checkpoint is a causal model of transformers, by its config.json."""
    return family_of(resolve(path).config).is_causal


def type_by_name(path: str) -> str | None:
    """Return `model_type` of a checkpoint: from config.json if it is local, else from its name. None: unknown."""
    if (Path(path) / "config.json").is_file():
        return model_type(read_config(path))
    name = Path(path).name.lower()
    return next((family.name for family in FAMILIES for word in family.words if word in name), None)


def build_model(config: dict[str, Any], dtype: str, tokenizer: Any) -> tuple[MaskedLM, Noise | None]:
    """Build a new, untrained model from a configuration in the layout of config.json.

    Returns:
        The model and its noise schedule; None for a causal model.
    """
    family = family_of(config)
    return family.build(config, dtype, tokenizer), None if family.is_causal else family.noise(config)
