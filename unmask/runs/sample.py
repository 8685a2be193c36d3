"""The work of `sample`: decode, measure, print and write what a configuration asks for."""

from __future__ import annotations

import json
import math
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.prompt_file import load_prompts
from dlm.board import BoardTokenizer
from dlm.canvas import canvas_of
from dlm.checkpoints.table import is_causal
from dlm.ends import end_tokens, is_end
from dlm.environment import UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.cost import evaluation_flop, flop_of
from evaluation.metrics import cost, machine, peak_memory_mib, quality, solved
from evaluation.text import Judge, default_judge, has_default_judge, load_judge
from load_model import load_model
from policy.checkpoints import policy_file
from rewards.models import check_reward
from samplers.best_of import BestOf
from samplers.live import LiveView
from samplers.loop import Decoder, OnStep
from samplers.names import BEHIND_PROMPT, FILTERS, GUIDED
from samplers.samples import Samples, joined
from samplers.scores import ScoreDecoder
from samplers.settings import SamplerSettings, check_given, check_strategy, guided_rule, strategy_name
from samplers.smc import ParticleDecoder
from training.devices import device_of
from training.files import Unwritable, append_line, is_stream, make_directory, write_text
from training.hub import shipped
from training.progress import progress
from training.run import resolved
from training.terminal import printable, say_if_newline_is_spelled
from training.usage import literal
from unmask.api import Generation, decode_starts, starts_of
from unmask.decoders import Layout, build_decoder, build_options, twist_description
from unmask.settings import SampleSettings, checked


def sampler_settings(config: DictConfig) -> SamplerSettings:
    """Return the settings of `config.sampler`."""
    values = OmegaConf.to_container(config.sampler, resolve=True)
    assert isinstance(values, dict)
    return SamplerSettings.of({str(key): value for key, value in values.items()})


def check_read(config: DictConfig, given: dict[str, str]) -> None:
    """Refuse a setting that has no effect under this configuration: ValueError.

    Args:
        given: key of the configuration -> its name on the command line, of each that the user gave. Defaults do not count.
    """
    check_strategy(config.sampler.strategy)
    check_given(sampler_settings(config), given)
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
    """Refuse a number of steps for a twist without a state head and for a causal model, which commit one position per step.
    name: of the setting on the command line."""
    path = shipped(str(config.dlm.path))
    if config.sampler.strategy == "twisted_smc":
        about = twist_description(sampler_settings(config).smc)
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
    checked(SampleSettings, resolved(config))
    check_strategy(config.sampler.strategy)
    if config.sampler.strategy == "policy":
        policy_file(Path(shipped(str(config.sampler.policy.path))))
    if config.sampler.guide.reward is not None:
        check_reward(shipped(str(config.sampler.guide.reward)))


@dataclass
class Prepared:
    """Model, decoder and canvas of one command.

    path: of the model; settings: of the sampler, with the strategy that is used; canvas: one row, from which every sample
    starts.
    """

    path: str
    model: MaskedLM
    settings: SamplerSettings
    canvas: Int[Tensor, "position"]
    decoder: Decoder
    options: DecodeOptions

    @property
    def board(self) -> BoardTokenizer | None:
        """Tokenizer of a model of boards; None for text."""
        return self.model.tokenizer if isinstance(self.model.tokenizer, BoardTokenizer) else None

    @property
    def copies(self) -> int:
        """Number of rows that decode one sample."""
        if isinstance(self.decoder, ParticleDecoder):
            return self.decoder.particles
        return self.decoder.count if isinstance(self.decoder, BestOf) else 1

    def prompts(self, rows: int) -> Prompts:
        """Return the prompts of `rows` samples."""
        # Policies learn on the response alone, and a shadow block stands for it; the clues of boards are everywhere.
        by_strategy = self.settings.strategy in BEHIND_PROMPT and self.board is None
        behind_prompt = by_strategy or self.options.block_length is not None or self.options.cache is not None
        first = Layout.of(Prompts(self.canvas[None]), self.model.mask_id).first if behind_prompt else 0
        return Prompts(self.canvas.expand(rows, -1), prompt_length=first)

    def decode_ids(self, ids: list[int]) -> str:
        """Return token ids as text; without a tokenizer the ids."""
        return self.model.tokenizer.decode(ids) if self.model.tokenizer else " ".join(map(str, ids))

    def decode(self, rows: Int[Tensor, "row"], seed: int, on_step: OnStep | None = None) -> Samples:
        """Return the samples with these numbers."""
        return self.decoder.decode(self.model, self.prompts(len(rows)), self.options, seed, rows, on_step=on_step)


def load_configured(config: DictConfig, settings: SamplerSettings) -> tuple[str, MaskedLM]:
    """Load the configured model, of twisted SMC that of the twist; return its path with it."""
    twisted = settings.strategy == "twisted_smc"
    path = str(twist_description(settings.smc)["model"] if twisted else config.dlm.path)
    kind = None if twisted else OmegaConf.select(config, "dlm.model_type")
    return path, load_model(shipped(path), device_of(str(config.device)), config.model.dtype, kind)[0]


def prepare(config: DictConfig) -> Prepared:
    """Load the model and build the decoder. Raises ValueError before any work."""
    check(config)
    settings = sampler_settings(config)
    device = device_of(str(config.device))
    about = twist_description(settings.smc) if settings.strategy == "twisted_smc" else None
    path, model = load_configured(config, settings)
    canvas = start_canvas(config, model, about).to(device)
    layout = Layout.of(Prompts(canvas[None]), model.mask_id)
    suffix = None if config.suffix is None else str(config.suffix)
    decoder = build_decoder(settings, model, layout, config.seed, suffix)
    if settings.strategy in GUIDED:
        settings.guide.unmask = guided_rule(settings.guide.unmask, model)
    elif settings.strategy not in FILTERS:
        settings.strategy = strategy_name(settings.strategy, model)
    options = build_options(settings, model, layout, measure_drift=config.drift)
    found = Prepared(path, model, settings, canvas, decoder, options)
    if not isinstance(decoder, ScoreDecoder):
        UnmaskingEnvironment(model, options).reset(found.prompts(1))  # refuses blocks that do not fit
    return found


def start_canvas(config: DictConfig, model: MaskedLM, about: dict | None) -> Int[Tensor, "position"]:
    """Return the canvas of the configuration's texts.

    Args:
        about: description of a twist, whose prompt and length are the defaults.
    """
    given = {key: None if config[key] is None else str(config[key]) for key in ("prefix", "suffix", "template")}
    if about is not None and given["prefix"] is None and given["template"] is None:
        given["prefix"] = about["prompt"]
    for key, text in given.items():
        say_if_newline_is_spelled(text, key)
    if about is not None and about["target"]["kind"] == "infilling":
        given["suffix"] = None  # it is the condition of the twist, and not on the canvas
    canvas = canvas_of(model, **given, length=config.length, chat=config.chat)
    if about is not None and config.length is None and given["template"] is None:
        length = int((canvas != model.mask_id).sum()) + about["length"]
        canvas = canvas_of(model, **given, length=length, chat=config.chat)
    return canvas


def draw_samples(
    config: DictConfig, keep: Callable[[Samples, list[str]], None] | None = None, html: Path | None = None
) -> tuple[list[Samples], list[str], dict]:
    """Return samples (one entry per batch), their texts, and the record of quality and cost. ValueError before any work.

    Args:
        keep: is called with each batch and its texts when it is done.
        html: a page to write that replays the samples; None: no page.
    """
    prepared = prepare(config)
    model, device = prepared.model, prepared.canvas.device
    judged = config.eval and prepared.board is None and model.tokenizer is not None
    # A missing judge is reported now. The default one is loaded later, so that the peak of memory is that of sampling.
    judge = load_judge(config.judge, str(device)) if judged and config.judge else None
    judged = judged and (judge is not None or has_default_judge())
    batches, texts = decode_batches(prepared, config, keep)
    say_if_only_ends(model, batches)
    if html is not None:
        Generation(model, joined(batches)).save_replay(html, str(prepared.settings.strategy))
    memory = peak_memory_mib(device)
    if judged and judge is None:
        judge = default_judge(str(device))
    record = record_of(prepared, config, batches, texts, judge) | {"peak_memory_mib": memory}
    if config.eval:  # decodes a few samples again, now that everything else is known
        few = torch.arange(min(2, len(texts)), device=device)
        flop = flop_of(lambda: prepared.decode(few, config.seed))[1]
        record["equivalent_evaluations"] = flop / evaluation_flop(model, len(prepared.canvas)) / len(few)
    return batches, texts, record


def say_if_only_ends(model: MaskedLM, batches: Sequence[Samples]) -> None:
    """Print a line to stderr if no sample has any generated token but end tokens."""
    ends = end_tokens(model.tokenizer)
    if ends and all(bool((is_end(batch.tokens, ends) | batch.prompt).all()) for batch in batches):
        print(
            "the model generated end tokens only: it expects a prompt of another form; docs/checkpoints.md has the prompt "
            "format of each shipped model",
            file=sys.stderr,
        )


def decode_batches(
    prepared: Prepared, config: DictConfig, keep: Callable[[Samples, list[str]], None] | None
) -> tuple[list[Samples], list[str]]:
    """Decode every batch under a progress bar."""
    batches: list[Samples] = []
    texts: list[str] = []
    count = config.num_samples or config.batch_size
    opened = int((prepared.canvas == prepared.model.mask_id).sum()) * prepared.copies
    decode_ids = prepared.decode_ids if config.show else None
    columns = prepared.board.size if prepared.board else None
    with LiveView(opened * count, decode_ids, columns, quiet=config.json == "-") as view:
        for rows in torch.arange(count, device=prepared.canvas.device).split(config.batch_size):
            canvases = prepared.canvas.expand(len(rows) * prepared.copies, -1)
            view.next_batch(canvases, prepared.model.mask_id)
            done = prepared.decode(rows, config.seed, view.on_step)
            done.seconds -= view.paused
            batches.append(done)
            texts += [
                prepared.decode_ids(row[kept].tolist()) for row, kept in zip(done.tokens, done.counted, strict=True)
            ]
            if keep is not None:
                keep(done, texts[-len(done.tokens) :])
    return batches, texts


def record_of(
    prepared: Prepared, config: DictConfig, batches: list[Samples], texts: list[str], judge: Judge | None
) -> dict:
    """Return quality and cost of all samples, and the configuration."""
    model, settings = prepared.model, prepared.settings
    tokens, counted = (torch.cat([getattr(batch, name) for batch in batches]).cpu() for name in ("tokens", "counted"))
    used = config.copy()
    if prepared.path != str(config.dlm.path):  # a twist names its model
        used.dlm = {"path": literal(prepared.path)}
    used.sampler = OmegaConf.create(asdict(settings))
    used.sampler.steps = len(prepared.canvas) if model.causal else settings.steps
    used.length, used.num_samples = len(prepared.canvas), len(tokens)
    box = tuple(model.backbone.config["puzzle"]["box"]) if prepared.board else None
    measured = [batch.drift for batch in batches if batch.drift is not None]
    return {
        "model": prepared.path,
        "strategy": settings.strategy,
        "steps": used.sampler.steps,
        "length": used.length,
        "samples": used.num_samples,
        "seed": config.seed,
        **quality(tokens, texts, judge, model.tokenizer, counted),
        **({} if box is None else solved(tokens, box)),
        **cost(batches),
        **({"reward_rows": sum(batch.reward_rows for batch in batches)} if settings.strategy in GUIDED else {}),
        **particle_record(batches),
        "exact": batches[0].exact,
        "drift": fmean(measured) if measured else None,
        "machine": machine(prepared.canvas.device),
        "config": OmegaConf.to_container(used, resolve=True),
    }


def particle_record(batches: list[Samples]) -> dict:
    """Return figures of particle filters, empty without them: log Z and log potential of each sample (None: -inf), and
    means.
    """
    found = [batch.particles for batch in batches if batch.particles is not None]
    if not found:
        return {}
    joined = {name: torch.cat([getattr(one, name) for one in found])
              for name in ("log_z", "log_potential", "ess", "resamplings", "dead")}  # fmt: skip
    log_z, log_phi = (
        [x if math.isfinite(x) else None for x in joined[name].tolist()] for name in ("log_z", "log_potential")
    )
    return {
        "particles": found[0].particles, "log_z": log_z, "log_phi": log_phi,
        "dead": joined["dead"].nonzero().flatten().tolist(), "effective": fmean(joined["ess"].tolist()),
        "resamplings": fmean(joined["resamplings"].double().tolist()),
    }  # fmt: skip


class SampleFiles:
    """DIR/sample_N.txt and a line of DIR/samples.jsonl for each sample: its tokens, and the step of each commit (-1:
    prompt).

    They are written as soon as their batch is done.
    """

    def __init__(self, directory: Path):
        self.directory, self.count = make_directory(directory, f"--out {directory}"), 0
        write_text(self.lines, "")

    @property
    def lines(self) -> Path:
        return self.directory / "samples.jsonl"

    def add(self, batch: Samples, texts: list[str]) -> None:
        """Write a batch. Raises Unwritable; earlier samples stay."""
        columns = (getattr(batch, name).tolist() for name in ("tokens", "unmasked_at", "evaluations"))
        for text, tokens, unmasked_at, nfe in zip(texts, *columns, strict=True):
            row = {"sample": self.count, "text": text, "tokens": tokens, "written_at": unmasked_at, "nfe": nfe}
            append_line(self.lines, json.dumps(row, ensure_ascii=False))
            write_text(self.directory / f"sample_{self.count}.txt", text + "\n")
            self.count += 1


def cost_line(record: dict) -> str:
    """Return CPU time of the decoding, and its FLOP in evaluations of the model if they were counted."""
    line = f"{record['cpu_seconds'] / record['samples']:.3g} CPU s a sample"
    if "equivalent_evaluations" in record:
        line = f"{record['equivalent_evaluations']:.1f} equivalent evaluations, {line}"
    return line


def tpf_line(record: dict) -> str:
    """Return tokens per network evaluation with their interval."""
    if record["tpf"] is None:
        return "no evaluations"
    return f"{record['tpf']:.2f} [{record['tpf_low']:.2f}, {record['tpf_high']:.2f}] (tokens of the responses / NFE)"


def summary(record: dict) -> str:
    """Return the figures as text."""
    perplexity = "not computed"
    if record["gen_ppl"] is not None:
        perplexity = f"{record['gen_ppl']:.2f} (judge {record['judge']}, on {record['ppl_on']})"
    lines = {
        "generative perplexity": perplexity,
        "entropy": f"{record['entropy']:.3f} nats",
        "distinct-1/2/3": " / ".join("-" if (d := record[f"distinct_{n}"]) is None else f"{d:.3f}" for n in (1, 2, 3)),
        "NFE": f"{record['nfe']:.1f} a sample, {record['forwards']} forwards",
        "tokens per forward": tpf_line(record),
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


def check_files(config: DictConfig, prompts: Path | None, html: Path | None) -> None:
    """Refuse places that cannot be written, and settings that a file of prompts replaces. Raises ValueError."""
    if html is not None:
        if html.is_dir():
            raise ValueError(f"--html {html} is a directory; give a file")
        make_directory(html.parent, f"--html {html}: its directory")
    if prompts is not None:
        _check_prompt_file(config, prompts, html)


def _check_prompt_file(config: DictConfig, prompts: Path, html: Path | None) -> None:
    """Refuse settings that a file of prompts replaces: ValueError."""
    idle = [key for key in ("prefix", "template", "judge") if config[key] is not None]
    idle += ["suffix"] if config.suffix is not None and config.sampler.strategy != "twisted_smc" else []
    idle += [key for key in ("chat", "show", "drift") if config[key]]
    if idle:
        raise ValueError(f"{', '.join(idle)} would do nothing with --prompts {prompts}; leave it out")
    if config.json == "-":
        raise ValueError("--json - and --prompts both print on stdout; give --json FILE")
    if html is not None:
        raise ValueError("--html replays the samples of one prompt, and --prompts has several; leave one out")


def prepare_record(file: Path, name: str) -> None:
    """Make the directory of the file of --json before hours of sampling, not after. ValueError for a directory."""
    if file.is_dir():
        raise ValueError(f"--json {name} is a directory; give a file")
    if not is_stream(file):
        make_directory(file.parent, f"--json {name}: its directory")


def print_first(texts: Sequence[str], out: str | None) -> None:
    """Print the first four samples, and how many more there are. out: the directory of --out."""
    for number, text in enumerate(texts[:4]):
        print(f"--- sample {number} ---\n{printable(text)}\n")
    if len(texts) > 4:
        print(f"... and {len(texts) - 4} more{f' in {out}' if out else '; --out DIR writes all'}\n")


def run(config: DictConfig, prompts: Path | None = None, html: Path | None = None) -> None:
    """Sample, print and write what the configuration asks for.

    Args:
        prompts: a file of prompts (`data.prompt_file.load_prompts`); each is decoded `num_samples` times.
        html: a page to write that replays the decoding.
    """
    check_files(config, prompts, html)
    if prompts is not None:
        return sample_prompts(config, prompts)
    record_file = None if config.json in (None, "-") else Path(config.json)
    if record_file is not None:
        prepare_record(record_file, str(config.json))
    files = None if config.out is None else SampleFiles(Path(config.out))
    try:
        _, texts, record = draw_samples(config, None if files is None else files.add, html)
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
    print_first(texts, config.out)
    print(f"{record['strategy']}, {record['samples']} samples of {record['length']} positions\n{summary(record)}")
    if unwritten is not None:
        raise unwritten


# ------------------------------------------------------------------------------------------------------- a file of prompts


def sample_prompts(config: DictConfig, file: Path) -> None:
    """Decode every prompt of a file; a line of JSON for each sample, in the order of the file.

    The lines go to DIR/samples.jsonl, without `out` to stdout.
    """
    check(config)
    entries = load_prompts(file)
    out = None if config.out is None else make_directory(Path(config.out), f"--out {config.out}") / "samples.jsonl"
    settings = sampler_settings(config)
    path, model = load_configured(config, settings)
    suffix = None if config.suffix is None else str(config.suffix)
    canvases = [canvas_of_entry(model, kind, value, settings, suffix, config.length) for kind, value in entries]
    copies = config.num_samples or 1
    starts = [start for start in canvases for _ in range(copies)]
    records: dict[int, dict] = {}
    batches: list[Samples] = []
    with progress("sampling", len(starts)) as advance:
        decoded = decode_starts(
            model, starts, settings, settings, None, config.batch_size, config.seed, suffix, advance=advance
        )
        for numbers, batch in decoded:
            batches.append(batch)
            records |= records_of(model, numbers, batch, copies, with_tokens=out is not None)
    lines = [json.dumps(records[number], ensure_ascii=out is None) for number in sorted(records)]
    record = {"model": path, "strategy": settings.strategy, "samples": len(lines), **cost(batches)}
    if config.json not in (None, "-"):
        write_text(Path(config.json), json.dumps(record, indent=2, allow_nan=False) + "\n")
    if out is None:
        print("\n".join(lines))
    else:
        write_text(out, "\n".join(lines) + "\n")
        print(
            f"{len(lines)} samples of {len(entries)} prompts in {out}; NFE {record['nfe']:.1f} a sample, {cost_line(record)}"
        )


def records_of(
    model: MaskedLM, numbers: Int[Tensor, "sample"], batch: Samples, copies: int, with_tokens: bool
) -> dict[int, dict]:
    """Return the lines of JSON of a batch, by the numbers of its samples. copies: samples of each prompt."""
    made, found = Generation(model, batch), {}
    columns = (
        made.texts,
        made.responses,
        batch.tokens.tolist(),
        batch.unmasked_at.tolist(),
        batch.evaluations.tolist(),
    )
    for number, text, response, tokens, unmasked_at, nfe in zip(numbers.tolist(), *columns, strict=True):
        found[number] = {"sample": number, "prompt": number // copies, "text": text, "response": response, "nfe": nfe}
        found[number] |= {"tokens": tokens, "written_at": unmasked_at} if with_tokens else {}
    return found


def canvas_of_entry(
    model: MaskedLM, kind: str, value: Any, settings: SamplerSettings, suffix: str | None, length: int | None
) -> Prompts:
    """Return the canvas of one prompt of a file."""
    prompt, template = (None, value) if kind == "template" else (value, None)
    return starts_of(model, prompt, settings, template, suffix, length)[0]
