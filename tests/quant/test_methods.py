"""Quantized checkpoints: each format means what its description says, exactly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.quant.methods.page import renewed
from octavo.quant.methods.parts import Method, Parts, unpack_bits
from octavo.quant.methods.table import find_method
from octavo.quant.packed import QuantizedWeight
from support import quantized_checkpoints as q

INT4 = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32}


def ct(**weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}


GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32}
BNB = {"quant_method": "bitsandbytes", "load_in_4bit": True}
FP8 = {"quant_method": "fp8", "activation_scheme": "dynamic"}
CASES: list[tuple[str, q.Writer, dict[str, Any]]] = [
    *(
        (f"gptq {bits} {symmetric}", lambda w, b=bits, s=symmetric: q.gptq(w, b, symmetric=s), GPTQ)  # type: ignore[misc]
        for bits in (2, 3, 4, 8)
        for symmetric in (True, False)
    ),
    ("gptq order", lambda w: q.gptq(w, act_order=True, symmetric=False), GPTQ),
    ("gptq v2", lambda w: q.gptq(w, symmetric=False, v2=True), {**GPTQ, "checkpoint_format": "gptq_v2"}),
    ("gptq one group", lambda w: q.gptq(w, group=w.shape[1]), {**GPTQ, "group_size": -1}),
    ("gptq last group is smaller", lambda w: q.gptq(w, group=128, symmetric=False), {**GPTQ, "group_size": 128}),
    ("awq", q.awq, {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}),
    ("ct 4", q.ct_packed, ct(**INT4)),
    ("ct 4 asymmetric", lambda w: q.ct_packed(w, symmetric=False), ct(**INT4)),
    ("ct 4 order", lambda w: q.ct_packed(w, act_order=True), ct(**INT4)),
    ("ct 8", lambda w: q.ct_packed(w, 8), ct(num_bits=8)),
    ("ct 3", lambda w: q.ct_packed(w, 3, symmetric=False), ct(num_bits=3)),
    ("ct w8a8", q.ct_int8, ct(num_bits=8, type="int")),
    ("ct fp8", lambda w: q.float8(w, static=True), ct(num_bits=8, type="float")),
    ("ct fp8 blocks", lambda w: q.float8(w, kind="block"), ct(num_bits=8, type="float", block_structure=[128, 128])),
    ("ct nvfp4", q.nvfp4, ct(num_bits=4, type="float", group_size=16)),
    ("fp8", lambda w: q.float8(w, kind="matrix", static=True), FP8),
    ("fp8 blocks", lambda w: q.float8(w, "weight_scale_inv", "block"), {**FP8, "weight_block_size": [128, 128]}),
    ("fbgemm", q.float8, {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}),
    ("nf4", q.bnb_nf4, BNB),
    ("nf4 nested", lambda w: q.bnb_nf4(w, nested=True), BNB),
    ("hqq axis 0", lambda w: q.hqq(w, axis=0), {"quant_method": "hqq"}),
    ("aqlm", q.aqlm, {"quant_method": "aqlm", "num_codebooks": 2}),
    ("squeezellm", q.squeezellm, {"quant_method": "squeezellm", "wbits": 4}),
    ("marlin", q.marlin, {"quant_method": "marlin", "group_size": 64}),
    ("marlin of gptq", lambda w: q.marlin(w, 192), {**GPTQ, "is_marlin_format": True}),
    ("qqq", q.qqq, {"quant_method": "qqq", "wbits": 4}),
    ("qqq groups", lambda w: q.qqq(w, 64), {"quant_method": "qqq", "wbits": 4}),
]


def test_the_documentation_has_the_table_of_the_methods() -> None:
    text = (Path(__file__).parents[2] / "docs" / "quantization.md").read_text(encoding="utf-8")
    assert renewed(text) == text, "run `python -m octavo.quant.methods.page docs/quantization.md`"


def random_matrix(n: int = 64, k: int = 192) -> Tensor:
    rng = torch.Generator().manual_seed(n * k)
    return torch.randn(n, k, generator=rng) * torch.exp(torch.randn(n, 1, generator=rng)) * 0.05


def read(tensors: dict[str, Tensor], config: dict[str, Any]) -> tuple[Method, Parts]:
    method, parts = find_method(config), Parts("model.up", tensors)
    assert set(parts.names()) <= set(method.parts)
    assert method.holds(parts)
    return method, parts


def dense(weight: Tensor | QuantizedWeight) -> Tensor:
    return weight.dequantize() if isinstance(weight, QuantizedWeight) else weight.float()


@pytest.mark.parametrize(("writer", "config"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_format_means_what_was_written(writer: q.Writer, config: dict[str, Any]) -> None:
    tensors, expected = writer(random_matrix())
    method, parts = read(tensors, config)
    assert method.shape(parts) == (64, 192)
    assert torch.equal(dense(method.weight(parts)), expected)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_hqq_is_as_near_as_float32_rounds(bits: int) -> None:
    """Its zeros are floats, so that (u - zero) * scale is one sum in another order."""
    tensors, expected = q.hqq(random_matrix(), bits)
    method, parts = read(tensors, {"quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": bits}}})
    weight = method.weight(parts)
    assert isinstance(weight, QuantizedWeight)
    torch.testing.assert_close(weight.dequantize(), expected, rtol=0, atol=1e-6 * float(expected.abs().max()))


def test_the_int8_of_bitsandbytes_is_as_near_as_a_float32() -> None:
    """Its scale is a quotient, which two ways of rounding give."""
    tensors, expected = q.bnb_int8(random_matrix())
    method, parts = read(tensors, {"quant_method": "bitsandbytes", "load_in_8bit": True})
    torch.testing.assert_close(dense(method.weight(parts)), expected, rtol=3e-7, atol=0)


def test_blocks_of_nf4_may_go_over_the_ends_of_rows() -> None:
    tensors, expected = q.bnb_nf4(random_matrix(6, 40))
    method, parts = read(tensors, BNB)
    assert torch.equal(dense(method.weight(parts)), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 7, 8])
def test_values_are_unpacked_over_the_ends_of_words(bits: int) -> None:
    values = torch.randint(0, 2**bits, (96, 5), generator=torch.Generator().manual_seed(bits))
    assert torch.equal(unpack_bits(q.packed(values, bits).t(), bits), values.t().to(torch.uint8))


def test_zeros_and_scales_keep_as_few_bytes_as_they_need() -> None:
    symmetric = find_method(GPTQ).weight(Parts("m", q.gptq(random_matrix())[0]))
    assert isinstance(symmetric, QuantizedWeight)
    assert (symmetric.mins, symmetric.zero, symmetric.scales.dtype) == (None, 8, torch.float16)


def test_a_row_of_an_ordered_weight_keeps_its_order() -> None:
    tensors, expected = q.gptq(random_matrix(), act_order=True)
    weight = find_method(GPTQ).weight(Parts("m", tensors))
    assert isinstance(weight, QuantizedWeight)
    rows = torch.tensor([5, 3, 60])
    assert torch.equal(weight.select_rows(rows).dequantize(), expected[rows])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"quant_method": "gptq", "bits": 5}, "bits = '5' is not supported"),
        ({"quant_method": "awq", "version": "gemv"}, "convert the checkpoint to the version gemm"),
        ({"quant_method": "nonesuch"}, "'nonesuch' is not supported; these are: gptq, awq"),
        ({"quant_method": "compressed-tensors", "format": "nonesuch"}, "format = 'nonesuch' is not supported"),
        (
            {"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24-bitmask"}},
            "format = 'sparse-24-bitmask' is not supported: sparse weights",
        ),
        ({"quant_method": "fp8", "weight_block_size": [128]}, "weight_block_size.* is not a pair"),
    ],
)
def test_options_that_are_not_known_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_method(config)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scales": None}, "'model.up.scales' is missing"),
        ({"scales": torch.empty(0, 64)}, "'model.up.scales' is missing"),
        ({"qzeros": torch.zeros(6, 7, dtype=torch.int32)}, "'model.up.qzeros' does not fit the 64 columns"),
        ({"qweight": torch.zeros(24, 64)}, "'model.up.qweight' has the type float32"),
        ({"qweight": torch.zeros(24, 63, dtype=torch.int32)}, r"qweight' has the shape \[24, 63\], not \[24, 64\]"),
        ({"g_idx": torch.full((192,), 6)}, "'model.up.g_idx' names groups beyond the 6"),
    ],
)
def test_a_damaged_part_is_named(change: dict[str, Tensor | None], message: str) -> None:
    tensors = {name: part for name, part in (q.gptq(random_matrix())[0] | change).items() if part is not None}
    with pytest.raises(CheckpointError, match=message):
        method, parts = read(tensors, GPTQ)
        method.weight(parts)


def as_bytes(text: str) -> Tensor:
    return torch.tensor(list(text.encode()), dtype=torch.uint8)


@pytest.mark.parametrize("value", [8, -9, 77, -120])
def test_a_zero_that_no_value_of_the_weight_could_be_is_refused(value: int) -> None:
    tensors = q.ct_packed(random_matrix(), symmetric=False)[0]
    for shape in ((1,), (64, 6)):
        changed = tensors | {"weight_zero_point": torch.full(shape, value, dtype=torch.int8)}
        method, parts = read(changed, ct(**INT4))
        with pytest.raises(CheckpointError, match="'model.up.weight_zero_point' has values beyond .*, -8 to 7"):
            method.weight(parts)


def test_zeros_of_so_few_rows_that_they_fill_one_word_are_read() -> None:
    weight = random_matrix(8, 192)
    tensors, expected = q.ct_packed(weight, symmetric=False)
    assert tensors["weight_zero_point"].shape[0] == 1
    method, parts = read(tensors, ct(**INT4))
    found = method.weight(parts)
    assert isinstance(found, QuantizedWeight)
    assert torch.equal(found.dequantize(), expected)


STATE = "weight.quant_state.bitsandbytes__nf4"
HQQ = {"quant_method": "hqq"}


@pytest.mark.parametrize(
    ("writer", "config", "change", "message"),
    [
        (q.hqq, HQQ, {"nbits": torch.tensor(5)}, "'model.up.nbits' is 5, which is not supported"),
        (q.hqq, HQQ, {"nbits": torch.tensor(9)}, "'model.up.nbits' is 9, which is not supported"),
        (q.hqq, HQQ, {"axis": torch.tensor(2)}, "'model.up.axis' is 2, which is not supported"),
        (q.hqq, HQQ, {"shape": torch.tensor([64, 0])}, r"'model.up.shape' says \[64, 0\]"),
        (q.bnb_nf4, BNB, {STATE: as_bytes("[" * 100_000)}, f"{STATE}' is not JSON"),
        (q.bnb_nf4, BNB, {STATE: as_bytes("[[]]").view(2, 2)}, f"{STATE}' is not a JSON object"),
        (
            q.bnb_nf4, BNB, {STATE: as_bytes('{"shape": [64, 192], "blocksize": 4611686018427387904}')},
            f"{STATE}' has the blocksize 4611686018427387904",
        ),
    ],
)  # fmt: skip
def test_a_setting_in_the_tensors_is_checked_as_one_in_the_configuration(
    writer: q.Writer, config: dict[str, Any], change: dict[str, Tensor], message: str
) -> None:
    method, parts = read(writer(random_matrix())[0] | change, config)
    with pytest.raises(CheckpointError, match=message):
        method.bits(parts)
        method.weight(parts)
