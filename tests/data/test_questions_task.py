"""Training prompts out of question data sets: mixtures, order, what is left out, what is refused, and how answers are judged."""

import pytest
import torch

from data.questions import encode
from data.settings import QuestionSettings
from data.tasks import QuestionTask
from load_model import load_model
from tests.tiny_text import backbone, questions


@pytest.fixture(scope="module", params=["llada", "dream"])
def model(request, tmp_path_factory):
    return load_model(backbone(request.param, tmp_path_factory.mktemp("model") / request.param))[0]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return questions(tmp_path_factory.mktemp("data"))


def task(model, directory, seed=0, **changes):
    settings = {"datasets": ["gsm8k", "math"], "data_dir": str(directory), "count": None, "answer_length": 8,
                "max_prompt_length": None, "valid_rows": 3, "math_by": "verify", "unsandboxed": False}  # fmt: skip
    return QuestionTask(model, QuestionSettings.of(settings | changes, strict=False), seed)


def test_prompts_are_padded_on_the_left_and_know_their_question(model, directory):
    asked = task(model, directory)
    prompts = asked.prompts(5, 0)
    for row, number in enumerate(prompts.rows["question"].tolist()):
        start, end = int(prompts.start[row]), prompts.prompt_length
        assert prompts.canvas[row, start:end].tolist() == encode(model, asked.questions[number].prompt)
        assert (prompts.canvas[row, end:] == model.mask_id).all() and prompts.canvas.shape[1] == end + 8
        name = ["gsm8k", "math"][int(prompts.rows["dataset"][row])]
        assert ("math expert" in asked.questions[number].prompt) == (name == "math")
    assert model.tokenizer.decode(prompts.canvas[0, int(prompts.start[0])]) == "<user>"  # the chat template
    group = prompts.repeat(2)
    assert group.rows["question"].tolist() == [n for n in prompts.rows["question"].tolist() for _ in range(2)]


def test_an_epoch_draws_the_union_once_without_what_is_held_out(model, directory):
    asked = task(model, directory)
    held = set(asked.valid.rows["question"].tolist())
    drawn = [n for _ in range(11) for n in asked.prompts(1, 0).rows["question"].tolist()]
    assert len(held) == 3 and sorted(drawn + list(held)) == list(range(14))
    assert {asked.dataset_of[n] for n in drawn} == {0, 1}
    again = [n for _ in range(11) for n in asked.prompts(1, 0).rows["question"].tolist()]
    assert sorted(again) == sorted(drawn) and again != drawn
    assert set(task(model, directory, seed=1).valid.rows["question"].tolist()) == held  # the same for every seed


def test_the_place_in_the_stream_is_its_state(model, directory):
    one, other = task(model, directory), task(model, directory)
    one.prompts(4, 0)
    other.load_state_dict(one.state_dict())
    for _ in range(5):
        assert torch.equal(one.prompts(3, 0).canvas, other.prompts(3, 1).canvas)
    with pytest.raises(ValueError, match="resume with the same data"):
        task(model, directory, count=2, valid_rows=1).load_state_dict(one.state_dict())


def test_long_prompts_are_left_out_and_counted_never_cut(model, directory):
    whole = task(model, directory)
    lengths = [len(encode(model, question.prompt)) for question in whole.questions]
    longest = sorted(lengths)[-3]
    asked = task(model, directory, max_prompt_length=longest)
    kept = [question.prompt for question in whole.questions if len(encode(model, question.prompt)) <= longest]
    assert [question.prompt for question in asked.questions] == kept and 0 < sum(asked.left_out.values()) < 14
    told = ", ".join(f"{number} of {name}" for name, number in asked.left_out.items())
    assert str(asked).endswith(f"left out as longer than data.max_prompt_length: {told}")
    assert str(whole) == "questions: 8 of gsm8k, 6 of math; 3 of them held out"


def test_what_does_not_fit_shows_its_row(model, directory, tmp_path):
    with pytest.raises(
        ValueError,
        match=r"gsm8k row 7 \(.*Why\?'\) has \d+ tokens, with 300 to write more than the model's 512; lower data.max_",
    ):
        task(model, directory, answer_length=300)


def test_a_question_that_names_the_mask_is_asked_in_letters(model):
    tokens = encode(model, "what is <mask> + 1?")
    assert model.mask_id not in tokens and "<mask> + 1?" in model.tokenizer.decode(tokens)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": []}, r"datasets=\[\] must be a list of at least 1"),
        ({"datasets": ["math", "math"]}, "each once"),
        ({"datasets": ["maths"]}, "data set 'maths' is unknown"),
        ({"math_by": "guess"}, "math_by=guess must be one of verify, string"),
        ({"valid_rows": 14}, "leaves none of 14 questions"),
        ({"data_dir": "/nowhere"}, "/nowhere holds none of"),
    ],
)
def test_what_is_refused(model, directory, changes, message):
    with pytest.raises(ValueError, match=message):
        task(model, directory, **changes)


def test_a_model_without_a_tokenizer_is_refused(model, directory):
    import copy

    bare = copy.copy(model)
    bare.tokenizer = None
    with pytest.raises(ValueError, match="questions are text; add tokenizer.json"):
        task(bare, directory)


def test_answers_end_at_their_end_and_are_judged_by_their_own_data_set(model, directory):
    asked = task(model, directory)
    encoded = lambda text: model.tokenizer.encode(text, add_special_tokens=False)
    end, mask = model.tokenizer.eos_token_id, model.mask_id
    rows = []
    for text, tail in (("is 7", [end, *encoded("1")]), ("is 1", [mask, mask]), ("4/2", []), ("is 7", [end])):
        own = encoded(text) + tail
        rows.append([5, 5, *own, *[end] * (8 - len(own))])
    tokens = torch.tensor(rows)
    assert asked.written(tokens) == ["is 7", "is 1", "4/2", "is 7"]
    # gsm8k's question 1 has the answer 7, question 0 the answer 1; math's question 4 wants a box
    number = torch.tensor([1, 0, 8 + 4, 0])
    assert asked.right(tokens, {"question": number}).tolist() == [1, 1, 0, 0]


@pytest.mark.parametrize("by", ["verify", "string"])
def test_answers_of_math_compare_as_the_configuration_says(model, directory, by):
    """Question 4 wants 4/2: a box with 2 is as much, and spelt otherwise."""
    asked = task(model, directory, math_by=by, answer_length=24)
    written = model.tokenizer.encode(r"\boxed{2}<end>", add_special_tokens=False)
    tokens = torch.tensor([written + [0] * (24 - len(written))])
    assert asked.right(tokens, {"question": torch.tensor([8 + 4])}).tolist() == [by == "verify"]


def test_answers_end_with_their_turn_as_in_an_evaluation(model, directory, monkeypatch):
    """The token of a turn's end is no text, and what was written behind it is not read."""
    monkeypatch.setattr("dlm.ends.TURNS", ("<eot>",))
    asked = task(model, directory)
    row = model.tokenizer.encode("is 7<eot>is 1", add_special_tokens=False)[:8]
    assert asked.written(torch.tensor([row])) == ["is 7"]


def test_there_are_no_texts_to_reveal(model, directory):
    asked = task(model, directory)
    with pytest.raises(ValueError, match="no known text"):
        asked.texts(1, 0)
    with pytest.raises(ValueError, match="use algorithm=grpo or ppo"):
        asked.clean(1, 0)
