"""The benchmark of twisted SMC: the plain loop weighs as ours does and has CTL's gradient, and it runs."""

import json

import pytest
import torch

from benchmarks import plain_smc, smc
from twist.network import densities

TINY = smc.Shape(width=16, layers=1, heads=2, prompt=2, particles=6, repeats=1)
FLAGS = [word for name, value in vars(TINY).items() for word in (f"--{name}", str(value))]


@pytest.mark.parametrize("growing", [False, True])
def test_the_plain_loop_weighs_and_learns_as_one_teacher_forced_pass_does(growing):
    case = smc.build(TINY, 20, 4)
    torch.nn.init.normal_(case.twist.head.last.weight, std=0.5)
    plain = plain_smc.sweep(*smc.networks(case), case.log_phi, case.prompt, 4, False, growing)
    plain_smc.contrastive(plain).backward()
    gradients = {name: value.grad.clone() for name, value in case.twist.named_parameters() if value.grad is not None}
    case.twist.zero_grad()
    log_p, log_psi, log_normalizer = densities(case.twist, plain.tokens, 2)
    log_q = (log_p + log_psi - log_normalizer).detach()
    assert torch.allclose(plain.log_weight, (log_p - log_q).sum(1) + case.log_phi(plain.tokens), atol=1e-4)
    prefix = ((log_p - log_q).cumsum(1) + log_psi).detach()
    assert torch.allclose(plain.log_prefix, prefix, atol=1e-4)
    plain_smc.contrast(log_psi, plain.log_weight, prefix).backward()
    assert len(gradients) > 5
    for name, value in case.twist.named_parameters():
        if value.requires_grad:
            assert torch.allclose(value.grad, gradients[name], atol=1e-4), name


def test_our_update_has_the_gradient_of_its_own_samples():
    case = smc.build(TINY, 20, 4)
    torch.nn.init.normal_(case.twist.head.last.weight, std=0.5)
    loss = smc.our_update(case, seed=3)
    found = smc.our_sweep(case, "never", seed=3)
    with torch.no_grad():
        log_p, log_psi, log_normalizer = densities(case.twist, found.samples.tokens, 2)
    log_q = log_p + log_psi - log_normalizer
    weight = (log_p - log_q).sum(1) + case.log_phi(found.samples.tokens)
    expected = plain_smc.contrast(log_psi, weight, (log_p - log_q).cumsum(1) + log_psi)
    assert float(loss) == pytest.approx(float(expected), abs=1e-4)


def test_it_runs_and_ends_with_json(capsys, monkeypatch):
    monkeypatch.setattr(smc, "memory_of_a_fresh_process", lambda shape, name: 1.0)
    smc.main([*FLAGS, "--vocabulary", "30"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    speedups = {f"speedup_{name}{more}" for name in ("sweep_1k", "ctl_1k", "sweep_50k") for more in ("", "_growing")}
    assert result.keys() == speedups | {"peak_mib"}
