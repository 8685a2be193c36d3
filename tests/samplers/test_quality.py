"""Sources of the quality of committed tokens: their values on enumerable models, what they cost, files of heads, refusals."""

import json

import pytest
import torch
from torch import nn

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.fingerprint import KEY
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from model.quality import QualityHead
from samplers.quality import HeadQuality, LeaveOut, Quality, SeenProbability, bind, load_quality, save_quality
from samplers.settings import QualitySettings
from tests.enumerable import dependent_joint, from_joint, inconsistent, random_radd
from unmask.decoders import build_quality

LENGTH, VOCABULARY, MASK = 4, 2, 2
# A prompt of one token; committed positions: 1 and 3; 1, 2 and 3; 2.
CANVASES = torch.tensor([[0, 1, MASK, 0], [1, 1, 0, 0], [1, MASK, 1, MASK]])
COMMITTED = torch.tensor([[False, True, False, True], [False, True, True, True], [False, False, True, False]])


def observed(model, canvases=CANVASES, committed=COMMITTED, start=None, prompt_length=1):
    """The observation of these canvases: decoded from prompts whose committed positions were open."""
    environment = UnmaskingEnvironment(model, DecodeOptions(1, revise=True, max_steps=9))
    opened = committed | (canvases == model.mask_id)
    environment.reset(Prompts(canvases.masked_fill(opened, model.mask_id), prompt_length=prompt_length, start=start))
    nothing = torch.zeros(len(canvases))
    return environment.step(Decision(committed.long(), canvases, nothing, nothing))


def table_value(model, canvas, position, without=()):
    """log p(the token at `position` | the canvas with `without` masked), looked up."""
    state = [MASK if place in without else token for place, token in enumerate(canvas)]
    return float(model.table.detach()[int(model.state(torch.tensor([state]))), position, canvas[position]])


@pytest.mark.parametrize(
    "make", [lambda: from_joint(dependent_joint(VOCABULARY, LENGTH)), lambda: inconsistent(VOCABULARY, LENGTH)]
)
@pytest.mark.parametrize("parts", [3, 8])
def test_leave_out_in_as_many_parts_as_positions_is_exact(make, parts):
    model = make()
    observation = observed(model)
    found = LeaveOut(parts).log_quality(observation, COMMITTED, Draws(0))
    for row, position in COMMITTED.nonzero().tolist():
        expected = table_value(model, CANVASES[row].tolist(), position, without=(position,))
        assert float(found[row, position]) == pytest.approx(expected, abs=1e-6)
    assert (found[~COMMITTED] == 0).all() and (found <= 0).all()
    assert observation.environment.evaluations.tolist() == [2, 3, 1]  # one for each committed position


def test_leave_out_in_parts_masks_random_subsets_of_equal_size_together():
    model, subsets = inconsistent(VOCABULARY, LENGTH, seed=1), set()
    canvases, committed = torch.tensor([[0, 1, 0, 1]]).expand(40, -1), torch.ones(40, LENGTH, dtype=torch.bool)
    observation = observed(model, canvases, committed, prompt_length=0)
    found = LeaveOut(2).log_quality(observation, committed, Draws(0))
    assert observation.environment.evaluations.tolist() == [2] * 40
    pairs = [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)]
    for row in found.tolist():
        fitting = [pair for pair in pairs if all(
            row[place] == pytest.approx(table_value(model, [0, 1, 0, 1], place, pair), abs=1e-6) for place in pair)]  # fmt: skip
        rest = [tuple(sorted({0, 1, 2, 3} - set(pair))) for pair in fitting]
        assert set(fitting) & set(rest)  # both parts, which are disjoint, have two positions
        subsets.add(fitting[0])
    assert len(subsets) > 1
    again = LeaveOut(2).log_quality(observed(model, canvases, committed, prompt_length=0), committed, Draws(0))
    other = LeaveOut(2).log_quality(observed(model, canvases, committed, prompt_length=0), committed, Draws(1))
    assert torch.equal(found, again) and not torch.equal(found, other)


def test_the_seen_probability_shares_the_evaluation_of_the_step():
    model = inconsistent(VOCABULARY, LENGTH)
    observation = observed(model)
    found = SeenProbability().log_quality(observation, COMMITTED, Draws(0))
    observation.read(observation.writable, 1)
    assert observation.environment.evaluations.tolist() == [1, 1, 1]
    for row, position in COMMITTED.nonzero().tolist():
        expected = table_value(model, CANVASES[row].tolist(), position)
        assert float(found[row, position]) == pytest.approx(expected, abs=1e-6)
    assert (found[~COMMITTED] == 0).all()


def random_head(width=64, vocabulary=12, **sizes):
    torch.manual_seed(0)
    head = QualityHead(width, vocabulary, **{"width": 16, "heads": 2, **sizes}).requires_grad_(False).eval()
    for parameter in head.parameters():
        nn.init.normal_(parameter, std=0.5)
    return head


def text(rows, length=24, seed=0):
    """Canvases of random tokens, their first 6 the prompt, a third of the others open; and the committed positions."""
    generator = torch.Generator().manual_seed(seed)
    canvases = torch.randint(11, (rows, length), generator=generator)
    response = (torch.arange(length) >= 6).expand(rows, -1)
    opened = response & (torch.rand(rows, length, generator=generator) < 0.33)
    return canvases.masked_fill(opened, 11), response & ~opened


@pytest.mark.parametrize("seen_too", [False, True])
@pytest.mark.parametrize("blocks", [0, 1])
def test_a_head_reads_the_outputs_of_the_step(blocks, seen_too):
    model, head, (canvases, committed) = random_radd(), random_head(blocks=blocks, length=24, seen=seen_too), text(3)
    observation = observed(model, canvases, committed, prompt_length=6)
    found = HeadQuality(head).log_quality(observation, committed, Draws(0))
    observation.read(observation.writable, 1)
    assert observation.environment.evaluations.tolist() == [1, 1, 1]
    every = torch.ones_like(committed)
    hidden = model.hidden(canvases, every).unflatten(0, canvases.shape)
    given = (torch.arange(24) < 6).expand(3, -1)
    seen = torch.zeros(*committed.shape, 2)
    if seen_too:
        log_probs = model.log_probs(canvases)
        seen[committed] = torch.stack((log_probs.gather(2, canvases.unsqueeze(2))[..., 0], log_probs.amax(2)), 2)[
            committed
        ]
    inputs = (hidden, canvases, given, seen, committed)
    expected = nn.functional.logsigmoid(head(*inputs))
    assert torch.allclose(found[committed], expected, atol=1e-5) and (found[~committed] == 0).all()
    other = head(hidden, canvases, ~given, seen, committed)  # the prompt is an input
    assert (other - head(*inputs)).abs().min() > 1e-3
    if blocks:  # so are the other tokens
        other = head(hidden, canvases.masked_fill(given, 3), given, seen, committed)
        assert (other - head(*inputs)).abs().min() > 1e-5


@pytest.mark.parametrize("blocks", [0, 1])
def test_a_row_is_the_same_alone_padded_and_behind_its_prompt(blocks):
    model, head, (canvases, committed) = random_radd(), random_head(blocks=blocks, seen=True), text(4)
    quality = HeadQuality(head)
    whole = quality.log_quality(observed(model, canvases, committed, prompt_length=6), committed, Draws(0))
    for row in range(4):
        one = observed(model, canvases[row : row + 1], committed[row : row + 1], prompt_length=6)
        assert torch.equal(quality.log_quality(one, committed[row : row + 1], Draws(0)), whole[row : row + 1])
    response = observed(model, canvases, committed, prompt_length=6).response()
    behind = quality.log_quality(response, committed[:, 6:], Draws(0))
    assert torch.allclose(behind, whole[:, 6:], atol=1e-5)
    pad = nn.functional.pad
    start = torch.tensor([5, 5, 0, 5])
    longer, places = pad(canvases, (5, 0)), pad(committed, (5, 0))
    longer[2, :5] = torch.arange(5)
    padded = quality.log_quality(observed(model, longer, places, start, prompt_length=11), places, Draws(0))
    others = torch.tensor([0, 1, 3])
    assert torch.allclose(padded[others, 5:], whole[others], atol=1e-4)
    assert (padded[2, 5:] - whole[2]).abs().max() > 1e-3  # a longer prompt


@pytest.mark.parametrize("sizes", [{}, {"blocks": 0}, {"tokens": 0}, {"length": 24, "blocks": 2}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_files_rebuild_the_head(sizes, dtype, tmp_path):
    model = random_radd()
    head = random_head(**{"vocabulary": sizes.pop("tokens", 12), **sizes})
    bind(head, model)
    save_quality(head, tmp_path / "head", dtype)
    for path in (tmp_path / "head", tmp_path):
        if path == tmp_path:
            (tmp_path / "head").rename(tmp_path / "quality")  # of a run
        again = load_quality(path, model)
        assert again.config == head.config and not again.training
        for name, value in head.state_dict().items():
            kept = value if name == "rotary.inv_freq" else value.to(dtype).float()
            assert torch.equal(again.state_dict()[name], kept) and again.state_dict()[name].dtype == torch.float32
    hub = QualityHead.from_pretrained(tmp_path / "quality")
    assert hub.config.keys() >= {"hidden_size", "width"}


def test_a_head_of_another_model_is_refused(tmp_path):
    model, other = random_radd(), random_radd(vocabulary=7)
    wider = random_radd(width=128)
    model.model_id, other.model_id = "example/one", "example/two"
    head = random_head()
    bind(head, model)
    save_quality(head, tmp_path / "head")
    with pytest.raises(ValueError, match=r"the quality head .*head was trained on example/one, and example/two has other tokens, whose "
                       "hidden states mean something else; use the model that it was trained on, or train a head"):  # fmt: skip
        load_quality(tmp_path / "head", other)
    same_tokens = random_radd()
    same_tokens.backbone.output_layer.linear.bias.data += 1
    same_tokens.model_id = "example/three"
    with pytest.raises(ValueError, match="was trained on example/one, and example/three has other weights"):
        load_quality(tmp_path / "head", same_tokens)
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    del config[KEY]
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    assert load_quality(tmp_path / "head", other).hidden_size == 64  # nothing is known of it
    with pytest.raises(
        ValueError, match="reads hidden states of width 64 and this model's are 128 wide; use the model"
    ):
        load_quality(tmp_path / "head", wider)


def test_damaged_and_missing_files_are_one_sentence(tmp_path):
    model = random_radd()
    with pytest.raises(
        ValueError, match="holds no quality head: expected config.json and model.safetensors .* train-quality"
    ):
        load_quality(tmp_path, model)
    save_quality(random_head(), tmp_path / "head")
    config = json.loads((tmp_path / "head" / "config.json").read_text())
    for wrong, message in (
        ({"blocks": 2}, "has weights that do not fit its config.json"),
        ({"width": 12}, "width 12 must be a multiple of 2 \\* heads = 8"),
        ({"width": "wide"}, "config.json"),
    ):
        (tmp_path / "head" / "config.json").write_text(
            json.dumps(config | {"heads": 2 if "blocks" in wrong else 4} | wrong)
        )
        with pytest.raises(ValueError, match=message):
            load_quality(tmp_path / "head", model)
    (tmp_path / "head" / "config.json").write_text(json.dumps(config))
    (tmp_path / "head" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(ValueError, match="model.safetensors"):
        load_quality(tmp_path / "head", model)


def test_settings_choose_the_source(tmp_path):
    model = random_radd()
    assert isinstance(build_quality(QualitySettings(), model), SeenProbability)
    assert build_quality(QualitySettings(source="leave_out", parts=7), model) == LeaveOut(7)
    head = random_head()
    bind(head, model)
    save_quality(head, tmp_path)
    found = build_quality(QualitySettings(source="head", path=str(tmp_path)), model)
    assert isinstance(found, HeadQuality) and isinstance(found, Quality)
    with pytest.raises(
        ValueError, match="sampler.quality.source=head needs sampler.quality.path, a run of train-quality"
    ):
        build_quality(QualitySettings(source="head"), model)
    with pytest.raises(ValueError, match="sampler.quality.source=guess must be one of seen, leave_out, head"):
        QualitySettings(source="guess")
    with pytest.raises(ValueError, match="sampler.quality.parts=0 must be a whole number of at least 1"):
        QualitySettings(parts=0)
