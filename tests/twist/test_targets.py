"""Potentials in stable logarithms, against the plain formula; classifiers of transformers, tiny and local; what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from data.text import train_bpe
from rewards.models import load_reward
from tests.enumerable import random_radd
from tests.twist.test_network import tiny_causal
from twist.tail import with_tail
from twist.targets import (
    ClassifiedTexts,
    ClassTarget,
    ContinuationTarget,
    RewardTarget,
    ThresholdTarget,
    build_target,
    check_continuation,
    load_classifier,
    text_reward,
    valid_formulas,
)

TEXTS = ["the cat was happy and good", "a sad dog ran far away", "the sun is warm today"]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    directory = tmp_path_factory.mktemp("classifier")
    tokenizer = train_bpe(TEXTS, 300)
    tokenizer.pad_token = tokenizer.eos_token
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, num_labels=3, initializer_range=1.0,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def model_with(tokenizer):
    model = tiny_causal(vocabulary=len(tokenizer))
    model.tokenizer = tokenizer
    return model


def test_a_classifier_reads_texts_in_batches_that_change_nothing(classifier, monkeypatch):
    loaded = load_classifier(classifier, torch.device("cpu"), classes=3)
    whole = loaded(TEXTS)
    monkeypatch.setattr("rewards.models.POSITIONS", 40)
    assert torch.allclose(loaded(TEXTS), whole, atol=1e-5)
    assert torch.allclose(loaded(TEXTS[1:2]), whole[1:2], atol=1e-5)  # padding is not read
    assert whole.shape == (3, 3)
    longest = loaded([" ".join(TEXTS * 20)])  # cut to what it takes
    assert bool(torch.isfinite(longest).all())


def test_class_threshold_and_their_settings(classifier):
    tokenizer = train_bpe(TEXTS, 300)
    model = model_with(tokenizer)
    tokens = torch.tensor([tokenizer.encode(text)[:4] for text in TEXTS])
    logits = load_classifier(classifier, torch.device("cpu"))([tokenizer.decode(row) for row in tokens.tolist()])
    target = build_target(
        {"kind": "class", "classifier": classifier, "classes": 3, "label": 1, "beta": 2.0}, model, 1, 3
    )
    assert torch.allclose(target.log_phi(tokens), 2 * logits.softmax(1)[:, 1].log(), atol=1e-5)
    target = build_target({"kind": "class", "classifier": classifier}, model, 1, 3)
    label = torch.tensor([2, 0, 1])
    assert torch.allclose(target.log_phi(tokens, label), logits.softmax(1)[torch.arange(3), label].log(), atol=1e-5)
    middle = float(logits[:, 0].median())
    for above in (True, False):
        settings = {"kind": "threshold", "classifier": classifier, "label": 0, "threshold": middle, "above": above}
        passes = (logits[:, 0] > middle) if above else (logits[:, 0] < middle)
        expected = torch.where(passes, 0.0, math.log(1e-16))
        assert torch.equal(build_target(settings, model, 1, 3).log_phi(tokens), expected)


def test_a_reward_and_a_twist_read_one_classifier(tmp_path):
    """Without a padding token and stored in bfloat16, a causal one; of a multi-label one, log sigmoid of the label."""
    tokenizer = train_bpe(TEXTS, 300)
    sizes = {"n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 16, "vocab_size": len(tokenizer)}
    for more in ({"num_labels": 1}, {"num_labels": 3, "problem_type": "multi_label_classification"}):
        config = GPT2Config(bos_token_id=0, eos_token_id=0, **sizes, **more)
        GPT2ForSequenceClassification(config).to(torch.bfloat16).save_pretrained(tmp_path)
        tokenizer.save_pretrained(tmp_path)
        loaded = load_classifier(str(tmp_path), torch.device("cpu"))
        name = str(tmp_path) + ("" if more["num_labels"] == 1 else "#2")
        texts = [*TEXTS, " ".join(TEXTS)]  # the last one is too long
        found = loaded(texts)
        rewarded = load_reward(name).score_texts([""] * 4, texts, [False] * 4)
        expected = found[:, 0] if more["num_labels"] == 1 else F.logsigmoid(found[:, 2])
        torch.testing.assert_close(rewarded, expected, atol=1e-5, rtol=1e-4)
        assert loaded.model.dtype == torch.float32
    model = model_with(tokenizer)
    tokens = torch.tensor([tokenizer.encode(text)[:4] for text in TEXTS])
    target = build_target({"kind": "class", "classifier": str(tmp_path), "label": 2, "beta": 2.0}, model, 1, 3)
    logits = loaded([tokenizer.decode(row) for row in tokens.tolist()])
    assert torch.allclose(target.log_phi(tokens), 2 * F.logsigmoid(logits[:, 2]), atol=1e-5)
    with pytest.raises(ValueError, match="target.label=null draws a class for each text, and the labels of"):
        build_target({"kind": "class", "classifier": str(tmp_path)}, model, 1, 3)


def test_a_reward_of_texts_reads_them_up_to_their_end_and_knows_which_ended():
    tokenizer = train_bpe(TEXTS, 300)
    model, end = model_with(tokenizer), tokenizer.eos_token_id
    words = [tokenizer.encode(text)[:3] for text in ("cat", " sad dog", " sun")]
    row = [*words[0], *words[1], end, *words[2]]
    other = [*words[0], *words[1], *words[2], words[2][0]][: len(row)]
    score = text_reward("brevity", model, len(words[0]))
    assert score(torch.tensor([row])).tolist() == [-float(len(tokenizer.decode(words[1]).split()))]
    assert score(torch.tensor([other]))[0] < score(torch.tensor([row]))[0]


def test_potentials_stay_finite_where_probabilities_vanish():
    one = ClassTarget(lambda tokens: torch.tensor([[200.0], [-200.0]]), 0)
    tokens = torch.zeros(2, 1, dtype=torch.long)
    assert torch.equal(one.log_phi(tokens), torch.tensor([-200.0, 0.0]))  # log(1 - sigmoid(200)) would be -inf
    assert torch.equal(ClassTarget(one.logits, 1).log_phi(tokens), torch.tensor([0.0, -200.0]))
    many = ClassTarget(lambda tokens: torch.tensor([[0.0, 300.0], [300.0, 0.0]]), 0, beta=2.0)
    assert torch.equal(many.log_phi(tokens), torch.tensor([-600.0, 0.0]))
    above = ThresholdTarget(lambda tokens: torch.tensor([1.0, -1.0]), 0.0)
    assert torch.allclose(above.log_phi(tokens), torch.tensor([0.0, math.log(1e-16)]))
    assert torch.equal(
        RewardTarget(lambda tokens: torch.tensor([1.0, -1.0]), 3.0).log_phi(tokens), torch.tensor([3.0, -3.0])
    )


def test_continuations_are_likely_as_the_model_says():
    model = tiny_causal()
    tokens, given = torch.randint(13, (4, 5)), torch.randint(13, (4, 3))
    whole = torch.cat((tokens, given), 1)
    each = model.log_probs(whole).gather(2, whole.unsqueeze(2)).squeeze(2)
    after = each[:, 5:].sum(1)
    assert torch.allclose(ContinuationTarget(model, beta=2.0).log_phi(tokens, given), 2 * after, atol=1e-4)
    fixed = ContinuationTarget(model, given[0])
    assert torch.allclose(fixed.log_phi(tokens)[0], after[0], atol=1e-4)
    assert torch.allclose(ContinuationTarget(model, form="prob").log_phi(tokens, given), after.exp(), atol=1e-4)
    posterior = ContinuationTarget(model, beta=3.0, form="posterior", first=2).log_phi(tokens, given)
    assert torch.allclose(posterior, 3 * after - each[:, 2:5].sum(1), atol=1e-4)


def test_formulas_are_valid_or_not():
    texts = ["we have $x^2 + 1$ here", "none", "an $\\frac{a}{b}$ and $y_{1$", "open $x"]
    assert valid_formulas(texts).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_what_is_refused(classifier, tmp_path):
    model = model_with(train_bpe(TEXTS, 300))
    with pytest.raises(ValueError, match="has 3 classes and target.classes=5; give one of 5 classes"):
        build_target({"kind": "class", "classifier": classifier, "classes": 5, "label": 1}, model, 1, 3)
    with pytest.raises(ValueError, match="target.label=4 and the classifier .* has 3 classes; give one from 0 to 2"):
        build_target({"kind": "class", "classifier": classifier, "label": 4}, model, 1, 3)
    target = build_target({"kind": "class", "classifier": classifier, "label": 1}, model, 1, 3)
    nothing = target.log_phi(torch.zeros(1, 4, dtype=torch.long))  # decodes to no text
    assert bool(torch.isfinite(nothing).all())
    with pytest.raises(ValueError, match="has no config.json"):
        load_classifier(str(tmp_path), torch.device("cpu"))
    with pytest.raises(ValueError, match="conditioned on 6 tokens and 4 are written"):
        build_target({"kind": "infilling", "tokens": 6}, model, 2, 4)
    with pytest.raises(
        ValueError, match="an output of 40 positions are 42, and the model reads 32; shorten the output"
    ):
        build_target({"kind": "infilling", "tokens": 2}, model, 2, 40)
    with pytest.raises(ValueError, match="are 34, and the model reads 32"):
        check_continuation(model, 10, 14, 10)
    with pytest.raises(ValueError, match="this one is masked"):
        settings = {"kind": "infilling", "tokens": 2, "form": "prob"}
        build_target(settings, with_tail(random_radd(width=16, blocks=1), settings), 2, 4)
    with pytest.raises(ValueError, match="target.form='odd' is unknown"):
        build_target({"kind": "continuation", "text": "cat", "form": "odd"}, model, 2, 4)
    with pytest.raises(ValueError, match="target.kind='joy' is unknown; use one of class, threshold"):
        build_target({"kind": "joy"}, model, 2, 4)
    assert isinstance(build_target({"kind": "latex"}, model, 2, 4).score, ClassifiedTexts)


def test_a_reward_stays_below_its_highest():
    """phi is then a probability, which exact samples need."""
    target = RewardTarget(lambda tokens: torch.tensor([1.0, -1.0]), beta=3.0, highest=1.0)
    assert target.log_phi(torch.zeros(2, 1, dtype=torch.long)).tolist() == [0.0, -6.0]
