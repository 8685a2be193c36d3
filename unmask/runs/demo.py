"""The work of `demo`: train a policy, solve puzzles, generate stories, and plot quality against cost."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

from hydra import compose, initialize_config_dir

from data.sudoku import blanked, make
from dlm.canvas import canvas_of
from dlm.environment import TokenRule
from dlm.masked_lm import MaskedLM
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.aup import Outcomes, sweep_aup, tokens_per_forward
from evaluation.cost import equivalent_evaluations
from evaluation.intervals import wilson
from evaluation.replay import replay_html
from evaluation.report import plot_pareto, print_table, write_json
from evaluation.text import Judge, default_judge, summarise
from load_model import load_model
from policy.checkpoints import load_policy
from policy.unmasker import PolicyUnmasker
from rewards.measures import unigram_entropy
from rewards.sudoku import is_solved
from samplers.heuristics import Confident, Dilated, Direct, Threshold
from samplers.loop import Strategy, Unmasker
from samplers.samples import Samples
from training.files import check_place, make_directory, write_text
from training.progress import progress
from training.usage import override
from unmask.runs import train_policy

ROOT = Path(__file__).parents[2]
BOX = (2, 3)
BEGINNING = "Once upon a time"  # of every story
TEMPERATURE = 0.8  # of story tokens: nearer to real stories than 1 by perplexity and entropy (docs/results/stories.md)
Rule = TypeVar("Rule")


def learn(out: Path, iterations: int) -> Path:
    """Train a short run of experiment=sudoku6_agreement; return its directory."""
    overrides = [
        "experiment=sudoku6_agreement", override("dlm.path", str(ROOT / "example/sudoku6")),
        f"training.n_iters={iterations}", "training.batch_size=64", "training.ema=0.98",
        f"training.eval_freq={iterations}", f"training.snapshot_freq={iterations}", "eval.batch_size=128",
        override("run_dir", str(out / "policy")), "data.base_puzzles=1000", "data.valid_puzzles=128", "wandb.mode=disabled",
    ]  # fmt: skip
    with initialize_config_dir(str(ROOT / "configs"), version_base=None):
        config = compose("train_policy", overrides)
    return train_policy.run(config, overrides)


def each(rules: Sequence[Rule], title: str) -> Iterator[Rule]:
    """Return the rules one after the other, under a progress bar."""
    with progress(title, len(rules)) as advance:
        for rule in rules:
            yield rule
            advance()


def puzzles(
    model: MaskedLM, policy: Path, prompts: Prompts
) -> tuple[list[dict], list[dict], dict[str, Samples], list[dict]]:
    """Solve held-out puzzles with every rule; return rows of the table, points of the plot, samples of a few rules, and the
    accuracy under parallelism (AUP) of each rule.
    """
    count = len(prompts.canvas)
    network = load_policy(policy)
    cells = prompts.canvas.shape[1]
    rules: list[tuple[str, str, Unmasker, int]] = [
        ("direct", "8 steps", Direct(), 8),
        *(("confidence", f"{steps} steps", Confident(), steps) for steps in (2, 3, 4, 6, 8, cells)),
        *(("threshold", str(value), Threshold(value), cells) for value in (0.5, 0.7, 0.8, 0.9, 0.97, 0.99, 0.999)),
        *(
            ("policy", f"trust {value}", PolicyUnmasker(network, "threshold", threshold=value), cells)
            for value in (0.5, 0.7, 0.9, 0.97, 0.99, 0.997)
        ),
    ]
    rows, points, kept, series = [], [], {}, {}
    for name, setting, rule, steps in each(rules, "2/3 solving held-out puzzles"):
        decode = partial(decoded, model, steps, Strategy(rule, TokenRule(0.0)))
        samples = decode(prompts)
        solved = is_solved(samples.tokens, BOX)
        rate = wilson(int(solved.sum()), count)
        results = (solved, samples.answer.sum(1), samples.evaluations)
        series.setdefault(name, []).append(Outcomes(*(one.double().numpy() for one in results)))
        cost = costs(model, samples, decode, prompts)
        rows.append({"task": "sudoku, solved", "strategy": name, "setting": setting, "quality": f"{rate.value:.1%}",
                     "entropy": "-", **cost})  # fmt: skip
        points.append({"name": name, "x": cost["equivalent"], "y": rate.value, "lo": rate.low, "hi": rate.high})
        kept[f"{name}, {setting}"] = samples
    chosen = ("direct, 8 steps", "confidence, 8 steps", "threshold, 0.9", "policy, trust 0.97")
    areas = [{"strategy": name, "AUP": round(one.aup.value, 1), "low": round(one.aup.low, 1), "high": round(one.aup.high, 1),
              "settings": one.points, "left out": one.left_out} for name, one in sweep_aup(series).items()]  # fmt: skip
    return rows, points, {name: kept[name] for name in chosen}, areas


def decoded(model: MaskedLM, steps: int, strategy: Strategy, prompts: Prompts) -> Samples:
    """Decode the prompts with a rule; rules with a number of steps commit equal parts."""
    return strategy.decode(model, prompts, DecodeOptions(steps))


def costs(
    model: MaskedLM, samples: Samples, decode: Callable[[Prompts], Samples], prompts: Prompts
) -> dict[str, float]:
    """Return the columns of the table with the cost of a sample."""
    return {
        "NFE": round(float(samples.evaluations.float().mean()), 2),
        "TPF": round(tokens_per_forward(samples.answer.sum(1).numpy(), samples.evaluations.numpy()).value, 2),
        "equivalent": round(equivalent_evaluations(model, decode, prompts), 2),
        "CPU ms": round(1000 * samples.cpu_seconds / len(prompts.canvas), 2),
        "tokens/s": round(samples.tokens_per_second),
    }


def stories(model: MaskedLM, judge: Judge | None, count: int) -> tuple[list[dict], dict[str, Samples]]:
    """Generate stories behind one prompt with every rule in 16 steps (the threshold rule decides its number of steps)."""
    network = load_policy(ROOT / "example/014609")
    prompts = Prompts(canvas_of(model, prefix=BEGINNING).repeat(count, 1))
    rules: list[tuple[str, str, Unmasker]] = [
        ("direct", "16 steps", Direct()),
        ("confidence", "16 steps", Confident()),
        ("threshold", "0.2", Threshold(0.2)),
        ("dilated", "16 steps", Dilated()),
        ("policy", "16 steps", PolicyUnmasker(network, "fixed")),
    ]
    rows, kept = [], {}
    for name, setting, rule in each(rules, "3/3 writing stories"):
        decode = partial(decoded, model, 16, Strategy(rule, TokenRule(TEMPERATURE)))
        samples = decode(prompts)
        texts = model.tokenizer.batch_decode(samples.tokens)
        perplexity = None if judge is None else summarise(samples.tokens, texts, judge)["gen_ppl"]
        rows.append({"task": "stories, perplexity", "strategy": name, "setting": setting,
                     "quality": "no judge" if perplexity is None else f"{perplexity:.1f}",
                     "entropy": f"{float(unigram_entropy(samples.tokens).mean()):.3f}",
                     **costs(model, samples, decode, prompts)})  # fmt: skip
        kept[f"{name}, {setting}"] = samples
    return rows, kept


def run(arguments: argparse.Namespace) -> None:
    """Run the demo: train, measure, plot."""
    started = time.perf_counter()
    check_place(arguments.out, f"--out {arguments.out}")
    judge = default_judge("cpu")  # a missing judge is reported before the work
    out = Path(arguments.out) / time.strftime("%Y.%m.%d-%H%M%S")
    print("1/3 learning where to unmask, on Sudoku")
    run = learn(out, arguments.iterations)
    print("2/3 solving held-out puzzles")
    board, _ = load_model(ROOT / "example/sudoku6")
    held_out = make(BOX, arguments.puzzles, None, seed=2028, split="test")
    table, points, boards, areas = puzzles(board, run, Prompts(blanked(held_out, BOX)))
    print("3/3 writing stories")
    writer, _ = load_model(ROOT / "example/stories")
    more, texts = stories(writer, judge, arguments.stories)
    print_table(
        table + more,
        title="quality, entropy (nats) and cost of a sample: NFE, tokens per forward (TPF), all FLOP in evaluations, CPU time",
    )
    print_table(areas, title="AUP, accuracy under parallelism, on Sudoku (docs/measures.md)")
    write_json(table + more, out / "table.json")
    plot_pareto(
        points, out / "pareto.png", y_label="puzzles solved", title="6x6 Sudoku, held-out minimal puzzles",
        x_label="equivalent evaluations per puzzle (FLOP of model and policy)",
    )  # fmt: skip
    decode = lambda token: board.tokenizer.decode([token]).strip()  # noqa: E731
    page = replay_html(boards, decode, "Sudoku, step by step", grid_columns=6, box=BOX, solutions=held_out["solutions"])
    write_text(out / "sudoku.html", page)
    decode_text = lambda token: writer.tokenizer.decode([token])  # noqa: E731
    write_text(out / "stories.html", replay_html(texts, decode_text, "Stories, step by step"))
    make_directory(out / "samples", f"--out {arguments.out}")
    for name, samples in texts.items():
        decoded = writer.tokenizer.batch_decode(samples.tokens)
        write_text(out / "samples" / f"{name.split(',')[0]}.txt", "\n\n---\n\n".join(decoded) + "\n")
    print(
        f"\nThe plot:             {out / 'pareto.png'}\n"
        f"Watch the decoding:   {out / 'sudoku.html'} and {out / 'stories.html'} (open them in a browser)\n"
        f"Also in {out}: samples/, table.json, policy/\n"
        f"{time.perf_counter() - started:.0f} s"
    )
