"""A causal model, a potential and twists whose every number is known: V tokens, T positions, tables over all prefixes."""

from itertools import product

import torch

from twist.objectives import Densities


class Chain:
    """log_p[t]: [V^t, V] conditionals; log_phi: [V^T]; everything float64. A prefix is numbered in base V."""

    def __init__(self, vocabulary=4, length=3, seed=0, spread=1.0):
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: spread * torch.randn(*shape, generator=generator, dtype=torch.float64)
        self.vocabulary, self.length = vocabulary, length
        self.log_p = [draw(vocabulary**t, vocabulary).log_softmax(1) for t in range(length)]
        self.log_phi = torch.nn.functional.logsigmoid(draw(vocabulary**length) * 2)  # a probability
        self.sequences = torch.tensor(list(product(range(vocabulary), repeat=length)))
        self.number = [
            self.numbers(self.sequences[:, :t]) for t in range(length + 1)
        ]  # of each prefix of each sequence

    def numbers(self, prefix):
        """The number of each prefix [row, t]."""
        powers = self.vocabulary ** torch.arange(prefix.shape[1] - 1, -1, -1)
        return (prefix * powers).sum(1)

    @property
    def optimal(self):
        """(log psi*_t as [V^t] for t = 1..T, log Z): what is still to come, by backward recursion."""
        twists = [self.log_phi]
        for t in range(self.length - 1, -1, -1):
            twists.append((self.log_p[t] + twists[-1].view(-1, self.vocabulary)).logsumexp(1))
        return twists[:-1][::-1], twists[-1].squeeze()

    @property
    def log_z(self):
        return self.optimal[1]

    def log_prior(self):
        """log p of every sequence."""
        return self.of_tables(self.log_p).sum(1)

    def log_sigma(self):
        return self.log_prior() + self.log_phi - self.log_z

    def of_tables(self, tables, tokens=None):
        """[row, T]: what tables [V^t-1, V] say of each token of `tokens` (default: of every sequence)."""
        tokens = self.sequences if tokens is None else tokens
        return torch.stack([tables[t].flatten()[self.numbers(tokens[:, : t + 1])] for t in range(self.length)], 1)

    def densities(self, log_psi, tokens=None):
        """log_psi: [V^t] for t = 1..T."""
        tables = [table.view(-1, self.vocabulary) for table in log_psi]
        log_normalizer = [
            (p + psi).logsumexp(1, keepdim=True).expand_as(p) for p, psi in zip(self.log_p, tables, strict=True)
        ]
        return Densities(*(self.of_tables(x, tokens) for x in (self.log_p, tables, log_normalizer)))

    def new_twists(self, seed=None, spread=0.3):
        """Twists to learn; all zero without a seed."""
        generator = torch.Generator().manual_seed(seed or 0)
        scale = 0.0 if seed is None else spread
        return [torch.nn.Parameter(scale * torch.randn(self.vocabulary**t, generator=generator, dtype=torch.float64))
                for t in range(1, self.length + 1)]  # fmt: skip

    def kls(self, log_psi):
        """KL(q || sigma) and KL(sigma || q), exactly."""
        log_q, log_sigma = self.densities(log_psi).log_q.sum(1), self.log_sigma()
        return (log_q.exp() * (log_q - log_sigma)).sum(), (log_sigma.exp() * (log_sigma - log_q)).sum()

    def draw(self, log_prob, rows, generator):
        """Sequences from the law exp(log_prob) over all of them: their numbers."""
        return torch.multinomial(log_prob.exp(), rows, replacement=True, generator=generator)
