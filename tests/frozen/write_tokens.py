"""Write `tokens.json` again: `python -m tests.frozen.write_tokens [NAME ...]`, all cases or those named.

`test_tokens.py` says when that is allowed: never in a change of structure.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from tests.frozen.folders import HERE, write_folders
from tests.frozen.token_cases import CASES, RAGGED, SEEDS, decode

FILE = HERE / "tokens.json"


def as_text(records: dict[str, Any]) -> str:
    """JSON with one line for each case and seed."""
    cases = []
    for name, seeds in records.items():
        lines = ",\n".join(f"  {json.dumps(seed)}: {json.dumps(record)}" for seed, record in seeds.items())
        cases.append(f"{json.dumps(name)}: {{\n{lines}}}")
    return "{" + ",\n".join(cases) + "}\n"


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    if unknown := sorted(set(names) - {*CASES, *RAGGED}):
        raise SystemExit(f"no case is called {', '.join(unknown)}; names stand in {FILE}")
    records = json.loads(FILE.read_text(encoding="utf-8")) if names else {}
    with tempfile.TemporaryDirectory() as directory:
        write_folders(Path(directory))
        for name in names or [*CASES, *RAGGED]:
            found = {str(seed): decode(name, seed, Path(directory)) for seed in SEEDS}
            if records.get(name) != found and names:
                print(f"changed: {name}")
            records[name] = found
    FILE.write_text(as_text(records), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
