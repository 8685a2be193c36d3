"""Access to the hub for models and data sets that are not local files: valid ids, and no waiting if the hub is
unreachable.
"""

from __future__ import annotations

import difflib
import os
import re
import socket
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit
from urllib.request import getproxies

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

if TYPE_CHECKING:
    import datasets

# Of the hub's first years, without an owner.
OLD_IDS = (
    "gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "distilgpt2", "openai-gpt", "bert-base-uncased", "bert-base-cased",
    "bert-large-uncased", "bert-large-cased", "distilbert-base-uncased", "distilbert-base-cased", "roberta-base", "roberta-large",
    "distilroberta-base", "xlm-roberta-base", "xlm-roberta-large", "albert-base-v2",
    "distilbert-base-uncased-finetuned-sst-2-english",
)  # fmt: skip
ID = re.compile(r"\w[\w.-]*/[\w.-]+")
ROOT = Path(__file__).parents[1]
ALIASES = {"example/stories_policy": "example/014609", "example/stories_policy_mlp": "example/014609_hidden_mlp"}
SHIPPED = {folder.name: f"example/{folder.name}" for folder in (ROOT / "example").glob("*/")}
SECONDS = 5.0  # for which the hub is waited for, once in a process


def shipped(path: str) -> str:
    """Resolve a path of this repository, independently of the working directory; return any other path unchanged.

    These are `example/...`, and the files of `data/stories`; other paths in a folder `data` belong to the user. Some folders
    have a second name that describes their content (`ALIASES`).
    """
    path = ALIASES.get(path.rstrip("/"), path)
    is_own = path.startswith("example/") or (path.startswith("data/stories/") and (ROOT / path).exists())
    return str(ROOT / path) if is_own else path


def prepare(name: str, what: str, known: Mapping[str, str] | None = None) -> None:
    """Prepare a request to the hub for `name`. Does nothing for a local directory.

    Args:
        what: the kind of object (model, data set), for the message.
        known: names for suggestions -> how they are written; None: the shipped models.

    Raises:
        ValueError: it is neither a directory nor a hub id; names the nearest known name.
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
    """Return whether the hub's cache holds a model of that name; False for an invalid name."""
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


def load_split(*place: Any, split: str, **settings: Any) -> datasets.Dataset:
    """Return one split of a data set of the hub or of files, by `datasets.load_dataset`, whose declared type is a union."""
    from datasets import load_dataset

    return cast("datasets.Dataset", load_dataset(*place, split=split, **settings))


@cache
def stay_offline_where_unreachable() -> None:
    """Make the hub's libraries use their caches only, if the hub does not answer.

    Otherwise these libraries would make six requests for every file, of 24 seconds each.
    """
    if constants.HF_HUB_OFFLINE or getproxies():  # behind a proxy, only the libraries can find out
        return
    address = urlsplit(constants.ENDPOINT)
    try:
        port = address.port or {"https": 443, "http": 80}[address.scheme]
        socket.create_connection((str(address.hostname), port), SECONDS).close()
    except OSError:
        constants.HF_HUB_OFFLINE = True
        os.environ["HF_HUB_OFFLINE"] = "1"  # for libraries that are imported later
        if loaded := sys.modules.get("datasets.config"):
            vars(loaded)["HF_HUB_OFFLINE"] = True
