"""What every test starts from: one thread, no network, no display; and the `shared` fixture for reference outputs."""

import gc
import os

# Before anything imports the libraries that read them.
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", WANDB_MODE="disabled", MPLBACKEND="Agg")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

from tests.helpers import shapes

torch.set_num_threads(1)  # bit-equality of rows is promised for one thread

shapes.install()

from training.curves import CurveFile  # noqa: E402  # behind shapes.install(), which checks what is imported after it

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


# Files that take long, the longest first: begun last, one would run alone while the other process has nothing left to do.
LONG = (
    "test_experiments.py", "test_run_train_twist.py", "test_two_processes.py", "test_results.py", "test_run_train_policy.py",
    "test_algorithms.py", "test_emulated_cuda.py", "test_fuzz_settings.py", "test_robustness.py", "test_pages.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first (with `--no-loadscope-reorder`, xdist gives files out in this order)."""
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))


def pytest_collection_finish() -> None:
    """Modules stay until the end: the garbage collector need not look through them again and again."""
    gc.freeze()


# Files that look at the picture of a run; drawing it takes longer than a tiny run, so that all others go without.
LOOK_AT_CURVES = (
    "test_curves.py", "test_plot.py", "test_trainer.py", "test_run_train_preference.py", "test_run_train_reward.py",
)  # fmt: skip
draw = CurveFile.draw


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Runs draw `curves.png` only in tests that look at it."""
    CurveFile.draw = draw if item.path.name in LOOK_AT_CURVES else lambda self, last: None
