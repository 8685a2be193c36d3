"""The benchmark of blocks: its plain loops are the published ones, ours writes their tokens, and is faster at a small size too."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import blocks, plain_blocks
from load_model import load_model

TINY = Path(__file__).parents[1] / "vectors" / "llada-tiny"
DECODINGS = [case for case in json.loads((TINY / "generate.json").read_text()) if not case["steps"]]
SMALL = blocks.Shape(64, 2, 2, 128, 65_536, prompt=16, length=48, block=16, rows=4, repeats=2)  # costs are the head's
CACHES = ("none", "prefix", "dual")


@pytest.mark.parametrize("cache", CACHES)
def test_the_plain_loops_write_the_published_tokens_in_the_published_number_of_evaluations(cache):
    model, _ = load_model(TINY)
    idle = 0
    for case in (case for case in DECODINGS if case["cache"] == cache):
        canvas = torch.tensor([case["prompt"] + [model.mask_id] * case["gen_length"]])
        settings = (len(case["prompt"]), case["block_length"], case["threshold"], None if cache == "none" else cache)
        decoded = plain_blocks.decode(model, canvas, *settings)
        assert decoded.tokens[0].tolist() == case["tokens"]
        assert decoded.evaluations == case["nfe"]
        idle += decoded.idle
    assert (idle > 0) == (cache != "none")


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_ours_writes_the_same_tokens_in_less_time(cache):
    model = blocks.build(SMALL)
    record = blocks.against_plain(model, SMALL, cache, 0.9)
    assert record["same"] == SMALL.repeats
    assert record["high"] > 1.2  # the better of two: the checks of shapes, on in tests, cost ours more


@pytest.mark.parametrize("cache", [None, "prefix", "dual"])
def test_a_ragged_batch_is_its_rows_and_no_slower(cache):
    record = blocks.against_alone(blocks.build(SMALL), SMALL, cache, 0.9)
    assert record["rows identical"] == 1
    assert record["ratio"] > 0.95


def test_it_runs_and_ends_with_flat_json(capsys, monkeypatch):
    monkeypatch.setattr(blocks, "memory_of_a_fresh_process", blocks.memory)  # a process takes seconds to start
    monkeypatch.setattr(blocks, "LONG", 32)
    sizes = {
        "width": 16,
        "layers": 1,
        "heads": 2,
        "mlp": 16,
        "vocabulary": 50,
        "prompt": 8,
        "length": 16,
        "block": 8,
        "rows": 2,
    }
    blocks.main([word for name, value in sizes.items() for word in (f"--{name}", str(value))] + ["--repeats", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert list(result) == ["speedup_none", "speedup_prefix", "speedup_dual", "ragged_ratio"]
    assert all(value > 0 for value in result.values())
