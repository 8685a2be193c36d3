"""Tiny models whose every number is known: conditionals from an explicit joint, exact laws of samplers by enumeration."""

from itertools import combinations, permutations, product
from math import log

import numpy as np
import torch
from scipy.stats import chi2, norm
from torch import nn

from dlm.masked_lm import MaskedLM, RaddLM, SeddLM
from dlm.noise import GeometricNoise, LogLinearNoise
from model.radd import RADD
from model.sedd import SEDD

NOISES = {"loglinear": LogLinearNoise(), "geometric": GeometricNoise(1e-3, 10.0)}
TIE = 1e-5  # as the rules promise, not as the code says


class TableLM(MaskedLM):
    """log p(token | canvas, position) looked up. `table`: [(V + 1) ** L, L, V], a row for each canvas over 0..V, V the mask.

    The hidden state is (canvas, position), the head is the look-up: rows cannot know of each other.
    """

    def __init__(self, table, max_length=None):
        super().__init__(nn.Identity())
        self.length, self.mask_id = table.shape[1:]
        self.vocab_size, self.hidden_size, self.max_length = self.mask_id + 1, 2, max_length or self.length
        self.table = nn.Parameter(table.float().log_softmax(-1))

    def state(self, tokens):
        return (tokens * self.vocab_size ** torch.arange(self.length - 1, -1, -1)).sum(1)

    def hidden_rows(self, tokens, read, sigma):
        row, position = read.nonzero().unbind(1)
        return torch.stack((self.state(tokens)[row], position), 1).float()

    def head(self, hidden):
        state, position = hidden.long().unbind(1)
        return nn.functional.pad(self.table[state, position], (0, 1), value=-torch.inf)


def from_joint(joint):
    """A TableLM with the exact conditionals p(x_i | the tokens that are given) of `joint`, [V] * L."""
    length, vocabulary = joint.ndim, joint.shape[0]
    table = torch.zeros((vocabulary + 1) ** length, length, vocabulary, dtype=torch.float64)
    for state, canvas in enumerate(product(range(vocabulary + 1), repeat=length)):
        given = joint[tuple(slice(None) if token == vocabulary else slice(token, token + 1) for token in canvas)]
        for position in range(length):
            if canvas[position] == vocabulary:
                marginal = given.sum([axis for axis in range(length) if axis != position])
                if marginal.sum() > 0:  # else this canvas never comes up
                    table[state, position] = (marginal / marginal.sum()).log().clamp(min=-1e4)
    return TableLM(table)


def dependent_joint(vocabulary, length, seed=0, sharpness=1.5):
    """A joint whose tokens depend on each other, so that rules that write several at once leave different laws."""
    generator = torch.Generator().manual_seed(seed)
    logits = sharpness * torch.randn([vocabulary] * length, dtype=torch.float64, generator=generator)
    return logits.flatten().softmax(0).view_as(logits)


def inconsistent(vocabulary, length, seed=0):
    """A TableLM with random conditionals that no joint has: every order of writing gives another law."""
    generator = torch.Generator().manual_seed(seed)
    return TableLM(1.5 * torch.randn((vocabulary + 1) ** length, length, vocabulary, generator=generator))


class RandomLM(MaskedLM):
    """Logits by hashing (canvas, position): any length, any vocabulary, a row's logits a function of that row alone."""

    def __init__(self, vocabulary, max_length=64, causal=False, seed=0, spread=2.0):
        super().__init__(nn.Identity())
        self.mask_id, self.vocab_size = vocabulary, vocabulary + (not causal)
        self.hidden_size, self.max_length, self.causal = 1, max_length, causal
        generator = torch.Generator().manual_seed(seed)
        self.rows = torch.round(spread * torch.randn(1024, vocabulary, generator=generator), decimals=1)  # some tie
        self.multipliers = torch.randint(1, 10**6, (max_length, max_length), generator=generator) * 2 + 1

    def hidden_rows(self, tokens, read, sigma):
        length = tokens.shape[1]
        row, position = read.nonzero().unbind(1)
        seen = (torch.arange(length) < position.unsqueeze(1)) | (not self.causal)
        assert not (self.causal and (tokens[row][seen] == self.mask_id).any()), (
            "a causal model was asked past its first mask"
        )
        terms = (tokens[row] + 1) * self.multipliers[position, :length] * seen
        return (terms.sum(1) % len(self.rows)).unsqueeze(1).float()

    def head(self, hidden):
        logits = self.rows[hidden[:, 0].long()]
        return logits.clone() if self.causal else nn.functional.pad(logits, (0, 1), value=-torch.inf)


def random_radd(width=64, heads=2, vocabulary=11, blocks=2, length=128, **shape):
    """A small RADD with a head that is not zero, so that its predictions depend on the canvas."""
    torch.manual_seed(0)
    shape = {"hidden_size": width, "n_blocks": blocks, "n_heads": heads, "length": length, **shape}
    network = RADD({"tokens": vocabulary, "model": shape, "noise": {"type": "loglinear"}})
    nn.init.normal_(network.output_layer.linear.weight, std=0.3)
    nn.init.normal_(network.vocab_embed.embedding)
    return RaddLM(network).requires_grad_(False).eval()


def random_sedd(
    graph="absorb", noise="loglinear", vocabulary=3, length=16, width=16, spread=0.5, scaled=None, lift=0.0
):
    """A small SEDD whose scores depend on the canvas and on the noise and sum to anything, the more the higher `lift`."""
    torch.manual_seed(0)
    shape = {"hidden_size": width, "n_blocks": 1, "n_heads": 2, "cond_dim": 8, "length": length}
    shape["scale_by_sigma"] = graph == "absorb" if scaled is None else scaled
    network = SEDD({"tokens": vocabulary, "graph": {"type": graph}, "model": shape})
    for name, parameter in network.named_parameters():
        if "adaLN" in name or "output_layer.linear" in name:
            nn.init.normal_(parameter, std=spread)
    nn.init.normal_(network.vocab_embed.embedding)
    network.output_layer.linear.bias.data += lift
    return SeddLM(network, NOISES[noise]).requires_grad_(False).eval()


# ------------------------------------------------------------------------- laws: canvas -> probability, in plain Python


def tokens_law(log_probs, temperature=1.0, top_p=1.0, top_k=0):
    """The distribution that a token rule draws from, a list of probabilities; no ties between tokens expected."""
    if temperature == 0:
        best = max(range(len(log_probs)), key=lambda token: log_probs[token])
        return [float(token == best) for token in range(len(log_probs))]
    weight = np.exp(np.array(log_probs) / temperature)
    order = np.argsort(-weight)
    weight[order[top_k or len(weight) :]] = 0
    weight /= weight.sum()
    before = np.cumsum(weight[order]) - weight[order]
    weight[order[before >= top_p]] = 0
    return (weight / weight.sum()).tolist()


def even_subsets(positions, count):
    subsets = list(combinations(positions, count))
    return [(1 / len(subsets), subset) for subset in subsets]


def best_subsets(scores, count):
    """The `count` best of {position: score}; positions that tie with the last one share its places evenly."""
    last = sorted(scores.values(), reverse=True)[count - 1]
    sure = [i for i, score in scores.items() if score > last + TIE]
    tied = [i for i, score in scores.items() if abs(score - last) <= TIE]
    return [(share, (*sure, *more)) for share, more in even_subsets(tied, count - len(sure))]


def noisy_subsets(scores, count, noise):
    """Probability of each subset to be the `count` best of score + noise * N(0, 1): an integral over the best one left out."""
    if count == len(scores):
        return [(1.0, tuple(scores))]
    grid = np.linspace(min(scores.values()) - 9 * noise, max(scores.values()) + 9 * noise, 4001)
    out = []
    for subset in combinations(scores, count):
        above = np.prod([norm.sf(grid, scores[i], noise) for i in subset], axis=0)
        best_left = np.prod([norm.cdf(grid, scores[i], noise) for i in scores if i not in subset], axis=0)
        out.append((float((np.diff(best_left) * (above[1:] + above[:-1]) / 2).sum()), subset))
    return out


def where_law(name, canvas_log_probs, count, left, **settings):
    """[(probability, positions)] of one step of the rule `name`; `canvas_log_probs`: {writable position: log-probabilities}."""
    positions = list(canvas_log_probs)
    ordered = {i: sorted(np.exp(row), reverse=True) for i, row in canvas_log_probs.items()}
    top = {i: float(row[0]) for i, row in ordered.items()}
    entropy = {i: -sum(float(p) * log(p) for p in row if p > 0) for i, row in ordered.items()}
    if name == "direct":
        rate = 1 / left
        return [(rate ** len(s) * (1 - rate) ** (len(positions) - len(s)), s)
                for size in range(len(positions) + 1) for s in combinations(positions, size)]  # fmt: skip
    if name == "first_hitting":
        return even_subsets(positions, 1)
    if name == "random":
        return even_subsets(positions, count)
    if name == "dilated":  # given its offset
        bits = (settings["steps_a_block"] - 1).bit_length()
        turn = {i: int(f"{(i + settings['offset']) % 2**bits:0{bits}b}"[::-1], 2) if bits else 0 for i in positions}
        return best_subsets({i: -float(value) for i, value in turn.items()}, count)
    if name == "leftmost":
        return [(1.0, tuple(positions[: max(1, count)]))]
    if name == "confidence":
        return best_subsets({i: float(row[0] - row[1]) for i, row in ordered.items()}, count)
    if name == "top_prob":
        return best_subsets(top, count)
    if name == "entropy":
        return best_subsets({i: -value for i, value in entropy.items()}, count)
    if name == "confidence_noisy":
        return noisy_subsets(
            {i: float(log(row[0]) - log(row[1])) for i, row in ordered.items()}, count, settings["noise"]
        )
    if name == "threshold":
        sure = {i for i in positions if top[i] >= settings["threshold"]}
        return [(share, tuple(sorted(sure | set(one)))) for share, one in best_subsets(top, 1)]
    if name == "window":
        inside = {i: top[i] for i in positions[: settings["window"]]}
        sure = {i for i, p in inside.items() if p >= settings["threshold"]}
        return [(share, tuple(sorted(sure | set(one)))) for share, one in best_subsets(inside, 1)]
    if name == "factor":
        falling = sorted(top.values(), reverse=True)
        passing = [n for n, p in enumerate(falling, start=1) if (n + 1) * (1 - p) < settings["factor"]]
        return best_subsets(top, max(passing, default=1))
    if name == "entropy_bound":
        rising = sorted(entropy.values())
        passing = [n for n in range(1, len(rising) + 1) if sum(rising[: n - 1]) <= settings["bound"]]
        return best_subsets({i: -value for i, value in entropy.items()}, max(passing))
    raise ValueError(name)


def exact_law(model, name, steps, canvas=None, block=None, token_sampler=None, **settings):
    """{finished canvas: probability} of decoding `canvas` (default: all masked) with the rule `name`, by enumeration."""
    mask, length = model.mask_id, model.length
    block = block or length
    per_block = max(1, steps // (length // block))
    if name == "dilated" and "offset" not in settings:  # drawn once a row
        offsets = range(2 ** (per_block - 1).bit_length())
        laws = [
            exact_law(model, name, steps, canvas, block, token_sampler, offset=o, steps_a_block=per_block)
            for o in offsets
        ]
        return {row: sum(law.get(row, 0.0) for law in laws) / len(laws) for row in set().union(*laws)}
    table = model.table.detach().double()
    start = tuple(canvas or [mask] * length)
    alive, done = {(start, -1, 0, 0): 1.0}, {}
    while alive:
        following = {}
        for (state, old_block, step, masks), weight in alive.items():
            if mask not in state:
                done[state] = done.get(state, 0.0) + weight
                continue
            this_block = state.index(mask) // block
            writable = [i for i in range(this_block * block, (this_block + 1) * block) if state[i] == mask]
            if this_block != old_block:
                step, masks = 0, len(writable)
            place = int(model.state(torch.tensor([state])))
            log_probs = {i: table[place, i].tolist() for i in writable}
            count = min(masks // per_block + (step < masks % per_block), len(writable))
            for share, subset in where_law(name, log_probs, count, max(1, per_block - step), **settings):
                if share == 0:
                    continue
                choices = [
                    [(v, p) for v, p in enumerate(tokens_law(log_probs[i], **(token_sampler or {}))) if p > 0]
                    for i in subset
                ]
                for tokens in product(*choices):
                    filled, chance = list(state), weight * share
                    for i, (token, p) in zip(subset, tokens, strict=True):
                        filled[i], chance = token, chance * p
                    key = (tuple(filled), this_block, step + 1, masks)
                    following[key] = following.get(key, 0.0) + chance
        alive = following
    return done


def any_order_bound(model, tokens, given=()):
    """-log p of one row averaged over all orders of writing it one by one: nats for the row, by enumeration.
    Positions `given` stand there from the start."""
    length, table = len(tokens), model.table.detach().double()
    total = 0.0
    for order in (orders := list(permutations(i for i in range(length) if i not in given))):
        canvas = [tokens[i] if i in given else model.mask_id for i in range(length)]
        for position in order:
            total -= float(table[int(model.state(torch.tensor([canvas]))), position, tokens[position]])
            canvas[position] = int(tokens[position])
    return total / len(orders)


def fits(samples, law, smallest=1e-4):
    """Chi-square of sampled rows against a law; nothing of probability zero may come up. Raises AssertionError with the numbers."""
    seen, counts = torch.unique(samples, dim=0, return_counts=True)
    observed = {tuple(row): count for row, count in zip(seen.tolist(), counts.tolist(), strict=True)}
    assert abs(sum(law.values()) - 1) < 1e-5, f"the law sums to {sum(law.values())}"
    impossible = [row for row in observed if law.get(row, 0.0) == 0]
    assert not impossible, f"never to come up, and did: {impossible[:4]}"
    cells, rare = [], [0.0, 0]
    for row, probability in law.items():
        expected, found = probability * len(samples), observed.get(row, 0)
        if expected >= 5:
            cells.append((expected, found))
        else:
            rare = [rare[0] + expected, rare[1] + found]
    if rare[0] > 0:
        cells.append(tuple(rare))
    statistic = sum((found - expected) ** 2 / expected for expected, found in cells)
    p_value = float(chi2.sf(statistic, len(cells) - 1)) if len(cells) > 1 else 1.0
    assert p_value > smallest, f"chi-square {statistic:.1f} on {len(cells) - 1} degrees of freedom, p = {p_value:.1e}"
