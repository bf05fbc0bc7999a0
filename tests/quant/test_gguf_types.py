"""Transcoding loses nothing: what comes out of `QuantizedWeight` is what the `gguf` package dequantises."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np
import pytest
import torch

from octavo import _cpu
from octavo.base.errors import CheckpointError
from octavo.files.gguf import TENSOR_TYPES, GGUFFile
from octavo.quant import packed
from octavo.quant.block_format import BlockFormat
from octavo.quant.gguf_types import DEQUANTIZED_TYPES, FLOAT_TYPES, FORMATS, transcode
from octavo.quant.packed import FileValues, QuantizedWeight, ScaleLevels, all_finite, multiplied

BLOCKS = {name: (values, nbytes) for name, values, nbytes in TENSOR_TYPES.values()}
# Where the float16 numbers of a block stand; random bytes there would be NaN now and then.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0],
    "IQ2_XXS": [0], "IQ2_XS": [0], "IQ2_S": [0], "IQ3_XXS": [0], "IQ3_S": [0], "IQ1_S": [0],
    "TQ1_0": [52], "TQ2_0": [64],
}  # fmt: skip


def random_blocks(type_name: str, rows: int, blocks_per_row: int) -> np.ndarray:
    rng = np.random.default_rng(sum(type_name.encode()))
    count = rows * blocks_per_row
    raw = rng.integers(0, 256, (count, BLOCKS[type_name][1]), dtype=np.uint8)
    for at in HALVES.get(type_name, []):
        raw[:, at : at + 2] = rng.standard_normal((count, 1)).astype(np.float16).view(np.uint8)
    if type_name == "IQ1_M":  # the float16 scale is spread over the top bits of four 16-bit words
        raw[:, 55] &= 0x3F
    return raw


def expected(raw: np.ndarray, type_name: str, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.from_numpy(gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type_name])).view(shape)


@pytest.mark.parametrize("type_name", FORMATS)
def test_a_block_format_becomes_a_quantized_weight_of_equal_values(type_name: str) -> None:
    rows, per_row = 6, 3
    raw = random_blocks(type_name, rows, per_row)
    shape = (rows, per_row * BLOCKS[type_name][0])
    weight = transcode(memoryview(bytearray(raw.tobytes())), type_name, shape, "w")
    assert isinstance(weight, QuantizedWeight)
    assert weight.shape == shape
    assert int(weight.unpacked().max()) < 2**weight.bits
    assert torch.equal(weight.dequantize(), expected(raw, type_name, shape))
    # Formats of 256 values have scales of two levels.
    assert isinstance(weight.scales, ScaleLevels) == (BLOCKS[type_name][0] == 256)
    some = weight.select_rows(torch.tensor([4, 1]))
    for of_some, of_all in ((some.scales, weight.scales), (some.mins, weight.mins)):
        assert type(of_some) is type(of_all)
        if of_some is not None and of_all is not None:
            assert torch.equal(multiplied(of_some), multiplied(of_all)[[4, 1]])
    assert torch.equal(some.dequantize(), weight.dequantize()[[4, 1]])


@pytest.mark.parametrize("type_name", sorted(DEQUANTIZED_TYPES))
def test_a_format_that_is_no_integer_grid_comes_out_as_float32(type_name: str) -> None:
    raw = random_blocks(type_name, 4, 2)
    shape = (4, 2 * BLOCKS[type_name][0])
    weight = transcode(memoryview(bytearray(raw.tobytes())), type_name, shape, "w")
    assert isinstance(weight, torch.Tensor)
    assert torch.equal(weight, expected(raw, type_name, shape))


@pytest.mark.parametrize(("type_name", "dtype"), FLOAT_TYPES.items())
def test_float_types_keep_their_type_and_bits(type_name: str, dtype: torch.dtype) -> None:
    values = torch.randn(3, 8).to(dtype)
    data = bytearray(values.view(torch.uint8).numpy().tobytes())
    weight = transcode(memoryview(data), type_name, (3, 8), "w")
    assert isinstance(weight, torch.Tensor)
    assert weight.dtype == dtype
    assert torch.equal(weight, values)


def test_every_type_of_the_reader_is_transcoded_or_refused_by_name() -> None:
    known = set(FORMATS) | DEQUANTIZED_TYPES | set(FLOAT_TYPES)
    for type_name in sorted(set(BLOCKS) - known):
        with pytest.raises(CheckpointError, match=rf"blk\.0\.x.*{type_name}"):
            transcode(memoryview(bytearray(64)), type_name, (2, 4), "blk.0.x")
    assert set(BLOCKS) - known == {"I8", "I16", "I32", "I64", "F64"}


@pytest.mark.parametrize(
    "fields",
    [
        [],
        [(0, 16, 16, 3, 0)],  # no such width of a field
        [(0, 8, 8, 4, 0)],  # not a value for each of the block's
        [(4, 16, 16, 4, 0)],  # ends behind the block
        [(-1, 16, 16, 4, 0)],
        [(0, 16, 12, 4, 0)],  # not whole lanes
        [(0, 16, 16, 4, 5)],  # leaves its byte
        [(0, 16, 16, 4, 0), (0, 4, 1, 1, 8)],
    ],
)
def test_fields_that_do_not_fit_their_block_are_refused(fields: list[tuple[int, int, int, int, int]]) -> None:
    with pytest.raises(ValueError):
        _cpu.BlockFormat(32, 18, fields, 0, [])


@pytest.mark.parametrize("type_name", sorted(FORMATS))
def test_values_are_the_same_without_the_native_module(type_name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with a GPU may lack it."""
    block_values = BLOCKS[type_name][0]
    raw = random_blocks(type_name, 5, 3)
    weight = transcode(memoryview(bytearray(raw.tobytes())), type_name, (5, 3 * block_values), "w")
    assert isinstance(weight, QuantizedWeight)
    some = weight.select_rows(torch.tensor([4, 0, 0, 2]))
    native = [weight.unpacked(), some.unpacked()]
    monkeypatch.setattr(packed, "has_native_cpu", lambda: False)
    assert torch.equal(weight.unpacked(), native[0]) and torch.equal(some.unpacked(), native[1])


def test_rows_that_are_no_whole_blocks_are_refused() -> None:
    nibbles = BlockFormat(32, 18, FORMATS["Q4_0"].fields)
    with pytest.raises(ValueError):
        FileValues(torch.zeros(2, 27, dtype=torch.uint8), nibbles, 48)
    with pytest.raises(ValueError):
        FileValues(torch.zeros(2, 18, dtype=torch.uint8), nibbles, 64)


def test_a_vector_in_a_block_format_is_dequantised() -> None:
    raw = random_blocks("Q8_0", 1, 2)
    vector = transcode(memoryview(bytearray(raw.tobytes())), "Q8_0", (64,), "w")
    assert isinstance(vector, torch.Tensor)
    assert torch.equal(vector, expected(raw, "Q8_0", (64,)))


@pytest.mark.parametrize("fixture", ["smollm2_gguf", "qwen_gguf", "gemma_gguf"])
def test_real_files_transcode_exactly(fixture: str, request: pytest.FixtureRequest) -> None:
    """One tensor of each type in the file; the largest are cut to their first rows."""
    path: Path = request.getfixturevalue(fixture)
    with GGUFFile(path) as file:
        seen: set[str] = set()
        for info in file.tensors.values():
            if info.type_name in seen or info.type_name in FLOAT_TYPES:
                continue
            seen.add(info.type_name)
            rows = min(info.shape[0], 512)
            data = file.data(info)[: info.nbytes // info.shape[0] * rows]
            raw = np.frombuffer(data, np.uint8).reshape(-1, BLOCKS[info.type_name][1])
            shape = (rows, info.shape[1])
            weight = transcode(data, info.type_name, shape, info.name)
            assert isinstance(weight, QuantizedWeight)
            assert weight.is_finite()
            assert torch.equal(weight.dequantize(), expected(raw, info.type_name, shape))
            del data, raw, weight
        assert len(seen) >= 2


def weight_of(rows: int = 4, columns: int = 64) -> QuantizedWeight:
    values = torch.arange(rows * columns, dtype=torch.int64).remainder(16).to(torch.uint8).view(rows, columns)
    scales = torch.arange(rows * columns // 32, dtype=torch.float16).view(rows, -1) + 1
    return QuantizedWeight(values, 4, 32, scales, -scales)


def test_rows_are_selected_with_their_scales() -> None:
    weight = weight_of()
    rows = torch.tensor([2, 0, 2])
    assert torch.equal(weight.select_rows(rows).dequantize(), weight.dequantize()[rows])


def test_a_scale_or_min_that_is_not_finite_is_noticed() -> None:
    for poison in (float("nan"), float("inf"), float("-inf")):
        for field in ("scales", "mins"):
            weight = weight_of()
            assert weight.is_finite()
            getattr(weight, field)[1, 1] = poison
            assert not weight.is_finite()


def test_finite_numbers_whose_sum_overflows_are_finite() -> None:
    assert all_finite(torch.full((4,), 3e38))
    assert not all_finite(torch.tensor([float("inf"), float("-inf")]))


@pytest.mark.parametrize(
    "change",
    [
        {"values": torch.zeros(4, 63, dtype=torch.uint8)},
        {"values": torch.zeros(4, 64)},
        {"bits": 3},
        {"group_size": 0},
        {"scales": torch.zeros(4, 3)},
        {"scales": torch.zeros(4, 2, dtype=torch.bfloat16)},
        {"mins": torch.zeros(4, 2, dtype=torch.float32)},
        {"mins": None, "zero": 16},
    ],
)
def test_shapes_that_contradict_each_other_are_refused(change: dict[str, object]) -> None:
    weight = weight_of()
    fields = {name: getattr(weight, name) for name in ("values", "bits", "group_size", "scales", "mins", "zero")}
    with pytest.raises(ValueError):
        QuantizedWeight(**{**fields, **change})


@pytest.mark.parametrize(
    ("columns", "factors", "steps"),
    [
        (64, torch.zeros(4, 1, dtype=torch.float16), torch.zeros(4, 2, dtype=torch.int8)),
        (256, torch.zeros(4, 1, dtype=torch.float32), torch.zeros(4, 8, dtype=torch.int8)),
        (256, torch.zeros(4, 2, dtype=torch.float16), torch.zeros(4, 8, dtype=torch.int8)),
        (256, torch.zeros(4, 1, dtype=torch.float16), torch.zeros(4, 16, dtype=torch.int8)),
        (256, torch.zeros(4, 1, dtype=torch.float16), torch.zeros(4, 8, dtype=torch.uint8)),
    ],
)
def test_levels_of_other_shapes_and_types_are_refused(columns: int, factors: torch.Tensor, steps: torch.Tensor) -> None:
    with pytest.raises(ValueError):
        QuantizedWeight(torch.zeros(4, columns, dtype=torch.uint8), 4, 32, ScaleLevels(factors, steps))


def test_scales_in_two_levels_and_mins_in_one_are_refused() -> None:
    levels = ScaleLevels(torch.zeros(4, 1, dtype=torch.float16), torch.zeros(4, 8, dtype=torch.int8))
    values = torch.zeros(4, 256, dtype=torch.uint8)
    QuantizedWeight(values, 4, 32, levels, levels)
    with pytest.raises(ValueError, match="type"):
        QuantizedWeight(values, 4, 32, levels, levels.product())
