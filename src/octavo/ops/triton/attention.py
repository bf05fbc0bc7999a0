"""Paged attention: the launches.

A step's sequences that decode, one query each, are computed by one kernel, all others by another, so that a prompt's
bits do not depend on how it was cut into steps. Decoding splits each context into chunks of a fixed number of keys: one
long sequence keeps the whole GPU busy, and the result is the same whatever else is in the batch.
"""

from __future__ import annotations

import math
from functools import cache
from typing import Any, Final

import torch
from torch import Tensor

import triton
from octavo.ops.operands import Heads, KeyBlocks
from octavo.ops.triton.attention_kernels import combine_kernel, decode_kernel, prefill_kernel
from octavo.ops.triton.attention_plan import CHUNK, AttentionPlan, AttentionPlanner, plan_of, prefill_tile
from octavo.ops.triton.rope import kv_cache_shapes
from octavo.ops.triton.variants import TYPE_NAMES, Variant

__all__ = ["CHUNK", "AttentionPlanner", "attention", "kv_cache_shapes", "variants"]

#: Chunks that the combining kernel reads at once.
_COMBINED: Final = 16
_LOG2E: Final = math.log2(math.e)
#: Chosen by what the compiler says about registers and shared memory, by the width of a head (rounded up) and the size
#: of an element. Decoding: keys of a tile, warps, stages, and programs that fit a processor at once. Of five stages two
#: are in shared memory beside the one in use, for what a key's address depends on is loaded in a stage of its own.
_DECODE_TILES: Final = {
    (64, 2): (64, 4, 5, 5), (128, 2): (64, 4, 5, 3), (256, 2): (64, 4, 4, 2), (64, 4): (32, 4, 2, 4),
    (128, 4): (32, 4, 2, 2), (256, 4): (16, 4, 2, 1), (512, 2): (16, 4, 2, 1), (512, 4): (16, 4, 1, 1),
}  # fmt: skip
_INTERPRETED_PROCESSORS: Final = 4


@cache
def _num_processors(device: torch.device) -> int:
    if device.type != "cuda":
        return _INTERPRETED_PROCESSORS
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def attention(
    out: Tensor,
    qkv: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    block_tables: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    scale: float,
    window: int = 0,
    softcap: float = 0.0,
    *,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    chunked: bool = False,
    slopes: Tensor | None = None,
    biases: Tensor | None = None,
    sinks: Tensor | None = None,
    causal: bool = True,
    key_ends: Tensor | None = None,
    blocks: KeyBlocks | None = None,
    plan: AttentionPlan | None = None,
) -> None:
    """`reference_attention.attention`, on the cache of `rope`. Without a plan one is made: it waits for the device."""
    if plan is None:
        heads = Heads(num_heads=num_heads, num_kv_heads=num_kv_heads, head_dim=head_dim)
        plan = plan_of(heads, qkv, seq_lens, query_start_loc)
    block_d = triton.next_power_of_2(head_dim)
    group_rows = triton.next_power_of_2(num_heads // num_kv_heads)
    itemsize = qkv.dtype.itemsize
    # Capped scores go through exp, others straight to base 2.
    scores_scale = scale * k_scale * (1.0 if softcap else _LOG2E)
    precision = "ieee" if itemsize == 4 else "tf32"
    common: dict[str, Any] = {
        "NUM_HEADS": num_heads,
        "NUM_KV_HEADS": num_kv_heads,
        "D": head_dim,
        "Q_STRIDE": qkv.shape[1],
        "BLOCK_D": block_d,
        "BLOCK_SIZE": k_cache.shape[2],
        "CHUNKED": chunked and window > 0,
        "CAPPED": softcap > 0,
        "SLOPED": slopes is not None,
        "REACH": -1 if biases is None else biases.shape[1] // 2,
        "PRECISION": precision,
        **_blocks(blocks),
    }
    # One token sees all keys of its sequence, whatever the others see: its end is the sequence's.
    if plan.num_decodes:
        block_n, num_warps, num_stages, at_once = _DECODE_TILES[max(64, block_d), itemsize]
        at_once *= _num_processors(qkv.device)  # more programs would only wait
        decode_kernel[(min(at_once, plan.num_items * num_kv_heads),)](
            out,
            plan.partial,
            plan.partial_stats,
            qkv,
            k_cache,
            v_cache,
            block_tables,
            block_tables.stride(0),
            seq_lens,
            plan.items,
            plan.starts,
            plan.num_decodes,
            slopes,
            biases,
            sinks,
            k_cache.stride(0),
            scores_scale,
            softcap,
            v_scale,
            window,
            **common,
            BLOCK_M=max(16, group_rows),
            BLOCK_N=block_n,
            CHUNK=CHUNK,
            num_warps=num_warps,
            num_stages=num_stages,
        )
        combine_kernel[(plan.num_decodes, num_heads)](
            out,
            plan.partial,
            plan.partial_stats,
            plan.starts,
            sinks,
            v_scale,
            NUM_HEADS=num_heads,
            D=head_dim,
            BLOCK_D=block_d,
            BLOCK_C=_COMBINED,
        )
    is_plain = k_scale == v_scale == 1.0 and slopes is None and sinks is None and not chunked
    is_plain = is_plain and causal and key_ends is None and blocks is None and biases is None
    if plan.prompts is not None and plan.prompt_step is not None and is_plain:
        step = (block_tables, seq_lens, scale, window, softcap)
        if plan.prompts.run(plan.prompt_step, out, qkv, k_cache, v_cache, *step):
            return
    if plan.num_tiles:
        block_m, block_n, num_warps, num_stages = prefill_tile(block_d, itemsize)
        prefill_kernel[(plan.num_tiles, num_kv_heads)](
            out,
            qkv,
            k_cache,
            v_cache,
            block_tables,
            block_tables.stride(0),
            seq_lens,
            query_start_loc,
            plan.tiles,
            slopes,
            biases,
            sinks,
            key_ends,
            k_cache.stride(0),
            scores_scale,
            softcap,
            v_scale,
            window,
            **common,
            BLOCK_M=max(block_m, group_rows),
            BLOCK_N=block_n,
            GROUP_ROWS=group_rows,
            WINDOWED=window > 0,
            CAUSAL=causal,
            num_warps=num_warps,
            num_stages=num_stages,
        )


def _blocks(blocks: KeyBlocks | None) -> dict[str, int]:
    return dict(
        zip(("KEYS", "LOCAL", "STRIDE", "STEP"), (0, 0, 1, 0) if blocks is None else blocks.numbers, strict=True)
    )


def variants() -> list[Variant]:
    found = []
    for heads, kv_heads, head_dim, kv_dtype, kind in (
        (16, 8, 128, torch.bfloat16, ""),
        (32, 8, 128, torch.bfloat16, ""),
        (32, 8, 128, torch.float8_e4m3fn, ""),
        (9, 3, 64, torch.bfloat16, ""),
        (8, 4, 256, torch.bfloat16, "capped"),
        (8, 2, 512, torch.bfloat16, ""),
        (32, 32, 128, torch.bfloat16, "sloped"),
        (64, 8, 64, torch.bfloat16, "sinks"),
        (12, 12, 64, torch.bfloat16, "biased"),
        (32, 8, 128, torch.bfloat16, "blocks"),
    ):
        kinds = f", {kind}" if kind else ""
        name = f"{heads}/{kv_heads} x {head_dim}, {TYPE_NAMES[kv_dtype]}{kinds}"
        per_head = {"slopes": kind == "sloped", "biases": kind == "biased", "sinks": kind == "sinks"}
        pointers = dict.fromkeys(("out", "qkv"), "*bf16") | {name: "*fp32" for name, given in per_head.items() if given}
        pointers |= dict.fromkeys(("k_cache", "v_cache"), f"*{TYPE_NAMES[kv_dtype]}")
        pointers |= dict.fromkeys(("block_tables", "seq_lens"), "*i32")
        numbers = {"table_stride": "i32", "block_stride": "i32", "scale": "fp32", "cap": "fp32", "v_scale": "fp32"}
        numbers["window"] = "i32"
        constexprs: dict[str, Any] = {
            "NUM_HEADS": heads, "NUM_KV_HEADS": kv_heads, "D": head_dim, "Q_STRIDE": (heads + 2 * kv_heads) * head_dim,
            "BLOCK_D": head_dim, "BLOCK_SIZE": 16,
            "CHUNKED": False, "CAPPED": kind == "capped", "SLOPED": kind == "sloped", "PRECISION": "tf32",
            "REACH": 128 if kind == "biased" else -1,
            **_blocks(KeyBlocks(size=64, local=16, stride=8, step=1) if kind == "blocks" else None),
            **{name: None for name, given in per_head.items() if not given},
        }  # fmt: skip
        minimum = 89 if kv_dtype == torch.float8_e4m3fn else 80
        block_n, num_warps, num_stages, _ = _DECODE_TILES[head_dim, 2]
        scratch = dict.fromkeys(("partial", "partial_stats"), "*fp32")
        own = {"items": "*i32", "starts": "*i32"}
        found.append(
            Variant(
                name=f"decode {name}",
                kernel=decode_kernel,
                signature={**pointers, **scratch, **own, **numbers, "num_seqs": "i32"},
                constexprs={**constexprs, "BLOCK_M": 16, "BLOCK_N": block_n, "CHUNK": CHUNK},
                num_warps=num_warps,
                num_stages=num_stages,
                divisible=frozenset({*pointers, *scratch, *own, "block_stride"}),
                min_capability=minimum,
            )
        )
        block_m, block_n, num_warps, num_stages = prefill_tile(head_dim, 2)
        own = {"query_start_loc": "*i32", "tiles": "*i32"}
        # Rows that see all keys, and rows with ends of their own, need as much of a processor as any.
        limits = [("", False)]
        if not kinds and kv_dtype == torch.bfloat16 and head_dim == 64:
            limits = [("", False), (", all keys", False), (", ends of rows", True)]
        found += [
            Variant(
                name=f"prefill {name}{', window' if windowed else ''}{limit}",
                kernel=prefill_kernel,
                signature={**pointers, **own, **({"key_ends": "*i32"} if has_ends else {}), **numbers},
                constexprs={
                    **constexprs,
                    **({} if has_ends else {"key_ends": None}),
                    "BLOCK_M": block_m,
                    "BLOCK_N": block_n,
                    "WINDOWED": windowed,
                    "CAUSAL": limit != ", all keys",
                    "GROUP_ROWS": triton.next_power_of_2(heads // kv_heads),
                },
                num_warps=num_warps,
                num_stages=num_stages,
                divisible=frozenset({*pointers, *own, "block_stride"}),
                min_capability=minimum,
                max_spill_bytes=16 if windowed else 0,  # on sm_80, outside the inner loop
            )
            for limit, has_ends in limits
            for windowed in ((False,) if has_ends or kind == "blocks" else (False, True))
        ]
    pointers = {"out": "*bf16", "partial": "*fp32", "partial_stats": "*fp32", "starts": "*i32"}
    found.append(
        Variant(
            name="combine 32 x 128",
            kernel=combine_kernel,
            signature={**pointers, "v_scale": "fp32"},
            constexprs={
                "NUM_HEADS": 32,
                "D": 128,
                "BLOCK_D": 128,
                "BLOCK_C": _COMBINED,
                "sinks": None,
            },
            divisible=frozenset(pointers),
        )
    )
    return found
