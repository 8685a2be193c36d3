"""Twisted SMC: CPU time of a sweep and of a CTL update, and memory, against the reference loop (benchmarks/plain_smc.py).

    OMP_NUM_THREADS=1 python -m benchmarks.smc

The model is a GPT-2 of 2 layers and width 64 with random weights. The twist has a separate trained trunk and a linear head. There
are 100 particles, a prompt of 8 tokens, resampling at every step, and one thread. Figures are CPU seconds in alternation, the
minimum of a few repetitions. Memory is that of a new process, above the loaded model. The command prints tables and ends with
flat JSON.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks import plain_smc
from benchmarks.sampling import cpu_seconds, resident_mib
from dlm.causal_lm import CausalLM
from dlm.environment import TokenRule, UnmaskingEnvironment
from dlm.options import DecodeOptions
from dlm.prompts import Prompts
from evaluation.report import print_table
from samplers.heuristics import Leftmost
from samplers.smc import FilterStep, Particles, particle_filter
from samplers.twisted import TwistedTokens
from training.ranges import ROWS
from twist.network import TwistModel
from twist.potential import TwistPotential
from twist.targets import RewardTarget


@dataclass
class Shape:
    width: int = 64
    layers: int = 2
    heads: int = 4
    prompt: int = 8
    particles: int = 100
    repeats: int = 3


@dataclass
class Case:
    """A model, its twist and a potential: the log of a logistic function of fixed scores of the tokens."""

    model: CausalLM
    twist: TwistModel
    scores: Float[Tensor, "vocabulary"]
    prompt: Int[Tensor, "row position"]
    length: int

    def log_phi(self, tokens: Int[Tensor, "row position"]) -> Float[Tensor, "row"]:
        return torch.nn.functional.logsigmoid(self.scores[tokens].sum(1))


def build(shape: Shape, vocabulary: int, length: int) -> Case:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_layer=shape.layers, n_embd=shape.width, n_head=shape.heads, bos_token_id=0, eos_token_id=0,
        attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0,
    )  # fmt: skip
    model = CausalLM(GPT2LMHeadModel(config), 0).requires_grad_(False).eval()
    twist = TwistModel(model, "separate")
    torch.nn.init.xavier_normal_(twist.head.last.weight)
    prompt = torch.randint(vocabulary, (1, shape.prompt)).expand(shape.particles, -1)
    return Case(model, twist, torch.randn(vocabulary), prompt, length)


def our_sweep(
    case: Case, resample: str = "every", collect: Callable[[FilterStep], None] | None = None, seed: int = 0
) -> Particles:
    potential = TwistPotential(case.twist, RewardTarget(case.log_phi), len(case.prompt))
    environment = UnmaskingEnvironment(case.twist.sampled(), DecodeOptions(case.length))
    canvas = torch.nn.functional.pad(case.prompt[:1], (0, case.length), value=case.model.mask_id)
    proposal = TwistedTokens(Leftmost(), TokenRule(), potential.logit_bias)
    return particle_filter(
        environment,
        proposal,
        potential,
        Prompts(canvas),
        len(case.prompt),
        resample,
        "multinomial",
        seed,
        collect=collect,
    )


def our_update(case: Case, seed: int = 0) -> Float[Tensor, ""]:
    """Sample without gradients, keep the weights, and make one teacher-forced pass, whose gradient is CTL's."""
    prefixes: list[Tensor] = []
    found = our_sweep(case, "never", lambda step: prefixes.append(step.weights.log[0]), seed)
    log_psi = case.twist.log_psi_all(found.samples.tokens, case.prompt.shape[1])
    last = found.weights.log[0] - found.log_phi + log_psi[:, -1].detach()  # psi where the potential stood
    log_prefix = torch.stack([*prefixes[:-1], last], 1).float()
    loss = plain_smc.contrast(log_psi, found.weights.log[0].float(), log_prefix)
    loss.backward()
    return loss.detach()


def networks(case: Case) -> tuple[plain_smc.Network, plain_smc.Network]:
    """Return the same weights for the reference loop: functions from tokens to logits, and to log psi, at every position."""
    trunk = case.twist.trunk
    assert isinstance(trunk, CausalLM)

    def after_start(tokens: Tensor) -> Tensor:
        return torch.nn.functional.pad(tokens, (1, 0), value=case.model.start_id)

    def log_psi(tokens: Tensor) -> Tensor:
        return case.twist.head(
            trunk.backbone.base_model(input_ids=after_start(tokens), use_cache=False).last_hidden_state
        )

    return lambda tokens: case.model.backbone(input_ids=after_start(tokens), use_cache=False).logits, log_psi


@torch.no_grad()
def plain_sweep(case: Case, growing: bool = False) -> plain_smc.Sweep:
    return plain_smc.sweep(*networks(case), case.log_phi, case.prompt, case.length, True, growing)


def plain_update(case: Case, growing: bool = False) -> Float[Tensor, ""]:
    loss = plain_smc.contrastive(
        plain_smc.sweep(*networks(case), case.log_phi, case.prompt, case.length, False, growing)
    )
    loss.backward()
    return loss.detach()


def compared(case: Case, ours: Callable, plain: Callable, repeats: int) -> dict[str, float]:
    """Return the least CPU seconds of each, in alternation, after one run for warm-up."""
    works = {"ours": ours, "plain": plain, "growing": partial(plain, growing=True)}
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repeat in range(repeats + 1):
        for name, work in works.items():
            case.twist.zero_grad()
            spent = cpu_seconds(lambda work=work: work(case))[0]
            if repeat:
                seconds[name].append(spent)
    best = {name: min(values) for name, values in seconds.items()}
    return best | {"speedup": best["plain"] / best["ours"], "over growing": best["growing"] / best["ours"]}


def memory(shape: Shape, name: str) -> float:
    """Return the MiB of a sweep at 50,257 tokens, above the loaded model."""
    case = build(shape, 50257, 10)
    loaded = resident_mib("VmRSS")
    {"ours": our_sweep, "plain": plain_sweep}[name](case)
    return resident_mib("VmHWM") - loaded


def memory_of_a_fresh_process(shape: Shape, name: str) -> float:
    flags = [word for key, value in asdict(shape).items() for word in (f"--{key}", str(value))]
    command = [sys.executable, "-m", "benchmarks.smc", "--memory-of", name, *flags]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(printed.splitlines()[-1])["peak_mib"]


def main(words: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--memory-of", choices=("ours", "plain"), help="print the peak of this process and nothing else"
    )
    parser.add_argument("--vocabulary", type=ROWS, default=50257, help="of the large case")
    for name, value in asdict(Shape()).items():
        parser.add_argument(f"--{name}", type=ROWS, default=value)
    arguments = vars(parser.parse_args(words))
    memory_of, large = arguments.pop("memory_of"), arguments.pop("vocabulary")
    shape = Shape(**arguments)
    torch.set_num_threads(1)
    if memory_of:
        print(json.dumps({"peak_mib": memory(shape, memory_of)}))
        return
    small = build(shape, 1000, 20)
    found = {
        "sweep, V=1,000, T=20": compared(small, our_sweep, plain_sweep, shape.repeats),
        "CTL update, V=1,000, T=20": compared(small, our_update, plain_update, shape.repeats),
        f"sweep, V={large:,}, T=10": compared(build(shape, large, 10), our_sweep, plain_sweep, shape.repeats),
    }
    print_table([{"what": name, **values} for name, values in found.items()], title="CPU seconds")
    names = ("sweep_1k", "ctl_1k", "sweep_50k")
    result = {f"speedup_{name}": values["speedup"] for name, values in zip(names, found.values(), strict=True)}
    result |= {
        f"speedup_{name}_growing": values["over growing"] for name, values in zip(names, found.values(), strict=True)
    }
    peaks = {name: memory_of_a_fresh_process(shape, name) for name in ("ours", "plain")}
    print_table([peaks], title="MiB of a sweep above the loaded model, V=50,257, T=10")
    print(json.dumps({name: round(value, 4) for name, value in (result | {"peak_mib": peaks["ours"]}).items()}))


if __name__ == "__main__":
    main()
