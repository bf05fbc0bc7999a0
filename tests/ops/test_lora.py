"""What adapters add to a product, at every instruction-set level, and that no row minds its company."""

from __future__ import annotations

import pytest
import torch

from octavo.ops.lora import LoraPart, LoraWeights
from octavo.ops.table import bind
from support.tensors import randn

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")


def weights(columns: tuple[int, ...], K: int, rank: int, dtype: torch.dtype, seed: int, whole: bool) -> LoraWeights:
    parts, first = [], 0
    for number, count in enumerate(columns):
        if whole or number != 1:
            a, b = randn(rank, K, seed=seed + number), randn(rank, count, seed=seed - number)
            parts.append(LoraPart(first, a.to(dtype), b.to(dtype), 0.5 + number))
        first += count
    scale, shift = (randn(first, seed=seed), randn(first, seed=seed + 9)) if whole else (None, None)
    return LoraWeights(tuple(parts), scale, shift)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("columns", "K", "rank"), [((19, 5, 50), 37, 8), ((128, 64, 64), 96, 16), ((33,), 64, 3), ((70,), 16, 256)]
)
def test_rows_get_what_their_adapters_add(columns: tuple[int, ...], K: int, rank: int, dtype: torch.dtype) -> None:
    N, rows = sum(columns), 29
    banks = [ops.lora_bank(columns, K, 4, 256, dtype) for ops in (NATIVE, REFERENCE)]
    for bank in banks:
        for slot in (0, 1, 3):
            bank.put(slot, weights(columns, K, rank, dtype, 10 + slot, whole=slot == 1))
        bank.put(3, None)
    slots = torch.tensor([(5 * i) % 5 - 1 if i % 4 else 1 for i in range(rows)], dtype=torch.int32)
    slots[3:9] = torch.tensor([0, 3, 0, 2, -1, 1])
    x, before = randn(rows, K, seed=1), randn(rows, N, seed=2)
    out, expected = before.clone(), before.clone()
    NATIVE.lora_delta(out, x, slots, banks[0])
    REFERENCE.lora_delta(expected, x, slots, banks[1])
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-3)
    untouched = (slots < 0) | (slots == 2) | (slots == 3)
    assert torch.equal(out[untouched], before[untouched]) and not torch.equal(out[~untouched], before[~untouched])
    for row in range(rows):
        alone = before[row : row + 1].clone()
        NATIVE.lora_delta(alone, x[row : row + 1].clone(), slots[row : row + 1].clone(), banks[0])
        assert torch.equal(alone[0], out[row])
