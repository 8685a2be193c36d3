"""Run every command for reasoning models once, on the shipped model of chain arithmetic: sampling with blocks and caches, each
way to train a policy, evaluation, comparison, two processes, and training of the model. Write each command, its last lines and
its seconds to --out.

    python -m benchmarks.commands

The numbers are tiny. They show that each command works on trained weights, not the effect of training (docs/results/chain.md).
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = r"""
# Sampling: blocks, caches, rules, policies
python $SAMPLE --prompt "$PROMPT" --strategy threshold --threshold 0.9 sampler.block_length=4
python $SAMPLE --prompt "$PROMPT" --strategy threshold --threshold 0.9 sampler.block_length=4 sampler.cache=prefix
python $SAMPLE --prompt "$PROMPT" --strategy threshold --threshold 0.9 sampler.block_length=4 sampler.cache=dual sampler.refresh=2
python $SAMPLE --prompt "$PROMPT" --strategy policy --policy example/chain_policy sampler.policy.action=bernoulli_argmax
python $SAMPLE --prompt "$PROMPT" --strategy policy --policy example/chain_policy sampler.policy.action=bernoulli_argmax \
  sampler.block_length=8 sampler.cache=dual
python $SAMPLE --prompt "$PROMPT" --strategy policy --policy example/chain_budget sampler.policy.action=bernoulli_argmax \
  sampler.budget=4
# Training a policy
python $TRAIN run_dir=RUNS/grpo alpha_compute_reward=1
python $TRAIN run_dir=RUNS/ppo algorithm=ppo
python $TRAIN run_dir=RUNS/additive 'reward.functions=[correct_minus_cost]'
python $TRAIN run_dir=RUNS/dpls sampling_mode=dpls
python $TRAIN run_dir=RUNS/dit_hidden policy=dit_hidden ~policy.hidden_dim ~policy.feedforward_dim
python run_train_policy.py model_path=example/chain data=chain policy_type=dit_hidden policy_smart_init=-2.0 policy.num_heads=4 \
  policy.mlp_size=64 reward=right 'reward_functions=[correct_times_speed,correct]' 'reward_weights=[1,0]' alpha_compute_reward=1 \
  block_length=8 sampling_mode=bernoulli temperature=1.0 num_generations=4 num_iterations=2 epsilon=0.2 learning_rate=3e-5 \
  training.batch_size=16 training.n_iters=2 training.log_freq=1 eval.batch_size=16 wandb.mode=disabled output_dir=RUNS/theirs
python $TRAIN run_dir=RUNS/projection policy=dit_projection
python $TRAIN run_dir=RUNS/blocks block_length=4 sampler.cache=dual
python $TRAIN run_dir=RUNS/alphas experiment=chain_alphas
python $TRAIN run_dir=RUNS/budget experiment=chain_budget
python $TRAIN run_dir=RUNS/steering experiment=chain_expert_steering
python run_train_policy.py dlm=chain data=chain reward=right policy=dit_projection algorithm=imitation \
  algorithm.expert=threshold algorithm.setting=0.4 algorithm.block_length=2 algorithm.only_correct=true training.batch_size=16 \
  training.n_iters=2 training.log_freq=1 eval.batch_size=16 sampler.temperature=0 eval.action=bernoulli_argmax \
  wandb.mode=disabled run_dir=RUNS/ontrack
python run_train_policy.py resume=RUNS/grpo training.n_iters=3
python $TRAIN run_dir=RUNS/ppo algorithm=ppo resume=auto
python $TRAIN run_dir=RUNS/read_all policy.read_all=true
python $TRAIN run_dir=file://RUNS/bucket
python run_train_policy.py resume=file://RUNS/bucket training.n_iters=3
torchrun --nproc-per-node 2 $TRAIN run_dir=RUNS/two
torchrun --nproc-per-node 2 $TRAIN run_dir=RUNS/sharded model.sharded=true
accelerate launch --config_file configs/accelerate/cpu.yaml $TRAIN run_dir=RUNS/launched
# Evaluation
python $EVALUATE RUNS/grpo --datasets chain --n_test 40 --checkpoints first,last --seeds 42,43 --out RUNS/runs
python $EVALUATE RUNS/theirs --checkpoints 2 --datasets chain --n_test 40 --temperatures 1.0 --seeds 42,43,44 \
  --sampling_mode bernoulli-argmax --out RUNS/theirs_evaluated
python $EVALUATE --datasets chain --n_test 40 --policy example/chain_policy --seeds 42,43 --temperatures 0.5,1.0 \
  --out RUNS/policy
python $EVALUATE --policy_path example/chain_policy/model.safetensors --config chain_grpo --dataset chain --n_test 40 --seed 42 \
  --temperature_policy 1.0 --output_dir RUNS/one
python $EVALUATE --datasets chain --n_test 40 --policy example/chain_budget --budgets 3,4,6 --out RUNS/budgets
python $EVALUATE RUNS/alphas --datasets chain --n_test 40 --alphas 0,3 --betas 0.5,1 --out RUNS/fronts
python $EVALUATE --datasets chain --n_test 40 --strategy threshold --settings 0.3,0.5,0.9 --block_length 4 \
  --out RUNS/rules
python $EVALUATE --datasets chain --n_test 40 --strategy threshold --settings 0.5 --block_length 4 --cache dual \
  --out RUNS/cached
python $EVALUATE --datasets chain --n_test 40 --strategy random --steps 2,4,8 --out RUNS/random
python $EVALUATE --datasets chain --n_test 40 --strategy threshold --settings 0.5 --guidance 0.5 --out RUNS/guided
python $EVALUATE --datasets chain --n_test 40 --strategy threshold --settings 0.5 --confidence_eos_eot_inf \
  --out RUNS/ends_last
python $EVALUATE --datasets chain --n_test 40 --strategy threshold --settings 0.5 --logits_eos_inf --out RUNS/no_ends
torchrun --nproc-per-node 2 $EVALUATE --datasets chain --n_test 40 --strategy top_prob --steps 8 --out RUNS/shared
python -m unmask compare RUNS/cached RUNS/rules/threshold-0.5
python -m unmask.lm_eval --model unmask --model_args path=example/chain,strategy=threshold,block_length=4 \
  --tasks unmask_rolling,unmask_generate,unmask_choice --include_path tests/evaluation/tasks --limit 2
python -m unmask.lm_eval --model unmask --model_args path=example/chain,strategy=policy,policy.path=example/chain_policy \
  --tasks unmask_generate --include_path tests/evaluation/tasks --limit 2
# The model itself
python -m unmask train-rl experiment=chain_rl training.n_iters=2 training.log_freq=1 rl.batch_size=16 eval.batch_size=16 \
  wandb.mode=disabled run_dir=RUNS/rl
python -m unmask train-dlm experiment=chain init=example/chain training.n_iters=5 training.log_freq=5 \
  training.batch_size=16 wandb.mode=disabled run_dir=RUNS/base
"""
# Variables of the shell that runs the commands, without `python`: a launcher stands in its place. What is shown is what runs.
SHORT = {
    "PROMPT": "3 A +3 B *2 C +1 D *3 E +1 F *2 G +3 H *3 ?",
    "SAMPLE": "run_sample.py --model example/chain --num_samples 2 --batch_size 2 --no-eval sampler.stop=true "
    "sampler.temperature=0",
    "TRAIN": "run_train_policy.py experiment=chain_grpo training.batch_size=16 training.n_iters=2 training.log_freq=1 "
    "algorithm.warm_start.updates=2 eval.batch_size=16 wandb.mode=disabled",
    "EVALUATE": "-m unmask evaluate",
}
LAST = 8  # lines of each that are kept


def lines_of(commands: str) -> list[str]:
    """Return headings and commands, each as one line."""
    return re.sub(r" \\\n +", " ", commands.strip()).splitlines()


def head() -> list[str]:
    """Return the beginning of the page, with the variables in the syntax of a shell."""
    return [
        "# Every command for reasoning models, run once\n", "```bash\npython -m benchmarks.commands\n```\n",
        "The commands run on the shipped model of chain arithmetic with tiny numbers, to test that each of them works.\n"
        "The page has the last lines of each output and the seconds on a busy core. `RUNS` stands for a directory.\n"
        "The variables, as bash reads them:\n",
        "\n".join(["```bash", *(f"{name}={shlex.quote(words)}" for name, words in SHORT.items()), "```"]), "",
    ]  # fmt: skip


def ran(command: str, runs: Path) -> tuple[int, float, list[str]]:
    """Run a command in this environment; return (status, seconds, last lines). runs: directory in place of RUNS."""
    words = ["bash", "-c", command.replace("RUNS", str(runs))]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | SHORT | {"PATH": path, "COLUMNS": "110"}
    started = time.perf_counter()
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in (done.stderr + done.stdout).splitlines()]
    lines = [line.replace(str(runs), "RUNS") for line in lines if line and not line.startswith(("wandb:", "W1"))]
    return done.returncode, time.perf_counter() - started, lines[-LAST:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="docs/results/commands.md")
    parser.add_argument("--only", default="", help="commands that hold this text")
    arguments = parser.parse_args()
    parts, failed = [], 0
    with tempfile.TemporaryDirectory() as directory:
        for line in lines_of(COMMANDS):
            if line.startswith("#"):
                parts.append(f"#{line}\n")
            elif arguments.only in line:
                status, seconds, lines = ran(line, Path(directory))
                failed += status != 0
                print(
                    f"{'ok' if status == 0 else 'FAILED':6} {seconds:5.0f} s  {line}",
                    *(lines if status else ()),
                    sep="\n",
                )
                parts.append("\n".join(["```", f"$ {line}", *lines, "```", f"{seconds:.0f} s\n"]))
    Path(arguments.out).write_text("\n".join([*head(), *parts]), encoding="utf-8")
    if failed:
        raise SystemExit(f"{failed} commands failed")


if __name__ == "__main__":
    main()
