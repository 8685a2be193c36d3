"""Files of a local directory or of a hub repository, config.json among them. No code of a checkpoint runs."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from training.hub import prepare
from training.stored import read_json_object

# Bounds for the integers of a config.json: any integer, and those that count layers, positions, tokens or the sides of a box.
LARGEST = 10**9
LAYERS = ("n_blocks", "n_layers", "num_hidden_layers", "num_layers")
MOST = dict.fromkeys(LAYERS, 1000) | {"box": 16, "length": 10**7, "tokens": 10**7}


def fetch(folder: str, name: str) -> Path:
    """Return a file of a directory or of a hub repository, which is downloaded once (HF_TOKEN is honoured).

    Raises:
        ValueError: no such file, no such repository, no access, or the hub cannot be reached.
    """
    if Path(folder).is_dir():
        if not (Path(folder) / name).is_file():
            raise ValueError(
                f"{folder} has no {name}; expected a checkpoint directory with config.json and model.safetensors or "
                "pytorch_model.bin"
            )
        return Path(folder) / name
    prepare(folder, "model")
    try:
        return Path(hf_hub_download(folder, name))
    except HFValidationError as error:
        raise ValueError(f"{folder!r} is neither a directory nor a hub id (owner/name); check the path") from error
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise ValueError(
                f"{folder} is not in the local cache and the hub cannot be reached; connect, or give a local directory"
            ) from error
        raise ValueError(f"the hub repository {folder} has no {name}; check the id") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        if status in (401, 403):
            raise ValueError(
                f"the hub answers {status} for {folder}: it does not exist or is not open to you; check the id, and set "
                "HF_TOKEN"
            ) from error
        raise ValueError(f"the hub answers {status} for {folder} ({error}); check the id and try again") from error


def is_there(folder: str, name: str) -> bool:
    """Return whether `fetch` finds the file."""
    try:
        return bool(fetch(folder, name))
    except ValueError:
        return False


def read_config(folder: str) -> dict:
    """Return config.json of a directory or hub repository.

    Raises:
        ValueError: it is missing or damaged, describes something else than a language model, or has sizes that no model has.
    """
    file = fetch(folder, "config.json")
    config = read_json_object(file)
    if not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"{file} describes no model; give the config.json that was saved with the weights")
    if found := of_another_kind(config):
        raise ValueError(f"{folder} is {found}, and a model here")
    check_sizes(config, str(file))
    return config


def of_another_kind(config: dict) -> str:
    """Describe a config.json that is not a language model, and the setting that takes it; empty for a model."""
    if "policy_type" in config:
        return "a policy and no model; give it to --policy (sampler.policy.path, init)"
    if "twist" in config:
        return "a twist and no model; give it to --twist (sampler.smc.twist)"
    architectures = config.get("architectures")
    if isinstance(architectures, list) and any(
        str(name).endswith("ForSequenceClassification") for name in architectures
    ):
        return "a reward model and no language model; give it to --reward (sampler.guide.reward, reward.model)"
    return ""


def check_sizes(config: object, file: str, key: str = "") -> None:
    """Refuse sizes that no model has and that would fill the memory: ValueError that names the key."""
    if isinstance(config, dict | list):
        items = config.items() if isinstance(config, dict) else ((key, value) for value in config)
        for name, value in items:
            check_sizes(value, file, str(name))
    elif isinstance(config, int) and abs(config) > MOST.get(key, LARGEST):
        raise ValueError(f"{file} sets {key}={config}, and at most {MOST.get(key, LARGEST)} is read; it is damaged")
