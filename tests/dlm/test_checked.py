"""A model of a user whose outputs cannot be decoded from is refused in one sentence."""

import pytest
import torch
from torch import nn

import unmask
from dlm.checked import check_model
from dlm.masked_lm import MaskedLM
from tests.enumerable import RandomLM


class Letters(MaskedLM):
    """Three letters, whatever the canvas; id 3 is the mask token."""

    vocab_size, mask_id, max_length, hidden_size = 4, 3, 64, 1
    calls = 0

    def hidden_rows(self, tokens, read, sigma):
        self.calls += 1
        return torch.zeros(int(read.sum()), self.hidden_size)

    def head(self, hidden):
        return torch.tensor([0.7, 0.2, 0.1, 0.0]).log().repeat(len(hidden), 1)


def letters(**parts):
    """A model whose class has other attributes or methods."""
    return type("Broken", (Letters,), parts)(nn.Identity())


def head(*row):
    return lambda self, hidden: torch.tensor(row).repeat(len(hidden), 1)


class Empty(MaskedLM):
    """A model without attributes and methods."""


def test_a_model_is_evaluated_once_for_the_check():
    model = Letters(nn.Identity())
    before = model.calls
    check_model(model)
    check_model(model)
    assert model.calls == before + 1
    assert unmask.load("example/stories", device="cpu").is_checked
    for causal in (False, True):
        check_model(RandomLM(5, causal=causal, max_length=8))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            letters(head=head(0.0, 0.0, 0.0)),
            r"`head` of the model Broken returned shape \[4, 3\] and type torch.float32; .*vocab_size",
        ),
        (
            letters(head=head(0.0, 0.0, 0.0, 0.0)),
            "finite logit of the mask token 3, which would be committed; return -inf",
        ),
        (
            letters(head=head(float("nan"), 0.0, 0.0, -torch.inf)),
            "`head` of the model Broken returned logits that are NaN",
        ),
        (letters(head=head(*[-torch.inf] * 4)), "`head` of the model Broken returned logits that are NaN"),
        (
            letters(hidden_rows=lambda self, tokens, read, sigma: torch.zeros(2, 1)),
            r"`hidden_rows` of the model Broken returned shape \[2, 1\] .*return floating-point numbers of shape \[4, 1\]",
        ),
        (letters(head=lambda self, hidden: None), "`head` of the model Broken returned NoneType"),
        (letters(hidden_rows=lambda self, *_: torch.full((4, 1), torch.nan)), "returned NaN or infinite values"),
        (letters(hidden_rows=MaskedLM.hidden_rows), "the model Broken has no method `hidden_rows`; define it"),
        (letters(head=MaskedLM.head), "the model Broken has no method `head`"),
        (letters(mask_id=9), "the model Broken has mask_id=9 and vocab_size=4"),
        (letters(hidden_size="wide"), "the model Broken has hidden_size=wide, which must be a whole number"),
        (Empty(nn.Identity()), "the model Empty has vocab_size=null, which must be a whole number"),
        ("example/stories", "model=example/stories is of type str; give a model that unmask.load returns"),
        (nn.Linear(2, 2), "is of type Linear; give a model"),
    ],
)
def test_a_wrong_model_is_one_sentence(model, message):
    with pytest.raises(ValueError, match=message):
        unmask.sample.__wrapped__(model, strategy="confidence", steps=2, length=6)


def test_what_a_model_raises_is_its_own():
    with pytest.raises(ZeroDivisionError):
        unmask.sample(letters(head=lambda self, hidden: 1 / 0), steps=2, length=6)
