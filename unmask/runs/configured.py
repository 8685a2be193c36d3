"""Run commands that have a composed configuration: Hydra reads the command line, and a module of this package does the work."""

from __future__ import annotations

import sys

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from training.compatibility import translated
from training.interrupt import imported
from training.usage import CONFIGS, check_overrides, exit_on_bad_input
from unmask.runs.help_text import described


def run_configured(name: str, arguments: list[str]) -> None:
    """Run `unmask.runs.NAME` with configs/NAME.yaml and the overrides of the command line. Hydra handles its own flags
    (--cfg, --multirun).

    Raises:
        ValueError: for an override that does not fit, or settings that no run could have.
    """
    arguments = translated(arguments, name)
    if asks_for_help := {"-h", "--help"} & set(arguments):
        print(described(name, [word for word in arguments if word not in asks_for_help]))
        return
    check_overrides(name, arguments)

    def work(config: DictConfig) -> None:
        with exit_on_bad_input():  # inside, since Hydra reports what leaves it at length
            imported(f"unmask.runs.{name}").run(config, list(HydraConfig.get().overrides.task))

    before = sys.argv
    sys.argv = [before[0], *arguments]  # which Hydra reads
    try:
        hydra.main(config_path=str(CONFIGS), config_name=name, version_base=None)(work)()
    finally:
        sys.argv = before
