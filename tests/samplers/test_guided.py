"""Guided decoding samples p(v) * exp(beta * r) over the k best tokens: against enumeration, on causal and masked models."""

import math
import random

import pytest
import torch

from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from dlm.token_rule import TokenRule
from samplers.guided import (
    METHODS,
    Canvases,
    Guided,
    GuidedPair,
    HeadValues,
    JointProposals,
    Template,
    Texts,
    check_guide,
)
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy, sample
from tests.enumerable import RandomLM, dependent_joint, fits, from_joint, inconsistent
from tests.samplers.guides import HashReward, TableHead, guided_law, independent, joint, pair

ROWS = 20_000
CAUSAL = RandomLM(vocabulary=4, causal=True, seed=3, spread=1.0)
CAUSAL.rows += 1e-3 * torch.randn(
    CAUSAL.rows.shape, generator=torch.Generator().manual_seed(1)
)  # no ties: k is a choice
MASKED = inconsistent(vocabulary=4, length=3, seed=2)
UNTIED = RandomLM(6, seed=1)
UNTIED.rows += 1e-3 * torch.randn(UNTIED.rows.shape, generator=torch.Generator().manual_seed(2))


def sampled(model, strategy, steps, length=3, canvas=None, rows=ROWS, seed=0):
    start = torch.tensor(canvas or [model.mask_id] * length).expand(rows, -1)
    return sample(UnmaskingEnvironment(model, DecodeOptions(steps)), strategy, Prompts(start), seed)


# ------------------------------------------------------------------------------------------------------------ the laws


@pytest.mark.parametrize("kind", ["prefix", "full"])
@pytest.mark.parametrize(
    "k, beta, temperature", [(3, 2.0, 1.0), (4, -1.0, 1.0), (3, 1.0, 0.7), (2, 1.0, 0.0), (1, 3.0, 1.0)]
)
def test_a_causal_model_samples_the_tilted_law(kind, k, beta, temperature):
    reward = HashReward(kind, seed=4)
    step = lambda canvas, places, log_probs: independent(
        CAUSAL, reward, canvas, places, log_probs, k, beta, temperature
    )
    law = guided_law(CAUSAL, "leftmost", 3, 3, step)
    fits(sampled(CAUSAL, Guided(UNMASKING_RULES["leftmost"](), Canvases(reward), beta, k, temperature), 3).tokens, law)


@pytest.mark.parametrize("kind", ["mask", "prefix", "full"])
@pytest.mark.parametrize(
    "rule, steps", [("random", 3), ("confidence", 3), ("leftmost", 3), ("random", 2), ("entropy", 1)]
)
def test_a_masked_model_samples_the_tilted_law_one_position_or_several_a_step(kind, rule, steps):
    reward = HashReward(kind, seed=5)
    step = lambda canvas, places, log_probs: independent(MASKED, reward, canvas, places, log_probs, 3, 1.5, 1.0)
    law = guided_law(MASKED, rule, steps, 3, step)
    fits(sampled(MASKED, Guided(UNMASKING_RULES[rule](), Canvases(reward), 1.5, 3), steps).tokens, law)


@pytest.mark.parametrize("kind", ["mask", "full"])
@pytest.mark.parametrize("rule, steps", [("random", 3), ("random", 1), ("confidence", 2)])
def test_position_and_token_together(kind, rule, steps):
    reward = HashReward(kind, seed=6)
    step = lambda canvas, places, log_probs: pair(MASKED, reward, canvas, places, log_probs, 2, 1.0, 1.0)
    law = guided_law(MASKED, rule, steps, 3, step)
    samples = sampled(MASKED, GuidedPair(UNMASKING_RULES[rule](), Canvases(reward), 1.0, 2), steps)
    fits(samples.tokens, law)
    assert (samples.evaluations == 3).all(), "one position a step, whatever the rule offers, each canvas once"


@pytest.mark.parametrize("rule, steps, count", [("random", 2, 2), ("confidence", 2, 3), ("random", 1, 2)])
def test_joint_proposals(rule, steps, count):
    model = from_joint(dependent_joint(vocabulary=3, length=3, seed=1))
    reward = HashReward("mask", seed=7)
    step = lambda canvas, places, log_probs: joint(model, reward, canvas, places, log_probs, count, 2.0)
    law = guided_law(model, rule, steps, 3, step)
    strategy = JointProposals(UNMASKING_RULES[rule](), Canvases(reward), 2.0, count)
    fits(sampled(model, strategy, steps).tokens, law)


def test_many_joint_proposals_tilt_the_joint_law_where_independent_tilts_do_not():
    """On one step of three positions: total variation from p(x) * exp(beta * r(x)) of both."""
    model, reward = from_joint(dependent_joint(vocabulary=3, length=3, seed=1)), HashReward("mask", seed=8)
    blank = [[model.mask_id] * 3]
    log_probs = model.log_probs(torch.tensor(blank))[0, :, :3].double()
    fills = torch.cartesian_prod(*[torch.arange(3)] * 3)
    scores = sum(log_probs[i, fills[:, i]] for i in range(3)) + reward.score(fills).double()
    truth = dict(zip(map(tuple, fills.tolist()), scores.softmax(0).tolist(), strict=True))

    def distance(strategy):
        rows, counts = sampled(model, strategy, 1, rows=4000).tokens.unique(dim=0, return_counts=True)
        found = dict(zip(map(tuple, rows.tolist()), (counts / 4000).tolist(), strict=True))
        return sum(abs(found.get(fill, 0) - p) for fill, p in truth.items()) / 2

    assert distance(JointProposals(UNMASKING_RULES["random"](), Canvases(reward), 1.0, 64)) < 0.08
    assert distance(Guided(UNMASKING_RULES["random"](), Canvases(reward), 1.0, 3)) > 0.15


@pytest.mark.parametrize("model, rule", [(CAUSAL, "leftmost"), (MASKED, "random")], ids=["causal", "masked"])
def test_a_vocabulary_head_tilts_by_the_value_of_each_token(model, rule):
    head = TableHead(4, seed=2)

    def of_token(canvas, i, v):
        read = torch.zeros(1, 3, dtype=torch.bool)
        read[0, i] = True
        return float(head(model.hidden(torch.tensor([canvas]), read))[0, v])

    step = lambda canvas, places, log_probs: independent(model, None, canvas, places, log_probs, 3, 1.2, 1.0, of_token)
    law = guided_law(model, rule, 3, 3, step)
    values = HeadValues(head)
    fits(sampled(model, Guided(UNMASKING_RULES[rule](), values, 1.2, 3), 3).tokens, law)
    assert values.rows == 0


def test_the_laws_differ_from_the_unguided_one_and_from_each_other():
    """Else the tests above could not tell them apart."""
    laws = [guided_law(MASKED, "random", 3, 3, lambda c, p, lp, b=beta, kind=kind: independent(
        MASKED, HashReward(kind, seed=5), c, p, lp, 3, b, 1.0)) for kind, beta in
        (("mask", 0.0), ("mask", 1.5), ("prefix", 1.5), ("full", 1.5))]  # fmt: skip
    laws.append(
        guided_law(
            MASKED, "random", 1, 3, lambda c, p, lp: pair(MASKED, HashReward("mask", seed=5), c, p, lp, 3, 1.5, 1.0)
        )
    )
    for i, one in enumerate(laws):
        for other in laws[i + 1 :]:
            assert sum(abs(one.get(x, 0) - other.get(x, 0)) for x in one.keys() | other.keys()) / 2 > 0.02


@pytest.mark.parametrize("model, rule", [(UNTIED, "confidence"), (UNTIED, "random"), (CAUSAL, "leftmost")])
def test_without_weight_and_with_every_token_the_samples_are_the_unguided_ones(model, rule):
    """Candidates draw by their token, not by their rank: the same numbers decide."""
    plain = sampled(model, Strategy(UNMASKING_RULES[rule](), TokenRule()), 5, 5, rows=64)
    guided = sampled(
        model, Guided(UNMASKING_RULES[rule](), Canvases(HashReward("mask")), 0.0, model.mask_id), 5, 5, rows=64
    )
    assert torch.equal(plain.tokens, guided.tokens) and len(plain.tokens.unique(dim=0)) > 20


# -------------------------------------------------------------------------------------------- rows do not know a batch


def strategy_of(rng, model, reward):
    unmasking = UNMASKING_RULES[
        "leftmost" if model.causal else rng.choice(["random", "confidence", "entropy", "leftmost"])
    ]()
    k, beta, temperature = rng.choice([1, 2, 3]), rng.choice([0.5, 2.0]), rng.choice([0.0, 0.7, 1.0])
    kinds = [Guided(unmasking, Canvases(reward), beta, k, temperature)]
    if not model.causal:
        kinds += [
            GuidedPair(unmasking, Canvases(reward), beta, k, temperature),
            JointProposals(unmasking, Canvases(reward), beta, 3),
        ]
    return rng.choice(kinds)


def test_tokens_do_not_depend_on_the_batch_in_100_random_cases():
    rng, seen = random.Random(0), set()
    for case in range(100):
        generator = torch.Generator().manual_seed(case)
        causal = rng.random() < 0.3
        model = RandomLM(rng.choice([3, 6]), causal=causal, seed=case % 7)
        reward = HashReward(rng.choice(["full", "prefix"] if causal else ["full", "prefix", "mask"]), seed=case)
        strategy = strategy_of(rng, model, reward)
        length, rows = rng.choice([3, 5]), rng.choice([2, 4])
        canvas = torch.full((rows, length), model.mask_id)
        given = int(torch.randint(length, (1,), generator=generator))
        canvas[:, :given] = torch.randint(model.mask_id, (rows, given), generator=generator)
        row_id = torch.randint(10**6, (rows,), generator=generator)
        decode = lambda places: sample(
            UnmaskingEnvironment(model, DecodeOptions(3)), strategy, Prompts(canvas[places]), case, row_id[places]
        )
        whole = decode(torch.arange(rows))
        places = torch.randperm(rows, generator=generator)[: max(1, rows - 1)]
        others = decode(places)
        for name in ("tokens", "unmasked_at", "evaluations"):
            assert torch.equal(getattr(whole, name)[places], getattr(others, name)), (case, name)
        assert (whole.tokens != model.mask_id).all() and torch.equal(whole.tokens[:, :given], canvas[:, :given])
        seen.add((type(strategy).__name__, reward.kind, causal))
    assert len(seen) == 3 * 3 + 2


@pytest.mark.parametrize("kind", ["prefix", "mask", "full"])
@pytest.mark.parametrize("joint_proposals", [False, True])
def test_padding_on_the_left_changes_nothing(kind, joint_proposals):
    model, reward = RandomLM(6), HashReward(kind)
    strategy = Guided(UNMASKING_RULES["random"](), Canvases(reward), 2.0, 3)
    if joint_proposals:
        strategy = JointProposals(UNMASKING_RULES["random"](), Canvases(reward), 2.0, 3)
    canvas = torch.tensor([[2, 4, 6, 6, 6]])
    alone = sample(UnmaskingEnvironment(model, DecodeOptions(3)), strategy, Prompts(canvas, prompt_length=2))
    padded = torch.cat((torch.tensor([[6, 1, 0]]), canvas), 1)
    together = sample(
        UnmaskingEnvironment(model, DecodeOptions(3)),
        strategy,
        Prompts(padded, prompt_length=5, start=torch.tensor([3])),
    )
    assert torch.equal(together.tokens[:, 3:], alone.tokens)


# ----------------------------------------------------------------------------- faults of the published scripts, tested


def test_all_candidates_of_a_step_are_one_call_and_each_is_read_as_it_stands():
    """The published loop calls the reward k times a token, batch 1; and fills prefixes up with the end of sequence."""
    model, reward = RandomLM(6, causal=True), HashReward("prefix")
    values = Canvases(reward)
    canvas = torch.full((3, 5), model.mask_id)
    canvas[:, 0] = torch.tensor([1, 2, 3])
    sample(
        UnmaskingEnvironment(model, DecodeOptions(5)),
        Guided(UNMASKING_RULES["leftmost"](), values, 2.0, 4),
        Prompts(canvas),
    )
    assert reward.calls == 4 and values.rows == 3 * 4 * 4
    assert {len(text) for text in reward.seen[:12]} == {2} and {len(text) for text in reward.seen[-12:]} == {5}
    assert all(text[0] in (1, 2, 3) and model.mask_id not in text for text in reward.seen)


def test_texts_are_split_into_prompt_and_answer():
    seen = []
    score = lambda prompts, texts, finished: (seen.extend(zip(prompts, texts, strict=True)), torch.zeros(len(texts)))[1]
    decode = lambda rows: ["".join("abcdef"[t] for t in row) for row in rows]
    model = RandomLM(6)
    canvas = torch.tensor([[0, 1, 6, 6], [0, 2, 6, 6]])
    strategy = Guided(UNMASKING_RULES["leftmost"](), Texts(score, decode, Template(first=2), "prefix"), 1.0, 6)
    sample(
        UnmaskingEnvironment(model, DecodeOptions(2)),
        strategy,
        Prompts(canvas, prompt_length=2, start=torch.tensor([0, 1])),
    )
    assert set(seen[:12]) == {(prompt, token) for prompt in ("ab", "c") for token in "abcdef"}
    assert {(prompt, len(text)) for prompt, text in seen[12:]} == {("ab", 2), ("c", 2)}


def test_a_candidate_that_ends_the_answer_is_said_to_end_it():
    seen = []
    score = lambda prompts, texts, finished: (seen.extend(zip(texts, finished, strict=True)), torch.zeros(len(texts)))[
        1
    ]
    decode = lambda rows: ["".join("abcdef"[t] for t in row) for row in rows]
    canvas = torch.tensor([[0, 1, 6]])
    strategy = Guided(UNMASKING_RULES["leftmost"](), Texts(score, decode, Template(first=1, end=5), "prefix"), 1.0, 6)
    sample(UnmaskingEnvironment(RandomLM(6), DecodeOptions(1)), strategy, Prompts(canvas, prompt_length=1))
    assert sorted(seen) == [("b", True)] + [("b" + token, False) for token in "abcde"]


def test_a_reward_reads_by_its_template():
    """Tokens in front and between, nothing behind the answer's end, its own mask: what it was trained on, and nothing else."""
    model = RandomLM(6)
    canvas = torch.tensor([[4, 5, 6, 6], [3, 4, 6, 6]])
    full = HashReward("full")
    template = Template(front=(11,), between=(12,), first=2, end=0)
    sample(UnmaskingEnvironment(model, DecodeOptions(2)), Guided(UNMASKING_RULES["leftmost"](), Canvases(full, template), 1.0, 6), Prompts(canvas, prompt_length=2, start=torch.tensor([0, 1])))  # fmt: skip
    first = full.seen[:12]
    assert {text[:4] for text in first if text[1] == 4 and text[2] == 5} == {(11, 4, 5, 12)}
    assert {text[:3] for text in first if text[2] == 12} == {(11, 4, 12)}
    ended = [text for text in full.seen if 0 in text]
    assert ended and all(text.index(0) == len(text) - 1 for text in ended)
    masks = HashReward("mask")
    sample(
        UnmaskingEnvironment(model, DecodeOptions(2)),
        Guided(UNMASKING_RULES["leftmost"](), Canvases(masks, Template(mask=9)), 1.0, 3),
        Prompts(canvas[:1]),
    )
    assert all(len(text) == 4 and 6 not in text for text in masks.seen) and masks.seen[0][:2] == (4, 5)
    assert {text.count(9) for text in masks.seen[:3]} == {1}


def test_an_end_within_the_prompt_ends_no_answer():
    template = Template(first=2, end=0, turns=(5,))
    canvases = torch.tensor([[5, 0, 3, 5, 2], [0, 5, 2, 3, 4]])
    assert template.ends_of(canvases).long().tolist() == [[0, 0, 0, 1, 0], [0, 0, 0, 0, 0]]
    assert template.until_end(canvases).long().tolist() == [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    reward, model = HashReward("full"), RandomLM(6)
    strategy = Guided(UNMASKING_RULES["leftmost"](), Canvases(reward, template), 1.0, 6)
    sample(
        UnmaskingEnvironment(model, DecodeOptions(2)), strategy, Prompts(torch.tensor([[5, 0, 6, 6]]), prompt_length=2)
    )
    assert len(reward.seen) == 12 and {text[:2] for text in reward.seen} == {(5, 0)}


def test_the_published_settings():
    assert METHODS["args"].beta == 1 and METHODS["args"].temperature == 0
    assert METHODS["args_stochastic"].temperature == 0.7 and METHODS["pargs"].beta == 2
    assert METHODS["pargs"].temperature == 1 and METHODS["pargs_g"] == METHODS["pargs_g"].__class__(
        ("prefix", "mask"), 1.0, 0.0
    )


@pytest.mark.parametrize("k", [0, 7, True, 2.5])
def test_a_k_that_the_vocabulary_has_not_is_refused(k):
    with pytest.raises(ValueError, match=f"k={k} must be a whole number from 1 to the model's 6 tokens"):
        check_guide(k, 1.0, 6)


@pytest.mark.parametrize("beta", [math.inf, -math.inf, math.nan, "2", None])
def test_a_weight_that_is_not_finite_is_refused(beta):
    with pytest.raises(ValueError, match="must be a finite number"):
        check_guide(2, beta, 6)


def test_a_reward_that_is_no_number_stops_the_decoding():
    class Broken(HashReward):
        def score(self, tokens, real=None):
            return super().score(tokens, real) / 0 * 0

    with pytest.raises(FloatingPointError, match="reward of a candidate is not a finite number"):
        sampled(CAUSAL, Guided(UNMASKING_RULES["leftmost"](), Canvases(Broken()), 1.0, 2), 3, rows=2)
    with pytest.raises(FloatingPointError, match="reward of a candidate is not a finite number"):
        sampled(MASKED, JointProposals(UNMASKING_RULES["random"](), Canvases(Broken("mask")), 1.0, 2), 1, rows=2)


@pytest.mark.parametrize("kind", [Guided, GuidedPair])
def test_a_candidate_that_can_never_be_written_needs_no_reward(kind):
    """Its log-probability is -inf, and a reward that is a likelihood says the same: no reason to end the run."""
    never = 2

    class Likelihood:
        kind = "mask"

        def score(self, tokens, real=None):
            return torch.where((tokens == never).any(1), -torch.inf, tokens.double().sum(1).float() / 10)

    environment = UnmaskingEnvironment(RandomLM(6), DecodeOptions(3, never_tokens=(never,)))
    canvas = torch.full((40, 3), environment.model.mask_id)
    written = sample(
        environment, kind(UNMASKING_RULES["leftmost"](), Canvases(Likelihood()), 1.0, 6), Prompts(canvas)
    ).tokens
    assert not bool((written == never).any()) and len(written.unique()) == 5


def test_a_reward_that_is_no_number_of_a_candidate_that_can_be_written_ends_the_run():
    class Broken:
        kind = "mask"

        def score(self, tokens, real=None):
            return torch.full((len(tokens),), torch.nan)

    canvas = torch.full((2, 3), RandomLM(6).mask_id)
    with pytest.raises(FloatingPointError, match="the reward of a candidate is not a finite number"):
        sample(
            UnmaskingEnvironment(RandomLM(6), DecodeOptions(3)),
            Guided(UNMASKING_RULES["leftmost"](), Canvases(Broken()), 1.0, 6),
            Prompts(canvas),
        )
