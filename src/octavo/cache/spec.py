"""Which layers share a block table, and how many blocks a sequence holds.

Layers that see all keys keep all of them; a layer with a window of w needs the last w - 1 beside each new token. Layers
of one kind are cut into groups of equally many layers, each with a block table of its own. A block holds `block_size`
tokens of one group, so that all blocks are of one size and one pool serves whatever mix of lengths comes:

    layers    s s s s s f s s s s s f s s s s s f        s: window, f: all keys
    groups    f f f | s s s | s s s | s s s | s s s | s s s
    memory    3 arrays: layer i of each group lies in array i, under the ids of its group's blocks

A pool of its own for each kind would have to be divided once, for lengths that nobody knows. Where layers differ in
what they keep of a token (other heads, a latent), a group takes as many as a page has room for, and a block is a page:

    layers    g l l l l l g l l l l l        g: half as large as l
    groups    g g | l | l | l ...            no group has more than a page holds
    memory    1 array of pages: the layers of a group lie in its blocks' pages one behind the other
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

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


@dataclass(frozen=True)
class EncoderKV:
    """A layer that sees the rows of an encoder: as many of a sequence as its input has, from its first token on."""


LayerKV = FullKV | WindowKV | EncoderKV
_ORDER = (FullKV, WindowKV, EncoderKV)


@dataclass(frozen=True)
class CacheGroup:
    """Layers with one block table, in rising order; layer `layers[i]` uses array i."""

    kind: LayerKV
    layers: tuple[int, ...]

    @property
    def window(self) -> int:
        """0: all keys."""
        return self.kind.window if isinstance(self.kind, WindowKV) else 0


def cache_groups(kinds: Sequence[LayerKV], sizes: Sequence[int] | None = None) -> tuple[CacheGroup, ...]:
    """The groups of layers 0, 1, 2 ..., those that see all keys first, those that see an encoder's rows last.

    `sizes`: how much each layer keeps of a token; None: all the same.
    """
    sizes = sizes or [1] * len(kinds)
    by_kind: dict[LayerKV, list[int]] = {}
    for layer, kind in enumerate(kinds):
        by_kind.setdefault(kind, []).append(layer)
    full_first = sorted(by_kind.items(), key=lambda item: _ORDER.index(type(item[0])))
    largest = max(sizes)
    pages = {page for layers in by_kind.values() for page in accumulate(sizes[layer] for layer in layers)}
    cuts = {page: _cut(full_first, sizes, page) for page in pages if page >= largest}
    few = [page for page, groups in cuts.items() if len(groups) <= _MAX_GROUPS]
    return cuts[min(few or [max(cuts)], key=lambda page: _unused(cuts[page], sizes, page))]


def _cut(kinds: Sequence[tuple[LayerKV, list[int]]], sizes: Sequence[int], page: int) -> tuple[CacheGroup, ...]:
    """The layers of each kind in groups, as many of them in each as fit its page."""
    groups = []
    for kind, layers in kinds:
        members: list[int] = []
        left = page
        for layer in layers:
            if sizes[layer] > left:
                groups.append(CacheGroup(kind, tuple(members)))
                members, left = [], page
            members.append(layer)
            left -= sizes[layer]
        groups.append(CacheGroup(kind, tuple(members)))
    return tuple(groups)


def _unused(groups: Sequence[CacheGroup], sizes: Sequence[int], page: int) -> tuple[int, int, int]:
    """What is to be little: the places of pages without a layer, above all in groups that keep all keys; and the number
    of groups."""
    unused = [(group.window, page - sum(sizes[layer] for layer in group.layers)) for group in groups]
    return sum(places for window, places in unused if not window), sum(places for _, places in unused), -page


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
