"""Forms of quanto, torchao, auto-round, ModelOpt, sparse Marlin and MX floats: each means what its tool wrote, exactly.

What the writers say was compared with the tools themselves, where they run on a CPU: quanto 0.2.7, torchao 0.18 and
compressed-tensors 0.9.4.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.base.errors import CheckpointError
from octavo.quant.methods.parts import Method, Parts
from octavo.quant.methods.table import find_method
from octavo.quant.packed import QuantizedWeight
from support import quantized_checkpoints as q
from support import quantized_forms as f

CT = {"quant_method": "compressed-tensors", "config_groups": {}}
ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 32}
OPT = {"quant_method": "modelopt"}
QUANTO = {"quant_method": "quanto"}
INT4 = {"_type": "torch.dtype", "_data": "int4"}
CT_SPARSE = ("weight_packed", "meta", "scale_packed")
SHAPE = (64, 192)
#: Name, writer, configuration; for torchao also what the metadata say.
CASES: list[tuple[str, q.Writer, dict[str, Any], str | None]] = [
    ("ct mxfp4", f.ct_mx, {**CT, "format": "mxfp4-pack-quantized"}, None),
    ("ct mxfp8", lambda w: f.ct_mx(w, 8), {**CT, "format": "mxfp8-quantized"}, None),
    ("ct marlin-24", lambda w: f.sparse(w, 8, 192, CT_SPARSE), {**CT, "format": "marlin-24"}, None),
    ("ct marlin-24 groups", lambda w: f.sparse(w, 4, 64, CT_SPARSE), {**CT, "format": "marlin-24"}, None),
    ("marlin 24", f.sparse, {"quant_method": "gptq_marlin_24", "bits": 4}, None),
    ("marlin 24 of gptq", lambda w: f.sparse(w, 8), {"quant_method": "gptq", "checkpoint_format": "marlin_24"}, None),
    ("quanto 2", lambda w: f.quanto(w, 2), QUANTO, None),
    ("quanto 4", f.quanto, QUANTO, None),
    ("quanto 4 integer shift", lambda w: f.quanto(w, integer_shift=True), QUANTO, None),
    ("quanto 8", f.quanto_bytes, QUANTO, None),
    ("quanto float8", lambda w: f.quanto_bytes(w, torch.float8_e4m3fn), QUANTO, None),
    ("round gptq", lambda w: q.gptq(w, symmetric=False), {**ROUND, "packing_format": "auto_round:auto_gptq"}, None),
    ("round 2 bits", lambda w: q.gptq(w, 2, symmetric=False, v2=True), {**ROUND, "packing_format": "auto_round"}, None),
    ("round awq", q.awq, {**ROUND, "packing_format": "auto_round:auto_awq"}, None),
    ("round fp8", lambda w: q.float8(w, static=True),
     {**ROUND, "packing_format": "auto_round:fp8_static", "data_type": "fp"}, None),
    ("round mxfp4", f.ct_mx, {**ROUND, "packing_format": "auto_round:llm_compressor", "data_type": "mx_fp"}, None),
    ("modelopt fp8", lambda w: q.float8(w, kind="matrix", static=True), {**OPT, "quant_algo": "FP8"}, None),
    ("modelopt fp8 rows", q.float8, {**OPT, "quant_algo": "FP8_PER_CHANNEL_PER_TOKEN"}, None),
    ("modelopt fp8 blocks", f.modelopt_blocks, {**OPT, "quant_algo": "FP8_PB_WO"}, None),
    ("modelopt nvfp4", f.modelopt_nvfp4, {**OPT, "quantization": {"quant_algo": "NVFP4"}}, None),
    ("modelopt mxfp8", f.modelopt_mx, {**OPT, "quant_algo": "MXFP8"}, None),
    ("modelopt mxfp4", lambda w: f.modelopt_mx(w, 4), {**OPT, "quant_algo": "MXFP4"}, None),
    ("modelopt int4", f.modelopt_int4, {**OPT, "quant_algo": "W4A16_AWQ"}, None),
    ("modelopt int4 smooth", lambda w: f.modelopt_int4(w, smooth=True), {**OPT, "quant_algo": "W4A16_AWQ"}, None),
    ("modelopt int8", f.modelopt_int8, {**OPT, "quant_algo": "W8A16"}, None),
    ("ao int8", f.ao_int8, {}, f.about("Int8Tensor")),
    ("ao intx", f.ao_intx, {}, f.about("IntxUnpackedToInt8Tensor", target_dtype=INT4)),
    ("ao int4", f.ao_int4, {}, f.about("Int4Tensor")),
    ("ao tiled", f.ao_tiled, {}, f.about("Int4TilePackedTo4dTensor", shape=list(SHAPE))),
    ("ao float8", f.ao_float8, {}, f.about("Float8Tensor")),
    ("ao float8 matrix", lambda w: f.ao_float8(w, rows=False), {}, f.about("Float8Tensor")),
    ("ao nvfp4", f.ao_nvfp4, {}, f.about("NVFP4Tensor")),
    ("ao nvfp4 swizzled", lambda w: f.ao_nvfp4(w, True), {}, f.about("NVFP4Tensor", is_swizzled_scales=True)),
    ("ao mxfp8", f.ao_mx, {}, f.about("MXTensor", block_size=32)),
    ("ao mxfp4 swizzled", lambda w: f.ao_mx(w, 4, True), {},
     f.about("MXTensor", block_size=32, is_swizzled_scales=True)),
]  # fmt: skip


def random_matrix() -> Tensor:
    rng = torch.Generator().manual_seed(3)
    n, k = SHAPE
    return torch.randn(n, k, generator=rng) * torch.exp(torch.randn(n, 1, generator=rng)) * 0.05


def read(tensors: dict[str, Tensor], config: dict[str, Any], about: str | None = None) -> tuple[Method, Parts]:
    metadata = {} if about is None else {"model.up.weight": about}
    method = find_method({"quant_method": "torchao"} if about else config, metadata)
    parts = Parts("model.up", tensors)
    parts.expected = SHAPE
    assert set(parts.names()) <= set(method.parts)
    assert method.holds(parts)
    return method, parts


@pytest.mark.parametrize(("writer", "config", "about"), [pytest.param(*case[1:], id=case[0]) for case in CASES])
def test_a_form_means_what_was_written(writer: q.Writer, config: dict[str, Any], about: str | None) -> None:
    tensors, expected = writer(random_matrix())
    method, parts = read(tensors, config, about)
    assert method.shape(parts) == SHAPE
    weight = method.weight(parts)
    found = weight.dequantize() if isinstance(weight, QuantizedWeight) else weight
    if isinstance(weight, QuantizedWeight):
        assert method.bits(parts) == weight.bits
    # Of these the product with the zero is rounded before the sum.
    exact = about is None or "Int4T" not in about
    exact = exact and not (config == QUANTO and parts.dtype("weight._shift") == torch.uint8)
    torch.testing.assert_close(found, expected, rtol=0, atol=0 if exact else 3e-7 * float(expected.abs().max()))


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.ones(*shape, dtype=dtype)


@pytest.mark.parametrize(
    ("writer", "config", "about", "change", "message"),
    [
        (f.quanto, QUANTO, None, {"weight._shift": None}, "'model.up.weight._shift' is missing"),
        (f.quanto, QUANTO, None, {"weight._scale": ones(7, 1)}, "'model.up.weight._data._data' has 96 rows of"),
        (f.quanto_bytes, QUANTO, None, {"weight._scale": ones(7)}, r"_scale' has the shape \[7\], which does not"),
        (f.sparse, {"quant_method": "gptq_marlin_24"}, None, {"B_meta": ones(6, 128, dtype=torch.int16) * 0},
         "'model.up.B_meta' puts two kept values in one place"),
        (f.sparse, {"quant_method": "gptq_marlin_24"}, None, {"s": ones(3, 60)}, "'model.up.s' has 60 columns"),
        (f.sparse, {"quant_method": "gptq_marlin_24"}, None, {"B_24": ones(6, 33, dtype=torch.int32)},
         "'model.up.B_24' has 33 words a row"),
        (f.ct_mx, {**CT, "format": "mxfp4-pack-quantized"}, None, {"weight_scale": ones(64, 5, dtype=torch.uint8)},
         r"weight_packed' has the shape \[64, 96\], which does not fit scales \[64, 5\]"),
        (f.modelopt_nvfp4, OPT, None, {"weight_scale_2": None}, "'model.up.weight_scale_2' is missing"),
        (q.nvfp4, CT, None, {"weight_global_scale": None}, "'model.up.weight_global_scale' is missing"),
        (f.modelopt_nvfp4, OPT, None, {"weight_scale_2": ones(2)}, r"weight_scale_2' has the shape \[2\]"),
        (f.modelopt_int4, OPT, None, {"weight_scale": ones(64, 5)}, r"weight_scale' has the shape \[64, 5\]"),
        (f.ao_int8, {}, f.about("Int8Tensor"), {"_weight_scale": ones(3, 1)}, r"_weight_scale' has the shape \[3, 1\]"),
        (f.ao_intx, {}, f.about("IntxUnpackedToInt8Tensor", target_dtype=INT4), {"_weight_zero_point": ones(64, 3)},
         r"_weight_zero_point' has the shape \[64, 3\], and there are 6 scales a row"),
        (f.ao_intx, {}, f.about("IntxUnpackedToInt8Tensor", target_dtype={"_data": "int2"}), {},
         "_weight_qdata' has values beyond 2 bits"),
        (f.ao_intx, {}, f.about("IntxUnpackedToInt8Tensor", target_dtype="int4"), {}, "has the target_dtype int4"),
        (f.ao_tiled, {}, f.about("Int4TilePackedTo4dTensor", shape=[64, -1]), {}, r"has the shape \[64, -1\] in the"),
        (f.ao_tiled, {}, f.about("Int4TilePackedTo4dTensor", shape=[99, 64]), {}, r"does not fit a matrix \[99, 64\]"),
        (f.ao_int4, {}, f.about("Int4Tensor"), {"_weight_act_pre_scale": ones(192)}, "activations would have to be"),
        (f.ao_nvfp4, {}, f.about("NVFP4Tensor", is_swizzled_scales=True), {}, "has 768 values for blocks"),
        (f.ao_int4, {}, f.about("Int4OpaqueTensor"), {}, "is of torchao's 'Int4OpaqueTensor', which is not supported"),
        (f.ao_int4, {}, "{", {}, "the file's metadata do not say of which kind"),
        (f.ao_int4, {}, "[]", {}, "the file's metadata do not say of which kind"),
    ],
)  # fmt: skip
def test_a_damaged_part_is_named(
    writer: q.Writer, config: dict[str, Any], about: str | None, change: dict[str, Tensor | None], message: str
) -> None:
    written = writer(random_matrix())[0] | change
    tensors = {name: part for name, part in written.items() if part is not None}
    with pytest.raises(CheckpointError, match=message):
        method, parts = read(tensors, config, about)
        method.bits(parts)
        method.weight(parts)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**ROUND, "packing_format": "auto_round:fake"}, "packing_format = 'auto_round:fake' is not supported"),
        ({**ROUND, "data_type": "mx_fp"}, "data_type = 'mx_fp' is not what its packing_format holds"),
        ({**ROUND, "rotation_config": {"a": 1}}, "rotation_config.*activations would have to be rotated"),
        ({**OPT, "quant_algo": "NVFP4_SVD"}, "quant_algo = 'NVFP4_SVD' is not supported"),
        ({**OPT, "quantization": {"quant_algo": "nonesuch"}}, "quant_algo = 'nonesuch' is not supported"),
        ({**QUANTO, "modules": {"a": {"weights": "qint3"}}}, "weights = 'qint3' is not supported"),
        ({**QUANTO, "modules": {"a": {"activations": "qint8"}}}, "activations = 'qint8' is not supported"),
        ({"quant_method": "gptq_marlin_24", "bits": 2}, "bits = '2' is not supported"),
        ({**CT, "format": "mxfp6-pack-quantized"}, "format = 'mxfp6-pack-quantized' is not supported"),
    ],
)
def test_options_that_are_not_known_are_refused_by_name(config: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        find_method(config)


def test_bits_of_a_quanto_module_are_those_of_its_list() -> None:
    """One group of values is one row of bytes whatever its bits."""
    weight = random_matrix()[:1, :64]
    for bits in (2, 4):
        tensors, expected = f.quanto(weight, bits)
        method = find_method({**QUANTO, "modules": {"model.up": {"weights": f"qint{bits}"}}})
        parts = Parts("model.up", tensors)
        found = method.weight(parts)
        assert isinstance(found, QuantizedWeight)
        assert torch.equal(found.dequantize(), expected)
