"""Old keys, and published ones as the users of other systems type them, become ours."""

import shlex

import pytest

import training.compatibility
from training.compatibility import (
    FLAGS,
    IMPLIED,
    KEYS,
    VALUES,
    WITHOUT_EXPERIMENT,
    current_flags,
    translated,
    with_current_keys,
)
from training.stored import description
from training.usage import CONFIGS, composed
from unmask.build import read_settings
from unmask.commands import evaluate, make_preferences, make_stories, perplexity, sample
from unmask.settings import COMMANDS

TYPED = shlex.split(
    "experiment=llada_bl32 model_path=somewhere block_length=16 max_completion_length=64 policy_type=dit_confidence "
    "policy_smart_init=-1.5 reward_functions=[mixed_correctness_add_reward_func,format] reward_weights=[1,0] "
    "alpha_compute_reward=3.0 sampling_mode=bernoulli temperature=0.25 output_dir=out run_name=mine num_generations=4 "
    "num_iterations=3 epsilon=0.1 learning_rate=1e-4 weight_decay=0.2 max_grad_norm=0.3 warmup_steps=7 seed=5 "
    "lr_scheduler_type=constant dataset=gsm8k_and_math_and_kodcode max_prompt_length=99 generation_batch_size=64 beta=0.01 "
    "confidences_top_p=2 policy_hidden_dim=32 policy_feedforward_dim=64 policy_num_heads=4 policy_num_blocks=2 "
    "policy_time_embed_dim=16 policy_time_period=100 bf16=false policy_full_context=true es_thresholds=[0.9]"
)


def test_a_whole_command_line_of_theirs():
    config = composed("train_policy", translated(TYPED))
    read_settings(COMMANDS["train_policy"], config)
    assert (config.dlm.path, config.run_dir, config.wandb.name, config.seed) == ("somewhere", "out", "mine", 5)
    assert config.sampler.block_length == 16 and config.sampler.temperature == 0.0  # of the tokens
    assert config.eval.temperature == 0.25 and config.eval.action == "bernoulli_argmax"
    assert config.reward.functions == ["mixed_correctness_add_reward_func", "format"] and config.reward.weights == [
        1,
        0,
    ]
    assert config.reward.alpha == 3.0 and config.model.dtype == "float32"
    algorithm = {"action": "bernoulli", "group_size": 4, "inner_updates": 3, "clip": 0.1, "kl": 0.01}
    assert algorithm.items() <= dict(config.algorithm).items()
    assert config.algorithm.experts == {"thresholds": [0.9], "block_length": 32}
    optim = {"lr": 1e-4, "weight_decay": 0.2, "grad_clip": 0.3, "warmup": 7, "schedule": "constant"}
    assert optim.items() <= dict(config.optim).items()
    assert config.data.datasets == ["gsm8k", "math", "kodcode"]
    assert config.data.answer_length == 64 and config.data.max_prompt_length == 99
    assert config.training.batch_size == 64
    policy = {"policy_type": "dit_confidence", "smart_init": -1.5, "confidences_top_p": 2, "hidden_dim": 32,
              "feedforward_dim": 64, "num_heads": 4, "num_blocks": 2, "time_embed_dim": 16, "time_period": 100}  # fmt: skip
    assert policy.items() <= dict(config.policy).items()


def test_every_key_is_typed_above():
    typed = {word.split("=")[0] for word in TYPED}
    assert KEYS.keys() | VALUES.keys() <= typed | {"per_device_train_batch_size"}
    assert {said.split("=")[0] for said in (*IMPLIED, *WITHOUT_EXPERIMENT)} <= KEYS.keys() | VALUES.keys()


@pytest.mark.parametrize(
    ("words", "weights"),
    [
        (["reward_functions=[correct,format]"], [1, 1]),
        (["reward_functions=[mixed_correctness_add_reward_func, format, correct]", "experiment=llada_bl32"], [1, 1, 1]),
        (["reward_functions=[correct]"], [1]),
        (["reward_functions=[correct,format]", "reward_weights=[1,0]"], [1, 0]),
        (["reward.weights=[0,2]", "reward_functions=[correct,format]"], [0, 2]),
    ],
)
def test_functions_without_weights_count_the_same(words, weights):
    config = composed("train_policy", translated(words))
    assert config.reward.weights == weights and len(config.reward.functions) == len(weights)
    read_settings(COMMANDS["train_policy"], config)


def test_the_context_of_a_policy_is_the_full_one():
    assert translated(["experiment=llada_bl32", "policy_full_context=True"]) == ["experiment=llada_bl32"]
    with pytest.raises(ValueError, match="is one of true: policies read every position .* of later blocks too"):
        translated(["policy_full_context=false"])


def test_experts_of_their_name_make_the_experiment_with_experts():
    words = ["experiment=llada_bl256", "es_thresholds=[0.9]", "epsilon=0.2"]
    assert composed("train_policy", translated(words)) == composed("train_policy", ["experiment=llada_expert_steering"])
    alone = composed("train_policy", translated(["es_thresholds=[0.5,0.9]"]))
    assert alone.algorithm.experts.thresholds == [0.5, 0.9] and alone.algorithm.name == "grpo"


@pytest.mark.parametrize("value", VALUES["dataset"])
def test_data_sets(value):
    config = composed("train_policy", translated([f"dataset={value}"]))
    assert config.data.kind == "questions" and "_and_".join(config.data.datasets) == value


def test_dpls_starts_as_likely_as_stop_unless_told_otherwise():
    config = composed("train_policy", translated(["experiment=llada_bl32", "sampling_mode=dpls"]))
    same = composed("train_policy", ["experiment=llada_bl32_dpls"])
    assert config == same and config.policy.smart_init == 0.0
    for own in ("policy_smart_init=-1.0", "policy.smart_init=-1.0"):
        config = composed("train_policy", translated(["experiment=llada_bl32", "sampling_mode=dpls", own]))
        assert config.policy.smart_init == -1.0 and config.algorithm.action == "plackett_luce"


def test_their_keys_need_no_experiment():
    words = ["model_path=example/chain", "sampling_mode=DPLS", "block_length=256", "alpha_compute_reward=0.3"]
    config = composed("train_policy", translated(words))
    assert (config.algorithm.name, config.algorithm.action, config.reward.name) == ("grpo", "plackett_luce", "right")
    assert (config.policy.policy_type, config.policy.smart_init) == ("dit_confidence", 0.0)
    assert list(config.data.datasets) == ["gsm8k", "math"] and config.eval.temperature == 1.0
    assert config.eval.action == "plackett_luce" and config.sampler.temperature == 0.0
    assert config.sampler.steps == config.data.answer_length == 256  # which blocks of any length divide
    config = composed("train_policy", translated(["model_path=example/chain", "reward_functions=[format]"]))
    assert (config.algorithm.name, config.eval.action, config.sampler.temperature) == ("grpo", "bernoulli_argmax", 0.0)
    config = composed(
        "train_policy", translated(["experiment=llada_bl32_ppo", "block_length=256", "sampling_mode=bernoulli"])
    )
    assert (config.algorithm.name, config.eval.temperature) == ("ppo", 1.0)


def test_a_batch_per_device_is_multiplied_by_the_processes(monkeypatch):
    words = ["per_device_train_batch_size=16", "generation_batch_size=128"]
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert translated(words) == ["training.batch_size=128"]
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert translated(words[:1]) == ["training.batch_size=16"]
    with pytest.raises(ValueError, match="both set training.batch_size, to different values"):
        translated(words)


def test_ours_pass_through_and_flags_too():
    words = ["experiment=sudoku6_grpo", "optim.lr=1", "optim.lr=2", "+x.y=1", "~wandb", "--cfg", "job"]
    assert translated(words) == words


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["block_length=32", "sampler.block_length=16"], "sampler.block_length=16 and block_length=32 both set"),
        (["sampler.block_length=16", "block_length=32"], "leave one out"),
        (["sampling_mode=dpls", "algorithm.action=bernoulli"], "both set algorithm.action"),
        (["learning_rate=1e-3", "optim.lr=3e-5"], "both set optim.lr"),
        (["dataset=gsm8k", "data.datasets=[math]"], "both set data.datasets"),
        (["policy_type=dit_confidence", "policy=hidden_mlp"], "both set policy"),
        (["sampling_mode=greedy"], "sampling_mode is one of bernoulli, dpls"),
        (["dataset=mbpp"], "dataset is one of gsm8k, math, kodcode"),
    ],
)
def test_what_contradicts_itself_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        translated(words)


def test_the_same_said_twice_is_no_contradiction():
    assert translated(["learning_rate=3e-5", "optim.lr=0.00003"]) == ["optim.lr=0.00003"]
    assert translated(["dataset=gsm8k_and_math", "data.datasets=[gsm8k, math]", "data=gsm8k_math"]) == [
        "data.datasets=[gsm8k, math]", "data=gsm8k_math",
    ]  # fmt: skip


def test_an_unknown_key_is_the_usual_error():
    with pytest.raises(ValueError, match="names no key of configs/train_policy.yaml"):
        composed("train_policy", translated(["alpha_compute=1"]))


def test_the_table_sets_keys_that_exist():
    """Groups and keys of a policy, an algorithm or a reward that has them."""
    everything = composed("train_policy", ["experiment=llada_bl32"])
    for key in KEYS.values():
        node = everything
        for part in key.split("."):
            assert part in node, key
            node = node[part]
    assert training.compatibility.__doc__ is not None


# ----------------------------------------------------------------------------------------------------------------- old keys


@pytest.mark.parametrize("command", ["train_policy", "train_rl"])
def test_old_keys_of_the_decoder_are_current_ones(command):
    words = ["sampling.length=8", "+sampling.temperature=0", "~sampling.cache", "sampling.block_length=null"]
    assert translated(words, command) == [word.replace("sampling", "sampler") for word in words]


def test_published_keys_of_other_systems():
    words = ["sampling.discrete_steps=4", "sampling.discrete_time_exponent=0.5", "pretrained_hf_path=owner/name", "outdir=here",
             "training.loss_type=policy_log_loss"]  # fmt: skip
    config = composed("train_policy", translated(words))
    assert (config.sampler.steps, config.policy.time_exponent, config.dlm.path) == (4, 0.5, "owner/name")
    assert (config.run_dir, config.algorithm.name) == ("here", "variational")
    assert translated(["training.loss_type=k_DCE"], "train_dlm") == ["loss=k_DCE"]
    assert translated(["sampling.predictor=euler", "sampling.steps=8"], "sample") == [
        "sampler.steps=8",
        "sampler.strategy=euler",
    ]
    assert translated(["algorithm=ppo"], "train_rl") == ["rl.algorithm=ppo"]
    assert translated(["temperature=1"], "train_rl") == ["temperature=1"]  # of another command


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["sampling.discrete_steps=4", "sampler.steps=8"],
            "sampler.steps=8 and sampling.discrete_steps=4 both set sampler.steps",
        ),
        (["sampler.length=4", "sampling.length=8"], "sampler.length=4 and sampling.length=8 both set sampler.length"),
        (
            ["sampling.discrete_steps=4", "sampling.steps=5"],
            "sampling.discrete_steps=4 and sampling.steps=5 both set sampler.steps",
        ),
        (["block_length=4", "sampling.block_length=8"], "sampler.block_length=8 and block_length=4 both set"),
    ],
)
def test_an_old_key_beside_its_current_one_is_refused(words, message):
    with pytest.raises(ValueError, match=message):
        translated(words)
    assert translated([words[0], words[0].replace("sampling.discrete_steps", "sampler.steps")])


def test_a_stored_configuration_gets_current_keys():
    old = {"seed": 1, "sampling": {"discrete_steps": 4, "length": 8, "policy": {"path": "x"}}}
    assert with_current_keys(old, "FILE") == {"seed": 1, "sampler": {"steps": 4, "length": 8, "policy": {"path": "x"}}}
    current = {"sampler": {"steps": 4}, "rl": {}}
    assert with_current_keys(current, "FILE") == {"sampler": {"steps": 4}, "rl": {}}
    with pytest.raises(
        ValueError, match="^FILE sets sampling.discrete_steps and sampler.steps, which are one key; remove one$"
    ):
        with_current_keys({"sampling": {"discrete_steps": 4}, "sampler": {"steps": 4}}, "FILE")
    with pytest.raises(ValueError, match="^FILE sets sampling and sampler"):
        with_current_keys({"sampling": {"length": 4}, "sampler": {"length": 4}}, "FILE")


def test_the_shipped_policies_are_read_by_current_keys():
    config = description(CONFIGS.parent / "example" / "chain_budget" / ".hydra" / "config.yaml")
    assert (
        list(config.sampler.budgets) == [2, 3, 4, 5, 6, 8] and config.sampler.steps == 24 and "sampling" not in config
    )


def test_old_flags_are_current_ones():
    words = ["--policy_path", "x", "--save_path=DIR", "--dataset", "gsm8k", "--steps", "4", "--thres=0.5"]
    current = ["--policy", "x", "--out=DIR", "--datasets", "gsm8k", "--steps", "4", "--settings=0.5"]
    assert current_flags(words, "evaluate") == current == current_flags(current, "evaluate")
    assert current_flags(["--n_test", "3"], "evaluate") == ["--n_test", "3"]
    assert current_flags(["--n_test", "3"], "evaluate --task text") == ["--num_samples", "3"]
    for words in (["--policy_path", "x", "--policy", "y"], ["--save_path=a", "--output_dir=b"]):
        with pytest.raises(ValueError, match="are one flag; leave one out"):
            current_flags(words, "evaluate")


PARSERS = {
    "sample": sample.parser, "perplexity": perplexity.parser, "make-preferences": make_preferences.parser,
    "make-stories": make_stories.parser, "evaluate": evaluate.parser,
    **{f"evaluate --task {task}": flags for task, (flags, _) in evaluate.TASKS.items()},
}  # fmt: skip


@pytest.mark.parametrize("command", FLAGS)
def test_the_table_of_flags_names_flags_that_exist(command):
    known = set(PARSERS[command]()._option_string_actions)
    assert set(FLAGS[command].values()) <= known and not FLAGS[command].keys() & known
