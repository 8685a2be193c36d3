"""`import unmask`: what a user in a notebook calls."""

import doctest
import json
import subprocess
import sys
import time

import pytest
import torch
from torch import nn

import rewards.functions
import unmask
import unmask.api
from dlm.draws import Draws
from dlm.observation import Decision, Observation
from dlm.token_rule import TokenRule
from policy.networks import DitConfidence
from samplers.heuristics import UNMASKING_RULES, Confident, Leftmost
from samplers.loop import StepDecoder, Strategy
from samplers.samples import Samples
from tests.enumerable import RandomLM


@pytest.fixture(scope="module")
def model():
    return unmask.load("example/stories", device="cpu")


@pytest.fixture(scope="module")
def board():
    return unmask.load("example/sudoku6", device="cpu")


QUICK = {"strategy": "confidence", "steps": 4, "length": 16}


def test_import_is_lazy_and_names_what_it_has():
    code = "import sys, unmask; unmask.__doc__; print('torch' in sys.modules, 'transformers' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.split() == ["False", "False"]
    assert sorted(unmask.__all__) == sorted(unmask.MODULES)
    assert all(getattr(unmask, name) is not None for name in unmask.__all__)
    with pytest.raises(AttributeError, match="no attribute 'smaple'; it has .*sample"):
        unmask.smaple  # noqa: B018


@pytest.mark.parametrize("module", [unmask.api, rewards.functions])
def test_examples_in_docstrings_run(module):
    found = doctest.testmod(module)
    assert found.attempted and not found.failed


def test_a_prompt_decodes_as_it_does_alone_whatever_stands_beside_it(model):
    prompts = ["Once upon a time", "The dog", "A small cat sat", "The dog"]
    together = unmask.sample(model, prompts, batch_size=3, **QUICK)
    assert [text.startswith(prompt) for text, prompt in zip(together.texts, prompts, strict=True)] == [True] * 4
    alone = unmask.sample(model, prompts[1], **QUICK)
    again = unmask.sample(model, [prompts[1]] * 2, num_samples=1, **QUICK)
    assert alone.texts == again.texts[:1] and again.texts[0] != again.texts[1]
    one_by_one = unmask.sample(model, [prompts[1]] * 2, batch_size=1, **QUICK)
    assert one_by_one.texts == again.texts
    assert (again.samples.forwards, one_by_one.samples.forwards) == (4, 8)  # costs of batches are added up
    few = unmask.sample(model, [prompts[0], prompts[1]], batch_size=1, **QUICK)
    assert few.texts == together.texts[:2]
    assert together.nfe.tolist() == [4] * 4 and together.unmasked_at.shape == (4, 16)


def test_a_mask_in_token_ids_is_text_and_stays(model):
    ids = [5, model.mask_id, 7]
    (tokens,) = unmask.sample(model, ids, **QUICK).tokens.tolist()
    assert tokens[:3] == ids and model.mask_id not in tokens[3:]


def test_templates_suffixes_and_copies(model):
    out = unmask.sample(model, template="the [MASK:3] and [MASK:2].", strategy="confidence", steps=2, num_samples=2)
    assert len(out.texts) == 2 and all(text.startswith("the") and " and" in text for text in out.texts)
    assert unmask.sample(model, "One", suffix=" the end.", **QUICK).texts[0].endswith(" the end.")
    with pytest.raises(ValueError, match="template stands for the whole canvas"):
        unmask.sample(model, "One", template="[MASK:3]")
    with pytest.raises(ValueError, match="prompts is empty"):
        unmask.sample(model, [])


class FromLeft:
    """An unmasking rule of a user: from the left."""

    def choose(self, observation: Observation, draws: Draws):
        return Leftmost().choose(observation, draws)


class Counting(FromLeft):
    """The same rule, which counts its steps."""

    steps = 0

    def choose(self, observation: Observation, draws: Draws):
        self.steps += 1
        return super().choose(observation, draws)


def test_a_strategy_is_a_name_settings_a_policy_a_rule_or_a_decoder(model):
    by_name = unmask.sample(model, "The dog", **QUICK)
    settings = unmask.SamplerSettings(strategy="confidence", steps=4)
    assert unmask.sample(model, "The dog", strategy=settings, length=16).texts == by_name.texts
    assert unmask.sample(model, "The dog", strategy=Confident(), steps=4, length=16).texts == by_name.texts
    decoder = Strategy(Confident(), TokenRule())
    assert unmask.sample(model, "The dog", strategy=decoder, steps=4, length=16).texts == by_name.texts
    own = unmask.sample(model, "The dog", strategy=FromLeft(), steps=4, length=16)
    assert own.texts == unmask.sample(model, "The dog", strategy="leftmost", steps=4, length=16).texts
    torch.manual_seed(0)
    policy = DitConfidence().eval()
    assert isinstance(policy, nn.Module)
    assert unmask.sample(model, "The dog", strategy=policy, steps=4, length=16).nfe.tolist() == [4]
    with pytest.raises(ValueError, match="strategy=3 is of type int, which has neither `decode`"):
        unmask.api.decoder_of.__wrapped__(3, settings, model, None, 0, None)  # without the check of types under pytest
    with pytest.raises(ValueError, match=r"sampler.stesp is unknown; did you mean sampler.steps\?"):
        unmask.sample(model, "The dog", stesp=3)


def longest(texts: list[str]) -> list[float]:
    return [float(len(text)) for text in texts]


def test_a_reward_is_a_function_of_texts(model):
    best = {"strategy": "best_of_n", "steps": 4, "length": 16, "guide": {"samples": 4}}
    found = unmask.sample(model, "The dog", reward=longest, **best)
    shortest = unmask.sample(model, "The dog", reward=lambda texts: [-x for x in longest(texts)], **best)
    assert len(found.responses[0]) > len(shortest.responses[0]) and found.nfe.tolist() == [16]
    steered = unmask.sample(model, "The dog", strategy="fk", reward=longest, steps=4, length=16, smc={"particles": 3})
    assert steered.log_z is not None and steered.nfe.tolist()[0] >= 4
    with pytest.raises(
        ValueError, match=r"the reward two returned values of shape \[2\] for 4 texts; return one number for each"
    ):

        def two(texts):
            return [0.0, 1.0]

        unmask.sample(model, "The dog", reward=two, **best)


def test_what_a_users_function_raises_is_theirs(model):
    def broken(texts):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        unmask.sample(model, "The dog", strategy="best_of_n", reward=broken, steps=4, length=16)


def test_a_stream_yields_every_step_and_ends_with_its_reader(model):
    steps = list(unmask.stream(model, ["The dog", "Once upon a time"], **QUICK))
    assert [int(step.open.sum()) for step in steps][-1] == 0 and len(
        steps
    ) == 8  # two lengths: two batches of four steps
    counting = Counting()
    stream = unmask.stream(model, "The dog", strategy=counting, steps=12, length=16)
    first = next(stream)
    time.sleep(0.2)  # the decoding goes on until it waits with the next step
    assert int(first.nfe) == 1 and int(first.open.sum()) == int((first.tokens == model.mask_id).sum()) == 12
    stream.close()
    assert counting.steps <= 3  # the step that was read, and those that had begun
    with pytest.raises(ValueError, match="strategy 'nothing' is unknown"):
        next(unmask.stream(model, "The dog", strategy="nothing"))


def test_measures_and_the_replay_page(model, board, tmp_path):
    out = unmask.sample(model, ["Once upon a time"] * 2, **QUICK)
    measured = out.metrics()
    assert (
        measured["nfe"] == 4
        and measured["gen_ppl"] is None
        and measured["generated"] == sum(int((row >= 0).sum()) for row in out.unmasked_at)
    )
    assert out.metrics(judge="example/stories_causal")["gen_ppl"] > 1
    boards = unmask.sample(board, [".3....4...3..21..4..5..6.......1..4."] * 3, strategy="threshold", temperature=0.0)
    assert boards.metrics()["solve_rate"] == 1.0
    page = boards.save_replay(tmp_path / "boards.html").read_text()
    assert page.startswith("<!DOCTYPE html") or "<html" in page


def test_particles_are_joined_over_batches():
    model = RandomLM(5, max_length=6)
    reward = lambda texts: [float(len(text)) for text in texts]
    with pytest.raises(ValueError, match="tokenizer"):
        unmask.sample(model, None, strategy="fk", reward=reward)
    out = unmask.sample(model, None, strategy="random", steps=2, num_samples=5, batch_size=2)
    assert isinstance(out.samples, Samples) and out.tokens.shape == (5, 6)
    assert out.texts[0] == " ".join(map(str, out.tokens[0].tolist()))


class Wrong:
    """A rule that selects the first position, which belongs to the prompt."""

    def choose(self, observation, draws):
        order = torch.zeros_like(observation.tokens)
        order[:, 0] = 1
        return order, torch.zeros(len(order))


class Shapeless(Wrong):
    def choose(self, observation, draws):
        return observation.writable[:, :1].long(), torch.zeros(len(observation.tokens))


class NoProbability(Wrong):
    def choose(self, observation, draws):
        return observation.writable.long()


class OwnDecoder(StepDecoder):
    """A decoder of a user, whose decision selects the first position."""

    def decide(self, observation, draws):
        order, log = Wrong().choose(observation, draws)
        return Decision(order, observation.tokens, log, log)


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        (Wrong(), "the unmasking rule Wrong selected position 0 of sample 0, which is not open"),
        (OwnDecoder(), "the decoder OwnDecoder selected position 0 of sample 0, which is not open"),
        (Shapeless(), r"the unmasking rule Shapeless returned ranks of shape \[1, 1\] and type torch.int64"),
        (NoProbability(), "`choose` of the unmasking rule NoProbability returned Tensor; return ranks and"),
    ],
)
def test_a_choice_that_no_canvas_has_is_one_sentence(model, strategy, message):
    with pytest.raises(ValueError, match=message):
        unmask.sample(model, "The dog", strategy=strategy, steps=4, length=16)


def test_a_registered_rule_is_known_by_its_name_here_and_to_the_commands(tmp_path, monkeypatch):
    monkeypatch.setitem(UNMASKING_RULES, "from_left", FromLeft)  # taken away again at the end
    del UNMASKING_RULES["from_left"]
    unmask.register("from_left", FromLeft)
    model = unmask.load("example/stories", device="cpu")
    out = unmask.sample(model, "Once", strategy="from_left", steps=3, length=6)
    at = out.unmasked_at[0].tolist()
    assert at == sorted(at) and max(at) > 0
    words = [
        "--strategy",
        "from_left",
        "--steps",
        "3",
        "--length",
        "6",
        "--prompt",
        "Once",
        "--no-eval",
        "--out",
        str(tmp_path / "out"),
    ]
    unmask.main(["sample", *words])
    record = json.loads((tmp_path / "out" / "samples.jsonl").read_text().splitlines()[0])
    assert record["tokens"] == out.samples.tokens[0].tolist()
    with pytest.raises(ValueError, match="'dilated' exists already; give another name"):
        unmask.register("dilated", FromLeft)
    with pytest.raises(ValueError, match="'broken' makes a list, which has no method `choose`"):
        unmask.register("broken", list)


def test_a_keyword_changes_one_field_of_nested_settings(model):
    settings = unmask.SamplerSettings.of({"strategy": "best_of_n", "guide": {"samples": 3, "k": 5}, "steps": 2})
    out = unmask.sample(
        model, "The dog", strategy=settings, reward=lambda texts: [0.0 for _ in texts], guide={"k": 4}, length=12
    )
    assert out.nfe.tolist() == [3 * 2]


def test_a_reward_does_not_read_boards(board):
    for strategy in ("fk", "best_of_n"):
        with pytest.raises(ValueError, match="a reward reads text and .* is a model of boards"):
            unmask.sample(
                board,
                "." * 36,
                strategy=strategy,
                reward=len,
                steps=2,
                **({"guide": {"k": 3}} if strategy != "fk" else {}),
            )
