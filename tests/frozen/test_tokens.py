"""Every way to decode gives the tokens that it gave when the records were written.

`tokens.json` holds, for every case of `token_cases.py` at two seeds: token ids, the step at which each was committed, network
evaluations and steps of each row; and, where there are any, reward rows, resamplings and log Z.

`python -m tests.frozen.write_tokens [NAME ...]` writes the records again. That is allowed only in a change whose purpose is that
tokens change (a fault in a rule is mended, a new case is added), which lists the cases that changed and says why. It is never
allowed in a change of structure: there, a record that differs is a fault of the change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jaxtyping import config

from samplers.names import FILTERS, GUIDED, PREDICTORS, STRATEGIES
from tests.frozen import token_cases
from tests.frozen.folders import write_folders
from tests.frozen.token_cases import CASES, RAGGED, SEEDS, decode
from tests.frozen.write_tokens import FILE

RECORDS: dict[str, dict[str, Any]] = json.loads(FILE.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folders. Shapes are not checked meanwhile, which would take three times as long; other tests check them."""
    folder = tmp_path_factory.mktemp("frozen")
    write_folders(folder)
    before = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    yield folder
    config.update("jaxtyping_disable", before)


@pytest.mark.parametrize("name", [*CASES, *RAGGED])
def test_tokens_are_those_of_the_records(root: Path, name: str) -> None:
    for seed in SEEDS:
        expected = dict(RECORDS[name][str(seed)])
        found = decode(name, seed, root)
        assert found.pop("log_z", None) == pytest.approx(expected.pop("log_z", None), abs=1e-3), f"log Z at seed {seed}"
        assert found == expected, f"seed {seed}"


def test_every_strategy_has_a_case() -> None:
    pinned = (*token_cases.EQUAL_STEPS, *token_cases.OWN_STEPS, "policy", *token_cases.PREDICTORS, *token_cases.GUIDED,
              *token_cases.FILTERS)  # fmt: skip
    assert set(pinned) == {*STRATEGIES, *PREDICTORS, *GUIDED, *FILTERS}
    words = "\n".join(CASES.values()).split()
    assert {f"sampler.strategy={name}" for name in pinned} <= set(words)
    assert RECORDS.keys() == {*CASES, *RAGGED}
