"""Policies, twists, rewards and heads know the model and the tokens that they were trained on, and refuse others."""

import copy
import json
import shutil
from functools import cache
from pathlib import Path

import pytest
import torch

from benchmarks.fingerprints import main as stamp
from benchmarks.fingerprints import stamped
from data.text import train_bpe
from dlm.board import BoardTokenizer
from dlm.fingerprint import KEY, Fingerprint, fingerprint_of, mismatch, stored_fingerprint, token_digest, weight_digests
from load_model import load_model
from model.radd import RADD
from policy.checkpoints import bind, load_policy, save_policy
from policy.networks import DitConfidence, HiddenMLP
from rewards.models import TOKENS, VocabularyHead, load_reward
from tests import tiny_rewards
from tests.policy_runs import DIT, QUICK, run, tiny_models
from training.hub import shipped
from training.usage import composed
from unmask.commands import evaluate as evaluate_command
from unmask.commands import sample as sample_command
from unmask.decoders import requested_head as asked_head
from unmask.runs import guide
from unmask.runs import sample as sample_run

ROOT = Path(__file__).parents[1]
VECTORS = ROOT / "tests" / "vectors"
SHIPPED = sorted(
    file.parent
    for file in (ROOT / "example").glob("*/config.json")
    if {"policy_type", "twist", "reward_kind"} & json.loads(file.read_text()).keys()
)


@cache
def model_at(path: str):
    return load_model(shipped(path))[0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """Overrides that name tiny models: text, and Sudoku."""
    return tiny_models(tmp_path_factory.mktemp("models"))


def path_of(overrides: list[str]) -> str:
    return overrides[0].partition("=")[2]


def confident() -> DitConfidence:
    return DitConfidence(hidden_dim=16, feedforward_dim=16, time_embed_dim=8)


def policy_of(model, directory: Path, policy=None) -> str:
    """A policy that was trained on the model, saved."""
    policy = confident() if policy is None else policy
    bind(policy, model)
    save_policy(policy, directory)
    return str(directory)


def changed(model):
    """The same model after an update of its weights."""
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.01
    return other


# ------------------------------------------------------------------------------------------------------- of the shipped ones


@pytest.mark.parametrize("folder", SHIPPED, ids=lambda folder: folder.name)
def test_what_is_shipped_has_the_fingerprint_of_its_model(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config == stamped(folder) and (KEY in config or TOKENS in config)
    if "policy_type" in config:
        assert load_policy(folder, model=model_at(config[KEY]["model"])) is not None


def test_a_run_from_before_is_given_its_fingerprint(tmp_path):
    old = tmp_path / "old"
    save_policy(confident(), old / "policy")
    (old / ".hydra").mkdir()
    (old / ".hydra" / "config.yaml").write_text("dlm: {path: example/chain}\n")
    assert load_policy(old, model=model_at("example/stories")) is not None  # nothing is known of it
    stamp(tmp_path)
    assert load_policy(old, model=model_at("example/chain")) is not None
    with pytest.raises(ValueError, match="was trained on example/chain, and example/stories has other tokens"):
        load_policy(old, model=model_at("example/stories"))


# --------------------------------------------------------------------------------------------------------- the fingerprint


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("first", ["float32", "other"])
def test_a_model_is_the_same_in_every_precision(dtype, first):
    models = [load_model(VECTORS / "llada-tiny", dtype=precision)[0] for precision in ("float32", dtype)]
    assert next(models[1].backbone.parameters()).dtype == getattr(torch, dtype)
    one, other = (fingerprint_of(model) for model in (models if first == "float32" else models[::-1]))
    assert one.difference(other) == "" and one.weights.keys() & other.weights.keys()
    assert (
        fingerprint_of(models[1].float()).difference(fingerprint_of(models[0])) == ""
    )  # as reinforcement learning does
    assert one.difference(fingerprint_of(changed(models[0]))) == "weights"


def test_every_tensor_counts_and_its_name_and_shape():
    weights = {"a": torch.arange(6.0), "b": torch.arange(5000.0)}
    known = weight_digests(weights.items())
    assert weight_digests(reversed(weights.items())) == known
    for other in (
        weights | {"a": weights["a"].view(2, 3)},
        weights | {"b": weights["b"] * 1.5},
        {"a": weights["a"], "c": weights["b"]},
    ):
        assert not weight_digests(other.items()).items() & known.items()


def test_tokens_are_compared_by_name_and_number():
    texts = ["A cat sat.", "A dog ran up a hill."]
    one, other = train_bpe(texts, 270), train_bpe([text.upper() for text in texts], 270)
    assert len(one) == len(other) and token_digest(one) != token_digest(other)
    assert token_digest(BoardTokenizer((2, 3))) != token_digest(BoardTokenizer((2, 2)))
    masked = copy.deepcopy(one)
    masked.add_special_tokens({"mask_token": "[MASK]"})
    assert token_digest(masked) == token_digest(one)  # a model adds its own mask
    known = Fingerprint("m", {}, token_digest(one), 3)
    assert known.difference(Fingerprint("n", {}, None, 3)) == ""  # without a tokenizer nothing is known
    assert known.difference(Fingerprint("n", {}, known.tokens, 4)) == "tokens"


def test_weights_that_changed_in_place_are_said_to_have():
    known = Fingerprint("output/mine", {"bfloat16": "a"}, None, 3)
    now = Fingerprint("output/mine", {"bfloat16": "b"}, None, 3)
    assert mismatch(known, now) == "was trained on output/mine as it was then, whose weights have changed"


@pytest.mark.parametrize("told", ["example/chain", {"model": "m"}, {"model": 1, "weights": {}, "tokens": None, "mask_id": 2},
                                  {"model": "m", "weights": {"a": 1}, "tokens": None, "mask_id": 2}])  # fmt: skip
def test_a_fingerprint_that_is_none_names_its_file(told):
    with pytest.raises(ValueError, match="X/config.json has a trained_on that is no fingerprint"):
        stored_fingerprint({KEY: told}, "X/config.json")


# ---------------------------------------------------------------------------------------------------------------- policies


CROSSINGS = [
    ("example/chain_policy", "example/chain", "example/stories"),
    ("example/014609", "example/stories", "example/sudoku6"),
    ("example/sudoku6_answers", "example/sudoku6", "example/chain"),
    ("example/014609_hidden_mlp", "example/stories", "example/chain"),
]


@pytest.mark.parametrize(("policy", "trained_on", "model"), CROSSINGS)
def test_a_policy_on_another_model_is_refused(policy, trained_on, model):
    with pytest.raises(
        ValueError, match=f"the policy {policy} was trained on {trained_on}, and {model} has other tokens"
    ):
        sampled("--model", model, "--policy", policy)


def sampled(*argv: str):
    return sample_run.draw_samples(
        sample_command.build_config(["--strategy", "policy", "--no-eval", "--steps", "2", *argv])
    )


def test_a_policy_of_confidences_moves_by_the_flag_and_says_so(capsys):
    argv = ["--model", "example/chain", "--policy", "example/014609"]
    with pytest.raises(ValueError, match="allow another one, as this policy reads confidences only"):
        sampled(*argv)
    sampled(*argv, "--other_model")
    sampled(*argv, "sampler.policy.other_model=true")
    line = "the policy example/014609 was trained on example/stories, and example/chain has other tokens; it reads confidences only"
    assert capsys.readouterr().err.count(line) == 2


def test_a_policy_of_hidden_states_does_not_move(tmp_path):
    """Nor to the same model after it was trained further, whose states are others."""
    model = model_at("example/chain")
    policy = policy_of(model, tmp_path / "policy", HiddenMLP(model.hidden_size))
    assert load_policy(policy, model=model) is not None
    with pytest.raises(ValueError, match="whose weights have changed, whose hidden states mean something else"):
        load_policy(policy, model=changed(model), other_model=True)


def test_an_evaluation_on_another_model_is_refused(tmp_path, tiny):
    """Of the same tokens too, as both can answer the same questions."""
    model = model_at("example/chain")
    other = changed(model)
    other.model_id = "output/chain_after_rl"
    policy = policy_of(other, tmp_path / "policy")
    argv = ["--policy", policy, "--n_test", "2", "--length", "4", "--out"]
    with pytest.raises(ValueError, match="was trained on output/chain_after_rl, and example/chain has other weights"):
        evaluate_command.main([*argv, str(tmp_path / "refused")])
    assert not (tmp_path / "refused").exists()
    assert evaluate_command.main([*argv, str(tmp_path / "moved"), "--other_model"]) == 0
    with pytest.raises(ValueError, match="--other_model would do nothing with --strategy random"):
        evaluate_command.main(["--strategy", "random", "--other_model", "--out", str(tmp_path / "rule")])


def test_guided_runs_refuse_a_policy_of_another_model_before_any_work(tmp_path):
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Once"}\n')
    words = [
        f"out={tmp_path / 'out'}",
        f"prompts.file={tmp_path / 'prompts.jsonl'}",
        "prompts.count=1",
        "selector=null",
    ]
    methods = ["~methods", "+methods.plain.strategy=policy", "+methods.plain.policy.path=example/chain_policy"]
    with pytest.raises(
        ValueError, match="the policy example/chain_policy was trained on example/chain, and example/stories"
    ):
        guide.run(composed("guide", ["dlm=stories", *words, *methods]))
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def trained(tiny, tmp_path_factory) -> Path:
    """A run of two updates on a Sudoku."""
    settings = [
        *tiny["small"],
        "algorithm=imitation",
        "algorithm.expert=answers",
        "policy=dit_confidence",
        *DIT,
        *QUICK,
    ]
    return run(tmp_path_factory.mktemp("runs") / "run", *settings, "training.batch_size=4")


def test_a_run_stores_its_model(tiny, trained):
    model = load_model(path_of(tiny["small"]))[0]
    for place in (trained, trained / "checkpoints" / "checkpoint_2.pth"):
        policy = load_policy(place, model=model)
        assert policy.config[KEY] == fingerprint_of(model).as_dict()
    with pytest.raises(ValueError, match="run was trained on .*small, and .*sudoku has other tokens"):
        load_policy(trained, model=load_model(path_of(tiny["sudoku"]))[0])


def test_a_policy_is_trained_further_on_another_model_by_the_flag(tiny, trained, tmp_path):
    on_text = [
        f"init={trained}",
        "policy=dit_confidence",
        *tiny["unjudged"],
        "sampler.length=8",
        "reward=bound",
        *QUICK,
    ]
    with pytest.raises(ValueError, match="was trained on .*small, and .*text has other tokens"):
        run(tmp_path / "text", *on_text)
    assert not (tmp_path / "text").exists()
    onward = run(tmp_path / "moved", *on_text, "init_other_model=true", "training.batch_size=4")
    text = load_model(path_of(tiny["unjudged"]))[0]
    assert load_policy(onward, model=text).config[KEY] == fingerprint_of(text).as_dict()


def test_a_run_is_not_resumed_on_other_weights(trained, tmp_path, monkeypatch):
    directory, state = tmp_path / "run", RADD.load_state_dict
    shutil.copytree(trained, directory)
    with monkeypatch.context() as patched:
        patched.setattr(RADD, "load_state_dict", lambda self, found, **more: state(
            self, {name: tensor + 0.1 for name, tensor in found.items()}, **more))  # fmt: skip
        with pytest.raises(ValueError, match="weights have changed; resume it with the model that it began on"):
            run(directory, f"resume={directory}")
    run(directory, f"resume={directory}")


# --------------------------------------------------------------------------------------------------------- heads and rewards


def test_a_vocabulary_head_belongs_to_its_trunk(tmp_path):
    model = model_at("example/stories")
    head = VocabularyHead(model.hidden_size, model.vocab_size, "example/stories", "mask", fingerprint_of(model))
    head.save(tmp_path / "head")
    assert asked_head(str(tmp_path / "head"), model).trained_on == fingerprint_of(model)
    with pytest.raises(
        ValueError, match="the vocabulary head .* was trained on example/stories as it was then, whose weights"
    ):
        asked_head(str(tmp_path / "head"), changed(model))


def test_a_reward_reads_the_tokens_that_it_was_trained_on(tmp_path):
    texts = ["A cat sat.", "A dog ran up a hill."]
    one, other = (tiny_rewards.tokenizer_of(part, 270) for part in (texts, [text.upper() for text in texts]))
    folder = Path(tiny_rewards.reward(tmp_path / "reward", one))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {TOKENS: token_digest(one)}))
    load_reward(str(folder))
    other.save_pretrained(folder)
    with pytest.raises(ValueError, match="was trained on other tokens than those of the tokenizer beside it"):
        load_reward(str(folder))
