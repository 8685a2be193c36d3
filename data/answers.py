r"""Questions with answers for fine-tuning: rows `Question: ...\nSolution: ...` of which only the answer is masked.

As SEDD-LaTeX-RLHF prepares s1K-1.1 (2501.19393): its rows and its cleaning, 80 % for training and 20 % held out with seed
42, rows filled up with the end of text. What differs: there the loss covers the question too; rows longer than the canvas
are dropped and counted (there, and with data.longer=cut here, they lose their end); `\log{x}` is unchanged (there:
`\log_{x}`, a base).

The fill is part of the answer, so that a model with canvases of fixed length learns where to stop.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from data.text import EndlessRows, check_unpacked, json_lines, opened_text
from dlm.encoding import batch_ids
from training.hub import hide_data_bars, load_split, prepare

if TYPE_CHECKING:
    import datasets
    import transformers

# Our name (and that of a file or folder in data.cache_dir) -> hub id.
HUB = {"s1K-1.1": "simplescaling/s1K-1.1"}
SPLIT_SEED, HELD_OUT = 42, 0.2

Pair = tuple[str, str]

# ---------------------------------------------------------------------------------------------------------------- cleaning

SYMBOLS = {
    "α": r"\alpha", "β": r"\beta", "γ": r"\gamma", "δ": r"\delta", "ε": r"\epsilon", "θ": r"\theta", "λ": r"\lambda",
    "μ": r"\mu", "π": r"\pi", "ρ": r"\rho", "σ": r"\sigma", "τ": r"\tau", "φ": r"\phi", "ω": r"\omega", "Γ": r"\Gamma",
    "Δ": r"\Delta", "Σ": r"\Sigma", "Ω": r"\Omega", "∞": r"\infty", "≤": r"\leq", "≥": r"\geq", "≠": r"\neq",
    "≈": r"\approx", "≡": r"\equiv", "∈": r"\in", "∉": r"\notin", "⊂": r"\subset", "⊆": r"\subseteq", "∪": r"\cup",
    "∩": r"\cap", "∑": r"\sum", "∏": r"\prod", "∫": r"\int", "∂": r"\partial", "∇": r"\nabla", "√": r"\sqrt", "×": r"\times",
    "÷": r"\div", "·": r"\cdot", "±": r"\pm", "→": r"\to", "⇒": r"\Rightarrow", "∀": r"\forall", "∃": r"\exists",
    "−": "-", "′": "'", "²": "^{2}", "³": "^{3}", "°": r"^{\circ}",
}  # fmt: skip
SUBSCRIPTED = re.compile(r"\\(delta|alpha|beta|gamma|sum|int|lim)\{")


def with_dollars(text: str) -> str:
    r"""Replace `\[..\]` by `$$..$$` and `\(..\)` by `$..$`. `\\[2pt]` and `\\(` are line ends and stay."""
    marks = {r"\[": "$$", r"\]": "$$", r"\(": "$", r"\)": "$"}
    return re.sub(r"\\\\|\\[\[\]()]", lambda found: marks.get(found[0], found[0]), text)


def with_subscripts(text: str) -> str:
    r"""Replace `\alpha{i}` by `\alpha_{i}`; also for delta, beta, gamma, sum, int and lim."""
    return SUBSCRIPTED.sub(r"\\\1_{", text)


def without_unicode(text: str) -> str:
    """Replace Greek letters and signs by commands, with a space before a following letter."""
    written = re.sub("|".join(map(re.escape, SYMBOLS)), lambda found: f"{SYMBOLS[found[0]]}\0", text)
    return re.sub(r"(?<=[A-Za-z])\0(?=[A-Za-z])", " ", written).replace("\0", "")


def squeezed(text: str) -> str:
    """Reduce runs of spaces to one, and remove blank lines and trailing spaces."""
    lines = (" ".join(line.split()) for line in text.split("\n"))
    return "\n".join(line for line in lines if line)


def cleaned(text: str) -> str:
    """Apply all passes in this order. A second application changes nothing."""
    return squeezed(with_subscripts(without_unicode(with_dollars(text))))


# ----------------------------------------------------------------------------------------------------------------- loading


def is_answers(name: str) -> bool:
    """Return whether a data set has questions with answers: a known name, or a JSONL file whose first row has a
    `question`.
    """
    path = Path(name)
    if name in HUB:
        return True
    if not path.name.endswith((".jsonl", ".jsonl.gz")) or not path.is_file():
        return False
    check_unpacked(path)
    with opened_text(path) as file:
        return '"question"' in next((line for line in file if line.strip()), "")


def load_pairs(name: str, cache_dir: str | Path | None = None) -> list[Pair]:
    """Return (question, answer) of every row.

    A key of HUB is searched as DIR/NAME.jsonl and as the folder DIR/NAME (of `save_to_disk`, or with parquet files) in
    cache_dir, then on the hub; its rows are cleaned.

    Args:
        name: a key of HUB, or a JSONL file.

    Raises:
        ValueError: the data cannot be reached, or a row of a file lacks question or answer (with its line).
    """
    if name not in HUB:
        return read_pairs(Path(name))
    folder = Path(cache_dir or ".") / name
    if cache_dir is not None and (file := folder.with_name(f"{name}.jsonl")).is_file():
        return [(cleaned(question), cleaned(answer)) for question, answer in read_pairs(file)]
    try:
        if cache_dir is not None and folder.is_dir():
            rows = _folder(folder)
        else:
            prepare(HUB[name], "data set")
            hide_data_bars()
            rows = load_split(HUB[name], split="train", cache_dir=None if cache_dir is None else str(cache_dir))
    except OSError as error:
        raise ValueError(
            f"the data set '{name}' (hub id {HUB[name]}) cannot be reached: check the network, or put {name}.jsonl or a folder "
            f"{name} into data.cache_dir, which is {cache_dir}"
        ) from error
    return [_pair(row, f"{name} row {number}", cleaned) for number, row in enumerate(rows)]


def _folder(folder: Path) -> datasets.Dataset:
    """Load a folder of `save_to_disk`, or one that contains parquet files."""
    from datasets import DatasetDict, load_from_disk

    hide_data_bars()
    files = sorted(map(str, folder.rglob("*.parquet")))
    if files:
        return load_split("parquet", data_files=files, split="train")
    rows = load_from_disk(str(folder))
    return rows["train"] if isinstance(rows, DatasetDict) else rows


def read_pairs(path: Path) -> list[Pair]:
    """Read a .jsonl or .jsonl.gz file with fields `question` and `answer` (or `solution`). Empty lines are skipped.

    Raises:
        ValueError: names the line that is not JSON or lacks a field.
    """
    pairs = [_pair(row, place) for place, row in json_lines(path)]
    if not pairs:
        raise ValueError(f"{path} has no rows; give a file with a question and an answer a line")
    return pairs


def _pair(row: object, place: str, clean: Callable[[str], str] = str) -> Pair:
    question = row.get("question") if isinstance(row, Mapping) else None
    answer = row.get("answer", row.get("solution")) if isinstance(row, Mapping) else None
    if not isinstance(question, str) or not isinstance(answer, str):
        raise ValueError(f'{place} has no texts "question" and "answer" (or "solution"); add them')
    return clean(question), clean(answer)


def split_pairs(train: str, valid: str, cache_dir: str | Path | None = None) -> tuple[list[Pair], list[Pair]]:
    """Return training and held-out pairs. Two names are one data set each; the same name twice is split 80 to 20 with seed
    42.
    """
    if not is_answers(valid):
        raise ValueError(f"data.train={train} has questions and answers and data.valid={valid} has not; give both")
    if train != valid:
        return load_pairs(train, cache_dir), load_pairs(valid, cache_dir)
    pairs = load_pairs(train, cache_dir)
    if len(pairs) < 2:
        raise ValueError(f"{train} has one row and a part of it is to be held out; give data.valid another file")
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    held_out = max(1, round(HELD_OUT * len(pairs)))
    return [pairs[n] for n in order[held_out:]], [pairs[n] for n in order[:held_out]]


# -------------------------------------------------------------------------------------------------------------------- rows


def prompt_text(question: str) -> str:
    """Return the given part of a row."""
    return f"Question: {question}\nSolution:"


def row_text(pair: Pair) -> str:
    """Return the text of a whole row, for training a tokenizer."""
    return f"{prompt_text(pair[0])} {pair[1]}"


def encode_pairs(
    pairs: Sequence[Pair], tokenizer: transformers.PreTrainedTokenizerBase, length: int, eos_id: int, cut: bool
) -> tuple[Int[Tensor, "row position"], Int[Tensor, "row"], int]:
    """Return (tokens, length of each row's question, number of rows that did not fit).

    Question and answer are encoded separately, so that a question has the same tokens with and without its answer. Answers
    end with the end of text and are filled up with it.

    Args:
        length: rows of more tokens, end of text included, are dropped or cut.
        cut: long rows lose their end. A question that leaves no room for an answer is always dropped.

    Raises:
        ValueError: no row is left.
    """

    questions = batch_ids(tokenizer, [prompt_text(question) for question, _ in pairs])
    answers = batch_ids(tokenizer, [f" {answer}" for _, answer in pairs])
    rows, prompts = [], []
    for question, answer in zip(questions, answers, strict=True):
        row = [*question, *answer, eos_id]
        if len(question) < length and (cut or len(row) <= length):
            rows.append((row + [eos_id] * (length - len(row)))[:length])
            prompts.append(len(question))
    if not rows:
        raise ValueError(
            f"none of {len(pairs)} rows fits {length} positions; give a longer canvas, or shorter questions (data.longer=cut "
            "shortens answers only)"
        )
    return torch.tensor(rows), torch.tensor(prompts), len(pairs) - len(rows)


class AnswerRows(EndlessRows):
    """An endless stream of shuffled rows with given questions. `prompt`: number of given positions of each held-out row."""

    def __init__(
        self, tokens: Int[Tensor, "row position"], given: Int[Tensor, "row"], prompt: Int[Tensor, "held_out"], seed: int
    ):
        super().__init__(torch.cat((given.unsqueeze(1), tokens), 1), seed)
        self.prompt = prompt

    def next(self, batch: int) -> Int[Tensor, "batch position"]:
        return super().next(batch)[:, 1:]

    def next_puzzles(self, batch: int) -> tuple[Int[Tensor, "batch position"], Bool[Tensor, "batch position"]]:
        """Return rows, and which of their positions are the question."""
        rows = super().next(batch)
        return rows[:, 1:], torch.arange(rows.shape[1] - 1) < rows[:, :1]
