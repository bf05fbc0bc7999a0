"""What the engine says of itself when it has loaded a model."""

from __future__ import annotations

import math
from typing import Any, Final

import msgspec
import torch

from octavo.base.config import EngineConfig
from octavo.device.base import Device
from octavo.models.decoder import Definition
from octavo.models.loader import LoadedModel
from octavo.models.pooling_files import Pooling
from octavo.models.spec import ModelSpec
from octavo.ops.table import Ops
from octavo.wire.messages import EngineInfo, PoolingInfo
from octavo.worker.cross_inputs import encoder_channels, max_encoder_len
from octavo.worker.kv_memory import KVCachePlan
from octavo.worker.media import media_ops
from octavo.worker.pictures import MOST_PICTURES
from octavo.worker.step_sizes import max_num_prefill_tokens

#: Rows of media thatare kept to be read again: a few dozen pictures.
MEDIA_CACHE_ROWS: Final = 16_384


def engine_info(
    config: EngineConfig,
    loaded: LoadedModel,
    device: Device,
    ops: Ops,
    plan: KVCachePlan,
    kv_dtype: torch.dtype,
    max_num_batched_tokens: int,
    num_swap_blocks: int,
    seconds: dict[str, float],
) -> EngineInfo:
    """`seconds`: of each part of loading."""
    prompts = config.prompt_adapter
    return EngineInfo(
        model_type=loaded.spec.model_type,
        vocab_size=loaded.spec.vocab_size,
        max_model_len=plan.max_model_len,
        num_kv_blocks=plan.num_blocks,
        block_size=plan.block_size,
        max_num_seqs=config.scheduler.max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        max_num_prefill_tokens=max_num_prefill_tokens(config, max_num_batched_tokens, device),
        max_request_tokens=plan.max_request_tokens,
        kv_group_windows=loaded.model.definition.windows,
        decoder_start_token_ids=loaded.spec.decoder_start_token_ids,
        max_encoder_len=max_encoder_len(loaded.model.definition),
        num_encoder_groups=loaded.model.definition.num_encoder_groups,
        encoder_channels=encoder_channels(loaded.model.definition),
        kv_cache_bytes=plan.total_bytes,
        weight_bytes=loaded.weight_bytes,
        expert_bytes=loaded.expert_bytes,
        expert_share=loaded.model.definition.expert_share,
        num_params=loaded.num_params,
        dtype=str(loaded.dtype).removeprefix("torch."),
        kv_cache_dtype=str(kv_dtype).removeprefix("torch."),
        quantization=loaded.quantization,
        device=device.description,
        ops=dict(ops.implementations),
        load_seconds=seconds,
        # Elsewhere kernels for one token and for many round differently: then a hit on generated text would show.
        caches_output=device.decodes_as_prompts or not config.parallel.batch_invariant,
        num_positions=loaded.spec.max_position_embeddings,
        extra_tokens=loaded.model.definition.extra_tokens,
        max_loras=config.lora.max_loras if config.lora.enable_lora else 0,
        max_prompt_adapters=prompts.max_prompt_adapters if prompts.enable_prompt_adapter else 0,
        num_swap_blocks=num_swap_blocks,
        has_states=bool(state_values(loaded.model.definition)),
        # Scores of what was drawn from are made on the host, before the next step may begin.
        plans_ahead=device.plans_ahead and config.model.logprobs_mode.startswith("raw"),
        **_media_info(loaded, max_num_batched_tokens),
        layer_ops_per_token=loaded.model.definition.layer_ops_per_token,
        output_ops_per_token=_output_ops(loaded.model.definition),
        attention_ops_per_key=loaded.model.definition.attention_ops_per_key,
    )


def _output_ops(definition: Definition) -> int:
    """Sums and products of the output matrix for a row."""
    return 0 if definition.lm_head is None else 2 * math.prod(definition.lm_head.shape)


def with_pooling(info: EngineInfo, pooling: Pooling, spec: ModelSpec, *, plans_ahead: bool) -> EngineInfo:
    """`plans_ahead`: whether steps of whole texts run beside the host's work."""
    heads = [head.size for head in pooling.spec.heads] + [len(dense.weight) for dense in pooling.dense]
    step_tokens = info.max_num_batched_tokens if spec.bidirectional else info.max_num_prefill_tokens
    told = PoolingInfo(
        kind=pooling.kind,
        dimension=heads[-1] if heads else spec.hidden_size,
        hidden_size=spec.hidden_size,
        normalizes=pooling.normalizes,
        is_whole=spec.bidirectional,
        classes=bool(pooling.spec.classes),
        labels=pooling.spec.labels,
        reads_pairs=bool(pooling.spec.classes) and len(pooling.spec.labels) == 1,
        pair_template=pooling.spec.pair_template,
        prompts=dict(pooling.prompts),
        default_prompt=pooling.default_prompt,
        dimensions=pooling.dimensions,
        may_be_cut=pooling.may_be_cut,
    )
    return msgspec.structs.replace(
        info,
        pooling=told,
        max_num_prefill_tokens=step_tokens,
        num_swap_blocks=0,
        plans_ahead=plans_ahead and spec.bidirectional,
    )


def _media_info(loaded: LoadedModel, step_rows: int) -> dict[str, Any]:
    """Fields of `EngineInfo`."""
    tower, pictures = loaded.spec.tower, loaded.spec.pictures
    if pictures is not None:
        return {
            "media_kinds": ("image",),
            "media_tile_rows": pictures.tile_rows,
            "media_tiles": pictures.num_tiles,
            "max_media_items": MOST_PICTURES,
        }
    if tower is None:
        return {}
    definition = loaded.model.definition.tower
    assert definition is not None, "a tower has a definition"
    unit_ops, attention_ops = media_ops(definition)
    return {
        "media_kinds": (*tower.kinds, "embeds"),
        "media_width": loaded.spec.hidden_size * (1 + len(tower.taps)),
        "media_step_rows": step_rows,
        "media_cache_rows": MEDIA_CACHE_ROWS,
        "media_unit_ops": unit_ops,
        "media_attention_ops": attention_ops,
        "media_stays_whole": tower.whole_spans,
        "prompts_stay_whole": tower.whole_prompts,
    }


def state_values(definition: Definition) -> int:
    """Values that the layers keep of a sequence beside its blocks."""
    return sum(math.prod(state.shape) for state in definition.program.states)
