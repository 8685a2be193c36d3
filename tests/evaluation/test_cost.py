"""Equivalent evaluations count everything that runs: the model where it is read, its head, and the policy."""

from dataclasses import replace

import pytest
import torch

from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import RaddLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.cost import equivalent_evaluations, evaluation_flop, flop_of
from model.radd import RADD
from policy.networks import DitConfidence, HiddenBlocks
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import Threshold
from samplers.loop import Strategy

WIDTH, BLOCKS, LENGTH, TOKENS = 16, 2, 48, 7


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "n_blocks": BLOCKS, "n_heads": 2, "length": LENGTH, "dropout": 0.0}
    network = RADD({"tokens": TOKENS, "model": shape})
    torch.nn.init.normal_(network.output_layer.linear.weight)
    return RaddLM(network).eval()


def by_hand(positions: int) -> int:
    """2 * (products of one block) * blocks + head, at every position; attention is two products of [position, position]."""
    linear = 12 * WIDTH * WIDTH
    attention = 2 * positions * WIDTH
    return 2 * positions * (BLOCKS * (linear + attention) + WIDTH * (TOKENS + 1))


def test_one_evaluation_is_counted_as_by_hand(model):
    assert evaluation_flop(model, LENGTH) == by_hand(LENGTH)


def decoding(model, rule):
    canvas = torch.full((5, LENGTH), model.mask_id)
    canvas[:, ::3] = torch.arange(5)[:, None]
    decode = lambda prompts: Strategy(rule, TokenRule(0.0)).decode(model, prompts, DecodeOptions(LENGTH))
    return Prompts(canvas), decode


def test_a_rule_costs_at_most_its_evaluations(model):
    prompts, decode = decoding(model, Threshold(0.3))
    nfe = float(decode(prompts).evaluations.double().mean())
    assert 0.5 * nfe < equivalent_evaluations(model, decode, prompts) <= nfe


def test_a_policy_is_counted(model):
    """HiddenBlocks of two blocks doubles what runs, DitConfidence of width 128 is far larger than this model."""
    torch.manual_seed(0)
    copies = HiddenBlocks(WIDTH, 2, num_blocks=2, smart_init=20.0)
    copies.start_from(model.backbone)
    for network in (copies, DitConfidence(smart_init=20.0)):
        rule = PolicyUnmasker(network, "threshold", threshold=0.5)
        prompts, learned = decoding(model, rule)
        samples = learned(prompts)
        assert samples.evaluations.tolist() == [1] * 5  # everything at once
        observed = equivalent_evaluations(model, learned, prompts)
        read = network.inputs(UnmaskingEnvironment(model, DecodeOptions(LENGTH)).reset(prompts))
        _, alone = flop_of(lambda network=network, read=read: network.scores(**read))
        plain = equivalent_evaluations(model, decoding(model, Threshold(0.0))[1], prompts)
        assert observed >= plain + 0.99 * alone / (5 * by_hand(LENGTH))


def test_rows_behind_padding_are_measured_by_their_own_length(model):
    prompts, decode = decoding(model, Threshold(0.3))
    start = torch.tensor([0, 16, 16, 32, 32])
    whole = equivalent_evaluations(model, decode, prompts)
    lengths = [LENGTH, LENGTH - 16, LENGTH - 16, LENGTH - 32, LENGTH - 32]
    expected = whole * 5 * by_hand(LENGTH) / sum(by_hand(length) for length in lengths)
    whole_rows = lambda padded: decode(replace(padded, start=None))  # the same work, of rows that are called shorter
    assert equivalent_evaluations(model, whole_rows, replace(prompts, start=start)) == pytest.approx(expected)


def test_cpu_seconds_are_of_the_decoding(model):
    prompts, decode = decoding(model, Threshold(0.3))
    samples = decode(prompts)
    assert samples.cpu_seconds > 0
    assert samples.take(torch.tensor([0])).cpu_seconds == samples.cpu_seconds
