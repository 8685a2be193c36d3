"""Evaluate policies and rules on questions with known answers.

    python -m unmask evaluate RUN --checkpoints last --datasets chain --temperatures 1.0 --seeds 42,43,44 --save_path DIR
    python -m unmask evaluate --policy_path X/model.safetensors --config E --dataset gsm8k --seed 42 --output_dir DIR
    python -m unmask evaluate --strategy threshold --settings 0.5,0.7,0.9 --datasets chain --save_path DIR
    torchrun --nproc-per-node 2 -m unmask evaluate RUN --datasets gsm8k --save_path DIR
    python -m unmask evaluate --task reward --help      answers of unmask guide under rewards
    python -m unmask evaluate --task pairwise --help    two files of answers, by a judge
    python -m unmask evaluate --task text --help        texts by rules and policies, by a judge

DIR/NAME/generations.jsonl gets one line per sample when the sample is finished, so that a killed evaluation can be resumed by the
same command. At the end DIR has detailed_results.csv (one row per rule, data set and seed), summary_statistics.csv (mean,
standard deviation, minimum and maximum over seeds) and pareto.png. The exit status is 1 if every evaluation failed. Flags that
are not given have the values of the run's configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.catalogue import DATASETS
from evaluation.names import ALIASES, ALL, SAMPLING_MODES, WORKED
from evaluation.request import EvaluationRequest
from samplers.names import CONFIDENCES, RULES
from training.interrupt import imported
from training.ranges import ROWS, Number, Whole


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("run", nargs="?", help="a training run: its checkpoints are evaluated on its model")
    made.add_argument("--checkpoints", help="first, last (the default), or numbers: 50,100")
    made.add_argument("--policy_path", help="a policy directory or file, in place of a run")
    made.add_argument(
        "--other_model", action="store_true",
        help="the policy was trained on another model than this one: of policies that read confidences only",
    )  # fmt: skip
    made.add_argument(
        "--strategy", "--remasking", help=f"a rule in place of a policy: {', '.join(RULES)}; also {', '.join(ALIASES)}"
    )
    made.add_argument(
        "--settings", "--thres", default="", help="of the rule, one evaluation each: thresholds 0.5,0.9, say"
    )
    made.add_argument("--windows", default="", help="of --strategy window: widths of the window, 2,4,8 (default: 4)")
    made.add_argument(
        "--config", help="an experiment's name or a YAML file: model, lengths, blocks (default: the run's)"
    )
    made.add_argument("--model_path", help="the frozen model (default: the configuration's, else example/chain)")
    made.add_argument(
        "--datasets", "--dataset", default="chain", help=f"of {', '.join(DATASETS)}; all is {','.join(ALL)}"
    )
    made.add_argument("--data_dir", help="holds NAME/test.jsonl, for machines without a hub")
    made.add_argument("--math_by", default="verify", choices=("verify", "string"), help="how answers of MATH compare")
    made.add_argument(
        "--unsandboxed", action="store_true",
        help="run what a model wrote with your own rights where there is no bubblewrap",
    )  # fmt: skip
    made.add_argument(
        "--few_shot", type=Whole(0, 100), default=0, help=f"worked examples before a question ({', '.join(WORKED)})"
    )
    _add_decoding(made)
    made.add_argument("--n_test", type=ROWS, default=None, help="questions of each data set (default: all; chain: 512)")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--dtype", default=None, help="float32, bfloat16 or float16 (default: the configuration's)")
    made.add_argument("--save_path", "--output_dir", required=True)
    return made


def _add_decoding(made: argparse.ArgumentParser) -> None:
    """Add the flags of decoding: temperatures, lengths, steps, budgets, caches, ends, guidance."""
    made.add_argument(
        "--temperatures",
        "--temperature_policy",
        help="of the policy (default: eval.temperature of the configuration, else 1)",
    )
    made.add_argument("--betas", help="of the policy: factors of the probabilities of bernoulli-argmax (default: 1)")
    made.add_argument("--token_temperature", type=Number(0, 1e6), default=0.0, help="0 writes the most likely token")
    made.add_argument(
        "--confidence", default="model", choices=CONFIDENCES, help="of --strategy: that of the model at temperature 1, or of "
        "the token drawn at --token_temperature",
    )  # fmt: skip
    made.add_argument("--seeds", "--seed", default="42")
    made.add_argument("--sampling_mode", choices=SAMPLING_MODES, help="default: the one trained with, bernoulli-argmax")
    made.add_argument("--gen_length", type=ROWS, default=None, help="positions to write (default: 256; chain: 24)")
    made.add_argument("--block_length", type=ROWS, default=None, help="default: the configuration's, else no blocks")
    made.add_argument(
        "--steps", "--diffusion_steps", default="",
        help="of rules that write equal parts, one evaluation each: 4,8,16 (default: one a position)",
    )  # fmt: skip
    made.add_argument(
        "--budgets",
        "--budget",
        default="",
        help="evaluations that a sample may cost, one evaluation of the rule each; none (default: those a run was trained with)",
    )
    made.add_argument(
        "--alphas", "--alpha", default="",
        help="of a policy trained with reward.alphas, one evaluation each: 0,0.3,1,3 (default: those trained with)",
    )  # fmt: skip
    made.add_argument("--cache", choices=("prefix", "dual", "none"), help="default: the configuration's, else none")
    made.add_argument("--refresh", type=ROWS, help="evaluations after which a cached row runs whole again")
    made.add_argument(
        "--drift", action="store_true",
        help="measure how far a cache's confidences are off; the runs this takes count neither as evaluations nor as seconds",
    )  # fmt: skip
    made.add_argument("--logits_eos_inf", action="store_true", help="never write the end of sequence")
    made.add_argument("--confidence_eos_eot_inf", action="store_true", help="write the ends of sequence and turn last")
    made.add_argument(
        "--guidance", type=Number(0, 1e6), default=0.0, help="classifier-free; an evaluation then counts twice"
    )


REWARD = """How good the answers of unmask guide are: rewards with their standard error, likelihood, diversity, cost.

    python -m unmask evaluate --task reward --generations DIR --selector RUN --judge OTHER_RUN --model_path example/stories_causal

The selector is the reward that answers were chosen by, the judge one that had no part in it: what the first gains and the second
does not is over-optimisation. Several directories are seeds of the same methods and prompts: means are over all of them, and
errors over prompts, each of which is first averaged over the seeds. A method that draws nothing (ARGS, PARGS-G) has one answer,
whatever the seed: it counts as one. (The published script evaluates by the selector alone, and its `STD` is the deviation of
prompts, not the error of the mean.) Writes DIR/evaluation.csv, a row a method, and DIR/selector.csv and DIR/judge.csv, a row an
answer and a column a method.
"""


def reward_parser() -> argparse.ArgumentParser:
    """Return the parser of --task reward."""
    made = argparse.ArgumentParser(
        prog="python -m unmask evaluate --task reward",
        description=REWARD,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "--generations",
        type=Path,
        required=True,
        nargs="+",
        metavar="DIR",
        help="that unmask guide wrote; several: seeds",
    )
    made.add_argument("--selector", help="the reward that answers were chosen by: a run, an id, vader, ...")
    made.add_argument("--judge", required=True, help="a reward that had no part in it")
    made.add_argument("--model_path", required=True, help="the unguided language model, for likelihoods")
    made.add_argument("--draws", type=ROWS, default=64, help="Monte Carlo samples a text of a masked model's bound")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--save_path", type=Path, help="default: the first DIR")
    made.add_argument("--device", default="cpu")
    return made


PAIRWISE = """Two files of answers to the same prompts against each other, by a judge: who wins how often.

    python -m unmask evaluate --task pairwise --red A/generation_pargs.json --blue A/generation_args.json --judge RUN --out DIR
    OPENAI_API_KEY=... python -m unmask evaluate --task pairwise --red A.json --blue B.json --endpoint URL --judge gpt-4 --out DIR

A judge is a local reward, or a model behind an OpenAI-compatible endpoint (`evaluation/chat.py`). The endpoint judges every pair
in both orders, and the sums decide: to prefer what is read first wins nothing. Pairs whose scores cannot be read in one order are
counted as `unparsable` and are no tie. Each judgement is a line of DIR/RED_BLUE.judgements.jsonl as it comes: an evaluation that
was cut off goes on. The result, DIR/RED_BLUE.json, has the published schema (with `unparsable`, and an entry an order, where the
published script draws one).
"""


def pairwise_parser() -> argparse.ArgumentParser:
    """Return the parser of --task pairwise."""
    made = argparse.ArgumentParser(
        prog="python -m unmask evaluate --task pairwise",
        description=PAIRWISE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--red", "--run_name_red", dest="red", type=Path, required=True, help="generation_METHOD.json")
    made.add_argument("--blue", "--run_name_blue", dest="blue", type=Path, required=True, help="its opponent")
    made.add_argument("--judge", required=True, help="a reward (run, id, vader, ...); with --endpoint a model's name")
    made.add_argument("--endpoint", help="URL of an OpenAI-compatible service, up to /v1; its key is in OPENAI_API_KEY")
    made.add_argument("--retries", type=Whole(0, 1000), default=5, help="of a request that fails")
    made.add_argument("--temperature", type=Number(0, 100), default=0.0, help="of the judge (published: 0.7)")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="cpu")
    made.add_argument("--out", type=Path, required=True, help="directory")
    return made


def request(arguments: Sequence[str]) -> EvaluationRequest:
    """Return the settings of the evaluation that the flags describe."""
    return EvaluationRequest(**vars(parser().parse_args(arguments)))


TEXT = """Texts of a model by a policy or a rule: perplexity by a judge, entropy, evaluations, cost.

    python -m unmask evaluate --task text --strategy dilated --steps 8,16 --prompt "Once upon a time" --save_path DIR
    python -m unmask evaluate --task text --policy_path example/stories_policy --sampling_mode fixed --steps 8,16 --save_path DIR
    python -m unmask compare DIR/dilated-K16 DIR/014609-T1-fixed-K16

One line of DIR/NAME_text_seedN/generations.jsonl a sample. DIR/text_results.csv has a row a rule and seed (means ± standard
errors over samples); pareto_text.png shows perplexity against cost. An evaluation that is finished is not repeated. Perplexity
says nothing without the entropy beside it: repeated text has a low perplexity.
"""


def text_parser() -> argparse.ArgumentParser:
    """Return the parser of --task text."""
    made = argparse.ArgumentParser(
        prog="python -m unmask evaluate --task text",
        description=TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", nargs="?", help="a training run: its checkpoints are evaluated")
    made.add_argument("--checkpoints", help="first, last (the default), or numbers: 50,100")
    made.add_argument("--policy_path", help="a policy directory or file, in place of a run")
    made.add_argument("--other_model", action="store_true", help="the policy was trained on another model")
    made.add_argument("--strategy", help=f"a rule in place of a policy: {', '.join(RULES)}")
    made.add_argument("--settings", default="", help="of the rule, one evaluation each: thresholds 0.5,0.9, say")
    made.add_argument("--windows", default="", help="of --strategy window: widths of the window")
    made.add_argument("--temperatures", help="of the policy (default: 1)")
    made.add_argument("--betas", help="of the policy: factors of the probabilities of bernoulli-argmax (default: 1)")
    made.add_argument("--sampling_mode", choices=SAMPLING_MODES, help="default: the one trained with, bernoulli-argmax")
    made.add_argument("--steps", default="", help="one evaluation each: 8,16,32 (default: one step a position)")
    made.add_argument(
        "--budgets", default="", help="evaluations that a sample may cost, one evaluation of the rule each"
    )
    made.add_argument("--alphas", default="", help="of a policy trained with reward.alphas, one evaluation each")
    made.add_argument("--confidence", default="model", choices=CONFIDENCES, help="that a rule reads")
    made.add_argument("--model_path", default="example/stories", help="the frozen model (default: example/stories)")
    made.add_argument("--prompt", help="text at the start of every sample (default: none)")
    made.add_argument(
        "--gen_length", type=ROWS, help="positions of a canvas, prompt included (default: the model's longest)"
    )
    made.add_argument("--token_temperature", type=Number(0, 1e6), default=1.0, help="0 takes the most likely token")
    made.add_argument(
        "--judge", default="smollm2", help="a causal model: smollm2, example/stories_causal, an id, a directory"
    )
    made.add_argument("--n_test", type=ROWS, default=64, help="samples of each rule and seed")
    made.add_argument("--seeds", default="42")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--save_path", required=True)
    return made


TASKS = {
    "reward": (reward_parser, "evaluation.reward_task"), "pairwise": (pairwise_parser, "evaluation.pairwise"),
    "text": (text_parser, "unmask.runs.evaluate_text"),
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Evaluate with the flags of the command line; return the exit status."""
    if list(arguments[:1]) != ["--task"]:
        asked = request(arguments)  # --help and malformed values end here, before seconds of imports
        return imported("unmask.runs.evaluate").run(asked)
    task = " ".join(arguments[1:2])
    if task not in TASKS:
        raise ValueError(f"--task {task} is unknown; use one of {', '.join(TASKS)}, or leave it out")
    flags, module = TASKS[task]
    given = flags().parse_args(arguments[2:])
    return imported(module).run(**vars(given))
