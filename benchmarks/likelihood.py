"""Estimators of the log-likelihood of a row: bias, deviation and evaluations, on an enumerable model and on shipped ones.

    python -m benchmarks.likelihood
    python -m benchmarks.likelihood --models example/chain example/latex_sft --rows 8 --draws 64 --out docs/results/likelihood

Enumerable model: conditionals that belong to no joint distribution, 3 tokens on 3 positions, all 27 texts. Each estimator is
compared with the exact log-likelihood of the any-order model (log of the mean, over orders, of the probability that the text is
generated token by token in this order), and with its own expected value.

Shipped models: texts of their training distribution with given prompts (chain arithmetic, and formulas that answer a
description). The reference is the any-order bound by --exact counts. The error of a difference is that of log p(right text) - log
p(the same text with one wrong token: the result, or any token of a formula), both on the same masks, because training uses such
differences. The command writes --out DIR/likelihood.json, prints tables, and ends with flat JSON.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from itertools import permutations, product
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from data.answers import encode_pairs
from data.chain import MODULUS, WORDS, chains, prompt_length
from data.formulas import is_held_out, row
from dlm.draws import Draws
from dlm.likelihood import Coupled, Elbo, Estimator, MeanField, Published, Sandwich, ScoreEntropy, log_likelihood
from dlm.masked_lm import MaskedLM
from evaluation.report import print_table, write_json
from load_model import load_model
from training.ranges import ROWS

STEPS, LENGTH = 8, 24  # of a problem of chain arithmetic, and of its answer
SEED = 77  # of descriptions


class Table(MaskedLM):
    """A random distribution for each canvas and position; these conditionals belong to no joint distribution."""

    def __init__(self, vocabulary: int, length: int, seed: int = 0):
        super().__init__(nn.Identity())
        self.mask_id, self.vocab_size, self.hidden_size, self.max_length = vocabulary, vocabulary + 1, 2, length
        generator = torch.Generator().manual_seed(seed)
        self.table = (1.5 * torch.randn(self.vocab_size**length, length, vocabulary, generator=generator)).log_softmax(
            -1
        )

    def state(self, tokens: Int[Tensor, "row position"]) -> Int[Tensor, "row"]:
        return (tokens * self.vocab_size ** torch.arange(self.max_length - 1, -1, -1)).sum(1)

    def hidden_rows(self, tokens, read, sigma):
        row, position = read.nonzero().unbind(1)
        return torch.stack((self.state(tokens)[row], position), 1).float()

    def head(self, hidden):
        state, position = hidden.long().unbind(1)
        return nn.functional.pad(self.table[state, position], (0, 1), value=-torch.inf)

    def exact(self, texts: Int[Tensor, "row position"]) -> Float[Tensor, "row"]:
        """Return the log of the mean, over orders, of the probability of each text."""
        by_order = []
        for order in permutations(range(self.max_length)):
            canvas, total = torch.full_like(texts, self.mask_id), torch.zeros(len(texts))
            for position in order:
                token = texts[:, position]
                total += self.table[self.state(canvas), position].gather(1, token.unsqueeze(1)).squeeze(1)
                canvas[:, position] = token
            by_order.append(total)
        return torch.stack(by_order).logsumexp(0) - torch.tensor(float(len(by_order))).log()


def estimators() -> dict[str, Estimator]:
    """Return the compared estimators, at about equal evaluations, and at fewer."""
    return {
        "elbo, times, 4 single": Elbo(4, False, False),
        "elbo, times, 4 in pairs": Elbo(4, False, True),
        "elbo, counts, 1": Elbo(1),
        "elbo, counts, 4 single": Elbo(4, True, False),
        "elbo, counts, 4 in pairs": Elbo(4),
        "elbo, counts, 16 in pairs": Elbo(16),
        "mean_field": MeanField(),
        "mean_field, prompt masked": MeanField(4, 0.15),
        "coupled, 1 pair": Coupled(1),
        "coupled, 2 pairs": Coupled(2),
        "sandwich, 4, pushed down": Sandwich(4),
        "sandwich, 16, pushed down": Sandwich(16),
        "published": Published(),
    }


def measured(
    model: MaskedLM, estimator: Estimator, texts: Int[Tensor, "row position"], free: Bool[Tensor, "row position"], draws: int,
    push_down: bool,
) -> tuple[Float[Tensor, "row draw"], float]:  # fmt: skip
    """Return `draws` estimates of each text, and the evaluations of one estimate."""
    tokens, where = texts.repeat_interleave(draws, 0), free.repeat_interleave(draws, 0)
    views = estimator.views(where, Draws(1))
    down = torch.full((len(tokens),), push_down)
    found = log_likelihood(model, estimator, tokens, views, 512, down).sum(1)
    return found.double().view(len(texts), draws), len(views) / len(tokens)


def enumerable(draws: int) -> list[dict]:
    """Compare with the exact log-likelihood of all 27 texts."""
    model = Table(3, 3)
    texts = torch.tensor(list(product(range(3), repeat=3)))
    exact = model.exact(texts).double()
    records = []
    for name, estimator in estimators().items():
        if "prompt" in name:
            continue
        found, evaluations = measured(
            model, estimator, texts, torch.ones_like(texts, dtype=torch.bool), draws, "down" in name
        )
        records.append(
            {
                "estimator": name,
                "evaluations": round(evaluations, 2),
                "bias": float((found.mean(1) - exact).mean()),
                "largest_bias": float((found.mean(1) - exact).abs().max()),
                "deviation": float(found.var(1).mean().sqrt()),
            }
        )
    return records


@dataclass(frozen=True)
class Texts:
    """Right texts, the same texts with one wrong token, and the mask of positions that are not given."""

    right: Int[Tensor, "row position"]
    wrong: Int[Tensor, "row position"]
    free: Bool[Tensor, "row position"]


def chain_texts(rows: int) -> Texts:
    problems = chains(rows, STEPS, torch.Generator().manual_seed(3), held_out=True)
    kept = torch.rand(rows, STEPS, generator=torch.Generator().manual_seed(3)) < 0.7
    texts = torch.cat((problems.prompts(), problems.answers(kept, LENGTH)), 1)
    result = prompt_length(STEPS) + 2 * kept.sum(1) + 1
    wrong = texts.clone()
    wrong[torch.arange(rows), result] = (wrong[torch.arange(rows), result] + 1) % MODULUS
    return Texts(texts, wrong, (torch.arange(texts.shape[1]) >= prompt_length(STEPS)).expand_as(texts))


def formula_texts(model: MaskedLM, rows: int) -> Texts:
    """Return held-out descriptions with their formulas, filled up with the end of text, and copies with one changed token of
    the formula."""
    assert model.tokenizer is not None
    pairs, number = [], 0
    while len(pairs) < rows:
        made, _ = row(SEED, number, 0.0)
        pairs += [(made["question"], made["answer"])] if is_held_out(made["question"]) else []
        number += 1
    end = model.tokenizer.eos_token_id
    tokens, given, _ = encode_pairs(pairs, model.tokenizer, model.max_length, end, False)
    place = torch.arange(tokens.shape[1])
    free = place >= given.unsqueeze(1)
    written = free & (tokens != end)
    generator = torch.Generator().manual_seed(3)
    changed = written.float().multinomial(1, generator=generator)
    words = model.mask_id - 1  # the end of text is token 0, and is no other one
    other = 1 + (tokens.gather(1, changed) - 1 + torch.randint(1, words, (len(tokens), 1), generator=generator)) % words
    return Texts(tokens, tokens.scatter(1, changed, other), free)


def shipped(path: str, rows: int, draws: int, exact: int) -> list[dict]:
    """Compare with the any-order bound by many counts; also measure the error of a difference on shared masks."""
    model, _ = load_model(path)
    of_chain = getattr(model.tokenizer, "vocab_size", None) == len(WORDS)
    made = chain_texts(rows) if of_chain else formula_texts(model, rows)
    texts, wrong, free = made.right, made.wrong, made.free
    bound, _ = measured(model, Elbo(exact), texts, free, 1, False)
    compared = estimators()
    if hasattr(model, "log_scale"):  # SEDD's scores
        compared |= {"score_entropy, 4": ScoreEntropy(4), "score_entropy, 16": ScoreEntropy(16)}
    records = []
    for name, estimator in compared.items():
        found, evaluations = measured(model, estimator, texts, free, draws, "down" in name)
        other, _ = measured(model, estimator, wrong, free, draws, "down" in name)
        records.append(
            {
                "estimator": name,
                "evaluations": round(evaluations, 2),
                "bias": float((found - bound).mean()),
                "deviation": float(found.var(1).mean().sqrt()),
                "difference": float((found - other).mean()),
                "difference_deviation": float((found - other).var(1).mean().sqrt()),
            }
        )
    return records


def main() -> None:
    parser = argparse.ArgumentParser(description="Bias, spread and evaluations of the likelihood estimators.")
    parser.add_argument(
        "--models", nargs="+", default=["example/chain", "example/latex_sft"], metavar="PATH",
        help="of chain arithmetic, or of formulas (both shipped ones)",
    )  # fmt: skip
    parser.add_argument("--rows", type=ROWS, default=8, help="texts of a shipped model (8)")
    parser.add_argument(
        "--draws", type=ROWS, default=64, help="estimates of each text (64; 32 times as many when enumerated)"
    )
    parser.add_argument(
        "--exact", type=ROWS, default=960, help="masks of the bound that a shipped model is held against (960)"
    )
    parser.add_argument("--out", default="docs/results/likelihood", help="where likelihood.json goes")
    arguments = parser.parse_args()
    tables = {
        "enumerable": enumerable(32 * arguments.draws),
        **{
            Path(path).name: shipped(path, arguments.rows, arguments.draws, arguments.exact)
            for path in arguments.models
        },
    }
    for title, records in tables.items():
        print_table(records, title)
    Path(arguments.out).mkdir(parents=True, exist_ok=True)
    write_json(tables, Path(arguments.out) / "likelihood.json")
    flat = {f"{title}_{r['estimator'].replace(', ', '_').replace(' ', '_')}_deviation": round(r["deviation"], 3)
            for title, records in tables.items() for r in records}  # fmt: skip
    print(json.dumps(flat))


if __name__ == "__main__":
    main()
