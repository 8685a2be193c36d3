"""The files of a model: where they are (hub id, directory, run, `smollm2`), and config.json, weights and tokenizer out of them.

Nothing here runs code that comes with a checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

from dlm.board import BoardTokenizer
from dlm.packaged import PACKAGE, SMOLLM2, smollm2_folder
from dlm.published import KEYS
from training.hub import prepare
from training.stored import read_json_object
from training.usage import readable

PUBLISHED_TOKENIZER = "gpt2"  # the repositories of RADD, SEDD and MDLM ship none
# Of sizes in a config.json: any number, and those that count layers, positions, tokens or the sides of a Sudoku's box.
LARGEST = 10**9
LAYERS = ("n_blocks", "n_layers", "num_hidden_layers", "num_layers")
MOST = dict.fromkeys(LAYERS, 1000) | {"box": 16, "length": 10**7, "tokens": 10**7}
NAMED = {"llada": "llada", "dream": "Dream", "diffucoder": "Dream"}


def family(config: dict) -> str:
    """The family by its config.json: radd, sedd, mdlm, llada, Dream, or the model_type of a causal model. SEDD's published
    config.json does not tell it from RADD's; once loaded, and where we wrote it, it does."""
    return config.get("model_type", "radd")


def family_by_name(path: str) -> str | None:
    """That of a checkpoint which need not be here: by its config.json where it is, else by what it is called; None: unknown."""
    if (Path(path) / "config.json").is_file():
        return family(read_config(path))
    return next((own for word, own in NAMED.items() if word in Path(path).name.lower()), None)


def is_run(path: str) -> bool:
    """A run or one .pth of it; where config.json stands beside .hydra, a directory to share."""
    return path.endswith(".pth") or ((Path(path) / ".hydra").is_dir() and not (Path(path) / "config.json").is_file())


def model_folder(path: str) -> Path:
    """RUN/model, of a run or of one of its .pth files."""
    return (Path(path).parent.parent if path.endswith(".pth") else Path(path)) / "model"


def unpacked(path: str) -> str:
    """The directory of `smollm2`, by either of its names; any other path as it is."""
    return str(smollm2_folder()) if path in (SMOLLM2, PACKAGE) else path


def config_folder(path: str) -> str:
    """Where a model's config.json is: a run's in RUN/model."""
    return str(model_folder(path)) if is_run(path) else unpacked(path)


def read_config(path: str) -> dict:
    """config.json. ValueError that names the file where it is none."""
    file = fetch(path, "config.json")
    config = read_json_object(file)
    if not isinstance(config.get("model_type", ""), str):
        raise ValueError(f"{file} describes no model; give the config.json that was saved with the weights")
    if found := of_another_kind(config):
        raise ValueError(f"{path} is {found}, and a model here")
    check_sizes(config, str(file))
    return config


def of_another_kind(config: dict) -> str:
    """What else than a language model a config.json describes, and where that is given; empty for a model."""
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
    """Refuse sizes that no model has, which would fill the memory before the weights are looked at. ValueError names the key."""
    if isinstance(config, dict | list):
        items = config.items() if isinstance(config, dict) else ((key, value) for value in config)
        for name, value in items:
            check_sizes(value, file, str(name))
    elif isinstance(config, int) and abs(config) > MOST.get(key, LARGEST):
        raise ValueError(f"{file} sets {key}={config}, and at most {MOST.get(key, LARGEST)} is read; it is damaged")


def fetch(path: str, name: str) -> Path:
    """A file of a directory or of a hub repository (downloaded once, HF_TOKEN honoured)."""
    if Path(path).is_dir():
        if not (Path(path) / name).is_file():
            raise ValueError(
                f"{path} has no {name}; expected a checkpoint directory with config.json and model.safetensors or "
                "pytorch_model.bin"
            )
        return Path(path) / name
    prepare(path, "model")
    try:
        return Path(hf_hub_download(path, name))
    except HFValidationError as error:
        raise ValueError(f"{path!r} is neither a directory nor a hub id (owner/name); check the path") from error
    except EntryNotFoundError as error:
        if isinstance(error, LocalEntryNotFoundError):
            raise ValueError(
                f"{path} is not in the local cache and the hub cannot be reached; connect, or give a local directory"
            ) from error
        raise ValueError(f"the hub repository {path} has no {name}; check the id") from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "?"
        if status in (401, 403):
            raise ValueError(
                f"the hub answers {status} for {path}: it does not exist or is not open to you; check the id, and set HF_TOKEN"
            ) from error
        raise ValueError(f"the hub answers {status} for {path} ({error}); check the id and try again") from error


def read_tokenizer(path: str, config: dict):
    """None where there is none or the hub is out of reach: the model works on token ids, and decoding says what is missing.

    Raises ValueError that names the file for one that is there and broken.
    """
    if "puzzle" in config:
        return BoardTokenizer(tuple(config["puzzle"]["box"]))
    found, local = family(config), Path(path).is_dir()
    if not local and found in ("radd", "mdlm"):
        path = PUBLISHED_TOKENIZER
    there = is_there(path, "tokenizer.json")
    if found == "Dream" and not there:
        if not all(is_there(path, name) for name in ("vocab.json", "merges.txt")):
            return None
        with readable(fetch(path, "vocab.json")):
            return _dream_tokenizer(path, config)
    if local and not there:
        return None
    if there:
        with readable(fetch(path, "tokenizer.json")):
            if found in KEYS or (local and found in ("radd", "sedd", "mdlm")):  # names that transformers does not know
                return PreTrainedTokenizerFast.from_pretrained(path, trust_remote_code=False)
            return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    prepare(path, "tokenizer")
    try:  # in the layouts that came before tokenizer.json
        return AutoTokenizer.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError):  # the hub is out of reach
        return None


def _dream_tokenizer(path: str, config: dict) -> Qwen2Tokenizer:
    """Dream and DiffuCoder ship vocab.json and merges.txt, and code of their own that makes Qwen2's tokenizer of them."""
    tokenizer = Qwen2Tokenizer.from_pretrained(path, trust_remote_code=False)
    tokenizer.mask_token = tokenizer.convert_ids_to_tokens(config["mask_token_id"])
    return tokenizer


def is_there(path: str, name: str) -> bool:
    """Whether `fetch` finds it."""
    try:
        return bool(fetch(path, name))
    except ValueError:
        return False
