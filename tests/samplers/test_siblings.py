"""Siblings in one row against kept keys and values: the rewards of the plain loop, whatever rows come, go and change."""

import pytest
import torch
from torch import nn
from transformers import (
    GPT2Config,
    GPT2ForSequenceClassification,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from benchmarks import plain_guided
from dlm.causal_lm import CausalLM
from dlm.environment import UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.guided import Canvases, Guided, Siblings, Values
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import sample
from samplers.siblings import SiblingCache

SMALL = {"vocab_size": 50, "bos_token_id": 49, "eos_token_id": 49}
REWARD = SMALL | {"vocab_size": 51, "num_labels": 1, "pad_token_id": 50}  # never written: transformers cuts texts at it


def classifier(name="gpt2"):
    torch.manual_seed(0)
    if name == "gpt2":
        model = GPT2ForSequenceClassification(GPT2Config(**REWARD, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    else:
        shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_key_value_heads": 1}
        model = LlamaForSequenceClassification(LlamaConfig(**REWARD, **shape, num_attention_heads=2))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(False).eval()


def cache_of(model):
    return SiblingCache(model.base_model, lambda states: model.score(states).squeeze(-1))


def plain(model, tokens, length, siblings):
    each = zip(tokens, length.tolist(), siblings, strict=True)
    rows = [[torch.cat((text[:n], sibling)) for sibling in own.split(1)] for text, n, own in each]
    return torch.tensor([[model(input_ids=text[None]).logits.item() for text in row] for row in rows])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_rewards_are_those_of_whole_texts_while_rows_grow_leave_return_and_are_copied(name):
    model = classifier(name)
    cache, generator = cache_of(model), torch.Generator().manual_seed(0)
    tokens = torch.randint(49, (4, 12), generator=generator)
    length = torch.tensor([5, 9, 12, 7])
    for step in range(7):
        siblings = torch.stack([torch.randperm(49, generator=generator)[:5] for _ in tokens])
        found = cache(tokens, siblings, torch.arange(tokens.shape[1]) < length[:, None])
        torch.testing.assert_close(found, plain(model, tokens, length, siblings), atol=1e-4, rtol=0)
        tokens = nn.functional.pad(tokens, (0, 1))
        tokens[torch.arange(len(tokens)), length] = siblings[:, 1]
        length = length + 1
        if step == 2:  # as a particle filter resamples
            tokens, length = tokens[[3, 0, 0]], length[[3, 0, 0]]
        if step == 3:  # a row goes back
            length = length - torch.tensor([0, 2, 0])
        if step == 4:  # another text in the place of a row
            tokens[0] = torch.randint(49, tokens[0].shape, generator=generator)


def test_a_step_runs_the_new_token_and_its_siblings_only():
    model, k = classifier(), 6
    cache = cache_of(model)
    tokens = torch.randint(49, (3, 20), generator=torch.Generator().manual_seed(1))
    for length in range(10, 16):
        cache(tokens[:, :length], torch.arange(k).expand(3, -1))
    assert cache.positions == 3 * (10 + k) + 5 * 3 * (1 + k)
    plain_loop = sum(3 * k * (length + 1) for length in range(10, 16))
    assert plain_loop > 6 * cache.positions


def language_model(seed=1):
    torch.manual_seed(seed)
    network = GPT2LMHeadModel(GPT2Config(**SMALL, n_embd=32, n_layer=2, n_head=2, n_positions=64))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return CausalLM(network.requires_grad_(False).eval(), 49)


class Rows:
    """A reward model as `Canvases` takes it."""

    kind = "prefix"

    def __init__(self, model):
        self.model = model

    def score(self, tokens, real=None):
        return self.model(input_ids=tokens.masked_fill(~real, 50)).logits[:, 0]


class Kept(Values):
    """Keeps what was said at every step."""

    def __init__(self, inner):
        self.inner, self.found = inner, []

    def __call__(self, observation, row, position, tokens):
        self.found.append(self.inner(observation, row, position, tokens))
        return self.found[-1]


@pytest.mark.parametrize("way", ["siblings", "rows"])
def test_scores_and_tokens_are_those_of_the_published_loops(way):
    """ARGS and both of PARGS's scripts, batch 1; the scores, of every candidate's whole text."""
    reward, model = classifier(), language_model()
    values = Kept(Siblings(cache_of(reward)) if way == "siblings" else Canvases(Rows(reward)))
    prompts = torch.randint(49, (3, 8), generator=torch.Generator().manual_seed(2))
    canvas = nn.functional.pad(prompts, (0, 10), value=model.mask_id)
    ours = sample(
        UnmaskingEnvironment(model, DecodeOptions(18)),
        Guided(UNMASKING_RULES["leftmost"](), values, 2.0, 10, 0.0),
        Prompts(canvas),
    )
    first, second = plain_guided.words(50, start=49), plain_guided.words(50)
    for row, prompt in enumerate(prompts):
        start = nn.functional.pad(prompt, (1, 0), value=49)[None]  # the start token, which the model puts there itself
        written = plain_guided.args(model.backbone, reward, start, 2.0, 10, 10)[0, 9:]
        assert torch.equal(ours.tokens[row, 8:], written)
        for script in (plain_guided.pargs_generate, plain_guided.pargs_baselines):
            text = second.decode(prompt)
            assert torch.equal(script(model.backbone, first, reward, second, text, 2.0, 10, 10)[0], written)
        for step, found in enumerate(values.found):
            before = ours.tokens[row, : 8 + step]
            best = model.backbone(input_ids=torch.cat((start[0, :1], before))[None]).logits[0, -1].topk(10).indices
            expected = plain(reward, before[None], torch.tensor([8 + step]), best[None])
            torch.testing.assert_close(found[row : row + 1], expected, atol=1e-4, rtol=0)


def test_texts_of_different_lengths_and_rows_that_end_leave_the_others_as_they_are():
    reward, model = classifier(), language_model()
    prompts = torch.randint(49, (4, 8), generator=torch.Generator().manual_seed(3))
    canvas = nn.functional.pad(prompts, (0, 8), value=model.mask_id)
    start = torch.tensor([0, 5, 2, 0])

    def decode(rows):
        environment = UnmaskingEnvironment(model, DecodeOptions(16, ends=(int(common),)))
        strategy = Guided(UNMASKING_RULES["leftmost"](), Siblings(cache_of(reward)), 1.0, 8)
        return sample(
            environment, strategy, Prompts(canvas[rows], prompt_length=8, start=start[rows]), 0, torch.tensor(rows)
        ).tokens[:, 8:]

    common = 48
    free = decode([0, 1, 2, 3])
    common = free[1, 2]  # ends row 1 at its third token at the latest
    together = decode([0, 1, 2, 3])
    assert len(torch.unique((together == common).long().argmax(1))) > 1
    for row in range(4):
        assert torch.equal(decode([row])[0], together[row])
