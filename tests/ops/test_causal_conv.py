"""Convolutions with a state by slot, at every instruction-set level: the reference's, in whatever steps."""

from __future__ import annotations

import pytest
import torch

from octavo.ops.table import Ops, bind
from support.tensors import randn

pytestmark = pytest.mark.usefixtures("isa")

REFERENCE, NATIVE = bind("cpu", "reference"), bind("cpu")
LENGTHS = (23, 9, 2)


def in_steps(
    ops: Ops, inputs: list[torch.Tensor], weight: torch.Tensor, bias: torch.Tensor | None, gated: bool, size: int
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The results of sequences of which each step takes up to `size` rows, and what their slots keep at the end."""
    taps, width = weight.shape
    state, slots = torch.full((5, taps - 1, width), torch.nan), [3, 0, 4]
    done, found = [0] * len(inputs), [[] for _ in inputs]  # type: ignore[var-annotated]
    while any(at < len(x) for at, x in zip(done, inputs, strict=True)):
        active = [i for i, x in enumerate(inputs) if done[i] < len(x)]
        parts = [inputs[i][done[i] : done[i] + size] for i in active]
        starts = torch.tensor([0, *torch.tensor([len(part) for part in parts]).cumsum(0)], dtype=torch.int32)
        positions = torch.cat(
            [torch.arange(done[i], done[i] + len(part)) for i, part in zip(active, parts, strict=True)]
        )
        out = torch.full((int(starts[-1]), width), torch.nan)
        ops.causal_conv(
            out, torch.cat(parts), weight, bias, state, torch.tensor([slots[i] for i in active], dtype=torch.int32),
            positions.to(torch.int32), starts, gated,
        )  # fmt: skip
        for i, rows in zip(active, out.split([len(part) for part in parts]), strict=True):
            found[i].append(rows)
            done[i] += len(rows)
    return [torch.cat(parts) for parts in found], state[slots]


@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize(("width", "taps"), [(16, 3), (300, 4), (37, 2)])
def test_sums_are_the_references_and_do_not_depend_on_the_steps(width: int, taps: int, gated: bool) -> None:
    inputs = [randn(length, width * (3 if gated else 1), seed=length) for length in LENGTHS]
    weight = randn(taps, width)
    for bias in (None, randn(width)):
        expected, kept = in_steps(REFERENCE, inputs, weight, bias, gated, 100)
        whole, state = in_steps(NATIVE, inputs, weight, bias, gated, 100)
        torch.testing.assert_close(whole, expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(state, kept, rtol=1e-6, atol=0)
        for size in (1, 4):
            found, ended = in_steps(NATIVE, inputs, weight, bias, gated, size)
            assert torch.equal(ended, state)
            assert all(torch.equal(ours, theirs) for ours, theirs in zip(found, whole, strict=True))
