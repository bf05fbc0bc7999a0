"""KV caches of the reference, whose keys are tiled, and of the GPU's kernels, whose keys lie in rows."""

from __future__ import annotations

import torch
from torch import Tensor


def from_reference(k_cache: Tensor, v_cache: Tensor, head_dim: int) -> tuple[Tensor, Tensor]:
    """The GPU's form of k [blocks, Hkv, block_size / 16, D, 16] and v [blocks, Hkv, block_size, padded D]."""
    blocks, heads, tiles, dim, tile = k_cache.shape
    k = k_cache.permute(0, 1, 2, 4, 3).reshape(blocks, heads, tiles * tile, dim)
    return k.contiguous(), v_cache[..., :head_dim].contiguous()


def random_tables(lens: list[int], block_size: int) -> tuple[Tensor, int]:
    """Block tables int32 [B, .] without order, block 0 for nobody, and the number of blocks."""
    needed = [-(-length // block_size) for length in lens]
    num_blocks = sum(needed) + 2
    free = (torch.randperm(num_blocks - 1, generator=torch.Generator().manual_seed(7)) + 1).tolist()
    tables = torch.zeros(len(lens), max([*needed, 1]) + 1, dtype=torch.int32)
    for i, count in enumerate(needed):
        tables[i, :count] = torch.tensor([free.pop() for _ in range(count)], dtype=torch.int32)
    return tables, num_blocks
