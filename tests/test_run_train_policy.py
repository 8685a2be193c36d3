"""run_train_policy.py end to end on tiny untrained models: every experiment and algorithm, going on from a policy, refusals."""

import json
import math
import re
import shutil

import pytest
import torch
from transformers import AutoTokenizer

import policy.train
from policy.checkpoints import POLICIES, load_policy, save_policy
from policy.networks import DitConfidence, HiddenMLP
from tests.policy_runs import (
    DIT,
    EXPERIMENTS,
    GROUPS,
    QUICK,
    REPELLING,
    ROOT,
    RULE,
    SHAPE,
    assert_equal,
    record,
    run,
    saved,
)
from tests.training.test_run import train as train_dlm

# ------------------------------------------------------------------------------------------ everything runs


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments(experiment, tiny, tmp_path):
    *overrides, kind = EXPERIMENTS[experiment]
    directory = run(tmp_path / "run", f"experiment={experiment}", *overrides, *tiny[kind], *QUICK)
    metrics = record(directory)
    assert {"eval_reward", "eval_nfe"} <= metrics[2].keys() and metrics[2]["eval_still_masked"] == 0
    if experiment == "policy_learned_reward":
        assert all({"eval_score", "eval_judge", "eval_entropy"} <= metrics[step].keys() for step in (0, 2))
    kinds = {
        "genpolicy_owt": "hidden_mlp",
        "sudoku6_variational": "hidden_mlp",
        "sudoku6_agreement": "agreement",
        "sudoku6_agreement_rl": "agreement",
        "sudoku6_revise": "agreement",
        "sudoku6_answers": "hidden_blocks",
        "sudoku6_budget": "hidden_blocks",
    }
    assert type(load_policy(directory)) is POLICIES[kinds.get(experiment, "dit_confidence")]
    assert len(list((directory / "samples" / "iter_2").glob("sample_*.txt"))) == 2


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_policy_learns_on_top_of_a_cache(cache, tmp_path):
    few = [*GROUPS, "algorithm.warm_start.updates=0", "eval.batch_size=4", *DIT, *QUICK]
    blocks = ["sampler.block_length=4", f"sampler.cache={cache}", "sampler.refresh=3", "eval.batch_size=4"]
    metrics = record(run(tmp_path / "run", "experiment=chain_grpo", *few, *blocks))
    assert metrics[2]["eval_still_masked"] == 0 and metrics[2]["eval_nfe"] >= 6  # an evaluation a block at least


CHAIN = [
    "dlm=chain",
    "data=chain",
    "reward=right",
    "sampler.temperature=0",
    "eval.batch_size=4",
    "eval.action=bernoulli_argmax",
]


@pytest.mark.parametrize("algorithm", ["grpo", "ppo", "imitation"])
def test_a_block_on_hidden_states_learns(algorithm, tmp_path):
    overrides = [*CHAIN, "policy=dit_hidden", "policy.time_embed_dim=8", f"algorithm={algorithm}", *QUICK]
    overrides += GROUPS if algorithm == "grpo" else ["training.batch_size=4"]
    overrides += [*RULE, "algorithm.block_length=2"] if algorithm == "imitation" else []
    directory = run(tmp_path / "run", *overrides)
    metrics, policy = record(directory), load_policy(directory)
    assert metrics[2]["eval_still_masked"] == 0 and (policy.value_proj is not None) == (algorithm == "ppo")
    assert algorithm == "grpo" or metrics[2]["grad_norm"] > 0  # under grpo it may be that nothing was right
    again = run(tmp_path / "again", f"init={directory}", *CHAIN, "algorithm=ppo", "training.batch_size=4", *QUICK)
    assert load_policy(again).value_proj is not None


def test_a_policy_that_was_trained_for_one_alpha_goes_on_with_many(tmp_path):
    before = run(tmp_path / "before", "experiment=chain_grpo", *GROUPS, "algorithm.warm_start.updates=1", *DIT, *QUICK)
    after = run(tmp_path / "after", "experiment=chain_alphas", f"init={before}", *GROUPS, "algorithm.warm_start.updates=0",
                *QUICK, "optim.lr=0", "eval.batch_size=8")  # fmt: skip
    weights, ours = load_policy(before).state_dict(), load_policy(after).state_dict()
    assert_equal({name: ours[name] for name in weights}, weights)
    assert {name.split(".")[0] for name in ours.keys() - weights.keys()} == {"alpha_embedding"}
    metrics = record(after)[2]
    assert {f"eval_nfe_alpha_{alpha}" for alpha in ("0", "0.3", "1", "3")} <= metrics.keys()
    with pytest.raises(ValueError, match=r"give values to draw from: reward.alphas"):
        run(tmp_path / "one", "experiment=chain_grpo", f"init={after}", *GROUPS, *QUICK)


@pytest.mark.parametrize("network", ["hidden_mlp", "dit_confidence"])
@pytest.mark.parametrize("algorithm", ["variational", "grpo", "ppo", "imitation"])
@pytest.mark.parametrize("kind", ["text", "small"])
def test_every_algorithm_with_every_policy(kind, algorithm, network, tiny, tmp_path):
    overrides = [
        f"algorithm={algorithm}",
        f"policy={network}",
        *tiny[kind],
        *QUICK,
        "training.batch_size=4",
        "sampler.steps=3",
    ]
    overrides += DIT if network == "dit_confidence" else []
    overrides += ["policy.smart_init=0"] if network == "dit_confidence" and kind == "text" else []  # few steps
    overrides += ["algorithm.group_size=2"] if algorithm == "grpo" else []
    overrides += RULE if algorithm == "imitation" and kind == "text" else []  # else the answers
    if (algorithm, network) == ("ppo", "hidden_mlp"):
        with pytest.raises(ValueError, match="algorithm=ppo needs a value head; use policy=dit_confidence"):
            run(tmp_path / "run", *overrides)
        return
    directory = run(tmp_path / "run", *overrides)
    metrics = record(directory)
    if algorithm != "grpo" or kind == "text":  # else nothing may have been solved, and no update made
        assert metrics[2]["grad_norm"] > 0
    state = saved(directory)
    assert state["step"] == 2 and {"policy_model", "ema", "optimizer", "updates", "task"} <= state.keys()
    average = load_policy(directory / "checkpoints" / "checkpoint_2.pth")
    plain = load_policy(directory / "checkpoints" / "checkpoint_2.pth", use_ema=False)
    assert_equal(plain.state_dict(), state["policy_model"])
    assert_equal(load_policy(directory).state_dict(), average.state_dict())  # RUN/policy holds the average


def test_masks_that_a_rollout_leaves_can_be_judged(tiny, tmp_path):
    """A policy that hardly ever writes: its text has masks, and the judge has no token for them."""
    overrides = [
        "algorithm=grpo",
        "policy=dit_confidence",
        *DIT,
        "policy.smart_init=-3",
        "sampler.length=4",
        "algorithm.group_size=2",
    ]
    directory = run(tmp_path / "run", *overrides, *tiny["text"], *QUICK, "training.batch_size=4")
    assert record(directory)[1]["still_masked"] > 0


def test_a_policy_whose_picks_repel_learns_from_the_bound(tiny, tmp_path):
    directory = run(tmp_path / "run", *REPELLING, *tiny["opinion"], *QUICK)
    metrics, policy = record(directory), load_policy(directory)
    assert metrics[1]["nats_per_token"] == pytest.approx(-metrics[1]["reward"]) and metrics[1]["nfe"] == 3
    assert metrics[2]["eval_nats_per_token"] == pytest.approx(-metrics[2]["eval_reward"])
    assert metrics[2]["grad_norm"] > 0 and (policy.repulsion != 0).all() and policy.repulsion.shape == (4,)


def test_the_bound_of_a_model_without_opinions_is_a_uniform_choice_at_every_position(tiny, tmp_path):
    """Whatever the order: every position is revealed once, and counts once."""
    directory = run(tmp_path / "run", *REPELLING, *tiny["unjudged"], *QUICK)
    tokens = len(AutoTokenizer.from_pretrained(ROOT / "data" / "stories" / "tokenizer"))
    metrics = record(directory)
    found = [metrics[1]["nats_per_token"], metrics[2]["nats_per_token"], metrics[2]["eval_nats_per_token"]]
    assert found == pytest.approx([math.log(tokens)] * 3, rel=1e-5)


# ------------------------------------------------------------------------------------------ going on from a policy

STILL = ["optim.lr=0", "training.batch_size=4", "sampler.steps=3"]  # what comes out is what was put in


@pytest.mark.parametrize(
    "algorithm, form", [("ppo", "run"), ("imitation", "run"), ("grpo", "run"), ("grpo", "directory"), ("grpo", "file")]
)
def test_init_takes_the_weights_and_ppo_adds_a_value_head(algorithm, form, tiny, tmp_path):
    """policy= is the default, a hidden_mlp, and not used; the weights are the average, which RUN/policy holds."""
    before = run(tmp_path / "before", "algorithm=imitation", "policy=dit_projection", *DIT, "policy.repulsion=2",
                 "algorithm.action=fixed", *tiny["small"], *QUICK, "training.batch_size=4")  # fmt: skip
    start = before / {"run": "", "directory": "policy", "file": "policy/model.safetensors"}[form]
    more = ["algorithm.action=fixed", *(["algorithm.group_size=2"] if algorithm == "grpo" else [])]
    after = run(tmp_path / "after", f"algorithm={algorithm}", f"init={start}", *more, *tiny["small"], *QUICK, *STILL)
    weights, ours = load_policy(before).state_dict(), saved(after)["policy_model"]
    head = {"value_proj.weight", "value_proj.bias"} if algorithm == "ppo" else set()
    assert ours.keys() - weights.keys() == head and "hidden_proj.weight" in weights and "repulsion" in weights
    assert_equal({name: ours[name] for name in weights}, weights)
    assert (load_policy(after).value_proj is not None) == (algorithm == "ppo")


def test_init_trust_makes_a_soft_threshold_of_what_the_policy_says_is_right(tiny, tmp_path):
    agreement = [
        "policy=agreement",
        "policy.top_k=2",
        "policy.candidates=2",
        "training.batch_size=4",
        "algorithm.setting=1",
    ]
    before = run(tmp_path / "before", "experiment=sudoku6_answers", *agreement, *tiny["sudoku"], *QUICK)
    settings = ["experiment=sudoku6_agreement_rl", *GROUPS, *tiny["sudoku"], *QUICK, *STILL]
    after = run(tmp_path / "after", *settings, f"init={before}", "init_trust=0.9")
    weights, ours = load_policy(before).state_dict(), load_policy(after).state_dict()
    shift = weights.pop("output_proj.bias") - ours.pop("output_proj.bias")
    assert_equal(ours, weights)
    torch.testing.assert_close(shift.sigmoid(), torch.tensor([0.9]))  # a score of 0 now is a probability of 0.9 before
    with pytest.raises(ValueError, match="init_trust=0.9 shifts the scores of the policy `init`"):
        run(tmp_path / "nothing", *settings, "init=null", "init_trust=0.9")


def test_init_keeps_a_value_head_and_learns_on(tiny, tmp_path):
    dit = ["policy=dit_confidence", *DIT, "policy.smart_init=0", "training.batch_size=4", "sampler.steps=3"]
    before = run(tmp_path / "before", "algorithm=ppo", *dit, *tiny["small"], *QUICK)
    again = run(tmp_path / "again", "algorithm=ppo", f"init={before}", *tiny["small"], *QUICK, *STILL)
    assert_equal(saved(again)["policy_model"], load_policy(before).state_dict())
    onward = run(
        tmp_path / "onward", "algorithm=ppo", f"init={before}", *tiny["small"], *QUICK, *STILL, "optim.lr=0.01"
    )
    assert not torch.equal(load_policy(onward).value_proj.weight, load_policy(before).value_proj.weight)


def test_init_refuses_a_policy_that_cannot_read_the_model_or_has_no_value_to_learn(tiny, tmp_path):
    save_policy(DitConfidence(hidden_dim=8, hidden_size=8), tmp_path / "narrow")
    save_policy(HiddenMLP(SHAPE["hidden_size"]), tmp_path / "mlp")
    for algorithm, start, message in (
        ("grpo", "narrow", "the policy reads hidden states of width 8 but this model's are 16 wide"),
        ("ppo", "mlp", "algorithm=ppo needs a value head"),
        ("grpo", "nowhere", "nowhere holds no policy"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tmp_path / f"run_{start}", f"algorithm={algorithm}", f"init={tmp_path / start}", *tiny["small"], *QUICK)


# ------------------------------------------------------------------------------------------ what is refused


@pytest.mark.parametrize(
    "kind, overrides, message",
    [
        ("small", ["algorithm=grpo", "training.batch_size=6"], "batch of 6 rollouts is not divisible by algorithm.group_size=8"),
        ("small", ["training.batch_size=6", "training.accum=4"], "batch of 6 is not divisible by training.accum=4"),
        ("small", ["algorithm=grpo", "algorithm.group_size=1"], "algorithm.group_size=1 must be at least 2"),
        ("small", ["algorithm.name=reinforce"], "algorithm.name='reinforce' is unknown; use one of grpo, ppo, imitation, variational"),
        ("small", ["policy.policy_type=tree"], "policy.policy_type='tree' is unknown; use one of .*dit_confidence, dit_hidden, hidden_mlp"),
        ("small", ["reward.name=length"], "reward.name='length' is unknown; use one of bound, latex, learned, likelihood, puzzle"),
        ("small", ["reward=likelihood"], "reward=likelihood reads text and this data has none; use reward=puzzle"),
        ("small", ["algorithm=imitation", "algorithm.expert=random"], "expert='random' is unknown; use one of threshold"),
        ("text", ["algorithm=imitation"], "expert=answers needs data that knows the right text"),
        ("opinion", [*REPELLING, "algorithm.action=plackett_luce"], "repel each other, and action 'plackett_luce' has no repulsion"),
        ("opinion", [*REPELLING, "eval.action=bernoulli_argmax"], "repel each other, and action 'bernoulli_argmax' has no repulsion"),
        ("opinion", [*REPELLING, "algorithm.action=bernoulli"], "action=bernoulli may reveal nothing"),
        ("opinion", [*REPELLING, "sampler.budgets=[2]"], "sampler.budgets and reward=bound do not go together"),
        ("small", ["eval.action=leftmost"], "eval.action='leftmost' is unknown"),
        ("small", ["algorithm=grpo", "algorithm.action=threshold"], "algorithm.action='threshold' cannot be learnt with"),
        ("small", ["policy=dit_confidence", *DIT, "algorithm=ppo", "+algorithm.experts.thresholds=[0.9]"], "algorithm.experts steers GRPO"),
        ("small", ["sampler.temperature=-1", "algorithm=grpo"], "temperature=-1"),
        ("small", ["sampler.steps=0"], "sampler.steps=0 must be a whole number of at least 1"),
        ("small", ["data.box=[2,3]"], "the data has 6 tokens and .* writes 4"),
        ("text", ["reward.name=puzzle"], "reward=puzzle needs puzzles; use data=puzzles and a Sudoku model"),
        ("text", ["data.tokenizer=bpe:300"], "the data has 300 tokens and .* writes"),
        ("text", ["data.tokenizer=OTHER"], "has as many tokens as .*, and others; use data.tokenizer=model"),
        ("text", ["dlm.path=FOREIGN", "data.tokenizer=model"], "reward.judge=.* must be a causal model on the same tokens"),
        ("text", ["policy=dit_confidence", "policy.confidences_top_p=9999"], "confidences_top_p 9999 exceeds"),
        ("text", ["causal"], "is causal: it has one order and nothing to learn"),
        ("text", ["reward.judge=TEXT"], "must be a causal model on the same tokens"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(kind, overrides, message, tiny, tmp_path):
    model = tiny["text"][0].split("=", 1)[1]
    if any(
        "OTHER" in word or "FOREIGN" in word for word in overrides
    ):  # two tokens of the model's tokenizer change places
        shutil.copytree(model, tmp_path / "foreign")
        file = tmp_path / "foreign" / "tokenizer.json"
        tokens = json.loads(file.read_text())
        vocabulary = tokens["model"]["vocab"]
        vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]
        file.write_text(json.dumps(tokens))
    words = {"TEXT": model, "OTHER": str(tmp_path / "foreign"), "FOREIGN": str(tmp_path / "foreign")}
    overrides = [re.sub("TEXT|OTHER|FOREIGN", lambda found: words[found[0]], name) for name in overrides]
    asked = [o for name in overrides for o in tiny.get(name, [name])]
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "run", *tiny[kind], *QUICK, *asked)
    assert not (tmp_path / "run").exists()


def test_text_by_the_models_own_tokenizer(tiny, tmp_path):
    """The tiny model's is the one that the data name by default: the run is the same."""
    own = ["data.tokenizer=model", *tiny["text"], *QUICK]
    runs = [run(tmp_path / name, *words) for name, words in (("own", own), ("named", own[1:]))]
    assert_equal(*(load_policy(one).state_dict() for one in runs))
    shutil.copytree(tiny["text"][0].split("=", 1)[1], tmp_path / "bare")
    (tmp_path / "bare" / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="data.tokenizer=model, and .*bare came without one"):
        run(tmp_path / "none", *own, f"dlm.path={tmp_path / 'bare'}")


def test_a_loss_that_is_no_number_stops_the_run(tiny, tmp_path, monkeypatch):
    made = []

    def broken(*arguments):
        loss, bound = inner(*arguments)
        made.append(1)
        return loss, bound * (float("nan") if len(made) == 3 else 1.0)

    inner = policy.train.bound_loss
    monkeypatch.setattr(policy.train, "bound_loss", broken)
    overrides = ["training.n_iters=4", "training.batch_size=4", "training.snapshot_freq_for_preemption=1"]
    with pytest.raises(
        FloatingPointError, match=r"the loss is nan at step 2; the last good checkpoint is .*checkpoint.pth"
    ):
        run(tmp_path / "run", *tiny["small"], *QUICK, *overrides)
    state = saved(tmp_path / "run")
    assert state["step"] == 2 and all(value.isfinite().all() for value in state["policy_model"].values())


def test_policies_learn_by_the_validity_of_formulas(tmp_path):
    """On a tiny base of formulas, whose questions are given; a task without text is refused."""
    file = tmp_path / "formulas.jsonl"
    file.write_text('{"question": "x over y", "answer": "$\\\\frac{x}{y}$"}\n' * 12)
    answers = [f"data.train={file}", f"data.valid={file}"]
    model = train_dlm("experiment=latex_sft", *answers, "data.tokenizer=bpe:260", f"run_dir={tmp_path / 'model'}",
                      "model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2", "model.length=48", "training.n_iters=1",
                      "training.snapshot_freq=1", "training.batch_size=4", "eval.samples=2", "device=cpu", "wandb.mode=disabled")  # fmt: skip
    words = [
        "reward=latex",
        "algorithm=grpo",
        "policy=dit_confidence",
        f"dlm.path={model}",
        "sampler.steps=4",
    ]
    directory = run(tmp_path / "run", *words, "data=latex", *answers, "training.batch_size=16", *DIT, *QUICK)
    metrics = record(directory)
    assert {"reward", "valid", "progress", "structure", "commands", "length", "repetition", "reward_failed"} <= metrics[
        1
    ].keys()
    assert metrics[1]["reward_failed"] == 0 and metrics[2]["eval_still_masked"] == 0
    with pytest.raises(ValueError, match="reward=latex reads text and this data has none"):
        few = ["data.base_puzzles=8", "data.valid_puzzles=4"]
        run(tmp_path / "other", "experiment=sudoku6_grpo", "reward=latex", *few, *DIT, *QUICK)
