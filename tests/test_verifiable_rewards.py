"""Training on verifiable rewards end to end: the real command with published keys, mixtures, GRPO and PPO, resuming, refusals."""

import re
import subprocess

import pytest
import torch

from data.settings import QuestionSettings
from data.tasks import QuestionTask
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from load_model import load_model
from policy.checkpoints import load_policy
from policy.settings import PolicyTrainingSettings
from rewards.rules import VerifiedReward
from samplers.heuristics import Threshold
from samplers.loop import Strategy, sample
from tests.policy_runs import DIT, QUICK, ROOT, assert_equal, command, record, run, saved
from tests.tiny_text import backbone, questions
from training.compatibility import translated
from training.processes import Processes
from training.usage import composed
from unmask.build import build_task, check_data, read_settings


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> list[str]:
    """The published settings on a tiny LLaDA, a mixture of two tiny data sets, in their words."""
    root = tmp_path_factory.mktemp("tiny")
    model, data = backbone("llada", root / "llada"), questions(root / "data")
    return ["experiment=llada_bl32", f"model_path={model}", f"data.data_dir={data}", "dataset=gsm8k_and_math", "bf16=false",
            "max_completion_length=8", "block_length=4", "sampler.steps=8", "data.valid_rows=3",
            "generation_batch_size=32", "num_generations=8", "warmup_steps=1", "learning_rate=0.01"]  # fmt: skip


FUNCTIONS = [
    "reward_functions=[mixed_correctness_mult_reward_func,mixed_correctness_add_reward_func,format,correct@math]",
    "reward_weights=[1.0,0.5,0,0]", "alpha_compute_reward=0.5",
]  # fmt: skip
TERMS = {"right", "speed", "correct_times_speed", "correct_minus_cost", "format", "correct@math"}
ALGORITHMS = {"grpo of sets": [], "ppo of picks in order": ["algorithm=ppo", "sampling_mode=dpls"]}


def check_terms(metrics: dict[int, dict[str, float]]) -> None:
    assert metrics.keys() == {1, 2} and any(step.get("grad_norm", 0) > 0 for step in metrics.values())
    for step in metrics.values():
        assert step.keys() >= TERMS and step["correct@math"] <= step["right"] < 1
        assert step["reward"] == pytest.approx(step["correct_times_speed"] + 0.5 * step["correct_minus_cost"], abs=1e-6)
        assert step["correct_minus_cost"] == pytest.approx(step["right"] - 0.5 * step["nfe"] / 8, abs=1e-6)
    assert {f"eval_{name}" for name in TERMS} <= metrics[2].keys()


def test_the_command_in_their_words(tiny, tmp_path):
    words = [*tiny, *FUNCTIONS, *QUICK, *DIT, "max_prompt_length=280", "wandb.mode=disabled"]
    words = [word.replace("run_dir=RUN", f"output_dir={tmp_path / 'run'}") for word in words]
    argv, environment = command(str(ROOT / "run_train_policy.py"), *words)
    done = subprocess.run(argv, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
    told = "questions: 8 of gsm8k, 5 of math; 3 of them held out; left out as longer than data.max_prompt_length: 1 of math"
    assert told in done.stdout
    check_terms(record(tmp_path / "run"))
    overrides = (tmp_path / "run" / ".hydra" / "overrides.yaml").read_text()
    assert "dlm.path=" in overrides and "model_path" not in overrides  # the run records ours


def test_the_same_by_ppo(tiny, tmp_path):
    metrics = record(run(tmp_path / "run", *translated([*tiny, *FUNCTIONS, "algorithm=ppo"]), *QUICK, *DIT))
    check_terms(metrics)
    assert max(metrics[step]["right"] for step in metrics) > 0  # the model writes some right numbers


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_resumed_run_is_the_uninterrupted_one(algorithm, tiny, tmp_path):
    """Also over the end of an epoch: 11 questions to learn from, 4 prompts a batch of groups and 32 by themselves."""
    words = translated([*tiny, *FUNCTIONS, *ALGORITHMS[algorithm], "lr_scheduler_type=constant"])
    words = [*words, *QUICK, *DIT]
    whole = run(tmp_path / "whole", *words, "training.n_iters=4")
    half = run(tmp_path / "half", *words)
    assert run(tmp_path / "half", "resume=RUN", "training.n_iters=4", *translated(["learning_rate=0.01"])) == half
    assert record(half) == record(whole) and record(half).keys() == {1, 2, 3, 4}
    assert_equal(saved(half), saved(whole))
    assert_equal(load_policy(half).state_dict(), load_policy(whole).state_dict())
    assert saved(half)["task"]["rows"] == 11 and saved(half)["task"]["epoch"] >= 1


def test_with_a_cost_a_policy_learns_to_be_fast(tiny, tmp_path):
    words = translated([*tiny, "reward_functions=[mixed_correctness_add_reward_func]", "policy_smart_init=-1.0"])
    directory = run(
        tmp_path / "run",
        *words,
        *QUICK,
        *DIT,
        "training.n_iters=25",
        "training.snapshot_freq=25",
        "training.eval_freq=25",
    )
    metrics = record(directory)
    first, last = (sum(metrics[step]["nfe"] for step in steps) / 5 for steps in (range(1, 6), range(21, 26)))
    assert last < 0.7 * first
    assert sum(metrics[step]["reward"] for step in range(21, 26)) > sum(metrics[step]["reward"] for step in range(1, 6))


def test_chain_arithmetic_is_a_data_set_like_the_others(tmp_path):
    model, _ = load_model(ROOT / "example" / "chain")
    data = {
        "datasets": ["chain"],
        "data_dir": None,
        "count": 200,
        "answer_length": 24,
        "max_prompt_length": None,
        "valid_rows": 8,
        "math_by": "verify",
        "unsandboxed": False,
    }
    task = QuestionTask(model, QuestionSettings.of(data, strict=False), 0)
    prompts = task.prompts(100, 0)
    environment = UnmaskingEnvironment(model, DecodeOptions(24, 4, ends=task.ends))
    samples = sample(environment, Strategy(Threshold(0.3), TokenRule(0.0)), prompts)
    right = task.right(samples.tokens, prompts.rows)
    assert right.mean() > 0.6
    reward = VerifiedReward(task, 1.0, ["correct_times_speed"], [1.0])(samples, prompts.rows)
    speed = (24 - samples.evaluations.clamp(max=24) + 1) / 24
    assert reward.total.tolist() == pytest.approx((right * speed).tolist())


def test_the_temperature_is_the_policys_at_evaluation(tiny, tmp_path):
    """Cold, a policy below one half writes one position an evaluation; hot, about half of them. Training is as it was."""
    metrics = {}
    for name, temperature in (("cold", 0.01), ("hot", 100.0)):
        words = translated([*tiny, f"temperature={temperature}", "reward_functions=[mixed_correctness_reward_func]"])
        metrics[name] = record(run(tmp_path / name, *words, *QUICK, *DIT, "training.n_iters=1", "training.eval_freq=1"))
    assert metrics["cold"][1]["eval_nfe"] == 8 and metrics["hot"][1]["eval_nfe"] < 7
    trained = [{k: v for k, v in metrics[name][1].items() if not k.startswith("eval")} for name in metrics]
    assert trained[0] == trained[1]


def test_the_page_splits_a_model_whose_data_passes_its_check(tiny):
    page = (ROOT / "docs" / "distributed.md").read_text()
    ((count, words),) = re.findall(
        r"^torchrun --nproc-per-node (\d+) run_train_policy.py (.*model.sharded=true.*)$", page, re.M
    )
    small = [word for word in translated(tiny) if word.startswith(("dlm.path=", "data."))]
    config = read_settings(PolicyTrainingSettings, composed("train_policy", [*words.split(), *small]))
    model, _ = load_model(config.dlm.path, model_type=config.dlm.model_type)
    check_data(config, model, build_task(config, model))
    assert config.model.sharded and config.model.dtype == "bfloat16"
    rows = Processes(0, int(count), torch.device("cpu")).share(config.training.batch_size, "training.batch_size")
    assert rows % config.algorithm.group_size == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["reward=bound"], "reward=bound needs clean texts and questions have none"),
        (["reward=puzzle"], "reward=puzzle needs puzzles"),
        (["reward=likelihood"], "reward=likelihood reads text and this data has none"),
        (["algorithm.warm_start.updates=1", "algorithm.warm_start.expert=answers"], "needs data that knows the right text"),
        (["reward.weights=[1,2]"], "has 2 numbers for 1 reward.functions"),
        (["data.datasets=[gsm8k,nothing]"], "data set 'nothing' is unknown"),
        (["data.datasets=[math]", "reward.functions=[xml_mult_reward]"], "'correct_times_speed@gsm8k' is of a data set that is not"),
        (["data.answer_length=300", "sampler.block_length=null"], "gsm8k row 7 .* lower data.max_prompt_length"),
        (["sampler.block_length=3"], "block_length=3 does not divide the length 8"),
    ],
)  # fmt: skip
def test_what_is_refused(words, message, tiny, tmp_path):
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *translated(tiny), *QUICK, *words)


def test_a_model_without_a_tokenizer_and_data_without_answers_are_refused(tiny, tmp_path):
    path = ROOT / "tests" / "vectors" / "llada-tiny"
    assert load_model(path)[0].tokenizer is None
    with pytest.raises(ValueError, match="questions are text; add tokenizer.json"):
        run(tmp_path / "run", *translated(tiny), *QUICK, f"dlm.path={path}")
    with pytest.raises(ValueError, match="reward=right needs questions with known answers"):
        run(tmp_path / "run", "reward=right", "algorithm=grpo", "policy=dit_confidence", *QUICK)
