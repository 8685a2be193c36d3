"""Weights on their way to disk and back: finite numbers, and the bytes that were written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHECKSUM = "checksum"  # key of a checkpoint


def named_tensors(state: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of nested dictionaries and lists, with its keys in dots."""
    if isinstance(state, Tensor):
        yield name, state
    elif isinstance(state, Mapping):
        for key, value in state.items():
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(state, list | tuple):
        for number, value in enumerate(state):
            yield from named_tensors(value, f"{name}.{number}" if name else str(number))


def not_finite(weights: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first tensor that holds NaN or an infinity; None where there is none."""
    for name, tensor in weights:
        if tensor.is_floating_point() and tensor.numel():
            least, most = tensor.detach().aminmax()  # one pass without a copy; NaN passes through
            if not bool(least.isfinite() & most.isfinite()):
                return name
    return None


def check_written(weights: Iterable[tuple[str, Tensor]], file: str | Path) -> None:
    """Raises FloatingPointError, before a file is written, where a tensor is not finite."""
    if (name := not_finite(weights)) is not None:
        raise FloatingPointError(
            f"{file} was not written: {name} holds numbers that are not finite; lower the learning rate"
        )


def check_read(weights: Iterable[tuple[str, Tensor]], file: str | Path) -> None:
    """Raises ValueError where a tensor of `file` is not finite."""
    if (name := not_finite(weights)) is not None:
        raise ValueError(f"{file} holds numbers that are not finite, in {name}; give another checkpoint")


def checksum(state: Mapping[str, Any]) -> str:
    """SHA-256 of every name, number and tensor of a checkpoint, without the checksum itself."""
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


def load_checkpoint(source: Any, file: str | Path) -> Any:
    """What a .pth file holds, on the CPU; nothing in it is executed. Published files have no checksum and are read without.

    Args:
        source: a path or an open file.
        file: its name in messages.

    Raises:
        ValueError: a checksum that does not fit, or a tensor that is not finite.
    """
    state = torch.load(source, map_location="cpu", weights_only=True)
    if isinstance(state, dict) and (known := state.pop(CHECKSUM, None)) is not None and checksum(state) != known:
        raise ValueError(f"{file} is damaged: its checksum is not that of what it holds; give another checkpoint")
    check_read(named_tensors(state), file)
    return state
