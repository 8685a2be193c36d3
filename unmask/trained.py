"""The result of the training functions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

T = TypeVar("T", covariant=True)
V = TypeVar("V")
METRICS = "metrics.jsonl"


@dataclass(frozen=True, repr=False)
class Trained(Generic[T]):
    """A finished training run. The functions of `unmask` accept it in place of its result.

    directory: of the run, with checkpoints, metrics and curves; result: the policy, model, reward or twist.
    """

    directory: Path
    result: T

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Return the lines of metrics.jsonl, in order."""
        return [json.loads(line) for line in (self.directory / METRICS).read_text(encoding="utf-8").splitlines()]

    def __repr__(self) -> str:
        last: dict[str, Any] = {}
        for line in self.metrics:
            last |= line
        figures = [f"{name}={last[name]:.3g}" for name in ("loss", "eval_reward", "valid_loss") if name in last]
        return (
            " ".join([f"<{type(self.result).__name__} in {self.directory}: step={last.get('step', 0)}", *figures]) + ">"
        )


def result_of(value: V | Trained[V]) -> V:
    """Return the result of a finished run; any other object is returned unchanged."""
    result: Any = value.result if isinstance(value, Trained) else value
    return result
