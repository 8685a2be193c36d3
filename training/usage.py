"""Exit status of the commands: 2 for bad input, said in one sentence; 1 for a failure."""

from __future__ import annotations

import difflib
import re
import sys
from contextlib import contextmanager
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import DictConfig

CONFIGS = Path(__file__).parents[1] / "configs"


def composed(name: str, overrides: list[str]) -> DictConfig:
    """The configuration NAME with these overrides. ValueError says in one sentence what does not fit, and the nearest key."""
    try:
        with initialize_config_dir(str(CONFIGS), version_base=None):
            return compose(name, overrides)
    except HydraException as error:
        told = " ".join(str(error).split("Config search path")[0].split())
        unknown = re.search(r"Could not override '([\w.]+)'", told)
        near = ""
        if unknown:
            with initialize_config_dir(str(CONFIGS), version_base=None):
                known = _keys(compose(name))
            near = "".join(
                f"; did you mean {key}?" for key in difflib.get_close_matches(unknown[1], known, n=1, cutoff=0.0)
            )
        raise ValueError(f"{' '.join(overrides)!r} does not fit configs/{name}.yaml: {told}{near}") from error


def _keys(config: DictConfig, prefix: str = "") -> list[str]:
    """Every key, in dots."""
    found = []
    for key, value in config.items_ex(resolve=False):
        found += _keys(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else [f"{prefix}{key}"]
    return found


def check_overrides(name: str) -> None:
    """Refuse, before Hydra does at length, overrides on the command line that do not fit. Hydra's own flags are left to it."""
    overrides = sys.argv[1:]
    if not any(word.startswith("-") for word in overrides):
        composed(name, overrides)


@contextmanager
def exit_on_bad_input():
    """ValueError is bad input: its sentence goes to stderr and the status is 2. FloatingPointError (a loss that is not a
    number) is a failure: status 1. Anything else is a defect and keeps its traceback."""
    try:
        yield
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
