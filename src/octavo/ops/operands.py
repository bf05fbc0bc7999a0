"""What operations name: the buffers and weights that they compute with, and what a layer keeps of a sequence."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


@dataclass(frozen=True, eq=False)
class Buffer:
    """[rows, width]: a value of the step. One operation writes it; those that say so change it in place."""

    name: str
    width: int
    dtype: torch.dtype | None = None  # None: the table's type of activations


@dataclass(frozen=True)
class Weight:
    """A parameter by name, in the shape in which operations see it: matrices [N, K], tables [rows, width], vectors [N].

    Matrices of experts are [E, N, K]. `shard`: the dimension along which ranks would divide it. N: each has some of the
    results. K: each has a part of every sum, so that results would have to be added up over the ranks. None: each has
    all of it.
    """

    name: str
    shape: tuple[int, ...]
    shard: int | None = None


@dataclass(frozen=True, kw_only=True)
class Heads:
    """Of an attention. Head h of the queries reads head h * num_kv_heads // num_heads of keys and values."""

    num_heads: int
    num_kv_heads: int
    head_dim: int

    @property
    def size(self) -> int:
        """Columns of all queries, and of what attention gives."""
        return self.num_heads * self.head_dim

    @property
    def qkv_size(self) -> int:
        """Columns of the stacked projection q | k | v."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @property
    def cached_size(self) -> int:
        """Values that are kept of a token."""
        return 2 * self.num_kv_heads * self.head_dim

    @property
    def ops_per_key(self) -> int:
        """Sums and products of one query with one key and its value."""
        return 4 * self.size


@dataclass(frozen=True, kw_only=True)
class KeyBlocks:
    """Which keys a head of an attention sees, of those up to a row's own: blocks of `size` positions, a multiple of
    `KEY_TILE`. It sees the last `local` blocks up to the row's own, and each block b for which
    (b + head * step + 1) % stride == 0."""

    size: int
    local: int
    stride: int
    step: int

    @property
    def numbers(self) -> tuple[int, int, int, int]:
        return self.size, self.local, self.stride, self.step


@dataclass(frozen=True, kw_only=True)
class Latent:
    """Of a multi-head latent attention. What is kept of a token is its latent and one rotated key, both for all heads.

    A query of a head is nope_dim columns, which a matrix of the head takes to the latent's `rank`, and rope_dim that
    are rotated. `rank` is a multiple of 16, as is `rope_dim`.
    """

    num_heads: int
    nope_dim: int
    rank: int
    rope_dim: int

    @property
    def width(self) -> int:
        """Columns of a cached row: latent | rotated key."""
        return self.rank + self.rope_dim

    @property
    def cached_size(self) -> int:
        return self.width

    @property
    def ops_per_key(self) -> int:
        return 2 * self.num_heads * (self.width + self.rank)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """What one layer keeps. `group`: whose block table and slots it uses, of those that a step carries.

    `k_scale`, `v_scale`: a float8 cache holds keys and values divided by them; any other type, and latents, need none.
    """

    index: int
    heads: Heads | Latent
    window: int = 0  # keys at a distance below it are seen; 0: all
    chunked: bool = False  # instead those of the query's chunk of `window` positions, which are among them
    group: int = 0
    of_encoder: bool = False  # of an encoder's rows, as many of each sequence as `encoder_lens` of the step says
    k_scale: float = 1.0
    v_scale: float = 1.0
    layer: int | None = field(default=None, compare=False)  # its number in the checkpoint


@dataclass(frozen=True, kw_only=True)
class State:
    """What one layer keeps of a sequence, as much whatever its length: float32 of a shape, in the sequence's slot."""

    index: int
    shape: tuple[int, ...]
