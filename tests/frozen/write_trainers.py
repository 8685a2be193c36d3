"""Write the records of tests/frozen/test_trainers.py and tests/frozen/test_keys.py anew: python -m tests.frozen.write_trainers [NAME ...]

NAME is a command (train_dlm, ...) or `keys`; without one, all are written.

Not allowed during the restructuring, unless a change of these figures or keys is meant: the commit then says which and why.
"""

import tests.conftest  # noqa: F401, I001  # one thread and no network, as the tests run

import json
import sys
import tempfile
from pathlib import Path

import torch

from tests.frozen import configuration, trainers


def write_trainers(command: str, inputs: dict[str, Path], root: Path) -> None:
    """One line for each step of each case, so that a diff shows what changed."""
    found = {}
    for number, name in enumerate(trainers.CASES[command]):
        found[name] = trainers.metrics(command, name, inputs, root / f"{command}_{number}")
    cases = ",\n".join(
        f"{json.dumps(name)}: [\n" + ",\n".join(f"  {json.dumps(line)}" for line in lines) + "\n]"
        for name, lines in found.items()
    )
    trainers.record_file(command).write_text(
        f'{{"torch": {json.dumps(torch.__version__)},\n"cases": {{\n{cases}\n}}}}\n'
    )


def main(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        (root / "inputs").mkdir()
        inputs = trainers.make_inputs(root / "inputs")
        for command in trainers.CASES:
            if not names or command in names:
                write_trainers(command, inputs, root)
    if not names or "keys" in names:
        configuration.write()


if __name__ == "__main__":
    main(sys.argv[1:])
