"""A step's attention: random queries, keys and values of sequences, computed by the kernels and by the reference."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from octavo.ops import reference_attention
from octavo.ops.triton.attention import attention
from support.paged_caches import from_reference, random_tables

TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2, torch.float16: 2e-3}
BLOCK_SIZE = 16


class Step:
    """Sequences (context, tokens of this step) with random queries, keys and values. What nobody may see is NaN."""

    def __init__(self, seqs: list[tuple[int, int]], heads: tuple[int, int, int], dtype: torch.dtype = torch.float32):
        self.heads, self.dtype = heads, dtype
        hq, hkv, d = heads
        generator = torch.Generator().manual_seed(len(seqs) + d)
        self.lens = [context for context, _ in seqs]
        self.counts = [count for _, count in seqs]
        self.tables, num_blocks = random_tables(self.lens, BLOCK_SIZE)
        k_shape, v_shape = reference_attention.kv_cache_shapes(num_blocks, BLOCK_SIZE, hkv, d)
        k_cache, v_cache = torch.full(k_shape, torch.nan), torch.full(v_shape, torch.nan)
        for i, length in enumerate(self.lens):
            p = torch.arange(length)
            blocks, offsets = self.tables[i, p // BLOCK_SIZE].long(), p % BLOCK_SIZE
            k = torch.randn(length, hkv, d, generator=generator).to(dtype).float()
            v = torch.randn(length, hkv, v_shape[3], generator=generator).to(dtype).float()
            k_cache[blocks, :, offsets // 16, :, offsets % 16] = k
            v_cache[blocks, :, offsets] = v
        self.reference_caches = k_cache, v_cache
        self.caches = tuple(cache.to(dtype) for cache in from_reference(k_cache, v_cache, d))
        self.qkv = torch.randn(sum(self.counts), (hq + 2 * hkv) * d, generator=generator).to(dtype)
        self.seq_lens = torch.tensor(self.lens, dtype=torch.int32)
        self.starts = torch.tensor([0, *np.cumsum(self.counts)], dtype=torch.int32)

    def run(self, scale: float = 0.3, **options: Any) -> Tensor:
        hq, _, d = self.heads
        out = torch.full((len(self.qkv), hq * d), torch.nan, dtype=self.dtype)
        attention(out, self.qkv, *self.caches, self.tables, self.seq_lens, self.starts, *self.heads, scale, **options)
        return out

    def expected(self, scale: float = 0.3, **options: Any) -> Tensor:
        hq, _, d = self.heads
        out = torch.empty(len(self.qkv), hq * d)
        plan = (self.tables, self.seq_lens, self.starts)
        reference_attention.attention(
            out, self.qkv.float(), *self.reference_caches, *plan, *self.heads, scale, **options
        )
        return out

    def check(self, **options: Any) -> None:
        tolerance = TOLERANCE[self.dtype]
        torch.testing.assert_close(self.run(**options).float(), self.expected(**options), rtol=0, atol=tolerance)
