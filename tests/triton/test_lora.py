"""The kernels of adapters in Triton's interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo.ops import reference
from octavo.ops.lora import LoraPart, LoraWeights
from octavo.ops.triton import lora
from support.tensors import randn

TOLERANCE = {torch.float32: 2e-4, torch.bfloat16: 5e-2}


def weights(columns: tuple[int, ...], K: int, rank: int, dtype: torch.dtype, slot: int) -> LoraWeights:
    parts, first = [], 0
    for number, count in enumerate(columns):
        if (slot + number) % 3:
            a, b = randn(rank, K, seed=slot + number), randn(rank, count, seed=7 * slot + number)
            parts.append(LoraPart(first, (a * K**-0.5).to(dtype), b.to(dtype), 0.5 + number))
        first += count
    return LoraWeights(tuple(parts), *((randn(first, seed=3), randn(first, seed=4)) if slot == 1 else (None, None)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("columns", "K", "rank"), [((80, 24, 24), 1100, 8), ((70,), 40, 20)])
def test_rows_get_what_their_adapters_add(columns: tuple[int, ...], K: int, rank: int, dtype: torch.dtype) -> None:
    N, rows = sum(columns), 21
    bank = lora.LoraBank(columns, K, 3, rank, dtype, torch.device("cpu"))
    expected_bank = reference.lora_bank(columns, K, 3, rank, dtype)
    for slot in (0, 1, 2):
        for each in (bank, expected_bank):
            each.put(slot, weights(columns, K, rank, dtype, slot))
    bank.put(2, None)
    expected_bank.put(2, None)
    slots = torch.tensor([i % 4 - 1 for i in range(rows)], dtype=torch.int32)
    slots[16:] = -1
    x, before = randn(rows, K, seed=1).to(dtype), randn(rows, N, seed=2).to(dtype)
    out, expected = before.clone(), before.float()
    lora.lora_delta(out, x, slots, bank)
    reference.lora_delta(expected, x.float(), slots, expected_bank)
    torch.testing.assert_close(out.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    untouched = (slots < 0) | (slots == 2)
    assert torch.equal(out[untouched], before[untouched])
    lora.lora_delta(out[:0], x[:0], slots[:0], bank)
