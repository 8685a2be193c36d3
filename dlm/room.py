"""Key-value cache of a causal model of transformers, in preallocated memory.

Separate from `dlm/causal_lm.py` because it imports transformers, which other models do not need.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer, DynamicSlidingWindowLayer

from model.llama import Memory

KEEPS_ALL = (DynamicLayer, DynamicSlidingWindowLayer)  # layers whose state is the keys and values of their input


class Room(CacheLayerMixin):
    """A layer's keys and values [row, head, position, width] in preallocated memory. New ones are written behind `kept`
    positions, without copies.
    """

    is_sliding = False
    keys: Tensor
    values: Tensor

    def __init__(self, key: Tensor, value: Tensor, kept: int):
        super().__init__()
        self.keys, self.values, self.kept, self.is_initialized = key, value, kept, True

    def lazy_initialization(self, key_states, value_states):
        pass

    def update(self, key_states, value_states, *args, **kwargs):
        start, self.kept = self.kept, self.kept + key_states.shape[2]
        self.keys[:, :, start : self.kept], self.values[:, :, start : self.kept] = key_states, value_states
        return self.keys[:, :, : self.kept], self.values[:, :, : self.kept]

    def get_seq_length(self):
        return self.kept

    def get_mask_sizes(self, query_length):
        return self.kept + query_length, 0

    def get_max_length(self):
        return self.keys.shape[2]


def filled_cache(memory: Memory, kept: int) -> Cache:
    """Return the cache of transformers over `memory`, whose first `kept` positions are valid."""
    return Cache(layers=[Room(key, value, kept) for key, value in memory])


def sizes_of(cache: Any) -> list[list[tuple[int, int]]]:
    """Return (heads, width) of every layer's keys and values; empty if a layer keeps another state."""
    if not isinstance(cache, Cache) or not all(type(layer) in KEEPS_ALL for layer in cache.layers):
        return []
    layers: list[Any] = cache.layers
    return [[(room.shape[1], room.shape[3]) for room in (layer.keys, layer.values)] for layer in layers]
