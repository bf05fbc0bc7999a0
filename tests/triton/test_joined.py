"""Operations that are computed as parts of others, against the reference, and against each by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from octavo.ops import reference, reference_attention
from octavo.ops.operands import Heads
from octavo.ops.triton import linear, rope
from octavo.ops.triton.attention import CHUNK, Rotation, attention, can_rotate
from octavo.ops.triton.attention_plan import AttentionPlan, AttentionPlanner
from octavo.ops.triton.linear_dense import InputNorm
from octavo.quant.packed import QuantizedWeight
from support.tensors import randn
from support.triton_steps import BLOCK_SIZE, Step

CPU = torch.device("cpu")
BF16 = torch.bfloat16
EPS = 1e-5


# ---------------------------------------------------------------- products
def dense(n: int, k: int, seed: int) -> Tensor:
    return (0.05 * randn(n, k, seed=seed)).to(BF16)


def integers(bits: int, group: int, has_mins: bool = False) -> Callable[[int, int, int], QuantizedWeight]:
    def made(n: int, k: int, seed: int) -> QuantizedWeight:
        generator = torch.Generator().manual_seed(seed)
        values = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, generator=generator)
        scales = (2.0**-bits * (0.1 + torch.rand(n, k // group, generator=generator))).to(torch.float16)
        mins = (-(2.0 ** (bits - 1)) * scales).to(torch.float16) if has_mins else None
        return QuantizedWeight(values, bits, group, scales, mins, 0 if has_mins else 2 ** (bits - 1))

    return made


KINDS: dict[str, Callable[[int, int, int], Any]] = {
    "bf16": dense, "GPTQ": integers(4, 64), "AWQ": integers(4, 64, has_mins=True), "Q8_0": integers(8, 32)
}  # fmt: skip


def floats(weight: Any) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedWeight) else weight.float()


def normed(x: Tensor, weight: Tensor) -> Tensor:
    out = torch.empty(x.shape)
    reference.rms_norm(out, x.float(), weight, EPS)
    return out


def assert_near(found: Tensor, wanted: Tensor, share: float = 6e-3) -> None:
    """Each row but for a share of its size: the roundings of the inputs and of the result."""
    error = (found.float() - wanted).norm(dim=1) / wanted.norm(dim=1).clamp(min=1e-30)
    assert bool((error <= share).all()), error


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("num_rows", "k"), [(1, 1024), (3, 576), (4, 192)])
def test_products_of_norms(kind: str, num_rows: int, k: int) -> None:
    weight, bias, scales = KINDS[kind](48, k, 1), randn(48), 1 + randn(k, seed=2)
    packed = linear.LinearPacker(CPU, BF16).pack_linear(weight, bias)
    x = (3 * randn(num_rows, k, seed=3)).to(BF16)
    assert linear.can_join(packed, num_rows)
    wanted = normed(x, scales) @ floats(weight).T + bias
    out = torch.full((num_rows, 48), torch.nan, dtype=BF16)
    linear.linear_joined(out, x, packed, norm=InputNorm(scales, EPS))
    assert_near(out, wanted)
    gated = torch.full((num_rows, 24), torch.nan, dtype=BF16)
    linear.linear_joined(gated, x, packed, norm=InputNorm(scales, EPS), act="silu")
    expected = torch.empty(num_rows, 24)
    reference.act_mul(expected, wanted, "silu")
    assert_near(gated, expected, 1e-2)


@pytest.mark.parametrize("num_rows", [1, 8, 16])
def test_floats_are_joined_up_to_sixteen_rows_and_integers_up_to_four(num_rows: int) -> None:
    packer = linear.LinearPacker(CPU, BF16)
    packed, x, scales = packer.pack_linear(dense(80, 256, 1)), randn(num_rows, 256).to(BF16), 1 + randn(256, seed=2)
    out = torch.full((num_rows, 80), torch.nan, dtype=BF16)
    linear.linear_joined(out, x, packed, norm=InputNorm(scales, EPS))
    assert_near(out, normed(x, scales) @ floats(dense(80, 256, 1)).T)
    assert linear.can_join(packed, num_rows) and not linear.can_join(packed, 17)
    assert linear.can_join(packer.pack_linear(KINDS["GPTQ"](80, 256, 1)), num_rows) == (num_rows <= 4)


def test_a_row_of_zeros_and_a_large_one() -> None:
    """No row's size overflows what x times the norm's weight is rounded to."""
    packed, scales = linear.LinearPacker(CPU, BF16).pack_linear(dense(32, 64, 1)), 1 + randn(64, seed=2)
    x = torch.cat((torch.zeros(1, 64), 1e15 * randn(1, 64))).to(BF16)
    out = torch.full((2, 32), torch.nan, dtype=BF16)
    linear.linear_joined(out, x, packed, norm=InputNorm(scales, EPS))
    assert_near(out, normed(x, scales) @ floats(dense(32, 64, 1)).T)


@pytest.mark.parametrize("kind", KINDS)
def test_products_that_are_added(kind: str) -> None:
    weight, bias = KINDS[kind](40, 192, 1), randn(40)
    packed = linear.LinearPacker(CPU, BF16).pack_linear(weight, bias)
    x, residual = randn(3, 192).to(BF16), (5 * randn(3, 40, seed=7)).to(BF16)
    wanted = residual.float() + x.float() @ floats(weight).T + bias
    linear.linear_joined(residual, x, packed, adds=True)
    torch.testing.assert_close(residual.float(), wanted, rtol=2.0**-8, atol=2e-3)


def test_float16_is_not_joined() -> None:
    """x times the norm's weight, which no norm has made small yet, may not fit it."""
    packed = linear.LinearPacker(CPU, torch.float16).pack_linear(dense(32, 64, 1))
    assert not linear.can_join(packed, 1)
    assert not linear.can_join(linear.LinearPacker(CPU, BF16).pack_linear(dense(32, 64, 1)), 1, torch.float16)


# ---------------------------------------------------------------- attention
def planned(step: Step, are_apart: bool = True) -> AttentionPlan:
    hq, hkv, d = step.heads
    planner = AttentionPlanner(Heads(num_heads=hq, num_kv_heads=hkv, head_dim=d), CPU, step.dtype)
    num_decodes = sum(count == 1 for count in step.counts)
    arrays = planner.arrays(step.seq_lens.numpy(), step.starts.numpy(), num_decodes, are_apart=are_apart)
    return planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])


def rotation_of(step: Step, *, norms: str, rotates: bool) -> Rotation:
    d, last = step.heads[2], step.seq_lens.long() - 1
    angles = torch.arange(max(step.lens) + 1.0)[:, None] * torch.logspace(0, -3, d // 2)[None, :]
    slots = step.tables[torch.arange(len(last)), last // BLOCK_SIZE].long() * BLOCK_SIZE + last % BLOCK_SIZE
    return Rotation(
        positions=last.to(torch.int32), slots=slots,
        cos_sin=torch.cat((angles.cos(), angles.sin()), dim=1) if rotates else None,
        q_norm=1 + randn(d) if norms else None, k_norm=1 + randn(d, seed=5) if norms else None, eps=EPS,
        norms_rotated=norms == "behind",
        q_scales=torch.linspace(1, 2, max(step.lens) + 1) if norms == "behind" else None,
    )  # fmt: skip


def one_by_one(step: Step, rotation: Rotation, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    """What `rope_kv_write` and `attention` make of it."""
    caches, qkv = tuple(cache.clone() for cache in step.caches), step.qkv.clone()
    rope.rope_kv_write(
        qkv, rotation.positions, rotation.cos_sin, rotation.q_norm, rotation.k_norm, rotation.eps, *caches,
        rotation.slots, *step.heads, norms_rotated=rotation.norms_rotated, q_scales=rotation.q_scales,
        **{name: value for name, value in options.items() if name in ("k_scale", "v_scale")},
    )  # fmt: skip
    out = torch.full((len(qkv), step.heads[0] * step.heads[2]), torch.nan, dtype=step.dtype)
    attention(out, qkv, *caches, step.tables, step.seq_lens, step.starts, *step.heads, 0.3, **options)
    return out, caches


def joined(step: Step, rotation: Rotation, **options: Any) -> tuple[Tensor, tuple[Tensor, ...]]:
    caches, qkv = tuple(cache.clone() for cache in step.caches), step.qkv.clone()
    out = torch.full((len(qkv), step.heads[0] * step.heads[2]), torch.nan, dtype=step.dtype)
    sequences = (step.tables, step.seq_lens, step.starts)
    plan = planned(step)
    attention(out, qkv, *caches, *sequences, *step.heads, 0.3, plan=plan, rotation=rotation, **options)
    assert torch.equal(qkv, step.qkv)
    return out, caches


LENS = [(1, 1), (33, 1), (CHUNK + 1, 1)]


@pytest.mark.parametrize(
    ("heads", "norms", "rotates"),
    [
        ((4, 2, 64), "", True), ((2, 1, 20), "", False), ((2, 1, 80), "before", True), ((2, 1, 64), "behind", True),
        ((9, 3, 20), "before", True),
    ],
)  # fmt: skip
def test_attention_rotates_as_rope_does(heads: tuple[int, int, int], norms: str, rotates: bool) -> None:
    """Without norms, whose sums have another order, bit for bit."""
    step = Step(LENS, heads, BF16)
    rotation = rotation_of(step, norms=norms, rotates=rotates)
    (wanted, wanted_caches), (found, caches) = one_by_one(step, rotation), joined(step, rotation)
    tolerance: dict[str, Any] = {"rtol": 2.0**-7, "atol": 1e-2} if norms else {"rtol": 0, "atol": 0}
    torch.testing.assert_close(found, wanted, **tolerance)
    for ours, theirs in zip(caches, wanted_caches, strict=True):
        torch.testing.assert_close(ours, theirs, equal_nan=True, **tolerance)


def test_attention_with_rotation_against_the_reference() -> None:
    step = Step(LENS, (4, 2, 32))
    rotation = rotation_of(step, norms="before", rotates=True)
    found, _ = joined(step, rotation)
    qkv = step.qkv.clone()
    reference_attention.rope_kv_write(
        qkv, rotation.positions, rotation.cos_sin, rotation.q_norm, rotation.k_norm, EPS, *step.reference_caches,
        rotation.slots, *step.heads,
    )  # fmt: skip
    step.qkv = qkv
    torch.testing.assert_close(found, step.expected(), rtol=0, atol=2e-5)


@pytest.mark.parametrize("options", [{"window": 5}, {"softcap": 2.0}, {"window": 24, "chunked": True}])
def test_other_attentions_rotate_too(options: dict[str, Any]) -> None:
    step = Step(LENS, (2, 1, 16), BF16)
    rotation = rotation_of(step, norms="", rotates=True)
    assert torch.equal(joined(step, rotation, **options)[0], one_by_one(step, rotation, **options)[0])


def test_float8_caches_get_keys_over_their_scale() -> None:
    step = Step(LENS, (4, 2, 32), BF16)
    step.caches = tuple(torch.nan_to_num(cache).to(torch.float8_e4m3fn) for cache in step.caches)
    step.qkv[0, -1] = 3e4
    rotation = rotation_of(step, norms="", rotates=True)
    scales = {"k_scale": 0.5, "v_scale": 2.0}
    (wanted, wanted_caches), (found, caches) = one_by_one(step, rotation, **scales), joined(step, rotation, **scales)
    assert torch.equal(found, wanted)
    for ours, theirs in zip(caches, wanted_caches, strict=True):
        assert torch.equal(ours.view(torch.uint8), theirs.view(torch.uint8))


def test_padding_of_a_captured_step_writes_nothing() -> None:
    """A sequence without keys, whose slot is -1."""
    step = Step([(20, 1), (CHUNK + 3, 1)], (4, 2, 16), BF16)
    rotation = rotation_of(step, norms="", rotates=True)
    wanted, wanted_caches = one_by_one(step, rotation)
    planner = AttentionPlanner(Heads(num_heads=4, num_kv_heads=2, head_dim=16), CPU, BF16)
    arrays = planner.padded_arrays(step.seq_lens.numpy(), np.arange(3, dtype=np.int32), 2, num_seqs=4, are_apart=True)
    assert arrays is not None
    plan = planner.plan(arrays, [torch.from_numpy(array) for array in arrays.tensors])
    padded = Rotation(
        torch.cat((rotation.positions, torch.zeros(2, dtype=torch.int32))),
        torch.cat((rotation.slots, torch.tensor([-1, -1]))),
        rotation.cos_sin, None, None, EPS, norms_rotated=False, q_scales=None,
    )  # fmt: skip
    seq_lens, starts = torch.cat((step.seq_lens, torch.zeros(2, dtype=torch.int32))), torch.arange(5, dtype=torch.int32)
    qkv, tables = torch.cat((step.qkv, step.qkv)), torch.cat((step.tables, 0 * step.tables))
    out = torch.full((4, 64), torch.nan, dtype=BF16)
    attention(out, qkv, *step.caches, tables, seq_lens, starts, *step.heads, 0.3, plan=plan, rotation=padded)
    assert torch.equal(out[:2], wanted)
    for ours, theirs in zip(step.caches, wanted_caches, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0, equal_nan=True)


def test_which_steps_rotate_in_attention_and_which_need_no_combination() -> None:
    assert can_rotate(planned(Step(LENS, (2, 1, 16))))
    assert not can_rotate(planned(Step(LENS, (2, 1, 16)), are_apart=False))
    assert not can_rotate(planned(Step([*LENS, (9, 4)], (2, 1, 16))))
    assert planned(Step(LENS, (2, 1, 16))).is_split
    assert not planned(Step([(CHUNK, 1), (3, 1), (300, 300)], (2, 1, 16))).is_split
    planner = AttentionPlanner(Heads(num_heads=2, num_kv_heads=1, head_dim=16), CPU, BF16)
    starts = np.arange(3, dtype=np.int32)
    captured = [planner.padded_arrays(np.array([n, 3], np.int32), starts, 2, num_seqs=4) for n in (CHUNK, CHUNK + 1)]
    kinds = [each.kind for each in captured if each is not None]
    assert kinds[0] != kinds[1]
