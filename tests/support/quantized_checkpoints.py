"""Writes matrices as quantized checkpoints have them, by rounding to the nearest value, and says what they stand for.

Each writer takes a float32 matrix [N, K] and returns the tensors of the module by what stands behind its name, and the
matrix that they mean: computed from the codes, by the description of the format, and not by octavo's reading.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Written = tuple[dict[str, Tensor], Tensor]
Writer = Callable[[Tensor], Written]


def packed(values: Tensor, bits: int) -> Tensor:
    """int32 [ceil(R * bits / 32), C]: column by column a number of 32-bit words, the first value lowest."""
    rows, columns = values.shape
    if 32 % bits == 0:
        runs = torch.nn.functional.pad(values, (0, 0, 0, -rows * bits % 32 // bits)).view(-1, 32 // bits, columns)
        # Of the highest value the sign is a bit.
        return (runs.to(torch.int32) << torch.arange(0, 32, bits, dtype=torch.int32).view(-1, 1)).sum(1).to(torch.int32)
    words = torch.zeros(math.ceil(rows * bits / 32), columns, dtype=torch.int64)
    for i in range(rows):
        word, at = divmod(i * bits, 32)
        value = values[i].to(torch.int64)
        words[word] |= value << at & 0xFFFFFFFF
        if at + bits > 32:
            words[word + 1] |= value >> 32 - at
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def rounded(weight: Tensor, bits: int, groups: Tensor, symmetric: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Codes [N, K], scales float16 [N, G] and zeros [N, G] for the group of each column, [K]."""
    count, top = int(groups.max()) + 1, 2**bits - 1
    index = groups.expand(len(weight), -1)
    low = torch.zeros(len(weight), count).scatter_reduce(1, index, weight, "amin")
    high = torch.zeros(len(weight), count).scatter_reduce(1, index, weight, "amax")
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    scales = ((high - low) / top).clamp(min=1e-6).half()
    zeros = torch.full_like(low, 2 ** (bits - 1)) if symmetric else (-low / scales.float()).round().clamp(1, top)
    codes = (weight / scales.float()[:, groups] + zeros[:, groups]).round().clamp(0, top)
    return codes.to(torch.int32), scales, zeros.to(torch.int32)


def meant(codes: Tensor, scales: Tensor, zeros: Tensor, groups: Tensor) -> Tensor:
    return scales.float()[:, groups] * (codes - zeros[:, groups]).float()


def gptq(
    weight: Tensor, bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False, v2: bool = False
) -> Written:
    n, k = weight.shape
    groups = torch.arange(k) // group
    if act_order:  # the same for all matrices that multiply one input
        groups = groups[torch.randperm(k, generator=torch.Generator().manual_seed(k))]
    codes, scales, zeros = rounded(weight, bits, groups, symmetric)
    tensors = {
        "qweight": packed(codes.t(), bits),
        "qzeros": packed(zeros if v2 else zeros - 1, bits).t().contiguous(),
        "scales": scales.t().contiguous(),
        "g_idx": groups.to(torch.int32),
    }
    assert tensors["qzeros"].shape == (scales.shape[1], n * bits // 32)
    return tensors, meant(codes, scales, zeros, groups)


def awq(weight: Tensor, group: int = 32) -> Written:
    groups = torch.arange(weight.shape[1]) // group
    codes, scales, zeros = rounded(weight, 4, groups, False)

    def pack(values: Tensor) -> Tensor:
        order = [0, 2, 4, 6, 1, 3, 5, 7]
        return packed(values.view(-1, 8, values.shape[1])[:, order].reshape(values.shape), 4).t().contiguous()

    tensors = {"qweight": pack(codes), "qzeros": pack(zeros), "scales": scales.t().contiguous()}
    return tensors, meant(codes, scales, zeros, groups)


def ct_packed(
    weight: Tensor, bits: int = 4, group: int = 32, symmetric: bool = True, act_order: bool = False
) -> Written:
    k = weight.shape[1]
    groups = torch.arange(k) // group
    if act_order:
        groups = groups[torch.randperm(k, generator=torch.Generator().manual_seed(k))]
    codes, scales, zeros = rounded(weight, bits, groups, symmetric)
    scales = scales.bfloat16()
    tensors = {
        "weight_packed": packed(codes.t(), bits).t().contiguous(),
        "weight_scale": scales,
        "weight_shape": torch.tensor(weight.shape),
    }
    if not symmetric:
        tensors["weight_zero_point"] = packed(zeros, bits)
    if act_order:
        tensors["weight_g_idx"] = groups.to(torch.int32)
    return tensors, meant(codes, scales, zeros, groups)


def ct_int8(weight: Tensor) -> Written:
    scales = (weight.abs().amax(1, keepdim=True) / 127).bfloat16()
    codes = (weight / scales.float()).round().clamp(-128, 127)
    return {"weight": codes.to(torch.int8), "weight_scale": scales}, codes * scales.float()


def float8(weight: Tensor, scale: str = "weight_scale", kind: str = "row", static: bool = False) -> Written:
    """kind: matrix, row, or block."""
    n, k = weight.shape
    if kind == "block":
        rows, columns = torch.arange(n) // 128, torch.arange(k) // 128
        scales = torch.zeros(int(rows.max()) + 1, int(columns.max()) + 1)
        for i in range(scales.shape[0]):
            for j in range(scales.shape[1]):
                scales[i, j] = weight[128 * i : 128 * i + 128, 128 * j : 128 * j + 128].abs().max() / 448
        full = scales[rows][:, columns]
    else:
        scales = weight.abs().amax(1, keepdim=True) / 448 if kind == "row" else weight.abs().max() / 448
        full = scales.expand(n, k)
    codes = (weight / full).to(torch.float8_e4m3fn)
    tensors = {"weight": codes, scale: scales.contiguous()}
    if static:
        tensors["input_scale"] = torch.tensor(0.01)
    return tensors, codes.float() * full


NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip


def nvfp4(weight: Tensor) -> Written:
    n, k = weight.shape
    table = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])
    grouped = weight.view(n, k // 16, 16)
    global_scale = 6 * 448 / weight.abs().max()
    scales = (grouped.abs().amax(2) / 6 * global_scale).clamp(min=0.01).to(torch.float8_e4m3fn)
    exact = (scales.float() / global_scale)[:, :, None]
    codes = (grouped[..., None] / exact[..., None] - table).abs().argmin(-1)
    pairs = codes.view(n, -1, 2)
    tensors = {
        "weight_packed": (pairs[..., 0] | pairs[..., 1] << 4).to(torch.uint8),
        "weight_scale": scales,
        "weight_global_scale": global_scale.view(1),
    }
    return tensors, (table[codes] * exact).view(n, k)


def bnb_nf4(weight: Tensor, nested: bool = False) -> Written:
    n, k = weight.shape
    table = torch.tensor(NF4)
    blocks = torch.nn.functional.pad(weight.flatten(), (0, -n * k % 64)).view(-1, 64)
    absmax = blocks.abs().amax(1)
    state: dict[str, Any] = {"quant_type": "nf4", "blocksize": 64, "dtype": "bfloat16", "shape": [n, k]}
    tensors = {}
    if nested:
        offset = float(absmax.mean())
        nested_map = torch.linspace(-1, 1, 256)
        runs = torch.nn.functional.pad(absmax - offset, (0, -len(absmax) % 256)).view(-1, 256)
        nested_absmax = runs.abs().amax(1)
        codes8 = ((runs / nested_absmax[:, None]).flatten()[: len(absmax), None] - nested_map).abs().argmin(1)
        absmax = nested_map[codes8] * nested_absmax.repeat_interleave(256)[: len(absmax)] + offset
        state |= {"nested_blocksize": 256, "nested_offset": offset, "nested_dtype": "float32"}
        tensors = {"weight.nested_absmax": nested_absmax, "weight.nested_quant_map": nested_map}
        tensors["weight.absmax"] = codes8.to(torch.uint8)
    else:
        tensors["weight.absmax"] = absmax
    edges = (table[1:] + table[:-1]) / 2
    codes = torch.bucketize((blocks / absmax[:, None]).flatten()[: n * k], edges)
    dense = table[codes] * absmax.repeat_interleave(64)[: n * k]
    pairs = torch.nn.functional.pad(codes, (0, n * k % 2)).view(-1, 2)
    tensors["weight"] = (pairs[:, 0] << 4 | pairs[:, 1]).to(torch.uint8).view(-1, 1)
    tensors["weight.quant_map"] = table
    text = json.dumps(state).encode()
    tensors["weight.quant_state.bitsandbytes__nf4"] = torch.tensor(list(text), dtype=torch.uint8)
    return tensors, dense.view(n, k)


def bnb_int8(weight: Tensor) -> Written:
    absmax = weight.abs().amax(1)
    codes = (weight * 127 / absmax[:, None]).round()
    tensors = {"weight": codes.to(torch.int8), "SCB": absmax, "weight_format": torch.tensor(0, dtype=torch.uint8)}
    return tensors, codes * absmax[:, None] / 127


def hqq(weight: Tensor, bits: int = 4, group: int = 64, axis: int = 1) -> Written:
    n, k = weight.shape
    grouped = weight.reshape(-1, group) if axis == 1 else weight.reshape(group, -1)
    low, high = grouped.amin(axis, keepdim=True), grouped.amax(axis, keepdim=True)
    scales = (high - low) / (2**bits - 1)
    zeros = -low / scales
    codes = (grouped / scales + zeros).round().clamp(0, 2**bits - 1).to(torch.int32)
    per_item = {1: 8, 2: 4, 3: 10, 4: 2, 8: 1}[bits]
    step = math.ceil(len(codes) / per_item)
    padded = torch.nn.functional.pad(codes, (0, 0, 0, step * per_item - len(codes))).view(per_item, step, -1)
    shifts = torch.tensor([bits * i for i in reversed(range(per_item))], dtype=torch.int32).view(-1, 1, 1)
    stored = (padded << shifts).sum(0).to(torch.int32 if bits == 3 else torch.uint8)
    numbers = {"nbits": bits, "group_size": group, "axis": axis, "stores_quant_config": 1}
    tensors = {"W_q": stored, "scale": scales, "zero": zeros, "shape": torch.tensor([n, k])}
    tensors |= {name: torch.tensor(value) for name, value in numbers.items()}
    return tensors, ((codes - zeros) * scales).reshape(n, k)


def aqlm(weight: Tensor) -> Written:
    """Random codes: the matrix is only a shape."""
    n, k = weight.shape
    rng = torch.Generator().manual_seed(3)
    codes = torch.randint(0, 256, (n // 2, k // 8, 2), generator=rng)
    books = torch.randn(2, 256, 2, 8, generator=rng)
    scales = torch.rand(n // 2, 1, 1, 1, generator=rng)
    dense = torch.zeros(n, k)
    for i in range(n // 2):
        for j in range(k // 8):
            block = books[0][codes[i, j, 0]] + books[1][codes[i, j, 1]]
            dense[2 * i : 2 * i + 2, 8 * j : 8 * j + 8] = block * scales[i, 0, 0, 0]
    return {"codes": codes.to(torch.uint8).view(torch.int8), "codebooks": books, "scales": scales}, dense


def squeezellm(weight: Tensor) -> Written:
    table = weight[:, :16].sort(1).values.half()
    codes = (weight[:, :, None] - table.float()[:, None]).abs().argmin(2)
    return {"qweight": packed(codes.t(), 4), "lookup_table": table}, table.gather(1, codes).float()


def tiled(codes: Tensor, rows_of_thread: Callable[[int], list[int]], interleave: list[int]) -> Tensor:
    """codes [K, N] -> int32 [K / 16, 2 N]: as 32 threads of a warp read four tiles of 16 x 16."""
    k, n = codes.shape
    order = []
    for thread in range(32):
        mine = [16 * row + thread // 4 + 8 * half for half in (0, 1) for row in rows_of_thread(thread)]
        order += [place + 256 * tile for tile in range(4) for place in mine]
    order = [order[8 * i + j] for i in range(128) for j in interleave]
    tiles = codes.reshape(k // 16, 16, n // 16, 16).permute(0, 2, 1, 3).reshape(-1, 1024)
    values = tiles[:, order].reshape(k // 16, -1, 8).to(torch.int64)
    words = (values << 4 * torch.arange(8)).sum(-1)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


COLUMNS_OF_GROUPS = [i + 8 * j for i in range(8) for j in range(8)]
COLUMNS_OF_ROWS = [2 * i + j for i in range(4) for j in (0, 1, 8, 9, 16, 17, 24, 25)]


def placed(scales: Tensor, order: list[int]) -> Tensor:
    return scales.reshape(-1, len(order))[:, order].reshape(scales.shape).contiguous()


def marlin(weight: Tensor, group: int = 64) -> Written:
    groups = torch.arange(weight.shape[1]) // group
    codes, scales, zeros = rounded(weight, 4, groups, True)
    rows = [[2 * i, 2 * i + 1, 2 * (i + 4), 2 * (i + 4) + 1] for i in range(4)]
    words = tiled(codes.t(), lambda thread: rows[thread % 4], [0, 2, 4, 6, 1, 3, 5, 7])
    columns = COLUMNS_OF_GROUPS if scales.shape[1] > 1 else COLUMNS_OF_ROWS
    return {"B": words, "s": placed(scales.t(), columns)}, meant(codes, scales, zeros, groups)


def qqq(weight: Tensor, group: int | None = None) -> Written:
    k = weight.shape[1]
    groups = torch.arange(k) // (group or k)
    codes, scales, zeros = rounded(weight, 4, groups, True)
    rows = [[4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3] for i in range(4)]
    if group is None:
        words = tiled((codes - 8 & 15).t(), lambda thread: rows[thread % 4], [4, 0, 5, 1, 6, 2, 7, 3])
        channel = placed(scales.float().t() / 16, COLUMNS_OF_ROWS)
        return {"B": words, "s_channel": channel, "s_group": torch.empty(0).half()}, meant(codes, scales, zeros, groups)
    words = tiled(codes.t(), lambda thread: rows[thread % 4], [0, 2, 4, 6, 1, 3, 5, 7])
    channel = scales.float().amax(1, keepdim=True)
    of_group = (scales.float() / channel).half()
    tensors = {
        "B": words,
        "s_channel": placed(channel.t(), COLUMNS_OF_ROWS),
        "s_group": placed(of_group.t(), COLUMNS_OF_GROUPS),
    }
    return tensors, meant(codes, of_group.float() * channel, zeros, groups)


def converted(
    tensors: dict[str, Tensor], writer: Writer, skip: tuple[str, ...] = ()
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a model with the matrices of its layers as the writer has them, and what they mean in float32.
    `skip`: parts of the names of matrices that stay."""
    written: dict[str, Tensor] = {}
    dense: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".layers." in name and tensor.dim() == 2 and not any(each in name for each in skip):
            parts, dense[name] = writer(tensor.float())
            module = name.removesuffix(".weight")
            written |= {f"{module}.{part}": value.contiguous() for part, value in parts.items()}
        else:
            written[name] = tensor.clone()
            dense[name] = tensor.float()
    return written, dense


def write(
    source: Path,
    target: Path,
    writer: Writer,
    config: dict[str, Any],
    skip: tuple[str, ...] = (),
    about: str | None = None,
) -> Path:
    """The Hugging Face directory `source` in a quantized form at `target`; what it means at `target` / "dense".
    `about`: what the metadata say of each quantized tensor."""
    written, dense = converted(load_file(source / "model.safetensors"), writer, skip)
    settings = json.loads((source / "config.json").read_text())
    for directory, content, changes in (
        (target, written, {"quantization_config": config}),
        (target / "dense", dense, {"dtype": "float32", "torch_dtype": "float32"}),
    ):
        directory.mkdir(parents=True)
        metadata = None if about is None else dict.fromkeys(dense.keys() - content.keys(), about)
        save_file(content, directory / "model.safetensors", metadata)
        (directory / "config.json").write_text(json.dumps({**settings, **changes}))
    return target
