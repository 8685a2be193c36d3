"""Unmask: learned and reward-guided decoding of masked-diffusion language models.

Load a model, sample from it, and measure the samples:

    import unmask

    model = unmask.load("example/stories")
    out = unmask.sample(model, ["Once upon a time"] * 8, strategy="confidence", steps=16, length=64, seed=0)
    print(out.texts[0], out.nfe, out.metrics())

`import unmask` is fast: a name is imported when it is used for the first time.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from samplers.settings import SamplerSettings
    from unmask.__main__ import main
    from unmask.api import Generation, Step, load, load_policy, load_reward, register, sample, stream
    from unmask.evaluating import Evaluation, compare, evaluate, metrics
    from unmask.learning import train_dlm, train_policy, train_quality, train_reward, train_rl, train_twist
    from unmask.trained import Trained

MODULES = {
    "Evaluation": "unmask.evaluating",
    "Generation": "unmask.api",
    "SamplerSettings": "samplers.settings",
    "Step": "unmask.api",
    "Trained": "unmask.trained",
    "compare": "unmask.evaluating",
    "evaluate": "unmask.evaluating",
    "load": "unmask.api",
    "load_policy": "unmask.api",
    "load_reward": "unmask.api",
    "main": "unmask.__main__",
    "metrics": "unmask.evaluating",
    "register": "unmask.api",
    "sample": "unmask.api",
    "stream": "unmask.api",
    "train_dlm": "unmask.learning",
    "train_policy": "unmask.learning",
    "train_quality": "unmask.learning",
    "train_reward": "unmask.learning",
    "train_rl": "unmask.learning",
    "train_twist": "unmask.learning",
}

__all__ = [
    "Evaluation",
    "Generation",
    "SamplerSettings",
    "Step",
    "Trained",
    "compare",
    "evaluate",
    "load",
    "load_policy",
    "load_reward",
    "main",
    "metrics",
    "register",
    "sample",
    "stream",
    "train_dlm",
    "train_policy",
    "train_quality",
    "train_reward",
    "train_rl",
    "train_twist",
]


def __getattr__(name: str) -> Any:
    """Import and return a public name at its first use."""
    if name not in MODULES:
        raise AttributeError(f"module 'unmask' has no attribute {name!r}; it has {', '.join(MODULES)}")
    value = getattr(import_module(MODULES[name]), name)
    globals()[name] = value
    return value
