"""SEDD: parity with the published implementation, the published keys and sizes, and reading at some positions only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from load_model import load_model
from model.sedd import SEDD

VECTORS = Path(__file__).parents[1] / "vectors" / "sedd-tiny"


def published(hidden_size, n_blocks, n_heads):
    shape = {"hidden_size": hidden_size, "n_blocks": n_blocks, "n_heads": n_heads, "cond_dim": 128, "length": 1024}
    return {"tokens": 50257, "graph": {"type": "absorb"}, "model": shape | {"scale_by_sigma": True}}


@pytest.fixture(scope="module")
def tiny():
    return load_model(VECTORS)[0]


@pytest.fixture(scope="module")
def expected():
    return load_file(VECTORS / "expected.safetensors")


def test_log_scores_are_those_of_the_published_implementation(tiny, expected):
    scores = tiny.backbone(expected["tokens"], expected["sigma"])
    assert (scores - expected["log_score"]).abs().max() < 1e-4
    assert bool((scores.gather(-1, expected["tokens"].unsqueeze(-1)) == 0).all())


def test_at_masks_the_normalised_score_is_the_prediction(tiny, expected):
    masked = expected["tokens"] == tiny.mask_id
    known = expected["log_score"][masked][:, :-1].log_softmax(-1)
    log_probs = tiny.log_probs(expected["tokens"], expected["sigma"])[masked]
    assert (log_probs[:, :-1] - known).abs().max() < 1e-4
    assert bool((log_probs[:, -1] == -torch.inf).all())


@pytest.mark.parametrize(
    "shape, tensors, parameters",
    [((768, 12, 12), 131, 169_627_218), ((1024, 24, 16), 251, 424_477_010)],
    ids=["small", "medium"],
)
def test_the_published_sizes(shape, tensors, parameters):
    with torch.device("meta"):
        network = SEDD(published(*shape))
    assert len(network.state_dict()) == tensors
    assert sum(p.numel() for p in network.parameters()) == parameters
    with torch.device("meta"):
        keys = {name.replace(".0.", ".N.").replace(".1.", ".N.") for name in network.state_dict()}
    own = json.loads((VECTORS / "config.json").read_text())
    assert {n.replace(".0.", ".N.").replace(".1.", ".N.") for n in SEDD(own).state_dict()} <= keys


@pytest.mark.parametrize("read", [[0], [0, 1], [5, 6, 23], list(range(24))], ids=str)
def test_reading_some_positions_is_reading_all_and_taking_those(tiny, expected, read):
    tokens, sigma = expected["tokens"], expected["sigma"]
    everywhere = tiny.hidden(tokens, torch.ones_like(tokens, dtype=torch.bool), sigma).view(*tokens.shape, -1)
    positions = torch.zeros_like(tokens, dtype=torch.bool)
    positions[1, read] = True
    positions[2, read[:1]] = True
    assert torch.allclose(tiny.hidden(tokens, positions, sigma), everywhere[positions], atol=1e-5)


def test_the_sigma_of_a_canvas_is_that_of_its_masked_share(tiny, expected):
    tokens = expected["tokens"]
    share = (tokens == tiny.mask_id).double().mean(1)
    sigma = -torch.log1p(-share).float()
    assert torch.equal(tiny.log_probs(tokens), tiny.log_probs(tokens, sigma))
    assert not torch.allclose(tiny.log_probs(tokens), tiny.log_probs(tokens, 2 * sigma))
    full = torch.full((1, 24), tiny.mask_id)
    most = tiny.noise(torch.tensor([1.0]))[0]
    assert torch.equal(tiny.log_probs(full), tiny.log_probs(full, most))


@pytest.mark.parametrize("sigma", [-0.1, 7.5, 1000.0])
def test_sigma_outside_the_schedule_is_refused(tiny, expected, sigma):
    with pytest.raises(ValueError, match="outside the schedule, which goes from 0 to 6.908"):
        tiny.log_probs(expected["tokens"], torch.full((3,), sigma))
