"""Prompts of different lengths, ends of sequence, guidance and caches: rows are what they are alone, and what is approximate says so."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import dlm.environment
import samplers.loop
import samplers.samples
from dlm.cache import KeyValueCache
from dlm.causal_lm import CausalLM
from dlm.checkpoints.table import build_model
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.observation import Decision
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from load_model import load_model
from policy.networks import DitConfidence
from policy.unmasker import PolicyUnmasker
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from samplers.samples import Stopwatch
from tests.enumerable import RandomLM
from tests.test_load_model import LLAMA

VECTORS = Path(__file__).parents[1] / "vectors"
MODELS = {name: load_model(VECTORS / f"{name}-tiny")[0] for name in ("llada", "dream", "mdlm")}
DECODINGS = json.loads((VECTORS / "llada-tiny" / "generate.json").read_text())
LENGTHS = (3, 9, 3, 5)  # of four prompts


def policy():
    torch.manual_seed(0)
    return PolicyUnmasker(
        DitConfidence(hidden_dim=16, feedforward_dim=16, num_heads=1, time_embed_dim=4).eval(), "bernoulli_argmax"
    )


RULES = {
    "confidence": UNMASKING_RULES["confidence"](),
    "random": UNMASKING_RULES["random"](),
    "threshold": UNMASKING_RULES["threshold"](0.1),
    "policy": policy(),
}


def ragged(model, length=8):
    """Four prompts padded on the left, masks behind them; and where each row starts."""
    generator = torch.Generator().manual_seed(1)
    width = max(LENGTHS)
    canvas = torch.full((len(LENGTHS), width + length), model.mask_id)
    for row, own in enumerate(LENGTHS):
        canvas[row, :width] = 7  # padding
        canvas[row, width - own : width] = torch.randint(90, (own,), generator=generator)
    return canvas, torch.tensor([width - own for own in LENGTHS]), width


@pytest.mark.parametrize(
    "case",
    DECODINGS,
    ids=lambda c: f"{c['cache']}-{c['steps']}-{c['threshold']}-{c['block_length']}-{len(c['prompt'])}",
)
def test_the_published_decodings_with_and_without_caches(case):
    model = MODELS["llada"]
    canvas = torch.tensor([case["prompt"] + [model.mask_id] * case["gen_length"]])
    cache = None if case["cache"] == "none" else case["cache"]
    rule = UNMASKING_RULES["top_prob"]() if case["steps"] else UNMASKING_RULES["threshold"](case["threshold"])
    environment = UnmaskingEnvironment(
        model, DecodeOptions(case["steps"] or case["gen_length"], case["block_length"], cache=cache)
    )
    samples = sample(environment, Strategy(rule, TokenRule(0.0)), Prompts(canvas, prompt_length=len(case["prompt"])))
    assert samples.tokens[0].tolist() == case["tokens"]
    assert int(samples.evaluations[0]) <= case["nfe"]
    assert environment.exact == (cache is None)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("name", "cache"),
    [("mdlm", None), *((name, cache) for name in ("llada", "dream") for cache in (None, "prefix", "dual"))],
)
def test_a_padded_row_is_the_row_alone(name, rule, temperature, cache):
    model = MODELS[name]
    canvas, start, width = ragged(model)
    strategy = Strategy(RULES[rule], TokenRule(temperature))
    settings = {"cache": cache, "refresh": 3 if cache else None}
    together = sample(
        UnmaskingEnvironment(model, DecodeOptions(8, 4, **settings)),
        strategy,
        Prompts(canvas, prompt_length=width, start=start),
        5,
    )
    for row, own in enumerate(LENGTHS):
        alone = canvas[row : row + 1, width - own :]
        environment = UnmaskingEnvironment(model, DecodeOptions(8, 4, **settings))
        single = sample(environment, strategy, Prompts(alone, prompt_length=own), 5, torch.tensor([row]))
        assert torch.equal(single.tokens[0], together.tokens[row, width - own :])
        assert int(single.evaluations[0]) == int(together.evaluations[row])


def test_padding_is_never_looked_at():
    model = MODELS["llada"]
    canvas, start, width = ragged(model)
    other = canvas.clone()
    for row, own in enumerate(LENGTHS):
        other[row, : width - own] = 99
    decode = lambda canvas: sample(
        UnmaskingEnvironment(model, DecodeOptions(8)),
        Strategy(RULES["confidence"], TokenRule()),
        Prompts(canvas, prompt_length=width, start=start),
    ).tokens[:, width:]
    assert torch.equal(decode(canvas), decode(other))


@pytest.mark.parametrize("name", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cache_that_is_refreshed_at_every_evaluation_changes_nothing(name, cache):
    model = MODELS[name]
    canvas, start, width = ragged(model)
    strategy = Strategy(RULES["confidence"], TokenRule())
    plain = sample(
        UnmaskingEnvironment(model, DecodeOptions(8, 4)), strategy, Prompts(canvas, prompt_length=width, start=start)
    )
    environment = UnmaskingEnvironment(model, DecodeOptions(8, 4, cache=cache, refresh=1))
    assert torch.equal(
        sample(environment, strategy, Prompts(canvas, prompt_length=width, start=start)).tokens, plain.tokens
    )


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_a_cached_row_runs_whole_where_something_before_its_block_is_read_for_the_first_time(cache):
    """Only masks are read at the start of a block: what a policy wants to know of the prompt afterwards was never read."""
    model = MODELS["llada"]
    canvas = torch.full((2, 20), model.mask_id)
    canvas[:, :8] = torch.tensor([[1], [2]])
    environment = UnmaskingEnvironment(model, DecodeOptions(12, 6, cache=cache))
    observation = environment.reset(Prompts(canvas, prompt_length=8))
    environment.hidden(observation.writable)
    order = (torch.arange(20) == 9).long().expand(2, -1)
    observation = environment.step(Decision(order, order * 3, torch.zeros(2), torch.zeros(2)))
    of_prompt = (torch.arange(20) == 4).expand(2, -1)
    known = environment.hidden(of_prompt)[of_prompt]
    torch.testing.assert_close(known, model.hidden(observation.tokens, of_prompt))
    assert environment.positions_run == 2 * 2 * 20 and environment.evaluations.tolist() == [2, 2]


def test_caches_run_fewer_positions_and_report_their_drift():
    model = MODELS["llada"]
    canvas = torch.full((2, 24), model.mask_id)
    canvas[:, :8] = torch.tensor([[1], [2]])
    run = {}
    for cache in (None, "prefix", "dual"):
        environment = UnmaskingEnvironment(model, DecodeOptions(16, 8, cache=cache, measure_drift=cache is not None))
        sample(environment, Strategy(RULES["policy"], TokenRule(0.0)), Prompts(canvas, prompt_length=8))
        run[cache] = environment.positions_run / environment.rows_evaluated
        assert (environment.drift is None) == (cache is None)
        if cache:
            assert 0 < environment.drift < 1
    assert run["dual"] < run["prefix"] < run[None] == 24


@pytest.mark.parametrize("name", ["llada", "dream"])
@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_drift_is_what_the_cache_would_have_said(name, cache):
    """A twin that does not run whole at the third evaluation says it; the decoding is what it is without the measurement."""
    model = MODELS[name]
    canvas = torch.full((2, 20), model.mask_id)
    canvas[:, :8] = torch.tensor([[1], [2]])
    found = []
    for refresh, measured in ((2, True), (2, False), (9, False)):
        environment = UnmaskingEnvironment(
            model, DecodeOptions(12, 6, cache=cache, refresh=refresh, measure_drift=measured)
        )
        observation = environment.reset(Prompts(canvas, prompt_length=8))
        for place in (9, 12, None):
            window = observation.masked.clone()
            window[:, 14:] &= cache == "prefix"
            best = environment.read(window, 1, False).top_log_probs[..., 0].exp()
            if place is not None:
                order = torch.zeros_like(canvas)
                order[:, place] = 1
                observation = environment.step(
                    Decision(order, torch.full_like(canvas, 3), torch.zeros(2), torch.zeros(2))
                )
        found.append((best, window, environment))
    (whole, window, watched), (plain, _, unwatched), (cached, _, _) = found
    torch.testing.assert_close(whole, plain)
    off = (whole - cached).abs()
    assert float(off[window].mean()) > 1e-4
    assert watched.drift == pytest.approx(float(off[window].mean()), rel=1e-4)
    each = [float(off[row][window[row]].mean()) for row in range(2)]
    assert watched.drift_of(torch.arange(2)) == pytest.approx(each, rel=1e-4)
    assert unwatched.drift is None and unwatched.drift_of(torch.arange(2)) == [None, None]
    assert torch.equal(watched.evaluations, unwatched.evaluations)


def test_measuring_drift_counts_neither_as_seconds_nor_as_evaluations(monkeypatch):
    """By a clock that only this test moves: one second for each run of the decoding, 100 for each comparison."""
    model, clock = MODELS["llada"], [0.0]
    now = SimpleNamespace(perf_counter=lambda: clock[0], process_time=lambda: clock[0])
    monkeypatch.setattr(dlm.environment, "time", now)
    monkeypatch.setattr(samplers.samples, "time", now)
    monkeypatch.setattr(samplers.loop, "Stopwatch", lambda: Stopwatch(clock[0], clock[0]))
    calls = []

    def takes(name, seconds):
        work = getattr(UnmaskingEnvironment, name)

        def timed(*arguments):
            clock[0] += seconds
            calls.append(name)
            return work(*arguments)

        monkeypatch.setattr(UnmaskingEnvironment, name, timed)

    takes("_run_spans", 1.0)
    takes("_compare", 100.0)
    canvas = torch.full((2, 24), model.mask_id)
    canvas[:, :8] = 1
    strategy = Strategy(RULES["confidence"], TokenRule(0.0))
    plain, measured = (
        sample(
            UnmaskingEnvironment(model, DecodeOptions(8, 8, cache="dual", refresh=2, measure_drift=drift)),
            strategy,
            Prompts(canvas, prompt_length=8),
        )
        for drift in (False, True)
    )
    assert calls.count("_compare") >= 2 and calls.count("_run_spans") == 16
    assert plain.seconds == measured.seconds == plain.cpu_seconds == measured.cpu_seconds == 8
    assert torch.equal(measured.tokens, plain.tokens) and torch.equal(measured.evaluations, plain.evaluations)
    assert (measured.forwards, measured.rows_evaluated) == (plain.forwards, plain.rows_evaluated)


def test_a_window_that_is_everything_is_not_run_twice(monkeypatch):
    model, ran, run = MODELS["llada"], [], KeyValueCache.run
    monkeypatch.setattr(KeyValueCache, "run", lambda *asked: ran.append(1) or run(*asked))
    environment = UnmaskingEnvironment(model, DecodeOptions(6, cache="dual", refresh=1, measure_drift=True))
    sample(environment, Strategy(RULES["confidence"], TokenRule(0.0)), Prompts(torch.full((2, 12), model.mask_id)))
    assert environment.drift is None and len(ran) == environment.forwards == 6


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_causal_models_keys_and_values_are_exact(kind):
    torch.manual_seed(0)
    gpt2 = {"model_type": "gpt2", "vocab_size": 11, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 17, "bos_token_id": 3, "eos_token_id": 3}  # fmt: skip
    model, _ = build_model(LLAMA if kind == "llama" else gpt2, "float32", None)
    model.eval().requires_grad_(False)
    assert isinstance(model, CausalLM)
    for parameter in model.parameters():
        parameter.mul_(4)  # so that what was attended shows
    canvas = torch.full((4, 12), model.mask_id)
    canvas[0, :3], canvas[1, :3], canvas[2, 2:3] = torch.tensor([1, 2, 4]), torch.tensor([5, 6, 7]), 9
    start = torch.tensor([0, 0, 2, 3])
    strategy = Strategy(UNMASKING_RULES["leftmost"](), TokenRule())
    kept = UnmaskingEnvironment(model, DecodeOptions(9))
    samples = sample(kept, strategy, Prompts(canvas, prompt_length=3, start=start), 3)
    plain = UnmaskingEnvironment(model, DecodeOptions(9))
    plain.cache_kind = None
    assert torch.equal(samples.tokens, sample(plain, strategy, Prompts(canvas, prompt_length=3, start=start), 3).tokens)
    assert kept.exact and kept.positions_run < plain.positions_run / 3


def test_a_row_that_has_ended_leaves_and_is_filled_up():
    model = MODELS["llada"]
    canvas = torch.full((64, 12), model.mask_id)
    canvas[:, :2] = torch.arange(128).remainder(100).view(64, 2)
    ends = int(
        sample(
            UnmaskingEnvironment(model, DecodeOptions(10)),
            Strategy(UNMASKING_RULES["leftmost"](), TokenRule()),
            Prompts(canvas),
        )
        .tokens[:, 3:]
        .mode()
        .values.mode()
        .values
    )
    environment = UnmaskingEnvironment(model, DecodeOptions(10, ends=(ends,)))
    samples = sample(
        environment, Strategy(UNMASKING_RULES["leftmost"](), TokenRule()), Prompts(canvas, prompt_length=2)
    )
    ended = (samples.tokens[:, 2:] == ends).any(1)
    assert ended.any() and not ended.all() and not (samples.tokens == model.mask_id).any()
    for row in ended.nonzero().squeeze(1).tolist():
        first = int((samples.tokens[row, 2:] == ends).nonzero()[0])
        assert (samples.tokens[row, 2 + first :] == ends).all()
        assert int(samples.generated[row]) == int(samples.evaluations[row]) == first + 1


def test_an_end_ends_its_row_once_nothing_before_it_is_open():
    environment = UnmaskingEnvironment(RandomLM(6), DecodeOptions(4, ends=(5,)))
    environment.reset(Prompts(torch.full((1, 4), 6)))
    seen = []
    for place, token in ((2, 5), (0, 1), (1, 3)):
        order = (torch.arange(4) == place).long().unsqueeze(0)
        observation = environment.step(Decision(order, order * token, torch.zeros(1), torch.zeros(1)))
        seen.append((observation.tokens[0].tolist(), bool(observation.done)))
    assert seen == [([6, 6, 5, 6], False), ([1, 6, 5, 6], False), ([1, 3, 5, 5], True)]


def test_tokens_that_are_never_written_and_tokens_that_are_written_last():
    model = MODELS["llada"]
    canvas = torch.full((8, 12), model.mask_id)
    canvas[:, 0] = torch.arange(8)
    strategy = Strategy(UNMASKING_RULES["top_prob"](), TokenRule(0.0))
    first = UnmaskingEnvironment(model, DecodeOptions(11)).reset(Prompts(canvas, prompt_length=1))
    common = int(first.read(first.writable, 1).top_tokens[:, 1:].flatten().mode().values)
    without = sample(
        UnmaskingEnvironment(model, DecodeOptions(11, never_tokens=(common,))),
        strategy,
        Prompts(canvas, prompt_length=1),
    )
    assert not (without.tokens[:, 1:] == common).any()
    environment = UnmaskingEnvironment(model, DecodeOptions(11, last_tokens=(common,)))
    observation = environment.reset(Prompts(canvas, prompt_length=1))
    readout = observation.read(observation.writable, 1)
    demoted = (readout.top_tokens[..., 0] == common) & observation.writable
    assert demoted.any()
    assert (readout.top_log_probs[..., 0][demoted] == -1e4).all()
    assert (readout.top_log_probs[..., 0][observation.writable & ~demoted] > -1e3).all()
    readout = observation.read(observation.writable, 2, entropy=True)
    second = (readout.top_tokens[..., 1] == common) & observation.writable
    assert (
        second.any() and (readout.top_log_probs[..., 1][second] > -1e3).all()
    )  # else its position would be the surest
    assert readout.entropy is not None and (readout.entropy[demoted] == 1e4).all()


def test_guidance_is_the_formula_and_costs_two_evaluations():
    model, weight = MODELS["llada"], 1.5
    canvas = torch.full((2, 8), model.mask_id)
    canvas[:, :3] = torch.tensor([[1, 2, 3], [4, 5, 6]])
    environment = UnmaskingEnvironment(model, DecodeOptions(4, guidance=weight))
    observation = environment.reset(Prompts(canvas, prompt_length=3))
    readout = observation.read(observation.writable, 1)
    logits = model.backbone(canvas)
    without = model.backbone(torch.full_like(canvas, model.mask_id))
    mixed = without + (weight + 1) * (logits - without)
    mixed[..., model.mask_id] = -torch.inf
    best = mixed.log_softmax(-1).max(-1)
    positions = observation.writable
    assert torch.equal(readout.top_tokens[..., 0][positions], best.indices[positions])
    assert torch.allclose(readout.top_log_probs[..., 0][positions], best.values[positions], atol=1e-4)
    assert environment.evaluations.tolist() == [2, 2]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"cache": "tripple"}, "cache='tripple' is unknown"),
        ({"cache": "dual", "guidance": 1.0}, "guidance"),
        ({"refresh": 2}, "needs a cache"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        UnmaskingEnvironment(MODELS["llada"], DecodeOptions(4, **settings))
    with pytest.raises(ValueError, match="keeps no keys"):
        UnmaskingEnvironment(MODELS["mdlm"], DecodeOptions(4, cache="dual")).reset(
            Prompts(torch.full((1, 4), MODELS["mdlm"].mask_id))
        )


def test_a_mask_in_the_prompt_is_refused():
    """No block holds it, so that it would stay open for ever and the row never end."""
    model = MODELS["llada"]
    canvas = torch.full((2, 8), model.mask_id)
    canvas[0, :3], canvas[1, :3] = 1, torch.tensor([1, model.mask_id, 1])
    with pytest.raises(ValueError, match=r"position 1 of row 1 is masked and lies before prompt_length=3"):
        UnmaskingEnvironment(model, DecodeOptions(5)).reset(Prompts(canvas, prompt_length=3))
    UnmaskingEnvironment(model, DecodeOptions(5)).reset(
        Prompts(canvas, prompt_length=3, start=torch.tensor([0, 2]))
    )  # padding, which nobody reads
