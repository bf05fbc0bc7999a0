"""Experts in Triton's interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.ops import reference
from octavo.ops.routing import Routing
from octavo.ops.triton import experts
from octavo.ops.triton.experts_int import IntExperts, int_product
from octavo.quant.packed import E4M3_VALUES, QuantizedWeight
from support.tensors import randn

WIDTH, INNER, EXPERTS = 40, 72, 5


#: Routings, with the numbers of experts and of those chosen.
ROUTINGS = [
    *((Routing(), *sizes) for sizes in ((1, 1), (60, 4), (5, 5))),
    *((Routing(renormalize=False), *sizes) for sizes in ((8, 2), (60, 4))),
    *((Routing(kind="sigmoid", renormalize=renormalize, factor=2.5), 8, 2) for renormalize in (True, False)),
    (Routing(num_groups=5, top_groups=2), 20, 3),
    (Routing(kind="sigmoid", num_groups=4, top_groups=2, group_best=2, factor=0.5), 24, 5),
    (Routing(kind="sparsemixer", jitter=0.2), 7, 2),
]  # fmt: skip


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(("routing", "num_experts", "top_k"), ROUTINGS)
def test_the_best_are_chosen_and_equal_ones_by_number(
    routing: Routing, num_experts: int, top_k: int, has_bias: bool
) -> None:
    scores = (randn(9, num_experts) * 2).round()
    bias = randn(num_experts).round() / 2 if has_bias else None
    found, expected = [(torch.zeros(9, top_k, dtype=torch.int32), torch.full((9, top_k), torch.nan)) for _ in range(2)]
    experts.route(*found, scores, routing, bias)
    reference.route(*expected, scores, routing, bias)
    assert torch.equal(found[0], expected[0])
    torch.testing.assert_close(found[1], expected[1], rtol=1e-5, atol=1e-6)


def run(
    module: Any,
    packed: tuple[Any, Any],
    x: torch.Tensor,
    ids: torch.Tensor,
    weights: torch.Tensor,
    kind: str = "silu",
    **options: bool,
) -> torch.Tensor:
    rows, top_k = ids.shape
    scratch = {"grouped": WIDTH, "gate_up": INNER * (2 if options.get("gated", True) else 1), "act": INNER}
    out = torch.full_like(x, torch.nan)
    module.experts(
        out, x, ids, weights, *packed, kind, places=torch.zeros_like(ids), **options,
        **{name: torch.full((rows, top_k * width), torch.nan, dtype=x.dtype) for name, width in scratch.items()},
    )  # fmt: skip
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("rows", [1, 7, 200])
def test_rows_go_to_their_experts(rows: int, dtype: torch.dtype) -> None:
    """With experts that get no row, few rows, and more than a tile of them."""
    top_k = 2
    matrices = [
        ([(randn(INNER, WIDTH, seed=50 * part + e) * 0.2).to(dtype) for part in range(2)], [None, None])
        for e in range(EXPERTS)
    ]
    downs = [([(randn(WIDTH, INNER, seed=100 + e) * 0.2).to(dtype)], [None]) for e in range(EXPERTS)]
    generator = torch.Generator().manual_seed(rows)
    scores = torch.randn(rows, EXPERTS, generator=generator) + torch.tensor([3.0, 0.0, -50.0, 1.0, 0.0])
    ids, weights = torch.zeros(rows, top_k, dtype=torch.int32), torch.zeros(rows, top_k)
    reference.route(ids, weights, scores, Routing())
    x = randn(rows, WIDTH).to(dtype)
    expected = run(
        reference, (reference.pack_experts(matrices), reference.pack_experts(downs)), x.float(), ids, weights
    )
    options: Any = (dtype, lambda tensor: tensor, False)
    packed = experts.pack_experts(matrices, *options), experts.pack_experts(downs, *options)
    found = run(experts, packed, x, ids, weights)
    tolerance = 1e-4 if dtype == torch.float32 else 3e-2
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(
    ("kind", "options"), [("swiglu_oai", {}), ("relu", {"gated": False}), ("silu", {"scales_input": True})]
)
def test_biases_plain_experts_and_weights_on_the_input(kind: str, options: dict[str, bool]) -> None:
    parts = range(2 if options.get("gated", True) else 1)
    ups = [([randn(INNER, WIDTH, seed=9 * e + p) for p in parts], [randn(INNER, seed=e + p) for p in parts])
           for e in range(EXPERTS)]  # fmt: skip
    downs = [([randn(WIDTH, INNER, seed=70 + e) * 0.1], [randn(WIDTH, seed=e)]) for e in range(EXPERTS)]
    ids, weights = torch.zeros(9, 2, dtype=torch.int32), torch.zeros(9, 2)
    reference.route(ids, weights, randn(9, EXPERTS), Routing(kind="sigmoid", renormalize=False))
    x = randn(9, WIDTH)
    expected = run(
        reference, (reference.pack_experts(ups), reference.pack_experts(downs)), x, ids, weights, kind, **options
    )
    packed = [experts.pack_experts(each, torch.float32, lambda t: t, False) for each in (ups, downs)]
    found = run(experts, (packed[0], packed[1]), x, ids, weights, kind, **options)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_row_alone_has_the_bits_that_it_has_in_company() -> None:
    packed = [
        experts.pack_experts(
            [([randn(n, k, seed=e)], [None]) for e in range(EXPERTS)], torch.float32, lambda t: t, True
        )
        for n, k in ((2 * INNER, WIDTH), (WIDTH, INNER))
    ]
    ids, weights = torch.zeros(30, 2, dtype=torch.int32), torch.zeros(30, 2)
    experts.route(ids, weights, randn(30, EXPERTS), Routing())
    x = randn(30, WIDTH)
    whole = run(experts, (packed[0], packed[1]), x, ids, weights)
    for row in (0, 13, 29):
        one = slice(row, row + 1)
        alone = run(experts, (packed[0], packed[1]), x[one].clone(), ids[one].clone(), weights[one].clone())
        assert torch.equal(alone[0], whole[row])


#: bits, group, mins, table.
FORMS: dict[str, tuple[int, int, bool, torch.Tensor | None]] = {
    "GPTQ": (4, 64, False, None), "Q4_K": (4, 32, True, None), "Q6_K": (6, 16, False, None),
    "nf4": (4, 64, False, torch.linspace(-1, 1, 16)), "float8": (8, 192, False, E4M3_VALUES),
}  # fmt: skip


def quantized(form: str, n: int, k: int, seed: int) -> QuantizedWeight:
    bits, group, has_mins, table = FORMS[form]
    group = min(group, k)
    generator = torch.Generator().manual_seed(seed)
    values = torch.randint(0, min(2**bits, 120), (n, k), dtype=torch.uint8, generator=generator)
    scales = (0.5 + torch.rand(n, k // group, generator=generator)) / (40 if table is None else 20)
    mins = -scales * 2 ** (bits - 1) if has_mins else None
    zero = 0 if has_mins or table is not None else 2 ** (bits - 1)
    return QuantizedWeight(values, bits, group, scales, mins, zero, table)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("rows", [3, 40])
def test_small_experts_give_what_their_floats_do(form: str, rows: int) -> None:
    """Gathered rows with biases, rows in places, few an expert and many; and a row alone has the same bits."""
    num, n, k = 4, 72, 128
    given = [
        ([quantized(form, n // 2, k, 2 * e + p) for p in range(2)], [randn(n // 2, seed=e)] * 2) for e in range(num)
    ]
    packed = experts.pack_experts(given, torch.bfloat16, lambda tensor: tensor, True)
    assert isinstance(packed, IntExperts) and len(packed) == num
    assert packed.matrices.packed.nbytes == num * n * k // (2 if FORMS[form][0] == 4 else 1)
    assert sum(each.nbytes for each in packed) == packed.matrices.nbytes
    ids = torch.randint(0, num - 1, (rows, 2), dtype=torch.int32, generator=torch.Generator().manual_seed(rows))
    x = randn(rows, k).to(torch.bfloat16)
    flat = ids.flatten()
    order = flat.argsort(stable=True).to(torch.int32)
    counts = flat.bincount(minlength=num).to(torch.int32)
    floats = torch.stack([torch.cat([part.dequantize() for part in parts]) for parts, _ in given])
    biases = torch.stack([torch.cat(each) for _, each in given])
    for rows_per_x in (2, 0):
        entries = x.repeat_interleave(2, dim=0)[order]
        source = x if rows_per_x else entries
        expected = torch.einsum("rk,rnk->rn", entries.float(), floats[flat[order]]) + biases[flat[order]]
        for many in (False, True):
            out = torch.full((2 * rows, n), torch.nan)
            int_product(out, source, packed, order, counts, many, 4, rows_per_x, None)
            torch.testing.assert_close(out, expected, rtol=2e-2, atol=5e-2)
        one = torch.full((2, n), torch.nan)
        own = ids[:1].flatten()
        int_product(
            one, x[:1] if rows_per_x else x[:1].repeat(2, 1), packed, own.argsort(stable=True).to(torch.int32),
            own.bincount(minlength=num).to(torch.int32), False, 4, rows_per_x, None,
        )  # fmt: skip
        places = (order[None] == torch.tensor([[0], [1]])).int().argmax(1)[own.argsort(stable=True)]
        assert torch.equal(one, out[places])


def test_experts_of_several_forms_are_floats() -> None:
    given = [([quantized(form, 8, 64, 1)], [None]) for form in ("GPTQ", "Q4_K")]
    packed = experts.pack_experts(given, torch.bfloat16, lambda tensor: tensor, False)
    assert isinstance(packed, experts.ExpertsWeight)
    for matrix, (parts, _) in zip(packed.weight, given, strict=True):
        assert torch.equal(matrix, parts[0].dequantize().to(torch.bfloat16))
