"""Every run of a sampler with its probability: the random numbers are chosen one by one, all of them in all ways."""

from itertools import permutations, product

import torch

from dlm.draws import Draws
from samplers import smc
from samplers.particles import SCHEMES


class Chosen(Draws):
    """Draws by a script: at the n-th choice the n-th entry says which of the options that have probability. pinned: of two
    particles the first one follows a path, so that nothing is drawn for it."""

    def __init__(self, script, pinned=False):
        super().__init__(seed=0)
        object.__setattr__(self, "pinned", pinned)
        object.__setattr__(self, "script", script)
        object.__setattr__(self, "options", [])  # of each choice, how many there were
        object.__setattr__(self, "made", [])  # their probabilities

    def choose(self, probabilities):
        possible = [index for index, p in enumerate(probabilities) if p > 0]
        number = len(self.options)
        pick = self.script[number] if number < len(self.script) else 0
        self.options.append(len(possible))
        self.made.append(float(probabilities[possible[pick]]))
        return possible[pick]

    def categorical(self, logits, row_id, row_step, position, stream="what"):
        laws = logits.double().softmax(1).tolist()
        free = [not (self.pinned and row % 2 == 0) for row in row_id.tolist()]
        return torch.tensor(
            [self.choose(law) if own else 0 for law, own in zip(laws, free, strict=True)], dtype=torch.long
        )

    def uniform(self, stream, row_id, row_step, positions):
        if stream != "where":
            return torch.full((len(row_id), positions), 0.5, dtype=torch.float64)
        orders = list(permutations(range(positions)))  # what counts is who is before whom
        if int(row_step[0]) == positions - 1:  # one mask is left, one being written a step
            orders = orders[:1]
        even = [1 / len(orders)] * len(orders)
        rows = [orders[0 if self.pinned and row % 2 == 0 else self.choose(even)] for row in row_id.tolist()]
        return (torch.tensor(rows, dtype=torch.float64) + 0.5) / positions

    def ancestors(self, weights, scheme):
        """All that the scheme makes of its uniforms: constant between points that are known."""
        out = []
        for probability in weights.probability:
            particles = len(probability)
            expected = probability * particles
            left = expected - expected.floor()
            points = torch.cat(
                (probability.cumsum(0), expected.cumsum(0) % 1, (left / left.sum()).cumsum(0))
            ).nan_to_num(0)
            points = torch.cat((points, torch.tensor([0.0, 1.0], dtype=torch.float64))).clamp(0, 1).unique()
            middles, widths = (points[1:] + points[:-1]) / 2, points[1:] - points[:-1]
            axes = 1 if scheme == "systematic" else particles
            law = {}
            for cell in product(range(len(middles)), repeat=axes):
                uniforms = middles[list(cell)].expand(particles) if axes == 1 else middles[list(cell)]
                found = tuple(SCHEMES[scheme](probability.unsqueeze(0), uniforms.unsqueeze(0))[0].tolist())
                found = (0, *found[1:]) if self.pinned else found
                law[found] = law.get(found, 0.0) + float(widths[list(cell)].prod())
            found = list(law)
            out.append(found[self.choose([law[each] for each in found])])
        return torch.tensor(out)


def every_run(run, monkeypatch, pinned=False):
    """[(probability, result)] of `run(draws)` for all that its draws may be; they sum to one."""

    def by_script(weights, scheme, draws, sample_id, step, keeps_first=False):
        ancestors = draws.ancestors(weights, scheme)
        if keeps_first:
            ancestors[:, 0] = 0
        return ancestors

    monkeypatch.setattr(smc, "draw_ancestors", by_script)
    found, script = [], []
    while True:
        draws = Chosen(script, pinned)
        result = run(draws)
        found.append((float(torch.tensor(draws.made, dtype=torch.float64).prod()), result))
        script = script + [0] * (len(draws.options) - len(script))
        while script and script[-1] + 1 == draws.options[len(script) - 1]:
            script.pop()
        if not script:
            assert abs(sum(p for p, _ in found) - 1) < 1e-12
            return found
        script[-1] += 1
