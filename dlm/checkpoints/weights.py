"""Weight files of a checkpoint: safetensors or pytorch_model.bin, one or several files, saved from a wrapped model or not.

No pickled code runs, and an index may name files of its own directory only.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath

from safetensors import safe_open
from torch import Tensor

from dlm.checkpoints.files import fetch, is_there
from training.storage import load_pickled, read_tensors
from training.usage import readable

SINGLE = ("model.safetensors", "pytorch_model.bin")
# What torch.compile and FSDP put into a parameter's name, at any depth.
WRAPPERS = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")


def weight_files(folder: str) -> list[Path]:
    """Return the checkpoint's weight files: the single one, or those of its index.

    Raises:
        ValueError: there is none, or the index is broken or names a file outside its directory.
    """
    for name in SINGLE:
        if is_there(folder, name):
            return [fetch(folder, name)]
        if is_there(folder, f"{name}.index.json"):
            return _shards(folder, f"{name}.index.json")
    return [fetch(folder, SINGLE[0])]  # raises, and names the missing file


def _shards(folder: str, index: str) -> list[Path]:
    file = fetch(folder, index)
    with readable(file):
        names = sorted(set(json.loads(file.read_text(encoding="utf-8-sig"))["weight_map"].values()))
    if not names or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file} names no file of weights; take the one that was published with them")
    for name in names:
        parts = (*PurePosixPath(name).parts, *PureWindowsPath(name).parts)
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        if absolute or ".." in parts or not _is_inside(Path(folder), name):
            raise ValueError(f"{file} names {name!r}, which is outside its directory; take weights from one directory")
    return [fetch(folder, name) for name in names]


def _is_inside(directory: Path, name: str) -> bool:
    """Return whether a file of a local directory is inside it, with links resolved. The hub's cache has links from
    `snapshots` to `blobs`.
    """
    if not directory.is_dir():
        return True
    folder = directory.resolve()
    roots = [folder, *([folder.parents[1] / "blobs"] if folder.parent.name == "snapshots" else [])]
    return any((directory / name).resolve().is_relative_to(root) for root in roots)


def stored(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of everything in a file, one tensor at a time. ValueError names a damaged file."""
    with readable(file):
        if file.suffix == ".safetensors":
            yield from read_tensors(file)
            return
        yield from _pickled(file).items()


def _pickled(file: Path) -> dict[str, Tensor]:
    state = load_pickled(file, file, mmap=True)
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise ValueError(f"{file} holds no weights by name; give a state_dict that torch.save wrote")
    return state


def stored_names(files: Iterable[Path]) -> list[str]:
    """Return the names of all tensors."""
    names: list[str] = []
    for file in files:
        with readable(file):
            if file.suffix == ".safetensors":
                with safe_open(file, "pt") as opened:
                    names += opened.keys()
            else:
                names += _pickled(file)
    return names


def unwrapped(names: Iterable[str], expected: Collection[str]) -> dict[str, str]:
    """Map each stored name to the model's own name, without the prefix of a wrapper.

    Wrappers are DDP (`module.`), torch.compile, FSDP, Lightning or others. The prefix is the one that turns most names into
    expected ones; names without it stay.
    """
    plain = {}
    for name in names:
        plain[name] = name
        for wrapper in WRAPPERS:
            plain[name] = plain[name].replace(wrapper, "")
    votes: Counter[str] = Counter()
    for name in plain.values():
        parts = name.split(".")
        ends = (".".join(parts[start:]) for start in range(len(parts)))
        votes.update(name.removesuffix(end) for end in ends if end in expected)
    prefix = min(votes, key=lambda prefix: (-votes[prefix], len(prefix)), default="")
    return {name: own.removeprefix(prefix) for name, own in plain.items()}
