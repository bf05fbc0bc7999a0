"""The least time in which a machine could do a batch: arithmetic, KV cache and weights, each at its limit, added up.

One number to compare any two runs by. Added and not the largest of them, so that a program which computes while it
reads could beat it; none does by much. Sliding windows are not counted: a model that has them does less at long
contexts.
"""

from __future__ import annotations

from collections.abc import Sequence

from octavo.bench.limits import Limits
from octavo.wire.messages import EngineInfo

#: Of one request: tokens of the prompt that were computed, all of its prompt, and tokens that were sampled.
Lengths = tuple[int, int, int]


def roofline_seconds(info: EngineInfo, limits: Limits, requests: Sequence[Lengths]) -> float:
    """For requests given at once. Matrices count at the int8 peak if they are quantized, all else at float32's."""
    matrix_ops = sum(info.layer_ops_per_token * (computed + out - 1) for computed, _, out in requests)
    matrix_ops += sum(info.output_ops_per_token * out for _, _, out in requests)
    attention_ops = sum(info.attention_ops_per_key * _keys(*request) for request in requests)
    num_cached = info.num_kv_blocks * info.block_size  # tokens of one group; 0: nothing is kept of a token
    kv_bytes_per_token = len(info.kv_group_windows) * info.kv_cache_bytes / num_cached if num_cached else 0.0
    # A prompt's own keys are in the processor's caches while it is computed; each later token reads all before it.
    kv_bytes = kv_bytes_per_token * sum((out - 1) * prompt + out * (out - 1) / 2 for _, prompt, out in requests)
    matrix_peak = limits.float32_gflop_s if info.quantization == "none" else limits.int8_gop_s
    bandwidth = limits.memory_read_gb_s
    seconds = matrix_ops / matrix_peak + attention_ops / limits.float32_gflop_s
    step_bytes = step_weight_bytes(info, min(len(requests), info.max_num_seqs))
    return (seconds + (kv_bytes + num_steps(info, requests) * step_bytes) / bandwidth) / 1e9


def step_weight_bytes(info: EngineInfo, num_tokens: int) -> float:
    """Weights that a step of `num_tokens` tokens reads: of experts those that one of the tokens goes through, where
    each goes through any of them as likely."""
    return info.weight_bytes - info.expert_bytes * (1.0 - info.expert_share) ** num_tokens


def num_steps(info: EngineInfo, requests: Sequence[Lengths]) -> float:
    """Steps at the least: as many as the longest reply has tokens, or as full steps hold the tokens of all."""
    lengths = [out for _, _, out in requests]
    return max(max(lengths), sum(lengths) / info.max_num_seqs)


def _keys(computed: int, prompt: int, out: int) -> float:
    """Pairs of a computed token and a key that it looks at."""
    first, last = prompt - computed + 1, prompt + out - 1
    return (first + last) * (last - first + 1) / 2
