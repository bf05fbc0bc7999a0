"""Writers as those of `quantized_checkpoints`, of younger tools: quanto, torchao, ModelOpt, sparse Marlin, MX."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor

from support.quantized_checkpoints import Written, meant, rounded

E2M1 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def per_group(weight: Tensor, group: int) -> Tensor:
    return weight.view(len(weight), -1, group)


def halves(codes: Tensor) -> Tensor:
    """uint8 [N, K / 2]: of two values the first in the low bits."""
    return (codes[:, ::2] | codes[:, 1::2] << 4).to(torch.uint8)


# ---------------------------------------------------------------- quanto
def quanto(weight: Tensor, bits: int = 4, group: int = 64, integer_shift: bool = False) -> Written:
    """2 or 4 bits in groups of the flattened matrix."""
    rows = weight.reshape(-1, group)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    scales = (high - low) / (2**bits - 1)
    shift: Tensor = (-low / scales).round().clamp(0, 2**bits - 1).to(torch.uint8) if integer_shift else -low
    offset = shift.float() * scales if integer_shift else shift
    codes = ((rows + offset) / scales).round().clamp(0, 2**bits - 1).to(torch.uint8)
    per_byte = 8 // bits
    height = -(-len(codes) // per_byte)
    data = torch.zeros(height, group, dtype=torch.uint8)
    for part in range(per_byte):
        piece = codes[part * height : (part + 1) * height]
        data[: len(piece)] |= piece << bits * part
    dense = scales * codes - shift if not integer_shift else scales * (codes.float() - shift.float())
    tensors = {"weight._data._data": data, "weight._scale": scales, "weight._shift": shift}
    return tensors | {"input_scale": torch.tensor(1.0), "output_scale": torch.tensor(1.0)}, dense.view(weight.shape)


def quanto_bytes(weight: Tensor, dtype: torch.dtype = torch.int8) -> Written:
    top = 127 if dtype == torch.int8 else torch.finfo(dtype).max
    scales = weight.abs().amax(1, keepdim=True) / top
    data = (weight / scales).round().to(dtype) if dtype == torch.int8 else (weight / scales).to(dtype)
    return {"weight._data": data, "weight._scale": scales}, scales * data.float()


# ---------------------------------------------------------------- torchao
def about(kind: str, **attributes: Any) -> str:
    """What the metadata say of one tensor."""
    return json.dumps({"_type": kind, "_data": attributes, "_tensor_data_names": []})


def ao_int8(weight: Tensor) -> Written:
    scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight / scales.float()).round().clamp(-128, 127).to(torch.int8)
    tensors = {"qdata": codes, "scale": scales, "zero_point": torch.zeros(len(weight), 1, dtype=torch.int8)}
    return _flat(tensors), codes.float() * scales.float()


def ao_intx(weight: Tensor, bits: int = 4, group: int = 32) -> Written:
    groups = torch.arange(weight.shape[1]) // group
    codes, scales, zeros = rounded(weight, bits, groups, False)
    low = 2 ** (bits - 1)
    tensors = {"qdata": (codes - low).to(torch.int8), "scale": scales, "zero_point": (zeros - low).to(torch.int8)}
    return _flat(tensors), meant(codes, scales, zeros, groups)


def ao_int4(weight: Tensor, group: int = 32) -> Written:
    codes, scales, zeros = _around_8(weight, group)
    tensors = {"qdata": halves(codes ^ 8).view(torch.int8), "scale": scales.t(), "zero_point": zeros.t()}
    return _flat(tensors), _dense_around_8(codes, scales, zeros)


def ao_tiled(weight: Tensor, group: int = 32) -> Written:
    """As a kernel of CUDA packs it: a thread of a warp holds 2 + 2 columns of each of two tiles of 8 rows and 16."""
    n, k = weight.shape
    rows, columns = -(-n // 8) * 8, -(-k // 1024) * 1024
    padded = torch.zeros(rows, columns)
    padded[:n, :k] = weight
    codes, scales, zeros = _around_8(padded, group)
    words = torch.zeros(rows // 8, columns // 128, 32, 4, dtype=torch.int64)
    for thread in range(32):
        for pair in range(4):
            at = [32 * pair + 2 * (thread % 4) + step for step in (0, 8, 16, 24, 1, 9, 17, 25)]
            of_runs = codes.view(rows // 8, 8, columns // 128, 128)[:, thread // 4][..., at]
            words[:, :, thread, pair] = (of_runs.long() << torch.arange(0, 32, 4)).sum(-1)
    words = torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)
    tensors = {"qdata": words, "scale_and_zero": torch.stack((scales.t(), zeros.t()), dim=2)}
    return _flat(tensors), _dense_around_8(codes, scales, zeros)[:n, :k]


def ao_float8(weight: Tensor, rows: bool = True) -> Written:
    scales = (weight.abs().amax(1, keepdim=True) if rows else weight.abs().max().view(1, 1)) / 448
    data = (weight / scales).to(torch.float8_e4m3fn)
    return _flat({"qdata": data, "scale": scales}), data.float() * scales


def ao_nvfp4(weight: Tensor, swizzled: bool = False) -> Written:
    codes, scales, whole, dense = _nvfp4(weight)
    stored = _swizzled(scales) if swizzled else scales
    return _flat({"qdata": halves(codes), "scale": stored, "per_tensor_scale": whole}), dense


def ao_mx(weight: Tensor, bits: int = 8, swizzled: bool = False) -> Written:
    codes, powers, dense = mx(weight, bits)
    scales = powers.view(torch.float8_e8m0fnu)
    return _flat({"qdata": codes, "scale": _swizzled(scales) if swizzled else scales}), dense


def _flat(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"_weight_{name}": tensor.contiguous() for name, tensor in tensors.items()}


def _around_8(weight: Tensor, group: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes uint8 [N, K], scales and what 8 stands for as bfloat16 [N, G]."""
    grouped = per_group(weight, group)
    low, high = grouped.amin(2), grouped.amax(2)
    scales = ((high - low) / 15).clamp(min=1e-6).bfloat16()
    zeros = (low + 8 * scales.float()).bfloat16()
    codes = ((grouped - zeros.float()[..., None]) / scales.float()[..., None]).round().clamp(-8, 7) + 8
    return codes.to(torch.uint8).view(weight.shape), scales, zeros


def _dense_around_8(codes: Tensor, scales: Tensor, zeros: Tensor) -> Tensor:
    grouped = codes.double().view(*scales.shape, -1) - 8
    dense = grouped * scales.double()[..., None] + zeros.double()[..., None]
    return dense.float().view(codes.shape)


def _swizzled(scales: Tensor) -> Tensor:
    """Blocks of 128 rows and 4 columns, padded; of each, rows 32 apart stand side by side."""
    rows, columns = scales.shape
    bytes_ = torch.zeros(-(-rows // 128) * 128, -(-columns // 4) * 4, dtype=torch.uint8)
    bytes_[:rows, :columns] = scales.view(torch.uint8)
    pieces = []
    for top in range(0, len(bytes_), 128):
        for left in range(0, bytes_.shape[1], 4):
            block = bytes_[top : top + 128, left : left + 4]
            pieces += [block[row::32].reshape(-1) for row in range(32)]
    return torch.cat(pieces).view(-1, 16).view(scales.dtype)


# ---------------------------------------------------------------- float of 4 and 8 bits with shared scales
def mx(weight: Tensor, bits: int) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, powers of two as bytes [N, K / 32], and what they mean."""
    grouped = per_group(weight, 32)
    powers = (grouped.abs().amax(2).log2().floor() - (2 if bits == 4 else 8)).clamp(-126, 127)
    scaled = grouped / torch.exp2(powers)[..., None]
    stored = (powers + 127).to(torch.uint8)
    if bits == 8:
        data = scaled.clamp(-448, 448).to(torch.float8_e4m3fn)
        return data.view(weight.shape), stored, (data.float() * torch.exp2(powers)[..., None]).view(weight.shape)
    codes = (scaled[..., None] - E2M1).abs().argmin(-1).to(torch.uint8)
    return (
        halves(codes.view(weight.shape)),
        stored,
        (E2M1[codes.long()] * torch.exp2(powers)[..., None]).view_as(weight),
    )


def _nvfp4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Codes, scales float8, the scale of the matrix, and what they mean."""
    grouped = per_group(weight, 16)
    whole = weight.abs().max() / (6 * 448)
    scales = (grouped.abs().amax(2) / 6 / whole).clamp(min=0.01).to(torch.float8_e4m3fn)
    factors = scales.float() * whole
    codes = ((grouped / factors[..., None])[..., None] - E2M1).abs().argmin(-1)
    return codes.to(torch.uint8).view(weight.shape), scales, whole, (E2M1[codes] * factors[..., None]).view_as(weight)


def ct_mx(weight: Tensor, bits: int = 4) -> Written:
    codes, powers, dense = mx(weight, bits)
    return {"weight_packed" if bits == 4 else "weight": codes, "weight_scale": powers}, dense


# ---------------------------------------------------------------- ModelOpt
def modelopt_nvfp4(weight: Tensor) -> Written:
    codes, scales, whole, dense = _nvfp4(weight)
    tensors = {"weight": halves(codes), "weight_scale": scales, "weight_scale_2": whole}
    return tensors | {"input_scale": torch.tensor(0.1)}, dense


def modelopt_mx(weight: Tensor, bits: int = 8) -> Written:
    codes, powers, dense = mx(weight, bits)
    return {"weight": codes, "weight_scale": powers}, dense


def modelopt_int4(weight: Tensor, group: int = 32, smooth: bool = False) -> Written:
    """Two rows in a byte. `smooth`: activations are multiplied by a factor for each column."""
    factors = torch.linspace(0.5, 2, weight.shape[1]) if smooth else torch.ones(weight.shape[1])
    groups = torch.arange(weight.shape[1]) // group
    codes, scales, zeros = rounded(weight / factors, 4, groups, True)
    signed = codes ^ 8
    tensors = {"weight": (signed[::2] | signed[1::2] << 4).to(torch.uint8), "weight_scale": scales.float()}
    dense = meant(codes, scales, zeros, groups)
    return (tensors | {"pre_quant_scale": factors}, dense * factors) if smooth else (tensors, dense)


def modelopt_int8(weight: Tensor) -> Written:
    scales = weight.abs().amax(1) / 127
    codes = (weight / scales[:, None]).round().to(torch.int8)
    return {"weight": codes, "weight_scale": scales}, codes.float() * scales[:, None]


def modelopt_blocks(weight: Tensor) -> Written:
    n, k = weight.shape
    scales = torch.full((-(-n // 128), 1, -(-k // 128), 1), 0.001) * (1 + torch.arange(-(-k // 128)).view(1, 1, -1, 1))
    full = scales[:, 0, :, 0].repeat_interleave(128, 0)[:n].repeat_interleave(128, 1)[:, :k]
    data = (weight / full).clamp(-448, 448).to(torch.float8_e4m3fn)
    return {"weight": data, "weight_scale": scales}, data.float() * full


# ---------------------------------------------------------------- Marlin of sparse weights
def sparse(
    weight: Tensor, bits: int = 4, group: int = 64, names: tuple[str, str, str] = ("B_24", "B_meta", "s")
) -> Written:
    """Keeps the two largest of four columns."""
    n, k = weight.shape
    kept = per_group(weight, 4).abs().topk(2, dim=2).indices.sort(dim=2).values
    mask = torch.zeros(n, k // 4, 4).scatter(2, kept, 1.0).view(n, k)
    groups = torch.arange(k) // group
    codes, scales, zeros = rounded(weight * mask, bits, groups, True)
    dense = meant(codes, scales, zeros, groups) * mask
    values = per_group(codes, 4).gather(2, kept).view(n, k // 2)
    tensors = (_sparse_tiles(values.t(), bits), _sparse_places(kept.view(n, k // 2)), scales.t())
    if len(scales.t()) > 1:
        order = [8 * i + j for i in range(8) for j in (0, 4, 1, 5, 2, 6, 3, 7)]
        tensors = (*tensors[:2], scales.t().reshape(-1, 64)[:, order].reshape(-1, n))
    return {name: tensor.contiguous() for name, tensor in zip(names, tensors, strict=True)}, dense


def _sparse_tiles(values: Tensor, bits: int) -> Tensor:
    """[K / 2, N] -> int32 [K / 32, N * bits / 2]: as a warp of 32 threads reads four tiles of 16 x 16."""
    rows, n = values.shape
    order = []
    for thread in range(32):
        column, first = thread // 4, 2 * (thread % 4)
        for j in range(4):
            for block in (0, 4):
                rows_of_thread = (first, first + 1, first + 8, first + 9)
                order += [16 * row + column // 2 * 256 + column % 2 * 8 + block + j for row in rows_of_thread]
    interleave = [0, 2, 4, 6, 1, 3, 5, 7] if bits == 4 else [0, 2, 1, 3]
    width = len(interleave)
    order = [order[at + j] for at in range(0, 1024, width) for j in interleave]
    tiles = values.reshape(rows // 16, 16, n // 16, 16).permute(0, 2, 1, 3).reshape(-1, 1024)[:, order]
    words = (tiles.reshape(rows // 16, -1, width).long() << bits * torch.arange(width)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def _sparse_places(kept: Tensor) -> Tensor:
    """[N, K / 2] of 0 to 3 -> int16 [K / 32, 2 N]: eight in a word, the words in CUTLASS's order."""
    n, count = kept.shape
    words = (kept.view(n, -1, 8) << torch.arange(0, 16, 2)).sum(-1)
    words = torch.where(words >= 1 << 15, words - (1 << 16), words).to(torch.int16)
    stored = torch.empty(words.numel(), dtype=torch.int16)
    for row in range(n):
        for column in range(words.shape[1]):
            to_row = row // 64 * 64 + row % 2 * 2 + row % 8 // 4 + row % 4 // 2 * 32 + row % 64 // 8 * 4
            to_column = column
            if to_row % 2 == 0 and column % 2 == 1:
                to_row, to_column = to_row + 1, column - 1
            elif to_row % 2 == 1 and column % 2 == 0:
                to_row, to_column = to_row - 1, column + 1
            stored[to_column // 2 * 2 * n + 2 * to_row + to_column % 2] = words[row, column]
    return stored.view(count // 16, 2 * n)
