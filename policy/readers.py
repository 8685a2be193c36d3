"""Which strategies read which setting of configs/sampler/default.yaml.

A setting that a user gives and that the strategy does not read is refused: it would be ignored. All commands that sample check it
here.
"""

from __future__ import annotations

from collections.abc import Mapping

from omegaconf import DictConfig, OmegaConf

from policy.build import RULE_SETTINGS, STRATEGIES
from policy.guidance import GUIDED
from samplers.guided import METHODS
from samplers.scores import PREDICTORS
from samplers.where import ADAPTIVE, CONFIDENT, WHERE

FILTERS = ("twisted_smc", "fk")
TILTED = tuple(METHODS)
IN_STEPS = tuple(name for name in WHERE if name not in ADAPTIVE)  # rules that write `steps` equal parts
# The strategies that read a setting; the first entry that fits a key decides, and a key without one is read by all.
READERS: tuple[tuple[str, tuple[str, ...]], ...] = (
    *((f"sampler.{key}", tuple(name for name, own in RULE_SETTINGS.items() if own == key))
      for key in dict.fromkeys(RULE_SETTINGS.values())),
    ("sampler.window", ("window",)),
    ("sampler.steps", (*IN_STEPS, "policy", *PREDICTORS, *GUIDED, *FILTERS)),
    ("sampler.confidence_eos_eot_inf", (*CONFIDENT, "policy", *GUIDED, *FILTERS)),
    ("sampler.top_k", (*STRATEGIES, *PREDICTORS, *TILTED, *FILTERS)),  # best_of_n and top_k read guide.k in its place
    ("sampler.policy", ("policy",)),
    ("sampler.guide.reward", (*TILTED, "best_of_n", "fk")),
    ("sampler.guide.samples", ("best_of_n",)),
    ("sampler.guide.k", GUIDED),
    ("sampler.guide.unmask", GUIDED),
    ("sampler.guide", TILTED),
    *((f"sampler.smc.{key}", ("twisted_smc",)) for key in ("twist", "proposal", "exponent", "label")),
    *((f"sampler.smc.{key}", ("fk",)) for key in ("potential", "scale", "completions")),
    ("sampler.smc", FILTERS),
)  # fmt: skip
# Of these strategies: a setting that is read only where another one has one of these values.
READ_WITH: tuple[tuple[str, tuple[str, ...], str, tuple[str | None, ...]], ...] = (
    ("sampler.steps", ("policy",), "sampler.policy.action", (None, "fixed")),
    ("sampler.steps", GUIDED, "sampler.guide.unmask", (None, *IN_STEPS)),
    ("sampler.steps", FILTERS, "sampler.smc.unmask", (None, *IN_STEPS, "policy")),
    ("sampler.policy.threshold", ("policy",), "sampler.policy.action", ("threshold",)),
    ("sampler.policy.beta", ("policy",), "sampler.policy.action", ("bernoulli_argmax",)),
    ("sampler.guide.proposals", TILTED, "sampler.guide.positions", ("joint",)),
    *((f"sampler.smc.{key}", FILTERS, "sampler.smc.resample", ("ess", "every"))
      for key in ("scheme", "interval", "potential", "completions")),
)  # fmt: skip
SHOWN = 4  # strategies that a refusal names


def readers_of(key: str) -> tuple[str, ...]:
    """The strategies that read a key of the configuration; empty: all do."""
    return next((readers for start, readers in READERS if key == start or key.startswith(f"{start}.")), ())


def idle(config: DictConfig, key: str, flag: str = "--strategy ") -> str:
    """Why a key is not read under the strategy of `config.sampler`, and what to use; empty where it is read.

    flag: what stands before the name of a strategy, for the message.
    """
    strategy = config.sampler.strategy or "direct"
    unmask = OmegaConf.select(config, "sampler.smc.unmask")  # particles go by a strategy too
    reading = {strategy, unmask} if strategy in FILTERS else {strategy}
    readers = readers_of(key)
    if readers and not reading & set(readers):
        others = f"{flag}{' or '.join(readers)}" if len(readers) <= SHOWN else f"another strategy, as {readers[0]}"
        return f"would do nothing with {flag}{strategy}; leave it out, or use {others}"
    for own, strategies, setting, values in READ_WITH:
        value = OmegaConf.select(config, setting)
        if key == own and reading & set(strategies) and value not in values:
            known = [str(allowed) for allowed in values if allowed is not None]
            others = " or ".join(known) if len(known) <= SHOWN else f"{known[0]}, for example"
            return f"would do nothing with {setting}={value}; leave it out, or use {setting}={others}"
    return ""


def check_given(config: DictConfig, given: Mapping[str, str], flag: str = "--strategy ") -> None:
    """Refuse a setting that the strategy of `config.sampler` does not read.

    Args:
        given: key of the configuration -> its name for the user, of each that the user set. Defaults do not count.
        flag: what stands before the name of a strategy, for the message.

    Raises:
        ValueError: names the setting, the strategy, and those that read it.
    """
    for key, name in given.items():
        if OmegaConf.select(config, key) not in (None, False) and (reason := idle(config, key, flag)):
            raise ValueError(f"{name} {reason}")
