"""Guided decoding by the real commands: run_sample.py --strategy, unmask guide over a prompt file, and what is refused."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.prompt_file import PromptRow, load_prompt_rows
from load_model import load_model
from rewards.models import load_reward
from samplers.names import GUIDED
from tests import tiny_rewards
from tests.test_run_sample import SENTENCES, draw, models  # noqa: F401
from training.usage import composed
from unmask.commands import sample as sample_command
from unmask.runs import guide as guide_run
from unmask.runs.guide import run as guide

PROMPTS = ["Once upon", "The cat", "A dog", "The"]
METHODS = ("top_k", "best_of_n", "args", "pargs_g", "pargs", "value_head")


@pytest.fixture(scope="module")
def rewards(models, tmp_path_factory) -> dict[str, str]:  # noqa: F811
    """Directories of reward models that share the models' tokenizer, of one that does not, and of heads; and a prompt file."""
    root, found = tmp_path_factory.mktemp("rewards"), {}
    language = {name: load_model(models[name])[0] for name in ("text", "causal")}
    tokenizer = language["causal"].tokenizer
    for kind in ("full", "prefix", "mask"):
        found[kind] = tiny_rewards.reward(root / kind, tokenizer, kind, causal=kind != "mask")
    found["encoder"] = tiny_rewards.reward(root / "encoder", tokenizer, "prefix", causal=False)
    other = tiny_rewards.tokenizer_of([sentence.upper() for sentence in SENTENCES], 270)
    found["other"] = tiny_rewards.reward(root / "other", other, "prefix")
    for name, model in language.items():
        found[f"head_{name}"] = tiny_rewards.head(root / f"head_{name}", model, models[name])
    found["prompts"] = str(root / "prompts.jsonl")
    lines = [{"prompt": prompt, "label": " was happy."} for prompt in (*PROMPTS, PROMPTS[0])]
    Path(found["prompts"]).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return found


FITTING = {
    "args": "full", "args_stochastic": "full", "pargs": "prefix", "pargs_g": "prefix", "best_of_n": "brevity",
}  # fmt: skip


@pytest.mark.parametrize("name", ["causal", "text"])
@pytest.mark.parametrize("strategy", GUIDED)
def test_every_guided_strategy_fills_the_canvas_of_both_kinds_of_model(models, rewards, strategy, name):  # noqa: F811
    reward = f"head_{name}" if strategy == "value_head" else FITTING.get(strategy)
    asked = [] if reward is None else ["--reward", rewards.get(reward, reward)]
    steps = [] if name == "causal" else ["--steps", "4"]
    common = ["--model", models[name], "--strategy", strategy, *asked, "--k", "5", "--prompt", "The", *steps]
    tokens, texts, record = draw(*common, "--num_samples", "3", "--batch_size", "2")
    assert tokens.shape[0] == 3 and (tokens < 280).all() and record["strategy"] == strategy and len(texts) == 3
    rows = record["reward_rows"]
    assert (rows == 0) == (strategy in ("value_head", "top_k"))
    if strategy == "best_of_n":
        assert rows == 30 and record["nfe"] >= 30
    elif name == "causal" and strategy != "top_k":
        assert rows in (0, record["generated"])  # one row a token: siblings
    alone = draw(*common, "--num_samples", "3", "--batch_size", "1")[0]
    assert torch.equal(alone, tokens), "samples hang on the batch size"


@pytest.mark.parametrize("positions", ["independent", "pair", "joint"])
@pytest.mark.parametrize("unmask", ["confidence", "random", "leftmost"])
def test_a_masked_model_with_a_reward_of_masks(models, rewards, positions, unmask):  # noqa: F811
    tokens, _, record = draw(
        "--model", models["text"], "--strategy", "pargs", "--reward", rewards["mask"], "--positions", positions, "--k", "4",
        "--unmask", unmask, "--steps", "4", "--num_samples", "2", "--batch_size", "2", "--beta", "0.5",
    )  # fmt: skip
    assert (tokens < 280).all() and record["nfe"] == (12 if positions == "pair" else 4)
    assert record["config"]["sampler"]["guide"]["unmask"] == unmask
    assert record["reward_rows"] == {"independent": 2 * 12 * 4, "joint": 2 * 4 * 8}.get(
        positions, record["reward_rows"]
    )


def test_cached_siblings_rows_and_texts_write_the_same(models, rewards):  # noqa: F811
    common = [
        "--model",
        models["causal"],
        "--strategy",
        "pargs",
        "--reward",
        rewards["prefix"],
        "--prompt",
        "The cat",
        "--k",
        "5",
    ]
    found = {read: draw(*common, f"sampler.guide.read={read}") for read in ("siblings", "rows")}
    assert torch.equal(found["siblings"][0], found["rows"][0])
    assert found["rows"][2]["reward_rows"] == 5 * found["siblings"][2]["reward_rows"]


# ------------------------------------------------------------------------------------------------ over a prompt file


def words(models, rewards, out, *more):  # noqa: F811
    return [
        f"dlm.path={models['causal']}", f"out={out}", f"prompts.file={rewards['prompts']}", "length=6", "batch_size=3",
        f"rewards.full={rewards['full']}", f"rewards.partial={rewards['prefix']}", f"rewards.head={rewards['head_causal']}",
        '+methods.value_head={strategy: value_head, guide: {reward: "${rewards.head}"}}', "sampler.guide.k=5", "device=cpu", *more,
    ]  # fmt: skip


def table(path):
    with Path(path).open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def answered(models, rewards, tmp_path_factory):  # noqa: F811
    out = tmp_path_factory.mktemp("guide") / "out"
    guide(composed("guide", words(models, rewards, out)))
    return out


def test_methods_of_two_commands_stand_in_one_table(models, rewards, tmp_path):  # noqa: F811
    common = [f"dlm.path={models['causal']}", f"out={tmp_path}", f"prompts.file={rewards['prompts']}", "prompts.count=2",
              "length=6", "device=cpu", "selector=brevity", "~methods"]  # fmt: skip
    for name in ("leftmost", "top_k"):
        guide(composed("guide", [*common, f"+methods.{name}.strategy={name}"]))
    assert [row["method"] for row in table(tmp_path / "costs.csv")] == ["leftmost", "top_k"]
    assert list(table(tmp_path / "rewards.csv")[0])[:2] == ["leftmost", "top_k"]
    with pytest.raises(
        ValueError, match=r"holds leftmost with .*length=6 \(now 5\).*, which does not belong into one table"
    ):
        guide(composed("guide", [*common, "length=5", "+methods.more.strategy=top_k"]))


def test_one_command_answers_every_prompt_by_every_method(answered):
    """The published script crashes after its first prompt, on names that it never defined."""
    for name in METHODS:
        rows = json.loads((answered / f"generation_{name}.json").read_text())
        assert sorted(row["prompt"] for row in rows) == sorted(PROMPTS) and {tuple(row) for row in rows} == {
            ("prompt", "result", "finished")
        }
        assert all(row["result"] for row in rows)
    rows = table(answered / "rewards.csv")
    assert len(rows) == 4 and tuple(rows[0]) == (*METHODS, "label") and all(float(value) for value in rows[0].values())
    for one in rows:
        assert float(one["best_of_n"]) > -1e3
    costs = {row["method"]: row for row in table(answered / "costs.csv")}
    assert (
        float(costs["pargs"]["reward_rows_per_token"]) == 1 and float(costs["value_head"]["reward_rows_per_token"]) == 0
    )
    assert (
        float(costs["best_of_n"]["evaluations_per_token"]) >= 5 and float(costs["top_k"]["evaluations_per_token"]) == 1
    )
    assert (
        len(
            {
                tuple(row["result"] for row in json.loads((answered / f"generation_{name}.json").read_text()))
                for name in METHODS
            }
        )
        > 3
    )


def test_a_run_that_was_killed_goes_on_and_the_batch_size_changes_nothing(models, rewards, answered, tmp_path):  # noqa: F811
    out = tmp_path / "out"
    guide(composed("guide", words(models, rewards, out, "batch_size=1")))
    expected = [(answered / f"generation_{name}.json").read_text() for name in METHODS]
    assert [(out / f"generation_{name}.json").read_text() for name in METHODS] == expected
    log = out / "pargs" / "generations.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text("".join(lines[:2]) + lines[2][:20])  # killed in the middle of a line
    (out / "generation_pargs.json").unlink()
    guide(composed("guide", words(models, rewards, out)))
    assert (out / "generation_pargs.json").read_text() == expected[4]
    assert log.read_text().startswith("".join(lines[:2])[:200])
    with pytest.raises(ValueError, match="holds an evaluation with seed=0"):
        guide(composed("guide", words(models, rewards, out, "seed=1")))


def test_masked_models_answer_too(models, rewards, tmp_path):  # noqa: F811
    changed = [f"dlm.path={models['text']}", f"rewards.head={rewards['head_text']}", f"rewards.partial={rewards['mask']}",
               "sampler.steps=3", "prompts.count=2"]  # fmt: skip
    guide(composed("guide", words(models, rewards, tmp_path, *changed)))
    assert len(table(tmp_path / "rewards.csv")) == 2
    costs = {row["method"]: row for row in table(tmp_path / "costs.csv")}
    assert float(costs["pargs"]["evaluations_per_token"]) <= 0.5 + 1e-6


def test_prompts_are_drawn_by_a_seed_and_each_comes_once(rewards):
    everyone = load_prompt_rows(rewards["prompts"])
    assert len(everyone) == 4 and everyone[0].label == " was happy."
    assert (
        load_prompt_rows(rewards["prompts"], 2) == everyone[:2]
        and load_prompt_rows(rewards["prompts"], 4, seed=1) != everyone
    )
    with pytest.raises(ValueError, match="has 4 different prompts and prompts.count is 5"):
        load_prompt_rows(rewards["prompts"], 5)


def test_published_prompts_are_those_that_rewards_are_trained_with(tmp_path):
    from datasets import Dataset

    rows = [{"prompt": "SUBREDDIT: r/a\nPOST: b\nTL;DR:", "label": "short"}]
    Dataset.from_list(rows).save_to_disk(tmp_path / "tldr_prompts")
    talks = [{"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: No"}]
    Dataset.from_list(talks).save_to_disk(tmp_path / "hh_prompts")
    assert load_prompt_rows("tldr", cache_dir=str(tmp_path)) == [PromptRow("SUBREDDIT: r/a\nPOST: b\nTL;DR:", " short")]
    assert load_prompt_rows("hh", cache_dir=str(tmp_path)) == [PromptRow("\n\nHuman: Hi\n\nAssistant:", " Hello")]
    with pytest.raises(
        ValueError, match="'tldr' .* cannot be reached: check the network, or put a folder tldr_prompts"
    ):
        load_prompt_rows("tldr", cache_dir=str(tmp_path / "empty"))


# ------------------------------------------------------------------------------------------------ what is refused

REFUSED = [
    ("pargs", ["--k", "281"], "k=281 must be a whole number from 1 to the model's 280 tokens"),
    ("pargs", ["--k", "0"], "k=0 must be a whole number of at least 1"),
    ("pargs", ["--beta", "nan"], "beta=nan must be a finite number"),
    ("pargs", ["--beta", "inf"], "beta=inf must be a finite number"),
    ("args", [], "takes a reward that was trained on full rows and .* is of kind 'prefix'; use pargs or pargs_g"),
    ("pargs", ["--reward", "OTHER", "sampler.guide.read=siblings"], "needs a reward that reads the model's own token ids, and the tokenizer of"),
    ("pargs", ["--reward", "ENCODER", "sampler.guide.read=siblings"], "needs a causal language model and a causal reward model"),
    ("pargs", ["--reward", "MASK"], "was trained on canvases with masks, and a causal model has none"),
    ("pargs", ["--unmask", "random"], "unmask=random needs a masked model and this one is causal"),
    ("pargs", ["--positions", "joint"], "is for masked models; leave it out, as a causal model"),
    ("pargs", ["sampler.top_k=3"], "has its own token distribution; leave sampler.temperature, top_p and top_k out"),
    ("value_head", ["--reward", "HEAD_TEXT"], "is a head of .*; give the model .*--model"),
    ("value_head", [], "holds no vocabulary head"),
    ("best_of_n", ["sampler.temperature=0"], "best_of_n at temperature 0, or with k=1, would draw the same sample each time"),
    ("best_of_n", ["--k", "1"], "or with k=1, would draw the same sample each time"),
    ("best_of_n", ["--k", "281"], "k=281 must be a whole number from 1"),
    ("top_k", ["--k", "281"], "k=281 must be a whole number from 1"),
    ("best_of_n", ["sampler.guide.samples=0"], "sampler.guide.samples=0 must be a whole number"),
    ("best_of_n", ["sampler.top_p=0"], "top_p=0 must be a finite number above 0"),
]  # fmt: skip


@pytest.mark.parametrize(("strategy", "more", "message"), REFUSED)
def test_what_no_decoding_could_have_is_refused_before_any_work(models, rewards, strategy, more, message):  # noqa: F811
    more = [rewards.get(word.lower(), word) if word.isupper() else word for word in more]
    with pytest.raises(ValueError, match=message):
        reward = [] if strategy == "top_k" else ["--reward", rewards["prefix"]]
        draw("--model", models["causal"], "--strategy", strategy, *reward, *more)


def test_a_reward_that_reads_less_than_the_canvas_is_refused_before_any_work(models, rewards, monkeypatch):  # noqa: F811
    def short(*where):
        reward = load_reward(*where)
        reward.max_length = 4  # pyright: ignore[reportAttributeAccessIssue]
        return reward

    monkeypatch.setattr("unmask.decoders.load_reward", short)
    for read in ("siblings", "rows"):
        with pytest.raises(ValueError, match="reads 4; shorten either"):
            draw(
                "--model",
                models["causal"],
                "--strategy",
                "pargs",
                "--reward",
                rewards["prefix"],
                f"sampler.guide.read={read}",
            )


def test_a_reward_is_needed_and_strategies_have_names(models):  # noqa: F811
    with pytest.raises(ValueError, match="strategy 'args' needs a reward; give a name, a run or a hub id"):
        draw("--model", models["causal"], "--strategy", "args")
    with pytest.raises(ValueError, match="strategy 'parg' is unknown; did you mean 'pargs'"):
        draw("--model", models["causal"], "--strategy", "parg")


@pytest.mark.parametrize(("more", "message"), [
    (["length=0"], "length=0 must be a whole number of at least 1"),
    (["prompts.count=9"], "prompts.count is 9"),
    (["prompts.file=nowhere.jsonl"], "the prompts nowhere.jsonl are no file"),
    (["length=12"], "with 12 to write more than the model's"),
    (["+methods.pargs.steps={n: 4}"], "methods.pargs sets steps, which"),
    (["+methods.pargs.guide.bta=2"], "methods.pargs sets guide.bta, which configs/sampler/default.yaml does not have"),
    (["methods.pargs.strategy=pags"], "strategy 'pags' is unknown; did you mean 'pargs'"),
    (["device=tpu"], "device=tpu is unknown"),
])  # fmt: skip
def test_a_guide_run_that_could_not_be_is_refused(models, rewards, tmp_path, more, message):  # noqa: F811
    with pytest.raises(ValueError, match=message):
        guide(composed("guide", words(models, rewards, tmp_path / "out", *more)))
    assert not (tmp_path / "out").exists()


def test_a_reward_of_another_tokenizer_reads_the_text(models, rewards):  # noqa: F811
    tokens, _, record = draw(
        "--model", models["causal"], "--strategy", "pargs", "--reward", rewards["other"], "--k", "5"
    )
    assert record["reward_rows"] == 5 * record["generated"] and (tokens < 280).all()


def test_the_command_itself(models, rewards, tmp_path):  # noqa: F811
    env = os.environ | {"HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-m",
        "unmask",
        "guide",
        *words(models, rewards, tmp_path / "out", "methods.nothing={strategy: x}"),
    ]
    ended = subprocess.run(command, capture_output=True, text=True, env=env, cwd=Path(guide_run.__file__).parents[2])
    assert ended.returncode == 2 and "methods.nothing" in ended.stderr
    assert "--reward" in sample_command.parser().format_help()


EXPERIMENTS = {  # what stands in the place of their models and data
    "pargs_tldr_decode": ["methods.DPO.path=CAUSAL", "methods.PPO.path=CAUSAL"],
    "pargs_hh_decode": ["methods.DPO.path=CAUSAL", "model.dtype=float32"],
    "pargs_smollm2_decode": ["methods.DPO.path=CAUSAL", "rewards.head=HEAD_CAUSAL"],
    "pargs_stories_decode": ["methods.DPO.path=CAUSAL", "methods.RLOO.path=CAUSAL", "rewards.head=HEAD_CAUSAL"],
    "pargs_stories_sweep": [],
    "pargs_masked_decode": ["dlm.path=TEXT", "rewards.partial=MASK", "rewards.prefix=PREFIX", "sampler.steps=6",
                            "methods.best_of_n.steps=3", "methods.joint_8.steps=2", "methods.pargs_pair.steps=2"],
}  # fmt: skip


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_runs_on_tiny_models(models, rewards, tmp_path, experiment):  # noqa: F811
    known = {name.upper(): path for name, path in (models | rewards).items()}
    common = [f"experiment={experiment}", "dlm.path=CAUSAL", "rewards.full=FULL", "rewards.partial=PREFIX", "prompts.file=PROMPTS",
              "prompts.count=2", "length=6", f"out={tmp_path}", "sampler.guide.k=4", "sampler.guide.samples=2", "device=cpu"]  # fmt: skip
    said = dict(word.split("=", 1) for word in common + EXPERIMENTS[experiment])
    config = composed("guide", [f"{key}={known.get(value, value)}" for key, value in said.items()])
    guide(config)
    assert {path.stem for path in tmp_path.glob("generation_*.json")} == {
        f"generation_{name}" for name in config.methods
    }
    assert len(table(tmp_path / "rewards.csv")) == 2
    as_it_is = composed("guide", [f"experiment={experiment}"])
    assert {"args", "pargs", "pargs_g"} <= as_it_is.methods.keys() and as_it_is.rewards.partial
    if experiment == "pargs_tldr_decode":
        assert (as_it_is.prompts.count, as_it_is.length, as_it_is.sampler.guide.k) == (100, 64, 10)
        assert as_it_is.methods.PPO.path == "vistagi/gpt2-large-tldr-sum-rlhf"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            ["+methods.a={strategy: leftmost, threshold: 0.4}"],
            "methods.a.threshold would do nothing with strategy leftmost",
        ),
        (["+methods.a={strategy: threshold, steps: 4}"], "methods.a.steps would do nothing with strategy threshold"),
        (["sampler.window=3"], "sampler.window, which is set for all methods, would do nothing with strategy top_k"),
        (["rewards.head=x"], r"rewards.head would do nothing, as no method names \$\{rewards.head\}"),
    ],
)
def test_settings_that_no_method_reads_are_refused(more, message):
    with pytest.raises(ValueError, match=message):
        guide_run.check_guide_run(composed("guide", ["out=x", "prompts.file=y", *more]), more)


def test_settings_that_one_method_reads_are_taken():
    more = [
        "+methods.a={strategy: threshold, threshold: 0.4}",
        "sampler.guide.k=4",
        "sampler.steps=4",
        "rewards.full=x",
    ]
    guide_run.check_guide_run(composed("guide", ["out=x", "prompts.file=y", *more]), more)
