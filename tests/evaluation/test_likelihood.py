"""The bound on log p against enumeration: exact sums, Monte Carlo within its error, never above the truth."""

from itertools import product
from pathlib import Path

import pytest
import torch

from dlm.causal_lm import sequence_log_prob
from evaluation.likelihood import log_likelihoods, windows
from load_model import load_model
from tests.enumerable import any_order_bound, dependent_joint, exact_law, from_joint, inconsistent, random_radd

ROOT = Path(__file__).parents[2]
TEXTS = list(product(range(3), repeat=4))


def test_the_sum_over_all_sets_is_the_mean_over_all_orders():
    model = inconsistent(3, 4)
    found = log_likelihoods(model, [([], list(text)) for text in TEXTS], draws=16)
    for text, one in zip(TEXTS, found, strict=True):
        assert one.standard_error == 0 and one.greedy is None
        assert one.log_prob == pytest.approx(-any_order_bound(model, text), abs=1e-5)


def test_behind_a_context():
    model = inconsistent(3, 4)
    found = log_likelihoods(model, [(list(text[:2]), list(text[2:])) for text in TEXTS], draws=4)
    for text, one in zip(TEXTS, found, strict=True):
        assert one.log_prob == pytest.approx(-any_order_bound(model, text, given=(0, 1)), abs=1e-5)


def test_it_bounds_the_law_of_writing_in_a_random_order():
    model = inconsistent(3, 4)
    law = exact_law(model, "first_hitting", steps=4)
    found = log_likelihoods(model, [([], list(text)) for text in TEXTS], draws=16)
    gaps = [float(torch.tensor(law[text]).log()) - one.log_prob for text, one in zip(TEXTS, found, strict=True)]
    assert min(gaps) > -1e-5 and max(gaps) > 0.01


def test_where_the_conditionals_are_of_one_joint_it_is_exact():
    joint = dependent_joint(3, 4)
    found = log_likelihoods(from_joint(joint), [([], list(text)) for text in TEXTS], draws=16)
    for text, one in zip(TEXTS, found, strict=True):
        assert one.log_prob == pytest.approx(float(joint[text].log()), abs=1e-4)


@pytest.mark.parametrize("draws", [2, 8])
def test_monte_carlo_is_unbiased_and_so_is_its_error(draws):
    model, text = inconsistent(3, 4), [2, 0, 1, 2]
    repeated = 1500
    found = [log_likelihoods(model, [([], text)], draws, seed)[0] for seed in range(repeated)]
    values = torch.tensor([one.log_prob for one in found], dtype=torch.float64)
    squares = torch.tensor([one.standard_error**2 for one in found], dtype=torch.float64)
    assert abs(float(values.mean()) + any_order_bound(model, text)) < 4.5 * float(values.std()) / repeated**0.5
    spread = float(squares.std()) / repeated**0.5 + float((values - values.mean()).square().std()) / repeated**0.5
    assert float(squares.mean()) > 0
    assert abs(float(squares.mean()) - float(values.var())) < 4.5 * spread


def test_a_text_does_not_know_its_batch():
    model = random_radd(length=16)
    texts = [([1, 2], [3, 4, 5, 6, 0]), ([], [3, 3]), ([5], [6, 4, 2, 0, 1, 3])]
    together = log_likelihoods(model, texts, draws=16, batch=5)
    for one, text in zip(together, texts, strict=True):
        (alone,) = log_likelihoods(model, [text], draws=16)
        assert one.log_prob == pytest.approx(alone.log_prob, abs=1e-4)
        assert one.standard_error == pytest.approx(alone.standard_error, abs=1e-4)
    assert [one.standard_error > 0 for one in together] == [True, False, True]
    assert together[0].log_prob != log_likelihoods(model, texts, draws=16, seed=1)[0].log_prob


def test_a_causal_model_is_exact():
    model, _ = load_model(ROOT / "example" / "stories_causal")
    tokens = model.tokenizer.encode("Once upon a time there was a little girl", add_special_tokens=False)
    truth = sequence_log_prob(model, torch.tensor([tokens]))[0]
    whole, rest = log_likelihoods(model, [([], tokens), (tokens[:4], tokens[4:])])
    assert whole.log_prob == pytest.approx(float(truth.sum()), abs=1e-4) and whole.standard_error == 0
    assert rest.log_prob == pytest.approx(float(truth[4:].sum()), abs=1e-4)
    best = model.log_probs(torch.tensor([tokens]))[0].argmax(1).tolist()
    assert whole.greedy == (best == tokens) and not whole.greedy
    follow = model.log_probs(torch.tensor([[*tokens, 0]]))[0, -1].argmax()
    (likely,) = log_likelihoods(model, [(tokens, [int(follow)])])
    assert likely.greedy is True


@pytest.mark.parametrize(("count", "longest"), [(1, 4), (4, 4), (5, 4), (11, 4), (12, 5), (3, 1), (0, 4)])
def test_windows_score_every_token_once(count, longest):
    found = windows(count, longest)
    assert [place for _, scored, end in found for place in range(scored, end)] == list(range(count))
    assert all(end - first <= longest and first <= scored < end for first, scored, end in found)
    assert all(first == scored - 1 for first, scored, _ in found[1:-1] if longest > 1)
    if count >= longest:
        assert found[-1][2] - found[-1][0] == longest


def test_bad_input():
    model = inconsistent(3, 4)
    with pytest.raises(ValueError, match="3 Monte Carlo samples: expected an even number"):
        log_likelihoods(model, [([], [0, 1])], draws=3)
    with pytest.raises(ValueError, match="5 tokens, more than the model's 4"):
        log_likelihoods(model, [([0], [0, 1, 2, 0])])


def test_guidance_compares_with_the_context_masked():
    """One token behind a context: (1 + w) of its logits with the context, minus w of those with the context masked."""
    model, _ = load_model(ROOT / "example" / "stories")
    tokens = model.tokenizer.encode("Once upon a time there", add_special_tokens=False)
    canvas = torch.tensor([[*tokens[:-1], model.mask_id], [model.mask_id] * len(tokens)])
    read = torch.zeros_like(canvas, dtype=torch.bool)
    read[:, -1] = True
    shown, without = model.head(model.hidden(canvas, read))[:, :-1]  # the last column is the mask
    for guidance in (0.0, 0.5, 3.0):
        expected = ((1 + guidance) * shown - guidance * without).log_softmax(0)[tokens[-1]]
        (found,) = log_likelihoods(model, [(tokens[:-1], tokens[-1:])], guidance=guidance)
        assert found.log_prob == pytest.approx(float(expected), abs=1e-4)
