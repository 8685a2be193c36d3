"""Reward models as they are loaded: rows do not know their batch or their padding, labels, packages, refusals."""

import json
import math
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    BertModel,
    DebertaV2Config,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
    RobertaConfig,
)

import rewards.models
from data.text import train_bpe
from dlm.encoding import text_ids
from rewards.models import (
    ClassifierReward,
    EmbeddingReward,
    ProfanityReward,
    RewardModel,
    TextReward,
    VocabularyHead,
    load_classifier,
    load_head,
    load_reward,
    padded,
    position_limit,
    shares_tokens,
)

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "<end>", *"abcdefghijkl"]
SIZE = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
CONFIGS = {
    "deberta": lambda **more: DebertaV2Config(**SIZE, relative_attention=True, pos_att_type=["p2c", "c2p"], **more),
    "gpt2": lambda **more: GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=2, n_head=2, n_positions=32, **more),
    "llama": lambda **more: LlamaConfig(**SIZE, **more),
    "bert": lambda **more: BertConfig(**SIZE, **more),
}


def tokenizer(kind: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[PAD]"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    marks = {"eos_token": "<end>"} if kind in ("gpt2", "llama") else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="[PAD]", mask_token="[MASK]", **marks)


def classifier(kind: str, directory: Path | None = None, **more):
    torch.manual_seed(0)
    config = CONFIGS[kind](**({"num_labels": 1, "pad_token_id": 0} | more))
    model = AutoModelForSequenceClassification.from_config(config)
    for parameter in model.parameters():  # as they start, scores hardly differ
        parameter.data += 0.3 * torch.randn_like(parameter)
    if directory is not None:
        model.save_pretrained(directory)
        tokenizer(kind).save_pretrained(directory)
    return model.eval()


def rows(count: int = 7, length: int = 9):
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randint(5, len(WORDS), (count, length), generator=generator)
    lengths = torch.randint(1, length + 1, (count,), generator=generator)
    return tokens, torch.arange(length) < lengths[:, None]


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_row_does_not_know_its_batch_nor_where_its_padding_is(kind):
    reward = ClassifierReward(classifier(kind), tokenizer(kind))
    assert isinstance(reward, RewardModel) and isinstance(reward, TextReward)
    tokens, real = rows()
    together = reward.score(tokens, real)
    alone = torch.cat([reward.score(row[own][None]) for row, own in zip(tokens, real, strict=True)])
    left = reward.score(tokens.flip(1), real.flip(1))  # other order, so other scores: shift instead
    moved = [torch.cat((row[~own], row[own])) for row, own in zip(tokens, real, strict=True)]
    shifted = reward.score(torch.stack(moved), real.flip(1))
    assert together.std() > 0.05 and not torch.allclose(left, together, atol=1e-3)
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(together, shifted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_causal_model_is_read_at_its_last_token_even_where_that_is_the_padding_id(kind):
    """Finding it by the padding id, a row that ends with that id would be read before its end."""
    model = classifier(kind)
    reward = ClassifierReward(model, tokenizer(kind))
    tokens = torch.tensor([[6, 7, 8, 0], [6, 7, 8, 9]])
    expected = model.score(model.base_model(input_ids=tokens).last_hidden_state[:, -1])[:, 0]
    torch.testing.assert_close(reward.score(tokens), expected.detach(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        reward.score(tokens)[1], model(input_ids=tokens).logits[1, 0].detach(), atol=1e-5, rtol=1e-4
    )
    before = model(input_ids=tokens).logits[0, 0]
    assert abs(float(before) - float(reward.score(tokens)[0])) > 1e-3


def test_many_rows_go_through_in_parts(monkeypatch):
    reward = ClassifierReward(classifier("bert"), tokenizer("bert"))
    tokens, real = rows(40)
    whole = reward.score(tokens, real)
    monkeypatch.setattr(rewards.models, "POSITIONS", 30)
    torch.testing.assert_close(reward.score(tokens, real), whole, atol=1e-5, rtol=1e-4)
    assert reward.score(tokens[:0]).shape == (0,)


def test_a_saved_classifier_is_loaded_with_its_kind_and_scores_texts_by_the_template(tmp_path):
    model = classifier("bert")
    model.config.reward_kind = "mask"
    model.save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)
    reward = load_reward(str(tmp_path))
    assert reward.kind == "mask" and not reward.causal
    pair = torch.tensor([[1, 5, 6, 2, 7, 2]])  # [CLS] a b [SEP] c [SEP]
    torch.testing.assert_close(reward.score_texts(["a b", ""], ["c", "c"])[:1], reward.score(pair))
    model.config.reward_kind = "suffix"
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="kind is 'suffix'; expected one of full, prefix, mask"):
        load_reward(str(tmp_path))


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_a_row_that_is_too_long_loses_the_beginning_of_its_prompt_then_of_its_answer(kind, tmp_path):
    """Never the token that an encoder is read at, and never the answer's end: else all answers to a long prompt would be equal."""
    classifier(kind, tmp_path)
    reward = load_reward(str(tmp_path))
    front, end = ([1], [2]) if kind == "bert" else ([], [reward.tokenizer.eos_token_id])
    between = [2] if kind == "bert" else []
    answer, room = [6, 7] + end, reward.max_length - len(front) - len(between) - 2 - len(end)
    long_prompt = torch.tensor([front + [5] * room + between + answer])
    torch.testing.assert_close(reward.score_texts(["a " * reward.max_length], ["b c"]), reward.score(long_prompt))
    long_answer = torch.tensor([front + [6] * (reward.max_length - len(front) - 1) + end])
    torch.testing.assert_close(reward.score_texts(["a"], ["b " * reward.max_length]), reward.score(long_answer))
    one, other = reward.score_texts(["a " * reward.max_length] * 2, ["b c", "c b"])
    assert one != other


def test_an_answer_that_was_cut_off_is_read_without_an_end(tmp_path):
    classifier("gpt2", tmp_path)
    reward = load_reward(str(tmp_path))
    end = reward.tokenizer.eos_token_id
    cut, ended = reward.score_texts(["a", "a"], ["b", "b"], [False, True])
    torch.testing.assert_close(cut, reward.score(torch.tensor([[5, 6]]))[0])
    torch.testing.assert_close(ended, reward.score(torch.tensor([[5, 6, end]]))[0])
    assert (cut - ended).abs() > 1e-3
    torch.testing.assert_close(ended, reward.score_texts(["a"], ["b"])[0])


def test_one_label_of_several(tmp_path):
    classifier(
        "bert", tmp_path, num_labels=3, id2label={0: "bad", 1: "so", 2: "good"}, label2id={"bad": 0, "so": 1, "good": 2}
    )
    names = {name: load_reward(f"{tmp_path}#{name}").score_texts([""], ["a b"]) for name in ("bad", "so", "good", "2")}
    assert math.isclose(sum(math.exp(float(names[name])) for name in ("bad", "so", "good")), 1, abs_tol=1e-5)
    assert names["good"] == names["2"]
    (tmp_path / "run#2").mkdir()
    stars = {0: "2", 1: "1", 2: "0"}  # a label's name goes before its number
    model = classifier("bert", tmp_path / "run#2", num_labels=3, id2label=stars, label2id={"2": 0, "1": 1, "0": 2})
    logits = model(input_ids=torch.tensor([[1, 5, 6, 2]])).logits[0].detach()
    found = load_reward(f"{tmp_path}/run#2#2").score_texts([""], ["a b"])
    torch.testing.assert_close(found[0], logits.log_softmax(0)[0], atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="has the labels bad, so, good; say which is good: "):
        load_reward(str(tmp_path))
    classifier("bert", tmp_path)
    with pytest.raises(ValueError, match="has one output and no label 'good'; leave #good out"):
        load_reward(f"{tmp_path}#good")


def test_labels_that_do_not_exclude_each_other_are_sigmoids_and_a_regression_is_its_value(tmp_path):
    names = {"id2label": {0: "toxic", 1: "threat"}, "label2id": {"toxic": 0, "threat": 1}}
    for problem in ("multi_label_classification", "regression", "single_label_classification"):
        model = classifier("bert", tmp_path, num_labels=2, problem_type=problem, **names)
        logits = model(input_ids=torch.tensor([[1, 5, 6, 2]])).logits[0].detach()  # [CLS] a b [SEP]
        expected = {"multi_label_classification": logits.sigmoid().log(), "regression": logits}.get(
            problem, logits.softmax(0).log()
        )
        found = torch.cat(
            [load_reward(f"{tmp_path}#{name}").score_texts([""], ["a b"]) for name in ("toxic", "threat")]
        )
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4, msg=problem)
        shared = load_classifier(str(tmp_path))  # what the target of a twist reads
        torch.testing.assert_close(shared.log_probs(shared(["a b"]))[0], expected, atol=1e-5, rtol=1e-4, msg=problem)


def test_a_text_without_a_token_has_one_score(tmp_path):
    for kind in ("gpt2", "llama", "bert"):
        reward = ClassifierReward(classifier(kind), tokenizer(kind))
        alone = reward.score_texts([""], [""], [False])
        beside = reward.score_texts(["", ""], ["", "a b c d"], [False, False])
        torch.testing.assert_close(beside[0], alone[0], atol=1e-5, rtol=1e-4)
        assert bool(torch.isfinite(alone).all()) and reward.score_texts([], []).shape == (0,)
    GPT2Model(CONFIGS["gpt2"]()).save_pretrained(tmp_path)
    tokenizer("gpt2").save_pretrained(tmp_path)
    assert bool(torch.isfinite(load_reward(f"embedding:{tmp_path}#a").score_texts(["", ""], ["", "a b"])).all())


@pytest.mark.parametrize(
    "config, reads",
    [
        (RobertaConfig(max_position_embeddings=34, pad_token_id=1, num_labels=1, **SIZE), 32),
        (OPTConfig(max_position_embeddings=32, word_embed_proj_dim=16, ffn_dim=16, num_labels=1, **SIZE), 32),
        (BertConfig(max_position_embeddings=32, num_labels=1, **SIZE), 32),
        (LlamaConfig(max_position_embeddings=24, num_labels=1, pad_token_id=0, **SIZE), 24),
    ],
    ids=["roberta", "opt", "bert", "llama"],
)
def test_a_model_reads_as_many_tokens_as_its_own_positions_allow(config, reads):
    model = AutoModelForSequenceClassification.from_config(config)
    reward = ClassifierReward(model, tokenizer("bert" if reads == 32 else "llama"))
    assert reward.max_length == reads
    assert bool(torch.isfinite(reward.score_texts([""], ["a " * 60])).all())
    few = tokenizer("bert")
    few.model_max_length = 9
    assert position_limit(model, few) == 9


def test_the_same_tokens():
    reward = ClassifierReward(classifier("gpt2"), tokenizer("gpt2"))
    fewer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS[:8])}, unk_token="[PAD]"))
    other = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS[::-1])}, unk_token="[PAD]"))
    assert shares_tokens(reward, PreTrainedTokenizerFast(tokenizer_object=fewer))
    assert not shares_tokens(reward, PreTrainedTokenizerFast(tokenizer_object=other))


# ------------------------------------------------------------------------------------------ heads


def test_a_head_is_saved_with_its_trunk(tmp_path):
    head = VocabularyHead(4, 6, "example/stories", "mask")
    torch.nn.init.normal_(head.linear.weight)
    head.save(tmp_path)
    again = load_head(tmp_path)
    hidden = torch.randn(3, 2, 4)
    assert again.trunk == "example/stories" and again.kind == "mask" and not again.linear.weight.requires_grad
    assert torch.equal(again(hidden), head(hidden)) and again(hidden).shape == (3, 2, 6)
    with pytest.raises(ValueError, match="is a vocabulary head: it scores the next token while"):
        load_reward(str(tmp_path))
    with pytest.raises(ValueError, match="holds no vocabulary head; train one"):
        load_head(tmp_path / "none")


# ------------------------------------------------------------------------------------------ packages


def test_packages_know_good_from_bad():
    texts = ["What a lovely, happy day.", "I hate you, you stupid bastard."]
    for name in ("vader", "profanity"):
        good, bad = load_reward(name).score_texts(["", ""], texts).tolist()
        assert good > 0.5 and good > bad + 0.5, name
    assert load_reward("brevity").score_texts(["", ""], ["a b c", ""]).tolist() == [-3, 0]


def test_a_pickle_that_is_not_the_pinned_one_is_not_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(ProfanityReward, "SHA256", {**ProfanityReward.SHA256, "model.joblib": "0" * 64})

    def opened(file):
        assert "vectorizer" in str(file), "a file that was not checked was unpickled"

    monkeypatch.setattr("joblib.load", opened)
    with pytest.raises(
        ValueError, match="is not the file of alt-profanity-check 1.9.1, and as a pickle it is not loaded; install"
    ):
        load_reward("profanity")


def test_a_package_that_is_missing_is_named(monkeypatch):
    def missing():
        raise ImportError("no module")

    monkeypatch.setitem(rewards.models.PACKAGED, "vader", (missing, "vaderSentiment==3.3.2"))
    with pytest.raises(ValueError, match="the reward vader needs a package; pip install vaderSentiment==3.3.2"):
        load_reward("vader")


def test_similarity_of_embeddings(tmp_path):
    torch.manual_seed(0)
    BertModel(CONFIGS["bert"]()).save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)
    of_prompt, of_text = load_reward(f"embedding:{tmp_path}"), load_reward(f"embedding:{tmp_path}#a b")
    assert isinstance(of_prompt, EmbeddingReward)
    same, other = of_prompt.score_texts(["a b", "c d e"], ["a b", "a b"]).tolist()
    assert same == pytest.approx(1, abs=1e-5) and other < 0.99
    assert of_text.score_texts(["", "x"], ["a b", "c d e"])[1] == pytest.approx(other, abs=1e-5)


def test_texts_of_rewards_are_text(tmp_path):
    own = train_bpe(["a cat sat"] * 3, 260)
    own.save_pretrained(tmp_path)
    BertModel(BertConfig(**(SIZE | {"vocab_size": 260}))).save_pretrained(tmp_path)
    reward = load_reward(f"embedding:{tmp_path}")
    assert isinstance(reward, EmbeddingReward)
    read = []
    reward.model.register_forward_pre_hook(lambda _, args, given: read.append(given["input_ids"]), with_kwargs=True)
    texts = [f"a{own.eos_token}", "a \ud83d"]
    reward.embedded(texts)
    assert [row[row != 0].tolist() for row in read[0]] == [text_ids(own, text) for text in texts]
    assert own.eos_token_id == 0
    reward.model.set_input_embeddings(torch.nn.Embedding(9, 16))
    with pytest.raises(
        ValueError, match="has the token .* and the model 9 tokens; give the model with its own tokenizer"
    ):
        reward.embedded(texts)


@pytest.mark.parametrize(
    "name, message",
    [
        ("vaader", r"the reward .vaader. is no directory and no hub id; did you mean vader\?"),
        ("EMPTY", "has no config.json"),
    ],
)
def test_what_is_no_reward(name, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_reward(str(tmp_path) if name == "EMPTY" else name)


def test_weights_that_would_be_random_are_refused(tmp_path):
    BertModel(CONFIGS["bert"]()).save_pretrained(tmp_path)
    tokenizer("bert").save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"is no reward model: it lacks classifier.bias, classifier.weight; train one from it"
    ):
        load_reward(str(tmp_path))


def test_padded_rows():
    tokens, real = padded([[1, 2, 3], [4]])
    assert tokens.tolist() == [[1, 2, 3], [4, 0, 0]] and real.tolist() == [[True] * 3, [True, False, False]]


def test_a_run_is_its_model(tmp_path):
    (tmp_path / ".hydra").mkdir()
    classifier("bert", tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["model_type"] == "bert"
    assert load_reward(str(tmp_path)).score_texts([""], ["a"]).shape == (1,)
