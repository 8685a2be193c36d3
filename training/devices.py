"""Devices by name: auto, cpu, cuda, cuda:N."""

from __future__ import annotations

import re

import torch


def check_device(device: str) -> None:
    """Refuse a device that is unknown or that this machine does not have."""
    named = re.fullmatch(r"auto|cpu|cuda(?::(\d+))?", device)
    if named is None:
        raise ValueError(f"device={device} is unknown; use auto, cpu or cuda (one of several: cuda:0, cuda:1, ...)")
    if not device.startswith("cuda"):
        return
    cards = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if cards == 0:
        raise ValueError(f"device={device} but this machine offers no CUDA device; use cpu")
    if named[1] is not None and int(named[1]) >= cards:
        there = "only cuda:0" if cards == 1 else f"cuda:0 to cuda:{cards - 1}"
        raise ValueError(f"device={device} but this machine offers {there}; choose a device that exists")


def device_of(name: str) -> torch.device:
    """Return the device with this name; auto is a CUDA device if there is one. ValueError as in `check_device`."""
    check_device(name)
    chosen = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(chosen if name == "auto" else name)
