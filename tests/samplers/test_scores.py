"""SEDD's samplers: the dense published formula's law, by enumeration; with exact scores, the data's law; prompts; what is
refused. And the rest of the samplers on a SEDD."""

from itertools import product
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import plain_sedd
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.masked_lm import SeddLM
from dlm.noise import GeometricNoise
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from load_model import load_model
from policy.networks import DitConfidence
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import StepDecoder, Strategy, sample
from samplers.names import PREDICTORS
from samplers.scores import ScoreDecoder, absorbing_change, noise_steps, uniform_change
from tests.enumerable import NOISES, fits, random_sedd

VECTORS = Path(__file__).parents[1] / "vectors" / "sedd-tiny"


def normalised(weights):
    weights = weights.double().clamp(min=0)
    return weights / weights.sum(-1, keepdim=True)


def dense_law(model, predictor, steps, canvas):
    """{finished canvas: probability}, from the dense published formula: a Markov chain over all canvases."""
    columns, absorbing = model.backbone.columns, model.graph == "absorb"
    mask = model.mask_id
    alive = {}
    choices = [range(columns) if token == mask and not absorbing else [token] for token in canvas]
    for start in product(*choices):
        alive[start] = 1 / len(list(product(*choices)))
    for step in noise_steps(model.noise, predictor, steps):
        states = torch.tensor(list(alive))
        score = model.backbone(states, torch.full((len(states),), step.sigma)).double().exp()
        drop = torch.tensor(step.drop, dtype=torch.float64)
        weights = plain_sedd.step_weights(score, states, model.graph, drop, step.slope, step.last)
        if weights.shape[-1] < columns:
            weights = nn.functional.pad(weights, (0, 1))
        chances = normalised(weights)
        following = {}
        for (state, weight), row in zip(alive.items(), chances, strict=True):
            options = [
                [(t, float(row[i, t])) for t in range(columns) if row[i, t] > 0]
                if canvas[i] == mask
                else [(canvas[i], 1.0)]
                for i in range(len(state))
            ]
            for combination in product(*options):
                after, chance = tuple(t for t, _ in combination), weight
                for _, p in combination:
                    chance *= p
                following[after] = following.get(after, 0.0) + chance
        alive = following
    return alive


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
@pytest.mark.parametrize("prompt", [{}, {1: 2}], ids=["no prompt", "around a prompt"])
def test_the_law_is_that_of_the_dense_formula(graph, predictor, noise, prompt):
    model = random_sedd(graph, noise)
    canvas = [prompt.get(i, model.mask_id) for i in range(3)]
    law = dense_law(model, predictor, 3, canvas)
    assert len(law) == 3 ** (3 - len(prompt))
    fits(
        ScoreDecoder(predictor)
        .decode(model, Prompts(torch.tensor(canvas).expand(20_000, -1)), DecodeOptions(3))
        .tokens,
        law,
    )


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_steps_begin_at_the_noise_that_the_canvas_has(predictor, noise, monkeypatch):
    """The noise that the published loop gives the model, and what it takes away in each step."""
    model, published = random_sedd("absorb", noise), []

    def score_of(tokens, sigma):
        published.append([float(sigma[0])])
        return torch.zeros(*tokens.shape, model.mask_id + 1)

    def weights_of(score, tokens, graph, drop, slope, last):
        published[-1] += [float(drop), slope or 0.0, last]
        return score

    monkeypatch.setattr(plain_sedd, "step_weights", weights_of)
    plain_sedd.sample(score_of, model.noise, "absorb", predictor, torch.full((1, 2), model.mask_id), 5)
    found = [[step.sigma, step.drop, step.slope or 0.0, step.last] for step in noise_steps(model.noise, predictor, 5)]
    assert len(found) == 6 and found == [pytest.approx(step, rel=1e-3) for step in published]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_the_probability_of_each_change_is_that_of_the_dense_formula(graph, predictor, noise):
    """To rounding, at every canvas and step; also where the dense weights are negative."""
    model = random_sedd(graph, noise, spread=1.0, lift=2.0)
    columns, clipped = model.backbone.columns, False
    states = torch.tensor(list(product(range(columns), repeat=3)))
    for step in noise_steps(model.noise, predictor, 4):
        sigma = torch.full((len(states),), step.sigma)
        log_score = model.backbone(states, sigma)
        drop = torch.tensor(step.drop, dtype=torch.float64)
        dense = plain_sedd.step_weights(
            log_score.double().exp(), states, graph, drop, step.slope, step.last and graph == "absorb"
        )
        clipped |= bool((dense < 0).any())
        expected = normalised(dense)
        if graph == "absorb":
            here = states == model.mask_id
            scores = log_score[here]
            scores[:, -1] = -torch.inf
            weights, chance = absorbing_change(scores, step)
        else:
            here = torch.ones_like(states, dtype=torch.bool)
            own = states[here].unsqueeze(1)  # what the head says of the token that stands there means nothing
            weights, chance = uniform_change(log_score[here].scatter(1, own, 3.0), states[here], step)
        token = torch.where(chance[:, None] > 0, weights.double().softmax(1), 0.0) * chance[:, None]
        own = states[here].unsqueeze(1)
        found = token.scatter_add(1, own, 1 - chance[:, None])
        found = found[:, : expected.shape[-1]]
        assert (found - expected[here]).abs().max() < 2e-5
        if graph == "absorb" and not step.last:  # what is written stays
            assert (expected[~here].gather(1, states[~here].unsqueeze(1)) == 1).all()
    if (graph, predictor, noise) == ("absorb", "euler", "loglinear"):
        assert clipped


class ExactScores(SeddLM):
    """The scores of a known law of one token."""

    def __init__(self, law, graph, noise):
        nn.Module.__init__(self)
        self.law, self.graph, self.noise = law, graph, noise
        self.vocab_size, self.mask_id = len(law) + (graph == "absorb"), len(law)
        self.max_length, self.hidden_size = 1, 2

    def hidden_rows(self, tokens, read, sigma):
        return torch.stack((tokens[read].float(), sigma), 1)

    def head(self, hidden):
        token, sigma = hidden.unbind(1)
        if self.graph == "absorb":
            return nn.functional.pad(self.law.log() - torch.expm1(sigma).log()[:, None], (0, 1), value=-torch.inf)
        kept = (-sigma)[:, None].exp()
        noised = kept * self.law + (1 - kept) / len(self.law)
        return (noised / noised.gather(1, token.long().unsqueeze(1))).log()

    def log_scale(self, sigma):
        return torch.zeros_like(sigma)


@pytest.mark.parametrize("steps", [1, 5])
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_with_exact_scores_the_analytic_sampler_gives_the_law_of_the_data(graph, steps):
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    model = ExactScores(law, graph, GeometricNoise(1e-3, 6.0))  # at 20 float32 scores tell nothing
    tokens = (
        ScoreDecoder("analytic")
        .decode(model, Prompts(torch.full((20_000, 1), model.mask_id)), DecodeOptions(steps))
        .tokens
    )
    fits(tokens, {(token,): float(p) for token, p in enumerate(law)})


@pytest.mark.parametrize("predictor", PREDICTORS)
def test_untrained_sums_are_those_of_exact_scores(predictor):
    """A model that was trained by the normalised scores only: its sums do not matter, and its tokens are its own."""
    law = torch.tensor([0.5, 0.3, 0.15, 0.05])
    exact = ExactScores(law, "absorb", GeometricNoise(1e-3, 6.0))
    drifted = ExactScores(law, "absorb", GeometricNoise(1e-3, 6.0))
    drifted.head = lambda hidden: exact.head(hidden) + 3.0
    blank = torch.full((2_000, 1), exact.mask_id)
    expected = ScoreDecoder(predictor).decode(exact, Prompts(blank), DecodeOptions(8))
    early = ScoreDecoder(predictor).decode(drifted, Prompts(blank), DecodeOptions(8)).unmasked_at.double().mean()
    assert early < 0.8 * expected.unmasked_at.double().mean()
    drifted.has_sums = False
    assert torch.equal(
        ScoreDecoder(predictor).decode(drifted, Prompts(blank), DecodeOptions(8)).tokens, expected.tokens
    )


@pytest.mark.parametrize("name", ["latex_sft", "latex_rl"])
@pytest.mark.parametrize("predictor", PREDICTORS)
def test_the_shipped_models_write_step_by_step(name, predictor):
    """On the log-linear schedule each of 8 analytic steps writes an eighth of the canvas, on average."""
    model = load_model(Path(__file__).parents[2] / "example" / name)[0]
    written = (
        ScoreDecoder(predictor).decode(model, Prompts(torch.full((8, 64), model.mask_id)), DecodeOptions(8)).unmasked_at
    )
    shares = torch.bincount(written.flatten(), minlength=9) / written.numel()
    assert float(shares.max()) < (0.2 if predictor == "analytic" else 0.4)


@pytest.mark.parametrize("predictor", PREDICTORS)
@pytest.mark.parametrize("graph", ["absorb", "uniform"])
def test_prompts_stay_and_a_row_does_not_depend_on_its_batch(graph, predictor):
    model = random_sedd(graph, vocabulary=9, length=12)
    canvas = torch.full((5, 12), model.mask_id)
    canvas[:, :3], canvas[:, -2:], canvas[1:3, 6] = 4, 7, 8
    whole = ScoreDecoder(predictor).decode(model, Prompts(canvas), DecodeOptions(6), seed=3)
    written = canvas == model.mask_id
    assert torch.equal(whole.tokens[~written], canvas[~written]) and torch.equal(whole.prompt, ~written)
    assert int(whole.tokens.max()) < 9 and torch.equal(whole.unmasked_at >= 0, written)
    parts = [
        ScoreDecoder(predictor).decode(model, Prompts(canvas[i]), DecodeOptions(6), seed=3, row_id=torch.tensor(i))
        for i in ([0], [4, 2], [1, 3])
    ]
    tokens = torch.cat([part.tokens for part in parts])[[0, 3, 2, 4, 1]]
    assert torch.equal(tokens, whole.tokens)
    assert (whole.evaluations <= 7).all() and (graph == "absorb" or bool((whole.evaluations == 7).all()))


def test_rows_whose_last_mask_is_gone_are_not_evaluated():
    model = random_sedd(vocabulary=5, length=4, lift=2.0)
    canvas = torch.full((64, 4), model.mask_id)
    canvas[0] = 1
    samples = ScoreDecoder("analytic").decode(model, Prompts(canvas), DecodeOptions(50))
    assert samples.evaluations[0] == 0 and samples.rows_evaluated == int(samples.evaluations.sum())
    assert samples.evaluations.float().mean() < 48
    assert torch.equal(samples.unmasked_at.amax(1)[1:] + 1, samples.evaluations[1:])


def test_what_cannot_be_sampled_is_refused():
    model = random_sedd(length=4)
    blank = torch.full((1, 4), model.mask_id)
    with pytest.raises(ValueError, match="predictor='tweedie' is unknown; use one of euler, analytic"):
        ScoreDecoder("tweedie").decode(model, Prompts(blank), DecodeOptions(2))
    with pytest.raises(ValueError, match="steps=0 must be at least 1"):
        ScoreDecoder("euler").decode(model, Prompts(blank), DecodeOptions(0))
    with pytest.raises(ValueError, match="5 positions, more than the model's 4"):
        ScoreDecoder("euler").decode(model, Prompts(torch.full((1, 5), model.mask_id)), DecodeOptions(2))
    uniform = random_sedd("uniform", length=4)
    environment = UnmaskingEnvironment(uniform, DecodeOptions(2))
    with pytest.raises(ValueError, match="uniform graph, which has no masks"):
        sample(
            environment,
            Strategy(UNMASKING_RULES["direct"](), TokenRule()),
            Prompts(torch.full((1, 4), uniform.mask_id)),
        )


# ------------------------------------------------------------------------------------ as any other masked model


class Watching(StepDecoder):
    """A strategy whose every readout is compared with a fresh evaluation of the canvas as it stands."""

    def __init__(self, strategy, model):
        self.strategy, self.model, self.compared = strategy, model, 0

    def decide(self, observation, draws):
        decision = self.strategy.decide(observation, draws)
        readout = observation.read(observation.writable, 2)
        fresh = self.model.log_probs(observation.tokens).topk(2, dim=-1)
        here = observation.writable
        assert (readout.top_log_probs[here] - fresh.values[here]).abs().max() < 1e-4
        self.compared += int(here.sum())
        return decision


def strategies():
    torch.manual_seed(0)
    policy = PolicyUnmasker(DitConfidence().eval(), "fixed")
    return {name: rule() for name, rule in UNMASKING_RULES.items()} | {"policy": policy}


@pytest.mark.parametrize("name", strategies())
@pytest.mark.parametrize("block", [None, 4], ids=["whole", "blocks"])
def test_every_strategy_reads_the_model_at_the_noise_of_the_canvas(name, block):
    """Also rows that did not change while others did, whose noise did not either."""
    model = load_model(VECTORS)[0]
    canvas = torch.full((4, 16), model.mask_id)
    canvas[1, :3], canvas[2, 5:9] = 5, 11
    watching = Watching(Strategy(strategies()[name], TokenRule()), model)
    samples = sample(UnmaskingEnvironment(model, DecodeOptions(8, block)), watching, Prompts(canvas))
    assert watching.compared > 40
    assert not (samples.tokens == model.mask_id).any()
    assert torch.equal(samples.tokens[samples.prompt], canvas[samples.prompt])


@pytest.mark.parametrize("name", ["direct", "confidence", "policy"])
def test_the_noise_of_a_padded_row_is_that_of_the_row_alone(name):
    model = load_model(VECTORS)[0]
    canvas = torch.full((3, 16), model.mask_id)
    canvas[:, 4:6] = 7
    start = torch.tensor([0, 4, 2])
    environment, strategy = UnmaskingEnvironment(model, DecodeOptions(4)), Strategy(strategies()[name], TokenRule())
    whole = sample(environment, strategy, Prompts(canvas, start=start), seed=1).tokens
    for row, pad in enumerate(start.tolist()):
        alone = sample(
            environment, strategy, Prompts(canvas[row : row + 1, pad:]), seed=1, row_id=torch.tensor([row])
        ).tokens
        assert torch.equal(alone[0], whole[row, pad:])
