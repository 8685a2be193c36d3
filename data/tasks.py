"""Tasks of policy learning: canvases to decode, with the data that their reward needs, and clean rows for the variational
bound.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from data.answers import AnswerRows
from data.chain import (
    EOS,
    MASK,
    ChainRows,
    Chains,
    chain_tokenizer,
    chains,
    is_right,
    prompt_length,
    right_answers,
    share_right,
)
from data.questions import (
    PromptReader,
    Question,
    canvases,
    check_prompt,
    check_runnable,
    encode,
    load_questions,
    right,
)
from data.rows import training_data
from data.settings import ChainSettings, PuzzleSettings, QuestionSettings, TextSettings
from data.sudoku import SudokuStream, blanked, make
from data.text import EndlessRows
from dlm.board import BoardTokenizer
from dlm.ends import before_end, end_tokens, texts_of
from dlm.prompts import Prompts


class Task:
    """The base class of tasks: prompts to train on, prompts that are held out, and the texts that belong to them.

    Attributes:
        tokenizer: of the model.
        valid: held-out prompts that an evaluation decodes.
        held_out: all held-out prompts.
        ends: tokens at which an answer ends, the first of which fills what follows.
        datasets: names of the data sets that it mixes; empty for one kind of problem.
    """

    tokenizer: Any
    valid: Prompts
    held_out: Prompts
    ends: tuple[int, ...] = ()
    datasets: Sequence[str] = ()

    def prompts(self, count: int, seed: int) -> Prompts:
        """Return the next training prompts, a function of the seed or of the task's state."""
        raise NotImplementedError

    def texts(self, count: int, seed: int) -> Prompts:
        """Return training prompts whose right text is known. ValueError for a task that knows none."""
        raise ValueError(f"{type(self).__name__} knows no right texts; use another reward or task")

    def right_text(
        self, tokens: Int[Tensor, "row position"], committed: Bool[Tensor, "row position"], prompts: Prompts
    ) -> Int[Tensor, "row position"]:
        """Return the right text that each canvas is compared with: the only one, or the one nearest to the committed tokens.

        Args:
            tokens: canvases.
            committed: positions whose tokens count.
            prompts: the prompts of these canvases.

        Raises:
            ValueError: the task knows no right text, or so many that none is the nearest.
        """
        raise ValueError(
            f"{type(self).__name__} has prompts with many right texts, so that no token of a decoding is wrong by itself; set "
            "quality.share=1, which learns from texts of the data alone"
        )

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Return clean rows and which of their positions are given. ValueError for a task that has none."""
        raise ValueError(
            f"{type(self).__name__} has no clean rows for algorithm=variational; use algorithm=grpo or ppo"
        )

    def state_dict(self) -> dict:
        """Return the place in the training data; empty where batches are functions of the seed."""
        return {}

    def load_state_dict(self, state: dict) -> None:
        """Restore the place in the training data."""


class PuzzleTask(Task):
    """Sudoku with unique solutions, with `clues` clues or (null) minimal. Held-out puzzles are of other grid classes."""

    def __init__(self, data: PuzzleSettings):
        self.box = (data.box[0], data.box[1])
        self.stream = SudokuStream(
            make(self.box, data.base_puzzles, data.clues, seed=data.seed, split="train"), self.box
        )
        held_out = make(self.box, data.valid_puzzles, data.clues, seed=data.seed + 1, split="test")
        self.valid = self.held_out = Prompts(blanked(held_out, self.box), held_out, held_out["solutions"])
        self.tokenizer = BoardTokenizer(self.box)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Return training puzzles, a function of the seed."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return Prompts(blanked(puzzles, self.box), puzzles, puzzles["solutions"])

    def texts(self, count: int, seed: int) -> Prompts:
        """Return training prompts with known right text: all puzzles have one."""
        return self.prompts(count, seed)

    def right_text(
        self, tokens: Int[Tensor, "row position"], committed: Bool[Tensor, "row position"], prompts: Prompts
    ) -> Int[Tensor, "row position"]:
        """Return the solutions."""
        assert prompts.text is not None
        return prompts.text

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Return solved rows, and which of their positions are given."""
        puzzles = self.stream.puzzles(count, torch.Generator().manual_seed(seed))
        return puzzles["solutions"], puzzles["clues"]


class TextTask(Task):
    """Task of texts: empty canvases, or, for questions with answers (data/answers.py), canvases that begin with a question.

    Clean rows come from the data set. tokenizer: replaces the tokenizer that `data` names; ends: tokens at which rows end; the
    first of them fills the remaining positions.
    """

    def __init__(self, data: TextSettings, length: int, mask_id: int, valid_rows: int, seed: int, tokenizer=None):
        self.length, self.mask_id = length, mask_id
        self.rows, valid, self.tokenizer = training_data(data, length, seed, tokenizer)
        self.valid_rows = valid
        given = torch.arange(valid.shape[1]) < torch.as_tensor(self.rows.prompt).expand(len(valid))[:, None]
        self.held_out = self.prompts_of(valid, given)
        answers = isinstance(self.rows, AnswerRows)
        if answers:
            self.ends = end_tokens(self.tokenizer)
        self.valid = self.held_out.first(valid_rows) if answers else self.prompts(valid_rows, 0)

    def prompts_of(self, tokens: Int[Tensor, "row position"], given: Bool[Tensor, "row position"]) -> Prompts:
        """Return canvases of rows on which only the given part is visible."""
        return Prompts(tokens.masked_fill(~given, self.mask_id), {}, tokens)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Return open canvases, or the next training questions."""
        if isinstance(self.rows, AnswerRows):
            return self.texts(count, seed)
        return Prompts(torch.full((count, self.length), self.mask_id), {})

    def texts(self, count: int, seed: int) -> Prompts:
        """Return the next training rows, to be revealed on their canvases."""
        return self.prompts_of(*self.clean(count, seed))

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        if isinstance(self.rows, AnswerRows):
            return self.rows.next_puzzles(count)
        tokens = self.rows.next(count)
        return tokens, torch.zeros_like(tokens, dtype=torch.bool)

    def state_dict(self) -> dict:
        return self.rows.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.rows.load_state_dict(state)


class ChainTask(Task):
    """Chain arithmetic (data/chain.py). `rows["values"]` holds the running values; `text` is one of the many right ones."""

    ends = (EOS,)

    def __init__(self, data: ChainSettings, valid_rows: int):
        self.steps, self.length, self.keep = data.steps, data.answer_length, data.keep
        self.prompt = prompt_length(data.steps)
        self.tokenizer = chain_tokenizer()
        self.clean_rows = ChainRows(data.steps, data.answer_length, data.keep, 0)
        self.valid = self.held_out = self.made(
            chains(valid_rows, self.steps, torch.Generator().manual_seed(7), True), 7
        )

    def made(self, problems: Chains, seed: int) -> Prompts:
        """Return the prompts of problems."""
        kept = torch.rand(problems.step.shape, generator=torch.Generator().manual_seed(seed)) < self.keep
        prompts = problems.prompts()
        canvas = torch.cat((prompts, torch.full((len(prompts), self.length), MASK)), 1)
        text = torch.cat((prompts, problems.answers(kept, self.length)), 1)
        return Prompts(canvas, {"values": problems.values()}, text, self.prompt)

    def prompts(self, count: int, seed: int) -> Prompts:
        """Return training problems, a function of the seed."""
        return self.made(chains(count, self.steps, torch.Generator().manual_seed(seed)), seed)

    def texts(self, count: int, seed: int) -> Prompts:
        return self.prompts(count, seed)

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        """Return problems with their text, and which positions are given."""
        prompts = self.prompts(count, seed)
        assert prompts.text is not None
        return prompts.text, prompts.canvas != MASK

    def right_text(
        self, tokens: Int[Tensor, "row position"], committed: Bool[Tensor, "row position"], prompts: Prompts
    ) -> Int[Tensor, "row position"]:
        """Return, among all lists of steps, the right text that agrees with the most committed tokens (the longest of
        several)."""
        answers = right_answers(prompts.rows["values"], self.length).to(tokens.device)  # [row, answer, position]
        agreeing = (answers == tokens[:, None, self.prompt :]) & committed[:, None, self.prompt :]
        nearest = answers[torch.arange(len(tokens)), agreeing.sum(2).argmax(1)]
        return torch.cat((tokens[:, : self.prompt], nearest), 1)

    def written(self, tokens: Int[Tensor, "row position"]) -> list[str]:
        """Return the responses as text, up to their end."""
        answers = tokens[:, self.prompt :]
        kept = before_end(answers, torch.ones_like(answers, dtype=torch.bool), self.ends)
        return texts_of(answers, kept, self.tokenizer)

    def right(self, tokens: Int[Tensor, "row position"], rows: Mapping[str, Tensor]) -> Float[Tensor, "row"]:
        """Return 1 if the digit behind the first `=` is the result, else 0."""
        return is_right(tokens[:, self.prompt :].cpu(), rows["values"][:, -1])

    def partly_right(self, tokens: Int[Tensor, "row position"], rows: Mapping[str, Tensor]) -> Float[Tensor, " row"]:
        """Return the right share of the steps and the result."""
        return share_right(tokens[:, self.prompt :].cpu(), rows["values"])


class QuestionTask(Task):
    """Questions with known answers (data/questions.py) of one or several data sets, drawn from their union without
    repeats.

    `rows["question"]` and `rows["dataset"]` identify each prompt, so that each row gets the reward of its data set.
    Prompts longer than
    data.max_prompt_length tokens are left out and counted, never cut.

    Raises:
        ValueError: shows a question that does not fit the model's context or contains the mask token.
    """

    def __init__(self, model: PromptReader, data: QuestionSettings, seed: int):
        if model.tokenizer is None:
            raise ValueError("the model's tokenizer cannot be loaded, and questions are text; add tokenizer.json to it")
        self.model, self.tokenizer, self.length = model, model.tokenizer, data.answer_length
        self.ends = end_tokens(model.tokenizer)
        self.datasets = list(data.datasets)
        if not self.datasets or len(set(self.datasets)) < len(self.datasets):
            raise ValueError(f"data.datasets={self.datasets} must name at least one data set, and each once")
        self.unsandboxed = data.unsandboxed
        self.questions: list[Question] = []
        self.dataset_of: list[int] = []
        self.left_out = Counter()
        for number, name in enumerate(self.datasets):
            for row, question in enumerate(load_questions(name, "train", data.data_dir, data.count, data.math_by)):
                if self._is_kept(question, f"{name} row {row}", data.max_prompt_length):
                    self.questions.append(question)
                    self.dataset_of.append(number)
        if data.valid_rows >= len(self.questions):
            raise ValueError(
                f"data.valid_rows={data.valid_rows} leaves none of {len(self.questions)} questions to learn from; lower it"
            )
        check_runnable(self.questions, self.unsandboxed)
        shuffled = torch.randperm(len(self.questions), generator=torch.Generator().manual_seed(0))
        self.rows = EndlessRows(shuffled[data.valid_rows :, None], seed)
        self.valid = self.held_out = self.made(shuffled[: data.valid_rows])

    def _is_kept(self, question: Question, row: str, longest: int | None) -> bool:
        tokens = encode(self.model, question.prompt, question.prefix)
        if longest is not None and len(tokens) > longest:
            self.left_out[question.dataset] += 1
            return False
        advice = "lower data.max_prompt_length, which leaves long prompts out, or data.answer_length"
        check_prompt(self.model, tokens, self.length, row, question.prompt, advice)
        return True

    def __str__(self) -> str:
        """Return a description for the log."""
        counts = Counter(self.datasets[number] for number in self.dataset_of)
        of_each = ", ".join(f"{counts[name]:,} of {name}" for name in self.datasets)
        out = ", ".join(f"{number} of {name}" for name, number in self.left_out.items())
        held = len(self.valid.canvas)
        return f"questions: {of_each}; {held} of them held out" + (
            f"; left out as longer than data.max_prompt_length: {out}" if out else ""
        )

    def made(self, index: Int[Tensor, "row"]) -> Prompts:
        """Return the prompts of those questions, padded on the left."""
        prompts = canvases(self.model, [self.questions[number] for number in index.tolist()], self.length)
        prompts.rows = {"question": index, "dataset": torch.tensor(self.dataset_of)[index]}
        return prompts

    def prompts(self, count: int, seed: int) -> Prompts:
        """Return the next training questions. The position in the stream is the state; `seed` is not used."""
        return self.made(self.rows.next(count).squeeze(1))

    def texts(self, count: int, seed: int) -> Prompts:
        raise ValueError("questions have a known answer and no known text; use reward=right, or data that is text")

    def clean(self, count: int, seed: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        raise ValueError("questions have no clean rows for algorithm=variational; use algorithm=grpo or ppo")

    def written(self, tokens: Int[Tensor, "row position"]) -> list[str]:
        """Return the responses as text, up to their end of sequence or of turn, without masked positions of a training
        rollout.
        """
        answers = tokens[:, -self.length :]
        kept = before_end(answers, torch.ones_like(answers, dtype=torch.bool), self.ends)
        return texts_of(answers, kept & (answers != self.model.mask_id), self.tokenizer)

    def displayed(self, number: int, tokens: Int[Tensor, "position"]) -> str:
        """Return held-out question `number` and the text generated for it."""
        question = self.questions[int(self.valid.rows["question"][number])]
        return f"{question.prompt}\n\n{self.written(tokens[None])[0]}"

    def right(self, tokens: Int[Tensor, "row position"], rows: Mapping[str, Tensor]) -> Float[Tensor, "row"]:
        """Return 1 if the answer is right by the verifier of its own data set, else 0."""
        questions = [self.questions[number] for number in rows["question"].tolist()]
        return torch.tensor(right(questions, self.written(tokens), self.unsandboxed), dtype=torch.float32)

    def state_dict(self) -> dict:
        return self.rows.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.rows.load_state_dict(state)
