"""Training from Python: a user's task and reward, the files of the run, and what is refused."""

import json

import pytest
import torch

import unmask
from tests.policy_runs import record
from training.usage import composed
from unmask.calls import words
from unmask.runs import train_policy as train_policy_run

TINY = {
    "training.batch_size": 4, "algorithm.group_size": 2, "eval.batch_size": 2, "sampler.steps": 4,
    "policy": "dit_confidence", "policy.hidden_dim": 16, "policy.feedforward_dim": 16, "policy.time_embed_dim": 8,
}  # fmt: skip
PROMPTS = ["3 A +3 B ?", "2 A +3 B ?", "1 A +3 B ?"]


class Questions:
    """A user's task: prompts, and what is right."""

    def __init__(self):
        self.asked = []

    def __iter__(self):
        return iter(PROMPTS)

    def check(self, prompt, answer):
        self.asked.append((prompt, answer))
        return "A" in answer


@pytest.fixture(scope="module")
def model():
    return unmask.load("example/chain", device="cpu")


def learn(model, directory, **arguments):
    """One update of a tiny policy."""
    given = {"iterations": 1, "answer_length": 8, "run_dir": directory, "settings": TINY} | arguments
    return unmask.train_policy.__wrapped__(model, **given)  # without the check of types under pytest


def test_a_users_task_and_its_checker(model, tmp_path, capsys):
    task = Questions()
    policy = learn(model, tmp_path / "run", task=task)
    assert capsys.readouterr().out == ""
    assert {prompt for prompt, _ in task.asked} == set(PROMPTS) and all(isinstance(text, str) for _, text in task.asked)
    last = policy.metrics[-1]
    assert last["step"] == 1 and 0 <= last["eval_right"] <= 1
    assert repr(policy).startswith(f"<DitConfidence in {tmp_path / 'run'}: step=1") and len(repr(policy)) < 200
    assert (tmp_path / "run" / "policy" / "model.safetensors").is_file()
    out = unmask.sample(model, PROMPTS, strategy=policy, steps=4, length=20)
    assert out.nfe.tolist() == [4, 4, 4]
    same = unmask.sample(model, PROMPTS, strategy=unmask.load_policy(str(tmp_path / "run"), model), steps=4, length=20)
    assert torch.equal(out.tokens, same.tokens)


def test_a_users_reward_is_maximised_and_logged(model, tmp_path):
    seen = []

    def shortest(texts):
        seen.extend(texts)
        return [-float(len(text)) for text in texts]

    policy = learn(model, tmp_path / "run", task=PROMPTS, reward=shortest)
    scores = torch.tensor([-float(len(text)) for text in seen])
    logged = [line[name] for line in policy.metrics for name in ("score", "eval_score") if name in line]
    assert logged == pytest.approx([float(scores[:4].mean()), float(scores[4:].mean())], abs=1e-4)


def test_a_quiet_run_prints_what_the_users_function_prints_and_nothing_else(model, tmp_path, capsys):
    def talking(texts):
        print("mine")
        return [0.0 for _ in texts]

    policy = learn(model, tmp_path / "quiet", task=PROMPTS, reward=talking)
    printed = capsys.readouterr()
    assert set(printed.out.splitlines()) == {"mine"} and printed.err == ""
    assert "parameters learn on" in (policy.directory / "logs" / "run.log").read_text()
    learn(model, tmp_path / "loud", task=PROMPTS, reward=talking, quiet=False)
    printed = capsys.readouterr()
    assert "parameters learn on" in printed.out and "optim.warmup=5 is for a longer run" in printed.err


def test_the_command_and_the_function_train_alike(model, tmp_path):
    policy = learn(model, tmp_path / "python", task="chain")
    asked = ["algorithm=grpo", "policy=dit_confidence", "data=chain", "reward=right", "dlm=chain", "device=cpu"]
    asked += [
        "training.n_iters=1",
        "training.eval_freq=1",
        "training.snapshot_freq=1",
        f"run_dir={tmp_path / 'command'}",
    ]
    asked += [*words(TINY), "wandb.mode=disabled"]
    train_policy_run.run(composed("train_policy", asked), asked)
    assert record(policy.directory) == record(tmp_path / "command")


def test_what_a_users_function_raises_is_theirs(model, tmp_path):
    with pytest.raises(ZeroDivisionError):
        learn(model, tmp_path / "a", task=PROMPTS, reward=lambda texts: [1 / 0 for _ in texts])
    task = Questions()
    task.check = lambda prompt, answer: 1 / 0
    with pytest.raises(ZeroDivisionError):
        learn(model, tmp_path / "b", task=task)


def returns_one(texts):
    return [1.0]


class Mute(Questions):
    def check(self, prompt, answer):
        return "yes"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"task": PROMPTS, "reward": returns_one},
            r"the reward returns_one returned values of shape \[1\] for . texts",
        ),
        ({"task": []}, "the task list has no prompts, since its `__iter__` yields nothing"),
        ({"task": ["one"], "reward": len}, "the task list has one prompt, and one is held out; give at least 2"),
        ({"task": 5}, "the task 5 of type int has no `__iter__`; give an iterable of prompts"),
        ({"task": [["a"], ["b"]]}, r"the task list has a prompt \['a'\] that is no text"),
        ({"task": PROMPTS}, "the task list has no `check`, so nothing says which answers are right"),
        ({"task": PROMPTS, "reward": 3}, "reward=3 of type int has no `score_texts` and cannot be called"),
        ({"task": Mute()}, "`check` of the task Mute returned 'yes'; return True, False or a finite number"),
        ({"task": "chains"}, "data=chains is no file of configs/data; did you mean data=chain?"),
        ({"task": "chain", "settings": {"optm.lr": 1}}, "did you mean optim.lr?"),
        (
            {"task": PROMPTS, "reward": len, "answer_length": 1000},
            "prompt 0 of the task list .* with 1000 to write more",
        ),
    ],
)
def test_what_is_wrong_is_one_sentence(model, tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message) as refused:
        learn(model, tmp_path / "run", **arguments)
    assert str(refused.value).count("\n") == 0


def test_the_model_itself_learns_and_the_callers_stays(model, tmp_path):
    before = {name: value.clone() for name, value in model.named_parameters()}
    few = {"rl.batch_size": 4, "rl.group_size": 2, "rl.num_sigma_samples": 1, "sampler.steps": 2, "eval.samples": 1,
           "eval.batch_size": 2, "optim.lr": 0.1}  # fmt: skip
    values = iter(range(1000))
    tuned = unmask.train_rl(
        model, task=PROMPTS, reward=lambda texts: [float(next(values)) for _ in texts], iterations=1, answer_length=8,
        run_dir=tmp_path / "run", settings=few,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in model.named_parameters())
    changed = dict(tuned.result.named_parameters())
    assert any(not torch.equal(changed[name], value) for name, value in before.items())
    assert unmask.sample(tuned, "3 A +3 B ?", strategy="confidence", steps=2, length=16).texts
    stored = json.dumps((tmp_path / "run" / ".hydra" / "config.yaml").read_text())
    assert "example/chain" in stored
    model_without_path = unmask.load("example/chain", device="cpu")
    model_without_path.source = None
    with pytest.raises(ValueError, match="train_rl trains a copy of the model and reads it from its path"):
        unmask.train_rl(model_without_path, task=PROMPTS, reward=returns_one)


def test_a_model_learns_from_a_users_texts(tmp_path):
    stories = unmask.load("example/stories", device="cpu")
    texts = [f"Once upon a time there were {number} cats. They ran home." for number in range(40)]
    few = {"training.batch_size": 2, "eval.samples": 1, "data.valid_rows": 4}
    tuned = unmask.train_dlm(texts, model=stories, iterations=1, run_dir=tmp_path / "run", settings=few)
    assert json.loads((tmp_path / "run" / "texts.jsonl").read_text().splitlines()[3]) == {"text": texts[3]}
    assert any(line.get("valid_loss", 0) > 0 for line in tuned.metrics) and "RaddLM" in repr(tuned)
    assert unmask.sample(tuned, "Once", strategy="confidence", steps=2, length=16).nfe.tolist() == [2]
    with pytest.raises(ValueError, match="the data list has no records; give at least one"):
        unmask.train_dlm([], model=stories, run_dir=tmp_path / "none")
    with pytest.raises(ValueError, match="data=5 of type int has no `__iter__`"):
        unmask.train_dlm.__wrapped__(5, run_dir=tmp_path / "none")


def test_a_missing_file_of_texts_is_named_in_any_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no file nofile.txt for the data set"):
        unmask.train_dlm("nofile.txt")


@pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning"
)  # of transformers, in its own trainer
def test_a_reward_is_learnt_from_pairs_and_scores_texts(tmp_path):
    pairs = [
        {"prompt": "Tell", "chosen": f"a kind story {number}", "rejected": f"a sad end {number}"}
        for number in range(30)
    ]
    few = {"training.batch_size": 8, "encoder.hidden_size": 16, "encoder.intermediate_size": 16, "encoder.num_layers": 1,
           "encoder.num_heads": 2, "data.max_length": 32, "device": "cpu"}  # fmt: skip
    learnt = unmask.train_reward(pairs, epochs=1, run_dir=tmp_path / "run", settings=few)
    assert json.loads((tmp_path / "run" / "preferences.jsonl").read_text().splitlines()[2]) == pairs[2]
    scores = learnt.result.score_texts(["Tell", "Tell"], ["a kind story", "a sad end"])
    assert scores.shape == (2,) and scores.isfinite().all()


def test_a_twist_is_learnt_and_steers_particles(tmp_path):
    stories = unmask.load("example/stories_causal", device="cpu")
    few = {"training.batch_size": 4, "posterior.count": 0, "eval.samples": 4, "eval.sweeps": 1,
           "eval.particles": [2], "eval.texts": 0}  # fmt: skip
    twist = unmask.train_twist(
        stories, target="vader", method="ctl", length=4, iterations=1, run_dir=tmp_path / "run", settings=few
    )
    smc = {"twist": twist.result, "particles": 2}
    out = unmask.sample(stories, "Once upon a time", strategy="twisted_smc", smc=smc, length=None, num_samples=1)
    assert out.texts[0].startswith("Once upon a time")


def test_a_function_is_the_target_of_a_twist(tmp_path):
    """The target is p(text) exp(2 (value - 1)), in training and in the particle filter that uses the twist."""
    chain = unmask.load("example/chain", device="cpu")
    few = {"training.batch_size": 4, "posterior.count": 8, "eval.samples": 4, "eval.sweeps": 1, "eval.particles": [2],
           "eval.texts": 4, "target.beta": 2}  # fmt: skip

    def with_six(texts):
        return [float("6" in text) for text in texts]

    def learn(target, name):
        given = {"method": "rl", "prompt": "3 A +3 B ?", "length": 4, "iterations": 1, "run_dir": tmp_path / name}
        return unmask.train_twist.__wrapped__(chain, target=target, settings=few, **given)

    twist = learn(with_six, "run")
    assert "python:with_six" in (tmp_path / "run" / ".hydra" / "config.yaml").read_text()
    texts = [
        json.loads(line) for line in next((tmp_path / "run" / "samples").glob("*/*.jsonl")).read_text().splitlines()
    ]
    values = with_six([line["text"] for line in texts])
    assert len(set(values)) == 2 and [line["log_phi"] for line in texts] == [2 * (value - 1) for value in values]
    given = {"strategy": "twisted_smc", "smc": {"twist": twist.result, "particles": 4}, "num_samples": 3}
    out = unmask.sample(chain, None, reward=with_six, **given)
    log_phi = out.samples.particles.log_potential
    assert log_phi.tolist() == pytest.approx([2 * (value - 1) for value in with_six(out.responses)])
    with pytest.raises(
        ValueError, match="the target is the caller's reward with_six, which no file holds; give it again"
    ):
        unmask.sample(chain, None, **given)
    with pytest.raises(ZeroDivisionError):
        learn(lambda texts: [1 / 0 for _ in texts], "failing")
    with pytest.raises(ValueError, match=r"the reward returns_one returned values of shape \[1\]"):
        learn(returns_one, "one")
    with pytest.raises(ValueError, match="target=5 of type int has no `score_texts` and cannot be called"):
        learn(5, "none")
