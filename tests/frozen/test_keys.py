"""Every recorded key of every root configuration, group file and experiment keeps its name and its default.

The record has the names that keys had when it was made: the table of old keys gives their current ones, as it does on a command
line. The record, tests/frozen/keys.json, is written by `python -m tests.frozen.write_trainers keys`; see there when that is allowed.
Configurations are composed as the commands compose them, so that a key may move between files.
"""

import json

from tests.frozen.configuration import RECORD, differences, files, keys, pairs_of
from training.compatibility import new_name


def test_every_key_keeps_its_name_and_its_default():
    recorded = json.loads(RECORD.read_text())
    current = {entry: {new_name(key): value for key, value in values.items()} for entry, values in recorded.items()}
    changes = differences(current, keys(pairs_of(recorded)))
    assert not changes, "\n".join(["configuration keys differ from tests/frozen/keys.json:", *changes])


def test_every_recorded_experiment_is_there():
    recorded = json.loads(RECORD.read_text())
    assert {name for _, name in pairs_of(recorded)} <= {*files("experiment")}
