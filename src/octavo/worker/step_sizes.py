"""How large steps and what belongs to them may be, by the configuration, the model and the device."""

from __future__ import annotations

import logging

import torch

from octavo.base import host
from octavo.base.config import EngineConfig
from octavo.base.errors import InvalidConfig
from octavo.device.base import Device
from octavo.models.loader import DTYPES, LoadedModel
from octavo.worker.graphs import MAX_GRAPH_SIZE, ladder
from octavo.worker.kv_memory import GIB
from octavo.worker.kv_scales import check_scale_options, scales_of_file

logger = logging.getLogger(__name__)

#: Types of KV caches by the names of --kv-cache-dtype.
_CACHE_DTYPES = {
    **{name: DTYPES[name] for name in ("float32", "bfloat16", "float16")},
    "fp8": torch.float8_e4m3fn,
    "fp8_e4m3": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
    "int8": torch.int8,
}


def check_device_options(config: EngineConfig, device: Device) -> None:
    """Refuse what the device cannot do, by the flag's name, and tell what it has no use for."""
    parallel, cache = config.parallel, config.cache
    if parallel.enforce_eager and parallel.cudagraph_capture_sizes:
        raise InvalidConfig("--enforce-eager captures nothing: it excludes --cudagraph-capture-sizes.")
    if device.name == "cpu":
        backend = parallel.attention_backend
        idle = {
            "--gpu-memory-utilization": cache.gpu_memory_utilization,
            "--swap-space": cache.swap_space or None,
            "--cudagraph-capture-sizes": ",".join(map(str, parallel.cudagraph_capture_sizes)) or None,
            "--attention-backend": backend if backend != "auto" else None,
            "--enforce-eager": "" if parallel.enforce_eager else None,
            "--batch-invariant": "" if parallel.batch_invariant else None,
        }
        if told := ", ".join(f"{option} {given}".strip() for option, given in idle.items() if given is not None):
            logger.info("accepted, nothing to do on a CPU: %s", told)
    else:
        for option, given in {"--num-threads": parallel.num_threads, "--isa": parallel.isa}.items():
            if given is not None:
                raise InvalidConfig(f"{option} {given} is for the CPU's kernels, and the model runs on a GPU.")
    swap_bytes(config, device)  # for its error
    check_scale_options(cache)
    if cache.quantization_param_path is not None:
        scales_of_file(cache.quantization_param_path)  # for its errors
    if cache.kv_cache_dtype in _CACHE_DTYPES:
        device.check_cache_dtype(_CACHE_DTYPES[cache.kv_cache_dtype], cache.kv_cache_dtype)


def swap_bytes(config: EngineConfig, device: Device) -> int:
    """Bytes that the host keeps for preempted requests. The default takes no more than half of what is free there.

    Raises InvalidConfig where more was asked for than there is.
    """
    if device.name == "cpu":
        return 0  # the whole KV cache is in the host's memory
    asked, free = config.cache.swap_space, host.free_memory()
    if asked is None:
        return min(int(device.default_swap_gib * GIB), free.num_bytes // 2)
    if asked * GIB > free.num_bytes:
        raise InvalidConfig(
            f"--swap-space {asked:g} asks for {asked:g} GiB of the host's memory, and there are {free}. "
            f"Ask for less; 0 has preempted requests computed again."
        )
    return int(asked * GIB)


def graph_sizes(config: EngineConfig, device: Device) -> tuple[int, ...]:
    """Batch sizes for which steps are captured."""
    parallel, most = config.parallel, config.scheduler.max_num_seqs
    if not device.uses_graphs or parallel.enforce_eager:
        return ()
    asked = tuple(sorted({size for size in parallel.cudagraph_capture_sizes if size <= most}))
    if parallel.cudagraph_capture_sizes and not asked:
        raise InvalidConfig(f"--cudagraph-capture-sizes: all of them are above --max-num-seqs ({most}).")
    return asked or ladder(min(most, MAX_GRAPH_SIZE))


def max_model_len(config: EngineConfig, loaded: LoadedModel, trained: int | None = None) -> int:
    """`trained`: tokens of the longest texts that the model was trained on, where its files say."""
    asked, limit = config.model.max_model_len, loaded.spec.max_position_embeddings
    lora = config.lora
    if lora.enable_lora and lora.long_lora_scaling_factors and asked:  # some adapters may have more
        limit = int(limit * max(lora.long_lora_scaling_factors))
    if asked is not None and asked > limit:
        raise InvalidConfig(f"--max-model-len {asked} is longer than the {limit} positions of the model.")
    return asked or min(loaded.spec.default_positions, trained or limit)


def check_whole(config: EngineConfig, longest: int) -> None:
    """Of a model whose tokens see all of their text: a step takes the longest."""
    asked = config.scheduler.max_num_batched_tokens
    if asked is not None and asked < longest:
        raise InvalidConfig(
            f"--max-num-batched-tokens {asked} is less than the longest text of {longest} tokens, all of "
            "which see each other and are computed in one step. Give more, or a lower --max-model-len."
        )


def max_num_batched_tokens(config: EngineConfig, longest: int, device: Device, *, is_whole: bool) -> int:
    """Of a step. `longest`: request. `is_whole`: a step computes all of a text. Raises InvalidConfig."""
    scheduler = config.scheduler
    asked = scheduler.max_num_batched_tokens
    if is_whole:
        return asked or max(device.default_batched_tokens, scheduler.max_num_seqs, longest)
    if scheduler.enable_chunked_prefill:
        return asked or max(device.default_batched_tokens, scheduler.max_num_seqs)
    if asked is not None and asked < longest:
        raise InvalidConfig(
            f"--max-num-batched-tokens {asked} is less than the context of {longest} tokens, which is only "
            f"possible with --enable-chunked-prefill."
        )
    return asked or longest


def max_num_prefill_tokens(config: EngineConfig, batched: int, device: Device) -> int:
    """Of prompts in a step of `batched` tokens, at most. Raises InvalidConfig."""
    scheduler = config.scheduler
    asked = scheduler.max_num_prefill_tokens
    if not scheduler.enable_chunked_prefill:
        if asked is not None:
            raise InvalidConfig("--max-num-prefill-tokens splits prompts, which --no-enable-chunked-prefill forbids.")
        return batched
    if asked is None:
        is_free = scheduler.max_num_batched_tokens is None
        return min(device.default_prefill_tokens, batched) if is_free else batched
    if asked > batched:
        raise InvalidConfig(
            f"--max-num-prefill-tokens {asked} is more than the {batched} tokens of a step (--max-num-batched-tokens)."
        )
    return asked


def kv_cache_dtype(config: EngineConfig, loaded: LoadedModel, device: Device) -> torch.dtype:
    """auto: the type of the checkpoint's unquantized weights; float16 where all are quantized."""
    asked = config.cache.kv_cache_dtype
    if asked != "auto":
        return _CACHE_DTYPES[asked]
    device.check_cache_dtype(loaded.dtype, asked)
    return loaded.dtype
