"""Objects that a Python caller gives in place of settings."""

from __future__ import annotations

from dataclasses import dataclass

from data.tasks import Task
from dlm.masked_lm import MaskedLM
from rewards.models import TextReward


@dataclass(frozen=True)
class Objects:
    """Objects of a Python caller; for a field that is None, the object is built from the settings.

    model: on its device; reward: of texts, for a configuration with `reward=learned` or `target=reward`.
    """

    model: MaskedLM | None = None
    task: Task | None = None
    reward: TextReward | None = None


NOTHING = Objects()  # a command: everything is built from settings
