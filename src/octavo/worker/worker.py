"""The worker: device, model and KV cache of one rank."""

from __future__ import annotations

import math
import time

import torch

from octavo.config import EngineConfig
from octavo.device.base import Device
from octavo.device.cpu import CPUDevice
from octavo.errors import InvalidConfig
from octavo.messages import EngineInfo
from octavo.models.loader import DTYPES, LoadedModel, OnPhase, load_model
from octavo.ops.table import Ops, bind
from octavo.params import SamplingParams
from octavo.step import ModelRunnerOutput, NewRequestData, SchedulerOutput
from octavo.worker.kv_memory import KVCachePlan, plan_kv_cache
from octavo.worker.model_runner import KVCaches, ModelRunner

#: A step on a CPU lasts as long as its tokens. With some dozens of rows the kernels are as fast as they get; with more
#: tokens of prompts the requests that run would only wait longer, and so would the prompts in front.
_DEFAULT_BATCHED_TOKENS = 512
_DEFAULT_PREFILL_TOKENS = 128


class Worker:
    """Loads a model and executes the scheduler's plans. One instance a process."""

    def __init__(self, config: EngineConfig, on_phase: OnPhase) -> None:
        self._config = config
        self._on_phase = on_phase
        self._runner: ModelRunner | None = None

    def load(self) -> EngineInfo:
        """Load everything and say what was chosen.

        Raises CheckpointError for damaged or unsupported files, DeviceError and InvalidConfig for what the
        device cannot give.
        """
        config, seconds = self._config, {}
        start = time.perf_counter()
        device: Device = CPUDevice(config.parallel)
        ops = bind(device.name)
        # The model's buffers grow when a step is larger than this; how large one may be depends on its context.
        loaded = load_model(config.model, ops, _DEFAULT_BATCHED_TOKENS, self._on_phase)
        seconds["weights"] = time.perf_counter() - start

        start = time.perf_counter()
        self._on_phase("kv cache", "")
        max_model_len = self._max_model_len(loaded)
        kv_dtype = self._kv_cache_dtype(loaded)
        plan = self._plan_kv_cache(loaded, ops, kv_dtype, max_model_len, device)
        kv_caches = self._allocate_kv_caches(loaded, device, ops, plan, kv_dtype)
        self._runner = ModelRunner(
            model=loaded.model,
            ops=ops,
            device=device,
            kv_caches=kv_caches,
            block_size=plan.block_size,
            max_num_seqs=config.scheduler.max_num_seqs,
            max_model_len=plan.max_model_len,
            logprobs_mode=config.model.logprobs_mode,
        )
        max_num_batched_tokens = self._max_num_batched_tokens(plan.max_model_len)
        seconds["kv cache"] = time.perf_counter() - start

        start = time.perf_counter()
        self._on_phase("warm-up", "")
        self._warm_up(self._runner)
        seconds["warm-up"] = time.perf_counter() - start
        return self._info(loaded, device, ops, plan, kv_dtype, max_num_batched_tokens, seconds)

    def execute(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        """Run one step. Call `load` first."""
        assert self._runner is not None, "execute before load"
        return self._runner.execute(plan)

    def _max_model_len(self, loaded: LoadedModel) -> int:
        asked, limit = self._config.model.max_model_len, loaded.spec.max_position_embeddings
        if asked is not None and asked > limit:
            raise InvalidConfig(f"--max-model-len {asked} is longer than the {limit} positions of the model.")
        return asked or limit

    def _max_num_batched_tokens(self, max_model_len: int) -> int:
        scheduler = self._config.scheduler
        asked = scheduler.max_num_batched_tokens
        if scheduler.enable_chunked_prefill:
            return asked or max(_DEFAULT_BATCHED_TOKENS, scheduler.max_num_seqs)
        if asked is not None and asked < max_model_len:
            raise InvalidConfig(
                f"--max-num-batched-tokens {asked} is less than the context of {max_model_len} tokens, which is only "
                f"possible with --enable-chunked-prefill."
            )
        return asked or max_model_len

    def _max_num_prefill_tokens(self, max_num_batched_tokens: int) -> int:
        scheduler = self._config.scheduler
        asked = scheduler.max_num_prefill_tokens
        if not scheduler.enable_chunked_prefill:
            if asked is not None:
                raise InvalidConfig(
                    "--max-num-prefill-tokens splits prompts, which --no-enable-chunked-prefill forbids."
                )
            return max_num_batched_tokens
        if asked is None:
            is_free = scheduler.max_num_batched_tokens is None
            return min(_DEFAULT_PREFILL_TOKENS, max_num_batched_tokens) if is_free else max_num_batched_tokens
        if asked > max_num_batched_tokens:
            raise InvalidConfig(
                f"--max-num-prefill-tokens {asked} is more than the {max_num_batched_tokens} tokens of a step "
                f"(--max-num-batched-tokens)."
            )
        return asked

    def _kv_cache_dtype(self, loaded: LoadedModel) -> torch.dtype:
        """auto: the type of the checkpoint's unquantized weights; float16 where all are quantized."""
        asked = self._config.cache.kv_cache_dtype
        return loaded.dtype if asked == "auto" else DTYPES[asked]

    def _plan_kv_cache(
        self, loaded: LoadedModel, ops: Ops, kv_dtype: torch.dtype, max_model_len: int, device: Device
    ) -> KVCachePlan:
        spec, block_size = loaded.spec, self._config.cache.block_size
        shapes = ops.kv_cache_shapes(1, block_size, spec.num_kv_heads, spec.head_dim)
        values_per_block = spec.num_layers * sum(math.prod(shape) for shape in shapes)
        return plan_kv_cache(
            self._config.cache,
            bytes_per_block=values_per_block * kv_dtype.itemsize,
            max_model_len=max_model_len,
            max_model_len_given=self._config.model.max_model_len is not None,
            max_num_seqs=self._config.scheduler.max_num_seqs,
            free_bytes=device.free_memory_bytes(),
        )

    def _allocate_kv_caches(
        self, loaded: LoadedModel, device: Device, ops: Ops, plan: KVCachePlan, kv_dtype: torch.dtype
    ) -> KVCaches:
        spec = loaded.spec
        k_shape, v_shape = ops.kv_cache_shapes(plan.num_blocks, plan.block_size, spec.num_kv_heads, spec.head_dim)
        try:
            return [(device.zeros(k_shape, kv_dtype), device.zeros(v_shape, kv_dtype)) for _ in range(spec.num_layers)]
        except (OSError, RuntimeError) as error:
            raise InvalidConfig(f"The KV cache of {plan.total_bytes:,} bytes cannot be allocated: {error}") from None

    def _warm_up(self, runner: ModelRunner) -> None:
        """One small prefill into the null block: touches every weight once and proves that a token comes out."""
        request = NewRequestData(
            slot=0,
            request_id=-1,
            prompt_token_ids=[0, 0, 0, 0],
            num_prompt_tokens=4,
            params=SamplingParams(temperature=0.0, max_tokens=1),
            eos_token_ids=(),
            block_ids=[0],
            num_computed_tokens=0,
            sample_index=0,
            sampling_seed=None,
        )
        plan = SchedulerOutput(
            new_requests=[request],
            cached_requests=[],
            num_scheduled_tokens={0: 4},
            finished_slots=[],
            total_num_scheduled_tokens=4,
            step_id=0,
        )
        output = runner.execute(plan)
        if output.errors:
            raise InvalidConfig(f"The model cannot produce a token: {output.errors[0]}")

    def _info(
        self,
        loaded: LoadedModel,
        device: Device,
        ops: Ops,
        plan: KVCachePlan,
        kv_dtype: torch.dtype,
        max_num_batched_tokens: int,
        seconds: dict[str, float],
    ) -> EngineInfo:
        return EngineInfo(
            model_type=loaded.spec.model_type,
            vocab_size=loaded.spec.vocab_size,
            max_model_len=plan.max_model_len,
            num_kv_blocks=plan.num_blocks,
            block_size=plan.block_size,
            max_num_seqs=self._config.scheduler.max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_prefill_tokens=self._max_num_prefill_tokens(max_num_batched_tokens),
            max_request_tokens=plan.max_request_tokens,
            kv_cache_bytes=plan.total_bytes,
            weight_bytes=loaded.weight_bytes,
            num_params=loaded.num_params,
            dtype=str(loaded.dtype).removeprefix("torch."),
            kv_cache_dtype=str(kv_dtype).removeprefix("torch."),
            quantization=loaded.quantization,
            device=device.description,
            ops=dict(ops.implementations),
            load_seconds=seconds,
            layer_ops_per_token=loaded.spec.layer_ops_per_token,
            output_ops_per_token=2 * loaded.spec.hidden_size * loaded.spec.vocab_size,
            attention_ops_per_key=4 * loaded.spec.num_layers * loaded.spec.num_heads * loaded.spec.head_dim,
        )
