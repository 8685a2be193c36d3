"""What every test starts from: one thread, no network, no display; and the `shared` fixture for reference outputs."""

import os

# Before anything imports the libraries that read them.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled", MPLBACKEND="Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from functools import partial
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import pytest
import torch
from jaxtyping import _import_hook

torch.set_num_threads(1)  # bit-equality of rows is promised for one thread


def execute(loader: _import_hook._JaxtypingLoader, module: ModuleType) -> None:
    """Execute a module whose shapes are checked.

    jaxtyping redirects the cache of bytecode until the module is executed, and so for every library that the module imports:
    each process would compile all of transformers and sympy again. Here it is redirected for the module's own bytecode only.
    """
    redirected = partial(_import_hook._optimized_cache_from_source, loader._typechecker.get_hash())
    with patch("importlib._bootstrap_external.cache_from_source", redirected):
        code = loader.get_code(module.__name__)
    exec(code, module.__dict__)


_import_hook._JaxtypingLoader.exec_module = execute

SHARED = Path(__file__).resolve().parents[1] / ".." / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder next to the repository with outputs of the reference implementations; where it is absent, so is the test."""
    if not SHARED.is_dir():
        pytest.skip("there is no folder ../shared with reference outputs")
    return SHARED


@pytest.fixture(scope="session")
def tiny(tmp_path_factory) -> dict[str, list[str]]:
    """Overrides that put a tiny model and little data in the place of the shipped ones (tests/policy_runs.py)."""
    from tests.policy_runs import tiny_models

    return tiny_models(tmp_path_factory.mktemp("tiny"))
