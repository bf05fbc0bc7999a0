"""The kernels of adapters in Triton's interpreter, against the reference."""

from __future__ import annotations

import pytest
import torch

from octavo.ops import reference
from octavo.ops.lora import ExpertDeltas, ExpertsBank, LoraPart, LoraWeights
from octavo.ops.triton import experts, lora
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


@pytest.mark.parametrize("scales_input", [False, True])
def test_adapters_of_experts_add_within_the_mixture(scales_input: bool) -> None:
    """Two slots; of some experts an adapter changes nothing, and rows of slot -1 stay as they are."""
    width, inner, num, rows, top_k = 40, 24, 5, 19, 2
    ups = [([randn(inner, width, seed=9 * e + p) * 0.2 for p in range(2)], [None, None]) for e in range(num)]
    downs = [([randn(width, inner, seed=70 + e) * 0.2], [None]) for e in range(num)]
    ids = torch.stack([torch.randperm(num, generator=torch.Generator().manual_seed(i))[:top_k] for i in range(rows)])
    ids, mix, x = ids.int(), randn(rows, top_k).abs(), randn(rows, width)
    slots = torch.tensor([i % 3 - 1 for i in range(rows)], dtype=torch.int32)

    def run(module: object, packed: list[object], make: object, given: torch.Tensor | None) -> torch.Tensor:
        banks = []
        for columns, size in (((inner, inner), width), ((width,), inner)):
            bank = ExpertsBank(make(columns, size, 2 * num, 8, torch.float32), num, 2)  # type: ignore[operator]
            for slot in range(2):
                bank.put(slot, {e: weights(columns, size, 8, torch.float32, slot) for e in range(slot, num, 2)})
            bank.put(1, {e: weights(columns, size, 8, torch.float32, e) for e in (0, 3)})
            banks.append(bank)
        out = torch.full_like(x, torch.nan)
        scratch = {"grouped": width, "gate_up": 2 * inner, "act": inner}
        module.experts(  # type: ignore[attr-defined]
            out, x, ids, mix, *packed, "silu", places=torch.zeros_like(ids), scales_input=scales_input,
            deltas=None if given is None else ExpertDeltas(given, *banks),
            **{name: torch.full((rows, top_k * size), torch.nan) for name, size in scratch.items()},
        )  # fmt: skip
        return out

    def bank(*args: object) -> lora.LoraBank:
        return lora.LoraBank(*args, torch.device("cpu"))  # type: ignore[arg-type]

    plain = [reference.pack_experts(each) for each in (ups, downs)]
    packed = [experts.pack_experts(each, torch.float32, lambda t: t, False) for each in (ups, downs)]
    expected = run(reference, plain, reference.lora_bank, slots)
    found, before = run(experts, packed, bank, slots), run(experts, packed, bank, None)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(found[slots < 0], before[slots < 0])
    assert (found - before).abs().amax(dim=1)[slots >= 0].median() > 0.01
