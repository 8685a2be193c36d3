"""Objects that a Python caller gives in place of settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from data.tasks import Task
from dlm.masked_lm import MaskedLM
from rewards.functions import CALLERS
from rewards.models import TextReward
from training.stored import value_at

KEYS = (("task", "data.datasets"), ("reward", "reward.model"), ("target", "target.reward"))  # argument, setting


@dataclass(frozen=True)
class Objects:
    """Objects of a Python caller; for a field that is None, the object is built from the settings.

    model: on its device; reward: of texts, for a configuration with `reward=learned` or `target=reward`.
    """

    model: MaskedLM | None = None
    task: Task | None = None
    reward: TextReward | None = None

    def check(self, settings: Mapping[str, Any], command: str) -> None:
        """Refuse settings that name an object of the caller, such as those of a resumed run, without this object: ValueError."""
        for argument, key in KEYS:
            own = self.task if argument == "task" else self.reward
            value = value_at(settings, key)
            names = [str(name) for name in (value if isinstance(value, list) else [value])]
            if own is None and any(name.startswith(CALLERS) for name in names):
                raise ValueError(
                    f"{key}={', '.join(names)} is an object of a Python program; resume the run there by unmask.{command}(model, "
                    f"{argument}=..., resume=RUN), with the {argument} that it began with"
                )


NOTHING = Objects()  # a command: everything is built from settings
