"""The operations of tokens with several streams, natively, against the reference; and a row minds no company."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.ops.routing import Routing
from octavo.ops.table import Ops, bind
from support.tensors import randn

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")
Made = tuple[str, dict[str, Any], tuple[str, ...]]  # operation, arguments, those that it writes


def _cases() -> Iterator[Callable[[], Made]]:
    for rows, width in ((1, 5), (3, 64), (7, 577)):
        for count in (2, 4, 5):
            yield lambda r=rows, w=width, n=count: _altup(r, w, n)
        yield lambda r=rows, w=width: ("multiply_", {"x": randn(r, w), "factors": randn(w)}, ("x",))
        yield lambda r=rows, w=width: ("multiply_", {"x": randn(r, w), "factors": randn(1)}, ("x",))
        yield lambda r=rows, w=width: ("match_rms_", {"x": randn(r, w) * 3, "to": randn(r, w, seed=1)}, ("x",))
        yield lambda r=rows, w=width: ("match_rms_", {"x": randn(r, w) * 1e-4, "to": randn(r, w, seed=1)}, ("x",))
        yield lambda r=rows, w=width: ("cut_gates_", {"x": randn(r, w + 9), "width": w, "deviations": 0.4}, ("x",))
        yield lambda r=rows, w=width: (
            "act_times",
            {"out": torch.empty(r, w), "x": randn(r, w), "y": randn(r, 3 * w, seed=1), "first": w, "kind": "gelu_tanh"},
            ("out",),
        )


def _altup(rows: int, width: int, count: int) -> Made:
    streams = [randn(rows, width, seed=seed) for seed in range(count)]
    scores = randn(rows, count, seed=7)
    if count == 2:
        return "altup_predict_", {"streams": streams, "scores": scores, "coefs": randn(4, 2)}, ("streams",)
    args = {
        "out": torch.empty(rows, width), "streams": streams, "activated": randn(rows, width, seed=8), "scores": scores,
        "coefs": randn(count, count), "active": count % 3, "scale": randn(width, seed=9) if count == 4 else None,
    }  # fmt: skip
    return "altup_correct_", args, ("out", "streams")


def run(ops: Ops, made: Made, rows: slice) -> list[Tensor]:
    """What is written, for some of the rows."""
    name, args, written = made
    per_row = ("out", "x", "y", "to", "activated", "scores", "streams")

    def part(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return [part(key, each) for each in value]
        if not isinstance(value, Tensor):
            return value
        return (value[rows] if key in per_row else value).clone()

    given = {key: part(key, value) for key, value in args.items()}
    getattr(ops, name)(**given)
    return [each for key in written for each in (given[key] if isinstance(given[key], list) else [given[key]])]


@pytest.mark.parametrize("make", [*_cases()])
def test_native_operations_are_the_reference_and_rows_mind_no_company(isa: str, make: Callable[[], Made]) -> None:
    made = make()
    found, expected = run(NATIVE, made, slice(None)), run(REFERENCE, made, slice(None))
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    last = len(found[0]) - 1
    for ours, whole in zip(run(NATIVE, made, slice(last, None)), found, strict=True):
        assert torch.equal(ours[0], whole[last])


def test_experts_have_scales_of_their_own(isa: str) -> None:
    scores, scales = randn(9, 12), randn(12, seed=1)
    found = []
    for ops in (REFERENCE, NATIVE):
        ids, weights = torch.zeros(9, 3, dtype=torch.int32), torch.empty(9, 3)
        ops.route(ids, weights, scores, Routing(factor=1.5), None, scales)
        found.append((ids, weights))
    (ids, weights), (same_ids, same_weights) = found
    assert torch.equal(ids, same_ids)
    torch.testing.assert_close(same_weights, weights)
    chosen = scores.gather(1, ids.long())
    torch.testing.assert_close(weights, chosen.softmax(-1) * 1.5 * scales[ids.long()])


def test_queries_alone_see_what_another_layer_wrote(isa: str) -> None:
    """They are rotated, nothing is written, and their results are those that they have beside keys of their own."""
    heads, kv_heads, dim, rows = 4, 2, 16, 5
    qkv, norm = randn(rows, (heads + 2 * kv_heads) * dim), randn(dim)
    angles = torch.arange(16.0)[:, None] * torch.logspace(0, -2, dim // 2)[None, :]
    table, slots = torch.cat((angles.cos(), angles.sin()), 1), torch.arange(rows)
    positions, tables = torch.arange(rows, dtype=torch.int32), torch.zeros(1, 1, dtype=torch.int32)
    lens, starts = torch.tensor([rows], dtype=torch.int32), torch.tensor([0, rows], dtype=torch.int32)
    for ops in (REFERENCE, NATIVE):
        k, v = (torch.zeros(shape) for shape in ops.kv_cache_shapes(1, 16, kv_heads, dim))
        whole, alone = qkv.clone(), qkv[:, : heads * dim].clone()
        out, again = torch.empty(rows, heads * dim), torch.empty(rows, heads * dim)
        ops.rope_kv_write(whole, positions, table, norm, norm, 1e-6, k, v, slots, heads, kv_heads, dim)
        ops.attention(out, whole, k, v, tables, lens, starts, heads, kv_heads, dim, 0.3)
        before = k.clone(), v.clone()
        ops.rope_kv_write(alone, positions, table, norm, norm, 1e-6, k, v, slots, heads, 0, dim)
        assert torch.equal(alone, whole[:, : heads * dim])
        assert torch.equal(k, before[0]) and torch.equal(v, before[1])
        ops.attention(again, alone, k, v, tables, lens, starts, heads, kv_heads, dim, 0.3)
        assert torch.equal(again, out)
