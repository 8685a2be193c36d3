"""Arguments of the Python API that cannot be used, or would do nothing, are refused in one sentence."""

import numpy as np
import pytest
import torch

import unmask
from dlm.token_rule import TokenRule
from policy.checkpoints import bind
from policy.networks import DitConfidence
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import Leftmost
from samplers.loop import Strategy
from tests.enumerable import RandomLM
from unmask.__main__ import main

MODEL = RandomLM(5, max_length=8)
sample = unmask.sample.__wrapped__  # without the check of types under pytest


def lengths(texts):
    return [float(len(text)) for text in texts]


@pytest.fixture(scope="module")
def stories():
    return unmask.load("example/stories", device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompts": [[]]}, r"the prompt \[\] has no token ids"),
        (
            {"prompts": [99]},
            r"the prompt \[99\] has 99, which is no token id; every token id is a whole number of at least 0",
        ),
        ({"prompts": [-1, 3]}, "has -1, which is no token id"),
        ({"prompts": [[1, 1.5]]}, "has 1.5, which is no token id"),
        ({"prompts": [1.5, 3]}, "the prompt 1.5 of type float must be a text, token ids or chat messages"),
        ({"prompts": 5}, "prompts=5 of type int must be a text"),
        ({"prompts": {"role": "user", "content": "x"}}, "prompts=.* of type dict must be a text"),
        ({"prompts": [{"role": "user"}]}, "the chat message {'role': 'user'} must have the keys"),
        ({"num_samples": 0}, "num_samples=0 must be a whole number of at least 1"),
        ({"num_samples": -1}, "num_samples=-1 must be"),
        ({"batch_size": 0}, "batch_size=0 must be a whole number of at least 1"),
        ({"seed": "x"}, "seed='x' must be a whole number"),
        ({"seed": None}, "seed=None must be a whole number"),
        ({"seed": 1.5}, "seed=1.5 must be a whole number"),
        ({"length": "8"}, "length='8' must be a whole number"),
        ({"length": 7.5}, "length=7.5 must be a whole number"),
        ({"template": ["[MASK:3]"]}, r"template=\['\[MASK:3\]'\] must be text"),
        ({"on_step": 3}, "on_step=3 cannot be called"),
    ],
)
def test_an_argument_outside_its_range_is_one_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        sample(MODEL, **{"steps": 2, "length": 8, **arguments})


def test_token_ids_are_a_tensor_an_array_or_a_list():
    expected = unmask.sample(MODEL, [1, 2], steps=2, length=8).tokens.tolist()
    for prompts in (
        torch.tensor([1, 2]),
        torch.tensor([[1, 2]]),
        np.array([1, 2]),
        [np.int64(1), np.int64(2)],
        [torch.tensor([1, 2])],
    ):
        assert sample(MODEL, prompts, steps=2, length=8).tokens.tolist() == expected


def test_a_stream_takes_no_function_of_steps():
    with pytest.raises(ValueError, match="on_step would replace the steps that stream yields"):
        next(unmask.stream(MODEL, on_step=print))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "confidence", "reward": lengths}, "reward would do nothing with strategy=confidence"),
        ({"strategy": "top_k", "reward": lengths}, "reward would do nothing with strategy=top_k"),
        ({"reward": lengths}, "reward would do nothing with strategy=direct"),
        (
            {"strategy": "threshold", "window": 3, "steps": None},
            "window would do nothing with strategy=threshold; .*use strategy=window",
        ),
        ({"strategy": "confidence", "threshold": 0.2}, "threshold would do nothing with strategy=confidence"),
        (
            {"strategy": "confidence", "guide": {"samples": 3}},
            "guide.samples would do nothing with strategy=confidence",
        ),
        (
            {"strategy": "confidence", "smc": {"particles": 3}},
            "smc.particles would do nothing with strategy=confidence",
        ),
        ({"strategy": "confidence", "policy": {"beta": 2.0}}, "policy.beta would do nothing with strategy=confidence"),
        (
            {"strategy": unmask.SamplerSettings(strategy="threshold"), "window": 3, "steps": None},
            "window would do nothing with strategy=thr",
        ),
        ({"strategy": Leftmost(), "threshold": 0.2}, r"threshold would do nothing with strategy=Leftmost\(...\)"),
        ({"strategy": Leftmost(), "reward": lengths}, r"reward would do nothing with strategy=Leftmost\(...\)"),
        (
            {"strategy": Strategy(Leftmost(), TokenRule()), "temperature": 0.5},
            r"temperature would do nothing with strategy=Str",
        ),
        ({"strategy": DitConfidence(), "window": 3}, "window would do nothing with strategy=policy"),
        ({"strategy": DitConfidence(), "policy": {"path": "x"}}, "policy.path would do nothing with a policy"),
        (
            {"strategy": "best_of_n", "reward": lengths, "guide": {"reward": "vader"}},
            "reward and guide.reward=vader name two rewards",
        ),
    ],
)
def test_an_argument_that_would_do_nothing_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        given = {"steps": 2, "length": 8, **arguments}
        sample(MODEL, **{name: value for name, value in given.items() if value is not None})


def test_a_causal_model_takes_no_steps():
    causal = RandomLM(5, causal=True, max_length=8)
    assert unmask.sample(causal, length=8).nfe.tolist() == [8]
    with pytest.raises(ValueError, match="steps would do nothing with a causal model"):
        unmask.sample(causal, length=8, steps=2)


def test_an_object_reads_the_settings_of_its_kind():
    rule = unmask.sample(MODEL, strategy=Leftmost(), steps=2, length=8, temperature=0.0)
    assert (
        rule.tokens.tolist()
        == unmask.sample(MODEL, strategy="leftmost", steps=2, length=8, temperature=0.0).tokens.tolist()
    )
    assert unmask.sample(MODEL, strategy=Strategy(Leftmost(), TokenRule()), steps=2, length=8).nfe.tolist() == [2]


@pytest.mark.parametrize(
    ("returned", "message"),
    [
        (None, "the reward own returned None of type NoneType for 3 texts; return a list or a tensor"),
        (["a", "b", "c"], r"the reward own returned \['a', 'b', 'c'\] of type list for 3 texts"),
        ((value for value in (1.0, 2.0, 3.0)), "the reward own returned .* of type generator for 3 texts"),
        ([0.0, float("nan"), 0.0], "the reward own returned nan for the text .*; return a finite number"),
    ],
)
def test_a_reward_that_returns_no_numbers_is_one_sentence(stories, returned, message):
    def own(texts):
        return returned

    with pytest.raises(ValueError, match=message):
        sample(stories, "The dog", strategy="best_of_n", reward=own, guide={"samples": 3}, steps=2, length=10)


@pytest.mark.parametrize(
    ("strategy", "reward", "message"),
    [
        ("best_of_n", object(), "reward=.* of type object has no `score_texts` and cannot be called"),
        ("pargs", lengths, "rows and lengths is of kind 'full'"),
        ("value_head", lengths, "reads a vocabulary head and lengths is a reward of texts"),
        ("best_of_n", None, r"needs a reward; give a name, a run or a hub id \(--reward, reward=\)"),
    ],
)
def test_an_object_that_is_no_reward_of_a_strategy_is_one_sentence(stories, strategy, reward, message):
    with pytest.raises(ValueError, match=message):
        sample(stories, "The dog", strategy=strategy, reward=reward, steps=2, length=10)


def test_settings_take_dictionaries_and_refuse_unknown_strategies():
    made = unmask.SamplerSettings.__init__.__wrapped__  # without the check of types under pytest
    settings = object.__new__(unmask.SamplerSettings)
    made(settings, strategy="best_of_n", guide={"samples": 2})
    assert settings == unmask.SamplerSettings.of({"strategy": "best_of_n", "guide": {"samples": 2}})
    with pytest.raises(ValueError, match="strategy 'zz' is unknown"):
        unmask.SamplerSettings(strategy="zz")
    with pytest.raises(ValueError, match=r"sampler.guide.smaples is unknown; did you mean sampler.guide.samples\?"):
        made(settings, guide={"smaples": 2})
    with pytest.raises(ValueError, match="sampler.smc=3 takes the place of several keys"):
        made(settings, smc=3)


def test_a_policy_is_refused_by_another_model_than_its_own(stories, capsys):
    policy = DitConfidence().eval()
    bind(policy, stories)
    quick = {"steps": 2, "length": 8}
    assert unmask.sample(stories, strategy=policy, **quick).nfe.tolist() == [2]
    other = unmask.load("example/chain", device="cpu")
    for strategy in (policy, PolicyUnmasker(policy, "fixed"), Strategy(PolicyUnmasker(policy, "fixed"), TokenRule())):
        with pytest.raises(
            ValueError, match="the policy DitConfidence was trained on example/stories, and example/chain has"
        ):
            unmask.sample(other, strategy=strategy, **quick)
        unmask.sample(other, strategy=strategy, policy={"other_model": True}, **quick)
    assert "was trained on example/stories" in capsys.readouterr().err


class Sums:
    """Prompts whose checker returns one value."""

    def __init__(self, verdict):
        self.verdict = verdict

    def __iter__(self):
        return iter(("3 A +3 B ?", "2 A +3 B ?"))

    def check(self, prompt, answer):
        return self.verdict


def test_a_verdict_is_a_number_of_python_or_numpy(tmp_path):
    chain = unmask.load("example/chain", device="cpu")
    for number, (found, accuracy) in enumerate(((np.bool_(True), 1.0), (np.float32(0.0), 0.0))):
        out = unmask.evaluate(chain, dataset=Sums(found), answer_length=8, run_dir=tmp_path / str(number))
        assert out.rows[0]["accuracy_mean"] == accuracy
    for found in (float("nan"), np.float64("inf"), "yes"):
        with pytest.raises(
            ValueError, match="`check` of the task Sums returned .*; return True, False or a finite number"
        ):
            unmask.evaluate(chain, dataset=Sums(found), answer_length=8, run_dir=tmp_path / f"run_{found}")


def test_an_evaluation_refuses_a_wrong_model_policy_and_data_set(stories, tmp_path):
    chain = unmask.load("example/chain", device="cpu")
    policy = DitConfidence().eval()
    bind(policy, stories)
    for strategy in (policy, PolicyUnmasker(policy, "fixed")):
        with pytest.raises(ValueError, match="the policy DitConfidence was trained on example/stories"):
            unmask.evaluate(chain, strategy=strategy, run_dir=tmp_path / "a")
    with pytest.raises(ValueError, match="model=example/chain is of type str; give a model"):
        unmask.evaluate.__wrapped__("example/chain", run_dir=tmp_path / "b")
    with pytest.raises(ValueError, match="a=1 of type int is no evaluation; give one, or a directory"):
        unmask.compare.__wrapped__(1, 2)
    with pytest.raises(ValueError, match="texts has 1 of type int; every text must be a str"):
        unmask.metrics.__wrapped__([1])


def test_messages_name_what_is_wrong(tmp_path, capsys):
    with pytest.raises(ValueError, match="dtype=float7 must be one of float32, bfloat16, float16"):
        unmask.load("example/stories", dtype="float7")
    with pytest.raises(ValueError, match="the tokenizer of the model RandomLM cannot be loaded"):
        unmask.sample(MODEL, "The dog")
    page = unmask.sample(MODEL, steps=2).save_replay(tmp_path / "new" / "page.html")
    assert page.is_file()
    with pytest.raises(SystemExit):
        main(["--hepl"])
    assert "did you mean --help?" in capsys.readouterr().err
