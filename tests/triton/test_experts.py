"""Experts in Triton's interpreter, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.ops import reference
from octavo.ops.routing import Routing
from octavo.ops.triton import experts
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
