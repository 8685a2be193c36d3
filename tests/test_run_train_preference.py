"""train-preference end to end: DPO, KTO and RLOO, with and without an adapter, resuming, refusals."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoTokenizer

from data.preferences import Preference
from dlm.causal_lm import sequence_log_prob
from dlm.encoding import text_ids
from load_model import load_model
from tests.policy_runs import ROOT, command, record
from tests.preference_pairs import tiny, write_pairs
from training.storage import CHECKSUM
from unmask.runs import train_preference
from unmask.runs.train_preference import RowsOfIds, rows_of

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)  # TRL's own
QUICK = ["run_dir=RUN", "device=cpu", "wandb.mode=disabled", "init=MODEL", "data.train=PAIRS", "training.n_iters=2",
         "training.eval_freq=2", "training.snapshot_freq=2", "training.log_freq=1", "training.batch_size=4", "eval.batch_size=4",
         "data.valid_count=4", "data.max_length=32", "lora.rank=4"]  # fmt: skip
RLOO = [
    "preference.algorithm=rloo",
    "preference.reward=brevity",
    "preference.group_size=2",
    "preference.answer_length=8",
]


@pytest.fixture(scope="module")
def ready(tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("ready")
    return {"PAIRS": write_pairs(folder / "pairs.jsonl"), "MODEL": tiny("llama", folder / "llama")}


def run(directory: Path, ready: dict[str, Path], *overrides: str) -> Path:
    """The command in this process; RUN, PAIRS and MODEL in an override are paths."""
    asked = []
    for override in (*QUICK, *overrides):
        for name, path in {**ready, "RUN": directory}.items():
            override = override.replace(name, str(path))
        asked.append(override)
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_preference", asked)
    return train_preference.run(config, asked)


def test_dpo_makes_the_preferred_answer_likelier_and_the_model_is_one_that_samples(ready, tmp_path):
    directory = run(
        tmp_path / "run",
        ready,
        "training.n_iters=12",
        "optim.lr=1e-2",
        "training.eval_freq=12",
        "training.snapshot_freq=12",
    )
    measured = record(directory)
    assert measured[1]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert measured[12]["eval_rewards/margins"] > 0.01 and measured[12]["eval_rewards/accuracies"] > 0.5
    assert (directory / "curves.png").read_bytes().startswith(b"\x89PNG")
    before, after = load_model(ready["MODEL"])[0], load_model(directory / "model")[0]
    line = json.loads(ready["PAIRS"].read_text().splitlines()[-1])
    gains = []
    for side in ("chosen", "rejected"):
        tokens = torch.tensor([before.tokenizer.encode(line["prompt"] + line[side])])
        gains.append(float((sequence_log_prob(after, tokens) - sequence_log_prob(before, tokens)).sum()))
    assert gains[0] > gains[1]
    with safe_open(tmp_path / "run" / "model" / "model.safetensors", "pt") as weights:
        assert CHECKSUM in weights.metadata()


@pytest.mark.parametrize(
    "more", [["preference.algorithm=kto"], RLOO, ["lora.rank=null"], ["lora.target_modules=[q_proj,v_proj]"]]
)
def test_the_other_algorithms_and_adapters(more, ready, tmp_path):
    directory = run(tmp_path / "run", ready, *more, "optim.lr=1e-2")
    before, after = (
        load_file(ready["MODEL"] / "model.safetensors"),
        load_file(directory / "model" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and (
        "lora.target_modules" not in more[0] or all("q_proj" in name or "v_proj" in name for name in changed)
    )
    assert ("embed" in "".join(changed)) == (more == ["lora.rank=null"])
    if more is RLOO:
        assert -9 <= record(directory)[1]["reward"] <= 0


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "example/stories")


def test_rows_are_ids_in_which_names_of_special_tokens_are_text(tokenizer):
    end = tokenizer.eos_token_id
    ids = {text: text_ids(tokenizer, text) for text in (f"p{tokenizer.eos_token}", " a", f" b{tokenizer.eos_token}")}
    assert not any(end in own for own in ids.values())
    prompt, chosen, rejected = ids
    pair = Preference(prompt, chosen, rejected, rejected_ends=False)  # cut off: it has no end
    (dpo,), kto = (rows_of([pair], algorithm, tokenizer, 2048, 512, 4).to_list() for algorithm in ("dpo", "kto"))
    assert dpo == {"prompt_ids": ids[prompt], "chosen_ids": [*ids[chosen], end], "rejected_ids": ids[rejected]}
    assert [(row["completion_ids"], row["label"]) for row in kto] == [
        ([*ids[chosen], end], True), (ids[rejected], False)
    ]  # fmt: skip
    assert rows_of([pair, pair], "rloo", tokenizer, 2048, 512, 4).to_list() == [{"prompt": prompt}]


def test_rows_of_kto_have_the_answer_of_another_row_of_their_batch(tokenizer):
    pairs = [Preference("p", f" {number}", f" no {number}") for number in range(3)]
    rows = rows_of(pairs, "kto", tokenizer, 2048, 512, 4).to_list()
    before = [3, 0, 1, 2, 5, 4]
    assert [row["KL_completion_ids"] for row in rows] == [rows[number]["completion_ids"] for number in before]


def test_rows_that_do_not_fit_are_left_out_or_refused(tokenizer):
    short, long = Preference("p", " a", " b"), Preference("one day she went home", " a", " b")
    assert len(rows_of([short, long], "dpo", tokenizer, 2048, 4, 4)) == 1
    with pytest.raises(ValueError, match="every prompt fills data.max_length=4 tokens"):
        rows_of([long], "dpo", tokenizer, 2048, 4, 4)
    with pytest.raises(ValueError, match="the pair of the prompt 'p' has the token .* and the model 9 tokens"):
        rows_of([short], "dpo", tokenizer, 9, 512, 4)


def test_a_prompt_of_rloo_is_text(tokenizer):
    reader = RowsOfIds()
    reader.processing_class = tokenizer
    assert reader._tokenize_prompts([f"p{tokenizer.eos_token}"])[0] == [text_ids(tokenizer, f"p{tokenizer.eos_token}")]


def test_a_resumed_run_is_the_uninterrupted_one(ready, tmp_path):
    more = ["optim.lr=1e-2", "optim.schedule=constant"]
    whole = run(tmp_path / "whole", ready, *more, "training.n_iters=4")
    half = run(tmp_path / "half", ready, *more)
    run(half, ready, *more, "resume=RUN", "training.n_iters=4")
    one, other = (load_file(folder / "model" / "model.safetensors") for folder in (whole, half))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["preference.algorithm=ppo"], "preference.algorithm='ppo' is unknown; use one of dpo, kto, rloo"),
        (["preference.beta=.inf"], "preference.beta=.*inf must be a finite number"),
        (["preference.reward=vader"], "rloo learns from a reward, and dpo and kto from pairs"),
        (["preference.algorithm=rloo"], "rloo learns from a reward"),
        ([*RLOO, "training.batch_size=64"], "has 4 different prompts and an update asks 32; lower training.batch_size"),
        ([*RLOO, "preference.group_size=3"], "preference.group_size=3 must be at least 2 and divide training.batch_size=4"),
        (["preference.algorithm=kto", "training.accum=4"], "kto compares the answers of a part with each other"),
        (["training.batch_size=4", "training.accum=3"], "a process's batch of 4 is not divisible by training.accum=3"),
        (["lora.rank=2", "lora.target_modules=[nosuch]"], "lora.target_modules=nosuch is no part of .*choose some of .*q_proj"),
        (["init=example/stories"], "init=example/stories is no causal model of transformers that can be reached"),
    ],
)  # fmt: skip
def test_bad_input_is_refused_before_any_work(overrides, message, ready, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", ready, *overrides)
    assert not (tmp_path / "run").exists()


def test_the_command_itself_says_what_is_wrong(tmp_path):
    argv, environment = command("-m", "unmask", "train-preference", "preference.alg=dpo")
    told = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert (told.returncode == 2 and "init" in told.stderr) or "did you mean" in told.stderr


def test_resuming_a_run_that_has_ended_trains_no_further(ready, tmp_path):
    directory = run(tmp_path / "run", ready)
    before, steps = load_file(directory / "model" / "model.safetensors"), record(directory)
    shutil.rmtree(directory / "model")
    run(tmp_path / "run", ready, "resume=RUN")
    after = load_file(directory / "model" / "model.safetensors")
    assert record(directory) == steps and all(torch.equal(value, after[name]) for name, value in before.items())
