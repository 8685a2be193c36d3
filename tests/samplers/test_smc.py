"""The particle filter against enumeration: every draw of tokens, positions and ancestors, no Monte Carlo."""

from itertools import product
from math import exp, log

import pytest
import torch
from torch import nn

from dlm.draws import Draws
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from samplers.heuristics import UNMASKING_RULES
from samplers.loop import Strategy
from samplers.smc import Diagnostics, Finish, Plain, Proposed, Trajectories, particle_filter
from samplers.twisted import TwistedJoint, TwistedTokens
from tests.enumerable import RandomLM, TableLM, dependent_joint, exact_law, from_joint
from tests.every_draw import every_run


class ExactLM(TableLM):
    """In float64, and causal where asked: then a position looks at what is left of it."""

    def __init__(self, table, causal=False):
        super().__init__(table)
        self.table = nn.Parameter(table.double().log_softmax(-1), requires_grad=False)
        self.causal = causal
        if causal:
            self.vocab_size = self.mask_id

    def state(self, tokens):
        base = self.mask_id + 1
        return (tokens * base ** torch.arange(self.length - 1, -1, -1)).sum(1)

    def head(self, hidden):
        state, position = hidden.long().unbind(1)
        logits = self.table[state, position].clone()
        return logits if self.causal else nn.functional.pad(logits, (0, 1), value=-torch.inf)


def tables(vocabulary, length, seed):
    generator = torch.Generator().manual_seed(seed)
    size = (vocabulary + 1) ** length
    table = torch.randn(size, length, vocabulary, generator=generator, dtype=torch.float64)
    psi = 1.5 * torch.randn(size, generator=generator, dtype=torch.float64)  # log psi of each canvas
    return table, psi


class TableTwist:
    """log psi of every canvas looked up; of finished ones log phi. optimal: psi* of the reference, one position a step."""

    def __init__(self, model, psi):
        self.model, self.psi = model, psi

    def with_token(self, hidden):
        state, position = hidden.long().unbind(1)
        base, mask = self.model.mask_id + 1, self.model.mask_id
        weight = base ** (self.model.length - 1 - position)
        tokens = torch.arange(self.model.vocab_size)
        return self.psi[(state - mask * weight).unsqueeze(1) + tokens.clamp(max=mask - 1) * weight.unsqueeze(1)]

    def logit_bias(self, hidden, row):
        return self.with_token(hidden)

    def log_psi(self, observation):
        return self.psi[self.model.state(observation.tokens)]

    def final(self, tokens, rows):
        return self.psi[self.model.state(tokens)]

    def select(self, index):
        pass


def paths(model, name, steps):
    """{(tokens, unmasked_at): probability} of the rule `name`, of models whose rules write without a tie."""
    mask, length = model.mask_id, model.length
    found, alive = {}, {((mask,) * length, (-1,) * length): 1.0}
    for step in range(length):
        following = {}
        for (state, written), chance in alive.items():
            free = [i for i in range(length) if state[i] == mask]
            if not free:
                found[state, written] = found.get((state, written), 0.0) + chance
                continue
            log_p = model.table[int(model.state(torch.tensor([state])))]
            count = min(length // steps + (step < length % steps), len(free))
            if name == "leftmost":
                choices = [(1.0, tuple(free[:count]))]
            elif name == "first_hitting":
                choices = [(1 / len(free), (i,)) for i in free]
            else:
                margins = {i: float(p[0] - p[1]) for i in free for p in [log_p[i].exp().sort(descending=True).values]}
                choices = [(1.0, tuple(sorted(margins, key=margins.__getitem__)[::-1][:count]))]
            for share, subset in choices:
                for tokens in product(range(mask), repeat=len(subset)):
                    new, at, p = list(state), list(written), chance * share
                    for i, token in zip(subset, tokens, strict=True):
                        new[i], at[i] = token, step
                        p *= exp(log_p[i, token])
                    key = (tuple(new), tuple(at))
                    following[key] = following.get(key, 0.0) + p
        alive = following
    for key, chance in alive.items():
        found[key] = found.get(key, 0.0) + chance
    assert abs(sum(found.values()) - 1) < 1e-12
    return found


def case(kind, seed=0, exponent=1.0):
    """(model, twist, name of the rule, steps, proposal) of a case. exponent: of psi in twisted proposals."""
    causal, length = kind.startswith("causal"), 2
    table, psi = tables(2, length, seed)
    model = ExactLM(table, causal)
    twist = TableTwist(model, psi)
    rule = TokenRule()
    if kind == "causal base":
        return model, twist, "leftmost", length, Plain(Strategy(UNMASKING_RULES["leftmost"](), rule))
    if kind == "causal twisted":
        return (
            model,
            twist,
            "leftmost",
            length,
            TwistedTokens(UNMASKING_RULES["leftmost"](), rule, twist.logit_bias, False, exponent),
        )
    if kind == "masked confidence":
        return model, twist, "confidence", length, Plain(Strategy(UNMASKING_RULES["confidence"](), rule))
    if kind == "masked all at once":
        return (
            model,
            twist,
            "confidence",
            1,
            TwistedTokens(UNMASKING_RULES["confidence"](), rule, twist.logit_bias, True, exponent),
        )
    if kind == "masked any order":
        return (
            model,
            twist,
            "first_hitting",
            length,
            TwistedTokens(UNMASKING_RULES["first_hitting"](), rule, twist.logit_bias, False, exponent),
        )
    return model, twist, "first_hitting", length, TwistedJoint(rule, twist.logit_bias, exponent)


KINDS = ("causal base", "causal twisted", "masked confidence", "masked all at once", "masked any order", "masked joint")


def blank(model, rows=1):
    return torch.full((rows, model.length), model.mask_id)


def log_z_of(model, twist, law):
    return log(sum(p * exp(float(twist.psi[model.state(torch.tensor([tokens]))])) for (tokens, _), p in law.items()))


SCHEMES_OF_CAUSAL = [("every", scheme) for scheme in ("multinomial", "systematic", "stratified", "residual")]


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize("kind, resample, scheme", [
    *[("causal twisted", *each) for each in SCHEMES_OF_CAUSAL], ("causal twisted", "ess", "systematic"),
    ("causal base", "never", "multinomial"), ("masked confidence", "every", "systematic"), ("masked all at once", "ess", "residual"),
    *[slow(kind, *each) for kind in KINDS for each in [*SCHEMES_OF_CAUSAL, ("ess", "multinomial")]],
])  # fmt: skip
def test_the_estimate_of_z_is_unbiased_over_every_draw(kind, resample, scheme, monkeypatch):
    model, twist, name, steps, proposal = case(kind)

    def run(draws):
        environment = UnmaskingEnvironment(model, DecodeOptions(steps))
        return particle_filter(environment, proposal, twist, Prompts(blank(model)), 2, resample, scheme, draws=draws)

    runs = every_run(run, monkeypatch)
    truth = exp(log_z_of(model, twist, paths(model, name, steps)))
    assert abs(sum(p * exp(float(found.log_z)) for p, found in runs) - truth) < 1e-12
    if len(runs) > 1:
        assert len({round(float(found.log_z), 9) for _, found in runs}) > 1


@pytest.mark.parametrize("kind, resample", [
    ("causal twisted", "every"), ("masked confidence", "every"), ("masked all at once", "never"),
    *[slow(kind, resample) for kind in KINDS for resample in ("every", "ess", "never")],
])  # fmt: skip
def test_the_estimate_of_one_over_z_is_unbiased_with_a_path_of_the_target(kind, resample, monkeypatch, exponent=1.0):
    model, twist, name, steps, proposal = case(kind, exponent=exponent)
    law = paths(model, name, steps)
    truth = exp(log_z_of(model, twist, law))
    total = 0.0
    for (tokens, unmasked_at), p in law.items():
        sigma = p * exp(float(twist.psi[model.state(torch.tensor([tokens]))])) / truth
        given = Trajectories(torch.tensor([tokens]), torch.tensor([unmasked_at]))

        def run(draws, given=given):
            environment = UnmaskingEnvironment(model, DecodeOptions(steps))
            return particle_filter(
                environment,
                proposal,
                twist,
                Prompts(blank(model)),
                2,
                resample,
                "multinomial",
                given=given,
                draws=draws,
            )

        runs = every_run(run, monkeypatch, pinned=True)
        assert all(torch.equal(found.samples.tokens[0], given.tokens[0]) for _, found in runs)
        assert all(torch.equal(found.samples.unmasked_at[0], given.unmasked_at[0]) for _, found in runs)
        total += sigma * sum(q * exp(-float(found.log_z)) for q, found in runs)
    assert abs(total - 1 / truth) < 1e-12 / truth


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kind, resample", [
    ("causal twisted", "every"), ("masked joint", "never"), ("masked any order", "never"), ("masked all at once", "never"),
    *[slow(kind, resample) for kind in KINDS if "base" not in kind and kind != "masked confidence"
      for resample in ("every", "ess")],
])  # fmt: skip
def test_a_tempered_proposal_is_as_unbiased(kind, resample, exponent, monkeypatch):
    """q of p psi^exponent: Zhat over every draw, and what each path was weighed by."""
    model, twist, name, steps, proposal = case(kind, exponent=exponent)
    law = paths(model, name, steps)
    truth = exp(log_z_of(model, twist, law))

    def run(draws, particles=2):
        environment = UnmaskingEnvironment(model, DecodeOptions(steps))
        return particle_filter(environment, proposal, twist, Prompts(blank(model)), particles, resample, draws=draws)

    runs = every_run(run, monkeypatch)
    assert abs(sum(p for p, _ in runs) - 1) < 1e-12
    assert abs(sum(p * exp(float(found.log_z)) for p, found in runs) - truth) < 1e-12
    for q, found in every_run(lambda draws: run(draws, 1), monkeypatch):
        key = tuple(found.samples.tokens[0].tolist()), tuple(found.samples.unmasked_at[0].tolist())
        if resample == "never":
            weight = exp(float(found.weights.log)) * q
            assert weight == pytest.approx(
                law[key] * exp(float(twist.psi[model.state(found.samples.tokens)])), rel=1e-9
            )


@pytest.mark.parametrize("exponent", [0.5, pytest.param(0.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind, resample", [("causal twisted", "every"), ("masked joint", "never")])
def test_a_tempered_proposal_is_unbiased_from_above_too(kind, resample, exponent, monkeypatch):
    test_the_estimate_of_one_over_z_is_unbiased_with_a_path_of_the_target(kind, resample, monkeypatch, exponent)


def test_a_tempered_proposal_lies_between_the_model_and_the_twist():
    """The likelier psi finds a text, the more the exponent gives it."""
    means = []
    for exponent in (0.0, 0.5, 1.0):
        model, twist, _, steps, proposal = case("causal twisted", exponent=exponent)
        found = particle_filter(
            UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, twist, Prompts(blank(model, 2000)), 1, "never"
        )
        means.append(float(found.log_phi.mean()))
    assert means[0] < means[1] < means[2]


def optimal(model, psi, any_order):
    """psi* of one position a step: phi where a canvas is full, else the mean over what the reference writes next."""
    best, mask, length = psi.clone(), model.mask_id, model.length
    canvases = sorted(product(range(mask + 1), repeat=length), key=lambda canvas: canvas.count(mask))
    for canvas in canvases:
        free = [i for i in range(length) if canvas[i] == mask]
        if not free:
            continue
        place, total = int(model.state(torch.tensor([canvas]))), 0.0
        for i in free if any_order else free[:1]:
            for token in range(mask):
                following = torch.tensor([[*canvas[:i], token, *canvas[i + 1 :]]])
                total += exp(model.table[place, i, token] + best[int(model.state(following))]) / (
                    len(free) if any_order else 1
                )
        best[place] = log(total)
    return best


@pytest.mark.parametrize("kind", ["causal twisted", "masked joint"])
def test_optimal_twists_leave_no_variance(kind):
    """All draws have the same estimate, log Z, even where the conditionals are those of no joint."""
    model, twist, name, steps, proposal = case(kind)
    truth = log_z_of(model, twist, paths(model, name, steps))
    twist.psi = optimal(model, twist.psi, any_order=kind == "masked joint")
    seen = Diagnostics()
    found = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        proposal,
        twist,
        Prompts(blank(model, 50)),
        3,
        "every",
        collect=seen,
    )
    assert (found.log_z - truth).abs().max() < 1e-12
    assert (torch.stack(seen.effective) - 3).abs().max() < 1e-12
    assert (seen.log_normalizer[0] - truth).abs().max() < 1e-12  # w_1 = Z, and 1 from then on


def test_base_positions_are_optimal_for_the_conditionals_of_one_joint_alone():
    for consistent in (True, False):
        table, psi = tables(2, 2, 1)
        table = from_joint(dependent_joint(2, 2, seed=1)).table.detach().double() if consistent else table
        model = ExactLM(table)
        twist = TableTwist(model, psi)
        truth = log_z_of(model, twist, paths(model, "first_hitting", 2))
        twist.psi = optimal(model, psi, any_order=True)
        proposal = TwistedTokens(UNMASKING_RULES["first_hitting"](), TokenRule(), twist.logit_bias)
        found = particle_filter(
            UnmaskingEnvironment(model, DecodeOptions(2)), proposal, twist, Prompts(blank(model, 50)), 3, "every"
        )
        assert (float((found.log_z - truth).abs().max()) < 1e-6) == consistent  # from_joint keeps float32


def test_a_constant_a_step_in_log_psi_changes_nothing_and_phi_scales_z():
    model, twist, _, steps, proposal = case("causal twisted")
    run = lambda: particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, twist, Prompts(blank(model, 20)), 4, "every"
    )
    before = run()
    partial = (torch.arange(len(twist.psi)) % 3) == 2  # the last position is masked
    twist.psi = twist.psi + 0.7 * partial
    assert torch.equal(run().samples.tokens, before.samples.tokens)
    assert torch.allclose(run().log_z, before.log_z, atol=1e-12)
    twist.psi = twist.psi + 2.0 * ~partial
    assert torch.equal(run().samples.tokens, before.samples.tokens)
    assert torch.allclose(run().log_z, before.log_z + 2.0, atol=1e-12)


def test_best_of_n_and_importance_sampling_are_settings():
    model, twist, _, steps, proposal = case("causal base")
    potential = Finish(lambda tokens, rows: twist.final(tokens, rows))
    found = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, potential, Prompts(blank(model, 40)), 6, "never"
    )
    log_phi = twist.psi[model.state(found.samples.tokens)]
    assert torch.equal(found.log_phi, log_phi)
    assert torch.equal(found.weights.log.flatten(), log_phi)
    assert torch.equal(log_phi[found.best()], log_phi.view(40, 6).amax(1))
    assert torch.allclose(found.log_z, log_phi.view(40, 6).logsumexp(1) - log(6))
    drawn = found.drawn(Draws(0))
    assert ((drawn // 6) == torch.arange(40)).all()


@pytest.mark.parametrize(
    "name, steps", [("direct", 2), ("confidence", 2), ("threshold", 4), ("entropy_bound", 4), ("random", 3)]
)
def test_any_strategy_of_the_core_is_wrapped(name, steps):
    """Rows finish at steps of their own; log Z and what is drawn by weight are those of the strategy's own law."""
    table, psi = tables(3, 3, 4)
    model = TableLM(table)
    psi = (
        psi / 4
    )  # wilder ones are as unbiased, and few of the filters then tell of the states that they think little of
    setting = {"threshold": {"threshold": 0.6}, "entropy_bound": {"bound": 1.2}}.get(name, {})
    law, rule = exact_law(model, name, steps, **setting), UNMASKING_RULES[name](**setting)
    twist = TableTwist(model, psi)
    truth = sum(p * exp(float(psi[model.state(torch.tensor([tokens]))])) for tokens, p in law.items())
    canvas = torch.full((3000, 3), model.mask_id)
    found = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        Plain(Strategy(rule, TokenRule())),
        twist,
        Prompts(canvas),
        6,
        "ess",
    )
    z = found.log_z.exp()
    assert abs(float(z.mean()) - truth) < 4.5 * float(z.std()) / 3000**0.5
    assert (found.samples.tokens != model.mask_id).all()
    assert torch.equal(found.samples.unmasked_at.amax(1) + 1, found.samples.steps)
    drawn = found.samples.tokens[found.drawn(Draws(0))]
    for tokens, p in law.items():  # Zhat times what is drawn has no bias, for any number of particles
        each = z * (drawn == torch.tensor(tokens)).all(1)
        exact = p * exp(float(psi[model.state(torch.tensor([tokens]))]))
        assert abs(float(each.mean()) - exact) < 4.5 * float(each.std()) / 3000**0.5 + 1e-3 * truth


def test_a_row_does_not_know_its_batch():
    model, twist, _, steps, proposal = case("causal twisted")
    canvas = blank(model, 6)
    whole = particle_filter(UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, twist, Prompts(canvas), 5)
    ids = torch.tensor([4, 1])
    some = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, twist, Prompts(canvas[:2]), 5, sample_id=ids
    )
    assert torch.equal(some.samples.tokens, whole.samples.tokens.view(6, 5, 2)[ids].flatten(0, 1))
    assert torch.equal(some.log_z, whole.log_z[ids])


@pytest.mark.parametrize("kind", ["causal base", "causal twisted", "masked any order", "masked joint"])
@pytest.mark.parametrize("resample", ["every", "never"])
def test_a_particle_that_cannot_reach_the_target_counts_as_nothing(kind, resample, monkeypatch):
    """Texts that begin with token 0 have phi = 0, and psi of their beginnings does not say it: proposals then have no mass."""
    model, twist, name, steps, proposal = case(kind)
    twist.psi[:2] = -torch.inf
    truth = exp(log_z_of(model, twist, paths(model, name, steps)))

    def run(draws):
        environment = UnmaskingEnvironment(model, DecodeOptions(steps))
        return particle_filter(
            environment, proposal, twist, Prompts(blank(model)), 2, resample, "multinomial", draws=draws
        )

    runs = every_run(run, monkeypatch)
    assert abs(sum(p * exp(float(found.log_z)) for p, found in runs) - truth) < 1e-12
    dead = [found for _, found in runs if bool(found.dead)]
    assert dead and all(float(found.log_z) == -torch.inf for found in dead)
    assert all((found.samples.tokens < model.mask_id).all() for found in dead)
    assert {int(found.best()) for found in dead} == {0} and {int(found.drawn(Draws(0))) for found in dead} <= {0, 1}


def test_a_dead_sample_ends_no_other():
    model, _, _, steps, proposal = case("causal base")
    seen = Diagnostics()
    potential = Finish(lambda tokens, rows: torch.where(rows // 4 == 1, -torch.inf, 0.5))
    canvas = blank(model, 3)
    found = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        proposal,
        potential,
        Prompts(canvas),
        4,
        "every",
        collect=seen,
    )
    assert found.dead.tolist() == [False, True, False]
    assert found.log_z.tolist() == [0.5, -torch.inf, 0.5] and found.weights.effective.tolist() == [4, 0, 4]
    whole = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        proposal,
        Finish(lambda t, r: 0.5 + 0 * r),
        Prompts(canvas),
        4,
        "every",
    )
    alive = torch.tensor([0, 1, 2, 3, 8, 9, 10, 11])
    assert torch.equal(found.samples.tokens[alive], whole.samples.tokens[alive])

    def at_once(observation):  # dead before the first resampling
        return torch.where(torch.arange(12) // 4 == 1, -torch.inf, 0.0)

    potential.log_psi, seen = at_once, Diagnostics()
    found = particle_filter(
        UnmaskingEnvironment(model, DecodeOptions(steps)),
        proposal,
        potential,
        Prompts(canvas),
        4,
        "every",
        collect=seen,
    )
    assert found.dead.tolist() == [False, True, False] and seen.resampled[0].tolist() == [True, False, True]
    assert seen.effective[0].tolist() == [4, 0, 4] and int(seen.parents[0][1]) == 4, "its particles keep their lines"


WIDE = RandomLM(6, seed=1)
LEFTMOST = Plain(Strategy(UNMASKING_RULES["leftmost"](), TokenRule()))


def filtered(potential, filters, particles, resample="every", **settings):
    """A filter of four positions, written from the left one a step."""
    canvas = torch.full((filters, 4), WIDE.mask_id)
    return particle_filter(
        UnmaskingEnvironment(WIDE, DecodeOptions(4)),
        LEFTMOST,
        potential,
        Prompts(canvas),
        particles,
        resample,
        **settings,
    )


def test_a_given_path_is_never_replaced_by_a_likelier_one():
    """Other particles resample its children too, and its own slot keeps it."""
    potential = Finish(lambda tokens, rows: tokens.sum(1).float())
    potential.log_psi = lambda observation: (observation.tokens * ~observation.masked).sum(1).float()
    given = Trajectories(torch.zeros(50, 4, dtype=torch.long), torch.arange(4).expand(50, -1))
    samples = filtered(potential, 50, 4, scheme="multinomial", given=given).samples
    assert torch.equal(samples.tokens[::4], given.tokens) and torch.equal(samples.unmasked_at[::4], given.unmasked_at)
    assert (samples.tokens.view(50, 4, 4)[:, 1:] > 0).any(2).float().mean() > 0.5


def test_what_a_potential_remembers_goes_with_the_particle_that_is_resampled():
    class Remembering(Finish):
        """Of each particle the canvas that it weighed last: the next one must continue it."""

        before, compared = None, 0

        def log_psi(self, observation):
            if self.before is not None:
                known = self.before != WIDE.mask_id
                assert torch.equal(observation.tokens[known], self.before[known])
                self.compared += 1
            self.before = observation.tokens.clone()
            return (observation.tokens * ~observation.masked).sum(1).float()

        def select(self, index):
            self.before = self.before[index]

    potential, seen = Remembering(lambda tokens, rows: tokens.sum(1).float()), Diagnostics()
    filtered(potential, 10, 6, collect=seen)
    assert potential.compared == 2 and min(int(parents.min()) for parents in seen.parents[:3]) < 6


def test_children_of_one_particle_draw_apart():
    """The first of 8 particles has all the children; they share its first token, and each draws its own from then on."""
    potential = Finish(lambda tokens, rows: torch.zeros(len(rows)))
    others = torch.arange(40 * 8) % 8 > 0
    potential.log_psi = lambda observation: (others & (observation.masked.sum(1) == 3)) * -1e4
    tokens = filtered(potential, 40, 8).samples.tokens.view(40, 8, 4)
    assert (tokens[:, :, 0] == tokens[:, :1, 0]).all()
    assert min(len(rows.unique(dim=0)) for rows in tokens) > 1


def test_the_best_particle_is_one_that_lives():
    """A state of psi = 0 excludes its particle, however good the text turns out that it becomes."""
    potential = Finish(lambda tokens, rows: torch.where(rows % 4 == 2, 5.0, (rows % 4).float()))
    excluded = torch.arange(12) % 4 == 2
    potential.log_psi = lambda observation: torch.where(excluded, -torch.inf, 0.0)
    found = filtered(potential, 3, 4, "never")
    assert (found.log_phi.view(3, 4) == torch.tensor([0.0, 1.0, 5.0, 3.0])).all()
    assert found.best().tolist() == [3, 7, 11]


def test_what_a_proposal_said_of_a_state_goes_with_the_particle_that_is_resampled():
    """Particles write, are resampled by what the proposal says of their token, and then rest: nothing is left to weigh."""
    model, _, _, steps, _ = case("causal base")
    decoder, rests = (
        Strategy(UNMASKING_RULES["leftmost"](), TokenRule()),
        Finish(lambda tokens, rows: 2.0 * tokens[:, 0]),
    )

    class Resting:
        def propose(self, observation, draws, given):
            decision = decoder.decide(observation, draws)
            log_psi = 2.0 * decision.tokens[:, 0].double()
            if int(observation.row_step[0]) == 1:
                decision.order, log_psi = torch.zeros_like(decision.order), torch.zeros_like(log_psi)
            return Proposed(decision, torch.zeros_like(log_psi), log_psi)

    weighed = []
    environment = UnmaskingEnvironment(model, DecodeOptions(steps))
    particle_filter(
        environment,
        Resting(),
        rests,
        Prompts(blank(model, 40)),
        4,
        "every",
        collect=lambda step: weighed.append(step.weights.log),
    )
    assert weighed[0].unique().tolist() == [0.0, 2.0] and (weighed[1] == 0).all()


def test_a_weight_that_is_no_number_is_named_by_its_step():
    model, twist, _, steps, proposal = case("causal base")
    twist.psi = torch.where(torch.arange(9) % 3 == 2, 0.0, torch.nan)
    with pytest.raises(
        FloatingPointError,
        match="step 2: the log potential of 8 of 8 particles is NaN.* take more particles, or temper",
    ):
        particle_filter(UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, twist, Prompts(blank(model, 2)), 4)
    with pytest.raises(ValueError, match="compared at one length"):
        particle_filter(
            UnmaskingEnvironment(model, DecodeOptions(steps, ends=(0,))), proposal, twist, Prompts(blank(model)), 4
        )
    with pytest.raises(ValueError, match="particles=0 must be at least 1"):
        particle_filter(UnmaskingEnvironment(model, DecodeOptions(steps)), proposal, twist, Prompts(blank(model)), 0)
