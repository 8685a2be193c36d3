"""The hub, where models and data sets are read that are no local files: which names are its ids, and no waiting where it is out
of reach."""

from __future__ import annotations

import difflib
import os
import re
import socket
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

# Of the hub's first years, without an owner.
OLD_IDS = (
    "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt", "bert-base-uncased", "bert-base-cased",
    "bert-large-uncased", "bert-large-cased", "distilbert-base-uncased", "distilbert-base-cased", "roberta-base", "roberta-large",
    "distilroberta-base", "xlm-roberta-base", "xlm-roberta-large", "albert-base-v2",
    "distilbert-base-uncased-finetuned-sst-2-english",
)  # fmt: skip
ID = re.compile(r"\w[\w.-]*/[\w.-]+")
ROOT = Path(__file__).parents[1]
SHIPPED = {folder.name: f"example/{folder.name}" for folder in (ROOT / "example").glob("*/")}
SECONDS = 5.0  # for which the hub is waited for, once in a process


def shipped(path: str) -> str:
    """`example/...` of this repository, whatever directory the command runs in; any other path as it is."""
    return str(ROOT / path) if path.startswith("example/") else path


def prepare(name: str, what: str, known: Mapping[str, str] | None = None) -> None:
    """Prepare a request to the hub for `name`. A local directory needs none: nothing is done then.

    Args:
        what: the kind of thing that is named (model, data set), for the message.
        known: names that a misspelt one may stand for -> how they are written; None: the shipped models.

    Raises:
        ValueError: no directory, and no id of the hub; with the nearest known name.
    """
    if Path(name).is_dir():
        return
    if ID.fullmatch(name) is None and name not in OLD_IDS and not is_cached(name):
        known = SHIPPED | {"smollm2": "smollm2"} if known is None else known
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {known[near[0]]}?" if near else "a hub id is OWNER/NAME; give one, or a directory"
        raise ValueError(f"the {what} {name!r} is no directory and no hub id; {hint}")
    stay_offline_where_unreachable()


def is_cached(name: str) -> bool:
    """Whether the hub's cache holds a model of that name. False for a text that no model could be called."""
    try:
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    except HFValidationError:
        return False


def hide_weight_bars() -> None:
    """Switch off the progress bar that transformers shows for every model that it reads."""
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


def hide_data_bars() -> None:
    """Switch off the progress bars of `datasets`: two lines for every file, however short."""
    import datasets

    datasets.disable_progress_bars()


@cache
def stay_offline_where_unreachable() -> None:
    """Have the hub's libraries look into their caches alone where the hub does not answer: they would ask six times for every
    file, for 24 seconds each."""
    if constants.HF_HUB_OFFLINE or getproxies():  # through a proxy, only the libraries can tell
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or {"https": 443, "http": 80}[address.scheme]
        socket.create_connection((str(address.hostname), port), SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are imported later
        if loaded := sys.modules.get("datasets.config"):
            loaded.HF_HUB_OFFLINE = True  # pyright: ignore[reportAttributeAccessIssue]
