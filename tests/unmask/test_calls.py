"""Arguments of the training functions as settings of a command: chosen, contradicted, stored, and those of a resumed run."""

import os
import signal

import pytest
import torch
from omegaconf import OmegaConf

import unmask
from tests.policy_runs import assert_equal, record, saved
from training.storage import CHECKSUM
from training.trainer import Trainer
from training.usage import composed
from unmask.calls import words
from unmask.runs import train_dlm, train_policy, train_quality, train_reward, train_rl, train_twist
from unmask.trained import Trained

PROMPTS = ["3 A +3 B ?", "2 A +3 B ?", "1 A +3 B ?"]
COMMANDS = {
    "train_policy": train_policy, "train_rl": train_rl, "train_dlm": train_dlm, "train_reward": train_reward,
    "train_twist": train_twist, "train_quality": train_quality,
}  # fmt: skip
TINY = {
    "train_policy": {
        "training.batch_size": 4, "algorithm.group_size": 2, "eval.batch_size": 2, "sampler.steps": 4,
        "policy": {"hidden_dim": 16, "feedforward_dim": 16, "time_embed_dim": 8},
    },
    "train_rl": {"rl": {"batch_size": 4, "group_size": 2, "num_sigma_samples": 1}, "sampler.steps": 2, "eval.samples": 1,
                 "eval.batch_size": 2},
    "train_dlm": {"training.batch_size": 2, "eval.samples": 1, "data.valid_rows": 4},
    "train_quality": {"training.batch_size": 2, "eval.batch_size": 2, "quality": {"width": 16, "left_out": 0}},
    "train_twist": {"training.batch_size": 4, "posterior.count": 0, "eval.samples": 4, "eval.sweeps": 1,
                    "eval.particles": [2], "eval.texts": 0},
}  # fmt: skip


def few_letters(texts):
    return [-float(len(text)) for text in texts]


class Started(Exception):
    """Raised in place of the work of a command: its configuration, and the objects of the caller."""


@pytest.fixture(scope="module")
def chain():
    return unmask.load("example/chain", device="cpu")


@pytest.fixture
def configured(monkeypatch):
    """A function that returns the configuration with which a training function starts its command."""

    def instead(config, overrides, *objects):
        raise Started(config)

    for command in COMMANDS.values():
        monkeypatch.setattr(command, "run", instead)

    def configuration(name, *arguments, **more):
        with pytest.raises(Started) as started:
            getattr(unmask, name)(*arguments, **more)
        return started.value.args[0]

    return configuration


ARGUMENTS = {
    "train_policy": (
        {"task": "chain", "algorithm": "ppo", "policy": "hidden_mlp", "iterations": 3, "seed": 7},
        {"data.kind": "chain", "algorithm.name": "ppo", "policy.policy_type": "hidden_mlp", "reward.name": "right",
         "training.n_iters": 3, "training.eval_freq": 3, "training.snapshot_freq": 3, "seed": 7,
         "dlm.path": "example/chain"},
    ),
    "train_rl": (
        {"task": PROMPTS, "reward": few_letters, "algorithm": "ppo", "iterations": 3, "answer_length": 8, "seed": 7},
        {"data.kind": "questions", "data.answer_length": 8, "rl.algorithm": "ppo", "training.n_iters": 3, "seed": 7,
         "reward.model": "python:few_letters", "data.datasets": ["python:list"], "init": "example/chain"},
    ),
    "train_dlm": (
        {"data": "mine.txt", "iterations": 3, "seed": 7},
        {"data.train": "mine.txt", "training.n_iters": 3, "seed": 7, "init": "example/chain", "device": "cpu"},
    ),
    "train_reward": (
        {"preferences": "mine.jsonl", "init": "gpt2", "kind": "mask", "epochs": 2, "seed": 7},
        {"data.train": "mine.jsonl", "init": "gpt2", "reward.kind": "mask", "training.epochs": 2, "seed": 7},
    ),
    "train_quality": (
        {"data": "mine.txt", "iterations": 3, "seed": 7},
        {"data.train": "mine.txt", "data.valid": None, "data.tokenizer": "model", "quality.share": 1, "training.n_iters": 3, "seed": 7,
         "dlm.path": "example/chain", "device": "cpu"},
    ),
    "train_twist": (
        {"target": "infilling", "method": "dpg", "prompt": "A", "length": 5, "iterations": 3, "seed": 7},
        {"target.kind": "infilling", "method": "dpg", "prompt": "A", "length": 5, "training.updates_per_epoch": 3,
         "training.epochs": 1, "seed": 7, "dlm.path": "example/chain"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
def test_every_argument_is_a_setting_of_the_command(name, chain, configured, tmp_path):
    arguments, expected = ARGUMENTS[name]
    if name != "train_reward":
        arguments = {**arguments, "model": chain}
    config = configured(name, run_dir=tmp_path / "run", **arguments)
    expected = {**expected, "run_dir": str(tmp_path / "run"), "wandb.mode": "disabled"}
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "settings", "expected"),
    [
        ({"policy": "dit_confidence"}, {"policy": {"time_embed_dim": 8}},
         {"policy.policy_type": "dit_confidence", "policy.time_embed_dim": 8}),
        ({"policy": "hidden_mlp"}, {"policy": {"time_exponent": 1.0}, "algorithm": {"group_size": 2}},
         {"policy.policy_type": "hidden_mlp", "policy.time_exponent": 1.0, "algorithm.name": "grpo", "algorithm.group_size": 2}),
        ({}, {"seed": 3, "policy": "hidden_mlp", "training.n_iters": 5},
         {"seed": 3, "policy.policy_type": "hidden_mlp", "training.n_iters": 5, "training.eval_freq": 5}),
        ({"seed": 3}, {"seed": 3}, {"seed": 3}),
    ],
)  # fmt: skip
def test_settings_add_to_arguments(arguments, settings, expected, chain, configured):
    config = configured("train_policy", chain, task="chain", settings=settings, **arguments)
    assert {key: OmegaConf.select(config, key) for key in expected} == expected


@pytest.mark.parametrize(
    ("arguments", "settings", "message"),
    [
        ({"seed": 4}, {"seed": 3}, "settings has seed=3 and the argument seed sets seed=4; give one"),
        ({"policy": "dit_projection"}, {"policy": "hidden_mlp"}, "settings has policy=hidden_mlp and the argument policy"),
        ({"iterations": 4}, {"training": {"n_iters": 3}}, "settings has training.n_iters=3 and the argument iterations"),
        ({"reward": few_letters}, {"reward.model": "vader"}, "settings has reward.model=vader and the argument reward"),
        ({}, {"dlm.path": "example/stories"},
         "settings has dlm.path=example/stories and the argument model is example/chain; leave the setting out"),
        ({}, {"dlm": "stories"}, "settings has dlm=stories and the argument model is example/chain"),
        ({}, ["seed=3"], r"settings=\['seed=3'\] is of type list; give a dictionary"),
        ({"policy": "dit_projection"}, {"policy": {"no_such": 1}}, "'policy.no_such=1' names no key"),
        ({"resume": "nowhere"}, {}, "resume=nowhere is not a run directory"),
    ],
)  # fmt: skip
def test_what_contradicts_an_argument_is_one_sentence(
    arguments, settings, message, chain, configured, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    arguments = {"task": PROMPTS, "reward": few_letters, "settings": settings} | arguments
    with pytest.raises(ValueError, match=message) as refused:
        unmask.train_policy.__wrapped__(chain, **arguments)  # without the check of types under pytest
    assert "\n" not in str(refused.value)


def test_settings_by_path_are_overrides():
    settings = {
        "data": "chain",
        "optim": {"lr": 1e-3},
        "run_dir": "a b",
        "x": None,
        "ok": True,
        "data.datasets": ["a", 1],
    }
    assert words(settings) == [
        "data=chain", "optim.lr=0.001", 'run_dir="a b"', "x=null", "ok=true", 'data.datasets=["a", 1]',
    ]  # fmt: skip


TRAINED = {
    "train_policy": {"task": PROMPTS, "reward": few_letters},
    "train_rl": {"task": PROMPTS, "reward": few_letters},
    "train_dlm": {"data": [f"Once upon a time there were {number} cats." for number in range(20)]},
    "train_quality": {"data": "chain"},
    "train_twist": {"target": few_letters},
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_run_that_was_stopped_is_resumed_to_the_same_end(name, chain, tmp_path, monkeypatch):
    """Stopped after the first of 3 updates. Its settings are not repeated, and the caller's objects are."""
    paths = {"train_dlm": "example/stories", "train_twist": "example/stories_causal"}
    objects = {"model": unmask.load(paths[name], device="cpu") if name in paths else chain, **TRAINED[name]}
    settings = {**TINY[name], "optim.warmup": 0}
    arguments = {"settings": settings, "iterations": 3, "seed": 5, **objects}
    arguments |= {"answer_length": 8} if "task" in objects else {"length": 4} if name == "train_twist" else {}
    train = getattr(unmask, name)
    whole = train(run_dir=tmp_path / "whole", **arguments).directory
    iterate = Trainer._iterate

    def interrupted(self, step):
        iterate(self, step)
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patched, pytest.raises(SystemExit):
        patched.setattr(Trainer, "_iterate", interrupted)
        train(run_dir=tmp_path / "half", **arguments)
    half = tmp_path / "half"
    assert saved(half)["step"] == 1
    assert train(resume=half, **objects).directory == half
    assert record(half) == record(whole) and max(record(half)) == 3
    # the name of the run directory is in the identity of a run on texts, and this in the checksum
    states = [
        {key: value for key, value in saved(run).items() if key not in ("run", CHECKSUM)} for run in (half, whole)
    ]
    assert_equal(*states)
    if name != "train_twist":  # whose updates follow from its epochs
        assert train(resume=half, iterations=4, **objects).metrics[-1]["step"] == 4


def test_objects_of_the_caller_are_given_again(chain, tmp_path):
    run = tmp_path / "run"
    objects = {"task": PROMPTS, "reward": few_letters}
    settings = TINY["train_policy"]
    unmask.train_policy(chain, **objects, iterations=1, answer_length=8, run_dir=run, settings=settings)
    message = r"data.datasets=python:list is an object of a Python program; .* unmask.train_policy\(model, task=..., resume=RUN\)"
    with pytest.raises(ValueError, match=message):
        overrides = [f"resume={run}"]
        train_policy.run(composed("train_policy", overrides), overrides)
    with pytest.raises(ValueError, match=message):
        unmask.train_policy(chain, reward=few_letters, resume=run)
    with pytest.raises(ValueError, match="reward.model=python:few_letters is an object of a Python program"):
        unmask.train_policy(chain, task=type("list", (list,), {"check": lambda *_: True})(PROMPTS), resume=run)
    with pytest.raises(ValueError, match="reward.model: the run has 'python:few_letters', .* 'python:<lambda>'"):
        unmask.train_policy(chain, task=PROMPTS, reward=lambda texts: [0.0] * len(texts), resume=run)
    with pytest.raises(ValueError, match="optim.lr: the run has 0.001, the command asks for 0.5"):
        unmask.train_policy(chain, **objects, resume=run, settings={"optim.lr": 0.5})
    again = unmask.train_policy(chain, **objects, resume=run, policy="dit_confidence", settings=settings)
    assert again.metrics[-1]["step"] == 1


def test_records_of_a_resumed_run_are_those_that_it_began_with(tmp_path):
    texts = [f"Once upon a time there were {number} cats." for number in range(20)]
    model = unmask.load("example/stories", device="cpu")
    run = unmask.train_dlm(texts, model=model, iterations=1, run_dir=tmp_path / "run", settings=TINY["train_dlm"])
    before = (run.directory / "texts.jsonl").read_bytes()
    with pytest.raises(ValueError, match="was started with other records than those of the argument data"):
        unmask.train_dlm(texts[1:], model=model, resume=run.directory)
    assert (run.directory / "texts.jsonl").read_bytes() == before
    weights = unmask.train_dlm(texts, model=model, resume=run.directory).result.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.result.state_dict().items())


def test_published_values_are_words_as_on_the_command_line(chain, configured):
    config = configured("train_policy", chain, task="chain", settings={"sampling_mode": "bernoulli", "optim.lr": 0.5})
    assert (
        config.algorithm.action == "bernoulli" and config.eval.action == "bernoulli_argmax" and config.optim.lr == 0.5
    )


def test_a_run_stands_for_its_model_and_a_path_does_not(chain, configured, tmp_path):
    run = Trained(tmp_path, chain)
    assert configured("train_policy", run, task="chain").dlm.path == "example/chain"
    assert configured("train_rl", run, task="chain").init == "example/chain"
    with pytest.raises(ValueError, match="model=example/chain is of type str"):
        unmask.train_policy.__wrapped__("example/chain", task="chain")
