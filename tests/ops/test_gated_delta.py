"""The gated delta rule, at every instruction-set level: the reference's, in whatever steps its rows come."""

from __future__ import annotations

import pytest
import torch

from octavo.ops.table import Ops, bind

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")
LENGTHS = (13, 1, 6)
SLOTS = torch.tensor([2, 0, 3], dtype=torch.int32)
#: Heads, key heads, sizes of keys and values, whether heads take turns at the key heads, the factor of beta.
SHAPES = [(4, 2, 12, 70, False, 1.0), (6, 2, 33, 5, True, 2.0), (2, 2, 128, 128, False, 1.0)]


def run_rule(
    ops: Ops, shape: tuple[int, int, int, int, bool, float], steps: list[tuple[int, int]]
) -> tuple[torch.Tensor, torch.Tensor]:
    """The results of rows first .. end of each sequence, step by step, and what their slots keep."""
    heads, key_heads, key_dim, value_dim, tiled, beta_scale = shape
    generator = torch.Generator().manual_seed(key_dim)
    width = 2 * key_heads * key_dim + heads * value_dim
    rows = [
        (torch.randn(n, width, generator=generator), 2 * torch.randn(n, 2 * heads, generator=generator))
        for n in LENGTHS
    ]
    a_log = torch.randn(heads, generator=generator)
    state = torch.full((4, heads, key_dim, value_dim), torch.nan)
    found = [torch.empty(0, heads * value_dim) for _ in LENGTHS]
    for first, end in steps:
        active = [i for i, length in enumerate(LENGTHS) if length > first]
        counts = [min(LENGTHS[i], end) - first for i in active]
        starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
        qkv, gates = (torch.cat([rows[i][part][first:end] for i in active]) for part in (0, 1))
        positions = torch.cat([torch.arange(first, first + n, dtype=torch.int32) for n in counts])
        out = torch.full((len(positions), heads * value_dim), torch.nan)
        slots = SLOTS[active].contiguous()
        ops.gated_delta(out, qkv, gates, a_log, state, slots, positions, starts, key_heads, tiled, beta_scale)
        for i, part in zip(active, out.split(counts), strict=True):
            found[i] = torch.cat((found[i], part))
    return torch.cat(found), state[SLOTS.long()]


@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_the_references_and_do_not_depend_on_the_steps(
    shape: tuple[int, int, int, int, bool, float],
) -> None:
    expected, kept = run_rule(REFERENCE, shape, [(0, 99)])
    whole, state = run_rule(NATIVE, shape, [(0, 99)])
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state, kept, rtol=1e-4, atol=1e-5)
    for steps in ([(i, i + 1) for i in range(13)], [(0, 5), (5, 6), (6, 99)]):
        found, ended = run_rule(NATIVE, shape, steps)
        assert torch.equal(found, whole) and torch.equal(ended, state)


def test_the_reference_is_the_published_rule() -> None:
    """One head, one token behind another, written out."""
    q, k, v = (
        torch.tensor([[3.0, 4.0], [0.0, 2.0]]),
        torch.tensor([[1.0, 0.0], [0.6, 0.8]]),
        torch.tensor([[2.0], [5.0]]),
    )
    out, state = torch.empty(2, 1), torch.full((1, 1, 2, 1), torch.nan)
    gates = torch.tensor([[0.0, 30.0], [100.0, 0.0]])  # beta 1/2 and 1; steps of 30 and log 2
    one = torch.tensor([0], dtype=torch.int32)
    starts, positions = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([0, 1], dtype=torch.int32)
    REFERENCE.gated_delta(out, torch.cat((q, k, v), 1), gates, torch.zeros(1), state, one, positions, starts, 1)
    # state = k v / 2 = (1, 0); of it a half is left: (0.5, 0), at the second key 0.3, which shall be 5.
    second = torch.tensor([0.5 + 0.6 * 4.7, 0.8 * 4.7])
    torch.testing.assert_close(state[0, 0, :, 0], second, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out[:, 0], torch.tensor([0.6, second[1].item()]) * 2**-0.5, rtol=1e-5, atol=1e-5)


def test_an_empty_step_keeps_the_states() -> None:
    state, nothing = torch.ones(2, 1, 4, 4), torch.tensor([0, 0], dtype=torch.int32)
    empty = torch.empty(0, dtype=torch.int32)
    slots = torch.tensor([1], dtype=torch.int32)
    NATIVE.gated_delta(
        torch.empty(0, 4), torch.empty(0, 12), torch.empty(0, 2), torch.zeros(1), state, slots, empty, nothing, 1
    )
    assert torch.equal(state, torch.ones(2, 1, 4, 4))
