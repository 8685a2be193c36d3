"""F, G, IWAE and rejection against enumeration; files of exact samples that belong to something else."""

import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.enumerable import fits
from tests.twist.chain import Chain
from twist.bounds import (
    Bounds,
    Estimate,
    Origin,
    Posterior,
    accepted,
    check_upper,
    closest,
    difference,
    importance_bounds,
    kl_both_ways,
    load_posterior,
    log_mean_weight,
    model_digest,
)
from twist.objectives import final_log_weight

SAMPLES = 100_000


@pytest.fixture(scope="module")
def chain():
    return Chain()


@pytest.fixture(scope="module")
def weighed(chain):
    """(log-weights of samples of q, of samples of sigma, the exact KLs) of a proposal that is neither p nor optimal."""
    twists = [twist.detach() for twist in chain.new_twists(seed=7, spread=0.5)]
    seen = chain.densities(twists)
    log_weight = final_log_weight(seen.log_p, seen.log_q, chain.log_phi)
    generator = torch.Generator().manual_seed(0)
    of_q = log_weight[chain.draw(seen.log_q.sum(1), SAMPLES, generator)]
    of_sigma = log_weight[chain.draw(chain.log_sigma(), SAMPLES, generator)]
    return of_q, of_sigma, [float(kl) for kl in chain.kls(twists)]


def near(values, expected):
    spread = float(values.std()) / len(values) ** 0.5
    assert abs(float(values.mean()) - expected) < 4.5 * spread, (float(values.mean()), expected, spread)


# ------------------------------------------------------------------------------------------------ (h) F and G


def test_f_and_g_meet_the_exact_kls(chain, weighed):
    of_q, of_sigma, (forward, backward) = weighed
    log_z = float(chain.log_z)
    near(of_q, log_z - forward)
    near(of_sigma, log_z + backward)
    f, g = Estimate.of(of_q), Estimate.of(of_sigma)
    there, back = kl_both_ways(f, g, log_z)
    assert there.value + back.value == pytest.approx(g.value - f.value, abs=1e-12)
    assert there.low < there.value < there.high and there.high - there.low == pytest.approx(f.high - f.low)
    assert there.low - 0.01 < forward < there.high + 0.01 and back.low - 0.01 < backward < back.high + 0.01
    assert f.value < log_z < g.value


def test_the_interval_covers_as_often_as_it_says():
    generator = torch.Generator().manual_seed(1)
    covered = [e.low < 0 < e.high for e in (Estimate.of(torch.randn(200, generator=generator)) for _ in range(2000))]
    assert abs(sum(covered) / 2000 - 0.95) < 4.5 * (0.05 * 0.95 / 2000) ** 0.5
    assert Estimate.of(torch.ones(1)).high == math.inf


# ------------------------------------------------------------------------------------------------ IWAE


def test_importance_bounds_close_in(chain, weighed):
    of_q, of_sigma, _ = weighed
    log_z, gaps = float(chain.log_z), []
    for particles in (1, 5, 50):
        sweeps = SAMPLES // particles
        bounds = importance_bounds(of_q[: sweeps * particles].view(sweeps, particles), of_sigma[:sweeps])
        assert bounds.upper is not None
        assert float(bounds.lower.mean()) < log_z < float(bounds.upper.mean())
        near((bounds.lower - log_z).exp(), 1.0)  # E[Zhat] = Z
        near((log_z - bounds.upper).exp(), 1.0)  # E[1 / Zhat] = 1 / Z
        gaps.append(bounds.gap)
        assert bounds.midpoint == pytest.approx(log_z, abs=bounds.gap / 2)
    assert gaps == sorted(gaps, reverse=True)


def test_the_exact_sample_takes_one_place():
    log_weight, exact = torch.log(torch.tensor([[1.0, 3.0]]).double()), torch.log(torch.tensor([5.0]).double())
    bounds = importance_bounds(log_weight, exact)
    assert float(bounds.lower.exp()) == pytest.approx(2) and float(bounds.upper.exp()) == pytest.approx(4)
    assert importance_bounds(log_weight, None).upper is None
    torch.testing.assert_close(log_mean_weight(log_weight), bounds.lower)


def test_the_smallest_gap_gives_the_midpoint():
    value = lambda *numbers: torch.tensor(numbers, dtype=torch.float64)
    bounds = {"iwae": Bounds(value(-3.0, -1.0), value(0.0, 0.0)), "smc": Bounds(value(-1.2), value(-1.0)),
              "base": Bounds(value(-1.0), None)}  # fmt: skip
    assert closest(bounds) == "smc" and bounds["smc"].midpoint == pytest.approx(-1.1)
    assert closest({"base": bounds["base"]}) is None


def test_what_log_z_is_known_to_holds_the_gap_and_the_spread_of_its_sweeps():
    value = lambda *numbers: torch.tensor(numbers, dtype=torch.float64)
    spread = 1.96 * 0.5 * 2**0.5 / 2**0.5  # of midpoints that are one apart
    for sign in (1, -1):  # bounds that cross say no more than others
        bounds = Bounds(value(-2.0, -3.0) - sign * 0.6, value(-2.0, -3.0) + sign * 0.6)
        assert bounds.midpoint == pytest.approx(-2.5) and bounds.error == pytest.approx(
            math.hypot(0.6, spread), rel=1e-3
        )
    assert Bounds(value(-2.0), value(-1.0)).error == math.inf
    each = Bounds(value(1.0, 2.0, 5.0), value(3.0, 4.0, 5.0)).of_each(2)
    assert each.lower.tolist() == [3.0, 2.0] and each.upper is not None and each.upper.tolist() == [4.0, 4.0]


def test_a_weight_of_0_makes_infinities_and_no_numbers_that_are_none():
    value = lambda *numbers: torch.tensor(numbers, dtype=torch.float64)
    f, g = Estimate.of(value(-math.inf, -1.0)), Estimate.of(value(-1.0, -2.0))
    assert f == Estimate(-math.inf, -math.inf, -math.inf)
    forward, backward = kl_both_ways(f, g, -1.5)
    assert forward == Estimate(math.inf, math.inf, math.inf) and backward.value == pytest.approx(0.0)
    assert difference(g, f).wider(0.1) == Estimate(math.inf, math.inf, math.inf)
    bounds = {
        "iwae": Bounds(value(-math.inf, -1.0), value(0.0, 0.0)),
        "smc": Bounds(value(-2.0, -2.0), value(0.0, 0.0)),
    }
    assert closest(bounds) == "smc" and closest({"iwae": bounds["iwae"]}) is None


# ------------------------------------------------------------------------------------------------ (i) rejection


def test_what_rejection_keeps_is_of_the_target(chain):
    generator = torch.Generator().manual_seed(2)
    index = chain.draw(chain.log_prior(), SAMPLES, generator)
    kept = index[accepted(chain.log_phi[index], torch.rand(SAMPLES, generator=generator, dtype=torch.float64))]
    law = {tuple(s.tolist()): float(p) for s, p in zip(chain.sequences, chain.log_sigma().exp(), strict=True)}
    fits(chain.sequences[kept], law)
    z = math.exp(float(chain.log_z))
    assert abs(len(kept) / SAMPLES - z) < 4.5 * (z * (1 - z) / SAMPLES) ** 0.5


def test_a_potential_above_one_is_refused():
    with pytest.raises(
        ValueError, match="the log potential reaches 0.5, so phi is no probability .* posterior.count=0"
    ):
        accepted(torch.tensor([0.5, -1.0]), torch.full((2,), 0.5, dtype=torch.float64))
    assert accepted(torch.tensor([-math.inf, 0.0]), torch.full((2,), 0.5, dtype=torch.float64)).tolist() == [
        False,
        True,
    ]


def test_another_beta_has_no_upper_bounds():
    check_upper(1.0)
    with pytest.raises(ValueError, match="target.beta=10.0: exact samples of the target exist at beta=1 only"):
        check_upper(10.0)


# ------------------------------------------------------------------------------------------------ files

ORIGIN = Origin((3, 1), 4, "weights", "toxicity, class 0")


@pytest.fixture
def file(tmp_path):
    posterior = Posterior(torch.arange(8).view(2, 4), torch.arange(4).expand(2, 4), torch.tensor([[7], [8]]), 50)
    posterior.save(tmp_path / "deep" / "posterior.safetensors", ORIGIN)
    return tmp_path / "deep" / "posterior.safetensors"


def test_exact_samples_come_back(file):
    again = load_posterior(file, ORIGIN)
    assert (
        again.tokens.tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
        and again.given.tolist() == [[7], [8]]
        and again.tried == 50
    )
    assert again.unmasked_at.tolist() == [[0, 1, 2, 3]] * 2
    assert len(again) == 2 and again.rows(slice(1, 2)).given.tolist() == [[8]]


@pytest.mark.parametrize(("change", "named"), [
    ({"prompt": (3, 2)}, "prompt"), ({"length": 5}, "length"), ({"model": "others"}, "model"), ({"target": "class 1"}, "target"),
    ({"prompt": (), "model": "others"}, "prompt and model"),
])  # fmt: skip
def test_samples_of_something_else_are_refused(change, named, file):
    other = Origin(**({"prompt": (3, 1), "length": 4, "model": "weights", "target": "toxicity, class 0"} | change))
    with pytest.raises(ValueError, match=f"holds exact samples of another {named} than this run's"):
        load_posterior(file, other)


def test_a_damaged_or_missing_file_is_named(file, tmp_path):
    with pytest.raises(ValueError, match="none.safetensors does not exist"):
        load_posterior(tmp_path / "none.safetensors", ORIGIN)
    content = file.read_bytes()
    with safe_open(str(file), "pt") as opened:
        told = opened.metadata()
    file.write_bytes(content.replace(b"toxicity", b"sentimen"))
    with pytest.raises(ValueError, match="was changed: its digest is not that of what it says"):
        load_posterior(file, ORIGIN)
    tensors = load_file(file)
    save_file(tensors | {"tokens": tensors["tokens"] + 1}, file, told)
    with pytest.raises(ValueError, match="was changed"):
        load_posterior(file, ORIGIN)
    file.write_bytes(content[:40])
    with pytest.raises(ValueError, match="cannot be read"):
        load_posterior(file, ORIGIN)


def test_the_digest_is_of_the_weights():
    one, other = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    assert model_digest(one) == model_digest(one) != model_digest(other)
    other.load_state_dict(one.state_dict())
    assert model_digest(one) == model_digest(other)
