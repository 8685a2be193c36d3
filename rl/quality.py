"""Training of a quality head (model/quality.py): is the token shown at a committed position right?

The head learns by binary cross-entropy on canvases that the frozen model filled itself, from two kinds of labels:

* `filled_texts`: PRISM's (2510.01384). A text x of the data is masked at a share t ~ U(0, 1). The model fills k of the masked
  positions. The label of these positions, and of no others, is [y_i = x_i]. The token y_i is drawn given the rest of the canvas,
  independently of x_i. The best head for k = 1 is therefore P(x_i = y_i | y without y_i) of the data, whatever the model is. For
  k > 1 it is the probability in contexts that the model has filled in part.
* `decoded_canvases`: canvases that occur while the model decodes prompts by a threshold, some of each decoding, drawn uniformly
  over its steps. The label of every committed position is whether its token is that of the right text (`Task.right_text`).

Positions of the prompt are never trained on. What differs from PRISM: the model is frozen, and the second kind of labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.tasks import Task
from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import MaskedLM
from dlm.observation import Decision, Observation
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from losses import low_discrepancy_times, mask_exactly
from model.quality import QualityHead
from rl.settings import QualityTrainingSettings
from samplers.heuristics import Threshold
from samplers.loop import Strategy
from samplers.quality import HeadQuality, LeaveOut, Quality, SeenProbability, save_quality
from training.calibration import Calibration, calibration, draw_reliability
from training.learner import Learner
from training.processes import Processes
from training.run import Run, step_seed
from training.trainer import Algorithm

KINDS = ("data", "decoding")  # of labels: filled_texts, decoded_canvases


@dataclass
class Labelled:
    """Canvases with positions whose tokens are known to be right or wrong.

    tokens: with the mask token at open positions; given: positions of the prompt; labelled: committed positions with a label;
    right: the label, valid there.
    """

    tokens: Int[Tensor, "row position"]
    given: Bool[Tensor, "row position"]
    labelled: Bool[Tensor, "row position"]
    right: Bool[Tensor, "row position"]

    def __len__(self) -> int:
        return len(self.tokens)

    def split(self, rows: int) -> Iterator[Labelled]:
        """Yield parts of at most so many rows."""
        columns = (self.tokens, self.given, self.labelled, self.right)
        for part in zip(*(column.split(rows) for column in columns), strict=True):
            yield Labelled(*part)


@torch.no_grad()
def filled_texts(
    model: MaskedLM,
    texts: Int[Tensor, "row position"],
    given: Bool[Tensor, "row position"],
    times: Float[Tensor, "row"],
    count: int,
    rule: TokenRule,
    draws: Draws,
) -> Labelled:
    """Mask texts and let the model fill some of the masked positions, which are labelled by the text.

    Args:
        texts: right texts.
        given: positions that are never masked; every row has others.
        times: probability with which each other position is masked; at least one is.
        count: positions to fill, drawn uniformly among the masked ones; all of a row with fewer.
        rule: the distribution of the tokens.
    """
    row_id, length = torch.arange(len(texts), device=texts.device), texts.shape[1]
    step = torch.zeros_like(row_id)
    uniforms = draws.uniform("mask", row_id, step, length).masked_fill(given, 2.0)
    masked = mask_exactly(uniforms, (uniforms < times.unsqueeze(1)).sum(1).clamp(min=1))
    order = draws.uniform("order", row_id, step, length).masked_fill(~masked, 2.0)
    filled = mask_exactly(order, masked.sum(1).clamp(max=count))
    canvases = Prompts(texts.masked_fill(masked, model.mask_id), open=masked)
    observation = UnmaskingEnvironment(model, DecodeOptions(1)).reset(canvases)
    tokens, _ = observation.draw(filled, rule, draws)
    return Labelled(tokens, given, filled, tokens == texts)


class SomeOfEach:
    """Keeps `count` canvases of each row of a decoding, each drawn uniformly over its steps (reservoir sampling)."""

    def __init__(self, prompts: Prompts, count: int, draws: Draws):
        self.count, self.draws = count, draws
        self.tokens = prompts.canvas.unsqueeze(1).repeat(1, count, 1)  # [row, kept, position]
        self.open = torch.ones_like(self.tokens, dtype=torch.bool)

    def __call__(self, observation: Observation, place: Int[Tensor, "active"]) -> None:
        """Replace each kept canvas of each active row by the present one with probability 1 / (number of the row's steps)."""
        step = observation.row_step
        chosen = self.draws.uniform("pick", observation.row_id, step, self.count) < 1 / step.double().unsqueeze(1)
        row, kept = chosen.nonzero().unbind(1)
        self.tokens[place[row], kept] = observation.tokens[row]
        self.open[place[row], kept] = observation.masked[row]


@torch.no_grad()
def decoded_canvases(
    model: MaskedLM,
    task: Task,
    prompts: Prompts,
    threshold: float,
    count: int,
    rule: TokenRule,
    options: DecodeOptions,
    seed: int,
) -> Labelled:
    """Decode prompts by a threshold, and return `count` canvases of each decoding, whose committed positions are labelled.

    Args:
        task: it knows the right text of a canvas.
        threshold: commit where the best token is this probable.
        rule: the distribution of the tokens.
    """
    kept = SomeOfEach(prompts, count, Draws(seed, first=prompts.first_row))
    Strategy(Threshold(threshold), rule).decode(model, prompts, options, seed, on_step=kept)
    prompts, tokens = prompts.repeat(count), kept.tokens.flatten(0, 1)
    given = ~prompts.open_positions(model.mask_id)
    committed = ~kept.open.flatten(0, 1) & ~given
    return Labelled(tokens, given, committed, task.right_text(tokens, committed, prompts) == tokens)


def observed(model: MaskedLM, rows: Labelled) -> Observation:
    """Return the canvases as an observation of a decoding, in which the committed positions were open at the start."""
    environment = UnmaskingEnvironment(model, DecodeOptions(1))
    committed = ~rows.given & (rows.tokens != model.mask_id)
    environment.reset(Prompts(rows.tokens.masked_fill(committed, model.mask_id), open=~rows.given))
    nothing = torch.zeros(len(rows), device=rows.tokens.device)
    return environment.step(Decision(committed.long(), rows.tokens, nothing, nothing))


def check_quality(config: QualityTrainingSettings, model: MaskedLM, task: Task, processes: Processes) -> None:
    """Refuse, before a run directory is made, settings and data that give no labels: ValueError."""
    settings, size = config.quality, config.training.batch_size
    for rows in (data_rows(config), size - data_rows(config)):
        if rows % processes.world:
            raise ValueError(
                f"quality.share={settings.share} of training.batch_size={size} gives {rows} rows for {processes.world} "
                "processes; choose both so that each kind of rows divides evenly"
            )
    if task.held_out.text is None:
        raise ValueError(
            f"train-quality compares tokens with a right text and {type(task).__name__} knows none; use data=puzzles, chain or "
            "stories, say"
        )
    if settings.share < 1:
        first = task.held_out.first(1)
        task.right_text(first.canvas, torch.zeros_like(first.canvas, dtype=torch.bool), first)


def data_rows(config: QualityTrainingSettings) -> int:
    """Return the number of rows of a batch that are masked texts of the data."""
    return round(config.quality.share * config.training.batch_size)


class QualityLearning(Algorithm):
    """Updates of a quality head. Batches are defined over all processes, each of which takes its share.

    Every evaluation writes the moving average of the head to RUN/quality, and RUN/reliability.png. Settings have passed
    `check_quality`.
    """

    weights = "quality_head"

    def __init__(self, model: MaskedLM, learner: Learner[QualityHead], task: Task, config: QualityTrainingSettings):
        self.model, self.learner, self.task, self.config = model, learner, task, config
        self.head, self.processes = learner.network, learner.processes
        self.rule, self.settings = TokenRule(config.sampler.temperature), config.quality
        self.options = DecodeOptions(
            config.sampler.steps, config.sampler.block_length, ends=task.ends, cache=config.sampler.cache,
            refresh=config.sampler.refresh,
        )  # fmt: skip
        self.recorded_every = config.training.log_freq
        self.measured: dict[str, Calibration] = {}

    def rows(self, step: int) -> dict[str, Labelled]:
        """Return the rows of this process at iteration `step`, by the kind of their labels."""
        seed, device, found = step_seed(self.config.seed, step), self.processes.device, {}
        count = data_rows(self.config)
        if count:
            texts, given = self.task.clean(count, seed)
            part = self.processes.part(count)
            times = low_discrepancy_times(count, torch.rand((), generator=torch.Generator().manual_seed(seed)))[part]
            texts, given, times = (column.to(device) for column in (texts[part], given[part], times))
            draws = Draws(seed, first=part.start)
            found["data"] = filled_texts(self.model, texts, given, times, self.settings.filled, self.rule, draws)
        count = self.config.training.batch_size - count
        if count:
            prompts = self.task.prompts(count, seed).share(self.processes.part(count)).to(device)
            found["decoding"] = self.decoded(prompts, step, seed)
        return found

    def decoded(self, prompts: Prompts, step: int, seed: int) -> Labelled:
        """Return canvases of decodings by threshold number `step`."""
        threshold, count = self.settings.thresholds[step % len(self.settings.thresholds)], self.settings.canvases
        return decoded_canvases(self.model, self.task, prompts, float(threshold), count, self.rule, self.options, seed)

    def iteration(self, step: int) -> dict[str, float]:
        """Make one update: the mean cross-entropy of each kind of labels, weighted by its share of the rows."""
        found = self.rows(step)
        counts = self.processes.mean({kind: float(rows.labelled.sum()) for kind, rows in found.items()})
        loss, correct = torch.zeros((), device=self.processes.device), 0.0
        shares = {"data": data_rows(self.config) / self.config.training.batch_size}
        shares["decoding"] = 1 - shares["data"]
        quality = HeadQuality(self.head)
        for kind, rows in found.items():
            log_odds = quality.log_odds(observed(self.model, rows), rows.labelled)[rows.labelled]
            right = rows.right[rows.labelled]
            total = F.binary_cross_entropy_with_logits(log_odds, right.float(), reduction="sum")
            weight = shares[kind] / max(counts[kind], 1.0)
            loss = loss + weight * total
            correct += weight * float(((log_odds > 0) == right).sum())
        loss.backward()
        return {"loss": float(loss.detach()), "accuracy": correct, **self.learner.update()}

    def held_out(self) -> dict[str, Labelled]:
        """Return held-out rows by the kind of their labels, always the same."""
        prompts = self.task.held_out.first(self.config.eval.batch_size).to(self.processes.device)
        given, rows, found = ~prompts.open_positions(self.model.mask_id), len(prompts.canvas), {}
        if self.settings.share > 0:
            assert prompts.text is not None
            times = low_discrepancy_times(rows, torch.tensor(0.5)).to(given.device)
            times = times[torch.randperm(rows, generator=torch.Generator().manual_seed(0)).to(given.device)]
            found["data"] = filled_texts(
                self.model, prompts.text, given, times, self.settings.filled, self.rule, Draws(0)
            )
        if self.settings.share < 1:
            count = len(self.settings.thresholds)
            parts = [self.decoded(prompts.take(torch.arange(n, rows, count)), n, n) for n in range(min(count, rows))]
            columns = ("tokens", "given", "labelled", "right")
            found["decoding"] = Labelled(*(torch.cat([getattr(one, name) for one in parts]) for name in columns))
        return found

    def measure(self, quality: Quality, rows: Mapping[str, Labelled]) -> dict[str, Calibration]:
        """Return the calibration of a source of quality for each kind of labels."""
        size, found = self.config.eval.part, {}
        for kind, each in rows.items():
            parts = []
            for number, part in enumerate(each.split(size)):
                values = quality.log_quality(observed(self.model, part), part.labelled, Draws(number))
                parts.append(values[part.labelled])
            found[kind] = calibration(torch.cat(parts), each.right[each.labelled])
        return found

    @torch.no_grad()
    def evaluate(self, run: Run, done: int) -> dict[str, float]:
        save_quality(self.head, run.directory / "quality")
        self.measured = self.measure(HeadQuality(self.head), self.held_out())
        draw_reliability(self.measured, run.directory / "reliability.png")
        return {
            f"eval_{kind}_{name}": value for kind, one in self.measured.items() for name, value in one.figures.items()
        }

    def compared(self) -> dict[str, dict[str, Calibration]]:
        """Return the calibration of every source of quality on the held-out rows, by source and kind of labels.

        Leave-one-out probabilities are measured on the first quality.left_out rows; 0 leaves them out.
        """
        rows = self.held_out()
        found = {"head": self.measure(HeadQuality(self.head), rows), "seen": self.measure(SeenProbability(), rows)}
        if self.settings.left_out:
            few = {kind: next(each.split(self.settings.left_out)) for kind, each in rows.items()}
            longest = max(int(each.labelled.sum(1).max()) for each in few.values())
            found["leave-one-out"] = self.measure(LeaveOut(longest), few)
        return found

    def state_dict(self) -> dict[str, Any]:
        return {
            self.weights: self.head.state_dict(),
            "config": self.head.config,
            "task": self.task.state_dict(),
            "updates": self.learner.updates,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.head.load_state_dict(state[self.weights])
        self.task.load_state_dict(state["task"])
