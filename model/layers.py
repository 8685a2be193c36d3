"""A list of layers that says of which class they are."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Generic, TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=nn.Module)


class Layers(nn.ModuleList, Generic[Layer]):
    """A ModuleList of layers of one class. Names in the state dict are those of a ModuleList."""

    if TYPE_CHECKING:

        def __iter__(self) -> Iterator[Layer]: ...
