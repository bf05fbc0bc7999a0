"""The gated delta rule's kernel in Triton's interpreter, against the reference, in whatever steps its rows come."""

from __future__ import annotations

import pytest
import torch

from octavo.ops import reference_states
from octavo.ops.triton import gated_delta
from support.tensors import randn

LENGTHS = (5, 1, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("heads", "key_heads", "key_dim", "value_dim", "tiled", "beta_scale"),
    [(4, 2, 12, 40, False, 1.0), (6, 2, 16, 5, True, 2.0)],
)
def test_rows_are_the_references_and_do_not_depend_on_the_steps(
    heads: int, key_heads: int, key_dim: int, value_dim: int, tiled: bool, beta_scale: float, dtype: torch.dtype
) -> None:
    rows, width = sum(LENGTHS), 2 * key_heads * key_dim + heads * value_dim
    qkv, gates, a_log = randn(rows, width).to(dtype), randn(rows, 2 * heads, seed=1).to(dtype), randn(heads)
    starts = torch.tensor([0, *torch.tensor(LENGTHS).cumsum(0)], dtype=torch.int32)
    positions = torch.cat([torch.arange(n, dtype=torch.int32) for n in LENGTHS])
    slots = torch.tensor([2, 0, 3], dtype=torch.int32)
    options = (key_heads, tiled, beta_scale)
    expected, found = torch.empty(rows, heads * value_dim), torch.empty(rows, heads * value_dim, dtype=dtype)
    kept, state = (torch.full((4, heads, key_dim, value_dim), torch.nan) for _ in range(2))
    reference_states.gated_delta(expected, qkv.float(), gates.float(), a_log, kept, slots, positions, starts, *options)
    gated_delta.gated_delta(found, qkv, gates, a_log, state, slots, positions, starts, *options)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(state[slots.long()], kept[slots.long()], rtol=1e-4, atol=1e-5)
    # The first sequence alone, a row a step.
    alone = torch.full((1, heads, key_dim, value_dim), torch.nan)
    slot, one = torch.zeros(1, dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    for row in range(LENGTHS[0]):
        at = slice(row, row + 1)
        out = torch.empty(1, heads * value_dim, dtype=dtype)
        gated_delta.gated_delta(out, qkv[at], gates[at], a_log, alone, slot, positions[at], one, *options)
        assert torch.equal(out, found[at])
    assert torch.equal(alone[0], state[2])
