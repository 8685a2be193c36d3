"""Evaluate policies and rules on questions with known answers.

    python -m unmask evaluate RUN --checkpoints last --datasets chain --temperatures 1.0 --seeds 42,43,44 --out DIR
    python -m unmask evaluate --policy X/model.safetensors --config E --datasets gsm8k --seeds 42 --out DIR
    python -m unmask evaluate --strategy threshold --settings 0.5,0.7,0.9 --datasets chain --out DIR
    torchrun --nproc-per-node 2 -m unmask evaluate RUN --datasets gsm8k --out DIR
    python -m unmask evaluate --task reward --help      answers of unmask guide under rewards
    python -m unmask evaluate --task pairwise --help    two files of answers, by a judge
    python -m unmask evaluate --task text --help        texts by rules and policies, by a judge

DIR/NAME/generations.jsonl gets one line per sample when the sample is finished, so that a killed evaluation can be resumed by the
same command. At the end DIR has detailed_results.csv (one row per rule, data set and seed), summary_statistics.csv (mean,
standard deviation, minimum and maximum over seeds), aup.csv (accuracy under parallelism of each series), pareto.png and
pareto_tpf.png. The exit status is 1 if every evaluation failed. Flags that
are not given have the values of the run's configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from data.catalogue import DATASETS
from evaluation.names import ALIASES, ALL, SAMPLING_MODES, WORKED
from evaluation.request import EvaluationRequest
from samplers.names import CONFIDENCES, DECODERS, RULES
from training.compatibility import current_flags
from training.interrupt import imported
from training.ranges import ROWS, Number, Whole


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    made = argparse.ArgumentParser(
        "python -m unmask evaluate", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("run", nargs="?", help="a run of train-policy, whose checkpoints are evaluated on its model")
    made.add_argument("--checkpoints", help="first, last (the default), or numbers: 50,100")
    made.add_argument("--policy", dest="policy_path", help="a policy directory or file, in place of a run")
    made.add_argument(
        "--other_model", action="store_true",
        help="use a policy that was trained on another model; only for policies that read confidences only",
    )  # fmt: skip
    made.add_argument(
        "--strategy", help=f"a rule in place of a policy: {', '.join((*RULES, *DECODERS))}; also {', '.join(ALIASES)}"
    )
    made.add_argument(
        "--settings",
        default="",
        help="values of the rule's setting, one evaluation each: 0.5,0.9 for threshold",
    )
    made.add_argument(
        "--sampler", nargs="+", default=(), metavar="KEY=VALUES",
        help="of a strategy that revises: settings with their values, one evaluation each: edit.edit_threshold=0,0.5",
    )  # fmt: skip
    made.add_argument("--windows", default="", help="of --strategy window: widths of the window, 2,4,8 (default: 4)")
    made.add_argument(
        "--config", help="name of an experiment, or a YAML file, for model, lengths, blocks (default: the run's)"
    )
    made.add_argument(
        "--model", dest="model_path", help="the frozen model (default: the configuration's, else example/chain)"
    )
    made.add_argument("--datasets", default="chain", help=f"of {', '.join(DATASETS)}; all is {','.join(ALL)}")
    made.add_argument("--data_dir", help="directory with NAME/test.jsonl, for machines without access to the hub")
    made.add_argument("--math_by", default="verify", choices=("verify", "string"), help="comparison of MATH answers")
    made.add_argument(
        "--unsandboxed", action="store_true",
        help="without bubblewrap: run generated programs with your own rights",
    )  # fmt: skip
    made.add_argument(
        "--few_shot", type=Whole(0, 100), default=0, help=f"worked examples before a question ({', '.join(WORKED)})"
    )
    _add_decoding(made)
    made.add_argument("--n_test", type=ROWS, default=None, help="questions of each data set (default: all; chain: 512)")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--dtype", default=None, help="float32, bfloat16 or float16 (default: the configuration's)")
    made.add_argument("--out", dest="save_path", required=True)
    made.add_argument(
        "--leaderboard", metavar="FILE.yaml",
        help="also write [tokens per forward, accuracy in percent] of every setting into this file, which unmask aup reads",
    )  # fmt: skip
    made.add_argument("--method", help="name of the method in --leaderboard (default: the rule's or the policy's)")
    return made


def _add_decoding(made: argparse.ArgumentParser) -> None:
    """Add the flags of decoding: temperatures, lengths, steps, budgets, caches, ends, guidance."""
    made.add_argument(
        "--temperatures",
        help="temperatures of the policy, one evaluation each (default: eval.temperature of the configuration, else 1)",
    )
    made.add_argument("--betas", help="of the policy: factors of the probabilities of bernoulli-argmax (default: 1)")
    made.add_argument(
        "--token_temperature",
        type=Number(0, 1e6),
        default=0.0,
        help="temperature of the token sampler; 0 takes the most probable token",
    )
    made.add_argument(
        "--confidence", default="model", choices=CONFIDENCES, help="of --strategy: that of the model at temperature 1, or of "
        "the token drawn at --token_temperature",
    )  # fmt: skip
    made.add_argument("--seeds", default="42")
    made.add_argument("--sampling_mode", choices=SAMPLING_MODES, help="default: the one trained with, bernoulli-argmax")
    made.add_argument(
        "--length", dest="gen_length", type=ROWS, default=None, help="positions to generate (default: 256; chain: 24)"
    )
    made.add_argument("--block_length", type=ROWS, default=None, help="default: the configuration's, else no blocks")
    made.add_argument(
        "--steps", default="",
        help="steps of rules that commit equal parts, one evaluation each: 4,8,16 (default: one position per step)",
    )  # fmt: skip
    made.add_argument(
        "--budgets",
        default="",
        help="largest NFE of a sample, one evaluation of the rule each; none: no budget (default: those of the training)",
    )
    made.add_argument(
        "--alphas", default="",
        help="weights of speed of a policy that was trained with reward.alphas: 0,0.3,1,3 (default: those of the training)",
    )  # fmt: skip
    made.add_argument("--cache", choices=("prefix", "dual", "none"), help="default: the configuration's, else none")
    made.add_argument(
        "--refresh", type=ROWS, help="number of evaluations after which a cached row is recomputed in full"
    )
    made.add_argument(
        "--drift", action="store_true",
        help="measure the error of the cached confidences; its forward passes count neither as evaluations nor as seconds",
    )  # fmt: skip
    made.add_argument("--logits_eos_inf", action="store_true", help="never commit the end of sequence")
    made.add_argument("--confidence_eos_eot_inf", action="store_true", help="commit the ends of sequence and turn last")
    made.add_argument(
        "--guidance",
        type=Number(0, 1e6),
        default=0.0,
        help="weight of classifier-free guidance; an evaluation then counts twice",
    )


REWARD = """Evaluate the answers of unmask guide: rewards with their standard error, likelihood, diversity, cost.

    python -m unmask evaluate --task reward --generations DIR --selector RUN --judge OTHER_RUN --model example/stories_causal

The selector is the reward that guided the answers; the judge guided none. A gain under the selector without a gain under the
judge is over-optimization. Several directories are seeds of the same methods and prompts: means are over all of them, and errors
over prompts, each of which is first averaged over the seeds. A deterministic method (ARGS, PARGS-G) has the same answer for
every seed and counts once. (The published script evaluates by the selector only, and its `STD` is the deviation of prompts, not
the error of the mean.) The command writes DIR/evaluation.csv with one row per method, and DIR/selector.csv and DIR/judge.csv
with one row per answer and one column per method.
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
        help="directories that unmask guide wrote; several directories are seeds",
    )
    made.add_argument("--selector", help="the reward that guided the answers: a run, an id, vader, ...")
    made.add_argument("--judge", required=True, help="a reward that guided no answer")
    made.add_argument("--model", dest="model_path", required=True, help="the unguided language model, for likelihoods")
    made.add_argument(
        "--draws", type=ROWS, default=64, help="Monte Carlo samples per text, for the bound of a masked model"
    )
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--out", dest="save_path", type=Path, help="default: the first DIR")
    made.add_argument("--device", default="cpu")
    return made


PAIRWISE = """Compare two files of answers to the same prompts by a judge: wins, ties and losses.

    python -m unmask evaluate --task pairwise --red A/generation_pargs.json --blue A/generation_args.json --judge RUN --out DIR
    OPENAI_API_KEY=... python -m unmask evaluate --task pairwise --red A.json --blue B.json --endpoint URL --judge gpt-4 --out DIR

A judge is a local reward, or a model behind an OpenAI-compatible endpoint (`evaluation/chat.py`). The endpoint judges every pair
in both orders, and the sum of both decides, so that a preference for the first answer has no effect. Pairs whose scores cannot
be parsed in one order are counted as `unparsable`, not as ties. Each judgement is written at once as a line of
DIR/RED_BLUE.judgements.jsonl, so that an interrupted evaluation can be resumed. The result, DIR/RED_BLUE.json, has the published
schema, with `unparsable`, and with an entry for each order (the published script draws one order).
"""


def pairwise_parser() -> argparse.ArgumentParser:
    """Return the parser of --task pairwise."""
    made = argparse.ArgumentParser(
        prog="python -m unmask evaluate --task pairwise",
        description=PAIRWISE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--red", type=Path, required=True, help="generation_METHOD.json")
    made.add_argument(
        "--blue",
        type=Path,
        required=True,
        help="generation_METHOD.json of the other method",
    )
    made.add_argument("--judge", required=True, help="a reward (run, id, vader, ...); with --endpoint a model's name")
    made.add_argument("--endpoint", help="URL of an OpenAI-compatible service, up to /v1; its key is in OPENAI_API_KEY")
    made.add_argument("--retries", type=Whole(0, 1000), default=5, help="repetitions of a failed request")
    made.add_argument(
        "--temperature", type=Number(0, 100), default=0.0, help="temperature of the judge (published: 0.7)"
    )
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="cpu")
    made.add_argument("--out", type=Path, required=True, help="directory")
    return made


def request(arguments: Sequence[str]) -> EvaluationRequest:
    """Return the settings of the evaluation that the flags describe."""
    return EvaluationRequest(**vars(parser().parse_args(current_flags(arguments, "evaluate"))))


TEXT = """Evaluate texts of a model by policies and rules: perplexity under a judge, entropy, evaluations, cost.

    python -m unmask evaluate --task text --strategy dilated --steps 8,16 --prompt "Once upon a time" --out DIR
    python -m unmask evaluate --task text --policy example/stories_policy --sampling_mode fixed --steps 8,16 --out DIR
    python -m unmask compare DIR/dilated-K16 DIR/014609-T1-fixed-K16

DIR/NAME_text_seedN/generations.jsonl has one line per sample, DIR/text_results.csv one row per rule and seed (means ± standard
errors over samples), and pareto_text.png plots perplexity against cost. A finished evaluation is not repeated. Compare
perplexities only together with the entropy: repeated text has a low perplexity.
"""


def text_parser() -> argparse.ArgumentParser:
    """Return the parser of --task text."""
    made = argparse.ArgumentParser(
        prog="python -m unmask evaluate --task text",
        description=TEXT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("run", nargs="?", help="a run of train-policy, whose checkpoints are evaluated")
    made.add_argument("--checkpoints", help="first, last (the default), or numbers: 50,100")
    made.add_argument("--policy", dest="policy_path", help="a policy directory or file, in place of a run")
    made.add_argument("--other_model", action="store_true", help="use a policy that was trained on another model")
    made.add_argument("--strategy", help=f"a rule in place of a policy: {', '.join((*RULES, *DECODERS))}")
    made.add_argument(
        "--settings", default="", help="values of the rule's setting, one evaluation each: 0.5,0.9 for threshold"
    )
    made.add_argument(
        "--sampler", nargs="+", default=(), metavar="KEY=VALUES",
        help="of a strategy that revises: settings with their values, one evaluation each: edit.edit_threshold=0,0.5",
    )  # fmt: skip
    made.add_argument("--windows", default="", help="of --strategy window: widths of the window")
    made.add_argument("--temperatures", help="of the policy (default: 1)")
    made.add_argument("--betas", help="of the policy: factors of the probabilities of bernoulli-argmax (default: 1)")
    made.add_argument("--sampling_mode", choices=SAMPLING_MODES, help="default: the one trained with, bernoulli-argmax")
    made.add_argument(
        "--steps", default="", help="numbers of steps, one evaluation each: 8,16,32 (default: one position per step)"
    )
    made.add_argument("--budgets", default="", help="largest NFE of a sample, one evaluation of the rule each")
    made.add_argument("--alphas", default="", help="weights of speed of a policy that was trained with reward.alphas")
    made.add_argument("--confidence", default="model", choices=CONFIDENCES, help="confidence that a rule uses")
    made.add_argument(
        "--model", dest="model_path", default="example/stories", help="the frozen model (default: example/stories)"
    )
    made.add_argument("--prompt", help="text at the start of every sample (default: none)")
    made.add_argument(
        "--length",
        dest="gen_length",
        type=ROWS,
        help="positions of a canvas, prompt included (default: the model's longest)",
    )
    made.add_argument(
        "--token_temperature",
        type=Number(0, 1e6),
        default=1.0,
        help="temperature of the token sampler; 0 takes the most probable token",
    )
    made.add_argument(
        "--judge", default="smollm2", help="a causal model: smollm2, example/stories_causal, an id, a directory"
    )
    made.add_argument("--num_samples", dest="n_test", type=ROWS, default=64, help="samples of each rule and seed")
    made.add_argument("--seeds", default="42")
    made.add_argument("--batch_size", type=ROWS, default=32)
    made.add_argument("--device", default="auto", help="auto, cpu or cuda")
    made.add_argument("--out", dest="save_path", required=True)
    return made


TASKS = {
    "reward": (reward_parser, "evaluation.reward_task"), "pairwise": (pairwise_parser, "evaluation.pairwise"),
    "text": (text_parser, "unmask.runs.evaluate_text"),
}  # fmt: skip


def main(arguments: Sequence[str]) -> int:
    """Evaluate with the flags of the command line; return the exit status."""
    if list(arguments[:1]) != ["--task"]:
        requested = request(arguments)  # --help and malformed values end here, before seconds of imports
        return imported("unmask.runs.evaluate").run(requested)
    task = " ".join(arguments[1:2])
    if task not in TASKS:
        raise ValueError(f"--task {task} is unknown; use one of {', '.join(TASKS)}, or leave it out")
    flags, module = TASKS[task]
    given = flags().parse_args(current_flags(arguments[2:], f"evaluate --task {task}"))
    return imported(module).run(**vars(given))
