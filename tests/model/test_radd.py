"""RADD: parity with the published implementation, the published keys and sizes, and reading at some positions only."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import model.radd
from model.radd import RADD, Block
from tests.enumerable import random_radd

VECTORS = Path(__file__).parents[1] / "vectors" / "radd-tiny"


def published(hidden_size, n_blocks, n_heads):
    return {
        "tokens": 50257,
        "model": {"hidden_size": hidden_size, "n_blocks": n_blocks, "n_heads": n_heads, "length": 1024},
    }


@pytest.fixture(scope="module")
def tiny():
    network = RADD(json.loads((VECTORS / "config.json").read_text()))
    network.load_state_dict(load_file(VECTORS / "model.safetensors"))
    return network.eval()


@pytest.fixture(scope="module")
def expected():
    return load_file(VECTORS / "expected.safetensors")


@pytest.mark.parametrize("gradients", [False, True], ids=["inference", "training"])
def test_logits_are_those_of_the_published_implementation(tiny, expected, gradients):
    with torch.set_grad_enabled(gradients):
        logits = tiny(expected["tokens"]).detach()
    assert (logits - expected["logits"]).abs().max() < 1e-4
    log_probs = logits[..., :-1].log_softmax(-1)
    assert (log_probs - expected["log_probs"][..., :-1]).abs().max() < 1e-4
    assert (
        logits[..., -1] - expected["log_probs"][..., -1]
    ).abs().max() < 1e-4  # published: the mask's logit stays raw


@pytest.mark.parametrize(
    "shape, tensors, parameters",
    [((768, 12, 12), 126, 162_265_682), ((1024, 24, 16), 246, 405_191_762)],
    ids=["small", "medium"],
)
def test_the_published_sizes(shape, tensors, parameters):
    with torch.device("meta"):
        network = RADD(published(*shape))
    state = network.state_dict()
    assert len(state) == tensors
    assert sum(p.numel() for p in network.parameters()) == parameters
    width = shape[0]
    assert state["vocab_embed.embedding"].shape == state["output_layer.linear.weight"].shape == (50258, width)
    assert state["blocks.0.attn_qkv.weight"].shape == (3 * width, width)
    assert state["blocks.0.mlp.0.weight"].shape == (4 * width, width)
    assert state["rotary_emb.inv_freq"].shape == (32,)
    assert {name.split(".", 2)[2] for name in state if name.startswith("blocks.3.")} == {
        "norm1.weight", "norm1.bias", "attn_qkv.weight", "attn_out.weight", "norm2.weight", "norm2.bias",
        "mlp.0.weight", "mlp.0.bias", "mlp.2.weight", "mlp.2.bias",
    }  # fmt: skip


def test_the_vectors_have_the_published_names(tiny):
    with torch.device("meta"):
        small = RADD(published(768, 12, 12))
    names = {name for name in small.state_dict() if not name.startswith("blocks.") or int(name.split(".")[1]) < 2}
    assert load_file(VECTORS / "model.safetensors").keys() == tiny.state_dict().keys() == names


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 1.0])
def test_reading_some_positions_equals_reading_all(share):
    network, generator = random_radd(blocks=3).backbone, torch.Generator().manual_seed(0)
    tokens = torch.randint(12, (6, 70), generator=generator)
    read = torch.rand(6, 70, generator=generator) < share
    read[2] = False
    read[0, 69] = True
    with torch.no_grad():
        everywhere = network.body(tokens)
        assert (network.body(tokens, read) - everywhere[read]).abs().max() < 1e-5
        assert torch.allclose(network(tokens), network.head(everywhere))
    with torch.enable_grad():
        assert (network.body(tokens, read) - everywhere[read]).abs().max() < 1e-4


def test_the_last_block_runs_at_the_positions_read_where_they_are_few(monkeypatch):
    network = random_radd(blocks=3).backbone
    widths, at = [], Block.at
    monkeypatch.setattr(
        Block, "at", lambda self, x, cos, sin, index: (widths.append(index.shape[1]), at(self, x, cos, sin, index))[1]
    )
    tokens = torch.zeros(2, 70, dtype=torch.long)
    for count, width in ((1, 16), (16, 16), (17, 32), (60, 64)):
        widths.clear()
        read = torch.arange(70).expand(2, -1) >= 70 - count
        assert len(network.body(tokens, read)) == 2 * count
        assert widths == [width]  # the last of three blocks, padded to a multiple of 16
    widths.clear()
    network.body(tokens, torch.ones(2, 70, dtype=torch.bool))
    assert widths == []
    assert network.body(tokens, torch.zeros(2, 70, dtype=torch.bool)).shape == (0, 64)


def test_the_gradient_reaches_every_parameter_through_the_positions_read():
    network = random_radd(length=70, learned_positions=True).backbone.requires_grad_(True)
    read = torch.zeros(2, 70, dtype=torch.bool)
    read[:, 5] = True
    network.head(network.body(torch.randint(12, (2, 70)), read)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_positions_are_told_apart_by_distance_alone_unless_learned():
    """Rotary embeddings on a wholly masked canvas: equal everywhere. Learned positions break the tie."""
    tokens = torch.full((1, 24), 11)
    with torch.no_grad():
        plain, learned = (
            random_radd(length=24, **more).backbone(tokens)[0] for more in ({}, {"learned_positions": True})
        )
    assert (plain - plain[0]).abs().max() < 1e-5
    assert (learned - learned[0]).abs().max() > 1e-2


def test_dropout_acts_in_training_only():
    network, tokens = random_radd(dropout=0.5).backbone, torch.randint(12, (2, 20))
    assert torch.equal(network(tokens), network(tokens))
    network.train()
    assert not torch.equal(network(tokens), network(tokens))


def test_a_new_network_predicts_every_token_equally():
    logits = RADD({"tokens": 5, "model": {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "length": 8}})(
        torch.randint(6, (2, 8))
    )
    assert torch.equal(logits, torch.zeros_like(logits))


def test_a_width_that_the_heads_do_not_divide_is_refused():
    with pytest.raises(ValueError, match="model.hidden_size=20 must be an even multiple of model.n_heads=3"):
        RADD({"tokens": 5, "model": {"hidden_size": 20, "n_blocks": 1, "n_heads": 3, "length": 8}})


def test_the_padding_is_what_bit_equality_was_measured_with():
    assert model.radd.READ_MULTIPLE == 16
