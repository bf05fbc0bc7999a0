"""Which layers share a block table, and how many blocks a sequence holds.

Layers that see all keys keep all of them; a layer with a window of w needs the last w - 1 beside each new token. Layers
of one kind are cut into groups of equally many layers, each with a block table of its own. A block holds `block_size`
tokens of one group, so that all blocks are of one size and one pool serves whatever mix of lengths comes:

    layers    s s s s s f s s s s s f s s s s s f        s: window, f: all keys
    groups    f f f | s s s | s s s | s s s | s s s | s s s
    memory    3 arrays: layer i of each group lies in array i, under the ids of its group's blocks

A pool of its own for each kind would have to be divided once, for lengths that nobody knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

#: More tables than this cost more time a step than the layers that they leave unused cost memory.
_MAX_GROUPS = 8
#: Tokens of a sequence whose blocks never run out.
UNLIMITED = 1 << 62


@dataclass(frozen=True)
class FullKV:
    """A layer that sees all keys."""


@dataclass(frozen=True)
class WindowKV:
    """A layer that sees the keys at a distance below `window`, which is at least 1."""

    window: int


LayerKV = FullKV | WindowKV


@dataclass(frozen=True)
class CacheGroup:
    """Layers with one block table, in rising order; layer `layers[i]` uses array i."""

    kind: LayerKV
    layers: tuple[int, ...]

    @property
    def window(self) -> int:
        """0: all keys."""
        return self.kind.window if isinstance(self.kind, WindowKV) else 0


def cache_groups(kinds: Sequence[LayerKV], *, is_uniform: bool = True) -> tuple[CacheGroup, ...]:
    """The groups of layers 0, 1, 2 ..., those that see all keys first.

    `is_uniform`: the layers' keys and values are of one shape. Where they are not, blocks of different layers would be
    of different sizes: then all layers are one group, which keeps all keys.
    """
    if not is_uniform:
        return (CacheGroup(FullKV(), tuple(range(len(kinds)))),)
    by_kind: dict[LayerKV, list[int]] = {}
    for layer, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(layer)
    full_first = sorted(by_kind.items(), key=lambda item: isinstance(item[0], WindowKV))
    size = _group_size({kind: len(layers) for kind, layers in by_kind.items()})
    return tuple(
        CacheGroup(kind, tuple(layers[first : first + size]))
        for kind, layers in full_first
        for first in range(0, len(layers), size)
    )


def _group_size(counts: dict[LayerKV, int]) -> int:
    """Layers in a group: leaves the fewest places of a block unused, above all in groups that keep all keys."""

    def cost(size: int) -> tuple[int, int, int]:
        unused = {kind: -count % size for kind, count in counts.items()}
        return unused.get(FullKV(), 0), sum(unused.values()), -size

    sizes = range(1, max(counts.values()) + 1)
    few = [size for size in sizes if sum(-(-count // size) for count in counts.values()) <= _MAX_GROUPS]
    return min(few or [sizes[-1]], key=cost)


def first_needed_block(window: int, num_tokens: int, block_size: int) -> int:
    """The first block with a key that token `num_tokens` or a later one sees; window 0: all keys."""
    return max(0, num_tokens - window + 1) // block_size if window else 0


def max_group_blocks(window: int, num_blocks: int, block_size: int, step_tokens: int) -> int:
    """The most blocks that a group holds for a sequence of `num_blocks` blocks of tokens, of which a step computes at
    most `step_tokens`: the window of the first of them, and their own, wherever blocks begin."""
    return min(num_blocks, -(-(window - 1 + step_tokens) // block_size) + 1) if window else num_blocks


def max_sequence_blocks(windows: Sequence[int], num_tokens: int, block_size: int, step_tokens: int) -> int:
    """The most blocks of all groups, whose windows these are, that a sequence of `num_tokens` tokens holds."""
    num_blocks = -(-num_tokens // block_size)
    return sum(max_group_blocks(window, num_blocks, block_size, step_tokens) for window in windows)


def capacity_tokens(windows: Sequence[int], num_blocks: int, block_size: int, step_tokens: int) -> int:
    """The longest sequence that fits `num_blocks` blocks; `UNLIMITED` where windows bound what any sequence holds."""

    def fits(length: int) -> bool:
        return max_sequence_blocks(windows, length * block_size, block_size, step_tokens) <= num_blocks

    low, high = 0, num_blocks + 1  # in blocks of tokens: `low` fits
    if fits(UNLIMITED // block_size):
        return UNLIMITED
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low * block_size
