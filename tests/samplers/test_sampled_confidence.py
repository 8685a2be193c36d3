"""Confidences after temperature, top-p and top-k, against Dream's own statements, one after the other, on its tiny checkpoint."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf

from dlm.draws import Draws
from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from load_model import load_model
from samplers.heuristics import SCORES, UNMASKING_RULES, AsSampled, Sampled
from samplers.loop import Strategy, sample
from samplers.settings import SamplerSettings
from training.usage import composed
from unmask.decoders import build_rule_decoder

DREAM = Path(__file__).parents[1] / "vectors" / "dream-tiny"
RULES = [TokenRule(0.2, 0.95), TokenRule(0.7, 0.8), TokenRule(1.5, 1.0, 7), TokenRule(0.0, 0.9), TokenRule()]


@pytest.fixture(scope="module")
def model():
    return load_model(DREAM)[0]


def canvases(model, rows=3, length=14):
    canvas = torch.full((rows, length), model.mask_id)
    canvas[:, :3] = torch.arange(3 * rows).view(rows, 3) + 5
    return canvas


def published(logits, temperature, top_p, top_k, x0, alg):
    """`sample_tokens` of Dream's generation_utils.py for logits [position, vocabulary]: the token (x0 where it is drawn) and its
    confidence."""
    if temperature > 0:
        logits = logits / temperature
    if top_p < 1:
        ordered, index = torch.sort(logits, descending=True)
        remove = torch.cumsum(F.softmax(ordered, dim=-1), dim=-1) > top_p
        remove[..., 1:] = remove[..., :-1].clone()
        remove[..., 0] = 0
        logits = logits.masked_fill(torch.zeros_like(remove).scatter(-1, index, remove), torch.finfo(logits.dtype).min)
    if top_k:
        least = torch.topk(logits, top_k)[0][..., -1, None]
        logits = logits.masked_fill(logits < least, torch.finfo(logits.dtype).min)
    probs = torch.softmax(logits, dim=-1)
    if temperature > 0:
        confidence = torch.gather(probs, -1, x0.unsqueeze(-1)).squeeze(-1)
    else:
        confidence, x0 = probs.max(dim=-1)
    if alg == "topk_margin":
        ordered, _ = torch.sort(probs, dim=-1, descending=True)
        confidence = ordered[:, 0] - ordered[:, 1]
    if alg == "entropy":
        confidence = torch.sum(probs * torch.log(probs + 1e-10), dim=-1)
    return confidence, x0


ALGORITHMS = {"maskgit_plus": "top_prob", "topk_margin": "margin", "entropy": "entropy"}


@pytest.mark.parametrize("token_sampler", RULES, ids=str)
@pytest.mark.parametrize("alg", ALGORITHMS)
def test_confidences_are_those_of_dreams_own_code(alg, token_sampler, model):
    observation = UnmaskingEnvironment(model, DecodeOptions(4)).reset(Prompts(canvases(model)))
    draws = Draws(5)
    tokens, _ = observation.draw(observation.masked, token_sampler, draws)
    logits = model.head(model.hidden(observation.tokens, observation.masked))
    confidence, x0 = published(
        logits, token_sampler.temperature, token_sampler.top_p, token_sampler.top_k, tokens[observation.masked], alg
    )
    seen = replace(observation, environment=Sampled(observation, token_sampler, draws))
    found = SCORES[ALGORITHMS[alg]](seen)[observation.masked]
    torch.testing.assert_close(found, confidence, atol=1e-5, rtol=1e-5)
    assert torch.equal(tokens[observation.masked], x0)
    at_one = SCORES[ALGORITHMS[alg]](observation)[observation.masked]
    assert torch.allclose(at_one, confidence, atol=1e-3) == (token_sampler == TokenRule() and alg != "maskgit_plus")


@pytest.mark.parametrize("alg", ALGORITHMS)
def test_decoding_writes_what_dreams_loop_writes(alg, model):
    """A step: confidences and tokens everywhere, the most confident positions keep theirs."""
    token_sampler, steps, canvas = (
        TokenRule(3.0, 0.95),
        4,
        canvases(model, length=11),
    )  # warm: no two confidences are within a tie
    rule = AsSampled(UNMASKING_RULES[{"topk_margin": "confidence"}.get(alg, ALGORITHMS[alg])](), token_sampler)
    found = sample(
        UnmaskingEnvironment(model, DecodeOptions(steps)), Strategy(rule, token_sampler), Prompts(canvas), seed=3
    ).tokens
    x, draws, rows = canvas.clone(), Draws(3), torch.arange(len(canvas))
    for step in range(steps):
        observation = UnmaskingEnvironment(model, DecodeOptions(steps)).reset(Prompts(x))
        observation.environment.row_step = torch.full_like(rows, step)
        drawn, _ = observation.environment.draw(observation.masked, token_sampler, draws)
        for row in rows.tolist():
            positions = (x[row] == model.mask_id).nonzero().squeeze(1)
            mask = torch.zeros_like(x[row : row + 1], dtype=torch.bool)
            mask[0, positions] = True
            logits = model.head(model.hidden(x[row : row + 1], mask))
            confidence, x0 = published(logits, 3.0, 0.95, 0, drawn[row, positions], alg)
            count = 8 // steps
            chosen = confidence.topk(count).indices
            x[row, positions[chosen]] = x0[chosen]
    assert torch.equal(found, x)


def test_the_setting_is_of_rules_that_read_confidences(model):
    settings = SamplerSettings(strategy="entropy", confidence="sampling", temperature=0.2)
    strategy = build_rule_decoder(settings, model)
    assert isinstance(strategy.rule, AsSampled) and strategy.rule.token_sampler == strategy.token_sampler == TokenRule(
        0.2
    )
    settings.strategy = "threshold"
    assert build_rule_decoder(settings, model).rule == AsSampled(
        UNMASKING_RULES["threshold"](0.9), strategy.token_sampler
    )
    settings.confidence = "model"
    assert build_rule_decoder(settings, model).rule == UNMASKING_RULES["threshold"](0.9)
    for name, confidence, message in (
        ("random", "sampling", "random reads none"),
        ("entropy", "mine", "'mine' is unknown"),
    ):
        settings.strategy, settings.confidence = name, confidence
        with pytest.raises(ValueError, match=f"sampler.confidence=.*{message}"):
            build_rule_decoder(settings, model)


def test_ends_that_are_written_last_stay_last(model):
    """Of the token that is drawn, as of the best one."""
    canvas, token_sampler = canvases(model, 8), TokenRule(1.0)
    ends = tuple(range(0, 60))
    observation = UnmaskingEnvironment(model, DecodeOptions(4, last_tokens=ends)).reset(Prompts(canvas))
    seen = replace(observation, environment=Sampled(observation, token_sampler, Draws(2)))
    readout = seen.read(observation.masked, 1)
    drawn = readout.top_tokens[..., 0][observation.masked]
    demoted = readout.top_log_probs[..., 0][observation.masked] < -1e3
    assert demoted.any() and not demoted.all()
    assert torch.equal(demoted, (drawn < 60))
    assert OmegaConf.select(composed("sample", []), "sampler.confidence") == "model"
