"""train-rl end to end on the shipped reasoning base and on tiny models: every algorithm and estimator, resuming, refusals."""

import json
import math
import subprocess
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from data.chain import chain_tokenizer, chains
from dlm.likelihood import ESTIMATORS
from load_model import load_model
from rewards.rules import Reward, RewardOutput
from tests.policy_runs import ROOT, assert_equal, command, record, saved
from unmask.runs import train_rl

QUICK = ["run_dir=RUN", "device=cpu", "training.n_iters=2", "training.snapshot_freq=2", "training.eval_freq=2",
         "training.log_freq=1", "eval.batch_size=4", "eval.samples=2", "rl.batch_size=8", "rl.group_size=4", "rl.num_sigma_samples=2",
         "sampler.steps=3", "data.answer_length=4", "data.steps=2"]  # fmt: skip
DENSE = ["optim.lr=1e-3", "optim.warmup=0"]


def run(directory: Path, *overrides: str) -> Path:
    """The command in this process; RUN in an override is `directory`."""
    asked = [override.replace("RUN", str(directory)) for override in overrides]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_rl", asked)
    return train_rl.run(config, asked)


class Evens(Reward):
    """A reward that anybody can earn: the share of even tokens. It fails on the rows of `bad` numbers, in the way of `how`."""

    def __init__(self, bad=lambda tokens: False, how="nan"):
        self.bad, self.how = bad, how

    def __call__(self, samples, rows):
        even = (samples.tokens % 2 == 0).float().mean(1)
        for number, tokens in enumerate(samples.tokens):
            if self.bad(tokens):
                if self.how == "raise":
                    raise KeyError("no such formula")
                even[number] = math.nan
        return RewardOutput(even, {"even": even, "first": samples.tokens[:, 0].float()})


@pytest.fixture
def evens(monkeypatch):
    """Install the reward; returns how to make it fail."""

    def install(**settings):
        monkeypatch.setattr(train_rl, "build_reward", lambda *_: Evens(**settings))

    install()
    return install


# ------------------------------------------------------------------------------------------ everything runs


@pytest.mark.parametrize("estimator", [name for name in ESTIMATORS if name != "score_entropy"])
@pytest.mark.parametrize("algorithm", ["grpo", "ppo"])
def test_every_algorithm_with_every_estimator(algorithm, estimator, evens, tmp_path):
    more = ["rl.ratio=token"] if estimator in ("mean_field", "trajectory") else []
    directory = run(tmp_path / "run", *QUICK, *DENSE, f"rl.algorithm={algorithm}", f"rl.estimator={estimator}",
                    "rl.ppo_epochs=2", *more)  # fmt: skip
    metrics = record(directory)
    assert {"reward", "even", "kl", "clipped", "nfe", "reward_failed", "eval_reward", "eval_even", "eval_distinct"} <= (
        metrics[1] | metrics[2]
    ).keys()
    before, after = load_model(ROOT / "example/chain")[0], load_model(directory)[0]
    same = all(torch.equal(one, other) for one, other in zip(before.parameters(), after.parameters(), strict=True))
    assert same == (estimator == "published") and (metrics[1]["grad_norm"] == 0) == (estimator == "published")
    assert saved(directory)["updates"] == 4
    lines = [json.loads(line) for line in (directory / "samples/iter_2/samples.jsonl").read_text().splitlines()]
    assert len(lines) == 2 and lines[0]["reward"] == pytest.approx(lines[0]["even"])
    assert (directory / "samples/iter_2/sample_1.txt").read_text() == lines[1]["text"] + "\n"


def test_the_published_keys_are_taken(evens, tmp_path):
    keys = ["rl.batch_size=4", "rl.kl_beta=0.1", "rl.ppo_clip=0.2", "rl.ppo_epochs=3", "rl.num_sigma_samples=3",
            "rl.reward_freq=10"]  # fmt: skip
    directory = run(tmp_path / "run", *QUICK, *keys, "rl.algorithm=ppo", "training.n_iters=3")
    metrics = record(directory)
    assert "reward" in metrics[1] and "reward" not in metrics[2] and metrics[3]["grad_norm"] > 0
    assert saved(directory)["updates"] == 9


@pytest.mark.parametrize("strategy", ["confidence", "threshold", "first_hitting", "direct"])
def test_rollouts_by_any_strategy_in_blocks(strategy, evens, tmp_path):
    run(tmp_path / "run", *QUICK, f"sampler.strategy={strategy}", "sampler.block_length=2", "sampler.steps=4")


def test_texts_and_puzzles_learn_too(tmp_path):
    few = [o for o in QUICK if not o.startswith("data.")]
    puzzles = ["dlm=sudoku6", "data=puzzles", "reward=puzzle", "data.base_puzzles=4", "data.valid_puzzles=4"]
    directory = run(tmp_path / "boards", *few, *puzzles)
    assert "eval_solved" in record(directory)[2]
    with pytest.raises(ValueError, match="lora.rank=2 is for LLaDA and Dream"):
        run(tmp_path / "adapter", *few, *puzzles, "lora.rank=2")


def test_an_adapter_learns_and_its_reference_is_the_model_without_it(evens, tmp_path):
    lora = ["lora.rank=2", "lora.target_modules=[q_proj,v_proj,down_proj]", *DENSE, "optim.lr=0.05"]
    directory = run(tmp_path / "run", *QUICK, *lora)
    assert record(directory)[1]["kl"] == 0 and record(directory)[2]["kl"] > 0
    assert sum(p.numel() for p in saved(directory)["model"].values()) < 6000
    base, model = load_model(ROOT / "example/chain")[0], load_model(directory)[0]
    assert not torch.equal(base.backbone.blocks[0].query.weight, model.backbone.blocks[0].query.weight)
    assert torch.equal(base.backbone.blocks[0].key.weight, model.backbone.blocks[0].key.weight)
    shared = load_model(directory / "model")[0]
    assert_equal(dict(shared.backbone.state_dict()), dict(model.backbone.state_dict()))
    again = run(tmp_path / "again", *QUICK, *DENSE, f"init={directory}")
    assert record(again)[1]["kl"] == 0


def test_training_goes_on_from_a_run_or_one_checkpoint_of_it(evens, tmp_path):
    first = run(tmp_path / "first", *QUICK, *DENSE)
    for number, start in enumerate((first, first / "checkpoints" / "checkpoint_2.pth", first / "model")):
        second = run(tmp_path / str(number), *QUICK, f"init={start}", "optim.lr=0")
        assert_equal(saved(second)["model"], dict(load_model(first)[0].backbone.state_dict()))


# ------------------------------------------------------------------------------------------ rewards that fail


@pytest.mark.parametrize("how", ["nan", "raise"])
def test_a_row_without_a_reward_is_dropped_counted_and_named(how, evens, tmp_path, capsys):
    evens(bad=lambda tokens: int(tokens.sum()) % 3 == 0, how=how)
    directory = run(tmp_path / "run", *QUICK, "training.n_iters=1", "rl.batch_size=32")
    metrics, told = record(directory)[1], capsys.readouterr().out
    assert 0 < metrics["reward_failed"] < 32 and math.isfinite(metrics["reward"])
    assert told.count("no reward for row ") == metrics["reward_failed"] and "; dropped" in told
    assert ("no such formula" in told) == (how == "raise")


@pytest.mark.parametrize("how", ["nan", "raise"])
def test_a_reward_that_fails_on_all_rows_stops_the_run(how, evens, tmp_path):
    evens(bad=lambda tokens: True, how=how)
    with pytest.raises(FloatingPointError, match=r"the reward failed on all 8 rows \(row 0: "):
        run(tmp_path / "run", *QUICK)


# ------------------------------------------------------------------------------------------ preferences


def write_pairs(path: Path, count: int, seed: int) -> Path:
    """Answers that begin with `=` against those that end with it."""
    problems = chains(count, 2, torch.Generator().manual_seed(seed))
    tokenizer, values = chain_tokenizer(), problems.values()[:, -1]
    lines = []
    for prompt, value in zip(tokenizer.batch_decode(problems.prompts()), values.tolist(), strict=True):
        lines.append({"prompt": prompt, "chosen": f"= {value} <eos>", "rejected": f"{value} = <eos>"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


VRPO = ["rl.algorithm=vrpo", "data=pairs", *[o for o in QUICK if not o.startswith("data.")]]


def test_preferences_raise_the_margin_on_held_out_pairs(tmp_path):
    pairs, valid = write_pairs(tmp_path / "pairs.jsonl", 60, 0), write_pairs(tmp_path / "valid.jsonl", 20, 1)
    files = [f"data.pairs={pairs}", f"data.valid_pairs={valid}", "data.length=12"]
    directory = run(tmp_path / "run", *VRPO, *files, *DENSE, "training.n_iters=12", "training.eval_freq=6", "rl.batch_size=8",
                    "eval.batch_size=20", "training.snapshot_freq=12", "training.ema=0.5", "rl.kl_beta=0.5")  # fmt: skip
    metrics = record(directory)
    assert metrics[1]["margin"] == 0 and metrics[1]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert 0 < metrics[6]["eval_margin"] < metrics[12]["eval_margin"] and metrics[12]["eval_accuracy"] > 0.6
    assert load_model(directory)[0].max_length == 42


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "line 2 is not JSON"),
        ('{"prompt": "1"}', "line 2: expected the texts prompt, chosen, rejected"),
        (json.dumps({"prompt": "1 " * 50, "chosen": "1", "rejected": "2"}), "line 2: the prompt with the chosen answer has 51 tokens and the canvas 42"),
        (json.dumps({"prompt": "1", "chosen": "<mask>", "rejected": "2"}), "line 2: the chosen row holds the mask token"),
    ],
)  # fmt: skip
def test_broken_pairs_are_refused_by_their_line(line, message, tmp_path):
    good = write_pairs(tmp_path / "pairs.jsonl", 1, 0).read_text()
    (tmp_path / "pairs.jsonl").write_text(good + line + "\n")
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *VRPO, f"data.pairs={tmp_path / 'pairs.jsonl'}")


# ------------------------------------------------------------------------------------------ resuming


@pytest.mark.parametrize("case", ["grpo", "ppo", "lora", "vrpo"])
def test_a_resumed_run_is_the_uninterrupted_one(case, evens, tmp_path):
    """Stopped while rollouts are being reused."""
    overrides = [*QUICK, *DENSE, "rl.reward_freq=3"]
    overrides += {"ppo": ["rl.algorithm=ppo"], "lora": ["lora.rank=2"]}.get(case, [])
    if case == "vrpo":
        overrides = [*VRPO, *DENSE, f"data.pairs={write_pairs(tmp_path / 'pairs.jsonl', 9, 0)}"]
    whole = run(tmp_path / "whole", *overrides, "training.n_iters=4")
    half = run(tmp_path / "half", *overrides)
    assert saved(half)["step"] == 2
    run(tmp_path / "half", "resume=RUN", "training.n_iters=4")
    assert record(half) == record(whole) and record(half).keys() == {1, 2, 3, 4}
    assert_equal(saved(half), saved(whole))


def test_a_run_of_another_script_is_refused(evens, tmp_path):
    run(tmp_path / "run", *QUICK)
    from tests.policy_runs import run as policy_run

    with pytest.raises(ValueError, match="is a run of the other training script"):
        policy_run(tmp_path / "run", "resume=RUN")


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["rl.algorithm=reinforce"], "rl.algorithm='reinforce' is unknown; use one of grpo, ppo, vrpo"),
        (["rl.estimator=exact"], "rl.estimator='exact' is unknown; use one of elbo"),
        (["rl.estimator=score_entropy"], "score_entropy reads unnormalised scores, which SEDD has"),
        (["rl.ratio=step"], "rl.ratio='step' is unknown; use one of sequence, token"),
        (["rl.group_size=3"], "batch of 8 rollouts is not divisible by rl.group_size=3"),
        (["rl.group_size=1"], "rl.group_size=1 must be at least 2"),
        (["rl.reward_freq=0"], "rl.reward_freq=0 must be a whole number of at least 1"),
        (["rl.coupled=[0.8,0.2]"], "must be two shares in order"),
        (["sampler.temperature=0"], "sampler.temperature=0 gives the same text every time"),
        (["sampler.strategy=confident"], "strategy 'confident' is unknown; did you mean 'confidence'"),
        (["rl.estimator=trajectory", "sampler.strategy=confidence_noisy"], "its choice of positions is drawn from the model"),
        (["rl.algorithm=vrpo"], "rl.algorithm=vrpo learns from preference pairs; give data=pairs"),
        (["rl.algorithm=vrpo", "rl.estimator=trajectory"], "rl.estimator=trajectory is of texts that were sampled"),
        (["rl.algorithm=vrpo", "rl.kl_beta=0"], "rl.kl_beta=0 multiplies the margin"),
        (["rl.sandwich.beta=0"], "rl.sandwich.beta=0 is an exponent"),
        (["init=example/stories_causal"], "a causal model has its likelihood in one evaluation"),
        (["init=example/sudoku6"], "the data has 23 tokens and example/sudoku6 writes 6"),
        (["lora.rank=0"], "lora.rank=0 must be a whole number of at least 1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(overrides, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *QUICK, *overrides)
    assert not (tmp_path / "run").exists()


def test_the_command_itself_says_what_is_wrong(tmp_path):
    argv, environment = command("-m", "unmask", "train-rl", "rl.estimatr=elbo")
    told = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert told.returncode == 2 and "did you mean rl.estimator?" in told.stderr and len(told.stderr.splitlines()) == 1


# ------------------------------------------------------------------------------------------ it learns


def rewards(directory: Path) -> list[float]:
    return [entry["reward"] for _, entry in sorted(record(directory).items()) if "reward" in entry]


def test_a_reward_that_anybody_can_earn_is_earned_and_the_published_estimator_stays_flat(evens, tmp_path):
    few = [*QUICK, "rl.batch_size=64", "rl.group_size=8", "optim.lr=3e-3", "optim.warmup=0", "rl.kl_beta=0.01", "training.n_iters=8",
           "training.snapshot_freq=8", "training.eval_freq=8"]  # fmt: skip
    ours, published = (rewards(run(tmp_path / name, *few, f"rl.estimator={name}")) for name in ("elbo", "published"))
    assert ours[0] == published[0]
    gain, flat = sum(ours[-3:]) / 3 - ours[0], abs(sum(published[-3:]) / 3 - published[0])
    assert gain > 0.05 > 0.03 > flat


@pytest.mark.slow
def test_right_answers_become_more_frequent(tmp_path):
    """Chain arithmetic from left to right at temperature 1, by the shipped experiment; the published estimator changes nothing."""
    ours, published = (run(tmp_path / name, "experiment=chain_rl", "run_dir=RUN", "device=cpu", f"rl.estimator={name}",
                           "training.n_iters=12") for name in ("trajectory", "published"))  # fmt: skip
    assert sum(rewards(ours)[-3:]) / 3 > sum(rewards(ours)[:3]) / 3 + 0.03
    flat = rewards(published)
    assert abs(sum(flat[-6:]) - sum(flat[:6])) / 6 < 0.1
