"""Sample text or puzzles from a masked language model, and evaluate the samples.

    python -m unmask sample --strategy direct --batch_size 1 --steps 16
    python -m unmask sample --strategy confidence --num_samples 64 --batch_size 16 --steps 32 --json record.json
    python -m unmask sample dlm=stories_causal --strategy pargs --reward RUN --prompt "One day" --num_samples 4 --batch_size 4

Every flag sets a key of configs/sample.yaml. Other keys are set as KEY=VALUE: `sampler.temperature=0.9`.
"""

from __future__ import annotations

import argparse
import difflib
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from samplers.names import FILTERS, GUIDED, POSITIONS, PREDICTORS, STRATEGIES
from training.compatibility import current_flags, translated
from training.interrupt import imported
from training.usage import composed, literal

EXAMPLES = """
any key of configs/sample.yaml can follow as KEY=VALUE, among them
  dlm=NAME                  stories (default), stories_causal, sudoku6, radd_t_dce, radd_lambda_dce, radd_lambda_dce_medium
  sampler.temperature=0.9   0 writes the most likely token; also sampler.top_p, sampler.top_k
  sampler.block_length=32   semi-autoregressive decoding
  sampler.budget=4          at most 4 evaluations a sample: the last one writes all that is left
  sampler.alpha=1           of a policy trained with reward.alphas: how much speed is worth
  sampler.factor=1          and sampler.entropy_bound, sampler.noise, sampler.window: parameters of strategies
  sampler.policy.action=bernoulli_argmax   not for example/014609, which takes fixed only
  model.dtype=bfloat16

examples
  python -m unmask sample --strategy direct --batch_size 1 --steps 16
  python -m unmask sample --strategy policy --steps 16 --num_samples 8 --batch_size 8
  python -m unmask sample --strategy threshold --threshold 0.8 --prompt "Once upon a time" --show
  python -m unmask sample --template "Once upon a time there was a [MASK:5] who lived [MASK:3]." --steps 8
  python -m unmask sample dlm=sudoku6 --strategy confidence --prompt ".3....4...3..21..4..5..6.......1..4."
  python -m unmask sample dlm=stories_causal --num_samples 4 --batch_size 4
  python -m unmask sample --strategy twisted_smc --twist RUN --particles 32 --resample ess
  python -m unmask sample --strategy fk --reward vader --particles 8 sampler.smc.scale=5
  python -m unmask sample dlm=radd_lambda_dce_medium sampler.temperature=0.9 --device cuda --json - --no-eval
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the flags. `dest` of a flag is the key of the configuration that it sets."""
    parser = argparse.ArgumentParser(
        usage="python -m unmask sample [FLAGS] [KEY=VALUE ...]",
        description="Sample from a masked (or causal) language model; print generative perplexity, entropy, NFE, tokens/s.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument("--model", dest="dlm.path", metavar="PATH", help="hub id, directory, run or one .pth of a run")
    model.add_argument("--device", metavar="NAME", help="auto (default), cpu or cuda")
    how = parser.add_argument_group("how to unmask")
    how.add_argument(
        "--strategy", dest="sampler.strategy", metavar="NAME",
        help=f"{', '.join(STRATEGIES)}; default: direct (causal models: leftmost, one token per step); SEDD models also "
        f"{', '.join(PREDICTORS)}; guided by a reward: {', '.join(GUIDED)}; with particles: {', '.join(FILTERS)}",
    )  # fmt: skip
    how.add_argument("--steps", dest="sampler.steps", type=int, metavar="N", help="decoding steps of the whole canvas (16); "
                     "first_hitting, threshold, window, factor and entropy_bound decide the number themselves")  # fmt: skip
    how.add_argument(
        "--threshold",
        dest="sampler.threshold",
        type=float,
        metavar="P",
        help="threshold of the strategies threshold and window (0.9)",
    )
    how.add_argument(
        "--policy",
        dest="sampler.policy.path",
        metavar="PATH",
        help="a trained policy for strategy policy (example/014609)",
    )
    how.add_argument(
        "--other_model", dest="sampler.policy.other_model", action="store_true",
        help="use a policy that was trained on another model; only for policies that read confidences only",
    )  # fmt: skip
    _add_guidance(parser)
    _add_output(parser)
    return parser


def _add_guidance(parser: argparse.ArgumentParser) -> None:
    """Add the flags of rewards and particles."""
    guided = parser.add_argument_group(f"guided by a reward ({', '.join(GUIDED)})")
    guided.add_argument(
        "--reward", dest="sampler.guide.reward", metavar="RUN_OR_ID",
        help="a run of train-reward, a sequence classifier, vader, profanity, ...; of value_head: a run with such a head; "
        "also the reward of fk",
    )  # fmt: skip
    guided.add_argument(
        "--beta",
        dest="sampler.guide.beta",
        type=float,
        metavar="B",
        help="weight of the reward (default: the published one)",
    )
    guided.add_argument("--k", dest="sampler.guide.k", type=int, metavar="N", help="number of candidate tokens (10)")
    guided.add_argument(
        "--unmask", dest="sampler.guide.unmask", metavar="NAME",
        help="rule that chooses the positions of a masked model: a strategy above, without policy (confidence)",
    )  # fmt: skip
    guided.add_argument(
        "--positions", dest="sampler.guide.positions", metavar="NAME",
        help=f"method for several positions per step: {', '.join(POSITIONS)} (independent)",
    )  # fmt: skip
    particles = parser.add_argument_group(f"particles ({', '.join(FILTERS)})")
    particles.add_argument(
        "--particles", dest="sampler.smc.particles", type=int, metavar="N", help="particles of each sample (8)"
    )
    particles.add_argument(
        "--resample", dest="sampler.smc.resample", metavar="WHEN", help="ess (default), every or never"
    )
    particles.add_argument("--twist", dest="sampler.smc.twist", metavar="RUN", help="twisted_smc: a run of train-twist")


def _add_output(parser: argparse.ArgumentParser) -> None:
    """Add the flags of canvases, evaluation and files."""
    what = parser.add_argument_group("what to write")
    what.add_argument("--num_samples", type=int, metavar="N", help="number of samples (one batch)")
    what.add_argument(
        "--batch_size", type=int, metavar="N", help="samples that are decoded together (1); does not change the samples"
    )
    what.add_argument("--length", type=int, metavar="N", help="positions of the canvas (the model's longest)")
    what.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same samples (0)")
    what.add_argument("--prompt", dest="prefix", metavar="TEXT",
                      help="text at the start; for Sudoku the puzzle, with '.' for an open cell")  # fmt: skip
    what.add_argument(
        "--chat", action="store_true", help="the prompt is a user's message, in the model's chat template"
    )
    what.add_argument("--suffix", metavar="TEXT", help="text at the end")
    what.add_argument(
        "--prompts", metavar="FILE", help='.txt with one prompt per line, or .jsonl with {"prompt": ...}, {"messages": ...} or '
        '{"template": ...} per line; samples go, in this order, as JSON lines to stdout or to --out DIR/samples.jsonl',
    )  # fmt: skip
    what.add_argument("--template", metavar="TEXT", help="a text to fill in: [MASK:5] stands for five open positions")
    after = parser.add_argument_group("evaluation and output")
    after.add_argument(
        "--judge", metavar="NAME", help="causal model for perplexity: smollm2 (default), a hub id, a directory"
    )
    after.add_argument("--no-eval", dest="eval", action="store_false", help="no judge, so no perplexity")
    after.add_argument("--drift", action="store_true", help="measure the error of the confidences of sampler.cache")
    after.add_argument("--out", metavar="DIR", help="write sample_*.txt and samples.jsonl here")
    after.add_argument("--json", metavar="FILE", help="write all figures; - prints them as the only line of stdout")
    after.add_argument("--html", metavar="FILE", help="write a page that replays the decoding step by step")
    after.add_argument("--show", action="store_true", help="display the decoding")


FILES = ("prompts", "html")  # flags that are no keys of the configuration


def build_config(argv: list[str]) -> DictConfig:
    """Return the configuration of a command line: configs/sample.yaml, changed by the overrides and then by the flags."""
    parsed, overrides = parser().parse_known_args(current_flags(argv, "sample"))
    overrides = translated(overrides, "sample")
    flags = {key: value for key, value in vars(parsed).items() if key not in FILES}
    for unknown in overrides:
        if unknown.startswith("-") or "=" not in unknown:
            names = [name for action in parser()._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown.split("=")[0], names, n=1)
            hint = f"did you mean {near[0]}? See --help" if near else "see --help; text with spaces needs quotes"
            raise ValueError(f"{unknown!r} is neither a flag nor KEY=VALUE; {hint}")
    from unmask.runs.sample import check_read  # seconds to import

    config = composed("sample", overrides)
    for key, value in flags.items():
        OmegaConf.update(config, key, literal(value) if isinstance(value, str) else value)
    names = {action.dest: action.option_strings[0] for action in parser()._actions}
    given = {override.partition("=")[0].lstrip("+~"): override.partition("=")[0] for override in overrides}
    check_read(config, given | {key: names[key] for key in flags})
    return config


def main(arguments: Sequence[str]) -> None:
    """Sample with the settings of the command line; print and write the results."""
    # --help and malformed values end here, before seconds of imports
    parsed, _ = parser().parse_known_args(current_flags(arguments, "sample"))
    files = {key: Path(value) for key, value in vars(parsed).items() if key in FILES}
    imported("unmask.runs.sample").run(build_config(list(arguments)), **files)
