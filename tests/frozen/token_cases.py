"""What `tests/frozen/tokens.json` pins: cases by name, and how a case is decoded by the entrances that users have.

A case is a list of `KEY=VALUE` words, keys of `configs/sample.yaml`; `@NAME` is a folder of `models.json`. `decode_case` and
`decode_ragged_case` are the only places that know the entrances: when these change their names, change these two functions and
nothing else.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import yaml
from omegaconf import DictConfig, OmegaConf

import rewards.models
from data.prompt_file import PromptRow
from load_model import load_model
from samplers.samples import Samples
from training.usage import composed
from unmask.decoders import Layout, build_decoder
from unmask.runs import guide
from unmask.runs import sample as sample_run

SEEDS = (3, 8)
EQUAL_STEPS = ("direct", "random", "dilated", "confidence", "confidence_noisy", "top_prob", "entropy", "leftmost")
OWN_STEPS = ("first_hitting", "threshold", "window", "factor", "entropy_bound")
PREDICTORS = ("euler", "analytic")
GUIDED = ("args", "args_stochastic", "pargs", "pargs_g", "value_head", "best_of_n", "top_k")
FILTERS = ("twisted_smc", "fk")
IN_BLOCKS = ("direct", "dilated", "confidence", "leftmost", "first_hitting", "threshold", "window")
READING = (
    "confidence",
    "confidence_noisy",
    "entropy",
    "threshold",
    "factor",
)  # confidences of the sampling distribution
SETTINGS = {
    "threshold": "threshold=0.3",
    "window": "threshold=0.3 sampler.window=3",
    "factor": "factor=1.5",
    "entropy_bound": "entropy_bound=2.5",
    "confidence_noisy": "noise=0.5",
}  # so that rules commit more than one position a step
PROMPTS = ["the ", "a cat", "once", "o"]  # of decode_ragged_case


def rule(name: str) -> str:
    """A strategy with its settings: 4 equal steps, or as many as the rule takes."""
    own = f" sampler.{SETTINGS[name]}" if name in SETTINGS else ""
    return f"sampler.strategy={name}{own}" + (" sampler.steps=4" if name in EQUAL_STEPS else "")


def policy(folder: str, more: str = "sampler.steps=4") -> str:
    return f"sampler.strategy=policy sampler.policy.path=@{folder} {more}"


def strategies() -> dict[str, str]:
    """Every unmasking rule alone; in blocks; under a budget; with confidences of the sampling distribution; settings at their ends."""
    text = "dlm.path=@text length=12 "
    cases = {f"rule {name}": text + rule(name) for name in (*EQUAL_STEPS, *OWN_STEPS)}
    blocks = {name: rule(name).replace("steps=4", "steps=6") + " sampler.block_length=4" for name in IN_BLOCKS}
    cases |= {f"blocks {name}": text + words for name, words in blocks.items()}
    cases |= {f"budget {name}": text + f"{rule(name)} sampler.budget=3".replace("steps=4", "steps=8")
              for name in ("direct", "confidence", "first_hitting", "threshold", "window")}  # fmt: skip
    cases |= {f"sampling confidence {name}": text + f"{rule(name)} sampler.confidence=sampling sampler.temperature=0.7 sampler.top_p=0.9"
              for name in READING}  # fmt: skip
    return cases | {
        "default strategy": "dlm.path=@text length=12",
        "steps that do not divide": f"{text}sampler.strategy=confidence sampler.steps=5",
        "one step": f"{text}sampler.strategy=top_prob sampler.steps=1",
        "more steps than positions": f"{text}sampler.strategy=direct sampler.steps=40",
        "causal": "dlm.path=@causal prefix='the ' length=12",
        "llada": "dlm.path=@llada length=12 sampler.strategy=confidence sampler.steps=4",
        "dream": "dlm.path=@dream length=12 sampler.strategy=entropy sampler.steps=4",
        "board": f"dlm.path=@board prefix='12..34..21..4321' {rule('confidence')}",
    }


def prompts_and_tokens() -> dict[str, str]:
    """Prompts, suffixes, templates, ends of sequence, guidance; temperature, top-p and top-k."""
    text = "dlm.path=@text length=12 sampler.steps=4 "
    rules = {"tokens at confidence": f"{text}sampler.strategy=confidence", "tokens at direct": f"{text}sampler.strategy=direct",
             "tokens of causal": "dlm.path=@causal length=12"}  # fmt: skip
    tokens = {"greedy": "temperature=0", "temperature 0.5": "temperature=0.5", "temperature 1.5": "temperature=1.5",
              "top-p": "top_p=0.7", "top-k": "top_k=3",
              "all three": "top_p=0.9 sampler.top_k=5 sampler.temperature=0.8"}  # fmt: skip
    cases = {f"{name} {how}": f"{words} sampler.{setting}" for name, words in rules.items() for how, setting in tokens.items()
             if name == "tokens at confidence" or how in ("greedy", "all three")}  # fmt: skip
    ends = "sampler.strategy=confidence sampler.temperature=1.5"
    return cases | {
        "prompt": f"{text}prefix='the cat' sampler.strategy=confidence",
        "prompt and suffix": f"{text}prefix='the ' suffix=' dog.' sampler.strategy=direct",
        "template": "dlm.path=@text template='the [MASK:3] and [MASK:4].' sampler.steps=4 sampler.strategy=entropy",
        "prompt and blocks": f"{text}prefix='the ' sampler.strategy=dilated sampler.block_length=4",
        "guidance": f"{text}prefix='the ' sampler.strategy=confidence sampler.guidance=1.5",
        "guidance of llada": "dlm.path=@llada length=12 prefix='the ' sampler.strategy=threshold sampler.threshold=0.3 sampler.guidance=0.5",
        "stop": f"{text}{ends} sampler.stop=true",
        "stop at leftmost": "dlm.path=@text length=16 sampler.steps=16 sampler.strategy=leftmost sampler.stop=true sampler.temperature=1.5",
        "stop in blocks": f"{text}{ends} sampler.stop=true sampler.block_length=3",
        "stop of causal": "dlm.path=@causal length=16 sampler.stop=true",
        "never the end": f"{text}{ends} sampler.logits_eos_inf=true",
        "ends last": f"{text}{ends} sampler.confidence_eos_eot_inf=true",
        "ends last at threshold": f"dlm.path=@text length=12 {rule('threshold')} sampler.confidence_eos_eot_inf=true",
    }


def policies() -> dict[str, str]:
    """Every kind of policy network and every action; with temperatures, blocks, budgets and the weight of speed."""
    text, four = "dlm.path=@text length=12 ", "sampler.policy.action={} sampler.policy.temperature=0.7"
    cases = {f"policy dit {action}": text + policy("dit", four.format(action) + (" sampler.steps=4" if action == "fixed" else ""))
             for action in ("fixed", "bernoulli_argmax", "plackett_luce", "threshold")}  # fmt: skip
    cases |= {f"policy {name}": text + policy(name) for name in ("dit_repelling", "dit_reading", "mlp", "blocks")}
    adapts = "sampler.policy.action=bernoulli_argmax"
    cases |= {f"policy {name} adapts": text + policy(name, adapts) for name in ("blocks",)}
    return cases | {
        "policy dit beta": text + policy("dit", f"{adapts} sampler.policy.beta=0.5"),
        "policy dit trusts": text + policy("dit", "sampler.policy.action=threshold sampler.policy.threshold=0.7"),
        "policy dit behind a prompt": text + "prefix='the ' " + policy("dit", adapts),
        "policy dit blocks": text + policy("dit", f"{adapts} sampler.block_length=4"),
        "policy dit budget": text + policy("dit", f"{adapts} sampler.policy.beta=0.3 sampler.budget=3"),
        "policy mlp blocks": text + policy("mlp", "sampler.steps=6 sampler.block_length=6"),
        "policy agreement": "dlm.path=@text length=16 " + policy("agreement", adapts),
        "policy agreement board": "dlm.path=@board prefix='12..34..21..4321' " + policy("agreement_board", adapts),
        "policy dit board": "dlm.path=@board prefix='1...............' " + policy("dit"),
        "policy dit_hidden dream": "dlm.path=@dream length=12 " + policy("dit_hidden"),
    }


def caches() -> dict[str, str]:
    """No cache, prefix and dual, with and without refreshes, by rules and policies."""
    cases = {}
    for name in ("llada", "dream"):
        common = f"dlm.path=@{name} prefix='the ' length=16 sampler.block_length=6 "
        for kept, refresh in (("null", "null"), ("prefix", "null"), ("prefix", "2"), ("dual", "null"), ("dual", "2")):
            setting = f"sampler.cache={kept} sampler.refresh={refresh}"
            cases[f"cache {name} {kept} {refresh}"] = f"{common}{setting} sampler.strategy=confidence sampler.steps=4"
    common = "dlm.path=@llada prefix='the ' length=16 sampler.block_length=6 sampler.cache=dual sampler.refresh=3 "
    adapts = "sampler.policy.action=bernoulli_argmax"
    return cases | {
        "cache at threshold": f"{common}sampler.strategy=threshold sampler.threshold=0.3",
        "cache of a policy": common + policy("dit", adapts),
        "cache of a policy of hidden states": common + policy("dit_hidden", adapts),
        "cache that stops": f"{common}sampler.strategy=entropy sampler.steps=6 sampler.stop=true sampler.temperature=1.5",
    }


def scores() -> dict[str, str]:
    """SEDD on both graphs, by its own predictors and by rules."""
    cases = {f"{name} {graph}": f"dlm.path=@{graph} length=12 sampler.strategy={name} sampler.steps=4"
             for name in PREDICTORS for graph in ("sedd", "sedd_uniform")}  # fmt: skip
    return cases | {
        "predictor behind a prompt": "dlm.path=@sedd length=12 prefix='the ' sampler.strategy=analytic sampler.steps=4",
        "sedd confidence": "dlm.path=@sedd length=12 sampler.strategy=confidence sampler.steps=4",
        "sedd direct": "dlm.path=@sedd length=12 sampler.strategy=direct sampler.steps=4",
    }


FITTING = {"args": "@full", "args_stochastic": "@full", "pargs": "@prefix", "pargs_g": "@prefix", "best_of_n": "@full"}


def guided() -> dict[str, str]:
    """Every guided strategy on a causal and a masked model, every way to value several positions, every way to read a reward."""
    causal, text = (
        "dlm.path=@causal length=10 prefix='the ' ",
        "dlm.path=@text length=10 prefix='the ' sampler.steps=4 ",
    )
    cases = {}
    for name in GUIDED:
        for model, words in (("causal", causal), ("text", text)):
            reward = f"@head_{model}" if name == "value_head" else FITTING.get(name, "null")
            more = " sampler.guide.samples=3" if name == "best_of_n" else ""
            cases[f"{name} {model}"] = (
                f"{words}sampler.strategy={name} sampler.guide.reward={reward} sampler.guide.k=4{more}"
            )
    by_masks = f"{text}sampler.strategy=pargs sampler.guide.reward=@mask sampler.guide.k=3 sampler.guide.beta=0.7"
    for positions in ("independent", "pair", "joint"):
        cases[f"pargs {positions}"] = f"{by_masks} sampler.guide.positions={positions} sampler.guide.proposals=3"
    by_prefix = f"{causal}sampler.strategy=pargs sampler.guide.k=4 sampler.guide.reward="
    return cases | {
        "pargs pair of a head": f"{text}sampler.strategy=value_head sampler.guide.reward=@head_text sampler.guide.k=3 sampler.guide.positions=pair",
        "pargs random": f"{by_masks} sampler.guide.unmask=random",
        "pargs in blocks": f"{by_masks} sampler.guide.unmask=threshold sampler.block_length=3",
        "pargs with budget": f"{by_masks} sampler.guide.unmask=first_hitting sampler.budget=3",
        "pargs rows": f"{by_prefix}@prefix sampler.guide.read=rows",
        "pargs texts": f"{by_prefix}@prefix sampler.guide.read=texts",
        "pargs of an encoder": f"{by_prefix}@encoder",
        "pargs of another tokenizer": f"{by_prefix}@other",
        "pargs that stops": "dlm.path=@causal length=14 sampler.strategy=pargs sampler.guide.k=8 sampler.guide.reward=@prefix sampler.stop=true",
        "pargs temperature": f"{by_prefix}@prefix sampler.guide.temperature=0.5 sampler.guide.beta=4",
    }


def particles() -> dict[str, str]:
    """Twisted SMC of every kind of twist and proposal; FK steering by every potential; every way and time to resample."""
    few = "sampler.smc.particles=4 "
    twisted = lambda name, more="": f"sampler.strategy=twisted_smc sampler.smc.twist=@twist_{name} {few}{more}"
    steered = lambda model, more="": (
        f"dlm.path=@{model} length=9 prefix='the ' sampler.steps=4 sampler.strategy=fk {few}sampler.guide.reward=@full sampler.smc.scale=2 {more}"
    )
    cases = {f"twisted {scheme}": twisted("causal", f"sampler.smc.resample=every sampler.smc.scheme={scheme}")
             for scheme in ("multinomial", "stratified", "systematic", "residual")}  # fmt: skip
    cases |= {f"fk {potential} {model}": steered(model, f"sampler.smc.potential={potential} sampler.smc.completions=2")
              for potential in ("difference", "max", "sum") for model in ("text", "causal")}  # fmt: skip
    cases |= {f"fk {scheme}": steered("causal", f"sampler.smc.resample=every sampler.smc.scheme={scheme}")
              for scheme in ("stratified",)}  # fmt: skip
    several = "sampler.steps=2 sampler.smc.resample=every"
    return cases | {
        "twisted ess": twisted("causal", "sampler.smc.resample=ess"),
        "twisted never": twisted("causal", "sampler.smc.resample=never"),
        "twisted best": twisted("causal", "sampler.smc.pick=best"),
        "twisted interval": twisted("causal", "sampler.smc.resample=every sampler.smc.interval=2"),
        "twisted base": twisted("causal", "sampler.smc.proposal=base"),
        "twisted exponent": twisted("causal", "sampler.smc.exponent=0.5"),
        "twisted temperature": twisted("causal", "sampler.temperature=0.8 sampler.top_k=9"),
        "twisted separate": twisted("separate"),
        "twisted infilling": twisted("infill", "suffix=' d'"),
        "twisted dpg": twisted("dpg", "sampler.smc.resample=never"),
        "twisted class": twisted("class", "sampler.smc.label=2"),
        "twisted joint": twisted("masked"),
        "twisted joint exponent": twisted("masked", "sampler.smc.exponent=0.5 sampler.smc.resample=every"),
        "twisted tokens": twisted("masked", "sampler.smc.proposal=tokens"),
        "twisted tokens random": twisted(
            "masked", "sampler.smc.proposal=tokens sampler.smc.unmask=random sampler.steps=16"
        ),
        "twisted joint base": twisted("masked", "sampler.smc.proposal=base"),
        "twisted state": twisted("state", several),
        "twisted state confidence": twisted("state", f"{several} sampler.smc.unmask=confidence"),
        "twisted state base": twisted("state", f"{several} sampler.smc.proposal=base"),
        "fk never best": steered("text", "sampler.smc.resample=never sampler.smc.pick=best"),
        "fk interval": steered("text", "sampler.smc.interval=2 sampler.smc.completions=2"),
        "fk confidence": steered("text", "sampler.smc.unmask=confidence sampler.smc.completions=2"),
        "fk policy": steered("text", "sampler.smc.unmask=policy sampler.policy.path=@dit sampler.smc.completions=2"),
    }


CASES = {**strategies(), **prompts_and_tokens(), **policies(), **caches(), **scores(), **guided(), **particles()}
RAGGED = {
    "ragged confidence": f"dlm.path=@text length=10 {rule('confidence')}",
    "ragged direct": f"dlm.path=@text length=10 {rule('direct')}",
    "ragged threshold": f"dlm.path=@text length=10 {rule('threshold')} sampler.budget=5",
    "ragged policy": "dlm.path=@text length=10 " + policy("dit"),
    "ragged policy of hidden states": "dlm.path=@text length=10 " + policy("blocks"),
    "ragged cache": f"dlm.path=@llada length=10 {rule('confidence')} sampler.block_length=5 sampler.cache=dual",
    "ragged guidance": f"dlm.path=@llada length=10 {rule('entropy')} sampler.guidance=1",
    "ragged causal": "dlm.path=@causal length=8 sampler.strategy=leftmost",
    "ragged pargs": "dlm.path=@causal length=8 sampler.strategy=pargs sampler.guide.reward=@prefix sampler.guide.k=4",
    "ragged pargs masked": "dlm.path=@text length=8 sampler.steps=4 sampler.strategy=pargs sampler.guide.reward=@mask sampler.guide.k=3",
    "ragged best_of_n": "dlm.path=@text length=8 sampler.steps=4 sampler.strategy=best_of_n sampler.guide.reward=@full sampler.guide.samples=3",
}  # of unmask guide, whose prompts have different lengths


@cache
def base(command: str) -> DictConfig:
    return composed(command, ["out=null", "prompts.file=null"] if command == "guide" else [])


@cache
def loaded(path: str, *how: object) -> Any:
    """`load_model`, once for each folder: loading would take half of the time."""
    return load_model(path, *how)  # pyright: ignore[reportArgumentType]


rewards_loaded = cache(rewards.models._pretrained)  # for the same reason


@cache
def config_of(command: str, words: str, root: Path) -> DictConfig:
    """The configuration of a command with these words; the words are read as `KEY=VALUE` of its command line."""
    config = base(command).copy()
    for word in quoted(words).replace("@", f"{root}/").split():
        key, _, value = word.replace("\0", " ").partition("=")
        OmegaConf.update(config, key, yaml.safe_load(value))
    return config


def quoted(words: str) -> str:
    """The words with each space inside quotation marks as NUL."""
    parts = words.split("'")
    return "'".join(part.replace(" ", "\0") if number % 2 else part for number, part in enumerate(parts))


def rows(values: torch.Tensor) -> list[str]:
    return [" ".join(map(str, row)) for row in values.tolist()]


def recorded(samples: list[Samples], record: dict[str, Any]) -> dict[str, Any]:
    """What is pinned: integers exactly, log Z to 4 decimals."""
    joined = {name: torch.cat([getattr(batch, name) for batch in samples])
              for name in ("tokens", "unmasked_at", "evaluations", "steps")}  # fmt: skip
    found: dict[str, Any] = {"tokens": rows(joined["tokens"]), "written_at": rows(joined["unmasked_at"]),
                             "evaluations": joined["evaluations"].tolist(), "steps": joined["steps"].tolist()}  # fmt: skip
    found |= {name: record[name] for name in ("reward_rows", "resamplings") if name in record}
    if "log_z" in record:
        found["log_z"] = [None if value is None else round(value, 4) for value in record["log_z"]]
    return found


def decode_case(words: str, seed: int, root: Path) -> dict[str, Any]:
    """The record of one case of CASES: two samples."""
    config = config_of("sample", f"{words} num_samples=2 batch_size=2 eval=false device=cpu", root)
    config.seed = seed
    with patch.object(sample_run, "load_model", loaded), patch.object(rewards.models, "_pretrained", rewards_loaded):
        batches, _, record = sample_run.draw_samples(config)
    return recorded(batches, record)


def decode_ragged_case(words: str, seed: int, root: Path) -> dict[str, Any]:
    """The record of one case of RAGGED: all of PROMPTS in one batch, padded on the left."""
    config = config_of("guide", words, root)
    model, _ = loaded(config.dlm.path)
    prompts = guide.canvases(model, [PromptRow(prompt) for prompt in PROMPTS], config.length)
    settings = guide.settings_of(config)
    decoder = build_decoder(settings, model, Layout.of(prompts, model.mask_id), config.seed)
    samples = guide.decode(settings, model, decoder, prompts, seed, torch.arange(len(PROMPTS)))
    return recorded([samples], {"reward_rows": samples.reward_rows} if samples.reward_rows else {})


def decode(name: str, seed: int, root: Path) -> dict[str, Any]:
    """The record of a case by its name."""
    return decode_case(CASES[name], seed, root) if name in CASES else decode_ragged_case(RAGGED[name], seed, root)
