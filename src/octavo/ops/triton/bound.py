"""The table of the operations in Triton, made for one device, type of activations and set of options."""

from __future__ import annotations

from functools import partial
from typing import Any

from octavo.ops import flashinfer_prompts, reference
from octavo.ops.table import Binding
from octavo.ops.triton import (
    attention,
    causal_conv,
    elementwise,
    experts,
    gated_delta,
    heads,
    latent,
    linear,
    lora,
    rope,
    sampling,
    selective_scan,
    streams,
)
from octavo.ops.triton.fuse import TritonRunner
from octavo.ops.triton.linear import LinearPacker


def operations(binding: Binding) -> tuple[dict[str, Any], dict[str, str]]:
    """Every field of `table.Ops` that is an operation, and who does each.

    Raises DeviceError for options that exclude each other.
    """
    backend = binding.attention_backend
    library = flashinfer_prompts.find(backend, binding.activation_dtype, binding.batch_invariant)
    planner = partial(attention.AttentionPlanner, library=library, is_required=backend == "flashinfer")
    packer = LinearPacker(
        binding.torch_device,
        binding.activation_dtype,
        quantization=binding.quantization,
        batch_invariant=binding.batch_invariant,
        to_device=binding.to_device,
    )
    found = {
        "pack_linear": packer.pack_linear,
        "pack_linear_many": packer.pack_linear_many,
        "pack_output": packer.pack_output,
        "fixed_point": reference.fixed_point,
        "linear": linear.linear,
        "pack_embedding": packer.pack_embedding,
        "tied_embedding": packer.tied_embedding,
        "embedding": linear.embedding,
        "lora_bank": partial(lora.LoraBank, device=binding.torch_device),
        "lora_delta": lora.lora_delta,
        "rms_norm": elementwise.rms_norm,
        "add_rms_norm": elementwise.add_rms_norm,
        "layer_norm": elementwise.layer_norm,
        "add_layer_norm": elementwise.add_layer_norm,
        "norm_parts_": heads.norm_parts_,
        "add_": elementwise.add_,
        "add_gated_": elementwise.add_gated_,
        "act_mul": elementwise.act_mul,
        "act": elementwise.act,
        "pack_experts": packer.pack_experts,
        "pack_heads": packer.pack_heads,
        "route": experts.route,
        "experts": experts.experts,
        "clip_": heads.clip_,
        "multiply_": streams.multiply_,
        "match_rms_": streams.match_rms_,
        "cut_gates_": streams.cut_gates_,
        "act_times": streams.act_times,
        "altup_predict_": streams.altup_predict_,
        "altup_correct_": streams.altup_correct_,
        "rope_kv_write": rope.rope_kv_write,
        "attention": attention.attention,
        "causal_conv": causal_conv.causal_conv,
        "selective_scan": selective_scan.selective_scan,
        "gated_delta": gated_delta.gated_delta,
        "gate_": gated_delta.gate_,
        "head_linear": latent.head_linear,
        "latent_write": latent.latent_write,
        "latent_attention": latent.latent_attention,
        "latent_cache_shape": latent.latent_cache_shape,
        "program_runner": partial(TritonRunner, batch_invariant=binding.batch_invariant),
        "attention_planner": planner,
        "kv_cache_shapes": rope.kv_cache_shapes,
        "soft_cap_": elementwise.soft_cap_,
        "resolve_ids": elementwise.resolve_ids,
        "forbid": sampling.forbid,
        "sample": sampling.sample,
        "logprobs": sampling.logprobs,
        "penalty_counts": sampling.DevicePenalties,
    }
    names = dict.fromkeys(found, "triton")
    if library is not None:
        names["attention"] = "triton, prompts by flashinfer"
    return found, names
