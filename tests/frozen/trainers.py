"""Runs of every training command at tiny size, whose first three steps are pinned by tests/frozen/test_trainers.py.

`CASES` names the runs of each command. `{name}` in an override is a path of `make_inputs`. A run goes through the `main` of the real
command with a composed configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf
from transformers import AutoTokenizer

from tests import policy_runs, preference_pairs
from tests.test_run_train_rl import write_pairs as write_chain_pairs
from tests.twist import tiny as tiny_twist
from training.usage import CONFIGS, composed
from unmask.runs import train_dlm, train_policy, train_preference, train_reward, train_rl, train_twist

FROZEN = Path(__file__).parent
MAIN: dict[str, Callable[..., Path]] = {
    "train_dlm": train_dlm.run,
    "train_policy": train_policy.run,
    "train_rl": train_rl.run,
    "train_reward": train_reward.run,
    "train_preference": train_preference.run,
    "train_twist": train_twist.run,
}
CLOCKS = ("second", "time", "tokens_per")  # in names of metrics that differ from run to run
DIGITS = 7  # significant digits of a recorded number

THREE = ["device=cpu", "wandb.mode=disabled", "training.n_iters=3", "training.log_freq=1", "training.eval_freq=3",
         "training.snapshot_freq=3"]  # fmt: skip
DAMPED = [
    "optim.warmup=1",
    "optim.lr=1e-2",
    "optim.eps=1e-4",
]  # eps: a gradient of rounding's size must not make a whole update

# ------------------------------------------------------------------------------------------ pre-training and fine-tuning

TEXT = ["data.train={stories}", "data.valid={stories}", "data.valid_rows=4"]
SHAPE = ["model.hidden_size=16", "model.n_blocks=1", "model.n_heads=2"]
TINY = [*TEXT, *SHAPE, "model.length=16"]
FORMULAS = ["data=latex", "data.train={formulas}", "data.valid={formulas}", "data.tokenizer=bpe:260", "data.valid_rows=2", *SHAPE,
            "model.length=48"]  # fmt: skip
BOARD = ["data=sudoku", "data.box=[2,2]", "data.base_grids=4", "data.valid_grids=4", "data.base_clues=null", *SHAPE,
         "model.length=16", "model.learned_positions=true"]  # fmt: skip
LORA = ["lora.rank=2", "lora.target_modules=[q_proj,v_proj]"]
DLM = {
    "radd lambda_DCE": ["loss=lambda_DCE", *TINY],
    "radd t_DCE": ["loss=t_DCE", *TINY],
    "radd t_DCE, geometric noise": ["loss=t_DCE", "noise.type=geometric", *TINY],
    "radd k_DCE": ["loss=k_DCE", *TINY],
    "radd masked_CE, accumulated, dropout": ["loss=masked_CE", "training.accum=2", "model.dropout=0.1", *TINY],
    "radd masked_CE, packed, cosine": ["loss=masked_CE", "data.packing=pack", "optim.schedule=cosine", *TINY],
    "sedd DSE": ["model=sedd", "loss=DSE", "model.cond_dim=8", *TINY],
    "sedd t_DCE": ["model=sedd", "loss=t_DCE", "model.cond_dim=8", "model.scale_by_sigma=false", *TINY],
    "llada lambda_DCE": ["model=llada", "loss=lambda_DCE", "data.tokenizer={masked_tokenizer}", *TINY],
    "causal ar": ["model=causal", "loss=ar", *TINY],
    "fine-tuned lambda_DCE": ["init={text}", *TEXT],
    "adapted masked_CE": ["init={causal}", "loss=masked_CE", "adapt.length=16", "adapt.anneal=3", *TEXT],
    "adapted masked_CE, lora": ["init={causal}", "loss=masked_CE", "adapt.length=16", "adapt.anneal=0", *LORA, *TEXT],
    "answers masked_CE": ["loss=masked_CE", *FORMULAS],
    "answers DSE": ["model=sedd", "loss=DSE", "model.cond_dim=8", *FORMULAS],
    "formulas t_DCE": ["loss=t_DCE", "data.given=nothing", *FORMULAS],
    "sudoku lambda_DCE": ["loss=lambda_DCE", *BOARD],
    "sudoku lambda_DCE, clues given": ["loss=lambda_DCE", "data.keep_clues=true", *BOARD],
    "sudoku k_DCE, clues given": ["loss=k_DCE", "data.keep_clues=true", *BOARD],
    "chain masked_CE": ["experiment=chain", *SHAPE, "data.valid_rows=4"],
}
EVERY_DLM = ["training.batch_size=4", "eval.batch_size=4", "eval.samples=2", "eval.steps=2", *DAMPED,
             "training.snapshot_freq_for_preemption=3"]  # fmt: skip

# ------------------------------------------------------------------------------------------ policies

STORIES = ["dlm.path={opinion}", "data=stories", "data.train={stories}", "data.valid={stories}", "sampler.length=8"]
BREVITY = [*STORIES, "reward=learned", "reward.model=brevity"]
PUZZLES = [
    "dlm.path={small}",
    "data=puzzles",
    "reward=puzzle",
    "data.box=[2,2]",
    "data.base_puzzles=4",
    "data.valid_puzzles=2",
]
CHAIN = ["dlm=chain", "data=chain", "reward=right", "data.steps=2", "data.answer_length=4"]
DIT = ["policy.hidden_dim=16", "policy.feedforward_dim=16", "policy.time_embed_dim=8", "policy.smart_init=0"]
CONFIDENCE = ["policy=dit_confidence", *DIT]
BLOCK = ["policy=dit_hidden", "policy.num_heads=2", "policy.mlp_size=16", "policy.time_embed_dim=8"]
POLICIES = {
    "hidden_mlp": ["policy=hidden_mlp"],
    "dit_confidence": CONFIDENCE,
    "dit_projection": ["policy=dit_projection", *DIT],
    "dit_hidden": BLOCK,
    "hidden_blocks": ["policy=hidden_blocks", "policy.num_blocks=1", "policy.time_embed_dim=8"],
    "agreement": [
        "policy=agreement",
        "policy.relations=2",
        "policy.candidates=2",
        "policy.width=8",
        "policy.top_k=2",
        "policy.length=8",
    ],
}
GRPO, PPO, IMITATION = (f"algorithm={name}" for name in ("grpo", "ppo", "imitation"))
PAIR = [GRPO, "algorithm.group_size=2"]
EXPERTS = {"leftmost": 1.0, "threshold": 0.01}  # with their settings
POLICY = {
    **{f"grpo {name}": [*PAIR, *BREVITY, *words] for name, words in POLICIES.items()},
    **{f"ppo {name}": [PPO, *BREVITY, *POLICIES[name]] for name in ("dit_confidence", "dit_hidden", "agreement")},
    **{f"imitation {name}": [IMITATION, *PUZZLES, *words] for name, words in POLICIES.items() if name != "agreement"},
    "imitation agreement": [IMITATION, *PUZZLES, *POLICIES["agreement"], "policy.length=16"],
    "variational hidden_mlp": ["algorithm=variational", *STORIES, "reward.judge={causal}"],
    "variational hidden_mlp, accumulated": ["algorithm=variational", "training.accum=2", "algorithm.reinforce=0.0", *STORIES,
                                        "reward.judge={causal}"],
    "variational dit_confidence": ["algorithm=variational", *CONFIDENCE, *PUZZLES],
    "grpo plackett_luce": [*PAIR, "algorithm.action=plackett_luce", *BREVITY, *CONFIDENCE],
    "grpo fixed, deviation, kl": [*PAIR, "algorithm.action=fixed", "algorithm.advantage_std=true", "algorithm.kl=0.1", *BREVITY,
                                  *CONFIDENCE],
    "grpo warm start, chunks": [*PAIR, "algorithm.warm_start.updates=2", "training.chunk=5", *BREVITY, *CONFIDENCE],
    "grpo experts": [*PAIR, "algorithm.experts.thresholds=[0.01,0.5]", "algorithm.experts.block_length=4", *BREVITY, *CONFIDENCE],
    "grpo budgets": [*PAIR, "sampler.budgets=[2,3]", *BREVITY, *CONFIDENCE],
    "grpo likelihood": [*PAIR, *STORIES, "reward.judge={causal}", *CONFIDENCE],
    "grpo bound, repulsion": [*PAIR, *STORIES, "reward=bound", "policy.repulsion=4", "algorithm.action=fixed", *CONFIDENCE],
    "grpo latex": [*PAIR, *STORIES, "reward=latex", "reward.bare=true", *CONFIDENCE],
    "grpo puzzle, alphas": [*PAIR, *PUZZLES, "reward.alphas=[0,1]", "reward.additive=true", *CONFIDENCE],
    "grpo right, alphas": [*PAIR, *CHAIN, "training.batch_size=8", "reward.alphas=[0,1]", "reward.functions=[correct_minus_cost,partly_correct]",
                           "reward.weights=[1.0,0.5]", *CONFIDENCE],
    "grpo blocks, cache": [*PAIR, *CHAIN, "reward.functions=[correct_minus_cost]", "sampler.block_length=2",
                           "sampler.cache=dual", *CONFIDENCE],
    "grpo sedd": [*PAIR, *BREVITY, "dlm.path={sedd}", *CONFIDENCE],
    **{f"imitation {expert}": [IMITATION, f"algorithm.expert={expert}", f"algorithm.setting={setting}", *BREVITY,
                               *CONFIDENCE] for expert, setting in EXPERTS.items()},
}  # fmt: skip
EVERY_POLICY = ["training.batch_size=4", "eval.batch_size=2", "sampler.steps=4", *DAMPED,
                "training.snapshot_freq_for_preemption=3"]  # fmt: skip

# ------------------------------------------------------------------------------------------ the model itself by reward

ESTIMATORS = ["elbo", "mean_field", "coupled", "sandwich", "trajectory", "published"]
RL = {
    **{f"grpo {name}": [f"rl.estimator={name}", *BREVITY] for name in ESTIMATORS},
    "grpo score_entropy": ["rl.estimator=score_entropy", *BREVITY, "dlm.path={sedd}"],
    "ppo elbo": ["rl.algorithm=ppo", *BREVITY],
    "ppo score_entropy": ["rl.algorithm=ppo", "rl.estimator=score_entropy", *BREVITY, "dlm.path={sedd}"],
    "grpo mean_field, tokens": ["rl.ratio=token", "rl.estimator=mean_field", *BREVITY],
    "ppo trajectory, tokens, two steps": ["rl.algorithm=ppo", "rl.ratio=token", "rl.estimator=trajectory", "rl.replayed_steps=2",
                                          *BREVITY],
    "grpo elbo, times, reused rollouts": ["rl.masks=times", "rl.kl_beta=0.0", "rl.antithetic=false", "rl.advantage_std=false", "rl.reward_freq=2",
                                          "rl.ppo_epochs=2", *BREVITY],
    "grpo elbo, lora, blocks": [*CHAIN, "reward.functions=[correct_minus_cost]", "sampler.block_length=2",
                                "sampler.strategy=threshold", "sampler.threshold=0.4", *LORA],
    "vrpo elbo": ["rl.algorithm=vrpo", "data=pairs", "data.pairs={chain_pairs}", "data.length=12"],
}  # fmt: skip
EVERY_RL = ["rl.batch_size=4", "rl.group_size=2", "rl.num_sigma_samples=2", "sampler.steps=4", "eval.batch_size=2",
            "eval.samples=2", *DAMPED, "training.snapshot_freq_for_preemption=3"]  # fmt: skip

# ------------------------------------------------------------------------------------------ rewards and preferences

HEAD = ["reward.head=vocabulary", "data.canvas=24"]
REWARD = {
    "encoder full": ["reward.kind=full"],
    "encoder prefix": ["reward.kind=prefix", "data.rows=2"],
    "encoder mask": ["reward.kind=mask", "data.canvas=24", "data.rows=2"],
    "gpt2 prefix, accumulated": ["init={gpt2}", "reward.kind=prefix", "data.rows=2", "training.accum=2"],
    "vocabulary head of a masked model": ["init={text}", "reward.kind=mask", *HEAD],
    "vocabulary head of a causal model": ["init={causal}", "reward.kind=prefix", *HEAD],
}
EVERY_REWARD = ["data.train={pairs}", "data.valid_count=4", "training.batch_size=4", "eval.batch_size=4", *DAMPED,
                "encoder.hidden_size=16", "encoder.intermediate_size=32", "encoder.num_layers=1", "encoder.num_heads=2"]  # fmt: skip
PREFERENCE = {
    "dpo": [],
    "dpo, all weights, rmsprop, accumulated": ["lora.rank=null", "optim.optimiser=rmsprop", "training.accum=2"],
    "kto": ["preference.algorithm=kto"],
    "rloo": [
        "preference.algorithm=rloo",
        "preference.reward=brevity",
        "preference.group_size=2",
        "preference.answer_length=8",
    ],
}
EVERY_PREFERENCE = ["init={llama}", "data.train={pairs}", "data.valid_count=4", "data.max_length=32", "training.batch_size=4",
                    "eval.batch_size=4", "lora.rank=4", "optim.lr=1e-2"]  # fmt: skip

# ------------------------------------------------------------------------------------------ twists

CLASS = ["target=sentiment", "target.classes=2", "target.classifier={classifier}", "prompt=I b"]
INFILLING = ["target=infilling", "prompt=Once"]
METHODS = ["ctl", "rl", "sixo", "fudge", "dpg", "ppo"]
TWIST = {
    **{f"{method} causal": [f"method={method}", "dlm.path={letters}", *CLASS] for method in METHODS},
    **{f"{method} masked": [f"method={method}", "dlm.path={masked}", *CLASS] for method in METHODS},
    **{f"{method} infilling": [f"method={method}", "dlm.path={letters}", *INFILLING, "training.particles=4"]
       for method in ("ctl", "rl", "ppo")},
    "ctl masked, csmc, state head": ["method=ctl", "positives=csmc", "twist.state=true", "dlm.path={masked}", *CLASS],
    "sixo causal, exact": ["method=sixo", "positives=exact", "dlm.path={letters}", *CLASS],
    "ctl every class": ["method=ctl", "target.label=null", "training.particles=4", "dlm.path={letters}", *CLASS],
    "dpg separate trunk": ["method=dpg", "twist.trunk=separate", "dlm.path={letters}", *INFILLING],
    "fudge lora trunk": ["method=fudge", "twist.trunk=lora", "twist.rank=2", "dlm.path={letters}", *CLASS],
}  # fmt: skip
EVERY_TWIST = ["device=cpu", "wandb.mode=disabled", "training.epochs=1", "training.updates_per_epoch=3", "training.log_freq=1",
               "length=3", "training.batch_size=8", "posterior.count=4", "posterior.batch=16", "eval.every=null", "eval.samples=4",
               "eval.particles=[2]", "eval.sweeps=1", "eval.texts=1", "twist.layers=2", *DAMPED]  # fmt: skip

CASES: dict[str, dict[str, list[str]]] = {
    "train_dlm": {name: [*THREE, *EVERY_DLM, *words] for name, words in DLM.items()},
    "train_policy": {name: [*THREE, *EVERY_POLICY, *words] for name, words in POLICY.items()},
    "train_rl": {name: [*THREE, *EVERY_RL, *words] for name, words in RL.items()},
    "train_reward": {name: [*THREE, *EVERY_REWARD, *words] for name, words in REWARD.items()},
    "train_preference": {name: [*THREE, *EVERY_PREFERENCE, *words] for name, words in PREFERENCE.items()},
    "train_twist": {name: [*EVERY_TWIST, *words] for name, words in TWIST.items()},
}

QUICK = {  # every trainer, algorithm, loss, estimator and kind of policy once; the other cases take longer and run with `-m slow`
    "train_dlm": {"radd lambda_DCE", "radd t_DCE, geometric noise", "radd k_DCE", "radd masked_CE, accumulated, dropout", "sedd DSE",
                  "llada lambda_DCE", "causal ar", "adapted masked_CE", "answers masked_CE", "sudoku lambda_DCE, clues given"},
    "train_policy": {"grpo dit_confidence", "ppo dit_confidence", "imitation dit_projection", "imitation dit_hidden",
                     "imitation hidden_blocks", "imitation agreement", "variational hidden_mlp"},
    "train_rl": {*(f"grpo {name}" for name in ESTIMATORS), "grpo score_entropy", "ppo elbo", "vrpo elbo"},
    "train_reward": {"encoder full", "encoder prefix", "encoder mask", "vocabulary head of a masked model"},
    "train_preference": {"dpo", "kto", "rloo"},
    "train_twist": {*(f"{method} causal" for method in METHODS), "ctl masked", "ppo masked"},
}  # fmt: skip


def make_inputs(root: Path) -> dict[str, Path]:
    """Write tiny untrained models and data under `root`; return their paths by name."""
    policy_runs.tiny_models(root)
    stories = root / "stories.jsonl"
    stories.write_text("".join(stories.read_text().splitlines(keepends=True)[:8]))
    for name in ("gpt2", "llama"):
        preference_pairs.tiny(name, root / name)
    tiny_twist.causal(root / "letters")
    tiny_twist.masked(root / "masked")
    tiny_twist.classifier(root / "classifier", 2)
    tokenizer = AutoTokenizer.from_pretrained(policy_runs.ROOT / "data" / "stories" / "tokenizer")
    tokenizer.add_special_tokens({"mask_token": "[MASK]"})
    tokenizer.save_pretrained(root / "masked_tokenizer")
    preference_pairs.write_pairs(root / "pairs.jsonl", 24)
    write_chain_pairs(root / "chain_pairs.jsonl", 12, 0)
    (root / "formulas.jsonl").write_text('{"question": "x over y", "answer": "$\\\\frac{x}{y}$"}\n' * 12)
    return {path.stem: path for path in root.iterdir()}


@cache
def chosen(command: str, groups: tuple[str, ...]) -> DictConfig:
    """The configuration with files of its groups chosen, which is most of the time that a composition takes."""
    return composed(command, list(groups))


def configuration(command: str, words: list[str]) -> DictConfig:
    """The configuration of a command line, as `composed` makes it."""
    groups = [word for word in words if (CONFIGS / word.partition("=")[0]).is_dir()]
    config = chosen(command, tuple(groups)).copy()
    for override in OverridesParser.create().parse_overrides([word for word in words if word not in groups]):
        OmegaConf.update(config, override.key_or_group, override.value())
    return config


def metrics(command: str, name: str, inputs: dict[str, Path], directory: Path) -> list[dict[str, Any]]:
    """Run a case in this process. Return the lines of metrics.jsonl without clocks, in order; of twists, then those of
    evaluations.json."""
    words = [word.format_map(inputs) for word in CASES[command][name]] + [f"run_dir={directory}"]
    MAIN[command](configuration(command, words), words)
    found = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    if (file := directory / "evaluations.json").exists():
        found += json.loads(file.read_text())
    return [flat(line) for line in found]


def flat(value: Any, name: str = "") -> dict[str, Any]:
    """Numbers and words of a nested value by dotted name, without clocks and paths."""
    if isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: each for own, inner in items for key, each in flat(inner, f"{name}.{own}".lstrip(".")).items()}
    if any(clock in name for clock in CLOCKS) or (isinstance(value, str) and "/" in value):
        return {}
    return {name: float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value}


def record_file(command: str) -> Path:
    return FROZEN / f"{command}.json"
