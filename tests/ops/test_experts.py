"""Experts on the CPU: rows grouped by expert, float and integer weights, against the reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from octavo.ops.routing import Routing
from octavo.ops.table import Ops, bind
from octavo.quant.packed import QuantizedWeight
from support.tensors import randn

WIDTH, INNER, EXPERTS, TOP_K = 64, 96, 6, 3
NATIVE, REFERENCE = bind("cpu"), bind("cpu", "reference")


def matrix(kind: str, rows: int, columns: int, seed: int) -> torch.Tensor | QuantizedWeight:
    if kind == "int4":
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 16, (rows, columns), dtype=torch.uint8, generator=generator)
        scales = (0.02 * (0.5 + torch.rand(rows, columns // 32, generator=generator))).to(torch.float16)
        return QuantizedWeight(values, 4, 32, scales, None, 8)
    return (randn(rows, columns, seed=seed) * 0.1).to(getattr(torch, kind))


def weights(kind: str, parts: int = 2, has_biases: bool = False) -> tuple[list[Any], list[Any]]:
    """gate and up, or up alone, and down, of each expert, with their biases."""

    def bias(size: int, seed: int) -> torch.Tensor | None:
        return randn(size, seed=seed) if has_biases else None

    ups = [
        (
            [matrix(kind, INNER, WIDTH, 3 * e + part) for part in range(parts)],
            [bias(INNER, e + p) for p in range(parts)],
        )
        for e in range(EXPERTS)
    ]
    return ups, [([matrix(kind, WIDTH, INNER, 3 * e + 2)], [bias(WIDTH, e)]) for e in range(EXPERTS)]


def run(
    ops: Ops, packed: tuple[Any, Any], x: torch.Tensor, scores: torch.Tensor, kind: str = "silu", **options: bool
) -> torch.Tensor:
    rows = len(x)
    ids, shares = torch.zeros(rows, TOP_K, dtype=torch.int32), torch.zeros(rows, TOP_K)
    ops.route(ids, shares, scores, Routing())
    scratch = {"grouped": WIDTH, "gate_up": INNER * (2 if options.get("gated", True) else 1), "act": INNER}
    out = torch.full_like(x, torch.nan)
    ops.experts(
        out, x, ids, shares, *packed, kind, places=torch.zeros_like(ids), **options,
        **{name: torch.full((rows, TOP_K * width), torch.nan) for name, width in scratch.items()},
    )  # fmt: skip
    return out


@pytest.mark.parametrize("rows", [1, 5, 70])
@pytest.mark.parametrize(("kind", "tolerance"), [("float32", 1e-5), ("float16", 1e-5), ("int4", 0.02)])
def test_experts_agree_with_the_reference(kind: str, tolerance: float, rows: int) -> None:
    """One expert gets no row, and one nearly all."""
    given = weights(kind)
    x, scores = randn(rows, WIDTH), randn(rows, EXPERTS) + torch.tensor([5.0, 0.0, -90.0, 0.0, 0.0, 0.0])
    found, expected = (
        run(ops, (ops.pack_experts(given[0]), ops.pack_experts(given[1])), x, scores) for ops in (NATIVE, REFERENCE)
    )
    assert (found - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("kind", ["float32", "int4"])
def test_a_row_alone_has_the_bits_it_has_among_others(kind: str) -> None:
    given = weights(kind)
    packed = NATIVE.pack_experts(given[0]), NATIVE.pack_experts(given[1])
    x, scores = randn(40, WIDTH), randn(40, EXPERTS)
    whole = run(NATIVE, packed, x, scores)
    for row in range(40):
        one = slice(row, row + 1)
        assert torch.equal(run(NATIVE, packed, x[one].clone(), scores[one].clone())[0], whole[row])


@pytest.mark.parametrize("matrices", ["float32", "int4"])
@pytest.mark.parametrize(
    ("kind", "options"), [("swiglu_oai", {}), ("relu", {"gated": False}), ("silu", {"scales_input": True})]
)
def test_biases_plain_experts_and_weights_on_the_input(kind: str, options: dict[str, bool], matrices: str) -> None:
    ups, downs = weights(matrices, 2 if options.get("gated", True) else 1, has_biases=True)
    x, scores = randn(9, WIDTH), randn(9, EXPERTS)
    found, expected = (
        run(ops, (ops.pack_experts(ups), ops.pack_experts(downs)), x, scores, kind, **options)
        for ops in (NATIVE, REFERENCE)
    )
    assert (found - expected).norm() <= (1e-5 if matrices == "float32" else 0.02) * expected.norm()
