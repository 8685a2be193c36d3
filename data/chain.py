"""Chain arithmetic with an optional scratchpad: a reasoning task that trains in minutes, with an exact verifier.

    3 A +1 B *3 C +1 D *2 ?      A 4 C 6 = 5 <eos> <eos> ...

The prompt is a start value and labelled steps, all modulo MODULUS. A step is one token, so the model learns a table of
(value, step). The response lists some of the running values, each step with probability `keep`, then `=` and the result,
then end-of-sequence tokens to the end of the canvas. Steps that are left out must be computed internally. Much of a canvas
is padding, so a decoder that commits the most confident positions first commits padding and leaves no room for reasoning.
Large masked models have the same problem without blocks. A tenth of all prompts is held out, by a hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float, Int
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

if TYPE_CHECKING:
    import transformers

MODULUS = 7
STEPS = ("+1", "+3", "*2", "*3")
LABELS = "ABCDEFGH"
WORDS = [*map(str, range(MODULUS)), *STEPS, *LABELS, "?", "=", "<eos>", "<mask>"]
IDS = {word: number for number, word in enumerate(WORDS)}
STEP, LABEL, ASK, EQUALS, EOS, MASK = (IDS[word] for word in (STEPS[0], "A", "?", "=", "<eos>", "<mask>"))

# TABLE[step, value]: the value after a step.
TABLE = torch.tensor([[(v + int(s[1:]) if s[0] == "+" else v - int(s[1:]) if s[0] == "-" else v * int(s[1:])) % MODULUS
                       for v in range(MODULUS)] for s in STEPS])  # fmt: skip


def chain_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Return the tokenizer: one token per word; `<mask>` is the last id."""
    from transformers import PreTrainedTokenizerFast

    words: Any = Tokenizer(models.WordLevel(IDS, unk_token="<eos>"))  # whose properties its type declares read-only
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>", mask_token="<mask>")


def prompt_length(steps: int) -> int:
    """Return the number of tokens of a prompt: the start value, two per step, the question mark."""
    return 2 * steps + 2


@dataclass
class Chains:
    """Problems: start values, and steps as indices into STEPS."""

    start: Int[Tensor, "row"]
    step: Int[Tensor, "row step"]

    def values(self) -> Int[Tensor, "row step"]:
        """Return the running value after each step; the last one is the answer."""
        value, out = self.start, []
        for step in self.step.unbind(1):
            value = TABLE[step, value]
            out.append(value)
        return torch.stack(out, 1)

    def prompts(self) -> Int[Tensor, "row position"]:
        """Return the tokens of the prompts."""
        rows, steps = self.step.shape
        labels = (LABEL + torch.arange(steps)).expand(rows, -1)
        body = torch.stack((labels, STEP + self.step), 2).flatten(1)
        return torch.cat((self.start.unsqueeze(1), body, torch.full((rows, 1), ASK)), 1)

    def answers(self, kept: Bool[Tensor, "row step"], length: int) -> Int[Tensor, "row position"]:
        """Return the first `length` tokens of the responses, with the steps `kept` listed."""
        return listed(self.values(), kept, length)

    def take(self, index: Tensor) -> Chains:
        """Return some of the problems."""
        return Chains(self.start[index], self.step[index])


def listed(values: Int[Tensor, "row step"], kept: Bool[Tensor, "row step"], length: int) -> Int[Tensor, "row position"]:
    """Return the first `length` tokens of responses to problems with these running values, with the steps `kept` listed."""
    rows, steps = kept.shape
    text = torch.full((rows, max(length, 2 * steps + 2)), EOS)
    at = 2 * (kept.cumsum(1) - 1)
    row = torch.arange(rows).unsqueeze(1).expand(-1, steps)
    text[row[kept], at[kept]] = (LABEL + torch.arange(steps)).expand(rows, -1)[kept]
    text[row[kept], at[kept] + 1] = values[kept]
    end = 2 * kept.sum(1)
    text[torch.arange(rows), end], text[torch.arange(rows), end + 1] = EQUALS, values[:, -1]
    return text[:, :length]


def right_answers(values: Int[Tensor, "row step"], length: int) -> Int[Tensor, "row answer position"]:
    """Return all right responses to problems with these running values: 2 ** steps, by the steps that they list, the longest
    first."""
    rows, steps = values.shape
    number = torch.arange(2**steps)
    kept = (number.unsqueeze(1) >> torch.arange(steps) & 1).bool()
    kept = kept[kept.sum(1).argsort(descending=True, stable=True)]
    each = listed(values.cpu().repeat_interleave(len(kept), 0), kept.repeat(rows, 1), length)
    return each.unflatten(0, (rows, len(kept)))


def draw_chains(rows: int, steps: int, generator: torch.Generator) -> Chains:
    """Draw uniform problems."""
    start = torch.randint(MODULUS, (rows,), generator=generator)
    return Chains(start, torch.randint(len(STEPS), (rows, steps), generator=generator))


def is_held_out(chains: Chains) -> Bool[Tensor, "row"]:
    """Mark held-out problems: a tenth of all prompts, by a hash of all tokens."""
    number = chains.start.clone()
    for column in chains.step.unbind(1):
        number = (number * 1_000_003 + column + 12_289) % 2_147_483_647
    return (number * 48_271 % 2_147_483_647) % 10 == 0


def chains(rows: int, steps: int, generator: torch.Generator, held_out: bool = False) -> Chains:
    """Draw problems of one side of the split."""
    found: list[Chains] = []
    count = 0
    while count < rows:
        drawn = draw_chains(max(64, rows * (12 if held_out else 2)), steps, generator)
        drawn = drawn.take((is_held_out(drawn) == held_out).nonzero().squeeze(1))
        found.append(drawn)
        count += len(drawn.start)
    whole = Chains(*(torch.cat([getattr(c, name) for c in found]) for name in ("start", "step")))
    return whole.take(torch.arange(rows))


def given_answer(text: Int[Tensor, "row position"]) -> Int[Tensor, "row"]:
    """Return the digit after the first `=` before any end of sequence; -1 if there is none."""
    place = torch.arange(text.shape[1], device=text.device)
    first = torch.where(text == EQUALS, place, text.shape[1]).min(1).values
    ended = torch.where(text == EOS, place, text.shape[1]).min(1).values
    digit = text.gather(1, (first + 1).clamp(max=text.shape[1] - 1).unsqueeze(1)).squeeze(1)
    valid = (first + 1 < ended) & (first + 1 < text.shape[1]) & (digit < MODULUS)
    return torch.where(valid, digit, -1)


def is_right(text: Int[Tensor, "row position"], answer: Int[Tensor, "row"]) -> Float[Tensor, "row"]:
    """Return 1 for responses with the right result, else 0."""
    return (given_answer(text) == answer).float()


def share_right(text: Int[Tensor, "row position"], values: Int[Tensor, "row step"]) -> Float[Tensor, "row"]:
    """Return the right share of steps and result. A step is right if its label and value are adjacent, before any end of
    sequence.
    """
    before_end = (text == EOS).cumsum(1) == 0
    label = LABEL + torch.arange(values.shape[1], device=text.device)
    named = text[:, :-1, None] == label
    valued = text[:, 1:, None] == values.unsqueeze(1)
    steps = (named & valued & before_end[:, 1:, None]).any(1).sum(1)
    return (steps + is_right(text, values[:, -1])) / (values.shape[1] + 1)


class ChainRows:
    """An endless stream of clean rows with given prompts. Batch number n is a function of (seed, n) only."""

    left_out = 0

    def __init__(self, steps: int, length: int, keep: float, seed: int, fewest: int | None = None):
        """Problems of a batch have `fewest` to `steps` steps (default: `steps`). End-of-sequence tokens stand before shorter
        prompts."""
        self.steps, self.length, self.keep = steps, length, keep
        self.fewest = steps if fewest is None else fewest
        self.seed, self.drawn = seed, 0
        self.prompt = prompt_length(steps)

    def rows(
        self, count: int, generator: torch.Generator, held_out: bool = False, steps: int | None = None
    ) -> Int[Tensor, "row position"]:
        """Return prompts with their answers."""
        steps = steps or self.steps
        problems = chains(count, steps, generator, held_out)
        kept = torch.rand(count, steps, generator=generator) < self.keep
        fill = torch.full((count, self.prompt - prompt_length(steps)), EOS)
        return torch.cat((fill, problems.prompts(), problems.answers(kept, self.length)), 1)

    def next(self, batch: int) -> Int[Tensor, "row position"]:
        self.drawn += 1
        seed = self.seed * 1_000_003 + self.drawn - 1
        generator = torch.Generator().manual_seed(seed)
        steps = int(torch.randint(self.fewest, self.steps + 1, (), generator=generator))
        return self.rows(batch, generator, steps=steps)

    def next_puzzles(self, batch: int) -> tuple[Int[Tensor, "row position"], Bool[Tensor, "row position"]]:
        tokens = self.next(batch)
        return tokens, (torch.arange(tokens.shape[1]) < prompt_length(self.steps)).expand_as(tokens)

    def state_dict(self) -> dict[str, int]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.drawn = state["drawn"]
