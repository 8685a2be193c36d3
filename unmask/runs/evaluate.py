"""The work of `evaluate`: answer questions by policies and rules, judge the answers, and report accuracy and cost."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from jaxtyping import Int
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from data.questions import (
    DATASETS,
    HUB,
    Question,
    canvases,
    check_questions,
    check_runnable,
    load_questions,
    questions_hash,
    right,
)
from dlm.board import BoardTokenizer
from dlm.checkpoints.table import type_by_name
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.fingerprint import digest_of, digests_of
from dlm.masked_lm import MaskedLM
from dlm.observation import Observation
from evaluation.cost import COUNTED_ROWS, equivalent_evaluations
from evaluation.decoding import AnswerSettings, answer_lengths, generations
from evaluation.few_shot import with_examples
from evaluation.generations import begin, check_beside, finished_in, merge, shard
from evaluation.leaderboard import check_target, evaluated, merged, read_leaderboard, write_leaderboard
from evaluation.metrics import machine
from evaluation.names import ALL, WORKED
from evaluation.report import plot_pareto, plot_tpf, print_table, write_csv
from evaluation.request import EvaluationRequest
from evaluation.summary import IDENTITY, Results, aup_rows, outcomes_of, result_row, summary_row, tpf_columns
from evaluation.sweeps import Candidate, candidates, numbers
from load_model import load_model
from policy.checkpoints import policy_file
from policy.unmasker import PolicyUnmasker, policy_decoder
from samplers.heuristics import AsSampled, check_confidence
from samplers.loop import StepDecoder, Strategy
from samplers.names import DECODERS, PREDICTORS, STRATEGIES
from samplers.samples import Stopwatch
from samplers.settings import check_strategy, readers_of
from training.compatibility import from_file
from training.devices import check_device
from training.files import append_line, check_place, write_text
from training.hub import shipped
from training.processes import Processes, processes
from training.stored import description
from training.terminal import printable
from training.usage import CONFIGS, composed, override
from unmask.decoders import build_step_decoder, token_sampler

OF_DATA = ("dataset", "questions", "length", "few_shot", "n_test", "math_by")  # settings that data sets may differ in
# Settings that the strategies of a Python caller may differ in.
OF_SAMPLER = ("block_length", "cache", "refresh", "logits_eos_inf", "confidence_eos_eot_inf", "guidance", "token_temperature",
              "confidence", "top_p", "top_k")  # fmt: skip


T = TypeVar("T")


@dataclass
class Job:
    """One rule or policy on one data set with one seed."""

    candidate: Candidate
    dataset: str
    seed: int
    decoding: AnswerSettings

    @property
    def directory(self) -> str:
        return f"{self.candidate.name}_{self.dataset}_seed{self.seed}"


def configuration(arguments: EvaluationRequest) -> DictConfig | None:
    """Return the configuration of the run, or of --config. ValueError for what is neither a run nor a configuration."""
    given = arguments.config
    if given is None:
        if arguments.run is None:
            return None
        file = Path(arguments.run) / ".hydra" / "config.yaml"
        if not file.is_file():
            raise ValueError(f"{arguments.run} is not a run: {file} does not exist; give a run of train-policy")
        return description(file)
    experiments = CONFIGS / "experiment"
    if Path(given).suffix not in (".yaml", ".yml") or Path(given).resolve().parent == experiments:
        return composed("train_policy", [override("experiment", Path(given).stem)])
    if not Path(given).is_file():
        raise ValueError(f"--config {given} does not exist; give an experiment of configs/experiment or a YAML file")
    read = description(Path(given))
    found = {str(key): value for key, value in OmegaConf.to_container(read, resolve=True).items()}  # pyright: ignore
    if "dlm" not in found:  # a published one: it is for the model that it names, and others of that family
        overrides = from_file(found, given)
        named = type_by_name(shipped(str(found.get("model_path", ""))))
        return composed(
            "train_policy", ["data=questions", *overrides, *([f"++dlm.model_type={named}"] if named else [])]
        )
    return read


def check_reads_text(model: MaskedLM) -> None:
    """Refuse a model without a tokenizer of text, for questions: ValueError."""
    if model.tokenizer is None:
        raise ValueError(f"the tokenizer of {model.label} cannot be loaded, and questions are text; add tokenizer.json")
    if isinstance(model.tokenizer, BoardTokenizer):
        raise ValueError(f"{model.label} is a model of boards, and questions are text; give a model of text")


def plain(config: DictConfig | None) -> dict[str, Any] | None:
    """Return a configuration as dictionaries."""
    values = None if config is None else OmegaConf.to_container(config, resolve=True)
    assert values is None or isinstance(values, dict)
    return None if values is None else {str(key): value for key, value in values.items()}


def decoding_of(arguments: EvaluationRequest, config: DictConfig | None, dataset: str) -> AnswerSettings:
    """Return the decoding settings: of the command line, else of the configuration, else the data set's own length and no
    blocks.
    """
    known = OmegaConf.create() if config is None else config
    cache = arguments.cache or OmegaConf.select(known, "sampler.cache")
    requested = {
        "cache": None if cache == "none" else cache,
        "block_length": arguments.block_length,
        "refresh": arguments.refresh,
    }
    for key in ("block_length", "refresh"):
        if requested[key] is None and (key != "refresh" or requested["cache"]):
            requested[key] = OmegaConf.select(known, f"sampler.{key}")
    configured = OmegaConf.select(known, "sampler.length") or OmegaConf.select(known, "data.answer_length")
    return AnswerSettings(
        arguments.gen_length or configured or default_length(dataset), None, requested["block_length"], requested["cache"],
        requested["refresh"], None, arguments.logits_eos_inf, arguments.confidence_eos_eot_inf, arguments.guidance,
        drift=arguments.drift,
    )  # fmt: skip


def default_length(dataset: str) -> int:
    """Return the positions of an answer to a question of a data set."""
    return 24 if dataset == "chain" else 256


def settings_of(
    job: Job, questions: list[Question], arguments: EvaluationRequest, model_path: str, dtype: str, model: str
) -> dict:
    """Return the settings that decide the samples of a job. model: digest of the weights of the model at model_path."""
    own = identity_of(job.candidate)
    decoding = {
        key: value for key, value in asdict(job.decoding).items() if key not in ("steps", "budget", "alpha", "drift")
    }
    tokens, confidence = tokens_of(job.candidate, arguments)
    requested: dict = {"token_temperature": tokens.temperature}
    requested |= {key: getattr(arguments, key) for key in ("few_shot", "n_test", "math_by")}
    requested |= {"confidence": confidence} if confidence != "model" else {}
    requested |= {"top_p": tokens.top_p, "top_k": tokens.top_k} if (tokens.top_p, tokens.top_k) != (1, 0) else {}
    of = {"dataset": job.dataset, "questions": questions_hash(questions), "seed": job.seed}
    return own | of | {"model": model_path, "model_weights": model, "dtype": dtype} | decoding | requested


def identity_of(candidate: Candidate) -> dict[str, Any]:
    """Return the settings of a candidate that decide its samples."""
    left_out = ("rule", "sampler") if candidate.revision is not None else ("rule", "sampler", "revision")
    return {key: value for key, value in vars(candidate).items() if key not in left_out}


def questions_of(job: Job, model: MaskedLM, arguments: EvaluationRequest) -> list[Question]:
    """Return the questions of a job. ValueError for a question that does not fit the model, or that cannot be verified
    here.
    """
    count = arguments.n_test or (512 if job.dataset == "chain" else None)
    questions = load_questions(job.dataset, "test", arguments.data_dir, count, arguments.math_by)
    check_runnable(questions, arguments.unsandboxed)
    if arguments.few_shot:
        examples = load_questions(job.dataset, "train", arguments.data_dir, arguments.few_shot)
        questions = with_examples(questions, examples)
    check_questions(model, questions, job.decoding.length)
    return questions


def tokens_of(candidate: Candidate, arguments: EvaluationRequest) -> tuple[TokenRule, str]:
    """Return the token sampler of a rule or policy, and the source of its confidences."""
    if candidate.sampler is None:
        return TokenRule(arguments.token_temperature), arguments.confidence
    return token_sampler(candidate.sampler), candidate.sampler.confidence


def strategy_of(candidate: Candidate, arguments: EvaluationRequest) -> StepDecoder:
    """Return a rule or policy with its token sampler, or a decoder that has its own."""
    rule, (tokens, confidence) = candidate.rule, tokens_of(candidate, arguments)
    if isinstance(rule, StepDecoder):
        return rule
    if isinstance(rule, PolicyUnmasker):
        return policy_decoder(rule, tokens)
    return Strategy(AsSampled(rule, tokens) if confidence == "sampling" else rule, tokens)


def equivalents(job: Job, questions: list[Question], model: MaskedLM, arguments: EvaluationRequest) -> float:
    """Return the mean equivalent evaluations of a question, from a few questions, evenly spaced."""
    few = questions[:: max(1, len(questions) // COUNTED_ROWS)][:COUNTED_ROWS]
    prompts = canvases(model, few, job.decoding.length).to(model.device)
    options, strategy = job.decoding.options(model), strategy_of(job.candidate, arguments)
    return equivalent_evaluations(model, lambda part: strategy.decode(model, part, options, job.seed), prompts)


def evaluate(
    job: Job,
    questions: list[Question],
    settings: dict,
    model: MaskedLM,
    arguments: EvaluationRequest,
    group: Processes,
) -> int:
    """Answer this process's share of the unanswered questions, one line of a file each. Returns their number."""
    directory = Path(arguments.save_path) / job.directory
    columns = (
        *IDENTITY,
        "model",
        "weights",
        "seed",
        "revision",
        *(OF_SAMPLER if job.candidate.sampler is not None else ()),
    )
    check_beside(directory, settings, columns, OF_DATA)
    done = begin(directory, settings, group)
    todo = torch.tensor([row for row in range(len(questions)) if row not in done], dtype=torch.long)
    todo = todo[group.rank :: group.world]
    strategy = strategy_of(job.candidate, arguments)
    if len(todo) == 0:
        return 0
    out = shard(directory, group)
    for rows in todo.split(arguments.batch_size):
        part = [questions[row] for row in rows.tolist()]
        prompts = canvases(model, part, job.decoding.length).to(model.device)
        writer = Writer(part, rows.tolist(), prompts.prompt_length, arguments.unsandboxed, out)
        row_id = rows.to(prompts.canvas.device)
        strategy.decode(model, prompts, job.decoding.options(model), job.seed, row_id, on_step=writer)
    return len(todo)


class Writer:
    """Writes one line for each row of a batch at the step at which the row finishes.

    The seconds of a row (wall clock and CPU) are its share of the batch's: those of each step, divided by the number of active
    rows.
    """

    def __init__(
        self, questions: list[Question], rows: list[int], prompt_length: int,
        unsandboxed: bool, out: Path,
    ):  # fmt: skip
        self.questions, self.rows, self.first = questions, rows, prompt_length
        self.unsandboxed, self.out = unsandboxed, out
        self.seconds, self.cpu_seconds = [0.0] * len(rows), [0.0] * len(rows)
        self.stopwatch, self.measuring = Stopwatch(), (0.0, 0.0)

    def __call__(self, observation: Observation, places: Int[Tensor, "active"]) -> None:
        environment = observation.environment
        assert isinstance(environment, UnmaskingEnvironment)
        spent = zip(self.stopwatch.seconds(), environment.measuring, self.measuring, strict=True)
        wall, cpu = ((taken - now + before) / len(places) for taken, now, before in spent)  # drift is no decoding
        for place in places.tolist():
            self.seconds[place] += wall
            self.cpu_seconds[place] += cpu
        done = observation.done.nonzero().squeeze(1)
        if len(done):
            self.write(observation, environment, done, places[done].tolist())
        self.stopwatch, self.measuring = Stopwatch(), environment.measuring  # judging is no decoding

    def write(
        self,
        observation: Observation,
        environment: UnmaskingEnvironment,
        done: Int[Tensor, "finished"],
        places: list[int],
    ) -> None:
        answers, model = observation.tokens[done, self.first :], environment.model
        texts = generations(model, answers)
        questions = [self.questions[place] for place in places]
        results = zip(
            places, questions, texts, right(questions, texts, self.unsandboxed), observation.evaluations[done].tolist(),
            answer_lengths(model, answers).tolist(), environment.drift_of(done), strict=True,
        )  # fmt: skip
        for place, question, text, solved, evaluations, length, drift in results:
            record = {
                "row": self.rows[place], "question": question.prompt, "generation": text, "ground_truth": question.truth,
                "right": solved, "nfe": evaluations, "tokens": length, "seconds": self.seconds[place],
                "cpu_seconds": self.cpu_seconds[place], "exact": environment.exact, "drift": drift,
            }  # fmt: skip
            append_line(self.out, json.dumps(record, ensure_ascii=False))


def directly(work: Callable[[], T], name: str, group: Processes) -> T:
    """Return the result of `work`, and let its error through: one process, and a caller that wants every result."""
    return work()


def together(work: Callable[[], T], name: str, group: Processes) -> T | None:
    """Return the result of `work` once every process has done it; None if one failed, which prints its reason while other
    jobs go on.
    """
    found = None
    try:
        found = work()
    except ValueError as error:
        print(printable(f"{name}: {error}"), file=sys.stderr)
    failed = group.mean({"failed": float(found is None)})["failed"]  # waits for all
    return None if failed else found


# Flags of a policy or of a rule, and the setting of samplers/settings.py that each of them is.
FLAGS = {
    "other_model": "sampler.policy.other_model", "temperatures": "sampler.policy.temperature", "betas": "sampler.policy.beta",
    "sampling_mode": "sampler.policy.action", "alphas": "sampler.policy", "windows": "sampler.window",
    "confidence_eos_eot_inf": "sampler.confidence_eos_eot_inf",
}  # fmt: skip


def check_idle(arguments: EvaluationRequest) -> None:
    """Refuse flags that have no effect on the evaluated rules: ValueError names them."""
    check_confidence(arguments.confidence, arguments.rule or "policy", "--confidence")
    strategy = arguments.rule or "policy"
    unread = [] if arguments.run else ["checkpoints"]
    unread += [] if strategy in DECODERS else ["sampler"]
    unread += [flag for flag, key in FLAGS.items() if strategy not in readers_of(key)]
    if idle := [f"--{flag}" for flag in unread if getattr(arguments, flag)]:
        given = f"--strategy {arguments.strategy}" if arguments.strategy else "a policy"
        raise ValueError(f"{', '.join(idle)} would do nothing with {given}; leave it out")


def check_data(arguments: EvaluationRequest, names: list[str]) -> None:
    """Refuse settings that have no effect on the data sets `names`, or that these lack: ValueError."""
    read_by = {
        "data_dir": arguments.data_dir is None or set(names) & set(HUB),
        "math_by": arguments.math_by == "verify" or "math" in names,
        "unsandboxed": not arguments.unsandboxed or set(names) - {"chain", "gsm8k", "math"},
    }
    if idle := [f"--{flag}" for flag, read in read_by.items() if not read]:
        raise ValueError(f"{', '.join(idle)} would do nothing with --datasets {','.join(names)}; leave it out")
    if arguments.few_shot and (odd := [name for name in names if name not in WORKED]):
        raise ValueError(f"--few_shot shows worked answers, which {', '.join(odd)} lacks; leave it out")


def check(arguments: EvaluationRequest) -> tuple[list[str], list[int]]:
    """Return the requested data sets and seeds. ValueError for invalid settings, before any work."""
    if sum(value is not None for value in (arguments.run, arguments.policy_path, arguments.strategy)) != 1:
        raise ValueError("give exactly one of RUN, --policy and --strategy")
    names: list[str] = list(ALL) if arguments.datasets == "all" else list(dict.fromkeys(arguments.datasets.split(",")))
    check_strategy(arguments.rule, (*STRATEGIES, *DECODERS, *PREDICTORS))
    check_idle(arguments)
    if unknown := [name for name in names if name not in DATASETS and not name.startswith("rg:")]:
        raise ValueError(f"data set {', '.join(unknown)} is unknown; use one of {', '.join(DATASETS)}, or all")
    check_data(arguments, names)
    if arguments.dtype not in (None, "float32", "bfloat16", "float16"):
        raise ValueError(f"--dtype {arguments.dtype} must be float32, bfloat16 or float16; change it")
    TokenRule(arguments.token_temperature)  # refuses one that is none
    check_device(arguments.device)
    if arguments.policy_path is not None:
        policy_file(Path(shipped(arguments.policy_path)))
    check_place(arguments.save_path, f"--out {arguments.save_path}")
    check_leaderboard(arguments)
    if not (seeds := numbers(arguments.seeds, "--seeds", int)):
        raise ValueError("--seeds must be whole numbers, separated by commas; give one at least")
    return names, seeds


@dataclass
class Setup:
    """An evaluation with its loaded model.

    path, dtype: name and precision of the model in the records; questions: data sets of the Python caller, by name.
    """

    request: EvaluationRequest
    model: MaskedLM
    path: str
    dtype: str
    chosen: list[Candidate]
    names: list[str]
    seeds: list[int]
    config: DictConfig | None = None
    questions: Mapping[str, list[Question]] = field(default_factory=dict)

    def jobs(self) -> list[Job]:
        """Return every rule and policy on every data set with every seed. ValueError for a decoding that the model does not
        support."""
        jobs = []
        for one in self.chosen:
            for dataset in self.names:
                decoding = self.decoding(one, dataset)
                decoding = replace(decoding, steps=one.steps, budget=one.budget, alpha=one.alpha)
                decoding.check(self.model)
                jobs += [Job(one, dataset, seed, decoding) for seed in self.seeds]
        return jobs

    def decoding(self, candidate: Candidate, dataset: str) -> AnswerSettings:
        """Return the settings of a candidate's answers: its own, or those of the command line."""
        if candidate.sampler is None:
            return decoding_of(self.request, self.config, dataset)
        return AnswerSettings.of(candidate.sampler, self.request.gen_length or default_length(dataset))

    def questions_of(self, job: Job) -> list[Question]:
        """Return the questions of a job."""
        if job.dataset not in self.questions:
            return questions_of(job, self.model, self.request)
        check_questions(self.model, self.questions[job.dataset], job.decoding.length)
        return self.questions[job.dataset]


def run(arguments: EvaluationRequest) -> int:
    """Run every job and return the exit status."""
    names, seeds = check(arguments)
    config = configuration(arguments)
    known = OmegaConf.create() if config is None else config
    path = str(arguments.model_path or OmegaConf.select(known, "dlm.path") or "example/chain")
    dtype = str(arguments.dtype or OmegaConf.select(known, "model.dtype") or "float32")
    with processes(arguments.device, saves=False) as group:
        model, _ = load_model(shipped(path), group.device, dtype, OmegaConf.select(known, "dlm.model_type"))
        check_reads_text(model)
        chosen = candidates(arguments, model, plain(config), partial(build_step_decoder, model=model))
        check_method(arguments, chosen)
        results, answered = answer(Setup(arguments, model, path, dtype, chosen, names, seeds, config), group)
        if group.first and results:
            every = with_earlier(results, Path(arguments.save_path))
            report(every, Path(arguments.save_path), path)
            if arguments.leaderboard is not None:
                add_to_leaderboard(arguments, chosen, every)
    return 0 if answered else 1


def answer(setup: Setup, group: Processes, attempt: Callable[..., Any] = together) -> tuple[Results, int]:
    """Run all jobs. Return, on the first process, the results of the jobs that succeeded, and their number.

    Args:
        attempt: `together`, which names failed jobs on stderr and goes on, or `directly`.
    """
    arguments, model = setup.request, setup.model
    weights, results = digest_of(digests_of(model)), {}
    answered, lacking = 0, set()  # of data sets that cannot be read, each named once and not tried again
    for job in setup.jobs():
        if job.dataset in lacking:
            continue
        questions = attempt(partial(setup.questions_of, job), job.dataset, group)
        if questions is None:
            lacking.add(job.dataset)
            continue
        settings = settings_of(job, questions, arguments, setup.path, setup.dtype, weights)
        work = partial(evaluate, job, questions, settings, model, arguments, group)
        if attempt(work, job.directory, group) is None:
            continue
        answered += 1
        if group.first:
            directory = Path(arguments.save_path) / job.directory
            records = merge(directory)
            row = result_row(settings, records, equivalents(job, questions, model, arguments))
            whole = {"metrics": row, "settings": settings, "machine": machine(group.device), "generations": records}
            write_text(directory / "generations.json", json.dumps(whole, indent=1) + "\n")
            results.setdefault((job.candidate.name, job.dataset), []).append((row, records))
    return results, answered


def with_earlier(results: Results, base: Path) -> Results:
    """Return these results together with earlier ones in `base`. A repeated evaluation replaces its older result."""
    merged: Results = {}
    repeated = {(*key, row["seed"]) for key, rows in results.items() for row, _ in rows}
    for one in finished_in(base):
        row = one["metrics"]
        if "tpf" not in row:  # of an evaluation before TPF was measured
            row = row | tpf_columns([one["generations"]])
        if (row["name"], row["dataset"], row["seed"]) not in repeated:
            merged.setdefault((row["name"], row["dataset"]), []).append((row, one["generations"]))
    for key, rows in results.items():
        merged[key] = sorted([*merged.get(key, []), *rows], key=lambda result: result[0]["seed"])
    return merged


@dataclass(frozen=True)
class Tables:
    """Tables of an evaluation: a row of each rule and data set (means over seeds), and the AUP of each series and data set."""

    summary: list[dict]
    series: list[dict]


def report(results: Results, base: Path, title: str) -> Tables:
    """Write the tables and the plots, print the summary and the AUP of each series, and return both."""
    write_csv([row for own in results.values() for row, _ in own], base / "detailed_results.csv")
    summary = [summary_row([row for row, _ in own], [records for _, records in own]) for own in results.values()]
    write_csv(summary, base / "summary_statistics.csv")
    series = aup_rows(outcomes_of(results))
    write_csv(series, base / "aup.csv")
    draw(summary, series, base)
    columns = {"right": "accuracy_mean", "low": "accuracy_low", "high": "accuracy_high", "NFE": "evaluations_mean",
             "equivalent": "equivalent_mean", "CPU s": "cpu_seconds_mean",
             "seconds": "seconds_mean", "tokens": "generated_tokens_mean",
             "TPF": "tpf_mean", "TPF low": "tpf_low", "TPF high": "tpf_high"}  # fmt: skip
    print_table([{"name": row["name"], "dataset": row["dataset"], "seeds": row["num_seeds"],
                  **{name: row[key] for name, key in columns.items()}} for row in summary], title=title)  # fmt: skip
    print_table(series, title="AUP, accuracy under parallelism, of each series (best_accuracy: of any setting here, %)")
    return Tables(summary, series)


def draw(summary: list[dict], series: list[dict], base: Path) -> None:
    """Plot accuracy against NFE, against equivalent evaluations, and against TPF with the AUP of each series."""
    points = [{"name": f"{row['series']} {row['dataset']}", "x": row["evaluations_mean"], "y": row["accuracy_mean"],
               "lo": row["accuracy_low"], "hi": row["accuracy_high"]} for row in summary]  # fmt: skip
    plot_pareto(points, base / "pareto.png", y_label="right answers")
    costs = [{**point, "x": row["equivalent_mean"]} for point, row in zip(points, summary, strict=True)]
    plot_pareto(
        costs, base / "pareto_cost.png", y_label="right answers", x_label="equivalent evaluations per sample (all FLOP)"
    )
    known = {f"{row['series']} {row['dataset']}": row["aup"] for row in series if row["aup"] is not None}
    labels = {name: f"{name}, AUP {value:.1f}" for name, value in known.items()}
    speeds = [
        {**point, "name": labels.get(point["name"], point["name"]), "x": row["tpf_mean"],
         "x_lo": row["tpf_low"], "x_hi": row["tpf_high"]}
        for point, row in zip(points, summary, strict=True)
    ]  # fmt: skip
    plot_tpf(speeds, base / "pareto_tpf.png", y_label="right answers")


def check_leaderboard(arguments: EvaluationRequest) -> None:
    """Refuse, before any work, a leaderboard that cannot be read, and a method without one: ValueError."""
    if arguments.leaderboard is None:
        if arguments.method is not None:
            raise ValueError(
                f"--method {arguments.method} names a method of --leaderboard; give --leaderboard FILE.yaml"
            )
        return
    check_target(Path(arguments.leaderboard), f"--leaderboard {arguments.leaderboard}")


def check_method(arguments: EvaluationRequest, chosen: list[Candidate]) -> None:
    """Refuse one method name for several series: ValueError."""
    series = list(dict.fromkeys(one.series for one in chosen))
    if arguments.method is not None and len(series) > 1:
        raise ValueError(
            f"--method {arguments.method} would name {len(series)} series ({', '.join(series)}); leave it out, or evaluate one"
        )


def add_to_leaderboard(arguments: EvaluationRequest, chosen: list[Candidate], results: Results) -> None:
    """Write the points of this command's series, with those of earlier commands in --out, into the leaderboard."""
    assert arguments.leaderboard is not None
    file, names = Path(arguments.leaderboard), {one.series for one in chosen}
    found = {
        task: {arguments.method or name: own for name, own in methods.items() if name in names}
        for task, methods in evaluated(results).board.items()
    }
    found = {task: methods for task, methods in found.items() if methods}
    write_leaderboard(merged(read_leaderboard(file) if file.exists() else {}, found), file)
    written = ", ".join(f"{name} ({task})" for task, methods in found.items() for name in methods)
    print(printable(f"written to {file}: {written or 'nothing, no setting has an AUP'}"))
