"""The bound operations, and inputs for them, for checks and for measurements."""

from __future__ import annotations

import copy
import importlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import torch
from torch import Tensor

from gpu.context import Context
from octavo.ops import operands
from octavo.ops.sampling_batch import SamplingBatch
from octavo.ops.table import Binding, LinearWeight, Ops, bind
from octavo.quant.packed import QuantizedWeight

BLOCK: Final = 16
#: Name -> (bits, group, has mins): forms of integer weights.
INTEGERS: Final = {"W4A16": (4, 128, False), "W4A16, mins": (4, 32, True), "W8A16": (8, 32, False)}


def table(
    context: Context,
    dtype: torch.dtype = torch.bfloat16,
    quantization: Literal["fp8", "int8"] | None = None,
    batch_invariant: bool = False,
) -> Ops:
    """The operations for the GPU; on a CPU the same kernels in Triton's interpreter. Call it before any import of
    theirs."""
    if context.is_tiny:
        _interpret()
    device = torch.device(context.device)
    binding = Binding(
        torch_device=device,
        activation_dtype=dtype,
        to_device=lambda tensor: tensor.to(device),
        quantization=quantization,
        batch_invariant=batch_invariant,
        attention_backend=context.settings.get("attention_backend", "auto"),
    )
    return bind("cuda", binding=binding)


def _interpret() -> None:
    """Kernels that are imported from now on run in the interpreter, as in their tests."""
    os.environ["TRITON_INTERPRET"] = "1"
    tests = str(Path(__file__).parents[2] / "tests")
    if tests not in sys.path:
        sys.path.append(tests)
        importlib.import_module("support.triton_interpreter").repair()


def integer_weight(kind: str, n: int, k: int, device: torch.device | str = "cpu") -> QuantizedWeight:
    """A random [n, k] matrix of a form in `INTEGERS`, with values of the size that real ones have."""
    bits, group, has_mins = INTEGERS[kind]
    values = torch.randint(0, 2**bits, (n, k), dtype=torch.uint8, device=device)
    scales = (0.5 + torch.rand(n, k // group, device=device)).mul_(2.0**-bits * 0.1).to(torch.float16)
    mins = (scales.float() * -(2 ** (bits - 1))).to(torch.float16) if has_mins else None
    return QuantizedWeight(values, bits, group, scales, mins, 0 if has_mins else 2 ** (bits - 1))


def twins(weight: LinearWeight, count: int) -> list[LinearWeight]:
    """`weight` and copies of it in memory of their own."""
    return [weight, *(copy.deepcopy(weight) for _ in range(count - 1))]


@dataclass(frozen=True, kw_only=True)
class Heads:
    heads: int
    kv_heads: int
    head_dim: int

    @property
    def qkv_size(self) -> int:
        return (self.heads + 2 * self.kv_heads) * self.head_dim

    def of_program(self) -> operands.Heads:
        """As programs and planners name them."""
        return operands.Heads(num_heads=self.heads, num_kv_heads=self.kv_heads, head_dim=self.head_dim)


@dataclass(kw_only=True)
class Attention:
    """One call of `Ops.attention`."""

    heads: Heads
    window: int
    softcap: float
    out: Tensor
    qkv: Tensor
    k_cache: Tensor
    v_cache: Tensor
    block_tables: Tensor
    seq_lens: Tensor
    query_start_loc: Tensor
    plan: Any
    rotation: Any = None

    def call(self, ops: Ops) -> None:
        sizes = (self.heads.heads, self.heads.kv_heads, self.heads.head_dim)
        where = (self.block_tables, self.seq_lens, self.query_start_loc)
        scale = self.heads.head_dim**-0.5
        more = {} if self.plan is None else {"plan": self.plan}
        more |= {} if self.rotation is None else {"rotation": self.rotation}
        ops.attention(
            self.out, self.qkv, self.k_cache, self.v_cache, *where, *sizes, scale, self.window, self.softcap, **more
        )


def attention(
    ops: Ops,
    heads: Heads,
    lens: Sequence[tuple[int, int]],
    *,
    kv_dtype: torch.dtype,
    window: int = 0,
    softcap: float = 0.0,
    planner: Any = None,
    are_apart: bool = False,
) -> Attention:
    """`lens`: (tokens in this step, context with them) of each sequence; those that decode come first.

    Blocks lie in random order, and all memory of the caches is random. `planner`: the operations' own, kept by the
    caller for calls of one kind.
    """
    device, num_tokens, dtype = ops.torch_device, sum(count for count, _ in lens), ops.activation_dtype
    tables = block_tables([context for _, context in lens])
    seq_lens = np.array([context for _, context in lens], np.int32)
    starts = np.concatenate(([0], np.cumsum([count for count, _ in lens]))).astype(np.int32)
    shapes = ops.kv_cache_shapes(int(tables.max()) + 1, BLOCK, heads.kv_heads, heads.head_dim)
    k, v = (torch.randn(shape, dtype=torch.bfloat16, device=device).to(kv_dtype) for shape in shapes)
    planner = planner or ops.attention_planner(heads.of_program(), device, dtype)
    num_decodes = next((i for i, (count, _) in enumerate(lens) if count > 1), len(lens))
    arrays = planner.arrays(seq_lens, starts, num_decodes, are_apart=are_apart)
    plan = planner.plan(arrays, [torch.from_numpy(array).to(device) for array in arrays.tensors])
    return Attention(
        heads=heads, window=window, softcap=softcap,
        out=torch.full((num_tokens, heads.heads * heads.head_dim), torch.nan, dtype=dtype, device=device),
        qkv=torch.randn(num_tokens, heads.qkv_size, dtype=dtype, device=device),
        k_cache=k, v_cache=v, block_tables=torch.from_numpy(tables).to(device),
        seq_lens=torch.from_numpy(seq_lens).to(device), query_start_loc=torch.from_numpy(starts).to(device), plan=plan,
    )  # fmt: skip


def block_tables(contexts: Sequence[int]) -> np.ndarray:
    """int32 [B, most blocks]: each sequence's blocks, from 1 on, in random order; 0 behind its last."""
    blocks = [-(-context // BLOCK) for context in contexts]
    order = np.random.default_rng(sum(contexts)).permutation(sum(blocks)).astype(np.int32) + 1
    tables = np.zeros((len(contexts), max(blocks)), np.int32)
    start = 0
    for row, count in enumerate(blocks):
        tables[row, :count] = order[start : start + count]
        start += count
    return tables


def slots(tables: np.ndarray, contexts: Sequence[int]) -> Tensor:
    """int64 [sum of contexts]: where the tokens of each sequence lie in the cache, in their order."""
    found = []
    for row, context in enumerate(contexts):
        positions = np.arange(context)
        found.append(tables[row, positions // BLOCK].astype(np.int64) * BLOCK + positions % BLOCK)
    return torch.from_numpy(np.concatenate(found))


def sampling_batch(
    ops: Ops, rows: int, temperature: float, top_k: int, top_p: float
) -> tuple[SamplingBatch, SamplingBatch]:
    """The same parameters for all rows, other seeds: (on the host, on the operations' device)."""
    host = SamplingBatch.allocate(rows)
    host.reset(rows)
    host.temperature.fill_(temperature)
    host.top_k.fill_(top_k)
    host.top_p.fill_(top_p)
    host.seeds.copy_(torch.arange(rows) * 7919 + 1)
    host.positions.copy_(torch.arange(rows) % 50)
    host.has_filters = top_k > 0 or top_p < 1.0
    there = SamplingBatch.allocate(0)
    there.begin(rows)
    there.set_parameters([torch.from_numpy(array).to(ops.torch_device) for array in host.parameters()])
    there.positions = host.positions.to(ops.torch_device)
    there.has_filters = host.has_filters
    return host, there
