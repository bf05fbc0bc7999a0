"""Mamba's scan, at every instruction-set level: the reference's, in whatever steps its rows come."""

from __future__ import annotations

import pytest
import torch

from octavo.ops.table import Ops, bind

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")
LENGTHS = (13, 1, 6)
SLOTS = torch.tensor([2, 0, 3], dtype=torch.int32)


def scan(
    ops: Ops, width: int, size: int, steps: list[tuple[int, int]], heads: int = 0, groups: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """The results of rows first .. end of each sequence, step by step, and what their slots keep."""
    generator = torch.Generator().manual_seed(width + size)
    sizes = {"x": width, "dt": heads or width, "gate": width, "b": groups * size, "c": groups * size}
    rows = [{k: 2 * torch.randn(n, w, generator=generator) for k, w in sizes.items()} for n in LENGTHS]
    a_log = torch.randn((heads,) if heads else (size, width), generator=generator)
    d = torch.randn(heads or width, generator=generator)
    state, found = torch.full((4, size, width), torch.nan), [torch.empty(0, width) for _ in LENGTHS]
    for first, end in steps:
        active = [i for i, length in enumerate(LENGTHS) if length > first]
        counts = [min(LENGTHS[i], end) - first for i in active]
        starts = torch.tensor([0, *torch.tensor(counts).cumsum(0)], dtype=torch.int32)
        inputs = {k: torch.cat([rows[i][k][first:end] for i in active]) for k in sizes}
        positions = torch.cat([torch.arange(first, first + n, dtype=torch.int32) for n in counts])
        out = torch.full((len(positions), width), torch.nan)
        ops.selective_scan(out, *inputs.values(), a_log, d, state, SLOTS[active].contiguous(), positions, starts)
        for i, part in zip(active, out.split(counts), strict=True):
            found[i] = torch.cat((found[i], part))
    return torch.cat(found), state[SLOTS.long()]


@pytest.mark.parametrize(
    ("width", "size", "shared"),
    [(16, 16, ()), (70, 4, ()), (130, 33, ()), (64, 16, (4, 2)), (66, 5, (3, 1)), (40, 33, (2, 2))],
)
def test_rows_are_the_references_and_do_not_depend_on_the_steps(width: int, size: int, shared: tuple[int, ...]) -> None:
    """`shared`: by how many heads steps and rates are, and by how many groups b and c."""
    expected, kept = scan(REFERENCE, width, size, [(0, 99)], *shared)
    whole, state = scan(NATIVE, width, size, [(0, 99)], *shared)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(state, kept, rtol=1e-4, atol=1e-5)
    for steps in ([(i, i + 1) for i in range(13)], [(0, 5), (5, 6), (6, 99)]):
        found, ended = scan(NATIVE, width, size, steps, *shared)
        assert torch.equal(found, whole) and torch.equal(ended, state)
