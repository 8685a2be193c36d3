"""Runs of run_train_policy.py with tiny models and few numbers, and what they left behind: shared by the tests of training."""

import json
import os
import sys
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer

from data.text import load_texts
from dlm.board import BoardTokenizer
from dlm.checkpoints.saving import save_model
from dlm.checkpoints.table import build_model
from unmask.runs import train_policy

ROOT = Path(__file__).parents[1]
SHAPE = {"hidden_size": 16, "n_blocks": 1, "n_heads": 2, "dropout": 0.0}
SEDD = {"cond_dim": 8, "scale_by_sigma": True}
NOISE = {"type": "loglinear", "sigma_min": 1e-4, "sigma_max": 20}
QUICK = [
    "run_dir=RUN",
    "device=cpu",
    "training.n_iters=2",
    "training.snapshot_freq=2",
    "training.eval_freq=2",
    "eval.batch_size=2",
]
DIT = ["policy.hidden_dim=16", "policy.feedforward_dim=16", "policy.time_embed_dim=8"]
WARM = "algorithm.warm_start.updates=1"
RULE = ["algorithm.expert=threshold", "algorithm.setting=0.5"]  # what imitation learns where nobody knows the answers
GROUPS = ["training.batch_size=8", "algorithm.group_size=4"]


REPELLING = [
    "algorithm=grpo", "reward=bound", "policy=dit_confidence", *DIT, "policy.smart_init=0", "policy.repulsion=4",
    "algorithm.action=fixed", *GROUPS, "sampler.length=8", "sampler.steps=3",
]  # fmt: skip
EXPERIMENTS = {  # the models and data are replaced, sizes made small
    "chain_grpo": [*GROUPS, "algorithm.warm_start.updates=1", "eval.batch_size=4", *DIT, "chain"],
    "chain_budget": [*GROUPS, "algorithm.warm_start.updates=1", "eval.batch_size=4", *DIT, "chain"],
    "chain_alphas": [*GROUPS, "algorithm.warm_start.updates=1", "eval.batch_size=4", *DIT, "chain"],
    "chain_expert_steering": [
        *GROUPS,
        "algorithm.warm_start.updates=1",
        "algorithm.experts.thresholds=[0.4,0.9]",
        "eval.batch_size=4",
        *DIT,
        "chain",
    ],
    "policy_sedd": [*GROUPS, "sampler.length=8", WARM, *DIT, "sedd"],
    "genpolicy_owt": ["data=stories", "sampler.length=32", "text"],
    "stories_grpo": ["training.batch_size=4", "algorithm.group_size=2", "sampler.length=8", WARM, *DIT, "text"],
    "stories_bound": [*GROUPS, "sampler.length=8", WARM, *DIT, "unjudged"],
    "policy_learned_reward": [*GROUPS, "reward.model=brevity", "sampler.length=8", WARM, *DIT, "unjudged"],
    "sudoku6_agreement": ["training.batch_size=4", "sudoku"],
    "sudoku6_agreement_rl": [*GROUPS, "init=null", "init_trust=null", "sudoku"],
    "sudoku6_answers": ["training.batch_size=4", "policy.num_blocks=1", "sudoku"],
    "sudoku6_budget": [*GROUPS, "init=null", "policy.num_blocks=1", "sudoku"],
    "sudoku6_grpo": [*GROUPS, WARM, *DIT, "sudoku"],
    "sudoku6_ppo": ["training.batch_size=4", WARM, *DIT, "sudoku"],
    "sudoku6_revise": ["training.batch_size=4", "init=null", "sudoku"],
    "sudoku6_variational": ["training.batch_size=4", "sudoku"],
}


def tiny_models(root: Path) -> dict[str, list[str]]:
    """Overrides that put a tiny model and little data in the place of the shipped ones: text, and 6x6 and 4x4 Sudoku."""
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "stories" / "tokenizer")
    causal = {
        "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
        "num_attention_heads": 2, "max_position_embeddings": 33, "tie_word_embeddings": True,
        "bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id,
    }  # fmt: skip
    board = lambda *box: {
        "tokens": box[0] * box[1],
        "model": SHAPE | {"length": (box[0] * box[1]) ** 2},
        "puzzle": {"box": box},
    }
    configs = {
        "text": ({"tokens": len(tokenizer), "model": SHAPE | {"length": 32}, "noise": NOISE}, tokenizer),
        "opinion": ({"tokens": len(tokenizer), "model": SHAPE | {"length": 32}, "noise": NOISE}, tokenizer),
        "causal": (causal, tokenizer),
        "sedd": (
            {
                "tokens": len(tokenizer),
                "model": SHAPE | SEDD | {"length": 32},
                "noise": NOISE,
                "graph": {"type": "absorb"},
                "model_type": "sedd",
            },
            tokenizer,
        ),
        "sudoku": (board(2, 3) | {"noise": NOISE}, BoardTokenizer((2, 3))),
        "small": (board(2, 2) | {"noise": NOISE}, BoardTokenizer((2, 2))),
    }
    for name, (config, vocabulary) in configs.items():
        torch.manual_seed(0)
        model = build_model(config, "float32", vocabulary)[0]
        if name == "opinion":  # the others find every token as likely as any other
            torch.nn.init.normal_(model.backbone.output_layer.linear.weight, std=0.3)
        save_model(model, config, root / name, torch.float32)
    stories = root / "stories.jsonl"
    stories.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in load_texts("stories", "valid")["text"][:40])
    )
    text = [f"data.{split}={stories}" for split in ("train", "valid")]
    return {
        "text": [f"dlm.path={root / 'text'}", f"reward.judge={root / 'causal'}", *text],
        "sedd": [f"dlm.path={root / 'sedd'}", "data=stories", *text],
        "unjudged": [f"dlm.path={root / 'text'}", *text],
        "opinion": [f"dlm.path={root / 'opinion'}", *text],  # unjudged too
        "sudoku": [f"dlm.path={root / 'sudoku'}", "data.base_puzzles=4", "data.valid_puzzles=2"],
        "small": [f"dlm.path={root / 'small'}", "data=puzzles", "reward=puzzle", "data.box=[2,2]",
                  "data.base_puzzles=4", "data.valid_puzzles=2"],
        "causal": [f"dlm.path={root / 'causal'}"],
        "chain": [],  # the shipped one is tiny
    }  # fmt: skip


def run(directory: Path, *overrides: str) -> Path:
    """The command in this process; RUN in an override is `directory`."""
    asked = [override.replace("RUN", str(directory)) for override in overrides]
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_policy", asked)
    return train_policy.run(config, asked)


def record(directory: Path) -> dict[int, dict[str, float]]:
    """Metrics by step without clocks; of a step that was made twice, the last."""
    metrics: dict[int, dict[str, float]] = {}
    for line in (directory / "metrics.jsonl").read_text().splitlines():
        entry = json.loads(line)
        entry.pop("seconds")
        metrics.setdefault(entry.pop("step"), {}).update(entry)
    return metrics


def saved(directory: Path) -> dict:
    return torch.load(directory / "checkpoints-meta" / "checkpoint.pth", weights_only=True)


def assert_equal(one, other):
    """Bit for bit, through dicts and lists."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other


def command(*arguments: str) -> tuple[list[str], dict[str, str]]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    return [sys.executable, *arguments], environment
