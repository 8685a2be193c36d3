"""Action distributions: which positions to commit, given one logit per position.

All distributions have the same two methods. `sample` is a pure function of its uniform numbers (one per position, from a
counter-based hash, so a row's draws do not depend on its batch). It returns `order`: 0 for positions that are not selected,
else the rank of the selected position, from 1. `log_prob` is the exact log-probability of that order (of the set, for the
Bernoulli distributions), differentiable, in float32. A row without selectable positions has log-probability 0, an
impossible order -inf.

In decoding with revision, committed positions are selectable too: selected ones are opened again. `forced` then marks the
positions of which a step must select one; a row without any may select nothing, which ends it. By default these are all
selectable positions.

Sources: arXiv 2512.09106 for the Bernoulli distributions and for Plackett-Luce with STOP ("DPLS", its appendix E); Kool et
al., arXiv 1903.06059, for Gumbel top-k. What differs: log-sigmoids in place of clamped probabilities; `BernoulliForced` has
the likelihood of the distribution that it samples; STOP needs no uniform number of its own (see `PlackettLuceStop`).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int
from torch import Tensor

FLOOR = -1e30  # replaces -inf where a gradient passes
NEVER = 1e300  # replaces inf as the logarithm of a time: differences are not NaN, and finite terms do not change it


@dataclass(frozen=True)
class Bernoulli:
    """Select each selectable position independently with probability min(1, beta * sigmoid(logit / temperature)).

    An empty set is a legal action: nothing is committed, and the canvas need not be evaluated again. For training. `beta`
    is the paper's parameter at test time (its figure 6).
    """

    temperature: float | int = 1.0
    beta: float | int = 1.0

    def __post_init__(self):
        _require_positive(temperature=self.temperature, beta=self.beta)

    def sample(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        uniforms: Float64[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Int[Tensor, "row position"]:
        """Draw a set. Every selected position has rank 1."""
        return _bernoulli_selected(self, logits, writable, uniforms).long()

    def log_prob(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        order: Int[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row"]:
        terms = _bernoulli_log_terms(self, logits, writable, order)
        return _forbid(terms.sum(dim=-1), _selected_outside(order, writable))


@dataclass(frozen=True)
class BernoulliForced:
    """`Bernoulli`, but the empty set is replaced by the selectable position with the highest logit (the first of equals).

    The published `bernoulli-argmax`, for evaluation. P({best}) = P_B({best}) + P_B({}) = product over the others of (1 -
    p), and every other non-empty set has P_B. The published code scores a forced selection by P_B alone, which is the
    likelihood of another distribution. The probabilities jump where the two highest logits cross, so importance ratios are
    rough: train with `Bernoulli`.
    """

    temperature: float | int = 1.0
    beta: float | int = 1.0

    def __post_init__(self):
        _require_positive(temperature=self.temperature, beta=self.beta)

    def sample(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        uniforms: Float64[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Int[Tensor, "row position"]:
        """Draw a set. Every selected position has rank 1; at least one position is selected in every row with a selectable
        position.
        """
        selected = _bernoulli_selected(self, logits, writable, uniforms)
        best = _best(logits, writable if forced is None else forced)
        return torch.where(selected.any(dim=-1, keepdim=True), selected, best).long()

    def log_prob(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        order: Int[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row"]:
        forced = writable if forced is None else forced
        selected, best = order > 0, _best(logits, forced)
        only_best = (selected == best).all(dim=-1, keepdim=True)
        terms = _bernoulli_log_terms(self, logits, writable, order).masked_fill(only_best & best, 0.0)
        nothing = forced.any(dim=-1) & ~selected.any(dim=-1)
        return _forbid(terms.sum(dim=-1), nothing | _selected_outside(order, writable))


@dataclass(frozen=True)
class Trust:
    """Select every position with sigmoid(logit / temperature) >= threshold, and always the best one, deterministically.

    Fast-dLLM's threshold rule on the policy's scores in place of the model's probabilities. For sampling only: a
    deterministic action has no gradient.
    """

    temperature: float | int = 1.0
    threshold: float | int = 0.5

    def __post_init__(self):
        _require_positive(temperature=self.temperature)
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold {self.threshold} must be from 0 to 1; change it")

    def sample(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        uniforms: Float64[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Int[Tensor, "row position"]:
        """Select a set. Every selected position has rank 1; at least one position is selected in every row with a
        selectable position.
        """
        selected = torch.sigmoid(logits.double() / self.temperature) >= self.threshold
        return ((selected & writable) | _best(logits, writable if forced is None else forced)).long()

    def log_prob(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        order: Int[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row"]:
        """Return 0 for the selected set, -inf for any other."""
        uniforms = torch.zeros_like(logits, dtype=torch.float64)
        other = (self.sample(logits, writable, uniforms, forced) > 0) != (order > 0)
        return _forbid(torch.zeros_like(logits[:, 0]), other.any(dim=-1))


@dataclass(frozen=True)
class PlackettLuceStop:
    """Select positions without replacement until STOP is drawn. The first selection is forced, so every step commits
    something.

    With utilities b = logit / temperature over the selectable positions M, and s = stop_logit:
        P(k_1) = exp b_{k_1} / sum_{i in M} exp b_i,
        P(k_j | k_<j) = exp b_{k_j} / (exp s + sum_{i in M without k_<j} exp b_i), and STOP likewise with exp s.

    Sampled as a race: position i arrives at an exponential time E_i of rate exp b_i; its key is -log E_i. The time t of the
    first arrival is exponential of rate Z = sum exp b, independent of which position arrives first and of the later
    arrivals. STOP's clock, started at t, may therefore show t Z / exp s, an exponential time of rate exp s. The selected
    positions are those with E_i <= t + t Z / exp s, whose keys are within log(1 + Z / exp s) of the best. STOP needs no
    uniform number.

    A row without `forced` positions may draw STOP first. u = exp(-t Z) is uniform and independent of what arrives: STOP comes
    first if u < exp s / (exp s + Z), and otherwise u, conditioned on that, is the uniform number of STOP's clock after t.
    """

    stop_logit: float | int = 0.0
    temperature: float | int = 1.0

    def __post_init__(self):
        _require_positive(temperature=self.temperature)

    def sample(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        uniforms: Float64[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Int[Tensor, "row position"]:
        """Draw positions. Ranks 1, 2, ... are the order of selection."""
        utilities = (logits.double() / self.temperature).masked_fill(~writable, -torch.inf)
        keys = _gumbel_keys(utilities, uniforms)
        log_total = utilities.logsumexp(dim=-1, keepdim=True)
        reach = F.softplus(log_total - self.stop_logit, threshold=700.0)
        # Written as a sum: a row with nothing writable compares -inf with -inf, and the second factor empties it.
        selected = (keys + reach >= keys.amax(dim=-1, keepdim=True)) & writable
        if forced is not None:
            free = ~forced.any(dim=-1, keepdim=True)
            selected = torch.where(free, self._before_stop(keys, log_total) & writable, selected)
        return _ranks(keys).masked_fill(~selected, 0)

    def _before_stop(
        self, keys: Float64[Tensor, "row position"], log_total: Float64[Tensor, "row 1"]
    ) -> Bool[Tensor, "row position"]:
        """Mark the positions that arrive before STOP, where STOP may come first."""
        first = keys.amax(dim=-1, keepdim=True).neg().exp()  # the time of the first arrival
        uniform = (-first * log_total.exp()).exp()
        stops_first = torch.sigmoid(self.stop_logit - log_total)
        left = ((uniform - stops_first) / (1 - stops_first)).clamp(min=1e-300)
        end = first - left.log() * math.exp(-self.stop_logit)
        return (keys.neg().exp() <= end) & (uniform >= stops_first)

    def log_prob(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        order: Int[Tensor, "row position"],
        forced: Bool[Tensor, "row position"] | None = None,
    ) -> Float[Tensor, "row"]:
        chosen, remaining, in_order = _by_rank(logits.float() / self.temperature, writable, order)
        stop = torch.full_like(remaining[:, :1], self.stop_logit)
        with_stop = torch.logaddexp(remaining, stop)
        first = remaining[:, :1]  # no STOP before the first selection
        if forced is not None:
            first = torch.where(forced.any(dim=-1, keepdim=True), first, with_stop[:, :1])
        denominator = torch.cat([first, with_stop[:, 1:-1]], dim=-1)
        log_selected = torch.where(in_order, chosen - denominator, 0.0).sum(dim=-1)
        count = in_order.sum(dim=-1, keepdim=True)
        stopped = (stop - with_stop.gather(-1, count)).squeeze(-1)
        log_prob = torch.where(writable.any(dim=-1), log_selected + stopped, 0.0)
        nothing = (writable if forced is None else forced).any(dim=-1) & (count.squeeze(-1) == 0)
        return _forbid(log_prob, nothing | _selected_outside(order, writable))


@dataclass(frozen=True)
class FixedCount:
    """Select `count` positions without replacement, in proportion to exp(logit / temperature).

    This is Plackett-Luce without STOP, drawn by Gumbel top-k. Positions of one step cannot see each other's tokens, and
    neighbours depend on each other most. `repulsion[d - 1]`, if given, is subtracted from the utility of every position at
    distance d from a position selected earlier in the same step:
        P(k_j | k_<j) = exp u_{k_j} / sum_{i left} exp u_i,  u_i = logit_i / temperature - sum_{l<j} repulsion[|i - k_l| - 1]

    Sampled as a race in either case: position i arrives after an exponential time of rate exp u_i. If a selection at time t
    lowers u_i by r, the remaining time of i, which is exponential at any moment, grows by the factor exp r. One uniform
    number per position is enough, and the distribution is exact.
    """

    temperature: float | int = 1.0

    def __post_init__(self):
        _require_positive(temperature=self.temperature)

    def sample(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        uniforms: Float64[Tensor, "row position"],
        count: Int[Tensor, "row"],
        repulsion: Float[Tensor, "distance"] | None = None,
    ) -> Int[Tensor, "row position"]:
        """Draw positions with ranks 1 to `count`. A row with fewer selectable positions selects all of them."""
        utilities = (logits.double() / self.temperature).masked_fill(~writable, -torch.inf)
        keys = _gumbel_keys(utilities, uniforms)
        if repulsion is None:
            ranks = _ranks(keys)
            return ranks.masked_fill(~writable | (ranks > count[:, None]), 0)
        cost = _by_distance(repulsion.double(), logits.shape[-1]).clamp(max=NEVER)
        # Logarithms of the remaining time of each position; a position that is selected, or not selectable, never arrives.
        left = (-keys).masked_fill(~writable, NEVER).clamp(max=NEVER)
        arrivals = []
        for pick in range(int(count.max())):
            if pick:
                left = _after(left, arrivals[-1].values, arrivals[-1].indices, cost)
            arrivals.append(left.min(dim=-1, keepdim=True))
        order = torch.zeros_like(writable, dtype=torch.long)
        if not arrivals:
            return order
        times = torch.cat([first.values for first in arrivals], dim=-1)
        places = torch.cat([first.indices for first in arrivals], dim=-1)
        rank = torch.arange(1, len(arrivals) + 1, device=order.device)
        selected = (times < NEVER / 2) & (rank <= count[:, None])
        return order.scatter_add(-1, places, rank * selected)

    def log_prob(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        order: Int[Tensor, "row position"],
        repulsion: Float[Tensor, "distance"] | None = None,
    ) -> Float[Tensor, "row"]:
        """Return the log-probability given the count, which is the number of selected positions of the order."""
        if repulsion is not None:
            return self._log_prob_repelled(logits, writable, order, repulsion)
        chosen, remaining, in_order = _by_rank(logits.float() / self.temperature, writable, order)
        log_selected = torch.where(in_order, chosen - remaining[:, :-1], 0.0).sum(dim=-1)
        return _forbid(log_selected, _selected_outside(order, writable))

    def _log_prob_repelled(
        self,
        logits: Float[Tensor, "row position"],
        writable: Bool[Tensor, "row position"],
        order: Int[Tensor, "row position"],
        repulsion: Float[Tensor, "distance"],
    ) -> Float[Tensor, "row"]:
        """Compute it from one [row, selection, position] tensor: the utilities before each selection."""
        count = (order > 0).sum(dim=-1)
        most = int(count.max()) if len(order) else 0
        places = torch.where(order > 0, order, order.shape[-1] + 1).argsort(dim=-1, stable=True)
        rank_of, places = places.argsort(dim=-1), places[:, :most]
        rank = torch.arange(most, device=order.device)
        in_order = rank < count[:, None]
        cost = _by_distance(repulsion.float(), order.shape[-1])[places].masked_fill(~in_order[..., None], 0.0)
        before = cost.cumsum(dim=1) - cost
        left = writable[:, None] & (rank_of[:, None] >= rank[:, None])
        utilities = ((logits.float() / self.temperature)[:, None] - before).masked_fill(~left, FLOOR)
        log_pick = utilities.gather(-1, places[..., None]).squeeze(-1) - utilities.logsumexp(dim=-1)
        return _forbid(torch.where(in_order, log_pick, 0.0).sum(dim=-1), _selected_outside(order, writable))


ACTIONS = {
    "bernoulli": Bernoulli,
    "bernoulli_argmax": BernoulliForced,
    "plackett_luce": PlackettLuceStop,
    "fixed": FixedCount,
}
FOR_SAMPLING = ACTIONS | {"threshold": Trust}  # without chance there is nothing to learn from


def _require_positive(**settings: float | int) -> None:
    for name, value in settings.items():
        if not value > 0:
            raise ValueError(f"{name} {value} must be above 0; give a positive number")


def _selected_outside(
    order: Int[Tensor, "row position"], writable: Bool[Tensor, "row position"]
) -> Bool[Tensor, "row"]:
    return ((order > 0) & ~writable).any(dim=-1)


def _forbid(log_prob: Float[Tensor, "row"], impossible: Bool[Tensor, "row"]) -> Float[Tensor, "row"]:
    return log_prob.masked_fill(impossible, -torch.inf)


# ------------------------------------------------------------------------------------------------- Bernoulli


def _bernoulli_selected(
    distribution: Bernoulli | BernoulliForced,
    logits: Float[Tensor, "row position"],
    writable: Bool[Tensor, "row position"],
    uniforms: Float64[Tensor, "row position"],
) -> Bool[Tensor, "row position"]:
    return (uniforms < distribution.beta * torch.sigmoid(logits.double() / distribution.temperature)) & writable


def _bernoulli_log_terms(
    distribution: Bernoulli | BernoulliForced,
    logits: Float[Tensor, "row position"],
    writable: Bool[Tensor, "row position"],
    order: Int[Tensor, "row position"],
) -> Float[Tensor, "row position"]:
    """Return log p at selected positions, log(1 - p) at other selectable positions, 0 elsewhere."""
    scaled = logits.float() / distribution.temperature
    if distribution.beta == 1.0:
        log_pick, log_leave = F.logsigmoid(scaled), F.logsigmoid(-scaled)
    else:
        log_pick = (F.logsigmoid(scaled) + math.log(distribution.beta)).clamp(max=0.0)
        certain = log_pick == 0.0
        # The inner fill keeps the gradient finite where the selection is certain.
        log_leave = torch.log(-torch.expm1(log_pick.masked_fill(certain, -1.0))).masked_fill(certain, -torch.inf)
    return torch.where(order > 0, log_pick, log_leave).masked_fill(~writable, 0.0)


def _best(
    logits: Float[Tensor, "row position"], writable: Bool[Tensor, "row position"]
) -> Bool[Tensor, "row position"]:
    """Mark the selectable position with the highest logit, the first of equals; none in a row without selectable
    positions.
    """
    best = logits.float().masked_fill(~writable, -torch.inf).argmax(dim=-1, keepdim=True)
    return torch.zeros_like(writable).scatter(-1, best, True) & writable


# ------------------------------------------------------------------------------------------------- Plackett-Luce


def _gumbel_keys(
    utilities: Float64[Tensor, "row position"], uniforms: Float64[Tensor, "row position"]
) -> Float64[Tensor, "row position"]:
    return utilities - torch.log(-torch.log(uniforms))


def _after(
    left: Float64[Tensor, "row position"],
    time: Float64[Tensor, "row 1"],
    place: Int[Tensor, "row 1"],
    cost: Float64[Tensor, "position other"],
) -> Float64[Tensor, "row position"]:
    """Return the logarithms of the remaining times after a position has arrived: log(e^left - e^time), plus its repulsion.

    Overwrites `left`, because every operation of this loop is a kernel on a GPU.
    """
    gap = (time - left).clamp_(
        max=-1e-300
    )  # log(e^left - e^time) = left + log(1 - e^gap); an exact tie keeps a last bit
    return left.add_(gap.expm1_().neg_().log_()).add_(cost[place.squeeze(-1)]).scatter_(-1, place, NEVER)


def _by_distance(repulsion: Float[Tensor, "distance"], length: int) -> Float[Tensor, "position other"]:
    """Return repulsion[|i - j| - 1], 0 on the diagonal and beyond the last distance."""
    place = torch.arange(length, device=repulsion.device)
    reach = F.pad(repulsion[: length - 1], (1, max(0, length - 1 - len(repulsion))))
    return reach[(place[:, None] - place).abs()]


def _ranks(keys: Float64[Tensor, "row position"]) -> Int[Tensor, "row position"]:
    """Return 1 for the highest key of each row, 2 for the next, ..."""
    places = keys.argsort(dim=-1, descending=True, stable=True)
    ranks = torch.arange(1, keys.shape[-1] + 1, device=keys.device).expand_as(places)
    return torch.zeros_like(places).scatter(-1, places, ranks)


def _by_rank(
    utilities: Float[Tensor, "row position"], writable: Bool[Tensor, "row position"], order: Int[Tensor, "row position"]
) -> tuple[Float[Tensor, "row pick"], Float[Tensor, "row pick_or_end"], Bool[Tensor, "row pick"]]:
    """Return utilities in the order of selection, the logsumexp of the remaining ones before each selection (and after the
    last), and which places hold a selection.
    """
    utilities = utilities.masked_fill(~writable, FLOOR)
    length = order.shape[-1]
    places = torch.where(order > 0, order, length + 1).argsort(dim=-1, stable=True)
    chosen = utilities.gather(-1, places)
    remaining = chosen.flip(-1).logcumsumexp(dim=-1).flip(-1)
    remaining = torch.cat([remaining, torch.full_like(remaining[:, :1], FLOOR)], dim=-1)
    return chosen, remaining, order.gather(-1, places) > 0
