"""Rewards whose every number is known, and the exact laws of guided decoding by enumeration in plain Python."""

from itertools import product

import numpy as np
import torch
from torch import nn

from tests.enumerable import where_law


class HashReward:
    """A reward looked up by hashing what is read: a function of the tokens that are real, and of their places."""

    def __init__(self, kind="prefix", seed=0, spread=1.0):
        self.kind, self.calls, self.seen = kind, 0, []
        generator = torch.Generator().manual_seed(seed)
        self.values = spread * torch.randn(1024, generator=generator)
        self.multipliers = torch.randint(1, 10**6, (64,), generator=generator) * 2 + 1

    def score(self, tokens, real=None):
        real = torch.ones_like(tokens, dtype=torch.bool) if real is None else real
        self.calls += 1
        if len(tokens) < 100:
            self.seen += [tuple(row[there].tolist()) for row, there in zip(tokens, real, strict=True)]
        return self.values[((tokens + 1) * self.multipliers[: tokens.shape[1]] * real).sum(1) % 1024]

    def of(self, tokens):
        """Of one text, in plain Python."""
        return float(
            self.values[sum((t + 1) * int(m) for t, m in zip(tokens, self.multipliers.tolist(), strict=False)) % 1024]
        )


class TableHead(nn.Module):
    """A head that looks the hidden state of a TableLM or RandomLM up: a value for each token."""

    def __init__(self, vocabulary, seed=0):
        super().__init__()
        self.rows = torch.randn(4096, vocabulary, generator=torch.Generator().manual_seed(seed))

    def forward(self, hidden):
        return self.rows[(hidden.long() * torch.tensor([7, 3][: hidden.shape[1]])).sum(1) % 4096]


def conditionals(model, canvas, positions):
    """{position: log-probabilities of the real tokens}."""
    read = torch.zeros(1, len(canvas), dtype=torch.bool)
    read[0, list(positions)] = True
    rows = model.head(model.hidden(torch.tensor([canvas]), read)).double().log_softmax(1)
    return {i: row[: model.mask_id].tolist() for i, row in zip(positions, rows, strict=True)}


def read_by(reward, model, canvas):
    """What a reward of this kind sees of a canvas."""
    mask = model.mask_id
    if reward.kind == "mask":
        return tuple(canvas)
    if reward.kind == "full" and not model.causal:
        raise NotImplementedError("the filling-in is of the canvas before; see `filled`")
    return tuple(token for token in canvas if token != mask)


def filled(model, before, canvas):
    """The canvas with the token that was most likely before at each mask."""
    masks = [i for i, token in enumerate(before) if token == model.mask_id]
    likely = {i: int(np.argmax(row)) for i, row in conditionals(model, before, masks).items()}
    return tuple(likely[i] if token == model.mask_id else token for i, token in enumerate(canvas))


def value(reward, model, before, canvas):
    if reward.kind == "full" and not model.causal:
        return reward.of(filled(model, before, canvas))
    return reward.of(read_by(reward, model, canvas))


def softmax(scores, temperature):
    if temperature == 0:
        return [float(i == int(np.argmax(scores))) for i in range(len(scores))]
    weight = np.exp((np.array(scores) - max(scores)) / temperature)
    return (weight / weight.sum()).tolist()


def put(canvas, places, tokens):
    out = list(canvas)
    for i, token in zip(places, tokens, strict=True):
        out[i] = token
    return out


def candidates(model, reward, canvas, i, log_probs, k, beta, of_token=None):
    """[(token, log p + beta * r)] of the k best tokens at i."""
    best = sorted(range(len(log_probs)), key=lambda v: -log_probs[v])[:k]
    worth = of_token or (lambda v: value(reward, model, canvas, put(canvas, [i], [v])))
    return [(v, log_probs[v] + beta * worth(v)) for v in best]


def independent(model, reward, canvas, places, log_probs, k, beta, temperature, of_token=None):
    """[(probability, tokens at places)]: each place tilted by itself."""
    sides = []
    for i in places:
        pairs = candidates(
            model, reward, canvas, i, log_probs[i], k, beta, of_token and (lambda v, i=i: of_token(canvas, i, v))
        )
        sides.append(list(zip([v for v, _ in pairs], softmax([s for _, s in pairs], temperature), strict=True)))
    return [(float(np.prod([p for _, p in one])), places, [v for v, _ in one]) for one in product(*sides)]


def pair(model, reward, canvas, places, log_probs, k, beta, temperature):
    """[(probability, (place,), [token])]: place and token together."""
    options = [(i, v, s) for i in places for v, s in candidates(model, reward, canvas, i, log_probs[i], k, beta)]
    shares = softmax([s for *_, s in options], temperature)
    return [(p, (i,), [v]) for (i, v, _), p in zip(options, shares, strict=True)]


def joint(model, reward, canvas, places, log_probs, count, beta):
    """[(probability, places, tokens)]: of `count` proposals one is kept."""
    fills = list(product(*[range(model.mask_id)] * len(places)))
    chance = [float(np.exp(sum(log_probs[i][v] for i, v in zip(places, fill, strict=True)))) for fill in fills]
    worth = [beta * value(reward, model, canvas, put(canvas, places, fill)) for fill in fills]
    law = dict.fromkeys(fills, 0.0)
    for drawn in product(range(len(fills)), repeat=count):
        for which, share in zip(drawn, softmax([worth[f] for f in drawn], 1.0), strict=True):
            law[fills[which]] += share * float(np.prod([chance[f] for f in drawn]))
    return [(p, places, list(fill)) for fill, p in law.items()]


def guided_law(model, rule, steps, length, step_law, canvas=None):
    """{finished canvas: probability}. step_law(canvas, places, log_probs) -> [(probability, places, tokens)] of one step."""
    mask = model.mask_id
    start = tuple(canvas or [mask] * length)
    masks = start.count(mask)
    alive, done = {(start, 0): 1.0}, {}
    while alive:
        following = {}
        for (state, step), weight in alive.items():
            open_places = [i for i in range(length) if state[i] == mask]
            if not open_places:
                done[state] = done.get(state, 0.0) + weight
                continue
            writable = open_places[:1] if model.causal else open_places
            log_probs = conditionals(model, list(state), writable)
            count = min(masks // steps + (step < masks % steps), len(writable))
            for share, places in where_law(rule, log_probs, count, max(1, steps - step)):
                for p, at, tokens in step_law(list(state), places, log_probs):
                    key = (tuple(put(state, at, tokens)), step + 1)
                    following[key] = following.get(key, 0.0) + weight * share * p
        alive = following
    return done
