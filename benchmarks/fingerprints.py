"""Write the fingerprint of its model or tokenizer into config.json of every policy, twist and reward of a directory.

    python -m benchmarks.fingerprints              the checkpoints of example/
    python -m benchmarks.fingerprints output/old   a run from before fingerprints existed, or a directory of such runs

The model of a policy is dlm.path of its run (.hydra/config.yaml), that of a twist is `model` in its config.json. The command
assumes that the model has not changed since.
"""

from __future__ import annotations

import argparse
import json
from functools import cache
from pathlib import Path

from transformers import AutoTokenizer

from dlm.fingerprint import KEY, Fingerprint, fingerprint_of, token_digest
from load_model import load_model
from rewards.models import TOKENS
from training.files import write_text
from training.hub import shipped
from training.stored import description, read_json_object


@cache
def fingerprint_at(path: str) -> Fingerprint:
    return fingerprint_of(load_model(shipped(path))[0])


def stamped(folder: Path) -> dict | None:
    """Return config.json of `folder` with its fingerprint; None for a model, or for a policy without its run."""
    config = read_json_object(folder / "config.json")
    run = next((at / ".hydra" / "config.yaml" for at in (folder, folder.parent) if (at / ".hydra").is_dir()), None)
    if "policy_type" in config and run is not None:
        return config | {KEY: fingerprint_at(str(description(run).dlm.path)).as_dict()}
    if isinstance(config.get("twist"), dict):
        config.pop("digest", None)  # of the weights, from before there were fingerprints
        return config | {KEY: fingerprint_at(str(config["model"])).as_dict()}
    if "reward_kind" in config:
        return config | {TOKENS: token_digest(AutoTokenizer.from_pretrained(folder, trust_remote_code=False))}
    return None


def main(directory: Path) -> None:
    for file in sorted(directory.rglob("config.json")):
        config = stamped(file.parent)
        if config is not None:
            write_text(file, json.dumps(config, indent=2, sort_keys="twist" not in config) + "\n")
            print(file.parent)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, default=Path("example"))
    main(parser.parse_args().directory)
