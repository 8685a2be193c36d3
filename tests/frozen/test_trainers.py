"""Three steps of every trainer and algorithm at tiny size give the recorded metrics.

The records (tests/frozen/train_*.json) were written by `python -m tests.frozen.write_trainers` on one machine with one version of
PyTorch, which stands in them. Steps and names are compared exactly, numbers to a relative 1e-4: another version or processor may
round otherwise, which does not reach that tolerance unless a drawn token flips.
"""

import json

import pytest
import torch

from tests.frozen.trainers import CASES, QUICK, make_inputs, metrics, record_file

pytestmark = pytest.mark.filterwarnings(
    "ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning"
)  # TRL's own
RELATIVE, ABSOLUTE = 1e-4, 2e-5  # absolute: of differences of nearly equal numbers
OF_REWARDS = 2e-3  # absolute: a reward that learns from pairs has an offset that the pairs do not determine
RECORDS = {command: json.loads(record_file(command).read_text()) for command in CASES}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize("command", CASES)
def test_every_case_has_a_record(command):
    assert RECORDS[command]["cases"].keys() == CASES[command].keys() and CASES[command].keys() >= QUICK[command]


def agrees(command, key, recorded, value) -> bool:
    """Whether a value is the recorded one: numbers up to rounding, all else exactly."""
    if isinstance(recorded, float) or isinstance(value, float):
        absolute = OF_REWARDS if command == "train_reward" and key.endswith("_reward") else ABSOLUTE
        return value == pytest.approx(recorded, rel=RELATIVE, abs=absolute, nan_ok=True)
    return value == recorded


@pytest.mark.parametrize(
    ("command", "name"),
    [
        pytest.param(command, name, marks=[] if name in QUICK[command] else pytest.mark.slow)
        for command in CASES
        for name in CASES[command]
    ],
)
def test_three_steps_give_the_recorded_metrics(command, name, inputs, tmp_path):
    recorded = RECORDS[command]
    expected, found = recorded["cases"][name], metrics(command, name, inputs, tmp_path / "run")
    about = f"{command}, {name}, recorded with PyTorch {recorded['torch']}, run with {torch.__version__}"
    assert [line.keys() for line in found] == [line.keys() for line in expected], about
    for line, before in zip(found, expected, strict=True):
        wrong = {
            key: (before[key], value) for key, value in line.items() if not agrees(command, key, before[key], value)
        }
        assert not wrong, f"{about}, step {before.get('step')}: (recorded, found) {wrong}"
