"""Decoders that revise, through the entrances of Python; and what is refused, in one sentence, before any work."""

import pytest
import torch

import unmask
from dlm.token_rule import TokenRule
from samplers.editing import WINO, Edit
from samplers.revision import ReMDM
from samplers.settings import SamplerSettings
from tests.enumerable import random_sedd
from unmask.decoders import build_reviser, build_step_decoder


@pytest.fixture(scope="module")
def model():
    return unmask.load("example/chain", device="cpu")


def test_sampling_by_a_name_and_by_an_object_gives_the_same_text(model):
    settings = {"length": 24, "num_samples": 2, "seed": 3}
    named = unmask.sample(model, strategy="remdm", steps=6, remdm={"schedule": "loop", "eta": 0.1}, **settings)
    own = unmask.sample(model, strategy=ReMDM(TokenRule(), "loop", 0.1), steps=6, **settings)
    assert named.texts == own.texts and torch.equal(named.nfe, own.nfe)
    named = unmask.sample(model, strategy="wino", temperature=0, wino={"threshold": 0.4}, **settings)
    own = unmask.sample(model, strategy=WINO(TokenRule(0.0), 0.4), **settings)
    assert named.texts == own.texts and not (own.tokens == model.mask_id).any()


def test_a_stream_shows_positions_that_are_open_again(model):
    steps = list(
        unmask.stream(model, strategy="remdm", steps=8, length=24, remdm={"schedule": "rescale", "eta": 0.9}, seed=1)
    )
    opened = [int(step.open.sum()) for step in steps]
    closed = [set((~step.open[0]).nonzero().flatten().tolist()) for step in steps]
    assert len(opened) == 8 and opened[-1] == 0
    assert any(before - after for before, after in zip(closed, closed[1:], strict=False))


def test_an_evaluation_compares_them(model, tmp_path):
    strategies = {"own": Edit(TokenRule(0.0), 0.9, 1.0), "wino": SamplerSettings(strategy="wino", temperature=0.0)}
    found = unmask.evaluate(model, strategy=strategies, n_test=4, answer_length=24, run_dir=tmp_path)
    rows = {row["name"]: row for row in found.rows}
    assert rows["own"]["accuracy_mean"] == 1 and rows["wino"]["evaluations_mean"] < rows["own"]["evaluations_mean"]
    (compared,) = unmask.compare(tmp_path / "own_chain_seed42", tmp_path / "wino_chain_seed42")
    assert compared["dataset"] == "chain"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"strategy": "edit", "cache": "dual", "block_length": 4}, "keeps the keys of earlier blocks, which strategy 'edit'"),
        ({"strategy": "wino", "guidance": 1.0}, "leave sampler.guidance=1.0 out, or use edit"),
        ({"strategy": "informed", "budget": 4}, "several evaluations in a step, which sampler.budget=4 cannot end"),
        ({"strategy": "informed", "guidance": 1.0}, "sampler.guidance=1.0 does not mix"),
        ({"strategy": "remdm", "alpha": 1.0}, "alpha=1.0 is read by policies"),
        ({"strategy": "remdm", "confidence": "sampling"}, "and remdm reads none"),
        ({"strategy": "remdm", "remdm": {"schedule": "loop", "eta": 0.5}}, "must be from 0 to 0.1111"),
        ({"strategy": "p2", "budget": 3, "p2": {"reads": "quality"}, "quality": {"source": "leave_out"}}, "budget=3 cannot end"),
        ({"strategy": "prism", "quality": {"source": "head"}}, "source=head needs sampler.quality.path"),
    ],
)  # fmt: skip
def test_settings_that_do_not_fit_are_refused(model, settings, message):
    with pytest.raises(ValueError, match=message):
        build_reviser(SamplerSettings.of(settings), model)


def test_models_that_cannot_revise_are_refused():
    causal = unmask.load("example/stories_causal", device="cpu")
    with pytest.raises(ValueError, match="strategy 'remdm' needs a masked model and this one is causal; use leftmost"):
        build_step_decoder(SamplerSettings(strategy="remdm"), causal)
    with pytest.raises(ValueError, match="revision changes tokens that others were predicted from"):
        unmask.sample(causal, strategy=ReMDM(TokenRule()), length=8)
    with pytest.raises(ValueError, match="'wino' needs RADD, MDLM or LLaDA"):
        build_step_decoder(SamplerSettings(strategy="wino"), random_sedd())


def test_settings_of_another_strategy_are_refused(model):
    with pytest.raises(ValueError, match="edit.rounds would do nothing with strategy=remdm; leave it out"):
        unmask.sample(model, strategy="remdm", edit={"rounds": 2}, length=12)
    with pytest.raises(ValueError, match="would do nothing with sampler.prism.form=count"):
        unmask.sample(model, strategy="prism", prism={"eta": 0.2}, length=12)
    with pytest.raises(
        ValueError, match="'p2' revises tokens, and here a rule that commits each position once is needed"
    ):
        unmask.decoders.build_rule_decoder(SamplerSettings(strategy="p2"), model)
