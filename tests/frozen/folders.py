"""Tiny models, policies, rewards and twists on disk, whose weights come from nothing that the project may move.

`models.json` holds the files of each folder: configuration, tokenizer, and the name, shape, mean and standard deviation of each
tensor. The numbers are drawn by numpy's `RandomState`, whose stream is guaranteed not to change, and rounded to 3 decimals.
Files are written by json and safetensors alone, so loading them also pins the layouts of checkpoints.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from safetensors.numpy import save_file

HERE = Path(__file__).parent
SPECIAL = {
    "backend": "tokenizers",
    "eos_token": "<end>",
    "pad_token": "<end>",
    "tokenizer_class": "PreTrainedTokenizerFast",
}


def weights(folder: str, tensors: dict[str, dict[str, Any]]) -> dict[str, np.ndarray]:
    """The tensors of a folder, float32; each depends on its own name, the folder's, and its entry of `models.json` alone."""
    drawn = {}
    for name, entry in tensors.items():
        if "values" in entry:  # rotary frequencies
            drawn[name] = np.array(entry["values"], dtype=np.float32)
        else:
            normal = np.random.RandomState(crc32(f"{folder}/{name}".encode())).standard_normal(tuple(entry["shape"]))
            drawn[name] = np.asarray(np.round(entry["mean"] + entry["std"] * normal, 3), dtype=np.float32)
    return drawn


def placed(value: Any, root: Path) -> Any:
    """A value of a configuration with `@NAME` replaced by the path of that folder."""
    if isinstance(value, dict):
        return {key: placed(inner, root) for key, inner in value.items()}
    return str(root / value[1:]) if isinstance(value, str) and value.startswith("@") else value


def write_folders(root: Path) -> None:
    """Write every folder of `models.json` under `root`."""
    described = json.loads((HERE / "models.json").read_text(encoding="utf-8"))
    for name, entry in described["folders"].items():
        weights_file = root / name / entry["weights"]
        weights_file.parent.mkdir(parents=True)
        save_file(weights(name, entry["tensors"]), weights_file, {"format": "pt"})
        texts = {file: placed(content, root) for file, content in entry["files"].items()}
        if entry["tokenizer"] is not None:
            mask = {"mask_token": "<mask>"} if entry["tokenizer"] == "with_mask" else {}
            texts |= {
                "tokenizer.json": described["tokenizers"][entry["tokenizer"]],
                "tokenizer_config.json": SPECIAL | mask,
            }
        for file, content in texts.items():
            (root / name / file).write_text(json.dumps(content), encoding="utf-8")
