"""The worker: device, model and KV cache of one rank."""

from __future__ import annotations

import logging
import time

import torch

from octavo.base.config import EngineConfig
from octavo.base.errors import InvalidConfig
from octavo.base.params import SamplingParams
from octavo.device.base import Device
from octavo.device.select import make_device
from octavo.models.checkpoint import Checkpoint
from octavo.models.decoder import Definition
from octavo.models.implementation import transformer
from octavo.models.loader import DTYPES, LoadedModel, OnPhase, load_model, online_quantization, open_checkpoint
from octavo.models.pooling_files import pooling_of
from octavo.models.transformer import Transformer
from octavo.ops.table import AttentionBackend, Binding, Ops, bind, cache_shapes
from octavo.wire.messages import AdapterInfo, EngineInfo, StepSeconds
from octavo.wire.step import CachedRequestData, ModelRunnerOutput, NewRequestData, SchedulerOutput, TokenMasks
from octavo.worker import step_sizes
from octavo.worker.adapters import AdapterSlots, AdapterStore, bank_bytes, with_adapters, with_banks
from octavo.worker.cross_inputs import encoding_bytes, max_encoder_len, silence
from octavo.worker.engine_info import MEDIA_CACHE_ROWS, engine_info, state_values, with_pooling
from octavo.worker.graphs import token_ladder
from octavo.worker.kv_memory import BlockShapes, KVCachePlan, block_values, kv_caches, plan_kv_cache
from octavo.worker.kv_scales import with_scales
from octavo.worker.media import MediaEncoder, media_bytes
from octavo.worker.model_runner import KVCaches, ModelRunner, RunningStep
from octavo.worker.pictures import most_rows, picture_bytes
from octavo.worker.pooling import EncodingRunner, Pooler, encodes_beside
from octavo.worker.prompt_adapters import KeptFiles, PromptSlots, prompt_bytes, with_prompts
from octavo.worker.residence import Residence, Runner, Weights
from octavo.worker.swap import SwapArena
from octavo.worker.torch_profile import TorchProfile

logger = logging.getLogger(__name__)

#: vLLM's names of the same work too.
_ATTENTION_BACKENDS: dict[str, AttentionBackend] = {
    "auto": "auto", "triton": "triton", "triton_attn": "triton", "flashinfer": "flashinfer",
}  # fmt: skip


class Worker:
    """Loads a model and executes the scheduler's plans. One instance a process."""

    def __init__(self, config: EngineConfig, on_phase: OnPhase) -> None:
        self._config = config
        self._on_phase = on_phase
        self._residence: Residence | None = None
        self._profile: TorchProfile | None = None
        self._adapters: AdapterStore | None = None
        self._kept: KeptFiles | None = None  # of adapters of all kinds; None: there are none
        self._is_whole = False  # a step computes all of a text
        asked = config.step_times.collect_detailed_traces
        self._times_forward = "model" in asked or "all" in asked
        self._times_worker = "worker" in asked or "all" in asked

    def load(self) -> EngineInfo:
        """Load everything and say what was chosen.

        Raises CheckpointError for damaged or unsupported files, DeviceError and InvalidConfig for what the
        device cannot give.
        """
        config, seconds = self._config, {}
        start = time.perf_counter()
        device = make_device(config.parallel)
        step_sizes.check_device_options(config, device)
        checkpoint = open_checkpoint(config.model, device.torch_device)
        ops = self._bind(device, checkpoint)

        def load(checkpoint: Checkpoint) -> LoadedModel:
            # The model's buffers grow when a step is larger than this; how large one may be depends on its context.
            most = device.default_batched_tokens
            return load_model(config.model, ops, most, self._on_phase, checkpoint, device.free_memory())

        loaded = load(checkpoint)
        kv_dtype = step_sizes.kv_cache_dtype(config, loaded, device)
        loaded = with_adapters(loaded, config, ops, device.default_batched_tokens)
        if config.lora.enable_lora:
            self._adapters = AdapterStore(loaded.model.definition, config, checkpoint)
        loaded = with_prompts(loaded, config, ops, device.default_batched_tokens)
        if self._adapters is not None or config.prompt_adapter.enable_prompt_adapter:
            self._kept = KeptFiles(loaded.model.definition, config, self._adapters)
        max_model_len = step_sizes.max_model_len(config, loaded)
        loaded = with_scales(loaded, checkpoint, config.cache, ops, device, max_model_len)
        if config.parallel.batch_invariant and device.name != "cpu" and not loaded.model.can_be_captured:
            raise InvalidConfig(
                "--batch-invariant: this model runs by way of transformers (--model-impl), whose modules are not held "
                "to it on a GPU."
            )
        seconds["weights"] = time.perf_counter() - start

        start = time.perf_counter()
        self._on_phase("kv cache", "")
        pooling = None
        if loaded.spec.pooling is not None:
            pooling = pooling_of(loaded.spec.pooling, config.model, checkpoint.config)
        max_model_len = step_sizes.max_model_len(config, loaded, None if pooling is None else pooling.max_tokens)
        if loaded.spec.bidirectional:
            step_sizes.check_whole(config, max_model_len)
            self._is_whole = True
        max_num_batched_tokens = step_sizes.max_num_batched_tokens(
            config, max_model_len, device, is_whole=self._is_whole
        )
        is_captured = pooling is None and loaded.model.can_be_captured
        graph_sizes = step_sizes.graph_sizes(config, device) if is_captured else ()
        reserved = (max_num_batched_tokens if device.uses_graphs else 0, max(graph_sizes, default=0))
        loaded.model.reserve(*reserved)
        step_bytes = self._step_bytes(loaded, ops, device, max_num_batched_tokens, max_model_len)
        plan = self._plan_kv_cache(loaded, ops, kv_dtype, max_model_len, device, step_bytes)
        # A state that a preempted request has left is lost, and its blocks are of no use without it; where there is an
        # encoder, its rows are computed again, and all else too.
        is_whole = state_values(loaded.model.definition) or loaded.model.definition.crossing is not None
        swap_bytes = 0 if is_whole else step_sizes.swap_bytes(config, device)
        self.swap_arena = SwapArena(device, plan.bytes_per_block, swap_bytes)

        def make_model(definition: Definition, weights: Weights) -> Transformer:
            weights = with_banks(definition, weights, config, ops)
            model = transformer(definition, ops, weights, device.default_batched_tokens)
            model.reserve(*reserved)
            return model

        media_patches = device.default_batched_tokens

        def make_runner(model: Transformer) -> Runner:
            pooler = None if pooling is None else Pooler(pooling, model.weights)
            if model.spec.bidirectional and pooler is not None:
                return EncodingRunner(model, ops, device, pooler)
            return ModelRunner(
                model=model,
                ops=ops,
                device=device,
                kv_caches=self._allocate_kv_caches(model.definition, device, ops, plan, kv_dtype),
                block_size=plan.block_size,
                max_num_seqs=config.scheduler.max_num_seqs,
                max_model_len=plan.max_model_len,
                swap_arena=self.swap_arena,
                logprobs_mode=config.model.logprobs_mode,
                graph_sizes=graph_sizes,
                graph_tokens=token_ladder(max_num_batched_tokens) if graph_sizes else (),
                windows=model.definition.windows,
                times_forward=self._times_forward,
                adapters=self._slots_of(model, ops, device),
                prompts=None if self._kept is None else PromptSlots(model, ops, device, self._kept),
                media=MediaEncoder(model, ops, device, media_patches) if model.definition.tower else None,
                pooler=pooler,
            )

        self._residence = Residence(
            loaded,
            device,
            lambda: load(open_checkpoint(config.model, device.torch_device)),
            make_model,
            make_runner,
        )
        # A context that was cut to fit the cache needs no larger steps.
        max_num_batched_tokens = min(
            max_num_batched_tokens,
            self._max_num_batched_tokens(plan.max_model_len, device),
        )
        if loaded.model.definition.crossing is not None and config.cache.enable_prefix_caching:
            logger.info(
                "prefix caching is off: what the tokens of this model mean depends on what layers see beside them"
            )
        if state_values(loaded.model.definition) and config.cache.enable_prefix_caching:
            logger.info("prefix caching is off: layers of this model keep a state, and no earlier token's is kept")
        seconds["kv cache"] = time.perf_counter() - start

        start = time.perf_counter()
        self._on_phase("warm-up", "")
        self._warm_up(self._runner, loaded.model.definition, device, plan.max_model_len)
        self.swap_arena.wait()
        seconds["warm-up"] = time.perf_counter() - start
        info = engine_info(
            config, loaded, device, ops, plan, kv_dtype, max_num_batched_tokens, self.swap_arena.num_places, seconds
        )
        return info if pooling is None else with_pooling(info, pooling, loaded.spec, plans_ahead=encodes_beside(device))

    def _slots_of(self, model: Transformer, ops: Ops, device: Device) -> AdapterSlots | None:
        if self._adapters is None:
            return None
        return AdapterSlots(model, ops, device, self._adapters, self._config)

    def read_adapter(self, key: str, path: str) -> AdapterInfo:
        """Keep an adapter on the host. May run in another thread than the steps. Raises CheckpointError."""
        assert self._kept is not None, "adapters are off"
        return self._kept.read(key, path)

    def drop_adapter(self, key: str) -> None:
        """No plan names it from here on."""
        if self._kept is not None:
            self._kept.drop(key)

    def submit(self, plan: SchedulerOutput) -> RunningStep:
        """Launch one step. Call `load` first."""
        start = time.perf_counter()
        step = self._runner.submit(plan)
        step.worker_seconds = time.perf_counter() - start
        return step

    def submit_masks(self, step: RunningStep, masks: TokenMasks) -> None:
        """The masks of a step whose plan has `masked_slots`, before anything else is submitted."""
        start = time.perf_counter()
        self._runner.submit_masks(step, masks)
        step.worker_seconds += time.perf_counter() - start

    def collect(self, step: RunningStep) -> ModelRunnerOutput:
        """Wait for the answer of the oldest step that has not been collected."""
        start = time.perf_counter()
        output = self._runner.collect(step)
        if self._times_forward or self._times_worker:
            spent = step.worker_seconds + time.perf_counter() - start
            output.seconds = StepSeconds(0.0, step.forward_seconds, spent if self._times_worker else None)
        return output

    def start_profile(self) -> None:
        """Record what torch, its threads and the device do, until `stop_profile`."""
        self._profile = TorchProfile()

    def stop_profile(self, path: str) -> None:
        """Write what was recorded, as a trace of Chrome's form. Raises OSError."""
        assert self._profile is not None, "stop_profile before start_profile"
        profile, self._profile = self._profile, None
        profile.stop(path)

    def execute(self, plan: SchedulerOutput) -> ModelRunnerOutput:
        """Both."""
        return self.collect(self.submit(plan))

    def sleep(self, level: int) -> None:
        """Give memory back, between two steps; see `Residence`. No step may be submitted before `wake_up`."""
        assert self._residence is not None, "sleep before load"
        self._residence.sleep(level)

    def wake_up(self) -> None:
        """Be as after `load`, with an empty KV cache."""
        assert self._residence is not None, "wake_up before load"
        self._residence.wake_up()

    @property
    def _runner(self) -> Runner:
        assert self._residence is not None and self._residence.runner is not None, "a step before load, or asleep"
        return self._residence.runner

    def _bind(self, device: Device, checkpoint: Checkpoint) -> Ops:
        model, parallel = self._config.model, self._config.parallel
        online = online_quantization(model, checkpoint)
        binding = Binding(
            torch_device=device.torch_device,
            activation_dtype=device.activation_dtype(DTYPES.get(model.dtype), checkpoint.dtype),
            to_device=device.upload_weight,
            quantization=online if online in ("fp8", "int8") else None,
            batch_invariant=parallel.batch_invariant,
            attention_backend=_ATTENTION_BACKENDS[parallel.attention_backend.lower()],
        )
        return bind(device.name, binding=binding)

    def _max_num_batched_tokens(self, longest: int, device: Device) -> int:
        return step_sizes.max_num_batched_tokens(self._config, longest, device, is_whole=self._is_whole)

    def _step_bytes(
        self, loaded: LoadedModel, ops: Ops, device: Device, max_num_batched_tokens: int, max_model_len: int
    ) -> int:
        """What steps come to take: the model's buffers, and the tokens and block ids that a slot keeps."""
        num_slots = self._config.scheduler.max_num_seqs
        definition = loaded.model.definition
        ids_per_slot = max_model_len + len(definition.cache_groups) * max_model_len // self._config.cache.block_size
        states = (num_slots + 1) * state_values(definition) * torch.float32.itemsize
        states += media_bytes(definition, ops, device.default_batched_tokens, MEDIA_CACHE_ROWS)
        buffers = states + loaded.model.step_bytes(max_num_batched_tokens, min(num_slots, max_num_batched_tokens))
        num_rows = max(max_num_batched_tokens, max_encoder_len(definition))
        buffers += bank_bytes(definition, self._config.lora, ops) + prompt_bytes(definition, self._config, ops)
        buffers += encoding_bytes(definition, ops, num_rows, num_slots)
        buffers += picture_bytes(definition, ops, self._config.cache.block_size)
        return buffers + num_slots * ids_per_slot * torch.int32.itemsize

    def _plan_kv_cache(
        self, loaded: LoadedModel, ops: Ops, kv_dtype: torch.dtype, max_model_len: int, device: Device, step_bytes: int
    ) -> KVCachePlan:
        config, definition = self._config, loaded.model.definition
        block_size = config.cache.block_size
        batched = self._max_num_batched_tokens(max_model_len, device)
        shapes = _block_shapes(definition, ops, block_size, kv_dtype)
        values_per_block = block_values(definition.cache_groups, shapes)
        return plan_kv_cache(
            config.cache,
            bytes_per_block=values_per_block * kv_dtype.itemsize,
            max_model_len=max_model_len,
            max_model_len_given=config.model.max_model_len is not None,
            max_num_seqs=config.scheduler.max_num_seqs,
            budget=device.kv_cache_budget(config.cache, step_bytes),
            windows=definition.windows,
            step_tokens=step_sizes.max_num_prefill_tokens(config, batched, device),
            encoder_blocks=definition.num_encoder_groups
            * -(-max(max_encoder_len(definition), most_rows(definition, block_size)) // block_size),
        )

    def _allocate_kv_caches(
        self, definition: Definition, device: Device, ops: Ops, plan: KVCachePlan, kv_dtype: torch.dtype
    ) -> KVCaches:
        shapes = _block_shapes(definition, ops, plan.block_size, kv_dtype)
        try:
            caches = kv_caches(definition.cache_groups, shapes, plan.num_blocks, kv_dtype, device.zeros)
            # One slot more than there are: that of the sequences that fill up a captured step.
            num_slots = self._config.scheduler.max_num_seqs + 1
            states = definition.program.states
            return caches + [(device.zeros((num_slots, *state.shape), torch.float32),) for state in states]
        except (OSError, RuntimeError) as error:
            raise InvalidConfig(f"The KV cache of {plan.total_bytes:,} bytes cannot be allocated: {error}") from None

    def _warm_up(self, runner: Runner, definition: Definition, device: Device, max_model_len: int) -> None:
        """A small prompt in the null block: touches every weight once and proves that a token comes out. Where kernels
        are compiled when they are first launched, a second token too, for those of decoding."""
        count = max(1, min(4, max_model_len - 1))
        request = NewRequestData(
            slot=0,
            request_id=-1,
            prompt_token_ids=[0] * count,
            num_prompt_tokens=count,
            params=SamplingParams(temperature=0.0, max_tokens=2),
            eos_token_ids=(),
            block_ids=[[0] for _ in definition.windows],
            num_computed_tokens=0,
            sample_index=0,
            sampling_seed=None,
            encoder_token_ids=[0] if definition.crossing is not None else [],
            encoder_frames=silence(definition, 1),
            encoder_block_ids=[[0]] * definition.num_encoder_groups,
        )
        plans = [SchedulerOutput([request], [], {0: count}, [], count, 0)]
        if device.uses_graphs and definition.spec.pooling is None and count < max_model_len:
            plans.append(SchedulerOutput([], [CachedRequestData(0, [], count)], {0: 1}, [], 1, 0))
        for plan in plans:
            output = runner.execute(plan)
            if output.errors:
                raise InvalidConfig(f"The model cannot produce a token: {output.errors[0]}")


def _block_shapes(definition: Definition, ops: Ops, block_size: int, kv_dtype: torch.dtype) -> list[BlockShapes]:
    """Of each layer what its arrays have of one block."""
    caches = definition.program.caches
    return [tuple(shape[1:] for shape in cache_shapes(ops, cache.heads, 1, block_size, kv_dtype)) for cache in caches]
