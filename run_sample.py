"""Sample text or puzzles from a masked language model, and evaluate them.

    python run_sample.py --strategy direct --batch_size 1 --steps 16
    python run_sample.py --strategy confidence --num_samples 64 --batch_size 16 --steps 32 --json record.json
    python run_sample.py dlm=stories_causal --strategy pargs --reward RUN --prompt "One day" --num_samples 4 --batch_size 4

Every flag is shorthand for a key of configs/sample.yaml; any other key is set Hydra's way: `sampler.temperature=0.9`.
"""

from __future__ import annotations

if __name__ == "__main__":
    from training.interrupt import end_in_one_line

    end_in_one_line()  # before the imports below, which take seconds

import argparse
import difflib
import json
import math
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import fmean

import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dlm.board import BoardTokenizer
from dlm.checkpoints.table import is_causal
from dlm.ends import end_tokens
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM, SeddLM
from evaluation.cost import evaluation_flop, flop_of
from evaluation.sampling import cost, machine, peak_memory_mib, quality, solved
from evaluation.text import default_judge, has_default_judge, load_judge
from load_model import load_model
from policy.build import (
    STRATEGIES,
    build_strategy,
    canvas_of,
    check_known,
    check_policy_keys,
    score_predictor,
    shipped,
    strategy_name,
)
from policy.checkpoints import policy_file
from policy.guidance import GUIDED, POSITIONS, build_guide, unmask_rule
from policy.readers import FILTERS, check_given, idle
from rewards.models import check_reward
from samplers.live import LiveView
from samplers.loop import sample
from samplers.samples import Samples
from samplers.scores import PREDICTORS, sample_scores
from training.files import Unwritable, append_line, is_stream, make_directory, write_text
from training.settings import check_settings
from training.terminal import printable, say_if_newline_is_spelled
from training.usage import composed, device_of, exit_on_bad_input, literal
from twist.sampling import build_filter, model_of_twist

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
  python run_sample.py --strategy direct --batch_size 1 --steps 16
  python run_sample.py --strategy policy --steps 16 --num_samples 8 --batch_size 8
  python run_sample.py --strategy threshold --threshold 0.8 --prompt "Once upon a time" --show
  python run_sample.py --template "Once upon a time there was a [MASK:5] who lived [MASK:3]." --steps 8
  python run_sample.py dlm=sudoku6 --strategy confidence --prompt ".3....4...3..21..4..5..6.......1..4."
  python run_sample.py dlm=stories_causal --num_samples 4 --batch_size 4
  python run_sample.py --strategy twisted_smc --twist RUN --particles 32 --resample ess
  python run_sample.py --strategy fk --reward vader --particles 8 sampler.smc.scale=5
  python run_sample.py dlm=radd_lambda_dce_medium sampler.temperature=0.9 --device cuda --json - --no-eval
"""


def parser() -> argparse.ArgumentParser:
    """The flags; `dest` is the key of the configuration that a flag sets."""
    parser = argparse.ArgumentParser(
        usage="python run_sample.py [FLAGS] [KEY=VALUE ...]",
        description="Sample from a masked (or causal) language model; print generative perplexity, entropy, NFE, tokens/s.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model", "--ckpt_path", dest="dlm.path", metavar="PATH", help="hub id, directory, run or one .pth of a run"
    )
    model.add_argument("--device", metavar="NAME", help="auto (default), cpu or cuda")
    how = parser.add_argument_group("how to unmask")
    how.add_argument(
        "--strategy", dest="sampler.strategy", metavar="NAME",
        help=f"{', '.join(STRATEGIES)}; default: direct (a causal model: leftmost, always one token a step); of a SEDD also "
        f"{', '.join(PREDICTORS)}; guided by a reward: {', '.join(GUIDED)}; with particles: {', '.join(FILTERS)}",
    )  # fmt: skip
    how.add_argument("--steps", dest="sampler.steps", type=int, metavar="N", help="steps over the whole canvas (16); strategies "
                     "first_hitting, threshold, window, factor and entropy_bound take as many as they need")  # fmt: skip
    how.add_argument(
        "--threshold", dest="sampler.threshold", type=float, metavar="P", help="of threshold and window (0.9)"
    )
    how.add_argument(
        "--policy",
        dest="sampler.policy.path",
        metavar="PATH",
        help="a trained policy for strategy policy (example/014609)",
    )
    how.add_argument(
        "--other_model", dest="sampler.policy.other_model", action="store_true",
        help="the policy was trained on another model than this one: of policies that read confidences only",
    )  # fmt: skip
    guided = parser.add_argument_group(f"guided by a reward ({', '.join(GUIDED)})")
    guided.add_argument(
        "--reward", dest="sampler.guide.reward", metavar="RUN_OR_ID",
        help="a run of run_train_reward.py, a sequence classifier, vader, profanity, ...; of value_head: a run with such a head; "
        "fk takes it too",
    )  # fmt: skip
    guided.add_argument("--beta", dest="sampler.guide.beta", type=float, metavar="B", help="its weight (as published)")
    guided.add_argument("--k", dest="sampler.guide.k", type=int, metavar="N", help="tokens that are candidates (10)")
    guided.add_argument(
        "--unmask", dest="sampler.guide.unmask", metavar="NAME",
        help="which masks of a masked model are written next, a strategy above that needs no policy (confidence)",
    )  # fmt: skip
    guided.add_argument(
        "--positions", dest="sampler.guide.positions", metavar="NAME",
        help=f"of several positions a step: {', '.join(POSITIONS)} (independent)",
    )  # fmt: skip
    particles = parser.add_argument_group(f"particles ({', '.join(FILTERS)})")
    particles.add_argument(
        "--particles", dest="sampler.smc.particles", type=int, metavar="N", help="of each sample (8)"
    )
    particles.add_argument(
        "--resample", dest="sampler.smc.resample", metavar="WHEN", help="ess (default), every or never"
    )
    particles.add_argument(
        "--twist", dest="sampler.smc.twist", metavar="RUN", help="twisted_smc: a run of run_train_twist.py"
    )
    what = parser.add_argument_group("what to write")
    what.add_argument("--num_samples", type=int, metavar="N", help="samples in all (one batch)")
    what.add_argument("--batch_size", type=int, metavar="N", help="samples at a time (1); does not change them")
    what.add_argument("--length", type=int, metavar="N", help="positions of the canvas (the model's longest)")
    what.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same samples (0)")
    what.add_argument("--prompt", "--prefix", dest="prefix", metavar="TEXT",
                      help="text at the start; for Sudoku the puzzle, with '.' for a blank")  # fmt: skip
    what.add_argument(
        "--chat", action="store_true", help="the prompt is a user's message, in the model's chat template"
    )
    what.add_argument("--suffix", metavar="TEXT", help="text at the end")
    what.add_argument("--template", metavar="TEXT", help="a text to fill in: [MASK:5] stands for five tokens")
    after = parser.add_argument_group("evaluation and output")
    after.add_argument(
        "--judge", metavar="NAME", help="causal model for perplexity: smollm2 (default), a hub id, a directory"
    )
    after.add_argument("--no-eval", dest="eval", action="store_false", help="no judge, so no perplexity")
    after.add_argument("--drift", action="store_true", help="measure how far off the confidences of sampler.cache are")
    after.add_argument("--out", metavar="DIR", help="write sample_*.txt and samples.jsonl here")
    after.add_argument("--json", metavar="FILE", help="write all figures; - prints them as the only line of stdout")
    after.add_argument("--show", action="store_true", help="watch the canvas fill")
    return parser


def build_config(argv: list[str]) -> DictConfig:
    """The configuration of one command line: configs/sample.yaml, the overrides, then the flags."""
    flags, overrides = parser().parse_known_args(argv)
    for unknown in overrides:
        if unknown.startswith("-") or "=" not in unknown:
            names = [name for action in parser()._actions for name in action.option_strings]
            near = difflib.get_close_matches(unknown.split("=")[0], names, n=1)
            hint = f"did you mean {near[0]}? See --help" if near else "see --help; text with spaces needs quotes"
            raise ValueError(f"{unknown!r} is neither a flag nor KEY=VALUE; {hint}")
    config = composed("sample", overrides)
    for key, value in vars(flags).items():
        OmegaConf.update(config, key, literal(value) if isinstance(value, str) else value)
    names = {action.dest: action.option_strings[0] for action in parser()._actions}
    given = {override.partition("=")[0].lstrip("+~"): override.partition("=")[0] for override in overrides}
    check_read(config, given | {key: names[key] for key in vars(flags)})
    return config


def check_read(config: DictConfig, given: dict[str, str]) -> None:
    """Refuse a setting that nothing reads under this configuration. Raises ValueError.

    Args:
        given: key of the configuration -> its name on the command line, of each that the user gave. Defaults do not count.
    """
    check_known(config.sampler.strategy, (*GUIDED, *FILTERS))
    check_given(config, given)
    if config.sampler.strategy == "twisted_smc":
        for key, name in given.items():
            if key.split(".")[0] == "dlm":
                raise ValueError(
                    f"{name} would do nothing with --strategy twisted_smc, which takes the model of its twist; leave it out"
                )
    if "sampler.steps" in given:
        check_steps(config, given["sampler.steps"])
    if not config.eval and "judge" in given and config.judge is not None:
        raise ValueError(f"{given['judge']} would do nothing with --no-eval; leave one out")
    if config.json == "-" and "show" in given and config.show:
        raise ValueError(
            f"{given['show']} would do nothing with --json -, which keeps stdout for the figures; leave one out"
        )


def check_steps(config: DictConfig, name: str) -> None:
    """Refuse steps for a twist, or a model on this machine, that decides one position at a time. name: of the setting on the
    command line."""
    path = shipped(str(config.dlm.path))
    if config.sampler.strategy == "twisted_smc":
        about = model_of_twist(config.sampler.smc)
        path = shipped(str(about["model"]))
        if config.sampler.smc.unmask is None and not about["twist"].get("state"):
            raise ValueError(
                f"{name} would do nothing with a twist without a state head, which writes one position a step; leave it out"
            )
    if Path(path).exists() and is_causal(path):  # nothing is fetched for this
        raise ValueError(
            f"{name} would do nothing with the causal model {path}, which writes one token a step; leave it out"
        )


def check(config: DictConfig) -> None:
    """Refuse, before a model is loaded, settings that no model takes and files that do not exist. Raises ValueError."""
    check_settings(config, "sample")
    check_known(config.sampler.strategy, (*GUIDED, *FILTERS))
    if config.sampler.strategy == "policy":
        check_policy_keys(config.sampler.policy)
        policy_file(Path(shipped(str(config.sampler.policy.path))))
    if config.sampler.guide.reward is not None:
        check_reward(shipped(str(config.sampler.guide.reward)))


def build_environment(config: DictConfig, model: MaskedLM, canvas: Int[Tensor, "position"]) -> UnmaskingEnvironment:
    """The environment that `config.sampler` asks for. ValueError for what this model has not."""
    sampler = config.sampler
    ends = []
    if sampler.stop or sampler.logits_eos_inf or sampler.confidence_eos_eot_inf:
        ends = end_tokens(model.tokenizer)
        if not ends:
            raise ValueError(f"{config.dlm.path} has no end of sequence; leave stop and the eos settings out")
    masks = (canvas == model.mask_id).nonzero().squeeze(1)
    # Policies learn on what is written alone; boards have their clues among it.
    by_policy = sampler.strategy == "policy" and not isinstance(model.tokenizer, BoardTokenizer)
    behind_prompt = by_policy or sampler.block_length is not None or sampler.cache is not None
    # Blocks need not divide what nothing reads.
    steps = max(1, len(masks)) if idle(config, "sampler.steps") else sampler.steps
    return UnmaskingEnvironment(
        model, steps, sampler.block_length, budget=sampler.budget, prompt_length=int(masks[0]) if behind_prompt else 0,
        stop_id=ends if sampler.stop else None, never=ends[:1] if sampler.logits_eos_inf else (),
        last=ends if sampler.confidence_eos_eot_inf else (), guidance=float(sampler.guidance), cache=sampler.cache,
        refresh=sampler.refresh, alpha=sampler.alpha, measure_drift=config.drift,
    )  # fmt: skip


def with_defaults_of_twist(config: DictConfig) -> DictConfig:
    """The model that the twist was learnt on and, where nothing is said, its prompt."""
    about, config = model_of_twist(config.sampler.smc), config.copy()
    config.dlm = {"path": literal(str(about["model"]))}
    if config.prefix is None and config.template is None:
        config.prefix = None if about["prompt"] is None else literal(about["prompt"])
    return config


def draw_samples(
    config: DictConfig, keep: Callable[[Samples, list[str]], None] | None = None
) -> tuple[list[Samples], list[str], dict]:
    """Samples, one entry a batch; their texts; and the record of quality and cost. Raises ValueError before any work.

    keep: called with each batch and its texts as it is done.
    """
    check(config)
    device = device_of(str(config.device))
    filtered = config.sampler.strategy in FILTERS
    if config.sampler.strategy == "twisted_smc":
        config = with_defaults_of_twist(config)
    model, _ = load_model(
        shipped(str(config.dlm.path)), device, config.model.dtype, OmegaConf.select(config, "dlm.model_type")
    )
    guided = config.sampler.strategy in GUIDED
    composed_of_two = not guided and not filtered  # where, and what
    predictor = score_predictor(config, model) if composed_of_two else None
    strategy = build_strategy(config, model) if composed_of_two and predictor is None else None
    given = {key: None if config[key] is None else str(config[key]) for key in ("prefix", "suffix", "template")}
    for key, text in given.items():
        say_if_newline_is_spelled(text, key)
    learnt_for = model_of_twist(config.sampler.smc) if config.sampler.strategy == "twisted_smc" else None
    if learnt_for is not None and learnt_for["target"]["kind"] == "infilling":
        given["suffix"] = None  # the twist is told it; it does not stand on the canvas
    canvas = canvas_of(model, **given, length=config.length, chat=config.chat)
    if learnt_for is not None and config.length is None and config.template is None:
        length = int((canvas != model.mask_id).sum()) + learnt_for["length"]
        canvas = canvas_of(model, **given, length=length, chat=config.chat)
    canvas = canvas.to(device)
    particles = build_filter(config, model, canvas) if filtered else None
    config = config.copy()
    guide = (
        build_guide(config, model, int((canvas == model.mask_id).nonzero()[0]), len(canvas)) if guided else particles
    )
    config.length = len(canvas)
    if guided:
        config.sampler.guide.unmask = unmask_rule(config.sampler.guide.unmask, model)
    elif not filtered:
        config.sampler.strategy = strategy_name(config.sampler.strategy, model)
    config.sampler.steps = len(canvas) if model.causal else config.sampler.steps
    config.num_samples = config.num_samples or config.batch_size
    environment = build_environment(config, model if particles is None else particles.model, canvas)
    environment.reset(canvas.unsqueeze(0))  # refuses blocks that do not fit
    board = model.tokenizer if isinstance(model.tokenizer, BoardTokenizer) else None
    judged = config.eval and board is None and model.tokenizer is not None
    # A judge that is missing is said now. The default one is loaded later: the peak of memory is that of sampling.
    judge = load_judge(config.judge, str(device)) if judged and config.judge else None
    judged = judged and (judge is not None or has_default_judge())

    def decode_rows(rows: Int[Tensor, "row"], on_step=None) -> Samples:
        canvases = canvas.expand(len(rows), -1)
        if guide is not None:
            return guide.decode(environment, canvases, config.seed, rows, on_step=on_step)
        if strategy is None:
            assert isinstance(model, SeddLM) and predictor is not None
            return sample_scores(model, predictor, config.sampler.steps, canvases, config.seed, rows, on_step)
        return sample(environment, strategy, canvases, config.seed, rows, on_step=on_step)

    batches: list[Samples] = []
    texts: list[str] = []
    copies = config.sampler.smc.particles if filtered else 1
    masks = int((canvas == model.mask_id).sum()) * copies
    decode = model.tokenizer.decode if model.tokenizer else lambda ids: " ".join(map(str, ids))
    shown, columns = (decode if config.show else None), (board.size if board else None)
    with LiveView(masks * config.num_samples, shown, columns, quiet=config.json == "-") as view:
        for rows in torch.arange(config.num_samples, device=device).split(config.batch_size):
            canvases = canvas.expand(len(rows), -1)
            view.next_batch(canvases.repeat_interleave(copies, 0), model.mask_id)
            done = decode_rows(rows, view.on_step)
            batches.append(done)
            texts += [decode(row[kept].tolist()) for row, kept in zip(done.tokens, done.counted, strict=True)]
            if keep is not None:
                keep(done, texts[-len(done.tokens) :])
    memory = peak_memory_mib(device)
    judge = default_judge(str(device)) if judged and judge is None else judge
    tokens, counted = (torch.cat([getattr(batch, name) for batch in batches]).cpu() for name in ("tokens", "counted"))
    record = {
        "model": str(config.dlm.path),
        "strategy": config.sampler.strategy,
        "steps": config.sampler.steps,
        "length": config.length,
        "samples": config.num_samples,
        "seed": config.seed,
        **quality(tokens, texts, judge, model.tokenizer, counted),
        **(solved(tokens, tuple(model.backbone.config["puzzle"]["box"])) if board else {}),  # pyright: ignore
        **cost(batches),
        **({} if guide is None else guide.record()),
        "exact": environment.exact,
        "drift": environment.drift,
        "peak_memory_mib": memory,
        "machine": machine(device),
        "config": OmegaConf.to_container(config, resolve=True),
    }
    if config.eval:  # decodes a few samples again, now that everything else is known
        few = torch.arange(min(2, config.num_samples), device=device)
        flop = flop_of(lambda: decode_rows(few))[1]
        record["equivalent_evaluations"] = flop / evaluation_flop(model, len(canvas)) / len(few)
    return batches, texts, record


class SampleFiles:
    """DIR/sample_N.txt, and a line of DIR/samples.jsonl, for each sample: its tokens, and the step at which each was written (-1:
    given). They are on disk as soon as their batch is done, whatever happens afterwards."""

    def __init__(self, directory: Path):
        self.directory, self.count = make_directory(directory, f"--out {directory}"), 0
        write_text(self.lines, "")

    @property
    def lines(self) -> Path:
        return self.directory / "samples.jsonl"

    def add(self, batch: Samples, texts: list[str]) -> None:
        """Raises Unwritable; the samples before stay."""
        columns = (getattr(batch, name).tolist() for name in ("tokens", "written_at", "evaluations"))
        for text, tokens, written_at, nfe in zip(texts, *columns, strict=True):
            row = {"sample": self.count, "text": text, "tokens": tokens, "written_at": written_at, "nfe": nfe}
            append_line(self.lines, json.dumps(row, ensure_ascii=False))
            write_text(self.directory / f"sample_{self.count}.txt", text + "\n")
            self.count += 1


def cost_line(record: dict) -> str:
    """CPU time of everything that decoded, and its FLOP in evaluations of the model where they were counted."""
    line = f"{record['cpu_seconds'] / record['samples']:.3g} CPU s a sample"
    if "equivalent_evaluations" in record:
        line = f"{record['equivalent_evaluations']:.1f} equivalent evaluations, {line}"
    return line


def summary(record: dict) -> str:
    """The figures for a reader."""
    perplexity = "not computed"
    if record["gen_ppl"] is not None:
        perplexity = f"{record['gen_ppl']:.2f} (judge {record['judge']}, on {record['ppl_on']})"
    lines = {
        "generative perplexity": perplexity,
        "entropy": f"{record['entropy']:.3f} nats",
        "distinct-1/2/3": " / ".join("-" if (d := record[f"distinct_{n}"]) is None else f"{d:.3f}" for n in (1, 2, 3)),
        "NFE": f"{record['nfe']:.1f} a sample, {record['forwards']} forwards",
        "cost": cost_line(record),
        "tokens/s": f"{record['tokens_per_second']:.0f} ({record['generated']} tokens in {record['seconds']:.2f} s)",
        "peak memory": "not measured" if (peak := record["peak_memory_mib"]) is None else f"{peak:.0f} MiB",
    }
    if "log_z" in record:
        log_z, log_phi = (
            [value for value in record[name] if value is not None] or [-math.inf] for name in ("log_z", "log_phi")
        )
        lines |= {
            "log Z": f"{fmean(log_z):.3f} on average of {record['particles']} particles a sample",
            "log potential": f"{fmean(log_phi):.3f} of the samples",
            "effective particles": f"{record['effective']:.1f} at the end, {record['resamplings']:.1f} resamplings",
        }
        if dead := record["dead"]:
            lines["without a particle"] = (
                f"{len(dead)} of {record['samples']} samples ({', '.join(map(str, dead[:10]))}): all particles have potential 0, "
                "log Z = -inf, left out of the means; take more particles, or temper the potential"
            )
    if "solve_rate" in record:
        low, high = record["solve_rate_low"], record["solve_rate_high"]
        lines = {"solved": f"{record['solve_rate']:.1%} [{low:.1%}, {high:.1%}]"} | lines
        del lines["generative perplexity"], lines["distinct-1/2/3"]
    return "\n".join(f"{name:<22} {value}" for name, value in lines.items())


def main(argv: list[str]) -> None:
    config = build_config(argv)
    record_file = None if config.json in (None, "-") else Path(config.json)
    if record_file is not None and record_file.is_dir():
        raise ValueError(f"--json {config.json} is a directory; give a file")
    if record_file is not None and not is_stream(record_file):  # before hours of sampling, not after
        make_directory(record_file.parent, f"--json {config.json}: its directory")
    files = None if config.out is None else SampleFiles(Path(config.out))
    try:
        _, texts, record = draw_samples(config, None if files is None else files.add)
    except KeyboardInterrupt:
        kept = (
            "; --out DIR would have kept samples" if files is None else f"; {files.count} samples are in {config.out}"
        )
        print(f"interrupted{kept}", file=sys.stderr)
        raise SystemExit(128 + signal.SIGINT) from None
    if config.json == "-":
        print(json.dumps(record, allow_nan=False))
        return
    unwritten = None
    if record_file is not None:  # before the terminal, which may end the command
        try:
            write_text(record_file, json.dumps(record, indent=2, allow_nan=False) + "\n")
        except Unwritable as error:  # the figures are shown all the same
            unwritten = error
    for number, text in enumerate(texts[:4]):
        print(f"--- sample {number} ---\n{printable(text)}\n")
    if len(texts) > 4:
        print(f"... and {len(texts) - 4} more{f' in {config.out}' if config.out else '; --out DIR writes all'}\n")
    print(f"{record['strategy']}, {record['samples']} samples of {record['length']} positions\n{summary(record)}")
    if unwritten is not None:
        raise unwritten


if __name__ == "__main__":
    with exit_on_bad_input():
        main(sys.argv[1:])
