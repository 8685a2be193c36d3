"""Reading and writing of weights: finite numbers only, and checksums."""

from __future__ import annotations

import hashlib
import json
import math
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

MOST_ITEMS = 10_000_000  # of a checkpoint's nested dictionaries and lists
CHECKSUM = "checksum"  # key of a checkpoint, and of the metadata of a safetensors file


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every tensor of nested dictionaries and lists, with its dotted key."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            yield from named_tensors(value, f"{name}.{number}" if name else str(number))


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """Return the name of the first tensor that has NaN or an infinity; None without any."""
    for name, tensor in weights:
        if tensor.is_floating_point() and tensor.numel():
            least, most = tensor.detach().aminmax()  # one pass without a copy; NaN passes through
            if not bool(least.isfinite() & most.isfinite()):
                return name
    return None


def check_written(weights: Iterable[tuple[str, Tensor]], file: str | Path) -> None:
    """Raise FloatingPointError, before a file is written, if a tensor is not finite."""
    if (name := not_finite(weights)) is not None:
        raise FloatingPointError(
            f"{file} was not written: {name} holds numbers that are not finite; lower the learning rate"
        )


def check_read(weights: Iterable[tuple[str, Tensor]], file: str | Path) -> None:
    """Raise ValueError if a tensor of `file` is not finite."""
    if (name := not_finite(weights)) is not None:
        raise ValueError(f"{file} holds numbers that are not finite, in {name}; give another checkpoint")


def checksum(state: Mapping[str, Any]) -> str:
    """Return the SHA-256 of every name, number and tensor of a checkpoint, without its checksum."""
    digest = hashlib.sha256()

    def add(value: object) -> None:
        if isinstance(value, Tensor):
            own = value.detach().cpu().contiguous()
            digest.update(f"{own.dtype}{tuple(own.shape)}".encode())
            digest.update(own.reshape(-1).view(torch.uint8).numpy().data if own.numel() else b"")
        elif isinstance(value, Mapping):
            for key, inner in value.items():
                digest.update(f"{key!r}:".encode())
                add(inner)
        elif isinstance(value, list | tuple):
            digest.update(f"[{len(value)}".encode())
            for inner in value:
                add(inner)
        else:
            digest.update(repr(value).encode())

    add({key: value for key, value in state.items() if key != CHECKSUM})
    return digest.hexdigest()


def weights_checksum(digests: Iterable[str]) -> str:
    """Return the checksum of a safetensors file, from the `checksum` of each tensor with its name, in any order."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()


def save_weights(tensors: Mapping[str, Tensor], file: Path, name: str | Path | None = None, **metadata: str) -> None:
    """Write a safetensors file whose metadata hold the checksum of its tensors.

    Args:
        tensors: by name, on the CPU.
        file: the file to write.
        name: of the file in messages (None: `file`).
        metadata: additional metadata.

    Raises:
        FloatingPointError: a tensor is not finite; nothing is written.
    """
    check_written(tensors.items(), name or file)
    tensors = {key: tensor.contiguous() for key, tensor in tensors.items()}
    total = weights_checksum(checksum({key: tensor}) for key, tensor in tensors.items())
    save_file(tensors, file, {"format": "pt", **metadata, CHECKSUM: total})
    _sort_metadata(file)


def _sort_metadata(file: Path) -> None:
    """Sort the keys of the metadata, so that equal weights give equal files: the library's order varies."""
    with file.open("r+b") as opened:
        size = int.from_bytes(opened.read(8), "little")
        header = json.loads(opened.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        written = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        opened.seek(8)
        opened.write(written.ljust(size))


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """Context manager: a safetensors file. ValueError if it is truncated or of another format."""
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except SafetensorError as error:
        raise ValueError(f"{file} cannot be read ({error}); it is damaged or no checkpoint, give another") from error


def add_checksums(directory: Path) -> None:
    """Write checksums into the safetensors files that a library has just saved in a directory."""
    for file in directory.glob("*.safetensors"):
        with _opened(file) as opened:
            metadata = opened.metadata() or {}
        save_weights(load_file(file), file, **{key: value for key, value in metadata.items() if key != CHECKSUM})


def read_tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of everything in a safetensors file, one tensor in memory at a time. Files of others may have
    no checksum.

    Raises:
        ValueError: after the last tensor, if the checksum does not fit.
    """
    with _opened(file) as opened:
        known, digests = (opened.metadata() or {}).get(CHECKSUM), []
        for name in opened.keys():  # noqa: SIM118 (it is no dictionary)
            tensor = opened.get_tensor(name)
            if known is not None:
                digests.append(checksum({name: tensor}))
            yield name, tensor
    if known is not None and weights_checksum(digests) != known:
        raise ValueError(f"{file} is damaged: its checksum is not that of its tensors; give another checkpoint")


def load_weights(file: str | Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file by name, on the CPU.

    Raises:
        ValueError: as `read_tensors`, and for a tensor that is not finite.
    """
    weights = dict(read_tensors(Path(file)))
    check_read(weights.items(), file)
    return weights


def check_files(directory: str | Path) -> None:
    """Check the safetensors files of a local directory before a library reads them. A hub id is skipped.

    Raises:
        ValueError: a file is damaged.
    """
    for file in sorted(Path(directory).glob("*.safetensors")):
        with _opened(file) as opened:
            has_checksum = CHECKSUM in (opened.metadata() or {})
        if has_checksum:
            for _ in read_tensors(file):
                pass


def load_pickled(source: Any, file: str | Path, mmap: bool = False) -> Any:
    """Return the contents of a torch.save file, on the CPU; nothing in it is executed.

    Args:
        source: a path or an open file.
        file: its name in messages.
        mmap: leave the tensors on disk until they are read.

    Raises:
        ValueError: the file expands to much more than its size: compressed, a tensor with more elements than are stored,
            cyclic lists.
    """
    if is_packed := zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as packed:
            if any(each.compress_type != zipfile.ZIP_STORED for each in packed.infolist()):
                raise ValueError(f"{file} is compressed, as torch.save writes none; give another checkpoint")
    if not isinstance(source, str | Path):
        source.seek(0)
    state = torch.load(source, map_location="cpu", weights_only=True, mmap=mmap and is_packed)
    if _items(state, {}) > MOST_ITEMS:
        raise ValueError(f"{file} holds lists in lists without end; give another checkpoint")
    for name, tensor in named_tensors(state):
        if (
            tensor.layout == torch.strided
            and tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes()
        ):
            raise ValueError(
                f"{file} says that {name} has {tensor.numel():,} elements and stores fewer; give another checkpoint"
            )
    return state


def _items(value: object, known: dict[int, int | float]) -> int | float:
    """Return the number of values in nested dictionaries and lists, shared ones counted each time; infinity for a cycle.
    known: counts by object id.
    """
    if not isinstance(value, Mapping | list | tuple):
        return 1
    if id(value) not in known:
        known[id(value)] = math.inf  # until it is counted
        inner = value.values() if isinstance(value, Mapping) else value
        known[id(value)] = 1 + sum(_items(each, known) for each in inner)
    return known[id(value)]


def load_checkpoint(source: Any, file: str | Path) -> Any:
    """Return the contents of a .pth file, on the CPU; nothing in it is executed. Published files have no checksum.

    Args:
        source: a path or an open file.
        file: its name in messages.

    Raises:
        ValueError: as `load_pickled`, and for a wrong checksum or a tensor that is not finite.
    """
    state = load_pickled(source, file)
    if isinstance(state, dict) and (known := state.pop(CHECKSUM, None)) is not None and checksum(state) != known:
        raise ValueError(f"{file} is damaged: its checksum is not that of what it holds; give another checkpoint")
    check_read(named_tensors(state), file)
    return state
