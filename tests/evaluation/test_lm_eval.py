"""Our models under lm-evaluation-harness: its own command line on a local task, and the numbers that it is given."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from data.questions import load_questions
from dlm.encoding import text_ids
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.likelihood import log_likelihoods
from load_model import load_model
from policy.checkpoints import save_policy
from policy.networks import DitConfidence
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from training.usage import composed

pytest.importorskip("lm_eval")
pytestmark = pytest.mark.filterwarnings("ignore")  # the harness's own

ROOT = Path(__file__).parents[2]
DOCS = [json.loads(line) for line in (ROOT / "tests/evaluation/tasks/stories.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def harness():
    return importlib.import_module("unmask.lm_eval")


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, one, number) for number, one in enumerate(arguments)]


def test_its_own_command_line(tmp_path):
    command = [
        sys.executable, "-m", "unmask.lm_eval", "--model", "unmask", "--model_args",
        f"path=example/stories,strategy=confidence,steps=6,samples=16,record={tmp_path}/record.jsonl",
        "--tasks", "unmask_choice,unmask_generate,unmask_rolling", "--include_path", "tests/evaluation/tasks",
        "--output_path", str(tmp_path / "out"), "--log_samples", "--batch_size", "4",
    ]  # fmt: skip
    environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    (file,) = (tmp_path / "out").rglob("results_*.json")
    results = json.loads(file.read_text())
    model, _ = load_model(ROOT / "example/stories")
    encode = lambda text: model.tokenizer.encode(text, add_special_tokens=False)
    right = 0
    for doc in DOCS:
        # a single token is scored exactly; the pair splits where the whole text is cut
        whole = [(encode(doc["context"]), encode(doc["context"] + choice)[len(encode(doc["context"])) :])
                 for choice in doc["choices"]]  # fmt: skip
        own, other = log_likelihoods(model, whole, 16)
        right += own.log_prob > other.log_prob
    assert results["results"]["unmask_choice"]["acc,none"] == right / len(DOCS)
    texts = [doc["context"] + doc["choices"][0] for doc in DOCS]
    bounds = log_likelihoods(model, [([], encode(text)) for text in texts], 16)
    words = sum(len(text.split()) for text in texts)
    perplexity = float(torch.tensor(-sum(one.log_prob for one in bounds) / words).exp())
    assert results["results"]["unmask_rolling"]["word_perplexity,none"] == pytest.approx(perplexity, rel=1e-3)
    info = results["config"]
    assert info["likelihood"] == "lower bound by Monte Carlo" and info["likelihood_samples"] == 16
    assert info["likelihood_standard_error_max"] >= info["likelihood_standard_error_mean"] > 0
    assert info["sampler"]["strategy"] == "confidence" and info["sampler"]["steps"] == 6
    lines = [json.loads(line) for line in (tmp_path / "record.jsonl").read_text().splitlines()]
    assert len(lines) == 3 * len(DOCS) and {line["standard_error"] for line in lines[:8:2]} == {0.0}
    (logged,) = (tmp_path / "out").rglob("samples_unmask_generate_*.jsonl")
    answers = [json.loads(line)["resps"][0][0] for line in logged.read_text().splitlines()]
    assert len(answers) == len(DOCS) and all(answers) and not any("." in answer for answer in answers)


def test_generation_is_that_of_the_sampler(harness):
    lm = harness.UnmaskLM(path="example/stories", strategy="top_prob", steps=5, device="cpu")
    asked = {"until": [" the", "!"], "max_gen_toks": 10, "do_sample": False}
    contexts = [doc["context"] for doc in DOCS]
    found = lm.generate_until(requests("generate_until", *((context, asked) for context in contexts)))
    for context, text in zip(contexts, found, strict=True):
        tokens = lm.tok_encode(context)
        canvas = torch.tensor([tokens + [lm.model.mask_id] * 10])
        environment = UnmaskingEnvironment(lm.model, DecodeOptions(5, ends=(lm.eot_token_id,)))
        written = (
            sample(
                environment,
                Strategy(UNMASKING_RULES["top_prob"](), TokenRule(0.0)),
                Prompts(canvas, prompt_length=len(tokens)),
            )
            .tokens[0, len(tokens) :]
            .tolist()
        )
        length = written.index(lm.eot_token_id) if lm.eot_token_id in written else len(written)
        whole = lm.tokenizer.decode(written[:length])
        assert text == whole.split(" the")[0].split("!")[0]
    assert any(" the" not in text for text in found)


@pytest.mark.parametrize("turn", ["<|eot_id|>", "<|im_end|>"])
def test_text_ends_at_the_end_of_a_turn(harness, monkeypatch, turn):
    lm = harness.UnmaskLM(path="example/stories", device="cpu")
    lm.tokenizer.add_special_tokens({"additional_special_tokens": [turn]})
    written = lm.tokenizer.encode(f" a girl.{turn} And a boy.")
    monkeypatch.setattr(lm, "_decode", lambda prompts, *settings: SimpleNamespace(
        tokens=torch.cat((prompts.canvas[:, : prompts.prompt_length], torch.tensor([written])), 1)))  # fmt: skip
    asked = {"until": ["!"], "max_gen_toks": len(written)}
    assert lm.generate_until(requests("generate_until", ("Once there was", asked))) == [" a girl."]


def test_temperature_and_length_come_from_the_task_unless_they_are_given(harness):
    context = DOCS[0]["context"]
    drawn = {"until": [], "max_gen_toks": 8, "do_sample": True, "temperature": 1.0}
    twice = requests("generate_until", (context, drawn), (context, drawn))
    first, second = harness.UnmaskLM(path="example/stories", device="cpu").generate_until(twice)
    assert first != second  # each request has draws of its own
    first, second = harness.UnmaskLM(
        path="example/stories", strategy="top_prob", temperature=0, device="cpu"
    ).generate_until(twice)
    assert first == second
    lm = harness.UnmaskLM(path="example/stories", block_length=8, device="cpu")
    assert [lm._length(*asked) for asked in ((1, 0), (8, 9), (9, 9), (999, 20), (999, 200), (9, 300))] == [
        8,
        8,
        16,
        232,
        128,
        16,
    ]


def test_alpha_reaches_the_policy_and_stop_is_refused(harness, tmp_path):
    torch.manual_seed(0)
    network = DitConfidence(hidden_dim=8, feedforward_dim=8, time_embed_dim=4, smart_init=0.0, alpha_conditioned=True)
    save_policy(network, tmp_path / "many")
    way = {"strategy": "policy", "policy.path": str(tmp_path / "many"), "policy.action": "bernoulli_argmax"}
    lm = harness.UnmaskLM(path="example/chain", device="cpu", alpha=3, **way)
    assert lm._decoding(24).alpha == 3
    assert len(lm.generate_until(requests("generate_until", ("3 A +1 ?", {"until": [], "max_gen_toks": 8})))) == 1
    with pytest.raises(ValueError, match="stop has no effect here"):
        harness.UnmaskLM(path="example/chain", device="cpu", stop=True)


def test_a_policy_with_blocks_and_a_cache_answers_chain_arithmetic(harness):
    questions = load_questions("chain", "test", None, 8)
    asked = requests(
        "generate_until", *((question.prompt, {"until": ["<eos>"], "max_gen_toks": 24}) for question in questions)
    )
    ways = {
        "policy": {"strategy": "policy", "policy.path": "example/chain_policy", "policy.action": "bernoulli_argmax"},
        "blocks": {"strategy": "threshold", "threshold": 0.5, "block_length": 4, "cache": "dual"},
    }
    for name, way in ways.items():
        lm = harness.UnmaskLM(path="example/chain", device="cpu", **way)
        texts = lm.generate_until(asked)
        right = [
            question.truth == text.split("=")[1].split()[0]
            for question, text in zip(questions, texts, strict=True)
            if "=" in text
        ]
        assert sum(right) >= 6, (name, texts)


def test_greedy_is_what_the_decoder_writes(harness):
    lm = harness.UnmaskLM(path="example/stories", strategy="top_prob", device="cpu", samples=4)
    context = lm.tok_encode("Once upon a time, there was a little")
    canvas = torch.tensor([[*context, *[lm.model.mask_id] * 3]])
    environment = UnmaskingEnvironment(lm.model, DecodeOptions(3))
    text = (
        sample(
            environment,
            Strategy(UNMASKING_RULES["top_prob"](), TokenRule(0.0)),
            Prompts(canvas, prompt_length=len(context)),
        )
        .tokens[0, -3:]
        .tolist()
    )
    other = [*text[:2], text[2] + 1]
    assert lm.writes([(context, text), (context, other), (context, [])]) == [True, False, True]
    pairs = [(("", ""), context, text), (("", ""), context, other)]
    assert [greedy for _, greedy in lm._loglikelihood_tokens(pairs)] == [True, False]
    lm.check_greedy = False
    assert [greedy for _, greedy in lm._loglikelihood_tokens(pairs)] == [False, False]


def test_a_causal_model_scores_as_the_harness_does_itself(harness):
    from lm_eval.models.huggingface import HFLM

    path = str(ROOT / "example/stories_causal")
    theirs = HFLM(pretrained=path, add_bos_token=True, device="cpu", dtype="float32", batch_size=1)
    ours = harness.UnmaskLM(path="example/stories_causal", device="cpu")
    asked = requests(
        "loglikelihood", *((doc["context"], choice) for doc in DOCS for choice in doc["choices"]), ("", " girl")
    )
    for own, expected in zip(ours.loglikelihood(asked), theirs.loglikelihood(asked, disable_tqdm=True), strict=True):
        assert own[0] == pytest.approx(expected[0], abs=1e-3) and own[1] == expected[1]
    theirs = HFLM(
        pretrained=path, device="cpu", dtype="float32", batch_size=1
    )  # its start token is in front here anyway
    rolling = requests("loglikelihood_rolling", *((doc["context"],) for doc in DOCS))
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-3
    )


def test_names_of_special_tokens_in_a_question_are_text(harness):
    lm = harness.UnmaskLM(path="example/stories", device="cpu")
    special = lm.tokenizer.eos_token
    assert lm.tok_encode(f"a{special}b") == text_ids(lm.tokenizer, f"a{special}b")
    assert not {lm.eot_token_id, lm.model.mask_id} & set(lm.tok_encode(f"a [MASK] {special}"))
    assert lm.tok_encode("a\ud83d") == lm.tok_encode("a\ufffd")
    lm.tokenizer.chat_template = "{% for m in messages %}{{ m.content }}" + special + "{% endfor %}"
    try:
        context = lm.apply_chat_template([{"role": "user", "content": f"Say {special} twice"}])
    finally:
        lm.tokenizer.chat_template = None
    tokens = lm.tok_encode(context)
    assert tokens == [*text_ids(lm.tokenizer, f"Say {special} twice"), lm.eot_token_id]
    assert lm._encode_pair(context, f" or {special}") == (tokens, text_ids(lm.tokenizer, f" or {special}"))


@pytest.mark.parametrize("name", ["josé", "x (2)", "a,b=[c]", "${oc.env:HOME}"])
def test_a_path_among_the_arguments_is_text(harness, name):
    assert composed("sample", [harness.sampler_override("policy.path", name)]).sampler.policy.path == name
    for text in ("null", None):
        assert composed("sample", [harness.sampler_override("block_length", text)]).sampler.block_length is None


def test_bad_input(harness):
    make = lambda **given: harness.UnmaskLM(**{"path": "example/stories", "device": "cpu", **given})
    for given, message in [
        ({"strategy": "treshold"}, "did you mean 'threshold'"),
        ({"treshold": 0.9}, "did you mean sampler.threshold"),
        ({"path": "example/nothing"}, "example/nothing"),
        ({"path": "example/stories_causal", "strategy": "confidence"}, "this one is causal; use leftmost"),
        ({"batch_size": 0}, "batch_size=0 and samples=128 must be at least 1"),
        ({"cache": "triple"}, "cache=triple must be one of prefix, dual"),
        ({"block_length": 300}, "more than the model's 256 positions"),
    ]:
        with pytest.raises(ValueError, match=message):
            make(**given)
    with pytest.raises(ValueError, match="more than the model's 256"):
        make(samples=2).loglikelihood(requests("loglikelihood", ("Once", " girl" * 300)))


def test_without_the_harness_it_says_how_to_install_it(monkeypatch):
    for name in [name for name in sys.modules if name == "lm_eval" or name.startswith("lm_eval.")]:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.delitem(sys.modules, "unmask.lm_eval", raising=False)
    with pytest.raises(SystemExit, match=r"pip install -e '.\[lm-eval\]'"):
        importlib.import_module("unmask.lm_eval")
