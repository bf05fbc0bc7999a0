"""Streams, gates and factors in Triton's interpreter, against the reference in float32."""

from __future__ import annotations

import pytest
import torch

from octavo.ops import reference, reference_streams
from octavo.ops.routing import Routing
from octavo.ops.triton import experts, streams
from support.tensors import randn

DTYPES = [torch.float32, torch.bfloat16]
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
ROWS, WIDTH = 3, 1100


def close(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> None:
    torch.testing.assert_close(found.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("count", [2, 3, 4])
def test_streams_are_predicted_and_corrected(count: int, dtype: torch.dtype) -> None:
    given = [randn(ROWS, WIDTH, dtype=dtype, seed=seed) for seed in range(count)]
    scores, coefs = randn(ROWS, count, seed=5), randn(count * count, count, seed=6)
    expected = [each.float().clone() for each in given]
    reference_streams.altup_predict_(expected, scores, coefs)
    found = [each.clone() for each in given]
    streams.altup_predict_(found, scores, coefs)
    for ours, theirs in zip(found, expected, strict=True):
        close(ours, theirs, dtype)
    activated, coefs = randn(ROWS, WIDTH, dtype=dtype, seed=7), randn(count, count, seed=8)
    for scale in (None, randn(WIDTH, seed=9)):
        expected, out, wanted = [each.float().clone() for each in given], activated.clone(), activated.float().clone()
        reference_streams.altup_correct_(wanted, expected, activated.float(), scores, coefs, count - 1, scale)
        found = [each.clone() for each in given]
        streams.altup_correct_(out, found, activated, scores, coefs, count - 1, scale)
        for ours, theirs in zip([*found, out], [*expected, wanted], strict=True):
            close(ours, theirs, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_are_scaled_matched_and_cut(dtype: torch.dtype) -> None:
    x, to = randn(ROWS, WIDTH, dtype=dtype), randn(ROWS, WIDTH, dtype=dtype, seed=1) * 3
    for factors in (randn(WIDTH, seed=2), randn(1, seed=3)):
        found, expected = x.clone(), x.float().clone()
        streams.multiply_(found, factors)
        reference_streams.multiply_(expected, factors)
        close(found, expected, dtype)
    for size in (1.0, 1e-4):
        found, expected = x * size, (x * size).float()
        streams.match_rms_(found, to)
        reference_streams.match_rms_(expected, to.float())
        close(found, expected, dtype)
    found, expected = x.clone(), x.float().clone()
    streams.cut_gates_(found, 577, 0.4)
    reference_streams.cut_gates_(expected, 577, 0.4)
    close(found, expected, dtype)
    assert torch.equal(found[:, 577:], x[:, 577:])
    out, wanted = torch.empty(ROWS, 40, dtype=dtype), torch.empty(ROWS, 40)
    gate = x[:, :40].contiguous()
    streams.act_times(out, gate, to, 80, "gelu_tanh")
    reference_streams.act_times(wanted, gate.float(), to.float(), 80, "gelu_tanh")
    close(out, wanted, dtype)


def test_experts_have_scales_of_their_own() -> None:
    scores, scales = randn(9, 12), randn(12, seed=1)
    found = []
    for route in (reference.route, experts.route):
        ids, weights = torch.zeros(9, 3, dtype=torch.int32), torch.empty(9, 3)
        route(ids, weights, scores, Routing(), None, scales)
        found.append((ids, weights))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[1][1], found[0][1])
