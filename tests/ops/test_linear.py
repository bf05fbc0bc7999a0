"""Packed linear and embedding: what they compute, and that a row's result depends on that row alone."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from octavo import _cpu
from octavo.ops.cpu.linear import (
    FixedPoint,
    embedding,
    fixed_point,
    linear,
    pack_embedding,
    pack_linear,
    pack_linear_many,
    tied_embedding,
)
from octavo.quant.packed import E4M3_VALUES, QuantizedWeight, ScaleLevels, multiplied, scaled

pytestmark = pytest.mark.usefixtures("isa")

TWO_LEVEL_CASES = [
    # bits, group, mins: Q4_K, Q5_K, Q6_K, Q3_K, Q2_K, IQ4_XS
    (4, 32, True), (5, 32, True), (6, 16, False), (4, 16, False), (4, 16, True), (8, 32, False),
]  # fmt: skip
INT_CASES = [
    # bits, group, mins, scale dtype
    (4, 32, True, torch.float16),
    (4, 32, False, torch.float16),
    (4, 32, True, torch.float32),
    (4, 16, True, torch.float32),
    (4, 16, False, torch.float32),
    (4, 128, False, torch.float16),
    (4, 48, True, torch.float16),
    (5, 32, True, torch.float16),
    (5, 32, False, torch.float16),
    (5, 16, True, torch.float16),
    (5, 48, False, torch.float16),
    (6, 16, False, torch.float32),
    (6, 64, True, torch.float32),
    (8, 32, False, torch.float16),
    (8, 32, True, torch.float32),
    (8, 16, False, torch.float32),
    (8, 24, False, torch.float32),
]
FLOATS = [torch.float32, torch.bfloat16, torch.float16]
M_VALUES = (1, 2, 3, 5, 8, 13, 17, 50, 64)


def quantized(
    n: int, k: int, bits: int, group: int, mins: bool, dtype: torch.dtype, seed: int = 0, extreme: bool = False
) -> QuantizedWeight:
    rng = torch.Generator().manual_seed(seed)
    top = 2**bits
    values = torch.randint(0, top, (n, k), generator=rng, dtype=torch.uint8)
    if extreme:
        values = torch.where(values % 2 == 0, torch.zeros_like(values), torch.full_like(values, top - 1))
    shape = (n, k // group)
    scales = ((torch.rand(shape, generator=rng) + 0.5) / top).to(dtype)
    low = (-(torch.rand(shape, generator=rng) + 0.5) / 2).to(dtype) if mins else None
    return QuantizedWeight(values, bits, group, scales, low, 0 if mins else top // 2)


def two_level(n: int, k: int, bits: int, group: int, mins: bool) -> QuantizedWeight:
    """A weight whose scales are factors of 256 values by steps of a group, the negative steps of Q6_K among them."""
    rng = torch.Generator().manual_seed(7)

    def levels(low: int, high: int, size: float) -> ScaleLevels:
        factors = ((torch.rand(n, k // 256, generator=rng) + 0.5) * size).half()
        return ScaleLevels(factors, torch.randint(low, high, (n, k // group), generator=rng, dtype=torch.int8))

    values = torch.randint(0, 2**bits, (n, k), generator=rng, dtype=torch.uint8)
    scales = levels(0, 64, 1e-3) if mins else levels(-128, 128, 1e-3)
    low = levels(0, 64, -1e-2) if mins else None
    zero = 0 if mins else 2 ** (bits - 1)
    return QuantizedWeight(values, bits, group, scales, low, zero)


def of_table(n: int, k: int, bits: int, group: int) -> QuantizedWeight:
    """Codes of 16 values of any kind, or of float8 with its zeros, its subnormals and its largest."""
    rng = torch.Generator().manual_seed(8)
    values = torch.randint(0, 2**bits, (n, k), generator=rng, dtype=torch.uint8)
    table = torch.randn(16, generator=rng) if bits == 4 else E4M3_VALUES
    values[~table[values.int()].isfinite()] = 3
    return QuantizedWeight(values, bits, group, torch.rand(n, k // group, generator=rng) * 0.01, table=table)


TABLE_CASES = [(4, 64), (4, 2), (8, 64), (8, 192)]


def activations(m: int, k: int, seed: int = 1) -> Tensor:
    """Rows of different sizes, two of three with values that stand out, so that some of their groups are wide."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(m, k, generator=rng) * torch.exp(torch.randn(m, 1, generator=rng))
    rows, columns = torch.arange(m)[:, None], torch.arange(k)[None, :]
    return torch.where((rows % 3 != 0) & ((columns + 7 * rows) % 53 == 5), 25 * x, x)


def quantized_activations(x: Tensor) -> Tensor:
    """x as the kernels see it: 8 bits in groups of 32, 15 where a value stands out from its row, times a scale."""
    m, k = x.shape
    padded = torch.nn.functional.pad(x, (0, -k % 32)).view(m, -1, 32)
    amax = padded.abs().amax(-1, keepdim=True)
    wide = amax > 6.0 * x.square().mean(-1).sqrt()[:, None, None]
    limit = torch.where(wide, torch.tensor(127.0 * 128 + 63), torch.tensor(127.0))
    inverse = torch.where(amax > 0, limit / amax, torch.zeros_like(amax))
    return ((padded * inverse).round().double() * (amax / limit).double()).view(m, -1)[:, :k]


def run(x: Tensor, packed: object) -> Tensor:
    out = torch.full((x.shape[0], packed.N), float("nan"))  # type: ignore[attr-defined]
    linear(out, x, packed)  # type: ignore[arg-type]
    return out


@pytest.mark.parametrize(("bits", "group", "mins", "dtype"), INT_CASES)
@pytest.mark.parametrize(("n", "groups", "m"), [(1, 1, 1), (17, 3, 5), (48, 6, 4), (61, 8, 9)])
def test_integer_weights(bits: int, group: int, mins: bool, dtype: torch.dtype, n: int, groups: int, m: int) -> None:
    weight = quantized(n, group * groups, bits, group, mins, dtype)
    x = activations(m, group * groups)
    dense = weight.dequantize().double()
    exact = quantized_activations(x) @ dense.T if group % 16 == 0 else x.double() @ dense.T
    out = run(x, pack_linear(weight))
    size = x.double().abs() @ dense.abs().T
    assert ((out - exact).abs() <= 2e-6 * size).all()
    plain = x.double() @ dense.T
    assert (out - plain).norm() <= 5e-3 * (x.double().norm(dim=1, keepdim=True) * dense.norm(dim=1)).norm()


@pytest.mark.parametrize("bits", [4, 8])
def test_a_value_that_stands_out_does_not_drown_those_beside_it(bits: int) -> None:
    """One activation is a thousand times the others, which keep 15 bits of the large one."""
    weight = quantized(16, 256, bits, 32, True, torch.float16)
    x = activations(1, 256)
    x[0, 40] = 1000 * x.abs().mean()
    without = x.clone()
    without[0, 40] = 0
    dense = weight.dequantize().double()
    large = x.double()[:, 40:41] * dense[:, 40]
    error = (run(x, pack_linear(weight)) - large - without.double() @ dense.T).abs()
    step = float(x[0, 40]) / (127 * 128 + 63)
    assert error.max() <= step * dense[:, 32:64].abs().sum(1).max()
    assert error.max() < 0.1 * float(x[0, 40]) / 127 * dense[:, 32:64].abs().sum(1).max()


@pytest.mark.parametrize("bits", [4, 5, 6, 8])
@pytest.mark.parametrize("group", [16, 32])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_integer_dot_products_do_not_saturate(bits: int, group: int, sign: float) -> None:
    weight = quantized(16, 64, bits, group, True, torch.float32)
    weight.values.fill_(2**bits - 1)
    x = torch.full((4, 64), 3.0 * sign)
    out = run(x, pack_linear(weight))
    exact = x.double() @ weight.dequantize().double().T
    torch.testing.assert_close(out.double(), exact, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("n", "k", "m"), [(1, 1, 1), (16, 2, 3), (33, 65, 2), (100, 576, 7), (7, 333, 13)])
def test_float_weights(dtype: torch.dtype, n: int, k: int, m: int) -> None:
    rng = torch.Generator().manual_seed(3)
    weight = torch.randn(n, k, generator=rng).to(dtype)
    x = activations(m, k)
    if dtype is torch.bfloat16 and _cpu.isa() == "avx512_vnni":  # the one level with products of bfloat16
        x = x.bfloat16().float()
    exact = x.double() @ weight.double().T
    out = run(x, pack_linear(weight))
    size = x.double().abs() @ weight.double().abs().T
    assert ((out - exact).abs() <= 1e-6 * size).all()


@pytest.mark.parametrize(("bits", "group"), TABLE_CASES)
def test_weights_of_a_table_give_the_bits_of_the_same_weights_in_float32(bits: int, group: int) -> None:
    weight = of_table(33, 192, bits, group)
    for m in M_VALUES:
        x = activations(m, 192)
        assert torch.equal(run(x, pack_linear(weight)), run(x, pack_linear(weight.dequantize()))), m
    table = tied_embedding(pack_linear(weight))
    rows = torch.empty(3, 192)
    embedding(rows, torch.tensor([32, 0, 7], dtype=torch.int32), table)
    assert torch.equal(rows, weight.dequantize()[[32, 0, 7]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    ("n", "k", "m"), [(1, 1, 1), (16, 2, 3), (33, 130, 2), (100, 576, 7), (7, 333, 13), (40, 1536, 26)]
)
def test_products_in_fixed_point_round_less_than_eleven_bits(dtype: torch.dtype, n: int, k: int, m: int) -> None:
    """As TF32 has them, and float16: the error of the sum of so many roundings, three times over."""
    rng = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(n, k, generator=rng).to(dtype), torch.randn(n, generator=rng)
    x = activations(m, k)
    packed = pack_linear(fixed_point(weight), bias)
    assert packed.kind == "fixed16"
    error = run(x, packed) - (x.double() @ weight.double().T + bias.double())
    sizes = x.double().norm(dim=1)[:, None] * weight.double().norm(dim=1)
    assert (error / sizes).square().mean().sqrt() <= 2**-11 / 3 / k**0.5
    assert ((error / sizes).abs() <= 2**-11).all()
    rows = torch.empty(2, k)
    embedding(rows, torch.tensor([n - 1, 0], dtype=torch.int32), tied_embedding(packed), 2.0)
    torch.testing.assert_close(rows, 2.0 * weight.float()[[n - 1, 0]], rtol=0, atol=2e-4 * float(weight.abs().max()))


def test_sums_in_fixed_point_never_leave_32_bits() -> None:
    """The largest that there are: rows that are their columns, flat, or all in one value, or between the two."""
    k = 384
    rows = [torch.ones(k), -torch.ones(k), torch.arange(k).float(), (torch.arange(k) % 128 == 5).float()]
    rows += [torch.where(torch.arange(k) % share == 0, 1.0, -1e-3) for share in (2, 3, 9, 50)]
    values = torch.stack(rows)
    for size in (1.0, 1e-20, 1e18):
        out = run(values * size, pack_linear(FixedPoint(values / size)))
        exact = values.double() @ values.double().T
        sizes = values.double().norm(dim=1)[:, None] * values.double().norm(dim=1)
        assert ((out - exact).abs() <= 3e-4 * sizes).all(), size


def test_a_value_that_stands_out_drowns_no_other_group_in_fixed_point() -> None:
    rng = torch.Generator().manual_seed(4)
    weight, x = torch.randn(16, 256, generator=rng), torch.randn(1, 256, generator=rng)
    x[0, 40] = 1e6
    exact = x.double() @ weight.double().T
    error = (run(x, pack_linear(fixed_point(weight))) - exact).abs()
    # Half a step of what its group's values are rounded to, and of the weight beside it.
    assert (
        error <= 1e6 / 32767 * weight[:, :128].abs().sum(1) + 1e6 * 1e-4 * weight[:, :128].abs().max(1).values
    ).all()
    x[0, :128] = 0
    error = (run(x, pack_linear(fixed_point(weight))) - x.double() @ weight.double().T).abs()
    assert error.max() < 1e-2


def test_bfloat16_has_no_fixed_point() -> None:
    weight = torch.randn(3, 64).bfloat16()
    assert fixed_point(weight) is weight


def test_a_table_with_other_values_than_float8_is_packed_as_floats() -> None:
    weight = dataclasses.replace(of_table(16, 64, 8, 64), table=torch.arange(256).float())
    assert pack_linear(weight).kind == "f32"


def test_columns_in_another_order_meet_the_activations_that_are_theirs() -> None:
    plain = quantized(33, 192, 4, 32, True, torch.float32)
    order = torch.randperm(192, generator=torch.Generator().manual_seed(2))
    weight = dataclasses.replace(plain, order=order)
    x = activations(5, 192)
    assert torch.equal(run(x, pack_linear(weight)), run(x[:, order].contiguous(), pack_linear(plain)))
    rows = torch.empty(2, 192)
    embedding(rows, torch.tensor([32, 1], dtype=torch.int32), pack_embedding(weight))
    assert torch.equal(rows, weight.dequantize()[[32, 1]])
    # One stack has one order; what has another one is packed as floats, which have none.
    both = run(x, pack_linear_many([weight, plain]))
    exact = x.double() @ torch.cat([weight.dequantize(), plain.dequantize()]).double().T
    assert (both - exact).norm() <= 5e-3 * exact.norm()


def cases() -> list[tuple[str, object]]:
    rng = torch.Generator().manual_seed(5)
    k = 192
    found: list[tuple[str, object]] = []
    for bits, group, mins, dtype in INT_CASES:
        if k % group == 0 and group != 24:
            found.append((f"int{bits}-g{group}-{mins}", quantized(75, k, bits, group, mins, dtype)))
    found += [(f"table{bits}-g{group}", of_table(75, k, bits, group)) for bits, group in TABLE_CASES]
    ordered = quantized(75, k, 4, 32, True, torch.float32)
    found.append(("ordered", dataclasses.replace(ordered, order=torch.randperm(k, generator=rng))))
    found += [(str(dtype), torch.randn(75, k, generator=rng).to(dtype)) for dtype in FLOATS]
    return found


def products() -> list[tuple[str, object]]:
    """What has products, and no rows that are the checkpoint's."""
    return [*cases(), ("fixed16", FixedPoint(torch.randn(75, 192, generator=torch.Generator().manual_seed(6))))]


@pytest.mark.parametrize("weight", [pytest.param(weight, id=name) for name, weight in products()])
def test_a_row_does_not_depend_on_its_neighbours_nor_on_threads(weight: QuantizedWeight | Tensor) -> None:
    packed = pack_linear(weight, torch.linspace(-1, 1, 75))
    x = activations(64, 192)
    _cpu.set_num_threads(1)
    alone = torch.cat([run(x[i : i + 1], packed) for i in range(64)])
    order = torch.randperm(64, generator=torch.Generator().manual_seed(9))
    for threads in (1, 2, 3):
        _cpu.set_num_threads(threads)
        for m in M_VALUES:
            assert torch.equal(run(x[:m], packed), alone[:m]), (threads, m)
        assert torch.equal(run(x[order], packed), alone[order])


@pytest.mark.parametrize("kind", ["bf16", "fixed16", "int4"])
def test_large_batches_in_row_blocks_equal_single_rows(kind: str) -> None:
    n, k, m = 96, 1536, 400
    floats = torch.randn(n, k, generator=torch.Generator().manual_seed(6))
    weights = {"bf16": floats.bfloat16(), "fixed16": fixed_point(floats)}
    packed = pack_linear(weights[kind] if kind in weights else quantized(n, k, 4, 32, True, torch.float16))
    assert packed.kind == kind
    x = activations(m, k)
    _cpu.set_num_threads(2)
    whole = run(x, packed)
    for i in (0, 1, 129, 255, 399):
        assert torch.equal(run(x[i : i + 1], packed)[0], whole[i])


@pytest.mark.parametrize("weight", [pytest.param(weight, id=name) for name, weight in products()])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_bad_row_stays_alone(weight: QuantizedWeight | Tensor, bad: float) -> None:
    packed = pack_linear(weight)
    x = activations(6, 192)
    good = run(x, packed)
    x[3, 40] = bad
    out = run(x, packed)
    assert not torch.isfinite(out[3]).any()
    keep = [0, 1, 2, 4, 5]
    assert torch.equal(out[keep], good[keep])


def test_zero_and_tiny_and_huge_rows() -> None:
    packed = pack_linear(quantized(20, 64, 4, 32, True, torch.float16))
    x = torch.zeros(3, 64)
    x[1] = 1e-38
    x[2] = 1e30
    out = run(x, packed)
    assert (out[0] == 0).all()
    assert (out[1].abs() < 1e-35).all()
    assert torch.isfinite(out[2]).all()


def test_stacked_parts_each_fill_their_own_columns() -> None:
    parts: list[QuantizedWeight | Tensor | FixedPoint] = [
        quantized(40, 96, 4, 32, True, torch.float16, seed=1),
        quantized(13, 96, 6, 16, False, torch.float32, seed=2),
        torch.randn(21, 96, generator=torch.Generator().manual_seed(3)).to(torch.bfloat16),
        quantized(16, 96, 8, 32, False, torch.float16, seed=4),
        fixed_point(torch.randn(5, 96, generator=torch.Generator().manual_seed(5))),
    ]
    biases = [None, torch.ones(13), None, torch.full((16,), -2.0), torch.ones(5)]
    packed = pack_linear_many(parts, biases)
    assert (packed.N, packed.K) == (95, 96)
    x = activations(11, 96)
    alone = [run(x, pack_linear(part, bias)) for part, bias in zip(parts, biases, strict=True)]
    wide = torch.full((11, 200), 7.0)
    _cpu.set_num_threads(2)
    linear(wide[:, 30:125], x, packed)
    assert torch.equal(wide[:, 30:125], torch.cat(alone, dim=1))
    assert (wide[:, :30] == 7).all() and (wide[:, 125:] == 7).all()


@pytest.mark.parametrize(("bits", "group", "mins"), TWO_LEVEL_CASES)
@pytest.mark.parametrize(("n", "k"), [(1, 256), (61, 768)])
def test_scales_of_two_levels_give_the_bits_of_their_products(
    bits: int, group: int, mins: bool, n: int, k: int
) -> None:
    weight = two_level(n, k, bits, group, mins)
    bias = torch.linspace(-1, 1, n)
    low = None if weight.mins is None else multiplied(weight.mins)
    products = dataclasses.replace(weight, scales=multiplied(weight.scales), mins=low)
    packed, plain = pack_linear(weight, bias), pack_linear(products, bias)
    assert packed.nbytes < plain.nbytes
    x = activations(29, k)
    for m in (1, 6, 7, 29):
        assert torch.equal(run(x[:m], packed), run(x[:m], plain))
    ids = torch.arange(n, dtype=torch.int32)
    rows = torch.empty(n, k)
    embedding(rows, ids, tied_embedding(packed))
    assert torch.equal(rows, weight.dequantize())


def test_rows_of_x_may_lie_apart() -> None:
    for weight in (
        quantized(33, 64, 4, 32, True, torch.float16),
        torch.randn(33, 64),
        fixed_point(torch.randn(33, 64)),
    ):
        packed = pack_linear(weight)
        x = activations(5, 200)
        assert torch.equal(run(x[:, 100:164], packed), run(x[:, 100:164].contiguous(), packed))


@pytest.mark.parametrize("weight", [pytest.param(weight, id=name) for name, weight in cases()])
def test_embedding_rows_are_the_checkpoints(weight: QuantizedWeight | Tensor) -> None:
    table = pack_embedding(weight)
    ids = torch.tensor([0, 74, 16, 16, 5], dtype=torch.int32)
    out = torch.full((5, 192), float("nan"))
    embedding(out, ids, table, 1.5)
    dense = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight.float()
    assert torch.equal(out, dense[ids.long()] * 1.5)


def test_a_tied_embedding_shares_the_packed_weight() -> None:
    weight = quantized(50, 64, 4, 32, True, torch.float16)
    packed = pack_linear(weight)
    table = tied_embedding(packed)
    assert table.native is packed.native
    out = torch.empty(1, 64)
    embedding(out, torch.tensor([49], dtype=torch.int32), table)
    assert torch.equal(out[0], weight.dequantize()[49])


@pytest.mark.parametrize(
    ("bits", "group", "mins", "taken"),
    [
        (4, 32, True, 5),
        (4, 32, False, 4.5),
        (5, 32, False, 5.5),
        (6, 32, True, 7),
        (6, 16, False, 7),
        (8, 64, False, 8.25),
    ],
)
def test_weights_take_their_bits_and_the_scales_as_theirs(bits: int, group: int, mins: bool, taken: float) -> None:
    packed = pack_linear(quantized(64, 576, bits, group, mins, torch.float16))
    assert packed.nbytes == 64 * 576 * taken / 8
    assert packed.kind == f"int{bits}"


def test_k_formats_take_their_bits_and_few_more() -> None:
    for bits, group, mins in [(4, 32, True), (5, 32, True), (6, 16, False)]:
        assert pack_linear(two_level(64, 768, bits, group, mins)).nbytes == 64 * 768 * (bits + 0.625) / 8


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="columns"):
        pack_linear_many([torch.zeros(2, 3), torch.zeros(2, 4)])
    with pytest.raises(ValueError, match="bias"):
        pack_linear(torch.zeros(2, 3), torch.zeros(3))
    with pytest.raises(ValueError, match="packed layout"):
        pack_linear(torch.zeros(2, 3, dtype=torch.int32))


def test_unknown_and_unavailable_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown instruction-set level"):
        _cpu.set_isa("sse9")
    for name in {"avx512", "avx512_vnni"} - set(_cpu.available_isas()):
        with pytest.raises(ValueError, match=r"cannot run|unknown"):
            _cpu.set_isa(name)


@pytest.mark.parametrize("threads", [2, 3, 8, 16])
def test_every_thread_count_does_all_tasks(threads: int) -> None:
    """Fewer tasks than threads, as many, and unequal shares; again and again, for the threads' order is chance."""
    table = torch.arange(64.0)[:, None].expand(64, 4096).contiguous()  # four rows are a task
    packed = pack_embedding(table)
    _cpu.set_num_threads(threads)
    for _ in range(20):
        for m in (1, 4, 5, 8, 9, 31, 64):
            out = torch.full((m, 4096), float("nan"))
            embedding(out, torch.arange(m, dtype=torch.int32).flip(0), packed)
            assert torch.equal(out, table[:m].flip(0))


def test_calls_from_several_threads_do_not_mix() -> None:
    _cpu.set_num_threads(3)
    jobs = []
    for seed in range(3):
        packed = pack_linear(quantized(96, 192, 4, 32, True, torch.float16, seed=seed))
        x = activations(5 + 20 * seed, 192, seed=seed)
        jobs.append((x, packed, run(x, packed)))

    def repeat(job: int) -> bool:
        x, packed, expected = jobs[job]
        return all(torch.equal(run(x, packed), expected) for _ in range(50))

    with ThreadPoolExecutor(3) as pool:
        assert all(pool.map(repeat, range(3)))


def test_the_pool_can_be_resized_between_calls() -> None:
    packed = pack_linear(torch.randn(300, 192))
    x = activations(9, 192)
    expected = run(x, packed)
    for threads in (4, 1, 2, 3) * 5:
        _cpu.set_num_threads(threads)
        assert _cpu.num_threads() == threads
        assert torch.equal(run(x, packed), expected)


def test_threads_are_at_least_one() -> None:
    with pytest.raises(ValueError, match="threads"):
        _cpu.set_num_threads(0)


def test_a_weight_times_a_number_is_that_many_times_as_large() -> None:
    """Floats are rounded once more; values of a file are not touched."""
    weights = [
        quantized(3, 64, 4, 32, False, torch.float16), quantized(3, 64, 8, 32, True, torch.float32),
        two_level(3, 256, 6, 16, mins=False), two_level(3, 256, 4, 32, mins=True), of_table(3, 64, 4, 32),
    ]  # fmt: skip
    for weight in weights:
        times = scaled(weight, 0.3)
        assert isinstance(times, QuantizedWeight) and times.values is weight.values
        torch.testing.assert_close(times.dequantize(), 0.3 * weight.dequantize())
        assert scaled(weight, 1.0) is weight
    floats = torch.randn(3, 64, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert torch.equal(scaled(floats, 0.3), (floats.float() * 0.3).bfloat16())
